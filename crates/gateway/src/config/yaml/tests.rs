use super::*;

use crate::config::Authorization;
use sortie_link::protos::RouteMode;

const PATH: &str = "/etc/mcp-gateway/config.yaml";

fn parse(text: &str) -> Result<GatewayConfig, ConfigError> {
    GatewayConfig::parse(text, Path::new(PATH))
}

fn refusal(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// A file with what is required, and some lines more.
fn with(more: &str) -> String {
    format!(
        "listen_addr: \":8080\"\ntunnel_domain: abcd1234.tunnel.example\ntls:\n  cert_file: /data/tls.crt\n  \
         key_file: /data/tls.key\nroutes:\n  docs: http://10.0.0.5:8080\n{more}"
    )
}

fn allowed(config: &GatewayConfig) -> Vec<String> {
    config.upstream.allowed_ips.iter().map(ToString::to_string).collect()
}

#[test]
fn the_documented_files_are_accepted() {
    let quickstart = include_str!("../../../tests/hosted/quickstart.yaml");
    let config = parse(quickstart).expect("quickstart");
    assert_eq!(config.tunnel_domain.as_deref(), Some("abcd1234.tunnel.example"));
    assert_eq!(config.routes.keys().map(RouteName::as_str).collect::<Vec<_>>(), ["echo"]);

    let config = parse(include_str!("../../../tests/hosted/complete.yaml")).expect("complete");
    assert_eq!(config.log, "debug");
    assert_eq!(config.shutdown_timeout, Duration::from_secs(90));
    let certificate = config.certificate.as_ref().expect("certificate");
    assert_eq!(certificate.cert_file, Path::new("/etc/mcp-gateway/tls.crt"));
    assert_eq!(certificate.key_file, Path::new("/data/tls.key"));
    let routes: Vec<_> = config.routes.iter().map(|(name, route)| format!("{name} {}", route.upstream)).collect();
    assert_eq!(
        routes,
        [
            "docs https://docs.internal:8443",
            "tickets http://tickets.svc.cluster.local:80",
            "wiki http://10.20.0.15:8080"
        ]
    );
    assert_eq!(allowed(&config), ["10.0.0.0/8", "100.64.0.0/10", "192.168.7.9/32"]);
    assert_eq!(config.upstream.ca_file.as_deref(), Some(Path::new("/etc/ssl/corp-ca.pem")));
    assert!(config.upstream.include_system_cas);
}

#[test]
fn what_is_absent_has_the_documented_default() {
    let config = parse(&with("")).expect("config");
    assert_eq!(config.log, "info");
    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    // RFC 1918 only: not what the TOML file has by default.
    assert_eq!(allowed(&config), DEFAULT_ALLOWED);
    assert_eq!(config.upstream.ca_file, None);
    assert!(!config.upstream.include_system_cas);
    assert!(config.log_request_start);
    let route = config.routes.values().next().expect("route");
    // Servers do their own OAuth there, so that what the caller sends has to reach them.
    assert_eq!((route.authorization, route.mode), (Authorization::Forward, RouteMode::Terminated));
    assert_eq!((route.host.as_ref(), route.deadline), (None, None));
    let empty = with("log_level:\nshutdown_timeout:\nupstream:\n");
    assert_eq!(parse(&empty).expect("nothing said"), parse(&with("")).expect("config"));
}

#[test]
fn required_fields_are_demanded() {
    for (removed, field) in [
        ("listen_addr: \":8080\"\n", "listen_addr"),
        ("tls:\n  cert_file: /data/tls.crt\n  key_file: /data/tls.key\n", "tls"),
        ("  cert_file: /data/tls.crt\n", "cert_file"),
        ("  key_file: /data/tls.key\n", "key_file"),
        ("routes:\n  docs: http://10.0.0.5:8080\n", "routes"),
    ] {
        let error = refusal(&with("").replace(removed, ""));
        assert!(
            error.starts_with(&format!("{PATH}:")) && error.ends_with(&format!("missing field `{field}`")),
            "{error}"
        );
    }
}

#[test]
fn wrong_values_are_named_with_their_line() {
    let routes = |routes: &str| with("").replace("  docs: http://10.0.0.5:8080\n", routes);
    for (text, said) in [
        (routes("  - docs: http://10.0.0.5:8080\n"), ":7: routes: cannot unmarshal !!seq into map[string]string"),
        (
            routes("  docs: http://10.0.0.5:8080/mcp\n"),
            ":7: routes.docs: `http://10.0.0.5:8080/mcp`: invalid upstream (must be scheme://host:port)",
        ),
        (
            routes("  a: http://a:1\n  docs: http://10.0.0.5\n"),
            ":8: routes.docs: `http://10.0.0.5`: invalid upstream (must be scheme://host:port)",
        ),
        (routes("  docs: 10.0.0.5:80\n"), "invalid upstream (must be scheme://host:port)"),
        (routes("  docs: builtin:files\n"), "invalid upstream (must be scheme://host:port)"),
        (routes("  docs: unix:/run/mcp.sock\n"), "invalid upstream (must be scheme://host:port)"),
        (routes("  docs: {upstream: \"http://a:1\"}\n"), ":7: "),
        (routes("  docs: https://a:443\n"), ":7: routes.docs: an https upstream needs to know whom to trust"),
        (routes("  docs: http://a:1\n  docs: http://b:1\n"), ":8: "),
        (routes("  docs: http://a:1\n  DOCS: http://b:1\n"), ":8: routes.DOCS: there is another route of this name"),
        (routes("  a_b: http://a:1\n"), ":7: routes.a_b: "),
        (
            routes("  docs.elsewhere.example: http://a:1\n"),
            ":7: routes.docs.elsewhere.example: no call comes for this host",
        ),
        (
            routes("  abcd1234.tunnel.example: http://a:1\n"),
            ":7: routes.abcd1234.tunnel.example: this is the tunnel's own",
        ),
        (routes("  {}\n"), ":1: routes: no route is set"),
        (with("colour: red\n"), ":8: unknown field `colour`, expected one of `listen_addr`"),
        (with("upstream:\n  connect_timeout: 5s\n"), ":9: unknown field `connect_timeout`"),
        (with("upstream:\n  tls:\n    insecure: true\n"), ":10: unknown field `insecure`"),
        (with("log_level: loud\n"), ":8: log_level: `loud` is not one of debug, info, warn, error"),
        (with("shutdown_timeout: 30\n"), ":8: shutdown_timeout: time: invalid duration `30`"),
        (
            with("upstream:\n  allowed_ips: [10.0.0.0/8]\n  disable_ip_validation: true\n"),
            ":10: upstream.disable_ip_validation: it excludes upstream.allowed_ips",
        ),
        (
            with("upstream:\n  allowed_ips:\n    - 10.0.0.0/8\n    - fc00::/7\n"),
            ":11: upstream.allowed_ips: `fc00::/7` is not an IPv4 range",
        ),
        (with("upstream:\n  allowed_ips: [10/8]\n"), ":9: upstream.allowed_ips: `10/8`"),
        (with("upstream:\n  allowed_ips: []\n"), ":9: upstream.allowed_ips: an empty list"),
        (with("upstream:\n  allowed_ips: 10.0.0.0/8\n"), ":9: "),
        (with("upstream:\n  disable_ip_validation: maybe\n"), ":9: "),
        (with("").replace("\":8080\"", "8080"), ":1: listen_addr: `8080` is not an address"),
        (with("").replace("/data/tls.crt", "\"\""), ":4: tls.cert_file: it is empty"),
        (
            with("").replace("tunnel_domain: abcd1234.tunnel.example\n", ""),
            ":6: routes.docs: without tunnel_domain this must be a full hostname",
        ),
        (with("").replace("abcd1234.tunnel.example", ""), ":7: routes.docs: without tunnel_domain"),
        (with("---\nlisten_addr: x\n"), ":9: another document"),
        (with("\tx: 1\n"), "found a tab"),
        (String::new(), ":1: the file is empty"),
        ("- a\n".to_owned(), ":1: "),
    ] {
        let error = refusal(&text);
        assert!(error.starts_with(PATH) && error.contains(said), "{text}\n{error}\n{said}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn a_full_hostname_comes_before_the_name_alone() {
    for routes in [
        "  docs: http://bare:1\n  docs.abcd1234.tunnel.example: http://exact:1\n",
        "  DOCS.abcd1234.Tunnel.example.: http://exact:1\n  docs: http://bare:1\n",
    ] {
        let config = parse(&with("").replace("  docs: http://10.0.0.5:8080\n", routes)).expect("config");
        let route = config.routes.values().next().expect("route");
        assert_eq!((config.routes.len(), route.upstream.to_string().as_str()), (1, "http://exact:1"));
        assert!(config.notes.iter().any(|note| note.contains("routes.docs is not used")), "{:?}", config.notes);
    }
}

#[test]
fn without_a_domain_full_hostnames_tell_it() {
    let full = "  docs.abcd1234.tunnel.example: http://a:1\n  wiki.abcd1234.tunnel.example: http://b:1\n";
    let text = with("").replace("tunnel_domain: abcd1234.tunnel.example\n", "");
    let config = parse(&text.replace("  docs: http://10.0.0.5:8080\n", full)).expect("config");
    assert_eq!(config.tunnel_domain.as_deref(), Some("abcd1234.tunnel.example"));
    assert_eq!(config.places.of("tunnel_domain"), format!("{PATH}:6"));
    assert_eq!(config.routes.keys().map(RouteName::as_str).collect::<Vec<_>>(), ["docs", "wiki"]);
    let two = full.replace("wiki.abcd1234", "wiki.other");
    assert!(
        refusal(&text.replace("  docs: http://10.0.0.5:8080\n", &two)).contains(":7: routes.wiki.other.tunnel.example")
    );
}

#[test]
fn validation_of_addresses_can_be_switched_off() {
    let config = parse(&with("upstream:\n  disable_ip_validation: true\n")).expect("config");
    assert_eq!(allowed(&config), ["0.0.0.0/0", "127.0.0.0/8"]);
    assert!(config.notes.iter().any(|note| note.contains("disable_ip_validation")), "{:?}", config.notes);
    let config =
        parse(&with("upstream:\n  disable_ip_validation: false\n  allowed_ips: [127.0.0.0/8]\n")).expect("both");
    assert_eq!(allowed(&config), ["127.0.0.0/8"]);
}

#[test]
fn what_is_not_needed_is_said() {
    for addr in [":8080", "0.0.0.0:8080", "[::]:8080", "localhost:80"] {
        let config = parse(&with("").replace(":8080\"", &format!("{addr}\"").replacen(':', ":", 1))).expect(addr);
        assert!(config.notes.iter().any(|note| note.contains("is not needed")), "{:?}", config.notes);
    }
}

#[test]
fn places_are_those_of_the_file() {
    let config = parse(&with("upstream:\n  tls:\n    ca_file: ca.pem\n")).expect("config");
    for (setting, line) in [("tls.cert_file", 4), ("tls.key_file", 5), ("routes.docs", 7), ("upstream.tls.ca_file", 10)]
    {
        let place = config.places.of(if setting == "routes.docs" { "routes.docs.upstream" } else { setting });
        assert_eq!(place, format!("{PATH}:{line}"), "{setting}");
    }
}

#[test]
fn durations_are_those_of_go() {
    for (text, nanos) in [
        ("30s", 30_000_000_000),
        ("1m30s", 90_000_000_000),
        ("500ms", 500_000_000),
        ("1.5h", 5_400_000_000_000),
        (".5s", 500_000_000),
        ("5.s", 5_000_000_000),
        ("+1h2m3s4ms5us6ns", 3_723_004_005_006),
        ("7\u{b5}s", 7_000),
        ("7\u{3bc}s", 7_000),
        ("0", 0),
        ("0s", 0),
    ] {
        assert_eq!(go_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
    }
    for bad in ["", "30", "s", ".s", "1.2.3s", "-1s", "1 s", "1d", "1m30", "99999999999999999h", "1s-", "\u{e9}s"] {
        assert!(go_duration(bad).is_err(), "{bad}");
    }
    let config = parse(&with("shutdown_timeout: 1m30s\n")).expect("config");
    assert_eq!(config.shutdown_timeout, Duration::from_secs(90));
    assert_eq!(parse(&with("shutdown_timeout: 0s\n")).expect("zero").shutdown_timeout, Duration::from_millis(1));
    let long = parse(&with("shutdown_timeout: 48h\n")).expect("long");
    assert_eq!(long.shutdown_timeout, LONGEST);
    assert!(long.notes.iter().any(|note| note.contains("held to 24h")));
}

#[test]
fn aliases_that_multiply_are_cut_off() {
    // Ten times ten times ten ... routes, merged into each other.
    let mut bomb = "routes:\n  m0: &m0 {a: http://a:1, b: http://b:1}\n".to_owned();
    for level in 1..30 {
        let inner = vec![format!("*m{}", level - 1); 3].join(", ");
        bomb += &format!("  m{level}: &m{level} {{<<: [{inner}]}}\n");
    }
    let began = std::time::Instant::now();
    refusal(&with("").replace("routes:\n", &bomb));
    let merged = bomb.replace("routes:\n", "") + "  <<: [*m29, *m29]\n";
    refusal(&(with("") + &merged));
    refusal(&with("").replace("http://10.0.0.5:8080", &("[".repeat(100_000) + &"]".repeat(100_000))));
    let many: String = (0..=MAX_ALIASES).map(|n| format!("  r{n}: *up\n")).collect();
    let error = refusal(&with(&format!("  wiki: &up http://10.0.0.6:80\n{many}")));
    assert!(error.contains("alias"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    // What people use aliases for.
    let config = parse(&with("  wiki: &up http://10.0.0.6:80\n  help: *up\n")).expect("alias");
    assert_eq!(config.routes.len(), 3);
}
