//! Planted secrets of every kind, real calls that succeed and fail, and then: nobody but the one who is meant to get a
//! secret has seen it, in any spelling.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use reqwest::Method;
use serde_json::json;
use sortie_testkit::vault::ROLE_ID;
use sortie_testkit::{Process, Program, TempHome, VaultServer};

use crate::common::{Answer, SOON, Tunnel, Upstream, World, client, modern, run, send, sortie, text};

/// Every secret that is planted; characters that each encoding treats differently.
const FILE: &str = "canary-of-file/+%9f31c7";
const ENV: &str = "canary-of-env/+%27ab04";
const COMMAND: &str = "canary-of-command/+%c3d90e";
const KV: &str = "canary-of-kv/+%5b6e11";
const SECRET_ID: &str = "canary-of-approle/+%8d42fa";
const CLIENT: &str = "canary-of-client/+%e07b63";
const TOKEN: &str = "canary-of-token.0a9c55";
const INBOUND: &str = "canary-of-caller.b81d2e";
/// What goes through and is kept by nobody.
const ARGUMENT: &str = "canary-of-argument/+%44c0de";
const ANSWER: &str = "canary-of-answer.71f3aa";

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\ncanary-of-answer.71f3aa";

/// A program whose whole output goes into a file.
pub(crate) fn logged(home: &TempHome, log: &Path, args: &[&str]) -> Process {
    let to_file = format!("exec \"$0\" \"$@\" > {} 2>&1", log.display());
    let program = home.apply(Program::new("sh").args(["-c", &to_file, env!("CARGO_BIN_EXE_sortie")]));
    program.env("SORTIE_LOG", "trace").env("CANARY_ENV", ENV).args(args).spawn().expect("start")
}

pub(crate) fn private(home: &TempHome, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = home.write(name, text).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    path
}

/// How a secret may be spelled: as it is, in hexadecimal, for URLs, and in base64 at each of its three alignments.
fn spellings(secret: &str) -> Vec<Vec<u8>> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let url: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut all = vec![secret.to_owned(), hex.to_uppercase(), hex, url.to_lowercase(), url.clone(), percent];
    // OAuth spells a client's secret for URLs first (RFC 6749, section 2.3.1).
    for (engine, spelled) in [(STANDARD, secret), (URL_SAFE, secret), (STANDARD, url.as_str())] {
        for before in 0..3 {
            let text = engine.encode([b"xxx".get(..before).expect("three"), spelled.as_bytes()].concat());
            // Less what its neighbours have a part in.
            let (from, to) = (if before == 0 { 0 } else { before + 1 }, text.trim_end_matches('=').len() - 1);
            all.push(text[from..to].to_owned());
        }
    }
    all.into_iter().map(String::into_bytes).collect()
}

pub(crate) fn holds(haystack: &[u8], secret: &str) -> bool {
    spellings(secret).iter().any(|spelling| haystack.windows(spelling.len()).any(|window| window == spelling))
}

/// All files below a directory.
pub(crate) fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("directory").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            files(&entry, found);
        } else if entry.is_file() {
            found.push(entry);
        }
    }
}

struct Places {
    file: Upstream,
    env: Upstream,
    command: Upstream,
    kv: Upstream,
    database: Upstream,
    oauth: Upstream,
    issuer: Upstream,
    no_issuer: Upstream,
    broken: Upstream,
    refusing: Upstream,
    vault: VaultServer,
}

