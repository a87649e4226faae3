//! Official MCP clients and servers with a tunnel between them. The same client walks through the same server directly,
//! by path and by hostname, all at once, and has to see the same each time.

mod interop;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sortie_testkit::{Process, Program, TempHome, eventually, free_port, tool};

use interop::{Hub, LATE, Tunnel, python};

/// A client: its name, its interpreter, and which era it speaks.
struct Client {
    name: &'static str,
    python: PathBuf,
    mode: &'static str,
}

fn clients() -> Option<Vec<Client>> {
    let (one, two) = (tool("SORTIE_TEST_PYTHON_MCP1")?, tool("SORTIE_TEST_PYTHON_MCP2")?);
    Some(vec![
        Client { name: "1", python: one, mode: "legacy" },
        Client { name: "2 auto", python: two.clone(), mode: "auto" },
        Client { name: "2 legacy", python: two, mode: "legacy" },
    ])
}

/// A way to a server: what it is called, its URL, and the arguments that a client needs for it.
struct Way {
    name: &'static str,
    url: String,
    arguments: Vec<String>,
}

/// By path and by hostname.
fn ways(hub: &Hub, tunnel: &Tunnel, route: &str) -> Vec<Way> {
    let key = ["--key".to_owned(), tunnel.use_key.clone()];
    let ca = ["--ca".to_owned(), hub.text("edge_ca_file").to_owned()];
    vec![
        Way { name: "path", url: tunnel.path_url(hub, route), arguments: key.to_vec() },
        Way { name: "host", url: tunnel.host_url(hub, route), arguments: [key, ca].concat() },
    ]
}

fn direct(port: u16) -> Way {
    Way { name: "direct", url: format!("http://127.0.0.1:{port}/mcp"), arguments: Vec::new() }
}

fn walk(home: &TempHome, client: &Client, way: &Way, kind: &str) -> Program {
    let program = python(home, &client.python, "mcp_walk.py").env("PYTHONWARNINGS", "ignore").arg(&way.url).arg(kind);
    program.args(["--mode", client.mode]).args(&way.arguments)
}

/// What a client printed, without what its libraries log.
fn transcript(said: &str) -> Vec<String> {
    let lines: Vec<String> = said.lines().filter(|line| line.starts_with("[\"")).map(ToOwned::to_owned).collect();
    assert_eq!(lines.last().map(String::as_str), Some("[\"end\", null]"), "{said}");
    lines
}

/// Every client on every way; one client's ways at the same time. Returns the transcript of each client, which is the
/// same on all its ways.
async fn same_everywhere(home: &TempHome, clients: &[Client], ways: &[Way], kind: &str) -> Vec<Vec<String>> {
    let mut seen = Vec::new();
    for client in clients {
        let running = ways.iter().map(|way| walk(home, client, way, kind).spawn().expect("python"));
        let running: Vec<Process> = running.collect();
        let mut first: Option<Vec<String>> = None;
        for (way, process) in ways.iter().zip(running) {
            let who = format!("client {}, {}", client.name, way.name);
            let lines = transcript(&ended(process, &who).await);
            let Some(first) = &first else {
                first = Some(lines);
                continue;
            };
            for (expected, found) in first.iter().zip(&lines) {
                assert_eq!(found, expected, "{who} (left) differs");
            }
            assert_eq!(first.len(), lines.len(), "{who}");
        }
        seen.extend(first);
    }
    seen
}

async fn ended(mut process: Process, who: &str) -> String {
    let status = process.exit(LATE).await.expect("ends");
    process.ready_output("[\"end\"", Duration::from_secs(1)).await.unwrap_or_else(|error| panic!("{who}: {error}"));
    assert!(status.success(), "{who}: {status}: {}", process.output());
    process.output()
}

