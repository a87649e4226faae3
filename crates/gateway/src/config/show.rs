//! The settings in force, defaults included: for people, for programs, and as a TOML file that says the same.
//!
//! There is nothing to hide in them: whatever is secret is in a place that a setting names.

use std::path::Path;

use serde_json::Value;
use toml::Spanned;

use super::{
    GatewayConfig, Keepalive, LinkConfig, Raw, RawCertificate, RawDialling, RawLink, RawRoute, RawTls, RouteConfig,
    RouteTls, Span,
};

impl GatewayConfig {
    /// A TOML file with the same settings, every default written out. Paths start from where the file was.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        // As a table first: in TOML, what has a name of its own comes before what has a table of its own.
        toml::to_string(&toml::Table::try_from(Raw::from(self))?)
    }

    /// The same in JSON, by the names that the TOML file has.
    pub fn to_json(&self) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::to_value(Raw::from(self))?;
        value.sort_all_objects();
        Ok(value)
    }

    /// The JSON Schema (draft 2020-12) of the TOML file.
    pub fn schema() -> Value {
        let mut schema = schemars::schema_for!(Raw).to_value();
        without_null(&mut schema);
        // Cedar switches on what keeps the order of members in all programs that it is built into.
        schema.sort_all_objects();
        schema
    }

    /// What the file asks for and what is different here, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl From<&GatewayConfig> for Raw {
    fn from(config: &GatewayConfig) -> Self {
        let routes = config.routes.iter().map(|(name, route)| (name.clone(), route.into()));
        Raw {
            routes: placeless(routes.collect()),
            policy: config.control.policy,
            policy_file: config.control.policy_file.clone().map(placeless),
            region: config.control.region.clone().map(placeless),
            refusals: config.control.refusals,
            audit: (&config.audit).into(),
            upstream: RawDialling {
                allowed_ips: Some(
                    config.upstream.allowed_ips.iter().map(|range| placeless(range.to_string())).collect(),
                ),
                connect_timeout: Some(Span(config.upstream.connect_timeout)),
                tls: RawTls {
                    ca_file: config.upstream.ca_file.clone(),
                    include_system_cas: config.upstream.include_system_cas,
                },
            },
            issuers: config.issuers.iter().map(Into::into).collect(),
            identity: (&config.identity).into(),
            link: (&config.link).into(),
            listener: config.listener.as_ref().map(|listener| placeless(listener.into())),
            max_request_body: config.max_request_body,
            log: config.log.clone(),
            log_request_start: config.log_request_start,
            pinning: config.pinning,
            shutdown_timeout: Span(config.shutdown_timeout),
            tunnel_domain: config.tunnel_domain.clone(),
            tls: config
                .certificate
                .as_ref()
                .map(|files| RawCertificate { cert_file: files.cert_file.clone(), key_file: files.key_file.clone() }),
            approval_timeout: Some(Span(config.approvals.timeout)),
            approvals: (&config.approvals).into(),
            limits: config.limits.iter().map(|limit| placeless(limit.into())).collect(),
            vault: config.vaults.iter().map(|(name, vault)| (name.clone(), placeless(vault.into()))).collect(),
        }
    }
}

impl From<&RouteConfig> for RawRoute {
    fn from(route: &RouteConfig) -> Self {
        let path = |path: &Option<_>| path.as_deref().map(Path::to_owned).map(placeless);
        RawRoute {
            upstream: placeless((&route.upstream).into()),
            authorization: route.authorization,
            host: route.host.as_ref().map(|host| placeless(String::from_utf8_lossy(host.as_bytes()).into_owned())),
            mode: route.mode,
            client_ca_file: path(&route.client_ca_file),
            root: path(&route.root),
            deadline: route.deadline.map(Span),
            protocol: route.protocol,
            connect_timeout: route.connect_timeout.map(Span),
            idle_timeout: route.idle_timeout.map(Span),
            keepalive: Keepalive(route.keepalive),
            max_request_body: route.max_request_body,
            identity: route.identity,
            tls: (route.tls != RouteTls::default()).then(|| placeless((&route.tls).into())),
            pinning: Some(route.pinning),
            credentials: route.credentials.iter().map(|credential| placeless(credential.into())).collect(),
        }
    }
}

impl From<&LinkConfig> for RawLink {
    fn from(link: &LinkConfig) -> Self {
        RawLink {
            proxy: link.proxy.as_ref().map(|proxy| placeless(proxy.to_string())),
            proxy_authorization_file: link.proxy_authorization_file.clone(),
        }
    }
}

