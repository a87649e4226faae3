//! Tunnels, their tokens and their CA certificates.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use sortie_ids::{CertificateId, Digest, TokenId, TunnelId, WorkspaceId};

/// A tunnel. It takes calls once it has a CA certificate, and until it is archived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "tunnel")]
#[schemars(rename = "Tunnel", transform = crate::schema::typed("tunnel"))]
pub struct Tunnel {
    /// Its id.
    pub id: TunnelId,
    /// What its owner calls it.
    pub display_name: Option<DisplayName>,
    /// `<label>.<base-domain>`; the hosts of its routes are one label below. Never given to another tunnel.
    pub domain: String,
    /// When it was created, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When it was archived; it never comes back.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

/// A tunnel as the organisation's older surface shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OrganizationTunnel {
    /// The tunnel.
    #[serde(flatten)]
    pub tunnel: Tunnel,
    /// The workspace that it belongs to for ever; `null` for the default workspace.
    pub workspace_id: Option<WorkspaceId>,
}

/// The current token of a tunnel. This object is the only one that shows the token itself.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "tunnel_token")]
#[schemars(rename = "TunnelToken", transform = crate::schema::typed("tunnel_token"))]
pub struct TunnelToken {
    /// The same for as long as the value is the same.
    pub id: TokenId,
    /// The secret with which a gateway opens links.
    #[serde(rename = "tunnel_token", serialize_with = "expose", deserialize_with = "take")]
    #[schemars(with = "String")]
    pub value: sortie_ids::TunnelToken,
}

fn expose<S: Serializer>(value: &sortie_ids::TunnelToken, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose())
}

fn take<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<sortie_ids::TunnelToken, D::Error> {
    let text = String::deserialize(deserializer)?;
    sortie_ids::TunnelToken::parse(&text).map_err(serde::de::Error::custom)
}

/// A CA certificate by which a tunnel's gateways are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "tunnel_certificate")]
#[schemars(rename = "TunnelCertificate", transform = crate::schema::typed("tunnel_certificate"))]
pub struct TunnelCertificate {
    /// Its id.
    pub id: CertificateId,
    /// The tunnel it is registered on.
    pub tunnel_id: TunnelId,
    /// SHA-256 of the DER encoding, as 64 lower-case hexadecimal digits.
    #[serde(with = "hex_digest")]
    #[schemars(with = "String", regex(pattern = "^[0-9a-f]{64}$"))]
    pub fingerprint: Digest,
    /// When it was registered, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// The end of its validity (RFC 5280, section 4.1.2.5); none for a certificate without one.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub expires_at: Option<Timestamp>,
    /// When it left the set of trusted certificates.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

mod hex_digest {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use sortie_ids::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// A name for people: 1 to 255 characters, any of them. Whoever prints it makes it safe for the place it goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, extend("minLength" = 1, "maxLength" = 255))]
pub struct DisplayName(String);

/// Text that is no display name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a display name has 1 to 255 characters, not {0}")]
pub struct DisplayNameError(usize);

impl DisplayName {
    /// Most characters that a name has; an installation may allow fewer ([`crate::Limits`]).
    pub const MAX_CHARACTERS: u32 = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DisplayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DisplayName {
    type Err = DisplayNameError;

    fn from_str(text: &str) -> Result<Self, DisplayNameError> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for DisplayName {
    type Error = DisplayNameError;

    fn try_from(text: String) -> Result<Self, DisplayNameError> {
        match text.chars().count() {
            1..=255 => Ok(Self(text)),
            count => Err(DisplayNameError(count)),
        }
    }
}

impl From<DisplayName> for String {
    fn from(name: DisplayName) -> String {
        name.0
    }
}

/// The body of `POST /v1/tunnels`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateTunnel {
    /// What its owner calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<DisplayName>,
}

/// The body of `POST /v1/tunnels/{tunnel_id}/rotate_token`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RotateToken {
    /// Why, for the audit.
    #[schemars(length(max = 1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The body of `POST /v1/tunnels/{tunnel_id}/certificates`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCertificate {
    /// Exactly one certificate as PEM, at most 8192 bytes, no private key.
    #[schemars(length(max = 8192))]
    pub ca_certificate_pem: String,
}

impl CreateCertificate {
    /// Longest PEM text taken, in bytes; an installation may allow less ([`crate::Limits`]).
    pub const MAX_PEM_BYTES: u32 = 8 * 1024;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_shape_of_the_contract() {
        let tunnel = Tunnel {
            id: "tnl_1".parse().expect("id"),
            display_name: Some("build farm".parse().expect("name")),
            domain: "abcd1234.sortie.localhost".to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
            archived_at: None,
        };
        let json = serde_json::to_value(&tunnel).expect("json");
        let expected = serde_json::json!({
            "id": "tnl_1", "type": "tunnel", "display_name": "build farm", "domain": "abcd1234.sortie.localhost",
            "created_at": "1970-01-01T00:00:00Z", "archived_at": null,
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Tunnel>(json).expect("read back"), tunnel);

        let certificate = TunnelCertificate {
            id: "tcrt_1".parse().expect("id"),
            tunnel_id: tunnel.id,
            fingerprint: Digest::of(b"der"),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
            archived_at: None,
        };
        let json = serde_json::to_value(&certificate).expect("json");
        assert_eq!(json["type"], "tunnel_certificate");
        assert_eq!(json["fingerprint"].as_str().map(str::len), Some(64));
        assert_eq!(json["expires_at"], serde_json::Value::Null);
        assert_eq!(serde_json::from_value::<TunnelCertificate>(json).expect("read back"), certificate);
    }

    #[test]
    fn a_token_is_shown_in_its_own_object_and_nowhere_else() {
        let value = sortie_ids::TunnelToken::random("org_1", "tnl_1");
        let token = TunnelToken { id: TokenId::of(&value.digest()), value };
        let json = serde_json::to_value(&token).expect("json");
        assert_eq!(json["type"], "tunnel_token");
        assert_eq!(json["tunnel_token"], token.value.expose());
        assert!(!format!("{token:?}").contains(token.value.expose()));
        let read: TunnelToken = serde_json::from_value(json).expect("read back");
        assert_eq!(read.value.digest(), token.value.digest());
    }

    #[test]
    fn bodies_are_strict() {
        assert!(serde_json::from_str::<CreateTunnel>("{}").expect("empty").display_name.is_none());
        assert!(serde_json::from_str::<CreateTunnel>(r#"{"display_name":null}"#).is_ok());
        let long = "\u{e9}".repeat(255);
        assert!(serde_json::from_value::<CreateTunnel>(serde_json::json!({"display_name": long})).is_ok());
        for bad in [r#"{"display_name":""}"#, r#"{"display_name":7}"#, r#"{"displayname":"x"}"#] {
            assert!(serde_json::from_str::<CreateTunnel>(bad).is_err(), "{bad}");
        }
        let error = "x".repeat(256).parse::<DisplayName>().expect_err("too long");
        assert_eq!(error.to_string(), "a display name has 1 to 255 characters, not 256");
        assert!(serde_json::from_str::<CreateCertificate>("{}").is_err());
    }
}
