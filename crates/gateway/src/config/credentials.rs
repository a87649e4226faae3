//! With whose secret the calls of a route go on: `[[routes.NAME.credentials]]`, and the vaults that secrets live in.
//! The settings name secrets and never hold one.

mod shown;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sortie_credentials::{
    CertificateAt, ClientAuth, Command, CredentialKind, CredentialSpec, Source, TokenEndpoint, Trust, Username,
    VaultAuth, VaultSecret, VaultSpec, is_private_url,
};
use toml::Spanned;
use url::Url;

use super::{Authorization, ConfigError, RouteTls, Server, Span, Upstream};

/// Most credentials of one route.
const MAX_CREDENTIALS: usize = 64;
/// Most vaults.
const MAX_VAULTS: usize = 16;
/// Most patterns in one list.
const MAX_PATTERNS: usize = 256;
/// Longest name of a credential or vault, in bytes.
const MAX_NAME: usize = 64;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
const COMMAND_CACHE: Duration = Duration::from_secs(300);
const VAULT_REFRESH: Duration = Duration::from_secs(60);
/// Headers that a credential cannot be: they say what the message is, who sends it, or whose a session is.
const NOT_HEADERS: [&str; 11] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "last-event-id",
    "te",
    "trailer",
    "upgrade",
];
const NOT_PREFIXES: [&str; 6] = ["content-", "mcp-", "proxy-", "sortie-", "transfer-", "x-forwarded-"];

/// One of the credentials of a route, and whose calls it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteCredential {
    /// What is put on calls.
    pub spec: CredentialSpec,
    /// `callers`: subjects whose calls it is for. Default: everybody's. Here and below a pattern is a whole text, or the
    /// beginning of one followed by `*`.
    pub callers: Option<Vec<String>>,
    /// `agents`: agents whose calls it is for. Default: everybody's.
    pub agents: Option<Vec<String>>,
    /// `workspaces`: workspaces whose calls it is for. Default: everybody's.
    pub workspaces: Option<Vec<String>>,
    /// `subject`: of token exchange, what is exchanged.
    pub subject: SubjectToken,
}

/// What a token exchange says of the caller with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SubjectToken {
    /// The hub's word for the caller, as it came.
    #[default]
    Hub,
    /// What this gateway signs about the caller anew.
    Gateway {
        /// `subject_audience`: for whom. Default: the URL of the token endpoint.
        audience: String,
    },
}

/// One credential of a route. Calls get the first one that is for them; where there are some and none is, they are
/// refused.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Credential")]
pub(super) struct RawCredential {
    /// The name by which records and errors call it; unique within the route.
    name: String,
    /// Subjects whose calls it is for, such as user:ann or user:*. Default: everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    callers: Option<Vec<String>>,
    /// Agents whose calls it is for. Default: everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    agents: Option<Vec<String>>,
    /// Workspaces whose calls it is for. Default: everybody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    workspaces: Option<Vec<String>>,
    /// What it puts on calls: a header with the secret, Authorization with Bearer or Basic, or with a token by OAuth 2.0
    /// client credentials (RFC 6749) or token exchange (RFC 8693); client-certificate shows a certificate in TLS.
    kind: RawKind,
    /// Where the secret is: of oauth and token-exchange the client's, of client-certificate the private key in PEM, and
    /// with it the certificate with its chain where that is nowhere else.
    #[serde(deserialize_with = "place")]
    secret: RawSource,
    /// For header: the name of the header.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    /// For header: what is put before the secret, such as "Token ".
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// For basic: the user name.
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    /// For basic with a secret of a vault: the field that holds the user name.
    #[serde(skip_serializing_if = "Option::is_none")]
    username_field: Option<String>,
    /// For client-certificate with a file for the key: the file of the certificate, with its chain, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_file: Option<PathBuf>,
    /// For client-certificate with a secret of a vault: the field that holds the certificate, such as certificate. What
    /// the vault gives as ca_chain is sent along.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_field: Option<String>,
    /// For oauth and token-exchange: the token endpoint; https, or http within this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_url: Option<String>,
    /// For token-exchange: whose token about the caller is exchanged. hub: the one that came with the call. gateway: one
    /// that the gateway signs with the key by which it tells upstreams who is calling. Default hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<RawSubject>,
    /// For token-exchange with subject = "gateway": the audience of that token, such as the authorization server's issuer.
    /// Default: token_url.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject_audience: Option<String>,
    /// For oauth and token-exchange: the client's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    /// For oauth and token-exchange: how the client proves itself. Default client_secret_basic.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_auth: Option<RawClientAuth>,
    /// For oauth and token-exchange: the scopes that are asked for, with spaces between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    /// For oauth and token-exchange: the audience that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    audience: Option<String>,
    /// For oauth and token-exchange: the resource that is asked for (RFC 8707).
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    /// For an https token endpoint: whom to trust.
    #[serde(default, skip_serializing_if = "RawTrust::is_default")]
    tls: RawTrust,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "CredentialKind")]
