//! The requests that make and change vaults and credentials.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{
    CredentialAuth, CredentialDefinition, CredentialSecrets, InjectionLocation, OauthRefresh, SecretHosts, SecretText,
    TokenEndpointAuth,
};
use crate::environment::is_host;
use crate::mcp_url::check_token_endpoint;
use crate::{ApiError, DisplayName, Metadata, Patch, check_mcp_url, check_metadata, patch_metadata};

/// Longest secret, in bytes.
const MAX_SECRET: usize = 16 * 1024;
/// Longest name of a variable, of a client, and longest scope and resource, in characters.
const MAX_NAME: usize = 2048;
/// Most hosts that get a secret.
const MAX_HOSTS: usize = 16;

/// The body of `POST /v1/vaults`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVault {
    /// What to call it.
    display_name: DisplayName,
    /// At most 16 pairs.
    #[serde(default)]
    metadata: Option<Metadata>,
}

/// The body of `POST /v1/vaults/{vault_id}`. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateVault {
    /// What to call it.
    display_name: Option<DisplayName>,
    /// Pairs: a text takes the place of what was there, `null` takes it away.
    metadata: Patch<BTreeMap<String, Option<String>>>,
}

/// The body of `POST /v1/vaults/{vault_id}/credentials`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateCredential {
    /// What it is for, with its secrets.
    auth: SentAuth,
    /// What to call it.
    #[serde(default)]
    display_name: Option<DisplayName>,
    /// At most 16 pairs.
    #[serde(default)]
    metadata: Option<Metadata>,
}

/// The body of `POST /v1/vaults/{vault_id}/credentials/{credential_id}`. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateCredential {
    /// New secrets and settings, of the same type.
    auth: Option<SentAuthUpdate>,
    /// `null` clears it.
    display_name: Patch<DisplayName>,
    /// Pairs: a text takes the place of what was there, `null` takes it away.
    metadata: Patch<BTreeMap<String, Option<String>>>,
}

/// What a credential is for, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum SentAuth {
    /// A token for an MCP server, sent as it is.
    StaticBearer {
        /// The server; stays as it is.
        mcp_server_url: String,
        /// The token.
        token: SecretText,
    },
    /// A token that an authorisation server gave for an MCP server.
    McpOauth {
        /// The server; stays as it is.
        mcp_server_url: String,
        /// The token.
        access_token: SecretText,
        /// When it ends, in the future.
        #[serde(default, with = "crate::time::optional")]
        #[schemars(with = "Option<Timestamp>")]
        expires_at: Option<Timestamp>,
        /// How the next one is got.
        #[serde(default)]
        refresh: Option<SentOauthRefresh>,
    },
    /// A secret that takes the place of a variable's value in requests of the sandbox.
    EnvironmentVariable {
        /// The variable; stays as it is.
        secret_name: String,
        /// The secret.
        secret_value: SecretText,
        /// Which hosts get it.
        networking: SentHosts,
        /// Where in a request it is put: header and body, when left out.
        #[serde(default)]
        injection_location: Patch<SentInjection>,
    },
}

/// How the next token is got, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SentOauthRefresh {
    /// Who gives it, by https; stays as it is.
    token_endpoint: String,
    /// The client that asks; stays as it is.
    client_id: String,
    /// What the next token is got with.
    refresh_token: SecretText,
    /// How the client proves itself.
    token_endpoint_auth: SentTokenEndpointAuth,
    /// What is asked for.
    #[serde(default)]
    scope: Option<String>,
    /// What it is asked for (RFC 8707).
    #[serde(default)]
    resource: Option<String>,
}

/// How a client proves itself, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum SentTokenEndpointAuth {
    None {},
    ClientSecretBasic { client_secret: SecretText },
    ClientSecretPost { client_secret: SecretText },
}

