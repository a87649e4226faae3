//! What is learned allows what was used, nothing that was denied, and nothing else.

use std::convert::Infallible;

use proptest::prelude::*;
use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Answer, Decision, Effect, Engine, Learner, Proposal, Query, Recorded, Target, Trial};

use crate::common::{act, agent, call, caller, method, toml};
use crate::recorded::recorded;

/// A call of the past: what of it is recorded.
struct Past<'a> {
    query: Query<'a>,
    decision: Decision,
}

impl<'a> Past<'a> {
    fn of(engine: &Engine, query: Query<'a>) -> Self {
        Self { query, decision: engine.decide(&query) }
    }

    fn recorded(&self) -> Recorded {
        Recorded { no_arguments: self.query.arguments.is_none(), ..recorded(&self.decision, None) }
    }
}

fn learn(past: &[Past<'_>]) -> (Proposal, Trial, Engine) {
    let mut learner = Learner::default();
    for one in past.iter().filter(|one| one.decision.effect != Effect::Deny) {
        let asked = one.decision.effect == Effect::Ask;
        learner.used(one.query.caller, one.query.route, &one.query.act, asked, &one.recorded());
    }
    let attempt = |engine: &Engine| -> Result<Trial, Infallible> {
        let mut trial = Trial::default();
        for one in past {
            let answer = engine.replay(&one.query, &one.recorded());
            match one.decision.effect {
                Effect::Deny => trial.denied(&answer),
                effect => trial.used(effect == Effect::Ask, &answer),
            }
        }
        Ok(trial)
    };
    let Ok((proposal, trial)) = learner.propose(attempt);
    let engine = toml(&proposal.text);
    (proposal, trial, engine)
}

const ANYTHING: &str = "[[allow]]\nroutes = '*'\n";

#[test]
fn callers_with_the_same_habits_share_a_rule() {
    let old = toml(ANYTHING);
    let (one, two, attested) =
        (agent("one"), agent("two"), Caller { assurance: Assurance::Attested, ..agent("three") });
    let queries: Vec<Query<'_>> = [&one, &two, &attested]
        .into_iter()
        .flat_map(|caller| {
            [
                method(caller, "initialize"),
                method(caller, "tools/list"),
                call(caller, "read", "{}"),
                call(caller, "find", "{}"),
            ]
        })
        .collect();
    let past: Vec<Past<'_>> = queries.iter().map(|query| Past::of(&old, *query)).collect();
    let (proposal, trial, engine) = learn(&past);
    assert_eq!(
        (proposal.rules, trial.used, trial.allowed, proposal.notes.as_slice()),
        (2, 12, 12, &[][..]),
        "{}",
        proposal.text
    );
    assert!(
        proposal.text.contains(
            "agents = [\"one\", \"two\"]\nissuers = \"hub\"\nroutes = \"bank\"\ntools = [\"find\", \"read\"]\n"
        )
    );
    // Not as it was seen: another tool, another issuer, another proof, another route.
    let decide = |query: Query<'_>| engine.decide(&query).effect;
    assert_eq!(decide(call(&one, "write", "{}")), Effect::Deny);
    assert_eq!(decide(call(&Caller { issuer: "other".to_owned(), ..one.clone() }, "read", "{}")), Effect::Deny);
    assert_eq!(decide(call(&agent("three"), "read", "{}")), Effect::Deny);
    assert_eq!(decide(Query { route: "other", ..call(&one, "read", "{}") }), Effect::Deny);
    assert_eq!(learn(&past).0, proposal, "twice the same");
}

#[test]
fn values_become_lists_and_ranges() {
    let old = toml(
        "[[allow]]\nroutes='bank'\ntools='pay'\nwhere=[{pointer='/to',glob='DE*'},{pointer='/urgent',equals=false,optional=true}]",
    );
    // Facts are looked for where a policy uses them.
    let cedar = "permit(principal, action == Action::\"tools/call\", resource) when { \
                 context.facts.amount.lessThan(decimal(\"1000.0\")) && context.facts.currency != \"XXX\" };";
    let facts = "cedar=['p.cedar']\n[facts.amount]\nroutes='bank'\ntools='pay'\npointer='/amount'\ntype='decimal'\n\
                 [facts.currency]\nroutes='bank'\ntools='pay'\npointer='/currency'\ntype='string'\n";
    let values = crate::common::load_all("p.toml", &[("p.toml", facts), ("p.cedar", cedar)]).expect("loads");
    let caller = agent("payer");
    let amounts: Vec<String> = (1..20)
        .map(|n| format!(r#"{{"amount": {n}.5, "currency": "{}"}}"#, if n % 2 == 0 { "EUR" } else { "CHF" }))
        .collect();
    let mut past: Vec<Past<'_>> = amounts.iter().map(|text| Past::of(&values, call(&caller, "pay", text))).collect();
    past.push(Past::of(&values, call(&caller, "pay", r#"{"amount": 5, "currency": "XXX"}"#)));
    let (proposal, trial, engine) = learn(&past);
    assert_eq!((trial.used, trial.allowed, trial.denied), (19, 19, 1), "{}", proposal.text);
    assert!(
        proposal.text.contains(r#"{ pointer = "/amount", type = "decimal", max = "19.5000", min = "1.5000" }"#),
        "{}",
        proposal.text
    );
    assert!(proposal.text.contains(r#"{ pointer = "/currency", type = "string", one_of = ["CHF", "EUR"] }"#));
    assert_eq!(engine.decide(&call(&caller, "pay", r#"{"amount": 20, "currency": "EUR"}"#)).effect, Effect::Deny);
    assert_eq!(engine.decide(&call(&caller, "pay", r#"{"amount": 7, "currency": "EUR"}"#)).effect, Effect::Allow);

    // Of a condition it is known that it held.
    let texts = [r#"{"to": "DE1"}"#, r#"{"to": "DE2", "urgent": false}"#, r#"{"to": "FR1"}"#];
    let past: Vec<Past<'_>> = texts.iter().map(|text| Past::of(&old, call(&caller, "pay", text))).collect();
    let (proposal, trial, engine) = learn(&past);
    assert_eq!((trial.used, trial.allowed, trial.denied), (2, 2, 1), "{}", proposal.text);
    assert!(proposal.text.contains(r#"{ pointer = "/to", type = "string", glob = ["DE*"] }"#), "{}", proposal.text);
    assert_eq!(engine.decide(&call(&caller, "pay", r#"{"to": "DE3", "urgent": true}"#)).effect, Effect::Deny);
}

#[test]
fn many_subjects_of_one_group_are_named_by_it_unless_one_was_denied() {
    let old = toml("[[allow]]\nroutes='*'\n[[deny]]\ncallers='hub#s99'\n");
    let subject = |n: u32| Caller {
        claims: [("groups".to_owned(), vec!["staff".to_owned(), format!("g{n}")])].into(),
        ..caller(&format!("s{n}"))
    };
    let callers: Vec<Caller> = (0..12).chain([99]).map(subject).collect();
    let past: Vec<Past<'_>> = callers.iter().map(|caller| Past::of(&old, call(caller, "read", "{}"))).collect();
    let (proposal, ..) = learn(past.get(..12).expect("twelve"));
    assert!(proposal.text.contains("groups = \"staff\"\n"), "{}", proposal.text);
    let (proposal, trial, engine) = learn(&past);
    assert_eq!((trial.allowed, trial.denied, proposal.rules), (12, 1, 1), "{}", proposal.text);
    assert!(!proposal.text.contains("groups"), "{}", proposal.text);
    assert_eq!(engine.decide(&call(&subject(50), "read", "{}")).effect, Effect::Deny);
}

#[test]
fn what_cannot_be_told_from_what_was_denied_is_left_out() {
    let old = toml("[[allow]]\nroutes='*'\nhours='08:00-18:00'\n");
    let caller = agent("a");
    let by_day = call(&caller, "read", "{}");
    let by_night = Query { now: by_day.now + 43_200, ..by_day };
    let other = call(&caller, "find", r#"{"x": 1}"#);
    let past = [Past::of(&old, by_day), Past::of(&old, by_night), Past::of(&old, other)];
    let (proposal, trial, engine) = learn(&past);
    assert_eq!((proposal.rules, trial.used, trial.allowed, trial.denied), (0, 2, 0, 1), "{}", proposal.text);
    assert!(proposal.text.contains("# [[allow]]\n# id = \"learned 1\"\n"), "{}", proposal.text);
    assert_eq!(proposal.notes.len(), 2, "{:?}", proposal.notes);
    assert_eq!(engine.decide(&by_day).effect, Effect::Deny);
}

#[test]
fn what_the_short_form_cannot_name_is_told_and_not_widened() {
    let old = toml(ANYTHING);
    let one = agent("one");
    let star = agent("star*");
    let tool = |method, name| act(&one, Act::Mcp { method, target: Some(Target::Tool(name)) });
    let past: Vec<Past<'_>> = [
        tool("tools/call", "a*"),
        tool("tools/call", "line\nbreak\"]"),
        call(&star, "read", "{}"),
        act(&one, Act::Http { method: "GET", path: "/x" }),
        Query { route: "r2", ..act(&one, Act::Stream) },
        Query { route: "r3", ..method(&one, "completion/complete") },
        method(&one, "tools/call"),
    ]
    .into_iter()
    .map(|query| Past::of(&old, query))
    .collect();
    let (proposal, trial, engine) = learn(&past);
    assert_eq!((trial.used, trial.allowed), (7, 2), "{}", proposal.text);
    for word in ["\"a*\"", "star*", "not MCP", "stream", "names nothing", "5 calls that went on"] {
        assert!(proposal.notes.iter().any(|note| note.contains(word)), "{word}: {:#?}", proposal.notes);
    }
    assert_eq!(engine.decide(&tool("tools/call", "ab")).effect, Effect::Deny);
    assert_eq!(engine.decide(&act(&one, Act::Http { method: "GET", path: "/x" })).effect, Effect::Deny);
}

fn rule() -> impl Strategy<Value = String> {
    let head = prop::sample::select(vec!["[[allow]]", "[[allow]]", "[[allow]]", "[[ask]]\nwhy='?'", "[[deny]]"]);
    let who = prop::sample::select(vec!["", "agents='a'\n", "agents='b'\n", "callers='hub#s'\n", "groups='g'\n"]);
    let what = prop::sample::select(vec!["tools='*'\n", "tools='x'\n", "tools=['x','y']\n", "tools='z*'\n"]);
    let when = prop::sample::select(vec![
        "",
        "where=[{pointer='/n',max=2}]\n",
        "where=[{pointer='/n',min=1,optional=true}]\n",
        "where=[{pointer='/s',one_of=['p','q']}]\n",
        "where=[{pointer='/s',type='exists'}]\n",
        "where=[{pointer='/s',regex='[a-p]'},{pointer='/n',max=3}]\n",
    ]);
    (head, who, what, when).prop_map(|(head, who, what, when)| format!("{head}\n{who}routes='bank'\n{what}{when}"))
}

#[derive(Clone, Debug)]
struct Asked {
    caller: Caller,
    tool: &'static str,
    arguments: String,
}

fn asked() -> impl Strategy<Value = Asked> {
    let callers = vec![agent("a"), agent("b"), agent("c"), caller("s"), caller("t")];
    let tools = prop::sample::select(vec!["x", "y", "z1", "z2"]);
    let arguments = prop::sample::select(vec![
        "{}",
        r#"{"n":0}"#,
        r#"{"n":2,"s":"p"}"#,
        r#"{"n":3,"s":"q"}"#,
        r#"{"s":"z"}"#,
        r#"{"n":"2"}"#,
        r#"{"n":9,"s":"p"}"#,
    ]);
    (prop::sample::select(callers), any::<bool>(), tools, arguments).prop_map(|(mut caller, group, tool, arguments)| {
        if group {
            caller.claims.insert("groups".to_owned(), vec!["g".to_owned()]);
        }
        Asked { caller, tool, arguments: arguments.to_owned() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_widened(
        rules in prop::collection::vec(rule(), 1..6),
        seen in prop::collection::vec(asked(), 1..24),
        other in prop::collection::vec(asked(), 24),
    ) {
        let old = toml(&rules.join("\n"));
        let past: Vec<Past<'_>> =
            seen.iter().map(|asked| Past::of(&old, call(&asked.caller, asked.tool, &asked.arguments))).collect();
        let (proposal, trial, engine) = learn(&past);
        for one in &past {
            let now = engine.replay(&one.query, &one.recorded());
            let effect = if let Answer::Decided(decision) = &now { Some(decision.effect) } else { None };
            if one.decision.effect == Effect::Deny {
                prop_assert!(matches!(effect, Some(Effect::Deny) | None), "{:?}\n{}", one.query, proposal.text);
            } else if proposal.notes.is_empty() {
                prop_assert_eq!(effect, Some(one.decision.effect), "{:?}\n{}", one.query, proposal.text);
            }
        }
        prop_assert_eq!(proposal.notes.iter().any(|note| note.contains("would not be allowed")), trial.allowed < trial.used);
        // Nobody may do what nobody did.
        for asked in &other {
            let used = past.iter().any(|one| {
                let same = |other: &Caller| other.agent == asked.caller.agent && other.subject == asked.caller.subject;
                let tool = Act::Mcp { method: "tools/call", target: Some(Target::Tool(asked.tool)) };
                one.decision.effect != Effect::Deny && same(one.query.caller) && one.query.act == tool
            });
            if !used {
                let effect = engine.decide(&call(&asked.caller, asked.tool, &asked.arguments)).effect;
                prop_assert_eq!(effect, Effect::Deny, "{:?}\n{}", asked, proposal.text);
            }
        }
    }
}

#[test]
fn what_was_recorded_of_some_calls_only_is_no_condition() {
    let facts = "[[allow]]\nroutes='bank'\ntools='pay'\nwhere=[{pointer='/to',glob='DE*'}]\n";
    let caller = agent("payer");
    let with = Past::of(&toml(facts), call(&caller, "pay", r#"{"to": "DE1"}"#));
    let without = Past::of(&toml(ANYTHING), call(&caller, "pay", r#"{"to": "FR1"}"#));
    let (proposal, trial, _) = learn(&[with, without]);
    assert_eq!((trial.used, trial.allowed), (2, 2), "{}", proposal.text);
    assert!(!proposal.text.contains("where"), "{}", proposal.text);
    assert!(proposal.notes.iter().any(|note| note.contains("some of the calls only")), "{:?}", proposal.notes);
}