enum RawKind {
    Header,
    Bearer,
    Basic,
    Oauth,
    TokenExchange,
    ClientCertificate,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "SubjectToken")]
enum RawSubject {
    Hub,
    Gateway,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ClientAuth")]
enum RawClientAuth {
    ClientSecretBasic,
    ClientSecretPost,
}

/// Where a secret is: one of file, env, command and vault.
#[derive(Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Secret")]
pub(super) struct RawSource {
    /// A file that only its owner and group may read; read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// A variable of the gateway's environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<String>,
    /// A program with its arguments, without a shell; what it prints is the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    /// For command: how long it may take. Default 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
    /// For command: how long what it printed may be used. Default 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Span>,
    /// For command: variables of the gateway's environment that it gets, beside PATH, HOME, USER, LANG, TMPDIR and
    /// XDG_RUNTIME_DIR.
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<Vec<String>>,
    /// The name of a server under vault.
    #[serde(skip_serializing_if = "Option::is_none")]
    vault: Option<String>,
    /// For vault: the path as Vault's API has it, such as secret/data/wiki or database/creds/reader.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// For vault: the field that holds the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// For vault: how often a secret without a lease is looked at again. Default 1m.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh: Option<Span>,
    /// For vault and client-certificate: what is written to the path to have a certificate made, such as { common_name =
    /// "agents.corp.example", ttl = "24h" } for pki/issue/agents. Another is made when two thirds of its life have passed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    parameters: BTreeMap<String, String>,
}

/// Reads where a secret is. Whoever has written the secret itself is told so without it: errors end in logs.
pub(super) fn place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RawSource, D::Error> {
    struct Place;

    impl<'de> Visitor<'de> for Place {
        type Value = RawSource;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(
                "the place of a secret, such as { file = \"wiki.token\" }, since no secret is written into this file",
            )
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawSource, A::Error> {
            RawSource::deserialize(MapAccessDeserializer::new(map))
        }

        fn visit_str<E: de::Error>(self, _: &str) -> Result<RawSource, E> {
            Err(E::invalid_type(Unexpected::Other("text"), &self))
        }

        fn visit_i64<E: de::Error>(self, _: i64) -> Result<RawSource, E> {
            Err(E::invalid_type(Unexpected::Other("number"), &self))
        }
    }

    deserializer.deserialize_any(Place)
}

fn maybe_place<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RawSource>, D::Error> {
    place(deserializer).map(Some)
}

/// Whom to trust.
#[derive(Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Trust")]
struct RawTrust {
    /// CA certificates (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted, too.
    #[serde(default)]
    include_system_cas: bool,
}

/// A server of HashiCorp Vault or OpenBao.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Vault")]
pub(super) struct RawVault {
    /// Where it is, https://host:port; http within this machine.
    address: String,
    /// The namespace of all requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// Where the token is that is used; instead of an AppRole.
    #[serde(default, deserialize_with = "maybe_place", skip_serializing_if = "Option::is_none")]
    token: Option<RawSource>,
    /// The AppRole that is logged in with.
    #[serde(skip_serializing_if = "Option::is_none")]
    approle: Option<RawAppRole>,
    /// For https: whom to trust.
    #[serde(default, skip_serializing_if = "RawTrust::is_default")]
    tls: RawTrust,
}

#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AppRole")]
struct RawAppRole {
    /// The role's id.
    role_id: String,
    /// Where the secret id is.
    #[serde(deserialize_with = "place")]
    secret_id: RawSource,
    /// Where the method is mounted.
    #[serde(default = "default_mount")]
    mount: String,
}

fn default_mount() -> String {
    "approle".to_owned()
}

/// What is wrong: a setting below the one at hand (empty for that one itself), and why.
pub(super) type Wrong = (String, String);

fn wrong<T>(setting: &str, reason: impl Into<String>) -> Result<T, Wrong> {
    Err((setting.to_owned(), reason.into()))
}

/// The credentials of a route. Places are those of single ones, from 0.
pub(super) fn check_all(
    raw: Vec<Spanned<RawCredential>>,
    authorization: Authorization,
    (upstream, tls): (&Upstream, &RouteTls),
    vaults: &BTreeMap<String, Spanned<RawVault>>,
    base: &Path,
) -> Result<Vec<RouteCredential>, (std::ops::Range<usize>, String, String)> {
    let mut checked: Vec<RouteCredential> = Vec::with_capacity(raw.len());
    for (number, raw) in raw.into_iter().enumerate() {
        let at = raw.span();
        let at = |(setting, reason): Wrong| (at.clone(), format!("credentials.{number}{}", dotted(&setting)), reason);
        if number >= MAX_CREDENTIALS {
            return Err(at((String::new(), format!("a route has at most {MAX_CREDENTIALS}"))));
        }
        let credential = raw.into_inner().check(vaults, base).map_err(at)?;
        let name = &credential.spec.name;
        if checked.iter().any(|other| other.spec.name == *name) {
            return Err(at(("name".to_owned(), format!("there are two credentials `{name}`; give one another name"))));
        }
        if let Some(all) = checked.iter().find(|other| other.is_for_all()) {
            let reason =
                format!("it is never used, since `{}` before it is for every call; put it first", all.spec.name);
            return Err(at((String::new(), reason)));
        }
        if matches!(credential.spec.kind, CredentialKind::ClientCertificate { .. }) {
            check_tls(upstream, tls).or_else(|reason| wrong("kind", reason)).map_err(at)?;
        }
        if authorization == Authorization::Forward && credential.spec.header() == Some(&http::header::AUTHORIZATION) {
            let reason = "the upstream cannot get both the caller's Authorization and this one; remove authorization = \
                          \"forward\", or use kind = \"header\" with another header";
            return Err(at(("kind".to_owned(), reason.to_owned())));
        }
        checked.push(credential);
    }
    Ok(checked)
}

/// Whether a caller's certificate can be shown to this upstream.
fn check_tls(upstream: &Upstream, tls: &RouteTls) -> Result<(), String> {
    if let Upstream::Servers(servers) = upstream
        && let Some(plain) = servers.iter().find(|server| !Server::tls(server))
    {
        return Err(format!(
            "a certificate is shown in TLS, which `{plain}` does not speak; dial it by https://, or use another kind"
        ));
    }
    if tls.client.is_some() {
        let reason = "a connection shows one certificate, and all calls of this route show that of                       tls.client_cert_file; remove it, or this credential";
        return Err(reason.to_owned());
    }
    Ok(())
}

/// The vaults of the settings.
pub(super) fn check_vaults(
    raw: BTreeMap<String, Spanned<RawVault>>,
    source: &super::Source<'_>,
    base: &Path,
) -> Result<BTreeMap<String, VaultSpec>, ConfigError> {
    let mut vaults = BTreeMap::new();
    for (name, vault) in raw {
        let (at, checked) = (vault.span(), vault.into_inner().check(&name, base));
        let wrong = |(setting, reason): (String, String)| {
            let field = format!("vault.{name}.{setting}");
            source.wrong(Some(at.clone()), field.trim_end_matches('.'), reason)
        };
        if vaults.len() >= MAX_VAULTS {
            return Err(wrong((String::new(), format!("there are more than {}", MAX_VAULTS))));
        }
        vaults.insert(name.clone(), checked.map_err(wrong)?);
    }
    Ok(vaults)
}

pub(super) fn dotted(setting: &str) -> String {
    if setting.is_empty() { String::new() } else { format!(".{setting}") }
}

impl RouteCredential {
    /// Whether it is for every call.
    pub(crate) fn is_for_all(&self) -> bool {
        self.callers.is_none() && self.agents.is_none() && self.workspaces.is_none()
    }
}

impl RawCredential {
    fn check(self, vaults: &BTreeMap<String, Spanned<RawVault>>, base: &Path) -> Result<RouteCredential, Wrong> {
        check_name(&self.name).or_else(|reason| wrong("name", reason))?;
        for (setting, patterns) in
            [("callers", &self.callers), ("agents", &self.agents), ("workspaces", &self.workspaces)]
        {
            check_patterns(patterns.as_deref()).or_else(|reason| wrong(setting, reason))?;
        }
        self.check_fitting()?;
        let within = |(setting, reason): Wrong| (format!("secret{}", dotted(&setting)), reason);
        let secret = self.secret.clone().check(base).map_err(within)?;
        if let Source::Vault(VaultSecret { server, .. }) = &secret
            && !vaults.contains_key(server)
        {
            return wrong(
                "secret.vault",
                format!("there is no vault `{server}`; add [vault.{server}] with its address"),
            );
        }
        let kind = match self.kind {
            RawKind::Header => {
                let name = self.header.as_deref().unwrap_or_default();
                let header = check_header(name).or_else(|reason| wrong("header", reason))?;
                let prefix = self.prefix.clone().unwrap_or_default();
                if !prefix.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                    return wrong("prefix", "it has characters that no header can have");
                }
                CredentialKind::Header { header, prefix, secret }
            }
            RawKind::Bearer => CredentialKind::Bearer { secret },
            RawKind::Basic => CredentialKind::Basic { username: self.check_username(&secret)?, secret },
            RawKind::Oauth => CredentialKind::ClientCredentials { endpoint: self.check_endpoint(base)?, secret },
            RawKind::TokenExchange => CredentialKind::TokenExchange { endpoint: self.check_endpoint(base)?, secret },
            RawKind::ClientCertificate => {
                CredentialKind::ClientCertificate { certificate: self.check_certificate(&secret, base)?, secret }
            }
        };
        let subject = self.check_subject(&kind)?;
        let Self { name, callers, agents, workspaces, .. } = self;
        Ok(RouteCredential { spec: CredentialSpec { name, kind }, callers, agents, workspaces, subject })
    }