/// Which hosts get a secret, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum SentHosts {
    /// Each one that the environment lets the sandbox reach.
    Unrestricted {},
    /// These only.
    Limited {
        /// 1 to 16 host names, `*.` and one for all below it, or IPv4 addresses.
        allowed_hosts: Vec<String>,
    },
}

/// Where in a request a secret is put, as it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SentInjection {
    header: Option<bool>,
    body: Option<bool>,
}

/// What is shown of a refresh, its token, and the secret of its client.
type Refreshed = (Option<OauthRefresh>, Option<SecretText>, Option<SecretText>);

/// New secrets and settings of a credential, as they are sent.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and not for long")]
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum SentAuthUpdate {
    /// Of `static_bearer`.
    StaticBearer {
        /// A new token.
        #[serde(default)]
        token: Option<SecretText>,
        /// Cannot be changed.
        #[serde(default)]
        mcp_server_url: Option<Value>,
    },
    /// Of `mcp_oauth`.
    McpOauth {
        /// A new token.
        #[serde(default)]
        access_token: Option<SecretText>,
        /// When the token ends; `null` when that is not known.
        #[serde(default)]
        #[schemars(with = "Option<Timestamp>")]
        expires_at: Patch<String>,
        /// New secrets and settings of the refresh.
        #[serde(default)]
        refresh: Option<SentOauthRefreshUpdate>,
        /// Cannot be changed.
        #[serde(default)]
        mcp_server_url: Option<Value>,
    },
    /// Of `environment_variable`.
    EnvironmentVariable {
        /// A new secret.
        #[serde(default)]
        secret_value: Option<SecretText>,
        /// Which hosts get it, in place of those before.
        #[serde(default)]
        networking: Option<SentHosts>,
        /// Where in a request it is put; what is left out stays.
        #[serde(default)]
        injection_location: Option<SentInjection>,
        /// Cannot be changed.
        #[serde(default)]
        secret_name: Option<Value>,
    },
}

/// New secrets and settings of a refresh, as they are sent.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct SentOauthRefreshUpdate {
    /// A new refresh token.
    refresh_token: Option<SecretText>,
    /// What is asked for; an empty text clears it.
    scope: Option<String>,
    /// A new secret of the client.
    token_endpoint_auth: Option<SentTokenEndpointAuthUpdate>,
    /// Cannot be changed.
    token_endpoint: Option<Value>,
    /// Cannot be changed.
    client_id: Option<Value>,
    /// Cannot be changed.
    resource: Option<Value>,
}

/// A new secret of a client, as it is sent. The way to send it stays as it is, whichever is named.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum SentTokenEndpointAuthUpdate {
    ClientSecretBasic {
        #[serde(default)]
        client_secret: Option<SecretText>,
    },
    ClientSecretPost {
        #[serde(default)]
        client_secret: Option<SecretText>,
    },
}

impl CreateVault {
    /// Name and metadata of the new vault.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule.
    pub fn define(self) -> Result<(DisplayName, Metadata), ApiError> {
        Ok((self.display_name, check_metadata(self.metadata.unwrap_or_default())?))
    }
}

impl UpdateVault {
    /// Name and metadata after this.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule.
    pub fn apply(self, name: DisplayName, metadata: Metadata) -> Result<(DisplayName, Metadata), ApiError> {
        Ok((self.display_name.unwrap_or(name), patch_metadata(metadata, self.metadata)?))
    }
}

