//! The engine with index and memory comes to what Cedar alone comes to, over all policies at once.

use proptest::prelude::*;
use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Query, Target};

use crate::common::load_all;

const NAMES: [&str; 4] = ["a", "b", "ab", "ba"];

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&NAMES[..])
}

fn principal() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just("principal".to_owned()),
        1 => name().prop_map(|id| format!("principal == Caller::\"i#{id}\"")),
        1 => name().prop_map(|id| format!("principal in Agent::\"{id}\"")),
        1 => name().prop_map(|id| format!("principal in Group::\"{id}\"")),
        1 => name().prop_map(|id| format!("principal in Workspace::\"{id}\"")),
        1 => Just("principal is Caller".to_owned()),
        1 => name().prop_map(|id| format!("principal is Caller in Group::\"{id}\"")),
    ]
}

fn action() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "action == Action::\"tools/call\"",
        "action in Action::\"call\"",
        "action in [Action::\"tools/call\"]",
    ])
}

fn any_action() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "action",
        "action in Action::\"list\"",
        "action in [Action::\"read\", Action::\"call\"]",
        "action == Action::\"other\"",
    ])
}

fn resource() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("resource".to_owned()),
        2 => (name(), name()).prop_map(|(route, tool)| format!("resource == Tool::\"{route}/{tool}\"")),
        2 => name().prop_map(|route| format!("resource in Route::\"{route}\"")),
        1 => name().prop_map(|route| format!("resource == Route::\"{route}\"")),
        1 => Just("resource is Tool".to_owned()),
        1 => name().prop_map(|route| format!("resource is Tool in Route::\"{route}\"")),
    ]
}

/// Conditions of any action.
fn fixed() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        name().prop_map(|id| format!("principal in Agent::\"{id}\"")),
        (name(), name()).prop_map(|(a, b)| format!("principal in [Agent::\"{a}\", Group::\"{b}\"]")),
        (name(), name()).prop_map(|(a, b)| format!("resource in [Route::\"{a}\", Tool::\"{a}/{b}\"]")),
        (name(), name()).prop_map(|(a, b)| format!("resource in [Tool::\"{a}/{b}\", Tool::\"{b}/{a}\"]")),
        name().prop_map(|a| format!("resource == Route::\"{a}\"")),
        name().prop_map(|id| format!("principal.subject == \"{id}\"")),
        name().prop_map(|id| format!("(principal has user && principal.user like \"{id}*\")")),
        name().prop_map(|id| format!("(principal.hasTag(\"t\") && principal.getTag(\"t\").contains(\"{id}\"))")),
        name().prop_map(|id| format!("principal.groups.contains(\"{id}\")")),
        name().prop_map(|id| format!("(context has region && context.region == \"{id}\")")),
        (0i64..24).prop_map(|hour| format!("context.hour < {hour}")),
        (0u32..4).prop_map(|count| format!("context.counts.minute > {count}")),
        Just("[\"mon\", \"tue\"].contains(context.weekday)".to_owned()),
        Just("context.time < datetime(\"2026-01-05T12:00:00.000Z\")".to_owned()),
        Just("principal.assurance == \"attested\"".to_owned()),
    ];
    tree(leaf.boxed())
}

/// Conditions of calls of tools.
pub(crate) fn called() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        2 => fixed(),
        1 => (-2i64..3).prop_map(|n| format!("context.facts.n <= {n}")),
        1 => name().prop_map(|text| format!("context.facts.s == \"{text}\"")),
        1 => name().prop_map(|text| format!("(context.facts has o && context.facts.o == \"{text}\")")),
        1 => name().prop_map(|text| format!("resource is Tool && resource.name like \"{text}*\"")),
        1 => name().prop_map(|text| format!("(resource is Tool && (resource.name like \"*{text}\" || resource.name like \"a*\"))")),
    ];
    tree(leaf.boxed())
}

