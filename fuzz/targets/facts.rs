//! Facts: what is taken out of arguments is what another reader finds there, and what cannot be told denies.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Effect, Engine, Fact, Query, Target};

/// One engine for each type, so that one fault hides no other fact.
const TYPES: [&str; 9] = ["string", "long", "decimal", "bool", "strings", "ip", "datetime", "count", "exists"];

static ENGINES: LazyLock<Vec<Engine>> = LazyLock::new(|| {
    let engine = |kind: &&str| {
        let toml = format!("cedar = ['p.cedar']\n[facts.f]\npointer = '/a/0'\ntype = '{kind}'\n");
        let cedar = "permit(principal, action == Action::\"tools/call\", resource) when { context.facts.f == context.facts.f };";
        Engine::load(Path::new("p.toml"), |path| {
            Ok(if path == Path::new("p.toml") { toml.clone() } else { cedar.to_owned() })
        })
    };
    TYPES.iter().map(engine).collect::<Result<_, _>>().expect("the policies are good")
});

fuzz_target!(|arguments: &str| {
    let caller = Caller::new("i", "s", Assurance::Asserted, i64::MAX);
    let act = Act::Mcp { method: "tools/call", target: Some(Target::Tool("t")) };
    let (now, region, counts) = (0, None, Counts::default());
    let query = Query { caller: &caller, route: "r", act, arguments: Some(arguments), now, region, counts };
    let value = serde_json::from_str::<Value>(arguments).ok();
    let there = value.as_ref().and_then(|value| value.pointer("/a").and_then(Value::as_array)?.first());
    for engine in ENGINES.iter() {
        let decision = engine.decide(&query);
        let Some((_, fact)) = decision.facts.first() else {
            assert_eq!(decision.effect, Effect::Deny);
            continue;
        };
        // Numbers beyond what a float can hold are no values to the other reader.
        if value.is_none() {
            continue;
        }
        match fact {
            Fact::String(text) => assert_eq!(there.and_then(Value::as_str), Some(text.as_str())),
            Fact::Long(found) => match there {
                Some(Value::Array(all)) => assert_eq!(usize::try_from(*found), Ok(all.len())),
                there => assert_eq!(there.and_then(Value::as_i64), Some(*found)),
            },
            Fact::Decimal(text) => {
                let found: f64 = text.parse().expect("a number");
                assert_eq!(there.and_then(Value::as_f64), Some(found));
            }
            Fact::Bool(found) => assert!(there.and_then(Value::as_bool) == Some(*found) || *found == there.is_some()),
            Fact::Set(texts) => {
                let all = there.and_then(Value::as_array).expect("an array");
                assert!(all.iter().all(|one| texts.iter().any(|text| Some(text.as_str()) == one.as_str())));
            }
            Fact::Ip(ip) => {
                let text = there.and_then(Value::as_str).expect("a text");
                assert_eq!(text.parse::<std::net::IpAddr>().ok(), Some(*ip));
            }
            Fact::Datetime(_) => assert!(there.is_some_and(Value::is_string)),
        }
    }
});