impl CreateCredential {
    /// What the new credential is, and its secrets. Whether its server takes them is seen when they are used.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule; the words hold no secret.
    pub fn define(self, now: Timestamp) -> Result<(CredentialDefinition, CredentialSecrets), ApiError> {
        let (auth, secrets) = match self.auth {
            SentAuth::StaticBearer { mcp_server_url, token } => {
                check_mcp_url("auth.mcp_server_url", &mcp_server_url)?;
                check_bearer("auth.token", &token)?;
                (CredentialAuth::StaticBearer { mcp_server_url }, CredentialSecrets::Bearer { token })
            }
            SentAuth::McpOauth { mcp_server_url, access_token, expires_at, refresh } => {
                check_mcp_url("auth.mcp_server_url", &mcp_server_url)?;
                check_bearer("auth.access_token", &access_token)?;
                check_future(expires_at, now)?;
                let (refresh, refresh_token, client_secret) = match refresh {
                    Some(refresh) => refresh.define()?,
                    None => (None, None, None),
                };
                let auth = CredentialAuth::McpOauth { mcp_server_url, expires_at, refresh };
                (auth, CredentialSecrets::Oauth { access_token, refresh_token, client_secret })
            }
            SentAuth::EnvironmentVariable { secret_name, secret_value, networking, injection_location } => {
                check_variable(&secret_name)?;
                check_secret("auth.secret_value", &secret_value)?;
                let injection_location = injection(injection_location)?;
                let networking = hosts(networking)?;
                let auth = CredentialAuth::EnvironmentVariable { secret_name, networking, injection_location };
                (auth, CredentialSecrets::Variable { value: secret_value })
            }
        };
        let metadata = check_metadata(self.metadata.unwrap_or_default())?;
        Ok((CredentialDefinition { display_name: self.display_name, auth, metadata }, secrets))
    }
}

impl UpdateCredential {
    /// What the credential is after this, and its secrets.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule; the words hold no secret.
    pub fn apply(
        self,
        before: CredentialDefinition,
        secrets: CredentialSecrets,
        now: Timestamp,
    ) -> Result<(CredentialDefinition, CredentialSecrets), ApiError> {
        let (auth, secrets) = match self.auth {
            Some(auth) => auth.apply(before.auth, secrets, now)?,
            None => (before.auth, secrets),
        };
        let display_name = self.display_name.or(before.display_name);
        let metadata = patch_metadata(before.metadata, self.metadata)?;
        Ok((CredentialDefinition { display_name, auth, metadata }, secrets))
    }
}

impl SentOauthRefresh {
    fn define(self) -> Result<Refreshed, ApiError> {
        let Self { token_endpoint, client_id, refresh_token, token_endpoint_auth, scope, resource } = self;
        check_token_endpoint("auth.refresh.token_endpoint", &token_endpoint)?;
        check_text("auth.refresh.client_id", Some(&client_id))?;
        check_text("auth.refresh.scope", scope.as_deref())?;
        check_text("auth.refresh.resource", resource.as_deref())?;
        check_secret("auth.refresh.refresh_token", &refresh_token)?;
        let (token_endpoint_auth, client_secret) = match token_endpoint_auth {
            SentTokenEndpointAuth::None {} => (TokenEndpointAuth::None, None),
            SentTokenEndpointAuth::ClientSecretBasic { client_secret } => {
                (TokenEndpointAuth::ClientSecretBasic, Some(client_secret))
            }
            SentTokenEndpointAuth::ClientSecretPost { client_secret } => {
                (TokenEndpointAuth::ClientSecretPost, Some(client_secret))
            }
        };
        if let Some(secret) = &client_secret {
            check_secret("auth.refresh.token_endpoint_auth.client_secret", secret)?;
        }
        let refresh = OauthRefresh { token_endpoint, client_id, token_endpoint_auth, scope, resource };
        Ok((Some(refresh), Some(refresh_token), client_secret))
    }
}

