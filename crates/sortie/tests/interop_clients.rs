//! The other official clients with a tunnel between them and the servers: both generations of the TypeScript SDK,
//! fastmcp's own client, and `mcp-remote` for clients that speak stdio only. As for the Python SDK, each has to see the
//! same directly, by path and by hostname.

mod interop;

use sortie_testkit::{TempHome, tool};

use interop::walk::{
    Client, bridged_clients, direct, ended, everything, fastmcp_clients, node_clients, node_server, python_clients,
    route, same_everywhere, server, step, transcript, ways,
};
use interop::{Hub, LATE, Tunnel};

/// What these clients see of the reference server, by each client.
async fn the_reference_server(clients: &[Client]) -> Option<Vec<Vec<String>>> {
    let script = tool("SORTIE_TEST_SERVER_EVERYTHING")?;
    let home = TempHome::new().expect("home");
    let (_server, port) = everything(&home, &script).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("everything", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "everything"));
    let seen = same_everywhere(&home, clients, &all, "everything").await;
    for seen in &seen {
        assert!(step(seen, "progress").replace(": ", ":").contains("\"one by one\":true"), "{seen:#?}");
        assert!(step(seen, "sampling").contains("a thought"), "{seen:#?}");
        assert!(step(seen, "resources").contains("architecture.md"), "{seen:#?}");
    }
    Some(seen)
}

/// What these clients see of a server of both eras, by each client.
async fn a_server_of_both_eras(clients: &[Client]) -> Option<Vec<Vec<String>>> {
    let interpreter = tool("SORTIE_TEST_PYTHON_FASTMCP")?;
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &interpreter, "mcp_server.py", None).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("fast", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "fast"));
    Some(same_everywhere(&home, clients, &all, "fastmcp").await)
}

#[tokio::test]
async fn the_reference_server_looks_the_same_to_the_typescript_clients() {
    let Some(clients) = node_clients() else { return };
    let Some(all) = the_reference_server(&clients).await else { return };
    for seen in all {
        assert!(step(&seen, "elicitation").contains("Ada"), "{seen:#?}");
        assert!(step(&seen, "completion").contains("Engineering"), "{seen:#?}");
        assert_eq!(step(&seen, "subscribed"), "[\"subscribed\", {}]");
        assert!(step(&seen, "exchanges").contains("DELETE 200"), "{seen:#?}");
    }
}

#[tokio::test]
async fn a_server_of_both_eras_looks_the_same_to_the_typescript_clients() {
    let Some(clients) = node_clients() else { return };
    let Some(all) = a_server_of_both_eras(&clients).await else { return };
    for (client, seen) in clients.iter().zip(&all) {
        assert!(step(seen, "progress").contains("\"one by one\":true"), "{seen:#?}");
        assert_eq!(step(seen, "burst"), "[\"burst\", [500,true]]");
        assert_eq!(seen.iter().filter(|line| line.starts_with("[\"bulk\"") && line.ends_with("true]]")).count(), 2);
        assert_eq!(step(seen, "cancelled after"), "[\"cancelled after\", true]");
        assert_eq!(step(seen, "server").contains("2026-07-28"), client.modern(), "the era: {seen:#?}");
        if client.modern() {
            assert!(step(seen, "decide").contains("Ada decides, after round one"), "{seen:#?}");
            assert_eq!(step(seen, "exchanges"), "[\"exchanges\", [\"POST 200\"]]");
        } else {
            assert!(step(seen, "ask").contains("accept: Ada"), "{seen:#?}");
            assert!(step(seen, "announce").contains("announced"), "{seen:#?}");
            assert!(step(seen, "after the end").contains("[404,"), "an ended session is gone: {seen:#?}");
        }
    }
}

#[tokio::test]
async fn the_typescript_client_hears_changes_of_the_stateless_era() {
    let Some(mut clients) = node_clients() else { return };
    clients.retain(Client::modern);
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &interpreter, "mcp_listen_server.py", None).await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("listen", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "listen"));
    for seen in same_everywhere(&home, &clients, &all, "listen").await {
        assert_eq!(step(&seen, "events").matches("list_changed").count(), 3, "{seen:#?}");
        assert_eq!(step(&seen, "closed"), "[\"closed\", \"local\"]");
    }
}

