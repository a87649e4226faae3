//! What the tests share.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use sortie_identity::{Assurance, Caller};
use sortie_policy::{Act, Counts, Engine, PolicyError, Query, Target};

/// Loads one file of this name.
pub(crate) fn load(name: &str, text: &str) -> Result<Engine, PolicyError> {
    load_all(name, &[(name, text)])
}

/// Loads the first of some files; the others are there to be named.
pub(crate) fn load_all(name: &str, files: &[(&str, &str)]) -> Result<Engine, PolicyError> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    Engine::load(Path::new(name), |path| {
        let text = path.to_str().and_then(|path| files.get(path));
        text.map(|text| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    })
}

/// An engine of a TOML file.
pub(crate) fn toml(text: &str) -> Engine {
    load("policy.toml", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// An engine of Cedar text.
pub(crate) fn cedar(text: &str) -> Engine {
    load("policy.cedar", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// What is wrong with a file.
pub(crate) fn problems(name: &str, text: &str) -> Vec<String> {
    match load(name, text) {
        Ok(_) => panic!("it loads:\n{text}"),
        Err(error) => error.problems,
    }
}

/// A caller of the hub.
pub(crate) fn caller(subject: &str) -> Caller {
    Caller::new("hub", subject, Assurance::Asserted, i64::MAX)
}

/// A caller that is an agent.
pub(crate) fn agent(name: &str) -> Caller {
    Caller { agent: Some(name.to_owned()), ..caller("someone") }
}

/// A query about any act on the route `bank`, on Monday 2026-01-05 at noon.
pub(crate) fn act<'a>(caller: &'a Caller, act: Act<'a>) -> Query<'a> {
    let counts = Counts::default();
    Query { caller, route: "bank", act, arguments: None, now: 1_767_614_400, region: None, counts }
}

/// A query about a method without a target.
pub(crate) fn method<'a>(caller: &'a Caller, method: &'a str) -> Query<'a> {
    act(caller, Act::Mcp { method, target: None })
}

/// A query about the call of a tool.
pub(crate) fn call<'a>(caller: &'a Caller, tool: &'a str, arguments: &'a str) -> Query<'a> {
    let query = act(caller, Act::Mcp { method: "tools/call", target: Some(Target::Tool(tool)) });
    Query { arguments: Some(arguments), ..query }
}