impl SentAuthUpdate {
    fn apply(
        self,
        before: CredentialAuth,
        secrets: CredentialSecrets,
        now: Timestamp,
    ) -> Result<(CredentialAuth, CredentialSecrets), ApiError> {
        match (self, before, secrets) {
            (
                Self::StaticBearer { token, mcp_server_url },
                auth @ CredentialAuth::StaticBearer { .. },
                CredentialSecrets::Bearer { token: earlier },
            ) => {
                stays("auth.mcp_server_url", mcp_server_url.as_ref())?;
                let token = token.unwrap_or(earlier);
                check_bearer("auth.token", &token)?;
                Ok((auth, CredentialSecrets::Bearer { token }))
            }
            (
                Self::McpOauth { access_token: new, expires_at: end, refresh: update, mcp_server_url: url },
                CredentialAuth::McpOauth { mcp_server_url, expires_at, refresh },
                CredentialSecrets::Oauth { access_token, refresh_token, client_secret },
            ) => {
                stays("auth.mcp_server_url", url.as_ref())?;
                let access_token = new.unwrap_or(access_token);
                check_bearer("auth.access_token", &access_token)?;
                let end = end.try_map(|text| moment(&text))?;
                if let Patch::Set(end) = end {
                    check_future(Some(end), now)?;
                }
                let (refresh, refresh_token, client_secret) = match update {
                    Some(update) => update.apply(refresh, refresh_token, client_secret)?,
                    None => (refresh, refresh_token, client_secret),
                };
                let auth = CredentialAuth::McpOauth { mcp_server_url, expires_at: end.or(expires_at), refresh };
                Ok((auth, CredentialSecrets::Oauth { access_token, refresh_token, client_secret }))
            }
            (
                Self::EnvironmentVariable {
                    secret_value,
                    networking: reach,
                    injection_location: put,
                    secret_name: name,
                },
                CredentialAuth::EnvironmentVariable { secret_name, networking, injection_location },
                CredentialSecrets::Variable { value },
            ) => {
                stays("auth.secret_name", name.as_ref())?;
                let value = secret_value.unwrap_or(value);
                check_secret("auth.secret_value", &value)?;
                let networking = reach.map_or(Ok(networking), hosts)?;
                let put = put.unwrap_or_default();
                let injection_location = injected(InjectionLocation {
                    header: put.header.unwrap_or(injection_location.header),
                    body: put.body.unwrap_or(injection_location.body),
                })?;
                let auth = CredentialAuth::EnvironmentVariable { secret_name, networking, injection_location };
                Ok((auth, CredentialSecrets::Variable { value }))
            }
            (_, before, _) => {
                let kind = before.kind();
                Err(ApiError::invalid_request(format!("auth.type: stays {kind}; make another credential instead")))
            }
        }
    }
}

impl SentOauthRefreshUpdate {
    fn apply(
        self,
        before: Option<OauthRefresh>,
        refresh_token: Option<SecretText>,
        client_secret: Option<SecretText>,
    ) -> Result<Refreshed, ApiError> {
        let Some(before) = before else {
            let reason = "auth.refresh: the credential was made without one; make another credential instead";
            return Err(ApiError::invalid_request(reason));
        };
        for (member, sent) in
            [("token_endpoint", &self.token_endpoint), ("client_id", &self.client_id), ("resource", &self.resource)]
        {
            stays(&format!("auth.refresh.{member}"), sent.as_ref())?;
        }
        let refresh_token = self.refresh_token.or(refresh_token);
        if let Some(token) = &refresh_token {
            check_secret("auth.refresh.refresh_token", token)?;
        }
        check_text("auth.refresh.scope", self.scope.as_deref().filter(|scope| !scope.is_empty()))?;
        let scope = match self.scope {
            Some(scope) => Some(scope).filter(|scope| !scope.is_empty()),
            None => before.scope,
        };
        let client_secret = match self.token_endpoint_auth {
            None => client_secret,
            Some(_) if before.token_endpoint_auth == TokenEndpointAuth::None => {
                let reason = "the credential's client has no secret; make another credential instead";
                return Err(ApiError::invalid_request(format!("auth.refresh.token_endpoint_auth: {reason}")));
            }
            Some(
                SentTokenEndpointAuthUpdate::ClientSecretBasic { client_secret: new }
                | SentTokenEndpointAuthUpdate::ClientSecretPost { client_secret: new },
            ) => new.or(client_secret),
        };
        if let Some(secret) = &client_secret {
            check_secret("auth.refresh.token_endpoint_auth.client_secret", secret)?;
        }
        Ok((Some(OauthRefresh { scope, ..before }), refresh_token, client_secret))
    }
}

