//! Servers that are not behind tunnels: only public ones, unless the operator allows them.

use serde_json::json;
use sortie_api::Hop;
use sortie_conformance_server::ConformanceServer;
use sortie_testkit::{TempHome, free_port, tool};

use crate::interop::walk::everything;
use crate::interop::{LATE, python};
use crate::world::{World, server, texts};

#[tokio::test]
async fn private_servers_are_closed_until_the_operator_allows_them() {
    let here = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a server");
    let world = World::start().await;
    let session = world.session().await;
    let port = here.addr().port();
    for url in [here.url(), format!("https://127.0.0.1:{port}/mcp"), format!("https://localhost:{port}/mcp")] {
        let failure = world.list(&session, &server(&url)).await.expect_err("closed");
        assert_eq!((failure.kind, failure.hop), ("mcp_connection_failed_error", Some(Hop::UpstreamConnect)), "{url}");
        assert!(failure.message.contains("--allow-private-mcp"), "{failure}");
    }
    world.end().await;

    let world = World::allowing(&[&format!("127.0.0.1:{port}"), "localhost"]).await;
    let session = world.session().await;
    for url in [here.url(), format!("http://localhost:{port}/mcp")] {
        let here = server(url);
        assert!(world.list(&session, &here).await.expect("tools").len() > 20);
        let said = world.call(&session, &here, "test_simple_text", json!({})).await.expect("an answer");
        assert!(!said.is_error && !texts(&said).is_empty());
    }
    let refused = world.list(&session, &server("http://127.0.0.1:1/mcp")).await.expect_err("another port");
    assert_eq!(refused.hop, Some(Hop::UpstreamConnect));
    world.end().await;
}

#[tokio::test]
async fn what_a_server_keeps_outlasts_the_rest_of_a_session() {
    let Some(script) = tool("SORTIE_TEST_SERVER_EVERYTHING") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = everything(&home, &script).await;
    let world = World::allowing(&["127.0.0.1"]).await;
    let session = world.session().await;
    let here = server(format!("http://127.0.0.1:{port}/mcp"));
    let tools = world.list(&session, &here).await.expect("tools");
    assert!(tools.iter().any(|tool| tool.name == "echo"), "{tools:?}");
    for _ in 0..2 {
        let said = world.call(&session, &here, "echo", json!({"message": "hello"})).await.expect("an answer");
        assert!(texts(&said).contains("hello"), "{said:?}");
        world.mcp.rest(&session.session);
        assert_eq!(world.list(&session, &here).await.expect("tools").len(), tools.len());
    }
    world.end().await;
}

#[tokio::test]
async fn the_transport_of_two_urls_serves_sessions() {
    let Some(script) = tool("SORTIE_TEST_SERVER_EVERYTHING") else { return };
    let home = TempHome::new().expect("home");
    let port = free_port().expect("port");
    let program = home.apply(sortie_testkit::Program::new("node")).arg(&script).arg("sse");
    let mut process = program.env("PORT", port.to_string()).spawn().expect("node");
    process.ready_output("Server is running on port", LATE).await.expect("server");
    let world = World::allowing(&["127.0.0.1"]).await;
    let session = world.session().await;
    let here = server(format!("http://127.0.0.1:{port}/sse"));
    assert!(world.list(&session, &here).await.expect("tools").len() > 3);
    let said = world.call(&session, &here, "echo", json!({"message": "hello"})).await.expect("an answer");
    assert!(texts(&said).contains("hello"), "{said:?}");
    world.end().await;
}

#[tokio::test]
async fn a_fastmcp_server_serves_sessions() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let home = TempHome::new().expect("home");
    let ready = home.join("server.json");
    let mut process = python(&home, &interpreter, "mcp_server.py").arg(&ready).spawn().expect("python");
    let port = process.ready_file(&ready, LATE).await.expect("server")["port"].as_u64().expect("a port");
    let world = World::allowing(&["127.0.0.1"]).await;
    let session = world.session().await;
    let here = server(format!("http://127.0.0.1:{port}/mcp"));
    world.list(&session, &here).await.expect("tools");
    let said = world.call(&session, &here, "add", json!({"a": 2, "b": 3})).await.expect("an answer");
    assert!(texts(&said).starts_with('5'), "{said:?}");
    let wrong = world.call(&session, &here, "add", json!({"a": "x"})).await.expect("an answer");
    assert!(wrong.is_error && !texts(&wrong).is_empty(), "{wrong:?}");
    let asks = world.call(&session, &here, "ask", json!({})).await.expect("an answer");
    assert!(asks.is_error, "{asks:?}");
    world.end().await;
}
