//! Where the hosted service's own connector hands its traffic over, and as whom it counts: `[listener]`.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_identity::{Assurance, Caller, GATEWAY_ISSUER};
use toml::Spanned;

use super::{ConfigError, Source};

/// Longest name of a caller, and of what else is said of it, in bytes.
const MAX_NAME: usize = 256;
/// Where connectors look for a proxy if nobody tells them another place.
const DEFAULT_ADDR: &str = "127.0.0.1:8080";

/// Where the hosted service's own connector hands its traffic over, and as whom it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// `listen_addr`: address and port. Default `127.0.0.1:8080`.
    pub listen_addr: SocketAddr,
    /// `allow_remote`: whether the address may be one that other machines can reach. Default false.
    pub allow_remote: bool,
    /// `[listener.caller]`: who every call that comes this way is, since nothing in it says so. Required.
    pub caller: AssertedCaller,
}

/// The one caller of a listener. Every name has 1 to 256 bytes and no control character.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ListenerCaller")]
pub struct AssertedCaller {
    /// The name of the caller, for policies, limits and records: 1 to 256 bytes. Required.
    pub subject: String,
    /// Its organisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Its workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The person that it acts for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it calls from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl AssertedCaller {
    /// The same as everything behind the identity check sees it. It does not end: the settings say it anew at each call.
    pub(crate) fn caller(&self) -> Caller {
        let mut caller = Caller::new(GATEWAY_ISSUER, self.subject.clone(), Assurance::Asserted, i64::MAX);
        caller.organization = self.organization.clone();
        caller.workspace = self.workspace.clone();
        caller.agent = self.agent.clone();
        caller.agent_version = self.agent_version.clone();
        caller.user = self.user.clone();
        caller.region = self.region.clone();
        caller
    }

    /// The name of the first setting that cannot be a name.
    fn wrong(&self) -> Option<&'static str> {
        let Self { subject, organization, workspace, agent, agent_version, user, region } = self;
        [
            ("subject", Some(subject)),
            ("organization", organization.as_ref()),
            ("workspace", workspace.as_ref()),
            ("agent", agent.as_ref()),
            ("agent_version", agent_version.as_ref()),
            ("user", user.as_ref()),
            ("region", region.as_ref()),
        ]
        .into_iter()
        .find(|(_, text)| text.is_some_and(|text| !is_name(text)))
        .map(|(setting, _)| setting)
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && !text.chars().any(char::is_control) && text.trim() == text
}

#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Listener")]
pub(super) struct RawListener {
    /// Address and port, such as 127.0.0.1:8080, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    listen_addr: Option<Spanned<String>>,
    /// Whether the address may be one that other machines can reach. Whoever reaches it calls as the one caller.
    #[serde(default)]
    allow_remote: bool,
    /// Who every call that comes this way is, since nothing in it says so. Required.
    #[schemars(with = "AssertedCaller")]
    caller: Option<Spanned<AssertedCaller>>,
}

impl RawListener {
    pub(super) fn check(listener: Spanned<Self>, source: &Source<'_>) -> Result<ListenerConfig, ConfigError> {
        let whole = listener.span();
        let Self { listen_addr, allow_remote, caller } = listener.into_inner();
        let text = listen_addr.as_ref().map_or(DEFAULT_ADDR, |text| text.get_ref().as_str());
        let wrong = |reason: String| {
            let at = listen_addr.as_ref().map_or(whole.clone(), Spanned::span);
            source.wrong(Some(at), "listener.listen_addr", reason)
        };
        let address: SocketAddr = text.parse().map_err(|_| {
            wrong(format!("`{text}` is not an address and a port, such as {DEFAULT_ADDR}; names are not resolved here"))
        })?;
        if !address.ip().to_canonical().is_loopback() && !allow_remote {
            return Err(wrong(format!(
                "`{text}` can be reached from other machines, and whoever reaches it calls as the one caller; use a \
                 loopback address, or set allow_remote = true"
            )));
        }
        let Some(caller) = caller else {
            let reason = "what comes there does not say who calls; say it under [listener.caller], with a subject";
            return Err(source.wrong(Some(whole), "listener.caller", reason));
        };
        if let Some(setting) = caller.get_ref().wrong() {
            let reason = format!("a name has 1 to {MAX_NAME} bytes, no control characters, and no blanks at its ends");
            return Err(source.wrong(Some(caller.span()), &format!("listener.caller.{setting}"), reason));
        }
        Ok(ListenerConfig { listen_addr: address, allow_remote, caller: caller.into_inner() })
    }
}

