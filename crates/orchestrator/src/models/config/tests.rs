use super::*;

fn parse(text: &str) -> Result<ModelsConfig, String> {
    ModelsConfig::parse(text, Path::new("/etc/sortie/models.toml")).map_err(|error| error.to_string())
}

fn with(more: &str) -> Result<ModelsConfig, String> {
    parse(&format!(
        "[[upstreams]]\nname = \"main\"\nmatch = [\"claude-*\"]\nbase_url = \"https://models.example\"\n{more}"
    ))
}

#[test]
fn the_documents_examples_are_settings() {
    let document = include_str!("../../../../../docs/models.md");
    let mut count = 0;
    for example in document.split("```toml\n").skip(1) {
        let text = example.split("```").next().expect("example");
        parse(text).expect(text);
        count += 1;
    }
    assert_eq!(count, 1);
}

#[test]
fn what_is_left_out_is_usual() {
    let config = with("key = { file = \"main.key\" }").expect("settings");
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.credential.as_ref().expect("key").source().kind(), "file");
    assert_eq!(upstream.credential.as_ref().and_then(CredentialSpec::header).expect("header"), "x-api-key");
    assert!(format!("{upstream:?}").contains("/etc/sortie/main.key"), "relative to the file");
    assert_eq!((upstream.model.as_str(), upstream.max_in_flight), ("*", 256));
    assert!(upstream.prompt_caching && upstream.trust.include_system_cas);
    let bearer = with("auth = \"bearer\"\nkey = { command = [\"pass\", \"x\"] }").expect("settings");
    let credential = bearer.upstreams[0].credential.as_ref().expect("key");
    assert_eq!(credential.header().expect("header"), "authorization");
}

#[test]
fn what_cannot_be_is_said() {
    for (more, why) in [
        ("model = \"\"", "model: a name"),
        ("max_in_flight = 0", "max_in_flight: 1 to"),
        ("max_tokens = 0", "max_tokens: 1 to"),
        ("context_window = 5", "context_window: at least"),
        ("body = { stream = false }", "body.stream: this member is filled in"),
        ("omit = [\"model\"]", "omit:"),
        ("headers = { Authorization = \"x\" }", "headers.Authorization: a secret does not belong"),
        ("headers = { x-api-key = \"x\" }", "a secret does not belong"),
        ("headers = { Host = \"x\" }", "filled in by Sortie"),
        ("headers = { \"a b\" = \"x\" }", "no name of a header"),
        ("headers = { a = \"\\n\" }", "no value of a header"),
        ("proxy = \"socks5://h:1\"", "proxy: it begins with"),
        ("proxy = \"http://me:pw@h:1\"", "no name and password"),
        ("tls = { include_system_cas = false }", "nobody is trusted"),
        ("key = {}", "a key is at one place"),
        ("key = { file = \"a\", env = \"B\" }", "a key is at one place"),
        ("key = { vault = \"a\" }", "unknown field `vault`"),
        ("timeouts = { connect = \"0s\" }", "a duration is written as"),
        ("timeout = \"1s\"", "line 5: unknown field `timeout`"),
    ] {
        let error = with(more).expect_err(more);
        assert!(error.starts_with("/etc/sortie/models.toml: ") && error.contains(why), "{more}: {error}");
    }
    let url = |url: &str| {
        parse(&format!("[[upstreams]]\nname = \"a\"\nmatch = [\"*\"]\nbase_url = \"{url}\"")).expect_err(url)
    };
    assert!(url("http://models.example").contains("insecure_http"));
    assert!(url("ftp://models.example").contains("https://"));
    assert!(url("https://models.example/v1/messages").contains("put behind"));
    assert!(
        parse("[[upstreams]]\nname = \"a b\"\nmatch = [\"*\"]\nbase_url = \"https://a\"")
            .expect_err("name")
            .contains("name:")
    );
    assert!(parse("[scripts]\n\"a b\" = \"x\"").expect_err("name").contains("scripts.a b: a name"));
    let twice = format!("{0}{0}", "[[upstreams]]\nname = \"a\"\nmatch = [\"*\"]\nbase_url = \"https://a\"\n");
    assert!(parse(&twice).expect_err("twice").contains("another upstream of this name"));
}

#[test]
fn no_error_shows_a_key_that_was_written_into_the_file() {
    let key = "sk-very-secret";
    for more in [
        format!("key = \"{key}\""),
        format!("headers = {{ authorization = \"Bearer {key}\" }}"),
        format!("key = {{ file = \"x\" }} {key}"),
        format!("proxy = \"http://u:{key}@h\""),
    ] {
        let error = with(&more).expect_err(&more);
        assert!(!error.contains(key), "{error}");
    }
    let config = with(&format!("headers = {{ x-key = \"{key}\" }}")).expect("settings");
    assert!(!format!("{config:?}").contains(key));
}

#[test]
fn what_is_missing_is_found_before_it_is_needed() {
    let dir = tempfile::tempdir().expect("dir");
    std::fs::write(dir.path().join("bad.json"), "{\"script\": [{}, {\"x\": 1}]}").expect("written");
    let text = "[[upstreams]]\nname = \"a\"\nmatch = [\"*\"]\nbase_url = \"https://a\"\nkey = { env = \"SORTIE_NO_SUCH\" }\n\
                tls = { ca_file = \"no.pem\" }\n[scripts]\nbad = \"bad.json\"\ngone = \"gone.json\"";
    let config = ModelsConfig::parse(text, &dir.path().join("models.toml")).expect("settings");
    let missing = config.check();
    let found: Vec<bool> = ["SORTIE_NO_SUCH is not set", "no.pem", "unknown field `x`", "gone.json: cannot be read"]
        .iter()
        .zip(&missing)
        .map(|(why, said)| said.contains(why))
        .collect();
    assert_eq!(found, [true; 4], "{missing:?}");
}
