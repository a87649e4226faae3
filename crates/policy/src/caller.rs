//! A caller as Cedar sees it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, Hash as _, Hasher as _};

use cedar_policy::{Entity, EntityUid, RestrictedExpression};
use sortie_identity::Caller;

use crate::schema::{types, uid};

/// The claim whose values are groups.
const GROUPS: &str = "groups";

/// What policies look at in callers: what none looks at makes no difference between two of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    key: bool,
    user: bool,
    agent_version: bool,
    session: bool,
    tool_use: bool,
    region: bool,
    actors: bool,
    /// All claims, not only groups.
    claims: bool,
}

impl Seen {
    /// By the names of all attributes that policies use, and whether they use tags.
    pub(crate) fn of(attributes: &BTreeSet<String>, tags: bool) -> Self {
        let seen = |name: &str| attributes.contains(name);
        Self {
            key: seen("key"),
            user: seen("user"),
            agent_version: seen("agent_version"),
            session: seen("session"),
            tool_use: seen("tool_use"),
            region: seen("region"),
            actors: seen("actors"),
            claims: tags,
        }
    }

    /// The caller without what no policy looks at.
    pub(crate) fn part<'a>(&self, caller: &'a Caller) -> Part<'a> {
        let text = |seen: bool, value: &'a Option<String>| if seen { value.as_deref() } else { None };
        Part {
            issuer: &caller.issuer,
            subject: &caller.subject,
            assurance: caller.assurance.as_str(),
            texts: [
                ("organization", caller.organization.as_deref()),
                ("workspace", caller.workspace.as_deref()),
                ("agent", caller.agent.as_deref()),
                ("key", text(self.key, &caller.key)),
                ("user", text(self.user, &caller.user)),
                ("agent_version", text(self.agent_version, &caller.agent_version)),
                ("session", text(self.session, &caller.session)),
                ("tool_use", text(self.tool_use, &caller.tool_use)),
                ("region", text(self.region, &caller.region)),
            ],
            actors: if self.actors { &caller.actors } else { &[] },
            groups: caller.claims.get(GROUPS).map_or(&[], Vec::as_slice),
            claims: if self.claims { Some(&caller.claims) } else { None },
        }
    }
}

/// What policies can tell of a caller.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Part<'a> {
    issuer: &'a str,
    subject: &'a str,
    assurance: &'static str,
    texts: [(&'static str, Option<&'a str>); 9],
    actors: &'a [String],
    groups: &'a [String],
    claims: Option<&'a std::collections::BTreeMap<String, Vec<String>>>,
}

impl Part<'_> {
    pub(crate) fn hash(&self, with: &impl BuildHasher) -> u64 {
        let mut hasher = with.build_hasher();
        // The names of the texts are always the same.
        (self.issuer, self.subject, self.assurance, self.actors, self.groups, self.claims).hash(&mut hasher);
        self.texts.iter().for_each(|(_, text)| text.hash(&mut hasher));
        hasher.finish()
    }
}

/// A caller, ready to be decided on.
pub(crate) struct Known {
    /// Unlike that of any other.
    pub(crate) id: u64,
    /// What it was made from, with the rest left empty.
    source: Caller,
    pub(crate) uid: EntityUid,
    /// It and all above it.
    pub(crate) keys: Vec<EntityUid>,
    pub(crate) entity: Entity,
}

impl Known {
    pub(crate) fn new(id: u64, part: &Part<'_>, caller: &Caller) -> Result<Self, String> {
        let types = types();
        let mut above = HashSet::from([uid(&types.issuer, part.issuer)]);
        for (name, kind) in
            [("organization", &types.organization), ("workspace", &types.workspace), ("agent", &types.agent)]
        {
            let text = part.texts.iter().find(|(known, _)| *known == name).and_then(|(_, text)| *text);
            above.extend(text.map(|text| uid(kind, text)));
        }
        above.extend(part.groups.iter().map(|group| uid(&types.group, group)));
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let set = |texts: &[String]| RestrictedExpression::new_set(texts.iter().map(|one| text(one)));
        let mut attributes = HashMap::from([
            ("issuer".to_owned(), text(part.issuer)),
            ("subject".to_owned(), text(part.subject)),
            ("assurance".to_owned(), text(part.assurance)),
            ("actors".to_owned(), set(part.actors)),
            ("groups".to_owned(), set(part.groups)),
        ]);
        for (name, value) in part.texts {
            attributes.extend(value.map(|value| (name.to_owned(), text(value))));
        }
        let tags = part.claims.into_iter().flatten().map(|(name, values)| (name.clone(), set(values)));
        let id_of = principal(part.issuer, part.subject);
        let entity = Entity::new_with_tags(id_of.clone(), attributes, above.clone(), tags);
        let keys = std::iter::once(id_of.clone()).chain(above).collect();
        Ok(Self {
            id,
            source: Caller { expires: 0, token_id: None, ..caller.clone() },
            uid: id_of,
            keys,
            entity: entity.map_err(|error| error.to_string())?,
        })
    }

    /// Whether it was made from the same.
    pub(crate) fn is(&self, seen: &Seen, part: &Part<'_>) -> bool {
        seen.part(&self.source) == *part
    }
}

/// The principal of an issuer's subject. A `#` of the issuer is escaped, so that no two make the same.
pub(crate) fn principal(issuer: &str, subject: &str) -> EntityUid {
    let issuer = issuer.replace('%', "%25").replace('#', "%23");
    uid(&types().caller, &format!("{issuer}#{subject}"))
}
