//! What settings of credentials are accepted, and how wrong ones are told.

use super::super::GatewayConfig;
use super::*;

const VAULT: &str = "[vault.corp]\naddress = \"https://vault.internal:8200\"\ntls.ca_file = \"ca.pem\"\n\
                     approle = { role_id = \"r\", secret_id = { file = \"id\" } }\n";

fn parse(text: &str) -> Result<GatewayConfig, String> {
    let config = GatewayConfig::parse(text, Path::new("/etc/sortie/gateway.toml"));
    config.map_err(|error| error.to_string())
}

/// A route with one credential.
fn with(credential: &str) -> Result<RouteCredential, String> {
    let route = "[routes.wiki]\nupstream = \"http://10.0.0.5:80\"\n";
    let text = format!("{route}[[routes.wiki.credentials]]\nname = \"w\"\n{credential}\n{VAULT}");
    let config = parse(&text)?;
    let again = parse(&config.to_toml().expect("toml")).expect("what is shown can be read");
    assert_eq!((&again.routes, &again.vaults), (&config.routes, &config.vaults), "what is shown says the same");
    Ok(config.routes.into_values().next().expect("a route").credentials.remove(0))
}

#[test]
fn the_documented_examples_are_accepted() {
    let page = include_str!("../../../../../docs/credentials.md");
    let examples: Vec<_> = page.split("```toml").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 11);
    for example in examples {
        let config = parse(example).expect(example);
        assert!(config.routes.values().all(|route| !route.credentials.is_empty()), "{example}");
        let again = parse(&config.to_toml().expect("toml")).expect("what is shown can be read");
        assert_eq!((&again.routes, &again.vaults), (&config.routes, &config.vaults), "{example}");
    }
}

#[test]
fn certificates_are_for_upstreams_that_speak_tls() {
    let https = |rest: &str| {
        let route = "[routes.wiki]\nupstream = \"https://10.0.0.5:443\"\ntls.ca_file = \"ca.pem\"\n";
        let credential = "[[routes.wiki.credentials]]\nname = \"w\"\nkind = \"client-certificate\"\n";
        let config = parse(&format!("{route}{credential}{rest}\n{VAULT}"))?;
        let again = parse(&config.to_toml().expect("toml")).expect("what is shown can be read");
        assert_eq!((&again.routes, &again.vaults), (&config.routes, &config.vaults), "what is shown says the same");
        Ok::<_, String>(config.routes.into_values().next().expect("a route").credentials.remove(0).spec)
    };
    let at = |rest: &str| match https(rest).expect(rest).kind {
        CredentialKind::ClientCertificate { certificate, .. } => certificate,
        other => panic!("{rest}: {other:?}"),
    };
    assert_eq!(at("secret.env = \"PEM\""), CertificateAt::WithKey);
    assert_eq!(at("secret.command = [\"pass\", \"pem\"]"), CertificateAt::WithKey);
    let file = CertificateAt::File("/etc/sortie/a.crt".into());
    assert_eq!(at("secret.file = \"a.key\"\ncertificate_file = \"a.crt\""), file);
    let pki = "secret = { vault = \"corp\", path = \"pki/issue/x\", field = \"private_key\", parameters = { \
               common_name = \"x\" } }\ncertificate_field = \"certificate\"";
    assert_eq!(at(pki), CertificateAt::Field("certificate".to_owned()));
    let Source::Vault(place) = https(pki).expect(pki).source().clone() else { panic!("{pki}") };
    assert_eq!(place.parameters["common_name"], "x");

    for (text, said) in [
        ("secret.env = \"PEM\"\ncertificate_file = \"a.crt\"", "only a key in a file has its certificate in another"),
        ("secret.file = \"a\"\ncertificate_field = \"c\"", "only a vault has fields"),
        ("secret.file = \"a\"\nheader = \"x\"", "this is for credentials of kind header"),
    ] {
        let error = https(text).expect_err(text);
        assert!(error.contains(said), "{text}: {error}");
    }
    let plain = with("kind = \"client-certificate\"\nsecret.file = \"a.pem\"").expect_err("http");
    let said =
        "routes.wiki.credentials.0.kind: a certificate is shown in TLS, which `http://10.0.0.5:80` does not speak";
    assert!(plain.contains(said), "{plain}");
    let both = "[routes.wiki]\nupstream = \"https://10.0.0.5:443\"\ntls = { ca_file = \"ca.pem\", client_cert_file = \
                \"c\", client_key_file = \"k\" }\n[[routes.wiki.credentials]]\nname = \"w\"\n\
                kind = \"client-certificate\"\nsecret.file = \"a.pem\"\n";
    assert!(parse(both).expect_err("two").contains("a connection shows one certificate"));
}