    /// Whether each setting is one of this kind.
    fn check_fitting(&self) -> Result<(), Wrong> {
        let token = matches!(self.kind, RawKind::Oauth | RawKind::TokenExchange);
        let (header, basic) = (self.kind == RawKind::Header, self.kind == RawKind::Basic);
        let (certificate, exchange) = (self.kind == RawKind::ClientCertificate, self.kind == RawKind::TokenExchange);
        for (setting, set, fits, kinds) in [
            ("header", self.header.is_some(), header, "header"),
            ("prefix", self.prefix.is_some(), header, "header"),
            ("username", self.username.is_some(), basic, "basic"),
            ("username_field", self.username_field.is_some(), basic, "basic"),
            ("subject", self.subject.is_some(), exchange, "token-exchange"),
            ("subject_audience", self.subject_audience.is_some(), exchange, "token-exchange"),
            ("certificate_file", self.certificate_file.is_some(), certificate, "client-certificate"),
            ("certificate_field", self.certificate_field.is_some(), certificate, "client-certificate"),
            ("secret.parameters", !self.secret.parameters.is_empty(), certificate, "client-certificate"),
            ("token_url", self.token_url.is_some(), token, "oauth and token-exchange"),
            ("client_id", self.client_id.is_some(), token, "oauth and token-exchange"),
            ("client_auth", self.client_auth.is_some(), token, "oauth and token-exchange"),
            ("scope", self.scope.is_some(), token, "oauth and token-exchange"),
            ("audience", self.audience.is_some(), token, "oauth and token-exchange"),
            ("resource", self.resource.is_some(), token, "oauth and token-exchange"),
            ("tls", !self.tls.is_default(), token, "oauth and token-exchange"),
        ] {
            if set && !fits {
                return wrong(setting, format!("this is for credentials of kind {kinds}; remove it"));
            }
        }
        Ok(())
    }

