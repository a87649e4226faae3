//! `pinning`: whose word counts for what a server says of its tools.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to definitions of tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pinning {
    /// They pass as they come.
    Off,
    /// The first one that is seen counts; another one is held back until a person approves it.
    #[default]
    FirstUse,
    /// Each is held back until a person approves it.
    Approve,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::GatewayConfig;

    #[test]
    fn a_route_has_its_own_word_or_that_of_the_gateway() {
        let parse = |text: &str| GatewayConfig::parse(text, Path::new("/etc/sortie/gateway.toml"));
        let of = |text: &str| {
            let routes = parse(text).expect(text).routes;
            routes.values().map(|route| route.pinning).collect::<Vec<_>>()
        };
        let routes = "[routes.a]\nupstream = \"http://a:80\"\n[routes.b]\nupstream = \"http://b:80\"\n";
        assert_eq!(of(routes), [Pinning::FirstUse, Pinning::FirstUse]);
        let both = format!("pinning = \"approve\"\n{routes}pinning = \"off\"\n");
        assert_eq!(of(&both), [Pinning::Approve, Pinning::Off]);
        let shown = parse(&both).expect("settings").to_toml().expect("toml");
        assert_eq!(of(&shown), [Pinning::Approve, Pinning::Off], "{shown}");
        let error = parse(&format!("pinning = \"always\"\n{routes}")).expect_err("wrong").to_string();
        assert!(error.contains(":1: pinning: unknown variant `always`, expected one of `off`, `first-use`"), "{error}");
    }
}
