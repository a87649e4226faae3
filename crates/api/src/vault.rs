//! Vaults: credentials that sessions use, which are written and never shown.

mod request;
mod secrets;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::{CredentialId, VaultId};

use crate::{DisplayName, Metadata, normalized_mcp_url};

pub use request::{CreateCredential, CreateVault, UpdateCredential, UpdateVault};
pub use secrets::{CredentialSecrets, SecretText};

/// A vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "vault")]
#[schemars(rename = "Vault", transform = crate::schema::typed("vault"))]
pub struct Vault {
    /// Its id.
    pub id: VaultId,
    /// What its owner calls it.
    pub display_name: DisplayName,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// When it was made, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When it changed last.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub updated_at: Timestamp,
    /// When it was archived, and the secrets in it were removed.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

/// A credential in a vault, without its secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "vault_credential")]
#[schemars(rename = "VaultCredential", transform = crate::schema::typed("vault_credential"))]
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// The vault that it lies in.
    pub vault_id: VaultId,
    /// What it is.
    #[serde(flatten)]
    pub definition: CredentialDefinition,
    /// When it was made, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When it changed last.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub updated_at: Timestamp,
    /// When it was archived, and its secrets were removed.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

/// What a credential is, as far as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CredentialDefinition {
    /// What its owner calls it.
    pub display_name: Option<DisplayName>,
    /// What it is for.
    pub auth: CredentialAuth,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
}

/// What a credential is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CredentialAuth {
    /// A token for an MCP server, sent as it is.
    StaticBearer {
        /// The server.
        mcp_server_url: String,
    },
    /// A token that an authorisation server gave for an MCP server (OAuth 2.0, RFC 6749), and the means to get the next.
    McpOauth {
        /// The server.
        mcp_server_url: String,
        /// When the token ends; none when that is not known.
        #[serde(default, with = "crate::time::optional")]
        #[schemars(with = "Option<Timestamp>")]
        expires_at: Option<Timestamp>,
        /// How the next token is got; none when it cannot be.
        #[serde(default)]
        refresh: Option<OauthRefresh>,
    },
    /// A secret that takes the place of a variable's value in requests of the sandbox.
    EnvironmentVariable {
        /// The variable.
        secret_name: String,
        /// Which hosts get the secret.
        networking: SecretHosts,
        /// Where in a request it is put.
        injection_location: InjectionLocation,
    },
}

/// How the next token is got (RFC 6749, section 6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OauthRefresh {
    /// Who gives it.
    pub token_endpoint: String,
    /// The client that asks.
    pub client_id: String,
    /// How the client proves itself.
    pub token_endpoint_auth: TokenEndpointAuth,
    /// What is asked for.
    #[serde(default)]
    pub scope: Option<String>,
    /// What it is asked for (RFC 8707).
    #[serde(default)]
    pub resource: Option<String>,
}

/// How a client proves itself at a token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TokenEndpointAuth {
    /// Not at all.
    None,
    /// By its secret in the header `authorization` (RFC 6749, section 2.3.1).
    ClientSecretBasic,
    /// By its secret in the body.
    ClientSecretPost,
}

/// Which hosts get a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SecretHosts {
    /// Each one that the environment lets the sandbox reach.
    Unrestricted,
    /// These only.
    Limited {
        /// Host names, `*.` and one for all below it, or IPv4 addresses.
        allowed_hosts: Vec<String>,
    },
}

/// Where in a request a secret is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the words say it")]
pub struct InjectionLocation {
    pub header: bool,
    pub body: bool,
}

/// The answer to the deletion of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "vault_deleted")]
#[schemars(rename = "DeletedVault", transform = crate::schema::typed("vault_deleted"))]
pub struct DeletedVault {
    /// Its id.
    pub id: VaultId,
}

/// The answer to the deletion of a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "vault_credential_deleted")]
#[schemars(rename = "DeletedVaultCredential", transform = crate::schema::typed("vault_credential_deleted"))]
pub struct DeletedCredential {
    /// Its id.
    pub id: CredentialId,
}

/// What became of the attempt to use a credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "vault_credential_validation")]
#[schemars(rename = "VaultCredentialValidation", transform = crate::schema::typed("vault_credential_validation"))]
pub struct CredentialValidation {
    /// The credential.
    pub credential_id: CredentialId,
    /// Its vault.
    pub vault_id: VaultId,
    /// What is to be thought of it.
    pub status: ValidationStatus,
    /// Whether it has a token to get the next one with.
    pub has_refresh_token: bool,
    /// When it was tried, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub validated_at: Timestamp,
    /// The step at the MCP server that failed; none when none did.
    pub mcp_probe: Option<McpProbe>,
    /// What became of the attempt to get the next token; none when there was none.
    pub refresh: Option<RefreshAttempt>,
}

/// What is to be thought of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationStatus {
    /// The server takes it.
    Valid,
    /// The server refuses it.
    Invalid,
    /// The server could not be asked.
    Unknown,
}

/// A step at an MCP server that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct McpProbe {
    /// The method, such as `initialize`.
    pub method: String,
    /// The answer; none when there was none.
    pub http_response: Option<ProbedResponse>,
}

/// An attempt to get the next token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefreshAttempt {
    /// How it went.
    pub status: RefreshStatus,
    /// The answer, where it was a refusal.
    pub http_response: Option<ProbedResponse>,
}

/// How an attempt to get the next token went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshStatus {
    /// There is a new token.
    Succeeded,
    /// The endpoint refused.
    Failed,
    /// The endpoint could not be reached.
    ConnectError,
    /// There was nothing to get one with.
    NoRefreshToken,
}

/// An answer of a server that was tried, with everything secret taken out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbedResponse {
    /// The HTTP status.
    pub status_code: u16,
    /// The header `content-type`; empty when there was none.
    pub content_type: String,
    /// The body, or its beginning.
    pub body: String,
    /// Whether it is only the beginning.
    pub body_truncated: bool,
}

impl CredentialAuth {
    /// The `type` on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::StaticBearer { .. } => "static_bearer",
            Self::McpOauth { .. } => "mcp_oauth",
            Self::EnvironmentVariable { .. } => "environment_variable",
        }
    }

    /// What it is found by, of which there is one active credential in a vault: the normalised URL of its server
    /// ([`normalized_mcp_url`]), or the name of its variable.
    pub fn place(&self) -> String {
        match self {
            Self::StaticBearer { mcp_server_url } | Self::McpOauth { mcp_server_url, .. } => {
                // What is stored was a URL when it came.
                normalized_mcp_url(mcp_server_url).unwrap_or_else(|| mcp_server_url.clone())
            }
            Self::EnvironmentVariable { secret_name, .. } => secret_name.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
