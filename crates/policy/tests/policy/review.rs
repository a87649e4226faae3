//! Who may do what, from the policies alone.

use sortie_policy::{Access, Effect, Grant, Subject};

use crate::common::{agent, call, cedar, toml};

const POLICY: &str = r#"
[[allow]]
id = "read"
agents = ["research", "support"]
routes = "wiki"
tools = ["search", "read_*"]

[[allow]]
id = "small payments"
agents = "research"
workspaces = "w1"
routes = "bank"
tools = "pay"
max_per_day = 3
where = [{ pointer = "/amount", type = "decimal", max = 100 }, { pointer = "/urgent", equals = false, optional = true }]

[[ask]]
id = "restart"
why = "it ends jobs"
groups = "operators"
routes = "cluster"
tools = "restart"

[[allow]]
id = "cluster"
agents = "research"
routes = "cluster"

[[deny]]
id = "no purge"
routes = "cluster"
tools = "purge*"
"#;

fn subject(name: &str) -> Subject {
    Subject { agent: Some(name.to_owned()), ..Subject::default() }
}

fn row(grant: &Grant) -> (String, &'static str, String) {
    let what = format!("{}: {} {}", grant.reach.route, grant.reach.kind, grant.reach.name);
    (what, grant.access.as_str(), grant.policy.to_string())
}

fn rows(grants: &[Grant]) -> Vec<(String, &'static str, String)> {
    grants.iter().map(row).collect()
}

#[test]
fn what_an_agent_may_do_is_told_by_target() {
    let engine = toml(POLICY);
    let found = engine.what(&subject("support"));
    let expected = [
        // Whether it is an operator is not known.
        ("cluster: tool purge*", "forbidden", "no purge"),
        ("cluster: tool restart", "after approval", "restart"),
        ("wiki: tool read_*", "always", "read"),
        ("wiki: tool search", "always", "read"),
    ];
    let expected: Vec<_> = expected.map(|(what, access, policy)| (what.to_owned(), access, policy.to_owned())).into();
    assert_eq!(rows(&found), expected);
    assert_eq!(found[1].unknown_callers, ["group operators"]);
    assert_eq!(rows(&engine.what(&subject("nobody"))).len(), 2);

    let found = engine.what(&Subject { groups: vec!["operators".to_owned()], ..subject("research") });
    let of = |what: &str, policy: &str| {
        found
            .iter()
            .find(|grant| row(grant).0 == what && grant.policy.as_str() == policy)
            .unwrap_or_else(|| panic!("{what}"))
    };
    let payments = of("bank: tool pay", "small payments");
    assert_eq!(payments.access, Access::OnlyIf);
    assert_eq!(payments.unknown_callers, ["workspace w1"]);
    assert_eq!(
        payments.conditions,
        ["context.counts.day < 3", "/amount: decimal, max 100", "/urgent: bool, one_of [false], if it is there"]
    );
    let cluster = of("cluster: tool *", "cluster");
    assert_eq!(cluster.access, Access::OnlyIf);
    assert_eq!((cluster.unless[0].as_str(), cluster.asks[0].as_str()), ("no purge", "restart"));
    assert_eq!(of("cluster: resource *", "cluster").access, Access::Always);
    assert_eq!(of("cluster: method *", "cluster").access, Access::Always);
    assert!(of("cluster: tool restart", "restart").unknown_callers.is_empty());
    let known = Subject { workspace: Some("other".to_owned()), ..subject("research") };
    assert!(!engine.what(&known).iter().any(|grant| grant.policy.as_str() == "small payments"));
}