fn tree(leaf: BoxedStrategy<String>) -> impl Strategy<Value = String> {
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) || ({b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("if {a} then {b} else {c}")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let head = prop::sample::select(vec!["permit", "permit", "@ask(\"?\") permit", "forbid"]);
    let when = prop::sample::select(vec!["when", "unless"]);
    let of_calls =
        (head.clone(), principal(), action(), resource(), prop::collection::vec((when.clone(), called()), 0..3));
    let of_any = (head, principal(), any_action(), resource(), prop::collection::vec((when, fixed()), 0..3));
    prop_oneof![
        of_calls.prop_map(|(head, p, a, r, conditions)| (head, p, a, r, conditions)),
        of_any.prop_map(|(head, p, a, r, conditions)| (head, p, a, r, conditions)),
    ]
    .prop_map(|(head, p, a, r, conditions)| {
        let conditions: Vec<String> = conditions.iter().map(|(when, body)| format!("{when} {{ {body} }}")).collect();
        format!("{head}({p}, {a}, {r}) {};", conditions.join(" "))
    })
}

fn any_caller() -> impl Strategy<Value = Caller> {
    let maybe = || prop::option::of(name().prop_map(ToOwned::to_owned));
    let list = || prop::collection::vec(name().prop_map(ToOwned::to_owned), 0..3);
    (name(), maybe(), maybe(), maybe(), list(), list(), any::<bool>()).prop_map(
        |(subject, agent, workspace, user, groups, tags, attested)| {
            let assurance = if attested { Assurance::Attested } else { Assurance::Asserted };
            let claims = [("groups".to_owned(), groups), ("t".to_owned(), tags)].into();
            Caller { agent, workspace, user, claims, ..Caller::new("i", subject, assurance, i64::MAX) }
        },
    )
}

#[derive(Clone, Debug)]
pub(crate) struct Asked {
    caller: Caller,
    route: &'static str,
    tool: Option<&'static str>,
    method: &'static str,
    arguments: String,
    now: i64,
    region: Option<&'static str>,
    minute: u32,
}

impl Asked {
    /// The same with other arguments, at another count.
    pub(crate) fn with(&self, arguments: &str, minute: u32) -> Self {
        Self { arguments: arguments.to_owned(), minute, ..self.clone() }
    }

    pub(crate) fn query(&self) -> Query<'_> {
        let act = Act::Mcp { method: self.method, target: self.tool.map(Target::Tool) };
        let counts = Counts { minute: self.minute, hour: 1, day: 2 };
        let (route, now, region) = (self.route, self.now, self.region);
        Query { caller: &self.caller, route, act, arguments: Some(&self.arguments), now, region, counts }
    }
}

pub(crate) fn asked() -> impl Strategy<Value = Asked> {
    let arguments = (-3i64..4, name(), prop::option::of(name())).prop_map(|(n, s, o)| {
        let o = o.map_or_else(String::new, |o| format!(",\"o\":\"{o}\""));
        format!("{{\"n\":{n},\"s\":\"{s}\"{o}}}")
    });
    let act = prop_oneof![
        4 => name().prop_map(|tool| ("tools/call", Some(tool))),
        1 => Just(("tools/list", None)),
        1 => Just(("tools/call", None)),
        1 => Just(("vendor/x", None)),
    ];
    // Within a day around the Monday noon that policies look at.
    let now = 1_767_571_200i64..1_767_657_600;
    (any_caller(), name(), act, arguments, now, prop::option::of(name()), 0u32..5).prop_map(
        |(caller, route, (method, tool), arguments, now, region, minute)| Asked {
            caller,
            route,
            tool,
            method,
            arguments,
            now,
            region,
            minute,
        },
    )
}

pub(crate) const FACTS: &str = "cedar = ['p.cedar']\n[facts]\nn = { pointer = '/n', type = 'long' }\n\
                     s = { pointer = '/s', type = 'string' }\no = { pointer = '/o', type = 'string', optional = true }\n";

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn index_and_memory_change_no_decision(
        policies in prop::collection::vec(policy(), 1..9),
        asked in prop::collection::vec(asked(), 1..24),
    ) {
        let text = policies.join("\n");
        // What the strict schema refuses is left out, one by one.
        let good: Vec<&str> =
            text.lines().filter(|line| load_all("p.toml", &[("p.toml", FACTS), ("p.cedar", line)]).is_ok()).collect();
        let engine = load_all("p.toml", &[("p.toml", FACTS), ("p.cedar", &good.join("\n"))]).expect("each of them is good");
        // Twice, since the second time much is remembered.
        for asked in asked.iter().chain(&asked) {
            let query = asked.query();
            let decision = engine.decide(&query);
            let plain = engine.decide_plainly(&query).expect("nothing fails");
            prop_assert_eq!(&(decision.effect, decision.policies), &plain, "{:?}\n{}", asked, good.join("\n"));
            if decision.effect != sortie_policy::Effect::Deny {
                prop_assert!(engine.may_see(&query), "what is allowed is shown: {:?}\n{}", asked, good.join("\n"));
            }
        }
    }
}
