//! Policy files: what is read can decide without a panic, and an error says where it is. What is written out as Cedar is
//! read again and decides the same.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Engine, Query, Target};

fuzz_target!(|text: &str| {
    let caller = Caller {
        agent: Some("a".to_owned()),
        workspace: Some("w".to_owned()),
        user: Some("u".to_owned()),
        ..Caller::new("i", "s", Assurance::Attested, i64::MAX)
    };
    let query = |method, target| Query {
        caller: &caller,
        route: "r",
        act: Act::Mcp { method, target },
        arguments: Some(r#"{"a":1,"b":"x","c":[1.5,"y"]}"#),
        now: 1_767_614_400,
        region: Some("eu"),
        counts: Counts::default(),
    };
    let queries =
        [query("tools/call", Some(Target::Tool("t"))), query("resources/read", Some(Target::Resource("u:x"))), query("ping", None)];
    for name in ["policy.toml", "policy.cedar"] {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let read = |path: &Path| if path == Path::new(name) { Ok(text.to_owned()) } else { Err(missing()) };
        match Engine::load(Path::new(name), read) {
            Ok(engine) => {
                for query in &queries {
                    let decision = engine.decide(query);
                    assert_eq!(decision, engine.decide(query));
                    engine.may_see(query);
                    if engine.is_empty() {
                        assert_eq!(decision.effect, sortie_policy::Effect::Deny);
                    }
                }
            }
            Err(error) => {
                for problem in &error.problems {
                    if let Some(rest) = problem.strip_prefix(&format!("{name}:")) {
                        let line = rest.split(':').next().and_then(|line| line.trim().parse::<usize>().ok());
                        assert!(line.is_none_or(|line| (1..=text.matches('\n').count() + 1).contains(&line)), "{problem}");
                    }
                }
            }
        }
    }
});