    fn check_username(&self, secret: &Source) -> Result<Username, Wrong> {
        match (&self.username, &self.username_field) {
            (Some(name), None) if name.contains(':') => {
                wrong("username", "a user name of Basic has no colon (RFC 7617)")
            }
            (Some(name), None) => Ok(Username::Is(name.clone())),
            (None, Some(field)) if matches!(secret, Source::Vault(_)) => Ok(Username::Field(field.clone())),
            (None, Some(_)) => wrong("username_field", "only a vault has fields; set username"),
            _ => wrong("username", "a credential of kind basic needs one of username and username_field"),
        }
    }

    fn check_subject(&self, kind: &CredentialKind) -> Result<SubjectToken, Wrong> {
        match (self.subject, &self.subject_audience, kind) {
            (Some(RawSubject::Gateway), audience, CredentialKind::TokenExchange { endpoint, .. }) => {
                let audience = audience.clone().unwrap_or_else(|| endpoint.url.to_string());
                match audience.is_empty() {
                    true => wrong("subject_audience", "an audience is not empty; without it, it is token_url"),
                    false => Ok(SubjectToken::Gateway { audience }),
                }
            }
            (_, Some(_), _) => wrong("subject_audience", "this is for subject = \"gateway\"; remove it, or set that"),
            _ => Ok(SubjectToken::Hub),
        }
    }