impl Places {
    async fn start() -> Self {
        let saying = |text: String| Upstream::saying(text.into_bytes());
        let json = |status: &str, body: serde_json::Value| {
            let body = body.to_string();
            format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let granted = json!({"access_token": TOKEN, "token_type": "Bearer", "expires_in": 600});
        let refused = json!({"error": "invalid_client", "error_description": format!("{CLIENT} is wrong")});
        let vault = VaultServer::start().await.expect("vault");
        {
            let mut state = vault.state();
            state.secret_id = SECRET_ID.to_owned();
            state.put_kv2("secret/data/wiki", json!({"token": KV}));
            state.put_kv2("secret/data/forbidden", json!({"token": KV}));
            state.forbidden.push("secret/data/forbidden".to_owned());
        }
        let echo = format!(
            "HTTP/1.1 401 Unauthorized\r\nx-you-sent: Bearer {FILE}\r\nwww-authenticate: Bearer realm=\"{FILE}\"\r\n\
             content-length: 0\r\n\r\n"
        );
        Self {
            file: Upstream::saying(OK).await,
            env: Upstream::saying(OK).await,
            command: Upstream::saying(OK).await,
            kv: Upstream::saying(OK).await,
            database: Upstream::saying(OK).await,
            oauth: Upstream::saying(OK).await,
            issuer: saying(json("200 OK", granted)).await,
            no_issuer: saying(json("401 Unauthorized", refused)).await,
            broken: Upstream::saying("HTTP/1.1 2000 Broken\r\n\r\n").await,
            refusing: saying(echo).await,
            vault,
        }
    }

    /// Each route, where it leads, and its credential.
    fn settings(&self, home: &TempHome) -> String {
        private(home, "file-secret", FILE);
        private(home, "command-secret", COMMAND);
        private(home, "client-secret", CLIENT);
        private(home, "approle-secret", SECRET_ID);
        let file = "kind = \"bearer\"\nsecret.file = \"file-secret\"".to_owned();
        let kv = |path: &str| {
            format!("kind = \"bearer\"\nsecret = {{ vault = \"corp\", path = \"{path}\", field = \"token\" }}")
        };
        let oauth = |kind: &str, issuer: &Upstream, auth: &str| {
            format!(
                "kind = \"{kind}\"\nsecret.file = \"client-secret\"\nclient_id = \"gw\"\ntoken_url = \"{}/token\"\n\
                 client_auth = \"{auth}\"",
                issuer.url()
            )
        };
        let database = "kind = \"basic\"\nusername_field = \"username\"\n\
                        secret = { vault = \"corp\", path = \"database/creds/reader\", field = \"password\" }";
        let command = "kind = \"basic\"\nusername = \"bot\"\nsecret.command = [\"cat\", \"command-secret\"]"
            .replace("command-secret", &home.join("command-secret").display().to_string());
        let mut text = String::new();
        for (route, upstream, credential) in [
            ("file", &self.file, file.clone()),
            ("env", &self.env, "kind = \"header\"\nheader = \"X-Api-Key\"\nsecret.env = \"CANARY_ENV\"".to_owned()),
            ("command", &self.command, command),
            ("kv", &self.kv, kv("secret/data/wiki")),
            ("database", &self.database, database.to_owned()),
            ("oauth", &self.oauth, oauth("oauth", &self.issuer, "client_secret_post")),
            ("exchange", &self.oauth, oauth("token-exchange", &self.issuer, "client_secret_basic")),
            ("no-token", &self.oauth, oauth("oauth", &self.no_issuer, "client_secret_basic")),
            ("forbidden", &self.kv, kv("secret/data/forbidden")),
            ("broken", &self.broken, file.clone()),
            ("refusing", &self.refusing, file),
        ] {
            text += &format!(
                "[routes.{route}]\nupstream = \"{}\"\n[[routes.{route}.credentials]]\nname = \"{route}\"\n{credential}\n",
                upstream.url()
            );
        }
        text + &format!(
            "[upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n[vault.corp]\naddress = \"{}\"\n\
             approle = {{ role_id = \"{ROLE_ID}\", secret_id = {{ file = \"approle-secret\" }} }}\n",
            self.vault.url()
        )
    }

    /// Whether each one got its secret: otherwise nothing would be shown by nobody else having it.
    fn got_theirs(&self) {
        let got = |upstream: &Upstream, secret: &str| {
            let seen = upstream.seen();
            let all: Vec<u8> = seen.iter().flat_map(|seen| [seen.head.as_bytes(), &seen.body].concat()).collect();
            assert!(holds(&all, secret), "{secret} did not arrive: {}", String::from_utf8_lossy(&all));
            assert!(!holds(&all, INBOUND), "the caller's own token arrived");
        };
        for (upstream, secret) in [
            (&self.file, FILE),
            (&self.env, ENV),
            (&self.command, COMMAND),
            (&self.kv, KV),
            (&self.oauth, TOKEN),
            (&self.issuer, CLIENT),
            (&self.no_issuer, CLIENT),
            (&self.broken, FILE),
            (&self.refusing, FILE),
        ] {
            got(upstream, secret);
        }
        let given = self.vault.state().given.clone();
        assert!(given.iter().any(|secret| self.database.seen().iter().any(|seen| holds(seen.head.as_bytes(), secret)
            || seen.header("authorization").iter().any(|value| {
                let pair = STANDARD.decode(value.trim_start_matches("Basic ")).unwrap_or_default();
                holds(&pair, secret)
            }))));
    }
}

/// A running hub and gateway that log everything, each into a file.
async fn traced(home: TempHome, settings: &str) -> (World, Tunnel, Process, String) {
    let path = |name: &str| home.join(name).display().to_string();
    let hub_args = ["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"].map(str::to_owned);
    let hub_args: Vec<_> =
        hub_args.into_iter().chain([path("hub"), "--ready-file".into(), path("hub.ready")]).collect();
    let hub_args: Vec<&str> = hub_args.iter().map(String::as_str).collect();
    let mut hub = logged(&home, &home.join("hub.log"), &hub_args);
    let ready = hub.ready_file(&home.join("hub.ready"), SOON).await.expect("hub serves");
    let world = World {
        api_url: text(&ready, "/api_url").to_owned(),
        api_key: text(&ready, "/api_key").to_owned(),
        edge_addr: text(&ready, "/edge_addr").to_owned(),
        edge_ca: text(&ready, "/edge_ca_file").into(),
        http: client(),
        hub,
        home,
        env: Vec::new(),
    };
    let tunnel = world.tunnel("setup").await;
    let path = |name: &str| world.home.join(name).display().to_string();
    world.home.write("gateway.toml", settings).expect("settings");
    let (config, data, ready_file) = (path("gateway.toml"), path("gateway.data"), path("gateway.ready"));
    let setup = tunnel.dir.display().to_string();
    let gateway_args = [
        "gateway",
        "--health",
        "127.0.0.1:0",
        "--config",
        &config,
        "--data-dir",
        &data,
        "--setup-dir",
        &setup,
        "--ready-file",
        &ready_file,
    ];
    let mut gateway = logged(&world.home, &world.home.join("gateway.log"), &gateway_args);
    let ready = gateway.ready_file(&world.home.join("gateway.ready"), SOON).await.expect("gateway serves");
    let health = text(&ready, "/health_url").to_owned();
    (world, tunnel, gateway, health)
}

pub(crate) fn whole(answer: &Answer) -> Vec<u8> {
    let mut all = answer.body.clone();
    for (name, value) in &answer.headers {
        all.extend_from_slice(format!("\n{name}: ").as_bytes());
        all.extend_from_slice(value.as_bytes());
    }
    all
}

#[tokio::test]
async fn no_secret_is_anywhere_but_where_it_belongs() {
    let places = Places::start().await;
    let home = TempHome::new().expect("home");
    let settings = places.settings(&home);
    let (world, tunnel, mut gateway, health) = traced(home, &settings).await;
    let (_, use_key) = world.use_key(&[&tunnel.id]).await;

    // What anybody was answered, and what any process has written.
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    for (route, status) in [
        ("file", 200),
        ("env", 200),
        ("command", 200),
        ("kv", 200),
        ("database", 200),
        ("oauth", 200),
        ("exchange", 200),
        ("no-token", 502),
        ("forbidden", 502),
        ("broken", 502),
        ("refusing", 401),
        ("nowhere", 502),
    ] {
        for key in [&use_key, &world.api_key] {
            let request = world.http.request(Method::GET, world.url(&tunnel, route, "/mcp")).header("x-api-key", key);
            let answer = send(request.header("authorization", format!("Bearer {INBOUND}"))).await;
            assert_eq!(answer.status, status, "{route}: {}", answer.text());
            said.push((format!("the answer of {route}"), whole(&answer)));
        }
        let post =
            world.request(Method::POST, &tunnel, route, "/mcp").header("authorization", format!("Bearer {INBOUND}"));
        let answer = send(modern(post, &json!(INBOUND.len()), "echo", &json!({ "text": ARGUMENT }))).await;
        said.push((format!("the answer of {route} to MCP"), whole(&answer)));
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        said.push((format!("{path} of the gateway"), whole(&send(world.http.get(format!("{health}{path}"))).await)));
        said.push((
            format!("{path} of the hub"),
            whole(&send(world.http.get(format!("{}{path}", world.api_url))).await),
        ));
    }
    let file = world.home.join("gateway.toml").display().to_string();
    for args in [
        vec!["config", "show", &file],
        vec!["config", "show", &file, "--output", "json"],
        vec!["config", "show", &file, "--output", "toml"],
        vec!["config", "check", &file],
    ] {
        let done = run(sortie(&world.home).env("CANARY_ENV", ENV).args(&args)).await;
        assert_eq!(done.code, 0, "{}", done.output);
        said.push((args.join(" "), done.output.into_bytes()));
    }
    places.got_theirs();
    let arguments: Vec<u8> = places.file.seen().iter().flat_map(|seen| seen.body.clone()).collect();
    assert!(holds(&arguments, ARGUMENT), "the argument did not arrive");
    assert!(said.iter().any(|(_, text)| holds(text, ANSWER)), "the answer did not arrive");

    // A core would hold them all.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.id())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");

    let stopped = gateway.stop(SOON).await.expect("it stops");
    assert!(stopped.success(), "{stopped}");
    assert_eq!(places.vault.state().live_tokens(), 0, "what was borrowed is given back");

    let mut below = Vec::new();
    files(world.home.path(), &mut below);
    let planted = ["file-secret", "command-secret", "client-secret", "approle-secret"];
    for path in below {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        if !planted.contains(&name.as_str()) {
            said.push((path.display().to_string(), std::fs::read(&path).expect("read")));
        }
    }
    let log = |name: &str| said.iter().find(|(place, _)| place.ends_with(name)).map_or(0, |(_, text)| text.len());
    assert!(log("gateway.log") > 5_000 && log("hub.log") > 5_000, "there is something to look through");

    // Its secret part: 32 bytes behind the head of PKCS #8 (RFC 8410).
    let audit_key = std::fs::read(world.home.join("gateway.data").join("audit.key")).expect("key");
    let audit_key = audit_key.get(16..48).expect("a key").to_vec();
    let hex: String = audit_key.iter().map(|byte| format!("{byte:02x}")).collect();
    let audit_keys = [hex.into_bytes(), STANDARD.encode(&audit_key).into_bytes(), audit_key];
    let planted = [FILE, ENV, COMMAND, KV, SECRET_ID, CLIENT, TOKEN, INBOUND].map(str::to_owned);
    let given = places.vault.state().given.clone();
    // The hub writes its own key where its operators find it, and nowhere else.
    let own = |place: &str| place.ends_with("hub.ready") || place.contains("/hub/");
    for (place, text) in &said {
        for secret in planted.iter().chain(&given).chain([&use_key]) {
            assert!(!holds(text, secret), "{secret} is in {place}: {}", String::from_utf8_lossy(text));
        }
        assert!(own(place) || !holds(text, &world.api_key), "the hub's key is in {place}");
        assert!(!holds(text, ARGUMENT), "an argument is in {place}");
        assert!(place.starts_with("the answer of") || !holds(text, ANSWER), "an answer is in {place}");
        let with_key = audit_keys.iter().any(|key| text.windows(key.len()).any(|window| window == key));
        assert_eq!(with_key, place.ends_with("/gateway.data/audit.key"), "the key of the audit, and {place}");
    }
    let audit: Vec<_> = said.iter().filter(|(place, _)| place.contains("/gateway.data/audit/log/")).collect();
    let records: usize = audit.iter().map(|(_, text)| text.iter().filter(|byte| **byte == b'\n').count()).sum();
    assert!(records > 40, "{records} records were looked through");
}

#[test]
fn a_leak_is_found_in_every_spelling() {
    let with = |text: String| format!("some log line {text} that goes on").into_bytes();
    let hex: String = FILE.bytes().map(|byte| format!("{byte:02X}")).collect();
    let url: String = url::form_urlencoded::byte_serialize(FILE.as_bytes()).collect();
    for leak in [
        FILE.to_owned(),
        hex,
        url,
        STANDARD.encode(FILE),
        URL_SAFE.encode(FILE),
        STANDARD.encode(format!("bot:{FILE}")),
        STANDARD.encode(format!("a:{FILE}:b")),
        STANDARD.encode(format!("robot:{FILE}x")),
    ] {
        assert!(holds(&with(leak.clone()), FILE), "{leak}");
        assert!(!holds(&with(leak), ENV));
    }
}