#[test]
fn who_may_call_a_tool_is_told_by_policy() {
    let engine = toml(POLICY);
    let callers = |route: &str, tool: &str| -> Vec<(String, &'static str, Vec<String>)> {
        let found = engine.who(route, tool).into_iter();
        found.map(|grant| (grant.policy.to_string(), grant.access.as_str(), grant.callers)).collect()
    };
    let list = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    let read = ("read".to_owned(), "always", list(&["agent research or agent support"]));
    assert_eq!(callers("wiki", "read_page"), [read]);
    assert_eq!(callers("wiki", "write"), []);
    assert_eq!(
        callers("cluster", "restart"),
        [
            ("cluster".to_owned(), "only if", list(&["agent research"])),
            ("restart".to_owned(), "after approval", list(&["group operators"])),
        ]
    );
    assert_eq!(
        callers("cluster", "purge_all"),
        [
            ("cluster".to_owned(), "forbidden", list(&["agent research"])),
            ("no purge".to_owned(), "forbidden", list(&[]))
        ]
    );
}

#[test]
fn cedar_is_shown_as_it_is_where_there_are_no_other_words() {
    let engine = cedar(
        "@id(\"own\") permit(principal, action == Action::\"tools/call\", resource == Tool::\"hr/get\")\n\
         when { principal has user && principal.subject == resource.name } unless { context.hour < 6 };\n\
         @id(\"short\") permit(principal is Caller in Agent::\"a\", action, resource is Tool in Route::\"hr\")\n\
         when { resource.name == \"x\" || resource.name like \"y*\" };\n\
         @id(\"route\") forbid(principal, action, resource == Route::\"hr\");",
    );
    let found = engine.what(&subject("a"));
    let own = found.iter().find(|grant| grant.policy.as_str() == "own").expect("own");
    assert_eq!(own.unknown_callers, ["principal has user"]);
    assert_eq!(own.conditions, ["principal.subject == resource.name", "not (context.hour < 6)"]);
    let all = rows(&found);
    assert!(all.contains(&("hr: tool x".to_owned(), "always", "short".to_owned())), "{all:?}");
    assert!(all.contains(&("hr: tool y*".to_owned(), "always", "short".to_owned())), "{all:?}");
    assert!(all.contains(&("hr: method *".to_owned(), "forbidden", "route".to_owned())), "{all:?}");
    assert_eq!(engine.who("hr", "y1").len(), 1);
    assert_eq!(engine.who("other", "y1").len(), 0);
}

/// What is always allowed to an agent is allowed by the engine, and what no row speaks of is denied.
#[test]
fn rows_are_what_the_engine_decides() {
    let engine = toml(POLICY);
    for name in ["research", "support", "nobody"] {
        let caller = agent(name);
        let rows = engine.what(&subject(name));
        for route in ["wiki", "bank", "cluster", "other"] {
            for tool in ["search", "read_page", "pay", "restart", "purge_x", "other"] {
                let query = sortie_policy::Query { route, ..call(&caller, tool, "{}") };
                let about: Vec<&Grant> = rows.iter().filter(|row| row.reach.contains(route, "tool", tool)).collect();
                let effect = engine.decide(&query).effect;
                let sure = about.iter().any(|row| row.access == Access::Always);
                let forbidden = about.iter().any(|row| row.access == Access::Forbidden && row.conditions.is_empty());
                if sure {
                    assert_eq!(effect, Effect::Allow, "{name} {route} {tool}");
                }
                if forbidden || about.is_empty() {
                    assert_eq!(effect, Effect::Deny, "{name} {route} {tool}");
                }
            }
        }
    }
}

#[test]
fn forms_that_have_nothing_in_common_do_not_meet() {
    let text =
        |deny: &str| format!("[[allow]]\nroutes = 'r'\ntools = 'read_*'\n[[deny]]\nroutes = 'r'\ntools = '{deny}'\n");
    let access = |deny: &str| {
        let found = toml(&text(deny)).what(&subject("a"));
        found.iter().find(|grant| grant.reach.name == "read_*").map(|grant| grant.access)
    };
    assert_eq!(access("purge_*"), Some(Access::Always));
    assert_eq!(access("*_all"), Some(Access::OnlyIf));
    assert_eq!(access("read_all"), Some(Access::OnlyIf));
    assert_eq!(access("*"), Some(Access::Forbidden));
}
