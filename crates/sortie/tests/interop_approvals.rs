//! Calls of official clients that a person has to approve, and limits, the whole way through a tunnel.

#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failure")]

mod interop;

use std::path::Path;

use serde_json::Value;
use sortie_testkit::{Process, Program, TempHome, eventually, tool};

use interop::walk::{route, server};
use interop::{Hub, LATE, Tunnel, python, sortie};

const POLICY: &str = r#"
permit (principal, action, resource in Route::"fast") unless { resource == Tool::"fast/add" };
@id("careful") @ask("somebody adds")
permit (principal, action == Action::"tools/call", resource == Tool::"fast/add");
"#;

/// A hub, and a gateway that asks for calls of `add`.
async fn asking(home: &TempHome, interpreter: &Path) -> (Hub, Tunnel, Process) {
    let (server, port) = server(home, interpreter, "mcp_server.py", None).await;
    let hub = Hub::start(home).await;
    home.write("policy.cedar", POLICY).expect("policy");
    let config = format!(
        "policy = \"enforce\"\npolicy_file = \"policy.cedar\"\n{}keepalive = \"1s\"\n[approvals]\n\
         from = [\"local\", \"hub\"]\n[[limits]]\ntools = [\"repeat\"]\nrate = \"1/h\"\n",
        route("fast", port)
    );
    let tunnel = Tunnel::open(home, &hub, &config).await;
    (hub, tunnel, server)
}

/// An official client that calls `add`.
fn adding(home: &TempHome, hub: &Hub, tunnel: &Tunnel, interpreter: &Path) -> Process {
    let program = python(home, interpreter, "mcp_call.py").arg(tunnel.path_url(hub, "fast")).arg(&tunnel.use_key);
    program.args(["add", "{\"a\": 2, \"b\": 3}"]).spawn().expect("python")
}

/// The one approval that waits, by this command.
async fn waiting(home: &TempHome, hub: &Hub, at: &[String]) -> Value {
    let listed = eventually(LATE, || {
        let list = hub.json(home, ["approvals", "list"].into_iter().map(str::to_owned).chain(at.iter().cloned()));
        list["data"].as_array().and_then(|all| all.first().cloned())
    });
    listed.await.expect("a call waits")
}

async fn said(mut client: Process) -> String {
    assert!(client.exit(LATE).await.expect("ended").success(), "{}", client.output());
    eventually(LATE, || Some(client.output()).filter(|output| output.contains('\n'))).await.expect("a line")
}

#[tokio::test]
async fn official_clients_wait_for_a_person_here_and_at_the_hub() {
    let Some(fastmcp) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let Some(one) = tool("SORTIE_TEST_PYTHON_MCP1") else { return };
    let Some(two) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let home = TempHome::new().expect("home");
    let (hub, tunnel, _server) = asking(&home, &fastmcp).await;
    let here = vec!["--data-dir".to_owned(), home.join("gateway").display().to_string()];
    for client in [&one, &two] {
        for (place, from) in [(here.clone(), "local"), (Vec::new(), "hub")] {
            let command = |words: &[&str]| {
                let words = words.iter().map(|word| (*word).to_owned());
                hub.json(&home, ["approvals".to_owned()].into_iter().chain(words).chain(place.iter().cloned()))
            };
            let calling = adding(&home, &hub, &tunnel, client);
            let approval = waiting(&home, &hub, &place).await;
            let id = approval["id"].as_str().expect("id");
            assert_eq!((&approval["target"], &approval["reason"]), (&"add".into(), &"somebody adds".into()));
            assert_eq!(command(&["show", id])["id"], id);
            let decided = command(&["approve", id, "--reason", "right"]);
            assert_eq!((&decided["status"], &decided["decision"]["by"]["from"]), (&"approved".into(), &from.into()));
            let said = said(calling).await;
            assert!(said.contains("\"5\"") && !said.contains("Error"), "{said}");

            let calling = adding(&home, &hub, &tunnel, client);
            let approval = waiting(&home, &hub, &place).await;
            let denied = command(&["deny", approval["id"].as_str().expect("id"), "--reason", "wrong"]);
            assert_eq!(denied["status"], "denied");
            let said = self::said(calling).await;
            assert!(!said.contains("\"5\""), "{said}");
        }
    }
    // A use key decides nothing.
    let refused = hub.operator_with(&home, &tunnel.use_key, ["approvals", "list", "--tunnel", &tunnel.id]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
}

#[tokio::test]
async fn curl_sees_comments_while_it_waits_and_limits() {
    let Some(fastmcp) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let home = TempHome::new().expect("home");
    let (hub, tunnel, _server) = asking(&home, &fastmcp).await;
    let here = ["--data-dir".to_owned(), home.join("gateway").display().to_string()];
    let curl = |name: &str, arguments: &str| {
        let body = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\
             \"params\":{{\"name\":\"{name}\",\"arguments\":{arguments}}}}}"
        );
        let program = home.apply(Program::new("curl")).args(["-sNi", "--max-time", "40", "--noproxy", "*"]);
        let program = program.args(["-H", "content-type: application/json", "-H"]);
        let program = program.args(["accept: application/json, text/event-stream", "-H"]);
        let program = program.arg(format!("x-api-key: {}", tunnel.use_key)).arg("-d").arg(body);
        program.arg(tunnel.path_url(&hub, "fast")).spawn().expect("curl")
    };
    let calling = curl("add", "{\"a\":2,\"b\":3}");
    let approval = waiting(&home, &hub, &here).await;
    let keeps = eventually(LATE, || calling.output().contains(": keepalive").then_some(())).await;
    keeps.expect("a comment before the answer");
    let id = approval["id"].as_str().expect("id");
    hub.json(&home, ["approvals", "approve", id, &here[0], &here[1]]);
    let output = said(calling).await;
    // Without a session the server refuses; that, too, comes as an event.
    assert!(output.contains("text/event-stream") && output.contains("data: {"), "{output}");

    let first = said(curl("repeat", "{\"text\":\"a\",\"times\":1}")).await;
    assert!(!first.contains("sortie-hop: policy"), "{first}");
    let second = said(curl("Repeat", "{\"text\":\"a\",\"times\":1}")).await;
    assert!(second.contains(" 429 ") && second.contains("retry-after: 3600") && second.contains("1/h"), "{second}");
}

/// What was not approved when the gateway is killed has not run.
#[tokio::test]
async fn a_killed_gateway_has_approved_nothing() {
    let Some(fastmcp) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let home = TempHome::new().expect("home");
    let (hub, mut tunnel, _server) = asking(&home, &fastmcp).await;
    let here = vec!["--data-dir".to_owned(), home.join("gateway").display().to_string()];
    let calling = adding(&home, &hub, &tunnel, &fastmcp);
    waiting(&home, &hub, &here).await;
    tunnel.gateway.kill();
    let said = said(calling).await;
    assert!(!said.contains("\"5\""), "{said}");
    // What it left does not keep the next one from its socket.
    let program = sortie(&home).arg("gateway").arg("--config").arg(home.join("gateway.toml"));
    let program = program.arg("--setup-dir").arg(&tunnel.setup_dir).arg("--data-dir").arg(home.join("gateway"));
    let mut again = program.arg("--ready-file").arg(home.join("again.json")).spawn().expect("gateway");
    again.ready_file(&home.join("again.json"), LATE).await.expect("gateway");
    let listed = hub.json(&home, ["approvals".to_owned(), "list".to_owned()].into_iter().chain(here));
    assert_eq!(listed["data"], serde_json::json!([]));
}