/// What may be absent may not be null: TOML has no such value.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    members.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(variants)) = members.get_mut("anyOf") {
                variants.retain(|variant| variant["type"] != "null");
            }
            members.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// A value that stands nowhere.
fn placeless<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        let page = include_str!("../../../../docs/gateway-config.md");
        let example = page.rsplit_once("```toml").and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
        let hosted = include_str!("../../tests/hosted/complete.yaml");
        for (name, text) in [
            ("a.toml", "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n"),
            ("b.toml", example),
            ("c.yaml", hosted),
            (
                "d.toml",
                "[routes.a]\nupstream = \"http://[fd00::1]:80\"\ndeadline = \"1500ms\"\nhost = \"a.b:1\"\n\
                 [link]\nproxy = \"http://[::1]:3128\"\nproxy_authorization_file = \"p\"",
            ),
            (
                "listener.toml",
                "[routes.a]\nupstream = \"http://a:1\"\n[listener]\nlisten_addr = \"[::]:1\"\nallow_remote = true\n\
                 [listener.caller]\nsubject = \"s\"\nagent = \"a\"\nregion = \"r\"\n",
            ),
            (
                "limits.toml",
                "approval_timeout = \"90s\"\n[approvals]\nfrom = [\"hub\", \"local\"]\nshow_arguments = true\n\
                 max_waiting = 7\nmax_waiting_per_caller = 3\n[routes.a]\nupstream = \"http://a:1\"\n\
                 [[limits]]\nroutes = [\"a\"]\ntools = [\"x*\"]\ncallers = [\"c\"]\nagents = [\"g\"]\n\
                 workspaces = [\"w\"]\nper = \"caller+tool\"\nrate = \"60/m\"\nburst = 5\nconcurrency = 2\n\
                 max_request_body = 1\nmax_response_body = 2\ntime = \"5m\"\n[[limits]]\nconcurrency = 9\n",
            ),
            (
                "e.toml",
                "[routes.a]\nupstream = [\"unix:/run/a\", \"https://b:1\"]\nkeepalive = \"0\"\nidle_timeout = \"5m\"\n\
                 connect_timeout = \"1s\"\nmax_request_body = 5\n[routes.a.tls]\nca_file = \"/ca\"\n\
                 client_cert_file = \"/c\"\nclient_key_file = \"/k\"\nserver_name = \"n\"\n",
            ),
        ] {
            let path = Path::new("/etc/sortie").join(name);
            let mut config = GatewayConfig::parse(text, &path).expect(name);
            let shown = config.to_toml().expect("toml");
            let again = GatewayConfig::parse(&shown, Path::new("/elsewhere/gateway.toml")).expect(&shown);
            // Those were about the form of the file.
            config.notes.clear();
            assert_eq!(again, config, "{shown}");
            assert_eq!(again.to_json().expect("json"), config.to_json().expect("json"));
        }
    }

    #[test]
    fn defaults_are_shown() {
        let text = "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n";
        let shown = GatewayConfig::parse(text, Path::new("gateway.toml")).expect("config").to_json().expect("json");
        assert_eq!(shown["shutdown_timeout"], "30s");
        assert_eq!(shown["max_request_body"], 4_194_304);
        assert_eq!(shown["routes"]["docs"]["authorization"], "strip");
        assert_eq!(shown["routes"]["docs"]["mode"], "terminated");
        assert_eq!(shown["upstream"]["allowed_ips"][3], "fc00::/7");
        assert_eq!(shown["upstream"]["connect_timeout"], "10s");
        assert_eq!(shown["upstream"]["tls"]["include_system_cas"], false);
    }

    #[test]
    fn the_schema_in_the_docs_is_current() {
        let kept: Value = serde_json::from_str(include_str!("../../../../docs/gateway.schema.json")).expect("json");
        assert!(kept == GatewayConfig::schema(), "write it anew: sortie config schema > docs/gateway.schema.json");
    }

    #[test]
    fn the_schema_knows_every_setting() {
        let schema = GatewayConfig::schema();
        let settings = |name: &str| {
            let place = if name.is_empty() { "/properties".to_owned() } else { format!("/$defs/{name}/properties") };
            schema.pointer(&place).and_then(Value::as_object).expect(name).keys().cloned().collect::<Vec<_>>()
        };
        assert!(settings("").contains(&"max_request_body".to_owned()));
        assert!(settings("Route").contains(&"client_ca_file".to_owned()));
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["required"], serde_json::json!(["routes"]));
    }
}
