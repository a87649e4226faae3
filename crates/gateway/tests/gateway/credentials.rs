//! With whose secret calls go on, and that nobody else gets to see it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use sortie_runtime::TaskSet;
use sortie_testkit::VaultServer;
use sortie_testkit::vault::ROLE_ID;
use sortie_tls::{SetupDir, SetupFile};

use crate::support::*;

/// Writes a file that only we may read beside the settings.
pub(crate) fn private(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

pub(crate) fn setup_path(dir: &SetupDir) -> std::path::PathBuf {
    dir.path(SetupFile::TunnelId).parent().expect("directory").to_owned()
}

fn credential(name: &str, rest: &str) -> String {
    format!("[[routes.docs.credentials]]\nname = \"{name}\"\n{rest}\n")
}

/// A call by this subject.
pub(crate) async fn call_as(world: &World, subject: &str, extra: &[(&str, &str)]) -> Response<hyper::body::Incoming> {
    let token = world.caller.hub.sign(&world.caller.claims(HOST, subject));
    let mut request = http::Request::builder().uri("/mcp").header("host", HOST).header("sortie-identity", token);
    for (name, value) in extra {
        request = request.header(*name, *value);
    }
    world.call(request.body(full("")).expect("request")).await
}

fn last(upstream: &Upstream, header: &str) -> Vec<String> {
    let seen = upstream.seen.lock().expect("lock");
    let values = seen.last().expect("a request").headers.get_all(header);
    values.iter().map(|value| value.to_str().expect("text").to_owned()).collect()
}

/// The fields of a form.
type Form = Vec<(String, String)>;

#[tokio::test]
async fn each_caller_gets_the_first_credential_that_is_for_it() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let config = upstream.config()
        + &credential(
            "ann",
            "callers = [\"user:ann\"]\nkind = \"header\"\nheader = \"X-Api-Key\"\nsecret.file = \"ann\"",
        )
        + &credential(
            "team",
            "callers = [\"user:*\"]\nworkspaces = [\"wrkspc_1\"]\nkind = \"bearer\"\nsecret.file = \"team\"",
        );
    let world = World::start_with(&tasks, &config, Default::default(), |dir| {
        private(&setup_path(dir), "ann", "secret-of-ann\n");
        private(&setup_path(dir), "team", "secret-of-team");
    })
    .await;
    // What the caller has sent by that name does not get through, however it is spelled.
    let sent = [("x-api-key", "mine"), ("x_api_key", "mine"), ("authorization", "Bearer mine")];
    assert_eq!(text(call_as(&world, "user:ann", &sent).await).await, "ok");
    assert_eq!(last(&upstream, "x-api-key"), ["secret-of-ann"]);
    assert!(last(&upstream, "x_api_key").is_empty() && last(&upstream, "authorization").is_empty());
    assert_eq!(text(call_as(&world, "user:ben", &sent).await).await, "ok");
    assert_eq!(last(&upstream, "authorization"), ["Bearer secret-of-team"]);
    let calls = upstream.count();
    let (status, hop, body) = refusal(call_as(&world, "svc:cron", &[]).await).await;
    assert_eq!((status, hop.as_str()), (403, "policy"), "{body}");
    assert!(body.to_string().contains("route `docs` has no credential for this caller"), "{body}");
    assert_eq!(upstream.count(), calls, "a call without a credential goes nowhere");
}

#[tokio::test]
async fn a_file_that_changes_is_used_and_one_that_breaks_is_not() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let config = upstream.config() + &credential("wiki", "kind = \"bearer\"\nsecret.file = \"wiki\"");
    let start = |dir: &SetupDir| private(&setup_path(dir), "wiki", "first-secret");
    let world = World::start_with(&tasks, &config, Default::default(), start).await;
    call_as(&world, "user:1", &[]).await;
    assert_eq!(last(&upstream, "authorization"), ["Bearer first-secret"]);
    private(world.path(), "wiki.new", "second-secret");
    std::fs::rename(world.path().join("wiki.new"), world.path().join("wiki")).expect("rename");
    let replaced = async {
        loop {
            call_as(&world, "user:1", &[]).await;
            if last(&upstream, "authorization") == ["Bearer second-secret"] {
                return;
            }
        }
    };
    soon(replaced).await;
}

