//! What is decided about calls of the past is what would have been decided, or not known.

use proptest::prelude::*;
use sortie_policy::{Answer, Counts, Decision, Effect, Engine, Found, Query, Recorded};

use crate::common::{agent, call, load_all, toml};
use crate::plain::{FACTS, asked, called};

/// What a record keeps of a decision.
pub(crate) fn recorded(decision: &Decision, counts: Option<Counts>) -> Recorded {
    let found = |name: &String| {
        let fact = decision.facts.iter().find(|(known, _)| known == name).map(|(_, fact)| Found::Fact(fact.clone()));
        let fault = decision.faults.iter().find(|(known, _)| known == name).map(|(_, fault)| match fault.code() {
            "absent" => Found::Absent,
            code => Found::Fault(code.to_owned()),
        });
        fact.or(fault).unwrap_or(Found::Absent)
    };
    let facts = decision.forms.iter().map(|(name, form)| (form.clone(), found(name))).collect();
    Recorded { facts, no_arguments: false, counts }
}

fn effect(answer: &Answer) -> Option<Effect> {
    match answer {
        Answer::Decided(decision) => Some(decision.effect),
        Answer::Unknown(_) => None,
    }
}

fn replay(old: &Engine, new: &Engine, query: &Query<'_>) -> Option<Effect> {
    effect(&new.replay(query, &recorded(&old.decide(query), Some(query.counts))))
}

