//! What decisions are.

use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Effect, Engine, Fact, Query, Target};

use crate::common::{self, act, agent, call, caller, cedar, method, toml};

fn names(engine: &Engine, query: &Query<'_>) -> Vec<String> {
    engine.decide(query).policies.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_not_permitted_is_denied() {
    let engine = cedar(r#"permit(principal, action == Action::"tools/call", resource == Tool::"bank/read");"#);
    let someone = caller("s");
    assert_eq!(engine.decide(&call(&someone, "read", "{}")).effect, Effect::Allow);
    let denied = engine.decide(&call(&someone, "write", "{}"));
    assert_eq!((denied.effect, denied.reason.as_str()), (Effect::Deny, "no policy allows it"));
    for other in ["tools/list", "initialize", "tools/Call", "vendor/x", ""] {
        assert_eq!(engine.decide(&method(&someone, other)).effect, Effect::Deny, "{other}");
    }
    let elsewhere = Query { route: "other", ..call(&someone, "read", "{}") };
    assert_eq!(engine.decide(&elsewhere).effect, Effect::Deny);
}

#[test]
fn what_is_forbidden_stays_forbidden() {
    let engine = cedar(
        r#"@id("all") permit(principal, action, resource in Route::"bank");
           @id("careful") @ask("who pays?") permit(principal, action, resource in Route::"bank");
           @id("no agents") @reason("people only") forbid(principal in Agent::"bot", action, resource);"#,
    );
    let bot = agent("bot");
    let denied = engine.decide(&call(&bot, "read", "{}"));
    assert_eq!(denied.effect, Effect::Deny);
    assert_eq!(denied.reason, "policy `no agents` forbids it (people only)");
    let asked = engine.decide(&call(&agent("other"), "read", "{}"));
    assert_eq!(asked.effect, Effect::Ask);
    assert_eq!(asked.ask, ["who pays?"]);
    assert_eq!(asked.policies.iter().map(|policy| policy.as_str()).collect::<Vec<_>>(), ["careful"]);
}

#[test]
fn a_policy_without_a_name_is_called_by_its_place() {
    let engine = cedar("// first\n\npermit(principal, action, resource);");
    assert_eq!(names(&engine, &call(&caller("s"), "t", "{}")), ["policy.cedar:3"]);
}

#[test]
fn names_that_only_look_alike_are_other_names() {
    let engine = toml("[[allow]]\nroutes = 'bank'\ntools = ['caf\u{e9}', 'read']");
    let someone = caller("s");
    assert_eq!(engine.decide(&call(&someone, "caf\u{e9}", "{}")).effect, Effect::Allow);
    for other in ["cafe\u{301}", "re\u{430}d", "Read", "read ", "read\u{200b}", "\u{202e}read"] {
        assert_eq!(engine.decide(&call(&someone, other, "{}")).effect, Effect::Deny, "{other:?}");
    }
}

#[test]
fn a_tool_that_is_allowed_brings_what_a_client_needs_and_nothing_more() {
    let engine = toml("[[allow]]\nagents = 'a'\nroutes = 'bank'\ntools = 'read'");
    let ours = agent("a");
    let effect = |query: &Query<'_>| engine.decide(query).effect;
    for needed in
        ["initialize", "ping", "server/discover", "notifications/initialized", "tools/list", "subscriptions/listen"]
    {
        assert_eq!(effect(&method(&ours, needed)), Effect::Allow, "{needed}");
        assert_eq!(effect(&method(&agent("b"), needed)), Effect::Deny, "{needed}");
        assert_eq!(effect(&Query { route: "other", ..method(&ours, needed) }), Effect::Deny, "{needed}");
    }
    for needed in [Act::Stream, Act::EndSession, Act::Answer] {
        assert_eq!(effect(&act(&ours, needed)), Effect::Allow, "{needed:?}");
    }
    for more in [
        "tools/call",
        "resources/read",
        "prompts/get",
        "completion/complete",
        "logging/setLevel",
        "tasks/get",
        "vendor/x",
    ] {
        assert_eq!(effect(&method(&ours, more)), Effect::Deny, "{more}");
    }
    let resource = act(&ours, Act::Mcp { method: "resources/read", target: Some(Target::Resource("read")) });
    assert_eq!(effect(&resource), Effect::Deny);
    assert_eq!(effect(&act(&ours, Act::Http { method: "GET", path: "/read" })), Effect::Deny);
}

#[test]
fn a_deny_brings_nothing() {
    let engine = toml("[[allow]]\nroutes = 'bank'\n[[deny]]\nroutes = 'bank'\ntools = 'drop_*'");
    let someone = caller("s");
    assert_eq!(engine.decide(&call(&someone, "drop_table", "{}")).effect, Effect::Deny);
    assert_eq!(engine.decide(&call(&someone, "read", "{}")).effect, Effect::Allow);
    assert_eq!(engine.decide(&method(&someone, "initialize")).effect, Effect::Allow);
    assert_eq!(engine.decide(&method(&someone, "vendor/x")).effect, Effect::Deny);
}

#[test]
fn callers_are_told_apart_by_all_that_is_known_of_them() {
    let engine = toml(
        "[[allow]]\nid='caller'\ncallers='https://idp.example#alice'\nroutes='r1'\n\
         [[allow]]\nid='group'\ngroups=['admins','ops']\nassurance='attested'\nroutes='r2'\n\
         [[allow]]\nid='workspace'\nworkspaces='w'\nagents='a'\nroutes='r3'\n\
         [[allow]]\nid='user'\nusers='u'\nissuers='hub'\nroutes='r4'\n\
         [[allow]]\nid='org'\norganizations='o'\nroutes='r5'\n",
    );
    let base = caller("s");
    let decide =
        |who: &Caller, route: &str| engine.decide(&Query { route, ..call(who, "t", "{}") }).effect == Effect::Allow;
    let alice = Caller { issuer: "https://idp.example".to_owned(), subject: "alice".to_owned(), ..base.clone() };
    assert!(decide(&alice, "r1"));
    assert!(!decide(&Caller { issuer: "https://evil.example".to_owned(), ..alice.clone() }, "r1"));
    let sly = Caller { issuer: "https://idp.example#alice".to_owned(), subject: String::new(), ..base.clone() };
    assert!(!decide(&sly, "r1"));
    let mut ops = Caller { assurance: Assurance::Attested, ..base.clone() };
    ops.claims.insert("groups".to_owned(), vec!["x".to_owned(), "ops".to_owned()]);
    assert!(decide(&ops, "r2"));
    assert!(!decide(&Caller { assurance: Assurance::Asserted, ..ops.clone() }, "r2"));
    let both = Caller { workspace: Some("w".to_owned()), agent: Some("a".to_owned()), ..base.clone() };
    assert!(decide(&both, "r3"));
    assert!(!decide(&Caller { agent: None, ..both.clone() }, "r3"));
    // An agent is no workspace, whatever it is called.
    assert!(!decide(&Caller { workspace: Some("a".to_owned()), agent: Some("w".to_owned()), ..both }, "r3"));
    assert!(decide(&Caller { user: Some("u".to_owned()), ..base.clone() }, "r4"));
    assert!(!decide(&base, "r4"));
    assert!(decide(&Caller { organization: Some("o".to_owned()), ..base.clone() }, "r5"));
    assert!(!decide(&base, "r5"));
}

#[test]
fn claims_are_tags() {
    let engine = cedar(
        r#"permit(principal, action, resource)
           when { principal.hasTag("department") && principal.getTag("department").contains("law") };"#,
    );
    let mut lawyer = caller("s");
    lawyer.claims.insert("department".to_owned(), vec!["law".to_owned()]);
    assert_eq!(engine.decide(&call(&lawyer, "t", "{}")).effect, Effect::Allow);
    assert_eq!(engine.decide(&call(&caller("s"), "t", "{}")).effect, Effect::Deny);
}

#[test]
fn a_fact_that_is_not_there_denies_whatever_the_policies_say() {
    let engine = toml(
        "facts.amount = { routes = 'bank', tools = 'pay', pointer = '/amount', type = 'long' }\ncedar = []\n\
         [[allow]]\nid = 'all'\nroutes = 'bank'\n\
         [[allow]]\nid = 'small'\nroutes = 'bank'\ntools = 'pay'\nwhere = [{ pointer = '/amount', max = 100 }]\n",
    );
    let someone = caller("s");
    let good = engine.decide(&call(&someone, "pay", r#"{"amount":100}"#));
    assert_eq!(good.effect, Effect::Allow);
    assert_eq!(good.facts, [("where_allow_2_1".to_owned(), Fact::Bool(true))]);
    for wrong in [
        "{}",
        r#"{"amount":"100"}"#,
        r#"{"amount":100.0}"#,
        r#"{"amount":1e400}"#,
        r#"{"amount":1e2}"#,
        r#"{"amount":9223372036854775808}"#,
        r#"{"amount":null}"#,
        r#"{"amount":1,"amount":1}"#,
        r#"{"Amount":1}"#,
        "[]",
        "",
    ] {
        let denied = engine.decide(&call(&someone, "pay", wrong));
        assert_eq!(denied.effect, Effect::Deny, "{wrong}");
        assert!(denied.reason.starts_with("policy `small` needs the argument `/amount`: "), "{}", denied.reason);
        assert_eq!(denied.policies[0].as_str(), "small");
    }
    let without = Query { arguments: None, ..call(&someone, "pay", "") };
    assert_eq!(engine.decide(&without).effect, Effect::Deny);
    // What no policy that could apply looks at may be anything.
    assert_eq!(engine.decide(&call(&someone, "read", r#"{"amount":1e400}"#)).effect, Effect::Allow);
}

#[test]
fn reasons_repeat_no_arguments() {
    let engine = toml("[[allow]]\ntools='t'\nwhere=[{pointer='/a',one_of=['x']}]");
    let denied = engine.decide(&call(&caller("s"), "t", r#"{"a":["s3cret"]}"#));
    assert_eq!(denied.effect, Effect::Deny);
    assert!(!format!("{denied:?}").contains("s3cret"));
}

#[test]
fn a_policy_speaks_of_the_tools_that_its_facts_are_for() {
    let engine = common::load_all(
        "dir/policy.toml",
        &[
            (
                "dir/policy.toml",
                "cedar = ['more.cedar']\n[facts.amount]\ntools = 'pay*'\npointer = '/amount'\ntype = 'decimal'\n",
            ),
            (
                "dir/more.cedar",
                r#"permit(principal, action, resource);
                   @id("large") forbid(principal, action == Action::"tools/call", resource)
                   when { context.facts.amount.greaterThan(decimal("99.5")) };"#,
            ),
        ],
    )
    .expect("loads");
    assert_eq!(engine.files().len(), 2);
    let someone = caller("s");
    let decide = |tool, arguments| engine.decide(&call(&someone, tool, arguments));
    assert_eq!(decide("pay", r#"{"amount":99.5}"#).effect, Effect::Allow);
    assert_eq!(decide("pay_more", r#"{"amount":99.5001}"#).policies[0].as_str(), "large");
    assert_eq!(decide("read", r#"{"amount":1000}"#).effect, Effect::Allow);
    let inexact = decide("pay", r#"{"amount":1.00000000001}"#);
    assert_eq!(inexact.effect, Effect::Deny);
    assert!(inexact.reason.contains("the fact `amount` (the argument `/amount`)"), "{}", inexact.reason);
}

#[test]
fn an_optional_fact_may_be_absent() {
    let engine = toml(
        "[[allow]]\ntools='t'\nwhere=[{pointer='/a',max=3,optional=true}]\n[[deny]]\ntools='t'\nwhere=[{pointer='/b',equals=true,optional=true}]",
    );
    let someone = caller("s");
    let effect = |arguments| engine.decide(&call(&someone, "t", arguments)).effect;
    assert_eq!(effect("{}"), Effect::Allow);
    assert_eq!(effect(r#"{"a":3,"b":false}"#), Effect::Allow);
    assert_eq!(effect(r#"{"a":4}"#), Effect::Deny);
    assert_eq!(effect(r#"{"b":true}"#), Effect::Deny);
    assert_eq!(effect(r#"{"a":null}"#), Effect::Deny);
}

#[test]
fn facts_of_every_type_reach_cedar() {
    let engine = common::load_all(
        "p.toml",
        &[
            (
                "p.toml",
                "cedar=['p.cedar']\n[facts]\ns={pointer='/s',type='string'}\nl={pointer='/l',type='long'}\n\
                 d={pointer='/d',type='decimal'}\nb={pointer='/b',type='bool'}\nset={pointer='/set',type='strings'}\n\
                 i={pointer='/i',type='ip'}\nt={pointer='/t',type='datetime'}\nc={pointer='/set',type='count'}\n\
                 e={pointer='/none',type='exists'}\ng={pointer='/s',glob='a*'}\n",
            ),
            (
                "p.cedar",
                r#"permit(principal, action == Action::"tools/call", resource) when {
                    context.facts.s == "ab" && context.facts.l == -7 && context.facts.d == decimal("1.5") &&
                    context.facts.b && context.facts.set.containsAll(["x", "y"]) && context.facts.c == 3 &&
                    context.facts.i.isInRange(ip("10.0.0.0/8")) && context.facts.t < datetime("2026-01-01") &&
                    !context.facts.e && context.facts.g
                };"#,
            ),
        ],
    )
    .expect("loads");
    let arguments =
        r#"{"s":"a\u0062","l":-7,"d":1.50,"b":true,"set":["x","y","x"],"i":"10.1.2.3","t":"2025-12-31T23:59:59Z"}"#;
    let decision = engine.decide(&call(&caller("s"), "t", arguments));
    assert_eq!(decision.effect, Effect::Allow, "{decision:?}");
    assert_eq!(decision.facts.len(), 10);
}

#[test]
fn time_is_that_of_the_files_zone() {
    let engine = toml(
        "timezone='Europe/Berlin'\n[[allow]]\ntools='t'\nhours='08:00-18:00'\nweekdays='mon-fri'\n[[allow]]\ntools='n'\nhours='22:00-06:00'",
    );
    let someone = caller("s");
    let at = |tool, time: &str| {
        let now = time.parse::<jiff::Timestamp>().expect(time).as_second();
        engine.decide(&Query { now, ..call(&someone, tool, "{}") }).effect == Effect::Allow
    };
    assert!(at("t", "2026-01-05T07:00:00Z"));
    assert!(!at("t", "2026-01-05T06:59:59Z"));
    assert!(at("t", "2026-01-05T16:59:59Z"));
    assert!(!at("t", "2026-01-05T17:00:00Z"));
    assert!(!at("t", "2026-01-04T12:00:00Z"));
    // Summer time.
    assert!(at("t", "2026-07-06T06:00:00Z"));
    assert!(at("n", "2026-01-05T21:00:00Z"));
    assert!(at("n", "2026-01-05T04:59:00Z"));
    assert!(!at("n", "2026-01-05T05:00:00Z"));
}

#[test]
fn counts_and_regions_are_looked_at() {
    let engine = toml("[[allow]]\ntools='t'\nmax_per_minute=3\nregions=['eu-1','eu-2']");
    assert!(engine.counts());
    let someone = caller("s");
    let effect = |minute, region| {
        let counts = Counts { minute, hour: 9, day: 9 };
        engine.decide(&Query { counts, region, ..call(&someone, "t", "{}") }).effect
    };
    assert_eq!(effect(2, Some("eu-2")), Effect::Allow);
    assert_eq!(effect(3, Some("eu-2")), Effect::Deny);
    assert_eq!(effect(2, Some("us-1")), Effect::Deny);
    assert_eq!(effect(2, None), Effect::Deny);
    assert!(!toml("[[allow]]\ntools='t'").counts());
}

#[test]
fn a_policy_that_cannot_be_evaluated_denies() {
    for condition in ["context.hour + 9223372036854775807 > 0", "9223372036854775807 + 1 > 0"] {
        let engine = cedar(&format!(
            "permit(principal, action, resource);
             @id(\"sum\") permit(principal, action, resource) when {{ {condition} }};"
        ));
        let denied = engine.decide(&call(&caller("s"), "t", "{}"));
        assert_eq!(denied.effect, Effect::Deny, "{condition}");
        assert_eq!(denied.reason, "policy `sum` cannot be evaluated for this call");
    }
}

#[test]
fn methods_and_plain_http_have_policies_too() {
    let engine = cedar(
        r#"permit(principal, action == Action::"http", resource == Route::"bank")
           when { context.method == "GET" && context.path like "/public/*" };
           permit(principal, action == Action::"other", resource) when { context.method == "vendor/x" };"#,
    );
    let someone = caller("s");
    let http = |method, path| engine.decide(&act(&someone, Act::Http { method, path })).effect;
    assert_eq!(http("GET", "/public/a"), Effect::Allow);
    assert_eq!(http("POST", "/public/a"), Effect::Deny);
    assert_eq!(http("GET", "/private"), Effect::Deny);
    assert_eq!(engine.decide(&method(&someone, "vendor/x")).effect, Effect::Allow);
    assert_eq!(engine.decide(&method(&someone, "vendor/y")).effect, Effect::Deny);
    let engine = toml("[[allow]]\nroutes='bank'\nmethods=['tasks/get','vendor/x']");
    assert_eq!(engine.decide(&method(&someone, "tasks/get")).effect, Effect::Allow);
    assert_eq!(engine.decide(&method(&someone, "vendor/x")).effect, Effect::Allow);
    assert_eq!(engine.decide(&method(&someone, "tasks/list")).effect, Effect::Deny);
    assert_eq!(engine.decide(&method(&someone, "initialize")).effect, Effect::Deny);
}

#[test]
fn resources_and_prompts_are_read_by_name() {
    let engine = toml("[[allow]]\nroutes='bank'\nresources='file:///public/*'\nprompts=['hello']");
    let someone = caller("s");
    let read = |uri| {
        engine.decide(&act(&someone, Act::Mcp { method: "resources/read", target: Some(Target::Resource(uri)) })).effect
    };
    assert_eq!(read("file:///public/a/b"), Effect::Allow);
    assert_eq!(read("file:///private"), Effect::Deny);
    let get = |name| {
        engine.decide(&act(&someone, Act::Mcp { method: "prompts/get", target: Some(Target::Prompt(name)) })).effect
    };
    assert_eq!(get("hello"), Effect::Allow);
    assert_eq!(get("file:///public/a"), Effect::Deny);
    // A tool of a resource's name is no resource.
    assert_eq!(engine.decide(&call(&someone, "hello", "{}")).effect, Effect::Deny);
}

#[test]
fn lists_show_what_could_be_allowed() {
    let engine = toml(
        "[[allow]]\nagents='a'\nroutes='bank'\ntools=['pay','read','late']\n\
         [[deny]]\nroutes='bank'\ntools='pay'\nwhere=[{pointer='/amount',min=100}]\n\
         [[deny]]\nroutes='bank'\ntools='late'\nhours='00:00-23:00'\n\
         [[ask]]\nwhy='?'\nagents='b'\nroutes='bank'\ntools='pay'\nmax_per_day=0\n\
         [[deny]]\nagents='c'\n[[allow]]\nagents='c'\nroutes='bank'\n",
    );
    let sees = |who: &str, tool: &str| engine.may_see(&Query { arguments: None, ..call(&agent(who), tool, "") });
    assert!(sees("a", "pay"), "some amount is allowed");
    assert!(sees("a", "late"), "there is an hour");
    assert!(sees("a", "read"));
    assert!(!sees("a", "drop"));
    assert!(sees("b", "pay"));
    assert!(!sees("b", "read"));
    assert!(!sees("c", "read"), "whatever the call, it is forbidden");
}

#[test]
fn what_is_remembered_of_a_caller_is_not_another_callers() {
    let engine =
        cedar(r#"permit(principal, action, resource) when { principal has session && principal.session == "good" };"#);
    let good = Caller { session: Some("good".to_owned()), ..caller("s") };
    let bad = Caller { session: Some("bad".to_owned()), ..caller("s") };
    for _ in 0..3 {
        assert_eq!(engine.decide(&call(&good, "t", "{}")).effect, Effect::Allow);
        assert_eq!(engine.decide(&call(&bad, "t", "{}")).effect, Effect::Deny);
        assert_eq!(engine.decide(&call(&caller("s"), "t", "{}")).effect, Effect::Deny);
    }
}

#[test]
fn an_explanation_says_what_became_of_each_policy() {
    let engine = toml(
        "[[allow]]\nid='small'\nroutes='bank'\ntools='pay'\nwhere=[{pointer='/amount',max=100}]\n\
         [[deny]]\nid='nights'\nroutes='bank'\nhours='20:00-06:00'\n\
         [[deny]]\nid='robots'\nroutes='bank'\nassurance='attested'\n\
         [[allow]]\nid='elsewhere'\nroutes='other'\n",
    );
    let said = engine.explain(&call(&caller("s"), "pay", r#"{"amount":50}"#));
    assert_eq!(said.decision.effect, Effect::Allow);
    let verdicts: Vec<_> = said.looked_at.iter().map(|one| (one.name.as_str(), one.verdict.as_str())).collect();
    assert_eq!(verdicts, [("small", "holds"), ("nights", "does not hold"), ("robots", "does not apply")]);
    assert!(said.listed);
    assert_eq!(said.policies, 5);
}