    fn check_certificate(&self, secret: &Source, base: &Path) -> Result<CertificateAt, Wrong> {
        match (&self.certificate_file, &self.certificate_field) {
            (None, None) => Ok(CertificateAt::WithKey),
            (Some(file), None) if matches!(secret, Source::File(_)) => Ok(CertificateAt::File(base.join(file))),
            (None, Some(field)) if matches!(secret, Source::Vault(_)) => Ok(CertificateAt::Field(field.clone())),
            (Some(_), _) => wrong(
                "certificate_file",
                "only a key in a file has its certificate in another; put both into the secret, the certificate first",
            ),
            (None, Some(_)) => {
                wrong("certificate_field", "only a vault has fields; put both into the secret, the certificate first")
            }
        }
    }

    fn check_endpoint(&self, base: &Path) -> Result<TokenEndpoint, Wrong> {
        let missing = |setting: &str| (setting.to_owned(), "a credential of this kind needs it".to_owned());
        let url = self.token_url.as_deref().ok_or_else(|| missing("token_url"))?;
        let trust = self.tls.check(base);
        Ok(TokenEndpoint {
            url: check_url(url, &trust).or_else(|reason| wrong("token_url", reason))?,
            client_id: self.client_id.clone().ok_or_else(|| missing("client_id"))?,
            client_auth: match self.client_auth {
                Some(RawClientAuth::ClientSecretPost) => ClientAuth::Post,
                _ => ClientAuth::Basic,
            },
            scope: self.scope.clone(),
            audience: self.audience.clone(),
            resource: self.resource.clone(),
            trust,
        })
    }
}

impl RawSource {
    pub(super) fn check(self, base: &Path) -> Result<Source, Wrong> {
        let kinds = [
            ("file", self.file.is_some()),
            ("env", self.env.is_some()),
            ("command", self.command.is_some()),
            ("vault", self.vault.is_some()),
        ];
        let mut set = kinds.iter().filter(|(_, set)| *set).map(|(name, _)| *name);
        let (Some(kind), None) = (set.next(), set.next()) else {
            return wrong("", "a secret is at one place; set one of file, env, command and vault");
        };
        for (setting, set, of) in [
            ("timeout", self.timeout.is_some(), "command"),
            ("cache", self.cache.is_some(), "command"),
            ("environment", self.environment.is_some(), "command"),
            ("path", self.path.is_some(), "vault"),
            ("field", self.field.is_some(), "vault"),
            ("refresh", self.refresh.is_some(), "vault"),
            ("parameters", !self.parameters.is_empty(), "vault"),
        ] {
            if set && kind != of {
                return wrong(setting, format!("this is for a secret of {of}; remove it"));
            }
        }
        if let Some(file) = self.file {
            return Ok(Source::File(base.join(file)));
        }
        if let Some(name) = self.env {
            return match name.is_empty() || name.contains(['=', '\0']) {
                true => wrong("env", "it is the name of a variable, such as WIKI_TOKEN"),
                false => Ok(Source::Env(name)),
            };
        }
        if let Some(argv) = self.command {
            if argv.first().is_none_or(String::is_empty) {
                return wrong(
                    "command",
                    "it is a program with its arguments, such as [\"/usr/bin/pass\", \"show\", \"x\"]",
                );
            }
            return Ok(Source::Command(Command {
                argv,
                timeout: self.timeout.map_or(COMMAND_TIMEOUT, |span| span.0),
                cache: self.cache.map_or(COMMAND_CACHE, |span| span.0),
                environment: self.environment.unwrap_or_default(),
            }));
        }
        let path = self.path.unwrap_or_default();
        let usable = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~@+=:".contains(&byte);
            !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain)
        };
        if !path.split('/').all(usable) {
            return wrong("path", "it is a path of Vault's API without /v1/, such as secret/data/wiki");
        }
        let Some(field) = self.field.filter(|field| !field.is_empty()) else {
            return wrong("field", "a secret of a vault needs the name of the field that holds it");
        };
        let refresh = self.refresh.map_or(VAULT_REFRESH, |span| span.0);
        let (server, parameters) = (self.vault.unwrap_or_default(), self.parameters);
        Ok(Source::Vault(VaultSecret { server, path, field, refresh, parameters }))
    }
}

