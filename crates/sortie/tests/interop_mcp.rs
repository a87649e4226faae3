//! Official MCP clients and servers with a tunnel between them. The same client walks through the same server directly,
//! by path and by hostname, all at once, and has to see the same each time.

mod interop;

use sortie_testkit::{TempHome, eventually, free_port, tool};

use interop::walk::{
    direct, ended, everything, python_clients, route, same_everywhere, server, step, transcript, ways,
};
use interop::{Hub, LATE, Tunnel};

#[tokio::test]
async fn the_reference_server_looks_the_same_through_a_tunnel() {
    let Some(script) = tool("SORTIE_TEST_SERVER_EVERYTHING") else { return };
    let Some(clients) = python_clients() else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = everything(&home, &script).await;
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

#[tokio::test]
async fn a_fastmcp_server_looks_the_same_through_a_tunnel() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let Some(clients) = python_clients() else { return };
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
        let modern = client.modern();
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
    let Some(mut clients) = python_clients() else { return };
    clients.retain(|client| client.modern());
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &interpreter, "mcp_listen_server.py", None).await;
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
    let Some(clients) = python_clients() else { return };
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
    let Some(clients) = python_clients() else { return };
    let home = TempHome::new().expect("home");
    let (mut first, port) = server(&home, &interpreter, "mcp_server.py", None).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("fast", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "fast"));

    let restarted = home.join("restarted");
    let mut running = Vec::new();
    for client in clients.iter().filter(|client| !client.modern()) {
        for way in &all {
            let program = client.walk(&home, way, "restart").arg("--restarted").arg(&restarted);
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
    let Some(clients) = python_clients() else { return };
    let home = TempHome::new().expect("home");
    let port = free_port().expect("port");
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("down", port)).await;
    for way in ways(&hub, &tunnel, "down") {
        for client in &clients {
            let mut process = client.walk(&home, &way, "files").spawn().expect("python");
            assert!(!process.exit(LATE).await.expect("ends").success(), "{}", process.output());
            let named = eventually(LATE, || process.output().contains("ended at upstream-connect").then_some(())).await;
            assert!(named.is_some(), "client {}, {}: {}", client.name, way.name, process.output());
        }
    }
}