/// A call whose stream the server ends in its midst: the client comes back for what was said meanwhile.
async fn a_stream_that_polls(clients: &[Client]) {
    let Some(modules) = tool("SORTIE_TEST_NODE_MODULES") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = node_server(&home, &modules, "polling_server.mjs").await;
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route("polling", port)).await;
    let mut all = vec![direct(port)];
    all.extend(ways(&hub, &tunnel, "polling"));
    for seen in same_everywhere(&home, clients, &all, "polling").await {
        assert!(step(&seen, "result").contains("came back for it"), "{seen:#?}");
        let came = step(&seen, "came").replace(".0", "").replace(' ', "");
        assert_eq!(came, "[\"came\",[1,2,3]]", "{seen:#?}");
        assert!(step(&seen, "exchanges").contains("GET"), "{seen:#?}");
    }
}

#[tokio::test]
async fn the_typescript_clients_resume_a_stream_that_polls() {
    let Some(clients) = node_clients() else { return };
    a_stream_that_polls(&clients).await;
}

#[tokio::test]
async fn the_python_clients_resume_a_stream_that_polls() {
    let Some(clients) = python_clients() else { return };
    a_stream_that_polls(&clients).await;
}

#[tokio::test]
async fn the_reference_server_looks_the_same_to_the_client_of_fastmcp() {
    let Some(clients) = fastmcp_clients() else { return };
    let _seen = the_reference_server(&clients).await;
}

#[tokio::test]
async fn a_server_of_both_eras_looks_the_same_to_the_client_of_fastmcp() {
    let Some(clients) = fastmcp_clients() else { return };
    let Some(all) = a_server_of_both_eras(&clients).await else { return };
    for (client, seen) in clients.iter().zip(&all) {
        assert_eq!(step(seen, "server").contains("2026-07-28"), client.modern(), "the era: {seen:#?}");
        assert_eq!(step(seen, "cancelled"), "[\"cancelled\", true]");
        assert_eq!(step(seen, "bulk"), "[\"bulk\", true]");
    }
}

#[tokio::test]
async fn mcp_remote_brings_the_reference_server_to_clients_of_stdio() {
    let Some(clients) = bridged_clients() else { return };
    let Some(all) = the_reference_server(&clients).await else { return };
    for seen in all {
        assert!(step(&seen, "elicitation").contains("Ada"), "{seen:#?}");
        assert!(step(&seen, "updates").contains("Started"), "{seen:#?}");
    }
}

#[tokio::test]
async fn mcp_remote_brings_a_server_of_both_eras_to_clients_of_stdio() {
    let Some(clients) = bridged_clients() else { return };
    let Some(all) = a_server_of_both_eras(&clients).await else { return };
    for (client, seen) in clients.iter().zip(&all) {
        assert!(step(seen, "logs").contains("hello!"), "{seen:#?}");
        assert_eq!(seen.iter().filter(|line| line.starts_with("[\"bulk\"") && line.ends_with("true]]")).count(), 2);
        if client.modern() {
            assert!(step(seen, "server").contains("2026-07-28"), "{seen:#?}");
            assert!(step(seen, "decide").contains("Ada decides, after round one"), "{seen:#?}");
        } else {
            assert_eq!(step(seen, "cancelled after"), "[\"cancelled after\", true]");
        }
    }
}

#[tokio::test]
async fn the_built_in_server_serves_them_all() {
    let (Some(mut clients), Some(bridged)) = (node_clients(), bridged_clients()) else { return };
    clients.extend(bridged);
    let home = TempHome::new().expect("home");
    home.write("papers/docs/a.md", "hello from a file\n").expect("paper");
    home.write("secret", "not yours\n").expect("secret");
    let hub = Hub::start(&home).await;
    let config = format!("[routes.files]\nupstream = \"builtin:files\"\nroot = {:?}\n", home.join("papers"));
    let tunnel = Tunnel::open(&home, &hub, &config).await;
    for seen in same_everywhere(&home, &clients, &ways(&hub, &tunnel, "files"), "files").await {
        assert!(step(&seen, "list").contains("docs/a.md"), "{seen:#?}");
        assert!(step(&seen, "read").contains("hello from a file"), "{seen:#?}");
        assert!(!seen.iter().any(|line| line.contains("not yours")), "{seen:#?}");
    }
}

#[tokio::test]
async fn a_session_that_a_restarted_server_forgot_is_opened_anew() {
    let Some(clients) = node_clients() else { return };
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
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
            running.push((client.name, way.name, program.spawn().expect("node")));
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
            assert!(told.contains("Session not found"), "{who}: {seen:#?}");
        }
        assert_eq!(step(&seen, "after"), told, "{who} is told the same as one without a tunnel");
        assert!(step(&seen, "again").contains("\"5\""), "{who}: {seen:#?}");
        assert!(step(&seen, "exchanges").contains("POST 404"), "{who}: {seen:#?}");
    }
}