impl RawTrust {
    fn is_default(&self) -> bool {
        self.ca_file.is_none() && !self.include_system_cas
    }

    fn check(&self, base: &Path) -> Trust {
        let ca_file = self.ca_file.as_ref().map(|file| base.join(file));
        Trust { ca_file, include_system_cas: self.include_system_cas }
    }
}

impl RawVault {
    pub(super) fn check(self, name: &str, base: &Path) -> Result<VaultSpec, Wrong> {
        check_name(name).or_else(|reason| wrong("", reason))?;
        let trust = self.tls.check(base);
        let address = check_url(&self.address, &trust).or_else(|reason| wrong("address", reason))?;
        if let Some(namespace) = &self.namespace
            && (namespace.is_empty() || !namespace.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return wrong("namespace", "it is a path such as team-a/prod");
        }
        let within =
            |setting: &'static str| move |(inner, reason): Wrong| (format!("{setting}{}", dotted(&inner)), reason);
        let auth = match (self.token, self.approle) {
            (Some(token), None) => VaultAuth::Token(token.check(base).map_err(within("token"))?),
            (None, Some(RawAppRole { role_id, secret_id, mount })) => {
                let secret_id = secret_id.check(base).map_err(within("approle.secret_id"))?;
                VaultAuth::AppRole { mount: mount.trim_matches('/').to_owned(), role_id, secret_id }
            }
            _ => return wrong("", "it needs one of token and approle to log in with"),
        };
        let (VaultAuth::Token(source) | VaultAuth::AppRole { secret_id: source, .. }) = &auth;
        if matches!(source, Source::Vault(_)) {
            return wrong("", "what a vault is opened with cannot be in a vault; use file, env or command");
        }
        Ok(VaultSpec { name: name.to_owned(), address, namespace: self.namespace, auth, trust })
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(format!("a name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, `-`, `_` and `.`")),
    }
}

fn check_patterns(patterns: Option<&[String]>) -> Result<(), String> {
    let Some(patterns) = patterns else { return Ok(()) };
    if patterns.is_empty() || patterns.len() > MAX_PATTERNS {
        return Err(format!("a list has 1 to {MAX_PATTERNS} entries; without it the credential is for everybody"));
    }
    match patterns.iter().find(|pattern| {
        let body = pattern.strip_suffix('*').unwrap_or(pattern);
        pattern.is_empty() || body.contains('*')
    }) {
        Some(pattern) => Err(format!("`{pattern}`: a `*` stands at the end or nowhere")),
        None => Ok(()),
    }
}

pub(super) fn check_header(name: &str) -> Result<HeaderName, String> {
    if name.is_empty() {
        return Err("a credential of kind header needs the name of the header, such as X-Api-Key".to_owned());
    }
    let header: HeaderName = name.parse().map_err(|_| format!("`{name}` is no name of a header"))?;
    let own =
        NOT_HEADERS.contains(&header.as_str()) || NOT_PREFIXES.iter().any(|prefix| header.as_str().starts_with(prefix));
    if own { Err(format!("`{name}` says something else of a request; use a header of its own")) } else { Ok(header) }
}

fn check_url(text: &str, trust: &Trust) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| format!("`{text}` is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("it holds neither a user, nor a password, nor anything behind `?` or `#`".to_owned());
    }
    if !is_private_url(&url) {
        return Err(format!("`{text}`: secrets go over https://, or over http:// within this machine only"));
    }
    if url.scheme() == "https" && !trust.is_some() {
        return Err("https needs to know whom to trust; set tls.ca_file or tls.include_system_cas = true".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests;
