//! `[[issuers]]`: whose tokens prove a caller to this gateway, beside the hub's word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use http::header::{AUTHORIZATION, HOST};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_api::HEADER_PREFIX;
use sortie_identity::{Algorithm, Field, IssuerRules};
use sortie_ids::RouteName;
use toml::Spanned;
use url::Url;

use super::{ConfigError, RouteConfig, Source, Span, Trust};
use sortie_link::protos::RouteMode;

/// Most issuers.
const MAX_ISSUERS: usize = 32;
/// Largest difference of clocks that may be allowed for.
const MAX_LEEWAY: Duration = Duration::from_secs(60);
/// Difference of clocks that is allowed for where nothing is said.
const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);
/// Longest life of a token where nothing is said.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// An issuer whose tokens prove a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct IssuerConfig {
    /// `issuer`, `algorithms`, `required_claims`, `subject`, `subject_prefix`, `callers`, `identity`, `claims`, `leeway`
    /// and `max_lifetime`: what its tokens have to say, and what is made of that.
    pub rules: IssuerRules,
    /// `jwks_url`, `jwks_file` or `discovery_url`: where its keys are. Default: discovery at the issuer's own URL.
    pub keys: KeysAt,
    /// `header`: where its tokens come. Default `authorization`.
    pub header: HeaderName,
    /// `prefix`: what stands before the token there. Default `Bearer`.
    pub prefix: String,
    /// `audiences`: whom its tokens may be for. Default: the route's hostname, or a URL on it.
    pub audiences: Vec<String>,
    /// `routes`: where its tokens count. Default: every terminated route.
    pub routes: Option<Vec<RouteName>>,
    /// `ca_file` and `include_system_cas`: whom to trust when its keys are fetched. Default: `[upstream.tls]`.
    pub trust: Option<Trust>,
    /// `allowed_ips`: addresses that its keys may be fetched from. Default: `upstream.allowed_ips`.
    pub allowed_ips: Option<Vec<IpNet>>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysAt {
    /// A key set at this URL.
    Jwks(Url),
    /// A key set in this file, which is read again when it has changed.
    File(PathBuf),
    /// A document at this URL says where (OpenID Connect Discovery 1.0, section 4).
    Discovery(Url),
}

impl IssuerConfig {
    /// Whether its tokens count on this route.
    pub fn covers(&self, route: &RouteName) -> bool {
        self.routes.as_ref().is_none_or(|routes| routes.contains(route))
    }
}

/// An issuer whose tokens prove a caller to this gateway.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Issuer")]
pub(super) struct RawIssuer {
    /// Its name: what its tokens say in `iss`, letter for letter.
    #[schemars(with = "String")]
    issuer: Spanned<String>,
    /// Where its key set is fetched, https://HOST/PATH. At most one of this, jwks_file and discovery_url; without any, its
    /// name has to be a URL, and discovery is asked at ISSUER/.well-known/openid-configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    jwks_url: Option<Spanned<String>>,
    /// A file with its key set.
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks_file: Option<PathBuf>,
    /// Where its discovery document is, when that is not below its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    discovery_url: Option<Spanned<String>>,
    /// The algorithms that are taken. Default: all three.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<AlgorithmName>>")]
    algorithms: Option<Spanned<Vec<Algorithm>>>,
    /// The header that its tokens come in. Default: authorization.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    header: Option<Spanned<String>>,
    /// What stands before the token in the header; may be empty. Default: Bearer.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// Whom its tokens may be for. Default: the route's hostname, and every https URL on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    audiences: Option<Spanned<Vec<String>>>,
    /// What its tokens have to have: a claim and the values of which it must have one; any value does for an empty list.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    required_claims: BTreeMap<String, OneOrMore>,
    /// What the caller is called: a text with claims in braces. Default: {sub}.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    subject: Option<Spanned<String>>,
    /// What the caller's name has to begin with.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    subject_prefix: String,
    /// The only callers that it may speak for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    callers: Vec<String>,
    /// Which claims say what else is known of the caller.
    #[serde(default)]
    identity: RawIdentityClaims,
    /// What policies see, by name, and the claims that say it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    claims: BTreeMap<String, String>,
    /// How far its clock may be off, at most 60s. Default: 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Span>")]
    leeway: Option<Spanned<Span>>,
    /// Longest life of a token, at most 24h. Default: 1h.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Span>")]
    max_lifetime: Option<Spanned<Span>>,
    /// The routes that its tokens count on. Default: every terminated route.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    routes: Option<Spanned<Vec<RouteName>>>,
    /// CA certificates (PEM) to trust when its keys are fetched. Where this or include_system_cas is set, upstream.tls does
    /// not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted when its keys are fetched.
    #[serde(default)]
    include_system_cas: bool,
    /// Address ranges or single addresses that its keys may be fetched from. Default: those of upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    allowed_ips: Option<Vec<Spanned<String>>>,
}