/// The line of a step.
fn step<'t>(transcript: &'t [String], name: &str) -> &'t str {
    let start = format!("[\"{name}\", ");
    let found = transcript.iter().find(|line| line.starts_with(&start));
    found.unwrap_or_else(|| panic!("no step `{name}` in {transcript:#?}"))
}

/// A route to a server on loopback.
fn route(name: &str, port: u16) -> String {
    let allowed = "[upstream]\nallowed_ips = [\"127.0.0.1\"]\n";
    format!("{allowed}[routes.{name}]\nupstream = \"http://127.0.0.1:{port}\"\n")
}

#[tokio::test]
async fn the_reference_server_looks_the_same_through_a_tunnel() {
    let Some(script) = tool("SORTIE_TEST_SERVER_EVERYTHING") else { return };
    let Some(clients) = clients() else { return };
    let home = TempHome::new().expect("home");
    let port = free_port().expect("port");
    let server = home.apply(Program::new("node")).arg(script).arg("streamableHttp").env("PORT", port.to_string());
    let mut server = server.spawn().expect("node");
    server.ready_output("listening on port", LATE).await.expect("server");

    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("everything", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "everything"));
    for seen in same_everywhere(&home, &clients, &all, "everything").await {
        assert!(step(&seen, "progress").contains("\"one by one\": true"), "{seen:#?}");
        assert_eq!(step(&seen, "resumed").matches("notifications/progress").count(), 4, "{seen:#?}");
        assert!(step(&seen, "resumed").contains("operation completed"), "{seen:#?}");
        assert!(step(&seen, "sampling").contains("a thought"), "{seen:#?}");
        assert!(step(&seen, "elicitation").contains("Ada"), "{seen:#?}");
        assert!(step(&seen, "exchanges").contains("[\"DELETE\", 200]"), "{seen:#?}");
    }
}

/// A server of `tests/python`; with a port, on that one.
async fn server(home: &TempHome, interpreter: &Path, script: &str, port: Option<u16>) -> (Process, u16) {
    let ready_file = home.join("server.json");
    let _absent = std::fs::remove_file(&ready_file);
    let program = python(home, interpreter, script).arg(&ready_file).args(port.map(|port| port.to_string()));
    let mut server = program.spawn().expect("python");
    let ready = server.ready_file(&ready_file, LATE).await.expect("server");
    server.ready_output("startup complete", LATE).await.expect("server");
    let port = ready.get("port").and_then(serde_json::Value::as_u64).and_then(|port| u16::try_from(port).ok());
    (server, port.expect("port"))
}

#[tokio::test]
async fn a_fastmcp_server_looks_the_same_through_a_tunnel() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let Some(clients) = clients() else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &interpreter, "mcp_server.py", None).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("fast", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "fast"));
    let seen = same_everywhere(&home, &clients, &all, "fastmcp").await;
    for (client, seen) in clients.iter().zip(&seen) {
        assert!(step(seen, "progress").contains("\"one by one\": true"), "{seen:#?}");
        assert_eq!(step(seen, "burst"), "[\"burst\", [500, true]]");
        assert_eq!(seen.iter().filter(|line| line.starts_with("[\"bulk\"") && line.ends_with("true]]")).count(), 2);
        assert!(step(seen, "logs").contains("hello!"), "{seen:#?}");
        assert_eq!(step(seen, "cancelled after"), "[\"cancelled after\", true]");
        let modern = client.mode == "auto";
        assert_eq!(step(seen, "server").contains("2026-07-28"), modern, "the era: {seen:#?}");
        if modern {
            assert!(step(seen, "decide").contains("Ada decides, after round one"), "{seen:#?}");
        } else {
            assert!(step(seen, "ask").contains("accept: Ada"), "{seen:#?}");
            assert!(step(seen, "think").contains("test-model: a thought"), "{seen:#?}");
            assert!(step(seen, "announce").contains("announced"), "{seen:#?}");
            assert!(step(seen, "after the end").contains("[404, "), "an ended session is gone: {seen:#?}");
        }
    }
}