fn refused<T>(reason: String) -> Result<T, ApiError> {
    Err(ApiError::invalid_request(reason))
}

fn stays(member: &str, sent: Option<&Value>) -> Result<(), ApiError> {
    match sent {
        None => Ok(()),
        Some(_) => refused(format!("{member}: cannot be changed; make another credential instead")),
    }
}

fn check_secret(member: &str, secret: &SecretText) -> Result<(), ApiError> {
    let length = secret.expose().len();
    if !(1..=MAX_SECRET).contains(&length) {
        return refused(format!("{member}: {length} bytes; 1 to {MAX_SECRET} are possible"));
    }
    Ok(())
}

/// A token that goes into the header `authorization` after `Bearer` (RFC 6750, section 2.1).
fn check_bearer(member: &str, secret: &SecretText) -> Result<(), ApiError> {
    check_secret(member, secret)?;
    if secret.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    refused(format!("{member}: must be visible ASCII without spaces, as it goes into a header; leave `Bearer` out"))
}

fn check_text(member: &str, text: Option<&str>) -> Result<(), ApiError> {
    let Some(text) = text else { return Ok(()) };
    let length = text.chars().count();
    if !(1..=MAX_NAME).contains(&length) || text.chars().any(char::is_control) {
        return refused(format!("{member}: must have 1 to {MAX_NAME} characters, none of them for control"));
    }
    Ok(())
}

fn check_variable(name: &str) -> Result<(), ApiError> {
    let begins = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins && plain && name.len() <= 255 {
        return Ok(());
    }
    refused("auth.secret_name: must be a variable's name: 1 to 255 letters, digits and `_`, no digit first".to_owned())
}

fn check_future(expires_at: Option<Timestamp>, now: Timestamp) -> Result<(), ApiError> {
    match expires_at {
        Some(end) if end <= now => refused(format!("auth.expires_at: must be in the future, and {end} is not")),
        _ => Ok(()),
    }
}

fn moment(text: &str) -> Result<Timestamp, ApiError> {
    let parsed = text.parse().map(crate::time::whole_seconds);
    parsed.map_err(|_| ApiError::invalid_request("auth.expires_at: must be an RFC 3339 timestamp"))
}

fn hosts(sent: SentHosts) -> Result<SecretHosts, ApiError> {
    let SentHosts::Limited { allowed_hosts } = sent else { return Ok(SecretHosts::Unrestricted) };
    let member = "auth.networking.allowed_hosts";
    if !(1..=MAX_HOSTS).contains(&allowed_hosts.len()) {
        return refused(format!("{member}: {} hosts; 1 to {MAX_HOSTS} are possible", allowed_hosts.len()));
    }
    if !allowed_hosts.iter().all(|host| is_host(host)) {
        return refused(format!(
            "{member}: each is a host name, such as api.example.com or *.example.com, or an IPv4 address"
        ));
    }
    Ok(SecretHosts::Limited { allowed_hosts })
}

fn injection(sent: Patch<SentInjection>) -> Result<InjectionLocation, ApiError> {
    let set = |at: Option<bool>| at.unwrap_or(false);
    injected(match sent {
        Patch::Keep => InjectionLocation { header: true, body: true },
        Patch::Clear => InjectionLocation { header: false, body: false },
        Patch::Set(sent) => InjectionLocation { header: set(sent.header), body: set(sent.body) },
    })
}

fn injected(location: InjectionLocation) -> Result<InjectionLocation, ApiError> {
    if location.header || location.body {
        return Ok(location);
    }
    refused("auth.injection_location: header, body or both must be on".to_owned())
}
