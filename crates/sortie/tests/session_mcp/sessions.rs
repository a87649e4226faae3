//! A whole session over the API: the model uses a tool behind a tunnel, a person allows it, the gateway lets it pass.

use std::time::Duration;

use serde_json::{Value, json};

use crate::interop::LATE;
use crate::world::World;

/// The API with the manager's key.
struct Api<'a> {
    world: &'a World,
    http: reqwest::Client,
}

impl<'a> Api<'a> {
    fn of(world: &'a World) -> Self {
        let tls = sortie_tls::api_client_config(None, false).expect("TLS");
        let http = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy();
        Self { world, http: http.build().expect("client") }
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.header("x-api-key", self.world.hub.api_key.expose()).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.ask(self.http.post(format!("{}{path}", self.world.hub.api_url)).json(&body)).await
    }

    /// The events of a session, once the last one is this.
    async fn events(&self, session: &str, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let url = format!("{}/v1/sessions/{session}/events?limit=100", self.world.hub.api_url);
        let waiting = async {
            loop {
                let listed = self.ask(self.http.get(&url)).await;
                let events = listed["data"].as_array().expect("events").clone();
                if events.last().is_some_and(&last) {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LATE, waiting).await.expect("in time")
    }
}

fn idles(reason: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["type"] == "session.status_idle" && event["stop_reason"]["type"] == reason
}

#[tokio::test]
async fn a_tool_behind_a_tunnel_is_used_when_a_person_allows_it() {
    let world = World::start().await;
    let api = Api::of(&world);
    let file = world.home.write("files/a.txt", "hello from afar\n").expect("a file");
    let root = file.parent().expect("a directory").display().to_string();
    let config = format!("[routes.files]\nupstream = \"builtin:files\"\nroot = \"{root}\"\n");
    let gateway = world.gateway(&config, "").await;
    let url = format!("https://files.{}/mcp", gateway.domain);

    let agent = api
        .post(
            "/v1/agents",
            json!({"name": "reader", "model": "scripted",
        "mcp_servers": [{"type": "url", "name": "docs", "url": url},
                        {"type": "url", "name": "gone", "url": "https://nowhere.abcd1234.sortie.localhost/mcp"}],
        "tools": [{"type": "mcp_toolset", "mcp_server_name": "docs"},
                  {"type": "mcp_toolset", "mcp_server_name": "gone"}]}),
        )
        .await;
    let environment = api.post("/v1/environments", json!({"name": "here", "config": {"type": "self_hosted"}})).await;
    let session = json!({"agent": agent["id"], "environment_id": environment["id"]});
    let session = api.post("/v1/sessions", session).await;
    let id = session["id"].as_str().expect("id");
    let script = json!({"script": [
        {"tools": [{"server": "docs", "name": "read", "input": {"path": "a.txt"}}]},
        {"text": "It says: {{result}}"}]});
    let events = format!("/v1/sessions/{id}/events");
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": script.to_string()}]});
    api.post(&events, json!({"events": [message]})).await;

    let asked = api.events(id, idles("requires_action")).await;
    let of = |events: &[Value], kind: &str| events.iter().find(|event| event["type"] == kind).cloned();
    let lost = of(&asked, "session.error").expect("the server that is not there");
    assert_eq!(lost["error"]["type"], "mcp_connection_failed_error", "{lost}");
    assert_eq!((&lost["error"]["mcp_server_name"], &lost["error"]["hop"]), (&json!("gone"), &json!("route")), "{lost}");
    let used = of(&asked, "agent.mcp_tool_use").expect("a use");
    assert_eq!((&used["mcp_server_name"], &used["name"]), (&json!("docs"), &json!("read")));
    assert_eq!(used["evaluated_permission"], "ask", "nothing is allowed that nobody has allowed");

    let allow = json!({"type": "user.tool_confirmation", "tool_use_id": used["id"], "result": "allow"});
    api.post(&events, json!({"events": [allow]})).await;
    let done = api.events(id, idles("end_turn")).await;
    let result = of(&done, "agent.mcp_tool_result").expect("a result");
    assert_eq!((&result["mcp_tool_use_id"], &result["is_error"]), (&used["id"], &json!(false)), "{result}");
    let said = of(&done, "agent.message").expect("a message").to_string();
    assert!(said.contains("hello from afar"), "{said}");
    drop(gateway);
    world.end().await;
}