#[test]
fn every_kind_and_every_place_is_read() {
    let kind = |text: &str| with(text).expect(text).spec.kind;
    let file = Source::File("/etc/sortie/t".into());
    assert_eq!(
        kind("kind = \"header\"\nheader = \"X-Api-Key\"\nprefix = \"Token \"\nsecret.file = \"t\""),
        CredentialKind::Header {
            header: HeaderName::from_static("x-api-key"),
            prefix: "Token ".to_owned(),
            secret: file
        }
    );
    assert_eq!(
        kind("kind = \"bearer\"\nsecret.env = \"T\""),
        CredentialKind::Bearer { secret: Source::Env("T".to_owned()) }
    );
    let text = "kind = \"basic\"\nusername = \"u\"\nsecret = { command = [\"pass\", \"show\"], timeout = \"2s\", \
                cache = \"1h\", environment = [\"X\"] }";
    let command = Command {
        argv: vec!["pass".to_owned(), "show".to_owned()],
        timeout: Duration::from_secs(2),
        cache: Duration::from_secs(3600),
        environment: vec!["X".to_owned()],
    };
    let username = Username::Is("u".to_owned());
    assert_eq!(kind(text), CredentialKind::Basic { username, secret: Source::Command(command) });
    let text = "kind = \"basic\"\nusername_field = \"username\"\nsecret = { vault = \"corp\", \
                path = \"database/creds/reader\", field = \"password\" }";
    let CredentialKind::Basic { username: Username::Field(field), secret: Source::Vault(place) } = kind(text) else {
        panic!("{text}")
    };
    assert_eq!((field.as_str(), place.refresh), ("username", VAULT_REFRESH));

    let oauth = "token_url = \"https://idp.example/token\"\nclient_id = \"c\"\nscope = \"read\"\naudience = \"a\"\n\
                 resource = \"r\"\nclient_auth = \"client_secret_post\"\ntls.include_system_cas = true\n\
                 secret.env = \"T\"";
    let CredentialKind::ClientCredentials { endpoint, .. } = kind(&format!("kind = \"oauth\"\n{oauth}")) else {
        panic!("{oauth}")
    };
    assert_eq!((endpoint.client_auth, endpoint.scope.as_deref()), (ClientAuth::Post, Some("read")));
    let exchange = |rest: &str| with(&format!("kind = \"token-exchange\"\n{oauth}\n{rest}"));
    assert_eq!(exchange("subject = \"hub\"").expect("hub").subject, SubjectToken::Hub);
    let ours = |audience: &str| SubjectToken::Gateway { audience: audience.to_owned() };
    assert_eq!(exchange("subject = \"gateway\"").expect("ours").subject, ours("https://idp.example/token"));
    let named = exchange("subject = \"gateway\"\nsubject_audience = \"https://idp.example\"").expect("named");
    assert_eq!(named.subject, ours("https://idp.example"));
    assert!(exchange("subject_audience = \"x\"").expect_err("hub's").contains("this is for subject = \"gateway\""));
    assert!(with(&format!("kind = \"token-exchange\"\n{oauth}")).expect("exchange").spec.exchanges());
    let for_some = with("kind = \"bearer\"\nsecret.env = \"T\"\ncallers = [\"user:*\"]\nagents = [\"a\"]");
    assert!(!for_some.expect("accepted").is_for_all());
}

