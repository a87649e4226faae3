//! The schema that policies are checked against, and the names in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr as _;
use std::sync::LazyLock;

use cedar_policy::{EntityId, EntityTypeName, EntityUid};

use crate::query::{Act, Target};

/// The schema without the facts of a policy file.
const TEXT: &str = include_str!("policy.cedarschema");
/// What the facts of a policy file replace.
const FACTS: &str = "type Facts = {};";

/// The actions by their index, each with its group.
const ACTIONS: [(&str, Option<&str>); 27] = [
    ("initialize", Some("base")),
    ("ping", Some("base")),
    ("server/discover", Some("base")),
    ("notifications", Some("base")),
    ("answer", Some("base")),
    ("stream", Some("base")),
    ("subscriptions/listen", Some("base")),
    ("session/delete", Some("base")),
    ("tools/list", Some("list")),
    ("prompts/list", Some("list")),
    ("resources/list", Some("list")),
    ("resources/templates/list", Some("list")),
    ("prompts/get", Some("read")),
    ("resources/read", Some("read")),
    ("resources/subscribe", Some("read")),
    ("resources/unsubscribe", Some("read")),
    ("completion/complete", Some("read")),
    ("tools/call", Some("call")),
    ("tasks/get", Some("tasks")),
    ("tasks/list", Some("tasks")),
    ("tasks/result", Some("tasks")),
    ("tasks/update", Some("tasks")),
    ("tasks/cancel", Some("tasks")),
    ("logging/setLevel", None),
    ("other", None),
    ("http", None),
    // Stands for no action, so that an index is never out of bounds.
    ("", None),
];
/// Actions that are no methods: a method of this name is another one.
const NO_METHODS: [&str; 6] = ["notifications", "answer", "stream", "session/delete", "other", "http"];

/// The schema with these facts, each with its type and whether it may be absent.
pub(crate) fn with_facts(facts: &BTreeMap<String, (&'static str, bool)>) -> String {
    let mut declared = "type Facts = {".to_owned();
    for (name, (kind, optional)) in facts {
        let mark = if *optional { "?" } else { "" };
        let _ = write!(declared, "\n    \"{name}\"{mark}: {kind},");
    }
    declared.push_str(if facts.is_empty() { "};" } else { "\n};" });
    TEXT.replacen(FACTS, &declared, 1)
}

/// What a caller wants to do, as one of the actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Action(u8);

impl Action {
    pub(crate) const TOOLS_CALL: &'static str = "tools/call";

    pub(crate) fn of(act: &Act<'_>) -> Self {
        match act {
            Act::Mcp { method, .. } if method.starts_with("notifications/") => Self::named("notifications"),
            Act::Mcp { method, .. } if NO_METHODS.contains(method) => Self::named("other"),
            Act::Mcp { method, .. } => Self::find(method).unwrap_or_else(|| Self::named("other")),
            Act::Answer => Self::named("answer"),
            Act::Stream => Self::named("stream"),
            Act::EndSession => Self::named("session/delete"),
            Act::Http { .. } => Self::named("http"),
        }
    }

    /// The action of this name, if there is one.
    pub(crate) fn find(name: &str) -> Option<Self> {
        let at = ACTIONS.iter().position(|(known, _)| *known == name && !name.is_empty())?;
        u8::try_from(at).ok().map(Self)
    }

    fn named(name: &str) -> Self {
        Self::find(name).expect("an action of the table")
    }

    /// Whether a method of MCP has an action of its own.
    pub(crate) fn is_method(name: &str) -> bool {
        !NO_METHODS.contains(&name) && Self::find(name).is_some()
    }

    /// The bit of this action.
    pub(crate) fn bit(self) -> u64 {
        1 << self.0
    }

    pub(crate) fn name(self) -> &'static str {
        ACTIONS.get(usize::from(self.0)).map_or("", |(name, _)| name)
    }

    pub(crate) fn uid(self) -> EntityUid {
        uid(&types().action, self.name())
    }

    /// The bits of an action or a group; 0 if there is none of this name.
    pub(crate) fn bits(name: &str) -> u64 {
        let named = |(at, (action, group)): (usize, &(&str, Option<&str>))| {
            if *action == name || *group == Some(name) { 1u64 << at } else { 0 }
        };
        ACTIONS.iter().enumerate().map(named).fold(0, |bits, bit| bits | bit)
    }
}

/// What a target is called in policies: its entity, and the attribute with its name.
pub(crate) fn target(target: &Target<'_>) -> (&'static EntityTypeName, &'static str) {
    let types = types();
    match target {
        Target::Tool(_) => (&types.tool, "name"),
        Target::Prompt(_) => (&types.prompt, "name"),
        Target::Resource(_) => (&types.resource, "uri"),
    }
}

/// The entity types of the schema.
pub(crate) struct Types {
    pub(crate) action: EntityTypeName,
    pub(crate) caller: EntityTypeName,
    pub(crate) issuer: EntityTypeName,
    pub(crate) organization: EntityTypeName,
    pub(crate) workspace: EntityTypeName,
    pub(crate) agent: EntityTypeName,
    pub(crate) group: EntityTypeName,
    pub(crate) route: EntityTypeName,
    pub(crate) tool: EntityTypeName,
    pub(crate) prompt: EntityTypeName,
    pub(crate) resource: EntityTypeName,
}

pub(crate) fn types() -> &'static Types {
    static TYPES: LazyLock<Types> = LazyLock::new(|| {
        let name = |text| EntityTypeName::from_str(text).expect("a name of the schema");
        Types {
            action: name("Action"),
            caller: name("Caller"),
            issuer: name("Issuer"),
            organization: name("Organization"),
            workspace: name("Workspace"),
            agent: name("Agent"),
            group: name("Group"),
            route: name("Route"),
            tool: name("Tool"),
            prompt: name("Prompt"),
            resource: name("Resource"),
        }
    });
    &TYPES
}

pub(crate) fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cedar_policy::Schema;

    use super::*;

    #[test]
    fn the_table_of_actions_is_that_of_the_schema() {
        let (schema, _) = Schema::from_cedarschema_str(&with_facts(&BTreeMap::new())).expect("the schema is good");
        let of_schema: BTreeSet<String> = schema.actions().map(|uid| uid.id().unescaped().to_owned()).collect();
        let mut of_table: BTreeSet<String> = ACTIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
        of_table.extend(ACTIONS.iter().filter_map(|(_, group)| group.map(ToOwned::to_owned)));
        of_table.remove("");
        assert_eq!(of_table, of_schema);
        let entities = schema.action_entities().expect("actions are entities");
        for (name, group) in ACTIONS.iter().filter(|(name, _)| !name.is_empty()) {
            let action = uid(&types().action, name);
            let above: Vec<_> =
                entities.ancestors(&action).expect(name).map(|uid| uid.id().unescaped().to_owned()).collect();
            assert_eq!(above, group.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>(), "{name}");
        }
    }

    #[test]
    fn what_is_no_method_of_ours_is_other() {
        let of = |method| Action::of(&Act::Mcp { method, target: None }).name();
        assert_eq!(of("tools/call"), "tools/call");
        assert_eq!(of("notifications/initialized"), "notifications");
        for method in
            ["Tools/call", "tools/call ", "stream", "session/delete", "answer", "http", "base", "", "notifications"]
        {
            assert_eq!(of(method), "other", "{method}");
        }
    }

    #[test]
    fn groups_have_the_bits_of_their_actions() {
        assert_eq!(Action::bits("call"), Action::bits("tools/call"));
        assert_eq!(Action::bits("list").count_ones(), 4);
        assert_eq!(Action::bits("none"), 0);
    }
}
