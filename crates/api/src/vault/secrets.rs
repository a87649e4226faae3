//! The secrets of credentials.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};
use serde_json::json;
use zeroize::Zeroizing;

/// A text that is written and never shown. No `Serialize`; `Clone`, since a caller keeps one beside the connection that it
/// is sent on.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

/// What a credential holds, apart from what is shown of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSecrets {
    /// Of `static_bearer`.
    Bearer {
        /// The token.
        token: SecretText,
    },
    /// Of `mcp_oauth`.
    Oauth {
        /// The token.
        access_token: SecretText,
        /// What the next one is got with.
        refresh_token: Option<SecretText>,
        /// What the client proves itself with.
        client_secret: Option<SecretText>,
    },
    /// Of `environment_variable`.
    Variable {
        /// The value.
        value: SecretText,
    },
}

/// As it is sealed.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Kept {
    Bearer { token: SecretText },
    Oauth { access_token: SecretText, refresh_token: Option<SecretText>, client_secret: Option<SecretText> },
    Variable { value: SecretText },
}

impl SecretText {
    /// Takes a secret.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself: only for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl CredentialSecrets {
    /// The text that is sealed.
    pub fn to_sealed_text(&self) -> Zeroizing<String> {
        let text = |secret: &Option<SecretText>| secret.as_ref().map(|secret| secret.expose().to_owned());
        let mut value = match self {
            Self::Bearer { token } => json!({"type": "bearer", "token": token.expose()}),
            Self::Oauth { access_token, refresh_token, client_secret } => json!({
                "type": "oauth",
                "access_token": access_token.expose(),
                "refresh_token": text(refresh_token),
                "client_secret": text(client_secret),
            }),
            Self::Variable { value } => json!({"type": "variable", "value": value.expose()}),
        };
        let sealed = Zeroizing::new(value.to_string());
        wipe(&mut value);
        sealed
    }

    /// Reads the text that was sealed.
    pub fn from_sealed_text(text: &[u8]) -> Option<Self> {
        Some(match serde_json::from_slice(text).ok()? {
            Kept::Bearer { token } => Self::Bearer { token },
            Kept::Oauth { access_token, refresh_token, client_secret } => {
                Self::Oauth { access_token, refresh_token, client_secret }
            }
            Kept::Variable { value } => Self::Variable { value },
        })
    }
}

/// Wipes the texts of a value that held secrets.
fn wipe(value: &mut serde_json::Value) {
    if let Some(members) = value.as_object_mut() {
        for member in members.values_mut() {
            if let serde_json::Value::String(text) = member.take() {
                drop(Zeroizing::new(text));
            }
        }
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(redacted)")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = SecretText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<SecretText, E> {
                Ok(SecretText::new(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<SecretText, E> {
                Ok(SecretText::new(text))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

impl JsonSchema for SecretText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SecretText".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"type": "string", "minLength": 1, "writeOnly": true})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_round_trip_and_are_not_printed() {
        let secret = |text: &str| SecretText::new(text.to_owned());
        let oauth = |refresh: Option<&str>, client: Option<&str>| CredentialSecrets::Oauth {
            access_token: secret("hidden-a"),
            refresh_token: refresh.map(secret),
            client_secret: client.map(secret),
        };
        for secrets in [
            CredentialSecrets::Bearer { token: secret("hidden-\"1\"\u{e9}") },
            oauth(None, None),
            oauth(Some("hidden-r"), Some("hidden-c")),
            CredentialSecrets::Variable { value: secret("hidden-v") },
        ] {
            let text = secrets.to_sealed_text();
            assert!(text.contains("hidden"));
            assert_eq!(CredentialSecrets::from_sealed_text(text.as_bytes()), Some(secrets.clone()));
            assert!(!format!("{secrets:?}").contains("hidden"));
        }
        assert_eq!(CredentialSecrets::from_sealed_text(b"{}"), None);
    }

    #[test]
    fn what_is_no_secret_is_not_repeated() {
        for sent in [json!(123_456), json!(["hidden"]), json!({"hidden": 1})] {
            let error = serde_json::from_value::<SecretText>(sent).expect_err("refused").to_string();
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