impl From<&ListenerConfig> for RawListener {
    fn from(config: &ListenerConfig) -> Self {
        RawListener {
            listen_addr: Some(Spanned::new(0..0, config.listen_addr.to_string())),
            allow_remote: config.allow_remote,
            caller: Some(Spanned::new(0..0, config.caller.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::GatewayConfig;

    fn parse(listener: &str) -> Result<GatewayConfig, ConfigError> {
        let text = format!("[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n{listener}");
        GatewayConfig::parse(&text, Path::new("/etc/sortie/gateway.toml"))
    }

    #[test]
    fn nothing_is_listened_on_unless_somebody_says_who_calls_there() {
        assert_eq!(parse("").expect("config").listener, None);
        let listener = parse("[listener.caller]\nsubject = \"hosted\"\n").expect("config").listener.expect("listener");
        assert_eq!(listener.listen_addr, "127.0.0.1:8080".parse().expect("address"));
        let caller = listener.caller.caller();
        assert_eq!((caller.issuer.as_str(), caller.subject.as_str()), (GATEWAY_ISSUER, "hosted"));
        assert_eq!(caller.assurance, Assurance::Asserted);
    }

    #[test]
    fn every_setting_is_read() {
        let listener = parse(
            "[listener]\nlisten_addr = \"0.0.0.0:9\"\nallow_remote = true\n[listener.caller]\nsubject = \"s\"\n\
             organization = \"o\"\nworkspace = \"w\"\nagent = \"a\"\nagent_version = \"1\"\nuser = \"u\"\nregion = \"r\"\n",
        );
        let listener = listener.expect("config").listener.expect("listener");
        assert_eq!((listener.listen_addr.port(), listener.allow_remote), (9, true));
        let caller = listener.caller.caller();
        let said =
            [caller.organization, caller.workspace, caller.agent, caller.agent_version, caller.user, caller.region];
        assert_eq!(said.map(Option::unwrap_or_default), ["o", "w", "a", "1", "u", "r"]);
        for loopback in ["127.1.2.3:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            parse(&format!("[listener]\nlisten_addr = \"{loopback}\"\ncaller = {{ subject = \"s\" }}\n"))
                .expect(loopback);
        }
    }

    #[test]
    fn what_is_wrong_says_where_and_how_it_goes() {
        for (listener, wanted) in [
            ("[listener]\n", ":3: listener.caller: what comes there does not say who calls"),
            ("[listener]\nlisten_addr = \"127.0.0.1:1\"\n", "say it under [listener.caller]"),
            ("[listener.caller]\nagent = \"a\"\n", "missing field `subject`"),
            ("[listener.caller]\nsubject = \"\"\n", "listener.caller.subject: a name has"),
            ("[listener.caller]\nsubject = \" s\"\n", "listener.caller.subject: a name has"),
            ("[listener.caller]\nsubject = \"s\"\nuser = \"a\\nb\"\n", "listener.caller.user: a name has"),
            ("[listener.caller]\nsubject = \"s\"\nkey = \"k\"\n", "unknown field `key`"),
            ("[listener]\ncolour = 1\n", "unknown field `colour`"),
            ("[listener]\nlisten_addr = \"0.0.0.0:8080\"\ncaller = { subject = \"s\" }\n", "set allow_remote = true"),
            (
                "[listener]\nlisten_addr = \"[::]:8080\"\ncaller = { subject = \"s\" }\n",
                ":4: listener.listen_addr: `[::]",
            ),
            ("[listener]\nlisten_addr = \"localhost:8080\"\ncaller = { subject = \"s\" }\n", "is not an address"),
            ("[listener]\nlisten_addr = \":8080\"\ncaller = { subject = \"s\" }\n", "is not an address"),
        ] {
            let error = parse(listener).expect_err(listener).to_string();
            assert!(error.contains(wanted), "{listener}: {error}");
        }
        let long = format!("[listener.caller]\nsubject = \"{}\"\n", "s".repeat(MAX_NAME + 1));
        assert!(parse(&long).is_err());
    }
}
