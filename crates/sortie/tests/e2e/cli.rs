//! The command line: what is printed, what is written with which mode, what is refused with which exit code and words.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, Process, TempHome, free_port};

use crate::common::{
    SOON, Serving, World, client, echo_route, modern, routes, run, send, serving, sortie, text, tunnel_in, until,
};

fn mode(path: impl AsRef<Path>) -> u32 {
    let path = path.as_ref();
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

async fn up(home: &TempHome, more: &[&str]) -> (Process, Value) {
    let ready_file = home.join("up.ready");
    let mut process = sortie(home)
        .args(["up", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--files"])
        .arg(home.path())
        .arg("--ready-file")
        .arg(&ready_file)
        .args(more)
        .spawn()
        .expect("up");
    let ready = process.ready_file(&ready_file, SOON).await.expect("up serves");
    (process, ready)
}

#[tokio::test]
async fn up_finds_its_tunnel_and_keys_again_and_keeps_them_private() {
    let home = TempHome::new().expect("home");
    let echo = EchoServer::start().await.expect("echo");
    let route = format!("tickets={}", echo.url());
    let (mut process, first) = up(&home, &["--route", &route]).await;
    let data = home.join(".local/share/sortie");
    let token = text(&first, "/tunnel/token_file").to_owned();
    for file in [
        home.join("up.ready"),
        home.join(".config/sortie/profile.toml"),
        data.join("use-key.json"),
        data.join("hub/api-key"),
        data.join("hub/store.db"),
        data.join("hub/store.key"),
        data.join("hub/edge-ca/ca.key"),
        data.join("setup/ca.key"),
        data.join("setup/tls.key"),
        token.clone().into(),
    ] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    for dir in [data.join("setup"), data.join("hub/edge-ca")] {
        assert_eq!(mode(&dir), 0o700, "{}", dir.display());
    }

    // What is printed for pasting calls routes and does nothing else.
    process.ready_output("Ctrl-C", SOON).await.expect("banner");
    let printed = process.output();
    let (use_key, api_key) = (text(&first, "/use_key"), text(&first, "/api_key"));
    assert!(printed.contains(use_key) && !printed.contains(api_key), "{printed}");
    assert!(!printed.contains(fs::read_to_string(&token).expect("token").trim()));
    assert!(!printed.contains("sortie-manage-"), "{printed}");
    let http = client();
    for path in ["/v1/tunnels", "/v1/sortie/keys", "/metrics"] {
        let answer = send(http.get(format!("{}{path}", text(&first, "/api_url"))).header("x-api-key", use_key)).await;
        assert_eq!(answer.status, 403, "{path}");
    }
    let tickets = first.pointer("/routes/1").expect("second route");
    let post = http.post(text(tickets, "/local_url")).header("x-api-key", use_key);
    assert_eq!(send(modern(post, &json!(1), "echo", &json!({ "text": "x" }))).await.status, 200);
    // Operator commands find the hub by the profile.
    let listed = run(sortie(&home).args(["tunnels", "list", "--output", "json"])).await.json();
    assert_eq!(text(&listed, "/data/0/id"), text(&first, "/tunnel/id"));

    assert_eq!(process.stop(SOON).await.expect("end").code(), Some(0));
    assert!(!home.join("up.ready").exists());
    run(sortie(&home).args(["tunnels", "list"])).await.failed(1, &["cannot be reached", "is the hub running"]);

    let (mut process, second) = up(&home, &[]).await;
    for same in ["/tunnel/id", "/tunnel/domain", "/use_key", "/api_key"] {
        assert_eq!(text(&first, same), text(&second, same), "{same}");
    }
    let listed = run(sortie(&home).args(["tunnels", "list", "--output", "json"])).await.json();
    assert_eq!(listed.pointer("/data").and_then(Value::as_array).map(Vec::len), Some(1));
    // One process per data directory, and the first is not harmed.
    run(sortie(&home).args(["up", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0"]))
        .await
        .failed(1, &["another sortie process uses the data directory", "--data-dir"]);
    assert_eq!(send(http.get(format!("{}/readyz", text(&second, "/api_url")))).await.status, 200);
    assert_eq!(process.stop(SOON).await.expect("end").code(), Some(0));
}

#[tokio::test]
async fn up_is_for_this_machine_only() {
    let home = TempHome::new().expect("home");
    for flag in ["--api", "--edge"] {
        run(sortie(&home).args(["up", flag, "0.0.0.0:0"])).await.failed(2, &[flag, "loopback only", "sortie hub"]);
    }
    run(sortie(&home).args(["up", "--files", "/nonexistent/dir"])).await.failed(2, &["--files", "not a directory"]);
    for route in ["x", "x=ftp://10.0.0.1", "X Y=http://10.0.0.1:1", "files=http://10.0.0.1:1"] {
        run(sortie(&home).args(["up", "--route", route])).await.failed(2, &["--route"]);
    }
}

#[tokio::test]
async fn everything_can_be_listed_for_people_and_for_programs() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let (key, _) = world.use_key(&[&format!("{}/echo", tunnel.id)]).await;
    let table = async |args: &[&str]| run(world.operator(args)).await.ok();
    let json = async |args: &[&str]| {
        let args: Vec<_> = args.iter().copied().chain(["--output", "json"]).collect();
        run(world.operator(&args)).await.json()
    };
    for (args, head, cell) in [
        (vec!["tunnels", "list"], "DOMAIN", tunnel.domain.as_str()),
        (vec!["certs", "list", &tunnel.id], "FINGERPRINT", "tcrt_"),
        (vec!["keys", "list"], "MAY CALL", &key),
        (vec!["routes", "list"], "GATEWAYS", "terminated"),
        (vec!["mcp", "list"], "TOOL", "progress"),
    ] {
        let printed = table(&args).await;
        assert!(printed.starts_with(|c: char| c.is_ascii_uppercase()), "{printed}");
        assert!(printed.contains(head) && printed.contains(cell), "{printed}");
        let listed = json(&args).await;
        let data = listed.pointer("/data").and_then(Value::as_array).expect("data");
        assert!(!data.is_empty() && listed.to_string().contains(cell.trim()), "{listed}");
    }
    assert!(!table(&["keys", "list"]).await.contains("sortie-use-"), "a secret is shown once only");
    assert!(table(&["tunnels", "get", &tunnel.id]).await.contains(&tunnel.domain));
    assert!(table(&["mcp", "call", "echo", "echo", r#"{"text": "hello there"}"#]).await.contains("hello there"));
    let called = json(&["mcp", "call", "echo", "echo", r#"{"text": "hello there"}"#]).await;
    assert!(called.to_string().contains("hello there"), "{called}");
    let tools = json(&["mcp", "list", "echo"]).await;
    assert_eq!(text(&tools, "/data/0/route"), "echo");

    // Failures: one sentence, and whose turn it is.
    for (args, code, said) in [
        (vec!["mcp", "call", "echo", "fail"], 1, "reports an error"),
        (vec!["mcp", "call", "echo", "nothing"], 1, ""),
        (vec!["mcp", "call", "nothing", "echo"], 1, "no connected gateway serves a route `nothing`"),
        (vec!["mcp", "call", "echo", "echo", "{"], 2, "not a JSON object"),
        (vec!["tunnels", "get", "tnl_unknown"], 1, "404"),
        (vec!["tunnels", "get", "nonsense"], 2, "nonsense"),
        (vec!["keys", "create", "x"], 2, "--grant"),
        (vec!["keys", "create", "x", "--grant", "nonsense"], 2, ""),
        (vec!["certs", "add", &tunnel.id, "/nonexistent.pem"], 2, "cannot be read"),
        (vec!["certs", "archive", &tunnel.id, "tcrt_unknown"], 1, "404"),
        (vec!["nonsense"], 2, "nonsense"),
        (vec!["tunnels", "list", "--output", "xml"], 2, "xml"),
    ] {
        let done = run(world.operator(&args)).await;
        assert!(!done.output.contains("panicked"), "{}", done.output);
        done.failed(code, &[said]);
    }
    let wrong = sortie(&world.home).env("SORTIE_API_URL", &world.api_url).env("SORTIE_API_KEY", "sortie-manage-wrong");
    run(wrong.args(["tunnels", "list"])).await.failed(1, &["401", "check the key"]);
    let empty = TempHome::new().expect("home");
    run(sortie(&empty).args(["tunnels", "list"])).await.failed(2, &["no hub is known", "sortie up", "SORTIE_API_URL"]);
    let (_, secret) = world.use_key(&[&tunnel.id]).await;
    let small = sortie(&empty).env("SORTIE_API_URL", &world.api_url).env("SORTIE_API_KEY", secret);
    run(small.args(["tunnels", "list"])).await.failed(1, &["403", "manage key"]);
}

#[tokio::test]
async fn setup_can_be_repeated_and_renews_what_it_made() {
    let Serving { world, tunnel, mut gateway, echo: _echo } = serving().await;
    let read = |name: &str| fs::read_to_string(tunnel.dir.join(name)).expect(name);
    for (file, private) in [
        ("tunnel-token", true),
        ("ca.key", true),
        ("tls.key", true),
        ("tunnel-id", false),
        ("tunnel-domain", false),
        ("ca.crt", false),
        ("tls.crt", false),
        ("edge-addr", false),
        ("edge-ca.crt", false),
        ("hub-identity.jwks", false),
    ] {
        assert_eq!(mode(tunnel.dir.join(file)), if private { 0o600 } else { 0o644 }, "{file}");
    }
    assert_eq!(mode(&tunnel.dir), 0o700);
    let before: Vec<_> = ["tunnel-id", "tunnel-token", "ca.crt", "ca.key"].map(read).into();
    run(world.init(&tunnel.dir)).await.ok();
    run(world.init(&tunnel.dir)).await.ok();
    assert_eq!(before, ["tunnel-id", "tunnel-token", "ca.crt", "ca.key"].map(read));
    let listed = run(world.operator(&["tunnels", "list", "--output", "json"])).await.json();
    assert_eq!(listed.pointer("/data").and_then(Value::as_array).map(Vec::len), Some(1));
    let certs = run(world.operator(&["certs", "list", &tunnel.id, "--output", "json"])).await.json();
    assert_eq!(certs.pointer("/data").and_then(Value::as_array).map(Vec::len), Some(1));

    // Renewal needs no network and no key, and the gateway that runs takes it over.
    let out = format!("dir:{}", tunnel.dir.display());
    let renew = |more: &[&str]| sortie(&world.home).args(["setup", "renew-cert", "--output", &out]).args(more);
    let old = read("tls.crt");
    run(renew(&["--renew-before", "720h"])).await.ok();
    assert_eq!(read("tls.crt"), old, "not due");
    run(renew(&["--cert-duration", "240h"])).await.ok();
    assert_ne!(read("tls.crt"), old);
    assert_eq!((read("ca.crt"), mode(tunnel.dir.join("tls.key"))), (before[2].clone(), 0o600));
    world.serves(&tunnel, "echo").await;
    gateway.process.kill();
    let config = fs::read_to_string(world.home.join("setup.toml")).expect("config");
    let _again = world.gateway(&tunnel.dir, &config, &[]).await;
    world.serves(&tunnel, "echo").await;
    run(renew(&["--renew-before", "720h"])).await.ok();

    // Another token version rotates once.
    let rotate = |version: &str| world.init(&tunnel.dir).args(["--token-version", version]);
    run(rotate("2")).await.ok();
    let rotated = read("tunnel-token");
    assert_ne!(rotated, before[1]);
    run(rotate("2")).await.ok();
    assert_eq!(read("tunnel-token"), rotated);

    // What is wrong is said.
    let empty = format!("dir:{}", world.home.join("nothing").display());
    run(sortie(&world.home).args(["setup", "renew-cert", "--output", &empty])).await.failed(1, &["setup init"]);
    let init = || sortie(&world.home).args(["setup", "init", "--api-url", &world.api_url]);
    run(init().args(["--output", &empty])).await.failed(2, &["API_TOKEN"]);
    run(init().env("API_TOKEN", &world.api_key)).await.failed(2, &["dir:DIR"]);
    run(init().env("API_TOKEN", "sortie-manage-wrong").args(["--output", &empty])).await.failed(1, &["401"]);
}

#[tokio::test]
async fn a_key_is_not_sent_in_clear_beyond_this_machine() {
    let home = TempHome::new().expect("home");
    for url in ["http://192.0.2.1:4180", "http://hub.example", "ftp://localhost", "nonsense"] {
        let init = sortie(&home).env("API_TOKEN", "sortie-manage-x").args(["setup", "init", "--api-url", url]);
        let done = run(init.args(["--output", &format!("dir:{}", home.join("s").display())])).await;
        done.failed(2, &[url]);
        let list = sortie(&home).env("SORTIE_API_KEY", "sortie-manage-x").env("SORTIE_API_URL", url);
        run(list.args(["tunnels", "list"])).await.failed(2, &[url]);
    }
    assert!(!home.join("s/tunnel-id").exists());
    // A hub for a network has to be named, so that it can have a certificate.
    let hub = sortie(&home).args(["hub", "--api", "0.0.0.0:0", "--edge", "127.0.0.1:0", "--data-dir"]);
    run(hub.arg(home.join("hub"))).await.failed(2, &["--name"]);
}

#[tokio::test]
async fn a_hub_beyond_loopback_speaks_tls_to_its_operators() {
    let home = TempHome::new().expect("home");
    let ready_file = home.join("hub.ready");
    let mut hub = sortie(&home)
        .args(["hub", "--api", "0.0.0.0:0", "--edge", "127.0.0.1:0", "--name", "127.0.0.1", "--data-dir"])
        .arg(home.join("hub"))
        .arg("--ready-file")
        .arg(&ready_file)
        .spawn()
        .expect("hub");
    let ready = hub.ready_file(&ready_file, SOON).await.expect("hub serves");
    let (url, ca) = (text(&ready, "/api_url"), text(&ready, "/api_ca_file"));
    assert!(url.starts_with("https://127.0.0.1:"), "{ready}");
    let list =
        || sortie(&home).env("SORTIE_API_KEY", text(&ready, "/api_key")).args(["tunnels", "list", "--api-url", url]);
    run(list().args(["--api-ca", ca])).await.ok();
    run(list()).await.failed(1, &["cannot be reached"]);
    let dir = home.join("setup");
    let init = sortie(&home).env("API_TOKEN", text(&ready, "/api_key")).args(["setup", "init", "--api-url", url]);
    run(init.args(["--api-ca", ca, "--output", &format!("dir:{}", dir.display())])).await.ok();
    assert!(!tunnel_in(&dir).id.is_empty());
    // In clear there is nobody.
    let clear = client().get(url.replace("https://", "http://")).timeout(Duration::from_secs(5)).send().await;
    assert!(clear.is_err(), "{clear:?}");
}

#[tokio::test]
async fn ports_and_directories_that_are_taken_are_named() {
    let world = World::start().await;
    let api = world.api_url.trim_start_matches("http://").to_owned();
    let other = world.home.join("other");
    let hub = |api: &str, edge: &str, dir: &Path| {
        sortie(&world.home).args(["hub", "--api", api, "--edge", edge, "--data-dir"]).arg(dir)
    };
    run(hub(&api, "127.0.0.1:0", &other)).await.failed(1, &[&api, "--api"]);
    run(hub("127.0.0.1:0", &world.edge_addr, &other)).await.failed(1, &[&world.edge_addr, "--edge"]);
    let taken = world.home.join("hub");
    let place = taken.display().to_string();
    run(hub("127.0.0.1:0", "127.0.0.1:0", &taken)).await.failed(1, &["another sortie process", &place, "--data-dir"]);
    run(hub("nonsense", "127.0.0.1:0", &other)).await.failed(2, &["--api"]);
    // None of this harmed the one that runs.
    assert_eq!(send(world.api(Method::GET, "/v1/tunnels")).await.status, 200);

    let echo = EchoServer::start().await.expect("echo");
    let tunnel = world.tunnel("setup").await;
    let first = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    let gateway = |dir: &str, more: &[&str]| {
        let program = sortie(&world.home).args(["gateway", "--config"]).arg(world.home.join("setup.toml"));
        program.arg("--setup-dir").arg(&tunnel.dir).arg("--data-dir").arg(world.home.join(dir)).args(more)
    };
    run(gateway("setup.data", &[])).await.failed(1, &["another sortie process"]);
    let health = first.health.trim_start_matches("http://");
    run(gateway("second.data", &["--health", health])).await.failed(1, &[health, "--health"]);
    run(gateway("second.data", &["--edge", "nonsense"])).await.failed(2, &["nonsense"]);
    world.serves(&tunnel, "echo").await;
}

#[tokio::test]
async fn a_wrong_setting_is_named_with_its_file() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let route = |line: &str| format!("[routes.up]\nupstream = \"http://10.0.0.1:80\"\n{line}\n");
    let upstream = |line: &str| route(&format!("[upstream]\n{line}"));
    for (config, field) in [
        (String::new(), "routes"),
        ("[routes]\n".to_owned(), "routes"),
        ("[routes.up]\n".to_owned(), "upstream"),
        ("[routes.UP_]\nupstream = \"http://10.0.0.1:80\"\n".to_owned(), "UP_"),
        ("[routes.up]\nupstream = \"10.0.0.1:80\"\n".to_owned(), "routes.up.upstream"),
        ("[routes.up]\nupstream = \"http://10.0.0.1\"\n".to_owned(), "routes.up.upstream"),
        ("[routes.up]\nupstream = \"http://10.0.0.1:80/path\"\n".to_owned(), "routes.up.upstream"),
        ("[routes.up]\nupstream = \"https://10.0.0.1:443\"\n".to_owned(), "routes.up.upstream"),
        ("[routes.up]\nupstream = \"builtin:nothing\"\n".to_owned(), "routes.up.upstream"),
        ("[routes.up]\nupstream = \"builtin:files\"\n".to_owned(), "routes.up.root"),
        ("[routes.up]\nupstream = \"builtin:files\"\nroot = \"/nonexistent/dir\"\n".to_owned(), "up"),
        (route("root = \"/tmp\""), "routes.up.root"),
        (route("authorization = \"maybe\""), "authorization"),
        (route("host = \"a b\""), "routes.up.host"),
        (route("mode = \"open\""), "mode"),
        (route("mode = \"sealed\""), "routes.up.client_ca_file"),
        (route("client_ca_file = \"x.pem\""), "routes.up.client_ca_file"),
        (route("mode = \"sealed\"\nclient_ca_file = \"missing.pem\""), "client_ca_file"),
        (route("deadline = \"soon\""), "deadline"),
        (route("deadline = 5"), "deadline"),
        (route("unknown = 1"), "unknown"),
        (upstream("allowed_ips = [\"10.0.0.0/33\"]"), "upstream.allowed_ips"),
        (upstream("allowed_ips = \"10.0.0.0/8\""), "allowed_ips"),
        (upstream("connect_timeout = \"\""), "connect_timeout"),
        (upstream("tls.ca_file = \"missing.pem\""), "ca_file"),
        (upstream("tls.include_system_cas = 1"), "include_system_cas"),
        (upstream("tls.insecure = true"), "insecure"),
        (route("[link]\nproxy = \"nonsense\""), "link.proxy"),
        (format!("max_request_body = -1\n{}", route("")), "max_request_body"),
        (format!("shutdown_timeout = \"x\"\n{}", route("")), "shutdown_timeout"),
        (format!("log = 1\n{}", route("")), "log"),
        (format!("unknown = 1\n{}", route("")), "unknown"),
        ("[routes.up\n".to_owned(), "1"),
    ] {
        let file = world.home.write("wrong.toml", &config).expect("file");
        let gateway = sortie(&world.home).args(["gateway", "--config"]).arg(&file).arg("--setup-dir").arg(&tunnel.dir);
        let done = run(gateway.arg("--data-dir").arg(world.home.join("data"))).await;
        assert_eq!(done.code, 2, "{config}\n{}", done.output);
        assert!(done.output.contains(field), "`{field}` is not in: {}\n{config}", done.output);
        let named = done.output.contains("wrong.toml") || done.output.contains("missing.pem");
        assert!(named || config.contains("nonexistent"), "no file is named: {}", done.output);
        assert!(done.output.trim_end().lines().count() <= 2, "{}", done.output);
    }
    let good = world.home.write("good.toml", routes(&[("up", "http://127.0.0.1:9")])).expect("file");
    let gateway = |config: &Path, setup: &Path| {
        let program = sortie(&world.home).args(["gateway", "--config"]).arg(config).arg("--setup-dir").arg(setup);
        program.arg("--data-dir").arg(world.home.join("data"))
    };
    let missing = world.home.join("missing.toml");
    run(gateway(&missing, &tunnel.dir)).await.failed(2, &["missing.toml"]);
    let yaml = world.home.write("proxy.yaml", "routes: {}\n").expect("file");
    run(gateway(&yaml, &tunnel.dir)).await.failed(2, &["proxy.yaml:1: missing field `listen_addr`"]);
    // A set-up directory that lacks a file names it, and the way out.
    run(gateway(&good, &world.home.join("nowhere"))).await.failed(2, &["tunnel-token", "setup init"]);
    for file in ["tunnel-domain", "edge-addr", "edge-ca.crt", "hub-identity.jwks", "tls.crt", "tls.key"] {
        let away = tunnel.dir.join("away");
        fs::rename(tunnel.dir.join(file), &away).expect("away");
        run(gateway(&good, &tunnel.dir)).await.failed(2, &[file]);
        fs::rename(&away, tunnel.dir.join(file)).expect("back");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_reach_its_edge_says_so_and_keeps_trying() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let nobody = format!("127.0.0.1:{}", free_port().expect("port"));
    let (mut gateway, ready) =
        world.spawn_gateway(&tunnel.dir, &routes(&[("up", "http://127.0.0.1:9")]), &["--edge", &nobody]);
    gateway.ready_output(&nobody, SOON).await.expect("it is named");
    assert!(!ready.exists());
    until("it still runs", SOON, async || gateway.pids().len() == 1).await;
    assert_eq!(gateway.stop(SOON).await.expect("end").code(), Some(0));
}