#[test]
fn wrong_credentials_are_named_with_their_line_and_the_way_out() {
    let oauth = "kind = \"oauth\"\nclient_id = \"c\"\nsecret.env = \"T\"\ntoken_url = ";
    for (text, said) in [
        ("kind = \"bearer\"\nsecret = {}", ":3: routes.wiki.credentials.0.secret: a secret is at one place"),
        ("kind = \"bearer\"\nsecret = { env = \"A\", file = \"b\" }", "a secret is at one place"),
        ("kind = \"bearer\"\nsecret = \"hush\"", "invalid type: text, expected the place of a secret"),
        ("kind = \"bearer\"\nsecret.env = \"A=b\"", "secret.env: it is the name of a variable"),
        ("kind = \"bearer\"\nsecret.command = []", "secret.command: it is a program with its arguments"),
        (
            "kind = \"bearer\"\nsecret = { env = \"A\", cache = \"1s\" }",
            "secret.cache: this is for a secret of command",
        ),
        ("kind = \"bearer\"\nsecret = { vault = \"x\", path = \"a\", field = \"f\" }", "add [vault.x]"),
        ("kind = \"bearer\"\nsecret = { vault = \"corp\", path = \"a/../b\", field = \"f\" }", "secret.path: "),
        ("kind = \"bearer\"\nsecret = { vault = \"corp\", path = \"/v1/a\", field = \"f\" }", "secret.path: "),
        ("kind = \"bearer\"\nsecret = { vault = \"corp\", path = \"a\" }", "secret.field: "),
        ("kind = \"bearer\"\nsecret.env = \"A\"\nheader = \"X\"", "header: this is for credentials of kind header"),
        ("kind = \"header\"\nsecret.env = \"A\"", "needs the name of the header"),
        (
            "kind = \"bearer\"\nsecret.env = \"A\"\nsubject = \"gateway\"",
            "this is for credentials of kind token-exchange",
        ),
        (
            "kind = \"bearer\"\nsecret = { vault = \"corp\", path = \"a\", field = \"f\", parameters = { a = \"b\" } }",
            "secret.parameters: this is for credentials of kind client-certificate",
        ),
        ("kind = \"header\"\nheader = \"Host\"\nsecret.env = \"A\"", "says something else of a request"),
        ("kind = \"header\"\nheader = \"Mcp-Session-Id\"\nsecret.env = \"A\"", "says something else"),
        ("kind = \"header\"\nheader = \"Sortie-Identity\"\nsecret.env = \"A\"", "says something else"),
        ("kind = \"basic\"\nsecret.env = \"A\"", "needs one of username and username_field"),
        ("kind = \"basic\"\nusername = \"a:b\"\nsecret.env = \"A\"", "no colon"),
        ("kind = \"basic\"\nusername_field = \"u\"\nsecret.env = \"A\"", "only a vault has fields"),
        ("kind = \"bearer\"\nsecret.env = \"A\"\ncallers = []", "callers: a list has 1 to 256 entries"),
        ("kind = \"bearer\"\nsecret.env = \"A\"\nagents = [\"a*b\"]", "a `*` stands at the end"),
        ("kind = \"oauth\"\nsecret.env = \"A\"", "token_url: a credential of this kind needs it"),
        (&format!("{oauth}\"http://idp.example/token\""), "secrets go over https://"),
        (&format!("{oauth}\"https://idp.example/token\""), "https needs to know whom to trust"),
        (&format!("{oauth}\"http://u:p@127.0.0.1/token\""), "it holds neither a user"),
    ] {
        let error = with(text).expect_err(text);
        assert!(error.starts_with("/etc/sortie/gateway.toml:") && error.contains(said), "{text}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn credentials_of_one_route_have_to_fit_together() {
    let one = |name: &str, rest: &str| {
        format!("[[routes.wiki.credentials]]\nname = \"{name}\"\nkind = \"bearer\"\nsecret.env = \"T\"\n{rest}\n")
    };
    let route = "[routes.wiki]\nupstream = \"http://10.0.0.5:80\"\n";
    for (text, said) in [
        (format!("{route}{}{}", one("a", "agents = [\"x\"]"), one("a", "")), "two credentials `a`"),
        (format!("{route}{}{}", one("a", ""), one("b", "")), "never used, since `a` before it is for every call"),
        (format!("{route}authorization = \"forward\"\n{}", one("a", "")), "cannot get both"),
        (
            format!("[routes.f]\nupstream = \"builtin:files\"\nroot = \"/r\"\n{}", one("a", "").replace("wiki", "f")),
            "asks for no credential",
        ),
    ] {
        let error = parse(&text).expect_err(&text);
        assert!(error.contains(said), "{text}: {error}");
    }
    let forwarded = format!("{route}authorization = \"forward\"\n{}", one("a", "header = \"X-Api-Key\""));
    assert!(parse(&forwarded.replace("bearer", "header")).is_ok());
}

#[test]
fn wrong_vaults_are_named() {
    let route = "[routes.wiki]\nupstream = \"http://10.0.0.5:80\"\n[vault.corp]\n";
    for (text, said) in [
        ("address = \"https://v:1\"\ntoken.env = \"T\"", ":3: vault.corp.address: https needs to know whom to trust"),
        ("address = \"http://v:1\"\ntoken.env = \"T\"", "secrets go over https://"),
        ("address = \"http://127.0.0.1:1\"\ntoken = \"hush\"", "expected the place of a secret"),
        ("address = \"http://127.0.0.1:1\"", "vault.corp: it needs one of token and approle"),
        ("address = \"http://127.0.0.1:1\"\ntoken.env = \"T\"\nnamespace = \"\"", "namespace"),
        (
            "address = \"http://127.0.0.1:1\"\ntoken = { vault = \"corp\", path = \"a\", field = \"f\" }",
            "cannot be in a vault",
        ),
    ] {
        let error = parse(&format!("{route}{text}\n")).expect_err(text);
        assert!(error.contains(said) && !error.contains("hush"), "{text}: {error}");
    }
}