#[tokio::test]
async fn a_stream_of_changes_flows_and_ends_with_its_listener() {
    let Some(mut clients) = clients() else { return };
    clients.retain(|client| client.mode == "auto");
    let [client] = clients.as_slice() else { panic!("one client of the stateless era") };
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &client.python, "mcp_listen_server.py", None).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("listen", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "listen"));
    for seen in same_everywhere(&home, &clients, &all, "listen").await {
        assert!(step(&seen, "events").matches("ToolsListChanged").count() == 3, "{seen:#?}");
    }
}

#[tokio::test]
async fn the_built_in_server_serves_every_client() {
    let Some(clients) = clients() else { return };
    let home = TempHome::new().expect("home");
    home.write("papers/docs/a.md", "hello from a file\n").expect("paper");
    home.write("secret", "not yours\n").expect("secret");
    let hub = Hub::start(&home).await;
    let config = format!("[routes.files]\nupstream = \"builtin:files\"\nroot = {:?}\n", home.join("papers"));
    let tunnel = Tunnel::open(&home, &hub, &config).await;
    for seen in same_everywhere(&home, &clients, &ways(&hub, &tunnel, "files"), "files").await {
        assert!(step(&seen, "list").contains("docs/a.md"), "{seen:#?}");
        assert!(step(&seen, "read").contains("hello from a file"), "{seen:#?}");
        assert!(step(&seen, "search").contains("docs/a.md"), "{seen:#?}");
        assert!(!seen.iter().any(|line| line.contains("not yours")), "{seen:#?}");
        assert!(!step(&seen, "exchanges").contains("[\"DELETE\", 202]"), "clients take 202 for a failure: {seen:#?}");
    }
}

#[tokio::test]
async fn a_session_that_a_restarted_server_forgot_is_opened_anew() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let Some(clients) = clients() else { return };
    let home = TempHome::new().expect("home");
    let (mut first, port) = server(&home, &interpreter, "mcp_server.py", None).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("fast", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "fast"));

    let restarted = home.join("restarted");
    let mut running = Vec::new();
    for client in clients.iter().filter(|client| client.mode == "legacy") {
        for way in &all {
            let program = walk(&home, client, way, "restart").arg("--restarted").arg(&restarted);
            running.push((client.name, way.name, program.spawn().expect("python")));
        }
    }
    for (client, way, process) in &mut running {
        let opened = process.ready_output("[\"before\"", LATE).await;
        opened.unwrap_or_else(|error| panic!("client {client}, {way}: {error}"));
    }
    first.kill();
    let (_server, _) = server(&home, &interpreter, "mcp_server.py", Some(port)).await;
    std::fs::write(&restarted, "").expect("written");
    let mut told = String::new();
    for (client, way, process) in running {
        let who = format!("client {client}, {way}");
        let seen = transcript(&ended(process, &who).await);
        if way == "direct" {
            told = step(&seen, "after").to_owned();
            assert!(told.contains("Session "), "{who}: {seen:#?}");
        }
        assert_eq!(step(&seen, "after"), told, "{who} is told the same as one without a tunnel");
        assert!(step(&seen, "again").contains("\"5\""), "{who}: {seen:#?}");
        assert!(step(&seen, "exchanges").contains("[\"POST\", 404]"), "{who}: {seen:#?}");
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_named_to_every_client() {
    let Some(clients) = clients() else { return };
    let home = TempHome::new().expect("home");
    let port = free_port().expect("port");
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("down", port)).await;
    for way in ways(&hub, &tunnel, "down") {
        for client in &clients {
            let mut process = walk(&home, client, &way, "files").spawn().expect("python");
            assert!(!process.exit(LATE).await.expect("ends").success(), "{}", process.output());
            let named = eventually(LATE, || process.output().contains("ended at upstream-connect").then_some(())).await;
            assert!(named.is_some(), "client {}, {}: {}", client.name, way.name, process.output());
        }
    }
}