#[test]
fn a_recorded_value_answers_other_limits() {
    let old = toml(
        "cedar=[]\n[[allow]]\nroutes='bank'\ntools='pay'\nwhere=[{pointer='/amount',type='decimal',max=100}]\n[[test]]\nroute='bank'\ntool='x'\nexpect='deny'",
    );
    let plain = load_all(
        "p.toml",
        &[
            ("p.toml", "cedar=['p.cedar']\n[facts.amount]\nroutes='bank'\ntools='pay'\npointer='/amount'\ntype='decimal'"),
            (
                "p.cedar",
                "permit(principal, action == Action::\"tools/call\", resource) when { context.facts.amount.lessThan(decimal(\"100.0\")) };",
            ),
        ],
    )
    .expect("loads");
    let limit = |max: &str| {
        toml(&format!("[[allow]]\nroutes='bank'\ntools='pay'\nwhere=[{{pointer='/amount',type='decimal',max={max}}}]"))
    };
    let caller = agent("a");
    let query = call(&caller, "pay", r#"{"amount": 75}"#);
    // Of `amount <= 100` it is known that it held, and nothing else.
    assert_eq!(replay(&old, &limit("100"), &query), Some(Effect::Allow));
    assert_eq!(replay(&old, &limit("50"), &query), None);
    // Of the value everything is known.
    assert_eq!(replay(&plain, &limit("100"), &query), Some(Effect::Allow));
    assert_eq!(replay(&plain, &limit("50"), &query), Some(Effect::Deny));
    // That it is not there, too.
    let nothing = call(&caller, "pay", "{}");
    assert_eq!(replay(&old, &limit("50"), &nothing), Some(Effect::Deny));
    let none = Recorded { no_arguments: true, ..Recorded::default() };
    assert_eq!(effect(&limit("50").replay(&query, &none)), Some(Effect::Deny));
}

#[test]
fn facts_of_one_name_and_another_meaning_are_not_mixed_up() {
    // In both files the condition is called where_allow_1_1.
    let rule = |test: &str| toml(&format!("[[allow]]\nroutes='bank'\ntools='pay'\nwhere=[{{pointer='/to',{test}}}]"));
    let caller = agent("a");
    let query = call(&caller, "pay", r#"{"to": "friend"}"#);
    assert_eq!(replay(&rule("glob='f*'"), &rule("glob='e*'"), &query), None);
    assert_eq!(replay(&rule("glob='f*'"), &rule("type='exists'"), &query), Some(Effect::Allow));
}

#[test]
fn what_does_not_depend_on_the_missing_is_known() {
    let caller = agent("a");
    let query = call(&caller, "pay", "{}");
    let answer = |text: &str| effect(&toml(text).replay(&query, &Recorded::default()));
    let limit = "where=[{pointer='/amount',max=3}]";
    let (allow, deny, ask) =
        ("[[allow]]\nroutes='bank'\n", "[[deny]]\nroutes='bank'\n", "[[ask]]\nwhy='x'\nroutes='bank'\n");
    // An argument that is missing or wrong would deny, whatever allows it.
    assert_eq!(answer(&format!("{allow}{allow}tools='pay'\n{limit}")), None);
    assert_eq!(answer(&format!("{allow}{deny}tools='pay'\n{limit}")), None);
    assert_eq!(answer(&format!("{allow}{deny}tools='other'\n{limit}")), Some(Effect::Allow));
    assert_eq!(answer(&format!("{allow}{deny}{allow}tools='pay'\n{limit}")), Some(Effect::Deny));
    assert_eq!(answer(&format!("{deny}tools='pay'\n{limit}")), Some(Effect::Deny));
    // Whether there is something never fails.
    let exists = "where=[{pointer='/amount',type='exists'}]";
    assert_eq!(answer(&format!("{allow}{allow}tools='pay'\n{exists}")), Some(Effect::Allow));
    assert_eq!(answer(&format!("{allow}{ask}tools='pay'\n{exists}")), None);
    assert_eq!(answer(&format!("{ask}{ask}tools='pay'\n{exists}")), Some(Effect::Ask));
    assert_eq!(answer(&format!("{allow}tools='pay'\n{exists}")), None);
    // A condition that does not hold in any case: the fact does not matter, but could be none.
    assert_eq!(answer(&format!("{allow}tools='pay'\nhours='00:00-01:00'\n{limit}")), Some(Effect::Deny));
    // Counts that were not recorded.
    let few = format!("{allow}tools='pay'\nmax_per_day=3");
    assert_eq!(answer(&few), None);
    assert_eq!(answer(&format!("{allow}{few}")), Some(Effect::Allow));
    let counted = Recorded { counts: Some(Counts { day: 3, ..Counts::default() }), ..Recorded::default() };
    assert_eq!(effect(&toml(&few).replay(&query, &counted)), Some(Effect::Deny));
    let Answer::Unknown(unknown) = toml(&few).replay(&query, &Recorded::default()) else { panic!("it is known") };
    assert_eq!(unknown.needs, ["how often the caller had called"]);
    assert_eq!(unknown.policies[0].as_str(), "policy.toml:1");
}

/// Everything that the arguments of a call could have been, in this small world.
fn arguments() -> Vec<String> {
    let mut out = Vec::new();
    for n in ["-3", "-2", "0", "2", "3", "\"x\""] {
        for s in ["\"a\"", "\"b\"", "\"ab\"", "1"] {
            for o in ["", ",\"o\":\"a\"", ",\"o\":\"ba\"", ",\"o\":1"] {
                out.push(format!("{{\"n\":{n},\"s\":{s}{o}}}"));
            }
        }
    }
    out.push("{}".to_owned());
    out
}

/// A policy for every call of a tool, so that little but its conditions decides.
fn policy() -> impl Strategy<Value = String> {
    let head = prop::sample::select(vec!["permit", "permit", "permit", "@ask(\"?\") permit", "forbid"]);
    let when = prop::sample::select(vec!["when", "when", "unless"]);
    (head, prop::collection::vec((when, called()), 0..3)).prop_map(|(head, conditions)| {
        let conditions: Vec<String> = conditions.iter().map(|(when, body)| format!("{when} {{ {body} }}")).collect();
        format!("{head}(principal, action == Action::\"tools/call\", resource) {};", conditions.join(" "))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_replayed_is_what_would_be_decided(
        policies in prop::collection::vec(policy(), 1..4),
        asked in prop::collection::vec(asked(), 1..6),
        forgotten in prop::collection::vec(any::<bool>(), 4),
    ) {
        let text = policies.join("\n");
        let good: Vec<&str> =
            text.lines().filter(|line| load_all("p.toml", &[("p.toml", FACTS), ("p.cedar", line)]).is_ok()).collect();
        let engine = load_all("p.toml", &[("p.toml", FACTS), ("p.cedar", &good.join("\n"))]).expect("each of them is good");
        for asked in &asked {
            let query = asked.query();
            let decision = engine.decide(&query);
            let whole = recorded(&decision, Some(query.counts));
            prop_assert_eq!(engine.replay(&query, &whole), Answer::Decided(decision), "{:?}\n{}", asked, good.join("\n"));

            let mut kept = forgotten.iter();
            let mut less = whole.clone();
            less.counts = less.counts.filter(|_| *kept.next().unwrap_or(&true));
            less.facts.retain(|_| *kept.next().unwrap_or(&true));
            let Some(effect) = effect(&engine.replay(&query, &less)) else { continue };
            // Whatever it was, as far as the rest of the record lets it be.
            for arguments in arguments() {
                for minute in 0..6 {
                    let other = asked.with(&arguments, minute);
                    let query = other.query();
                    if less.counts.is_some_and(|counts| counts != query.counts) {
                        continue;
                    }
                    let decision = engine.decide(&query);
                    let also = recorded(&decision, None);
                    if less.facts.iter().any(|fact| !also.facts.contains(fact)) {
                        continue;
                    }
                    prop_assert_eq!(decision.effect, effect, "{:?}\n{}", other, good.join("\n"));
                }
            }
        }
    }
}
