//! Who is calling, as the gateway knows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sortie_ids::Digest;

/// The issuer of callers who proved themselves by a client certificate of a sealed route.
pub const TLS_ISSUER: &str = "tls";
/// The issuer of the caller that a gateway's own listener asserts.
pub const GATEWAY_ISSUER: &str = "gateway";

/// How far a caller is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Assurance {
    /// The hub, or a listener of the gateway, says so.
    Asserted,
    /// The gateway has verified it itself: a token of an identity provider or runner, or a client certificate.
    Attested,
}

impl Assurance {
    /// The name by which settings, tokens and records call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asserted => "asserted",
            Self::Attested => "attested",
        }
    }
}

/// Who is calling, as the gateway knows it. A value that policy decides on and audit records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// Who says so (`iss`); [`TLS_ISSUER`] and [`GATEWAY_ISSUER`] where no token does.
    pub issuer: String,
    /// The caller, by its issuer's name for it (`sub`).
    pub subject: String,
    /// How far it is proven.
    pub assurance: Assurance,
    /// Its organisation at the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Its workspace at the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// The id of the key with which it called the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The person it acts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The session that the call is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The use of a tool that the call is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use: Option<String>,
    /// Where it calls from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Who acts for the subject (RFC 8693 section 4.1, `act`), nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<String>,
    /// The id of the token (`jti`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// When this ends, in seconds since 1970.
    pub expires: i64,
    /// What else the issuer says and the settings map for policy, such as groups.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// A caller of whom no more is known than this.
    pub fn new(issuer: impl Into<String>, subject: impl Into<String>, assurance: Assurance, expires: i64) -> Self {
        Self {
            issuer: issuer.into(),
            subject: subject.into(),
            assurance,
            organization: None,
            workspace: None,
            key: None,
            user: None,
            agent: None,
            agent_version: None,
            session: None,
            tool_use: None,
            region: None,
            actors: Vec::new(),
            token_id: None,
            expires,
            claims: BTreeMap::new(),
        }
    }

    /// A caller with this client certificate, in DER.
    pub fn of_certificate(der: &[u8], expires: i64) -> Self {
        Self::new(TLS_ISSUER, format!("sha256:{}", Digest::of(der)), Assurance::Attested, expires)
    }

    /// One value for one principal: issuer, organisation, workspace and subject. What else is known of two calls may
    /// differ.
    pub fn digest(&self) -> Digest {
        let (organization, workspace) = (self.organization.as_deref(), self.workspace.as_deref());
        Digest::of_optional(&[Some(&self.issuer), organization, workspace, Some(&self.subject)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(issuer: &str, org: Option<&str>, workspace: Option<&str>, subject: &str) -> Digest {
        let mut caller = Caller::new(issuer, subject, Assurance::Asserted, 0);
        caller.organization = org.map(str::to_owned);
        caller.workspace = workspace.map(str::to_owned);
        caller.digest()
    }

    #[test]
    fn callers_differ_by_everything_that_makes_them() {
        let one = caller("i", Some("o"), Some("w"), "s");
        for other in [
            caller("j", Some("o"), Some("w"), "s"),
            caller("i", Some("o"), Some("w"), "t"),
            caller("i", Some("o"), Some("v"), "s"),
            caller("i", Some("ow"), Some(""), "s"),
            caller("i", Some("ow"), None, "s"),
            caller("io", None, Some("w"), "s"),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(Caller::of_certificate(b"a", 0).digest(), Caller::of_certificate(b"b", 0).digest());
    }

    #[test]
    fn a_principal_stays_the_same_between_its_calls() {
        let mut caller = Caller::new("i", "s", Assurance::Asserted, 60);
        let before = caller.digest();
        caller.expires = 120;
        caller.token_id = Some("j".to_owned());
        caller.session = Some("sesn_1".to_owned());
        caller.actors.push("a".to_owned());
        assert_eq!(caller.digest(), before);
    }
}