#[tokio::test]
async fn what_is_missing_keeps_the_gateway_from_starting_and_names_itself() {
    use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    for (secret, said) in [
        ("secret.env = \"SORTIE_TEST_NO_SUCH\"", "the environment variable SORTIE_TEST_NO_SUCH is not set"),
        ("secret.file = \"absent\"", "absent: No such file"),
        ("secret.file = \"open\"", "its permissions 0644 let others read or change it; chmod 0600"),
        ("secret.command = [\"no-such-program-here\"]", "there is no program `no-such-program-here`"),
    ] {
        std::fs::write(world.path().join("open"), "x").expect("write");
        std::fs::set_permissions(world.path().join("open"), std::fs::Permissions::from_mode(0o644)).expect("mode");
        let text = upstream.config() + &credential("wiki", &format!("kind = \"bearer\"\n{secret}"));
        let config = GatewayConfig::parse(&text, &world.path().join("gateway.toml")).expect("config");
        let found = config.check_files();
        assert!(found.iter().any(|problem| problem.contains(said)), "{said}: {found:?}");
        let setup = Setup::load(world.path()).expect("setup");
        let started = Gateway::start(config, setup, GatewayOptions::default(), tasks.clone()).await;
        let error = started.expect_err("refused").to_string();
        assert!(error.contains(said) && error.contains("gateway.toml:"), "{said}: {error}");
        assert!(error.contains("routes.docs.credentials.0.secret"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_repeats_the_secret_is_rid_of_it() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |request: http::Request<hyper::body::Incoming>| async move {
        let given = request.headers()["authorization"].clone();
        let bare = given.to_str().expect("text").trim_start_matches("Basic ").to_owned();
        let mut response = Response::new(full("ok"));
        response.headers_mut().insert("x-whole", given);
        response.headers_mut().insert("x-within", format!("you sent {bare}!").parse().expect("value"));
        response.headers_mut().insert("x-password", "open-sesame-now".parse().expect("value"));
        response.headers_mut().insert("x-other", "left alone".parse().expect("value"));
        response
    })
    .await;
    let rest = "kind = \"basic\"\nusername = \"bot\"\nsecret.file = \"wiki\"";
    let config = upstream.config() + &credential("wiki", rest);
    let start = |dir: &SetupDir| private(&setup_path(dir), "wiki", "open-sesame-now");
    let world = World::start_with(&tasks, &config, Default::default(), start).await;
    let response = call_as(&world, "user:1", &[]).await;
    let headers = response.headers();
    for name in ["x-whole", "x-within", "x-password"] {
        assert_eq!(headers[name], "[redacted]", "{name}");
    }
    assert_eq!(headers["x-other"], "left alone");
    assert_eq!(last(&upstream, "authorization"), ["Basic Ym90Om9wZW4tc2VzYW1lLW5vdw=="]);
}

#[tokio::test]
async fn leases_outlive_a_reload_and_end_with_the_gateway() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let server = VaultServer::start().await.expect("vault");
    let vault = format!(
        "[vault.corp]\naddress = \"{}\"\napprole = {{ role_id = \"{ROLE_ID}\", secret_id = {{ file = \"id\" }} }}\n",
        server.url()
    );
    let rest = "kind = \"basic\"\nusername_field = \"username\"\nsecret = { vault = \"corp\", \
                path = \"database/creds/reader\", field = \"password\" }";
    let config = upstream.config() + &credential("db", rest) + &vault;
    let secret_id = server.state().secret_id.clone();
    let start = |dir: &SetupDir| private(&setup_path(dir), "id", &secret_id);
    let world = World::start_with(&tasks, &config, Default::default(), start).await;
    assert_eq!(call_as(&world, "user:1", &[]).await.status(), 200);
    let used = last(&upstream, "authorization");

    let file = world.path().join("gateway.toml");
    std::fs::write(&file, &config).expect("write");
    world.gateway.watch(file.clone());
    std::fs::write(&file, config.replace("[routes.docs]\n", "[routes.docs]\ndeadline = \"9s\"\n")).expect("write");
    let since = world.gateway.readiness().config.since;
    world.gateway.reload();
    soon(async {
        while world.gateway.readiness().config.since == since {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            world.gateway.reload();
        }
    })
    .await;
    assert_eq!(call_as(&world, "user:1", &[]).await.status(), 200);
    assert_eq!(last(&upstream, "authorization"), used, "what has not changed goes on");
    assert_eq!(server.state().count("POST auth/approle/login"), 1);

    // A route that no longer needs it gives it back.
    std::fs::write(&file, upstream.config() + &vault).expect("write");
    world.gateway.reload();
    until(|| server.state().live_leases().is_empty()).await;
    std::fs::write(&file, &config).expect("write");
    world.gateway.reload();
    until(|| !server.state().live_leases().is_empty()).await;
    world.gateway.drain().await;
    assert_eq!(server.state().live_leases(), Vec::<String>::new());
    assert_eq!(server.state().live_tokens(), 0);
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_refuses_calls_by_name() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let server = VaultServer::start().await.expect("vault");
    server.state().sealed = true;
    let config = upstream.config()
        + &credential(
            "wiki",
            "kind = \"bearer\"\nsecret = { vault = \"corp\", path = \"secret/data/x\", field = \"f\" }",
        )
        + &format!("[vault.corp]\naddress = \"{}\"\ntoken.file = \"token\"\n", server.url());
    let token = server.state().issue_token();
    let start = |dir: &SetupDir| private(&setup_path(dir), "token", &token);
    let world = World::start_with(&tasks, &config, Default::default(), start).await;
    let (status, hop, body) = refusal(call_as(&world, "user:1", &[]).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"), "{body}");
    let said = "credential `wiki` cannot be used: the vault is sealed or starting";
    assert_eq!(body["error"]["details"]["reason"], said);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_caller_s_identity_is_exchanged_and_a_refused_token_is_replaced() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |_| async {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert("www-authenticate", "Bearer error=\"invalid_token\"".parse().expect("value"));
        response
    })
    .await;
    let forms: std::sync::Arc<std::sync::Mutex<Vec<Form>>> = std::sync::Arc::default();
    let asked = forms.clone();
    let issuer = Upstream::serve(&tasks, move |request: http::Request<hyper::body::Incoming>| {
        let asked = asked.clone();
        async move {
            let body = request.into_body().collect().await.expect("body").to_bytes();
            let mut asked = asked.lock().expect("lock");
            asked.push(url::form_urlencoded::parse(&body).into_owned().collect());
            let token = format!("token-number-{}", asked.len());
            Response::new(full(json!({"access_token": token, "token_type": "Bearer", "expires_in": 600}).to_string()))
        }
    })
    .await;
    let rest = format!(
        "kind = \"token-exchange\"\nsecret.file = \"client\"\nclient_id = \"gw\"\ntoken_url = \"http://{}/token\"\n\
         audience = \"wiki\"",
        issuer.addr
    );
    let config = upstream.config() + &credential("wiki", &rest);
    let start = |dir: &SetupDir| private(&setup_path(dir), "client", "client-secret-1");
    let world = World::start_with(&tasks, &config, Default::default(), start).await;

    // The 401 is passed on as it is, the call is not repeated, and the next one has another token.
    let response = call_as(&world, "user:ann", &[]).await;
    assert_eq!((response.status().as_u16(), upstream.count()), (401, 1));
    assert_eq!(response.headers()["www-authenticate"], "Bearer error=\"invalid_token\"");
    assert_eq!(last(&upstream, "authorization"), ["Bearer token-number-1"]);
    call_as(&world, "user:ann", &[]).await;
    assert_eq!(last(&upstream, "authorization"), ["Bearer token-number-2"]);
    // ... but not one for every call, where the upstream refuses them all.
    call_as(&world, "user:ann", &[]).await;
    assert_eq!(last(&upstream, "authorization"), ["Bearer token-number-2"]);
    call_as(&world, "user:ben", &[]).await;
    assert_eq!(last(&upstream, "authorization"), ["Bearer token-number-3"]);

    let forms = forms.lock().expect("lock");
    let field = |form: usize, name: &str| {
        forms[form].iter().find(|(field, _)| field == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    assert_eq!(field(0, "grant_type"), "urn:ietf:params:oauth:grant-type:token-exchange");
    assert_eq!((field(0, "audience").as_str(), field(0, "client_secret").as_str()), ("wiki", ""));
    let subject = |form| {
        use base64::Engine as _;
        let token = field(form, "subject_token");
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("JWT"));
        let claims: serde_json::Value = serde_json::from_slice(&claims.expect("base64")).expect("json");
        claims["sub"].as_str().expect("sub").to_owned()
    };
    assert_eq!((subject(0), subject(2)), ("user:ann".to_owned(), "user:ben".to_owned()));
}