/// How tokens are signed.
#[derive(JsonSchema)]
#[schemars(rename = "Algorithm", extend("enum" = ["RS256", "ES256", "EdDSA"]))]
struct AlgorithmName(#[expect(dead_code, reason = "describes the type to the schema")] String);

#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "IdentityClaims")]
struct RawIdentityClaims {
    /// The claim with the person that the caller acts for.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// The claim with the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    /// The claim with the version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_version: Option<String>,
    /// The claim with the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// The claim with the use of a tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_use: Option<String>,
    /// The claim with the region.
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,
}

/// All issuers. `trusts`: whether `[upstream.tls]` trusts anybody.
pub(super) fn check(
    raw: Vec<RawIssuer>,
    source: &Source<'_>,
    base: &Path,
    routes: &BTreeMap<RouteName, RouteConfig>,
    trusts: bool,
) -> Result<Vec<IssuerConfig>, ConfigError> {
    let mut issuers: Vec<IssuerConfig> = Vec::with_capacity(raw.len());
    for one in raw {
        let at = one.issuer.span();
        if issuers.len() == MAX_ISSUERS {
            let reason = format!("there are more than {MAX_ISSUERS} issuers");
            return Err(source.wrong(Some(at), "issuers.issuer", reason));
        }
        let issuer = one.check(source, base, routes, trusts)?;
        if issuers.iter().any(|other| other.rules.issuer == issuer.rules.issuer) {
            let reason = format!("`{}` is there twice; one entry says all about an issuer", issuer.rules.issuer);
            return Err(source.wrong(Some(at), "issuers.issuer", reason));
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

impl RawIssuer {
    fn check(
        self,
        source: &Source<'_>,
        base: &Path,
        routes: &BTreeMap<RouteName, RouteConfig>,
        trusts: bool,
    ) -> Result<IssuerConfig, ConfigError> {
        let keys = self.keys(source, base)?;
        let at = self.issuer.span();
        let ca_file = self.ca_file.map(|file| base.join(file));
        let trust = Trust { ca_file, include_system_cas: self.include_system_cas };
        let trust = trust.is_some().then_some(trust);
        if let KeysAt::Jwks(url) | KeysAt::Discovery(url) = &keys
            && url.scheme() == "https"
            && trust.is_none()
            && !trusts
        {
            let reason = "to fetch its keys it must be known whom to trust; set ca_file or include_system_cas = true \
                          here or under [upstream.tls], or name a jwks_file";
            return Err(source.wrong(Some(at), "issuers.issuer", reason));
        }
        let header = match &self.header {
            None => AUTHORIZATION,
            Some(name) => {
                header(name.get_ref()).map_err(|reason| source.wrong(Some(name.span()), "issuers.header", reason))?
            }
        };
        let algorithms = match self.algorithms {
            None => Algorithm::ALL.to_vec(),
            Some(listed) if listed.get_ref().is_empty() => {
                let reason = "name at least one of RS256, ES256 and EdDSA";
                return Err(source.wrong(Some(listed.span()), "issuers.algorithms", reason));
            }
            Some(listed) => listed.into_inner(),
        };
        let subject = self.subject.unwrap_or_else(|| Spanned::new(0..0, "{sub}".to_owned()));
        let template = subject.get_ref().parse();
        let template =
            template.map_err(|error| source.wrong(Some(subject.span()), "issuers.subject", format!("{error}")))?;
        let leeway = self.leeway.map(|span| (span.span(), span.into_inner().0));
        if let Some((span, leeway)) = &leeway
            && *leeway > MAX_LEEWAY
        {
            return Err(source.wrong(Some(span.clone()), "issuers.leeway", "at most 60s; correct the clocks instead"));
        }
        if let Some(audiences) = self.audiences.as_ref().filter(|audiences| audiences.get_ref().is_empty()) {
            let reason = "without any, no token would be for this gateway; name one, or leave it out";
            return Err(source.wrong(Some(audiences.span()), "issuers.audiences", reason));
        }
        if let Some(named) = &self.routes {
            for name in named.get_ref() {
                if routes.get(name).is_none_or(|route| route.mode == RouteMode::Sealed) {
                    let reason = format!("`{name}` is not a terminated route of this file");
                    return Err(source.wrong(Some(named.span()), "issuers.routes", reason));
                }
            }
        }
        let allowed_ips =
            self.allowed_ips.map(|listed| super::ranges(&listed, source, "issuers.allowed_ips")).transpose()?;
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        let values = |values: OneOrMore| match values {
            OneOrMore::One(value) => vec![value],
            OneOrMore::More(values) => values,
        };
        Ok(IssuerConfig {
            rules: IssuerRules {
                issuer: self.issuer.into_inner(),
                algorithms,
                required: self.required_claims.into_iter().map(|(name, all)| (name, values(all))).collect(),
                subject: template,
                subject_prefix: self.subject_prefix,
                callers: self.callers,
                fields: self.identity.fields(),
                claims: self.claims,
                leeway: seconds(leeway.map_or(DEFAULT_LEEWAY, |(_, leeway)| leeway)),
                max_lifetime: seconds(self.max_lifetime.map_or(DEFAULT_LIFETIME, |span| span.into_inner().0)),
            },
            keys,
            header,
            prefix: self.prefix.unwrap_or_else(|| "Bearer".to_owned()),
            audiences: self.audiences.map(Spanned::into_inner).unwrap_or_default(),
            routes: self.routes.map(Spanned::into_inner),
            trust,
            allowed_ips,
        })
    }

    fn keys(&self, source: &Source<'_>, base: &Path) -> Result<KeysAt, ConfigError> {
        let read = |text: &Spanned<String>, setting: &str| {
            fetchable(text.get_ref()).map_err(|reason| source.wrong(Some(text.span()), setting, reason))
        };
        match (&self.jwks_url, &self.jwks_file, &self.discovery_url) {
            (Some(url), None, None) => Ok(KeysAt::Jwks(read(url, "issuers.jwks_url")?)),
            (None, Some(file), None) => Ok(KeysAt::File(base.join(file))),
            (None, None, Some(url)) => Ok(KeysAt::Discovery(read(url, "issuers.discovery_url")?)),
            (None, None, None) => {
                let issuer = self.issuer.get_ref().trim_end_matches('/');
                let url = format!("{issuer}/.well-known/openid-configuration");
                fetchable(&url).map(KeysAt::Discovery).map_err(|_| {
                    let reason = format!(
                        "`{issuer}` is no https URL to ask for its keys; set jwks_url, discovery_url or jwks_file"
                    );
                    source.wrong(Some(self.issuer.span()), "issuers.issuer", reason)
                })
            }
            _ => {
                let reason = "set only one of jwks_url, jwks_file and discovery_url";
                Err(source.wrong(Some(self.issuer.span()), "issuers.issuer", reason))
            }
        }
    }
}

impl RawIdentityClaims {
    fn fields(self) -> BTreeMap<Field, String> {
        [
            (Field::User, self.user),
            (Field::Agent, self.agent),
            (Field::AgentVersion, self.agent_version),
            (Field::Session, self.session),
            (Field::ToolUse, self.tool_use),
            (Field::Region, self.region),
        ]
        .into_iter()
        .filter_map(|(field, claim)| Some((field, claim?)))
        .collect()
    }
}

/// A URL that keys may be fetched from: https, or http on this machine, where nobody is in between.
pub(crate) fn fetchable(text: &str) -> Result<Url, String> {
    let wrong = || format!("`{text}` is not https://HOST/PATH (http is for loopback addresses only)");
    let url: Url = text.parse().map_err(|_| wrong())?;
    let loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let scheme = url.scheme() == "https" || url.scheme() == "http" && loopback;
    if !scheme || !url.username().is_empty() || url.password().is_some() || url.host().is_none() {
        return Err(wrong());
    }
    Ok(url)
}

/// A header that a token may come in.
fn header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("`{text}` is not the name of a header"))?;
    if name.as_str().starts_with(HEADER_PREFIX) {
        return Err(format!("`{name}`: headers that begin with {HEADER_PREFIX} are ours; name another"));
    }
    if name == HOST || name.as_str().starts_with("mcp-") || name.as_str().starts_with("content-") {
        return Err(format!("`{name}` means something else; name another"));
    }
    Ok(name)
}

impl From<&IssuerConfig> for RawIssuer {
    fn from(config: &IssuerConfig) -> Self {
        let place = |text: &str| Spanned::new(0..0, text.to_owned());
        let rules = &config.rules;
        let (jwks_url, jwks_file, discovery_url) = match &config.keys {
            KeysAt::Jwks(url) => (Some(place(url.as_str())), None, None),
            KeysAt::File(path) => (None, Some(path.clone()), None),
            KeysAt::Discovery(url) => (None, None, Some(place(url.as_str()))),
        };
        let span = |seconds: i64| Spanned::new(0..0, Span(Duration::from_secs(u64::try_from(seconds).unwrap_or(0))));
        let field = |field: Field| rules.fields.get(&field).cloned();
        RawIssuer {
            issuer: place(&rules.issuer),
            jwks_url,
            jwks_file,
            discovery_url,
            algorithms: Some(Spanned::new(0..0, rules.algorithms.clone())),
            header: Some(place(config.header.as_str())),
            prefix: Some(config.prefix.clone()),
            audiences: (!config.audiences.is_empty()).then(|| Spanned::new(0..0, config.audiences.clone())),
            required_claims: rules
                .required
                .iter()
                .map(|(name, values)| (name.clone(), OneOrMore::More(values.clone())))
                .collect(),
            subject: Some(place(&rules.subject.to_string())),
            subject_prefix: rules.subject_prefix.clone(),
            callers: rules.callers.clone(),
            identity: RawIdentityClaims {
                user: field(Field::User),
                agent: field(Field::Agent),
                agent_version: field(Field::AgentVersion),
                session: field(Field::Session),
                tool_use: field(Field::ToolUse),
                region: field(Field::Region),
            },
            claims: rules.claims.clone(),
            leeway: Some(span(rules.leeway)),
            max_lifetime: Some(span(rules.max_lifetime)),
            routes: config.routes.clone().map(|routes| Spanned::new(0..0, routes)),
            ca_file: config.trust.as_ref().and_then(|trust| trust.ca_file.clone()),
            include_system_cas: config.trust.as_ref().is_some_and(|trust| trust.include_system_cas),
            allowed_ips: config
                .allowed_ips
                .as_ref()
                .map(|ranges| ranges.iter().map(|range| place(&range.to_string())).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::GatewayConfig;
    use super::*;

    const ROUTES: &str = "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n\
                          [routes.raw]\nupstream = \"http://10.0.0.5:80\"\nmode = \"sealed\"\nclient_ca_file = \"ca\"\n\
                          [upstream.tls]\ninclude_system_cas = true\n";

    fn parse(issuer: &str) -> Result<GatewayConfig, ConfigError> {
        let text = format!("{ROUTES}[[issuers]]\n{issuer}");
        GatewayConfig::parse(&text, Path::new("/etc/sortie/gateway.toml"))
    }

    #[test]
    fn a_short_entry_gets_the_defaults() {
        let config = parse("issuer = \"https://idp.test/\"").expect("config");
        let issuer = &config.issuers[0];
        let url = "https://idp.test/.well-known/openid-configuration".parse().expect("url");
        assert_eq!(issuer.keys, KeysAt::Discovery(url));
        assert_eq!((issuer.header.as_str(), issuer.prefix.as_str()), ("authorization", "Bearer"));
        assert_eq!((issuer.rules.leeway, issuer.rules.max_lifetime), (30, 3600));
        assert_eq!(issuer.rules.algorithms, Algorithm::ALL);
        assert_eq!(issuer.rules.issuer, "https://idp.test/", "letter for letter");
    }

    #[test]
    fn every_setting_is_read_and_shown_as_the_same() {
        let text = "issuer = \"ccr\"\njwks_url = \"https://api.test/jwks.json\"\nalgorithms = [\"ES256\"]\n\
                    header = \"X-Agent-Token\"\nprefix = \"\"\naudiences = [\"ccpool_1\"]\n\
                    required_claims = { \"ccr:role\" = \"session_worker\", jti = [] }\nsubject = \"{act.sub}\"\n\
                    subject_prefix = \"user:\"\ncallers = [\"user:1\"]\nidentity = { session = \"ccr:session_id\" }\n\
                    claims = { org = \"ccr:org_id\" }\nleeway = \"5s\"\nmax_lifetime = \"8h\"\nroutes = [\"docs\"]\n\
                    ca_file = \"/ca.pem\"\nallowed_ips = [\"192.0.2.0/24\"]\n\
                    [identity]\nissuer = \"https://gw.test\"\nheader = \"x-caller\"\nlifetime = \"60s\"\n";
        let config = parse(text).expect("config");
        let issuer = &config.issuers[0];
        assert_eq!(issuer.rules.required["ccr:role"], ["session_worker"]);
        assert_eq!(issuer.rules.fields[&Field::Session], "ccr:session_id");
        assert_eq!((issuer.rules.leeway, issuer.rules.max_lifetime), (5, 8 * 3600));
        let shown = config.to_toml().expect("toml");
        let again = GatewayConfig::parse(&shown, Path::new("/etc/sortie/gateway.toml")).expect(&shown);
        assert_eq!((again.issuers, again.identity), (config.issuers, config.identity));
    }

    #[test]
    fn wrong_settings_are_named() {
        let named = |more: &str| format!("issuer = \"https://idp.test\"\n{more}");
        for (text, said) in [
            ("issuer = \"ccr\"".to_owned(), ":10: issuers.issuer: `ccr` is no https URL"),
            (
                named("jwks_url = \"http://idp.test/keys\""),
                ":11: issuers.jwks_url: `http://idp.test/keys` is not https",
            ),
            (named("jwks_url = \"https://u:p@idp.test/\""), "is not https://HOST/PATH"),
            (named("jwks_url = \"https://a.test/\"\njwks_file = \"b\""), "set only one of"),
            (named("algorithms = [\"HS256\"]"), "unknown variant `HS256`"),
            (named("algorithms = [\"none\"]"), "unknown variant `none`"),
            (named("algorithms = []"), "name at least one of"),
            (named("header = \"sortie-identity\""), "are ours"),
            (named("header = \"mcp-session-id\""), "means something else"),
            (named("subject = \"everybody\""), "no text with claims in braces"),
            (named("leeway = \"61s\""), "at most 60s"),
            (named("max_lifetime = \"25h\""), "at most 24h"),
            (named("audiences = []"), "no token would be for this gateway"),
            (named("routes = [\"raw\"]"), "`raw` is not a terminated route"),
            (named("routes = [\"wiki\"]"), "`wiki` is not a terminated route"),
            (named("allowed_ips = [\"10/8\"]"), "issuers.allowed_ips: `10/8`"),
            (named("[[issuers]]\nissuer = \"https://idp.test\""), "is there twice"),
            (named("[identity]\nlifetime = \"10s\""), "identity.lifetime: it is not from 60s to 300s"),
            (named("[identity]\nheader = \"host\""), "identity.header: `host` cannot carry a token"),
            (named("colour = 1"), "unknown field `colour`"),
        ] {
            let error = parse(&text).expect_err(&text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let untrusted = ROUTES.replace("[upstream.tls]\ninclude_system_cas = true\n", "");
        let text = format!("{untrusted}[[issuers]]\nissuer = \"https://idp.test\"");
        let error = GatewayConfig::parse(&text, Path::new("g.toml")).expect_err("no trust").to_string();
        assert!(error.contains("whom to trust"), "{error}");
        assert!(fetchable("http://127.0.0.1:9/x").is_ok() && fetchable("http://127.0.0.1.evil.test/x").is_err());
    }
}
