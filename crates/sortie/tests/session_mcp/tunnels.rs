//! Servers behind tunnels: routed inside the hub, decided on and recorded at the gateway as the agent's own calls.

use serde_json::{Value, json};
use sortie_api::Hop;
use sortie_conformance_server::ConformanceServer;
use sortie_ids::{EventId, SessionId, WorkspaceId};
use sortie_orchestrator::mcp::McpContext;
use sortie_testkit::eventually;

use crate::interop::{LATE, sortie, succeeds};
use crate::world::{World, server, texts};

const CONNECTION: &str = "mcp_connection_failed_error";

/// Routes to a directory and to a complete server.
fn settings(world: &World, full: &str) -> String {
    let files = world.home.write("files/a.txt", "hello\n").expect("a file");
    let root = files.parent().expect("a directory").display().to_string();
    let full = full.trim_end_matches("/mcp");
    format!(
        "policy = \"enforce\"\npolicy_file = \"policy.toml\"\n[upstream]\nallowed_ips = [\"127.0.0.1\"]\n\
         [routes.files]\nupstream = \"builtin:files\"\nroot = \"{root}\"\n[routes.full]\nupstream = \"{full}\"\n"
    )
}

/// Lets this agent list everything, and call these tools.
fn allow(session: &McpContext, tools: &str) -> String {
    let agent = &session.agent;
    format!("[[allow]]\nagents = \"{agent}\"\nroutes = [\"files\", \"full\"]\ntools = {tools}\n")
}

#[tokio::test]
async fn each_call_is_the_agents_own_to_policy_and_audit() {
    let world = World::start().await;
    let full = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a server");
    let (session, stranger) = (world.session().await, world.session().await);
    let policy = allow(&session, "[\"read\", \"list\"]");
    let gateway = world.gateway(&settings(&world, &full.url()), &policy).await;
    let files = server(format!("https://files.{}/mcp", gateway.domain));

    let tools = world.list(&session, &files).await.expect("tools");
    let names: Vec<_> = tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["list", "read"], "what the policy denies is not even listed");
    let tool_use = EventId::random();
    let read = world.call_as(&session, &files, "read", json!({"path": "a.txt"}), &tool_use).await.expect("an answer");
    assert_eq!((texts(&read).lines().next(), read.is_error), (Some("hello"), false));
    let unlisted = world.call(&session, &files, "search", json!({"text": "x"})).await.expect("an answer");
    assert!(unlisted.is_error && texts(&unlisted).contains("has no tool `search`"));

    // Another agent is somebody else.
    let refused = world.list(&stranger, &files).await.expect_err("a stranger");
    assert_eq!((refused.kind, refused.hop), (CONNECTION, Some(Hop::Policy)), "{refused:?}");

    // The records name the agent, the session and the use of the tool.
    let dir = world.home.join("gateway/audit/log");
    let record = eventually(LATE, || {
        let names = std::fs::read_dir(&dir).ok()?.flatten().map(|entry| entry.path());
        let text: String = names.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = |record: &Value| record.to_string().contains(tool_use.as_str());
        records.into_iter().find(ours)
    });
    let record = record.await.expect("a record").to_string();
    for part in [session.agent.as_str(), session.session.as_str(), session.key.as_str(), "\"reader\"", "\"3\""] {
        assert!(record.contains(part), "`{part}` is not in {record}");
    }
    let tail = sortie(&world.home).args(["--output", "json", "audit", "tail"]).arg(dir.parent().expect("a directory"));
    let said = succeeds(tail).await;
    assert!(said.contains(tool_use.as_str()) && said.contains(session.session.as_str()), "{said}");
    drop(gateway);
    world.end().await;
}

#[tokio::test]
async fn every_name_of_a_route_leads_there_and_what_is_denied_is_an_answer() {
    let world = World::start().await;
    let full = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a server");
    let session = world.session().await;
    let policy = allow(&session, "\"*\"")
        + "[[deny]]\nid = \"no errors\"\ntools = \"test_error_handling\"\n\
        where = [{ pointer = \"/x\", equals = \"1\" }]\nreason = \"ask the owners\"\n";
    let gateway = world.gateway(&settings(&world, &full.url()), &policy).await;
    let label = gateway.domain.split('.').next().expect("label").to_owned();
    for url in [
        format!("https://full.{}/mcp", gateway.domain),
        format!("https://full--{label}.sortie.localhost/mcp"),
        format!("{}/t/{label}/full/mcp", world.hub.api_url),
    ] {
        let full = server(url);
        assert!(world.list(&session, &full).await.expect("tools").len() > 20);
        let image = world.call(&session, &full, "test_image_content", json!({})).await.expect("an answer");
        assert_eq!(image.content[0]["source"]["media_type"], "image/png");
        let failed = world.call(&session, &full, "test_error_handling", json!({})).await.expect("an answer");
        assert!(failed.is_error && !texts(&failed).is_empty());
        let denied = world.call(&session, &full, "test_error_handling", json!({"x": "1"})).await.expect("an answer");
        assert!(denied.is_error && texts(&denied).contains("refused at `policy`"), "{denied:?}");
        assert!(texts(&denied).contains("ask the owners"), "{denied:?}");
    }
    drop(gateway);
    world.end().await;
}

#[tokio::test]
async fn failures_name_the_hop() {
    let world = World::start().await;
    let full = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a server");
    let session = world.session().await;
    let mut gateway = world.gateway(&settings(&world, &full.url()), &allow(&session, "\"*\"")).await;
    let url = |route: &str| server(format!("https://{route}.{}/mcp", gateway.domain));
    let hop = async |session: &McpContext, server| {
        let failure = world.list(session, &server).await.expect_err("a failure");
        assert_eq!(failure.kind, CONNECTION);
        assert!(failure.message.contains("`docs`"), "{failure}");
        failure.hop
    };
    assert!(world.list(&session, &url("full")).await.is_ok());
    assert_eq!(hop(&session, url("other")).await, Some(Hop::Route));
    assert_eq!(hop(&session, server("https://files.abcd1234.sortie.localhost/mcp")).await, Some(Hop::Route));
    // Another workspace's tunnels do not exist.
    let foreign = McpContext { workspace: WorkspaceId::random(), session: SessionId::random(), ..session.clone() };
    assert_eq!(hop(&foreign, url("full")).await, Some(Hop::Route));
    // The server ends in the middle of a turn, and comes back for the next one.
    let addr = full.addr();
    drop(full);
    let failure = world.call(&session, &url("full"), "test_simple_text", json!({})).await.expect_err("no server");
    assert!(matches!(failure.hop, Some(Hop::UpstreamConnect | Hop::Upstream)), "{failure:?}");
    let _again = ConformanceServer::bind(addr).await.expect("a server");
    world.mcp.rest(&session.session);
    assert!(world.list(&session, &url("full")).await.is_ok());

    let (full, files) = (url("full"), url("files"));
    gateway.process.kill();
    let failure = world.call(&session, &full, "test_simple_text", json!({})).await.expect_err("no gateway");
    // What runs in a link may see its end before the link does.
    assert!(matches!(failure.hop, Some(Hop::Link | Hop::InnerTls)), "{failure:?}");
    let begun = std::time::Instant::now();
    while hop(&session, files.clone()).await != Some(Hop::Link) {
        assert!(begun.elapsed() < LATE, "the link is missed");
    }
    world.end().await;
}
