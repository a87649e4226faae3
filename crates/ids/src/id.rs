//! Every kind of identifier, in one list.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Digest;

/// An identifier that does not have the form of its kind.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{given}` is not {expected}")]
pub struct IdError {
    given: String,
    expected: &'static str,
}

/// Longest identifier taken from outside, in bytes; ours are at most 69.
const MAX_LEN: usize = 96;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// What every identifier of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// The identifier as text, prefix included.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let rest = text.strip_prefix($prefix).unwrap_or("");
                let well_formed = !rest.is_empty()
                    && text.len() <= MAX_LEN
                    && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if well_formed {
                    Ok(Self(text.to_owned()))
                } else {
                    let given = text.chars().take(MAX_LEN).collect();
                    Err(IdError { given, expected: concat!($what, " id (", $prefix, "...)") })
                }
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "pattern": concat!("^", $prefix, "[A-Za-z0-9-]+$")})
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            /// A fresh identifier; ids made later sort later (UUID version 7, RFC 9562).
            pub fn random() -> Self {
                Self(format!("{}{}", Self::PREFIX, Uuid::now_v7().simple()))
            }
        }
    };
}

id!(
    /// A tunnel.
    TunnelId, "tnl_", "a tunnel"
);
id!(
    /// A CA certificate registered on a tunnel.
    CertificateId, "tcrt_", "a tunnel certificate"
);
id!(
    /// A tunnel token: the SHA-256 of its value, so that it changes exactly when the value does.
    TokenId, "ttkn_", "a tunnel token"
);
id!(
    /// An API key.
    KeyId, "key_", "a key"
);
id!(
    /// A workspace: the unit that tunnels and keys belong to.
    WorkspaceId, "wrkspc_", "a workspace"
);
id!(
    /// An organisation: the unit that limits are counted for.
    OrganizationId, "org_", "an organization"
);
id!(
    /// One call, under the same id in every process that it passes.
    RequestId, "req_", "a request"
);
id!(
    /// One established link between a gateway and an edge.
    LinkId, "lnk_", "a link"
);
id!(
    /// A call that waits for a person to approve it.
    ApprovalId, "apr_", "an approval"
);

id!(
    /// An agent: a model with a prompt, tools and MCP servers.
    AgentId, "agent_", "an agent"
);
id!(
    /// An environment: where the sandbox tools of sessions run.
    EnvironmentId, "env_", "an environment"
);
id!(
    /// A session of an agent in an environment.
    SessionId, "sesn_", "a session"
);
id!(
    /// An event of a session; also the id of the tool use that it tells of.
    EventId, "sevt_", "an event"
);
id!(
    /// A thread of a session.
    ThreadId, "sthr_", "a thread"
);
id!(
    /// A vault: credentials that sessions use.
    VaultId, "vlt_", "a vault"
);
id!(
    /// A credential in a vault.
    CredentialId, "vcrd_", "a credential"
);
id!(
    /// An item of an environment's work queue.
    WorkId, "work_", "a work"
);

random_id!(TunnelId);
random_id!(CertificateId);
random_id!(KeyId);
random_id!(WorkspaceId);
random_id!(OrganizationId);
random_id!(RequestId);
random_id!(LinkId);
random_id!(ApprovalId);
random_id!(AgentId);
random_id!(EnvironmentId);
random_id!(SessionId);
random_id!(EventId);
random_id!(ThreadId);
random_id!(VaultId);
random_id!(CredentialId);
random_id!(WorkId);

impl TokenId {
    /// The id of the token with this digest.
    pub fn of(digest: &Digest) -> Self {
        Self(format!("{}{digest}", Self::PREFIX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_refuse_other_kinds() {
        let id = TunnelId::random();
        assert_eq!(id.as_str().parse::<TunnelId>(), Ok(id.clone()));
        let error = id.as_str().parse::<KeyId>().expect_err("another kind");
        assert_eq!(error.to_string(), format!("`{id}` is not a key id (key_...)"));
        for bad in ["", "tnl_", "tnl_a/b", "tnl_a b", "tnl_\u{e9}"] {
            assert!(bad.parse::<TunnelId>().is_err(), "{bad:?}");
        }
        assert!(format!("tnl_{}", "a".repeat(200)).parse::<TunnelId>().is_err());
    }

    #[test]
    fn later_ids_sort_later() {
        let ids: Vec<_> = (0..50).map(|_| RequestId::random()).collect();
        assert!(ids.is_sorted());
    }
}
