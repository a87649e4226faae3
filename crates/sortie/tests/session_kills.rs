//! `sortie hub` is killed in the midst of a session's turn, again and again, and the turn goes on.

#![allow(clippy::indexing_slicing, reason = "values that the test made")]

mod interop;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use interop::{Hub, LATE};
use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::TempHome;

/// Events that the session has when the hub is killed, at least: once each.
const KILLS: [usize; 7] = [1, 4, 6, 9, 14, 18, 23];

struct Api {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Api {
    fn of(hub: &Hub) -> Self {
        let tls = sortie_tls::api_client_config(None, false).expect("TLS");
        let http = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy();
        let http = http.build().expect("client");
        Self { http, url: hub.text("api_url").to_owned(), key: hub.text("api_key").to_owned() }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = self.http.request(method, format!("{}{path}", self.url)).header("x-api-key", &self.key);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        let answer = request.send().await.expect("answered");
        let (status, text) = (answer.status().as_u16(), answer.text().await.expect("body"));
        (status, serde_json::from_str(&text).expect("json"))
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(Method::POST, path, Some(body)).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn events(&self, session: &str) -> Vec<Value> {
        let (status, list) = self.call(Method::GET, &format!("/v1/sessions/{session}/events"), None).await;
        assert_eq!(status, 200, "{list}");
        list["data"].as_array().expect("events").clone()
    }

    /// Sends each result that is wanted, and once more every one that was sent before.
    async fn serve(&self, session: &str, sent: &mut BTreeMap<String, Value>) {
        let path = format!("/v1/sessions/{session}/events");
        for (tool_use, echo) in sent.iter() {
            let again = self.post(&path, json!({"events": [result(tool_use)]})).await;
            assert_eq!(again["data"][0], *echo, "a result that was taken is echoed");
        }
        for tool_use in open(&self.events(session).await) {
            let echo = self.post(&path, json!({"events": [result(&tool_use)]})).await["data"][0].clone();
            sent.insert(tool_use, echo);
        }
    }
}

fn result(tool_use: &str) -> Value {
    json!({"type": "user.tool_result", "tool_use_id": tool_use, "content": [{"type": "text", "text": "done"}]})
}

/// Tool uses that have no answer.
fn open(events: &[Value]) -> Vec<String> {
    let answered: BTreeSet<_> = events.iter().filter_map(|event| event["tool_use_id"].as_str()).collect();
    let uses = events.iter().filter(|event| event["type"] == "agent.tool_use");
    let ids = uses.filter_map(|event| event["id"].as_str());
    ids.filter(|id| !answered.contains(id)).map(str::to_owned).collect()
}

fn is_over(events: &[Value]) -> bool {
    events
        .last()
        .is_some_and(|last| last["type"] == "session.status_idle" && last["stop_reason"]["type"] != "requires_action")
}

#[tokio::test]
async fn a_killed_hub_goes_on_with_its_sessions() {
    let home = TempHome::new().expect("home");
    let mut hub = Hub::start(&home).await;
    let mut api = Api::of(&hub);
    let agent = json!({"name": "tester", "model": "scripted", "tools": [{"type": "agent_toolset_20260401"}]});
    let agent = api.post("/v1/agents", agent).await;
    let environment = api.post("/v1/environments", json!({"name": "here", "config": {"type": "self_hosted"}})).await;
    let bash = json!({"name": "bash", "input": {"command": "ls"}});
    let script = json!({"script": [
        {"text": ["one ", "two ", "three"], "pace_ms": 20, "tools": [bash, bash]},
        {"wait_ms": 50, "tools": [bash]},
        {"error": "overloaded", "retry_after": 0.05},
        {"text": ["the", " ", "end"], "pace_ms": 20},
    ]});
    let session =
        api.post("/v1/sessions", json!({"agent": agent["id"], "environment_id": environment["id"]})).await["id"]
            .as_str()
            .expect("id")
            .to_owned();
    let message = json!({"type": "user.message", "content": [{"type": "text", "text": script.to_string()}]});
    api.post(&format!("/v1/sessions/{session}/events"), json!({"events": [message]})).await;

    let mut kills = KILLS.into_iter().peekable();
    let mut killed = 0;
    let mut sent = BTreeMap::new();
    let mut seen: Vec<Value> = Vec::new();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LATE * 4, "it does not end: {seen:#?}");
        let events = api.events(&session).await;
        assert!(events.starts_with(&seen), "what was listed stays");
        seen = events;
        if kills.next_if(|wanted| seen.len() >= *wanted).is_some() {
            hub.process.kill();
            std::fs::remove_file(home.join("hub.json")).expect("the old ready file");
            hub = Hub::start(&home).await;
            api = Api::of(&hub);
            killed += 1;
            continue;
        }
        if is_over(&seen) {
            break;
        }
        api.serve(&session, &mut sent).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(killed >= 4, "the turn was over after {killed} kills");
    let of = |kind: &str| seen.iter().filter(|event| event["type"] == kind).count();
    assert_eq!((of("agent.tool_use"), of("user.tool_result"), of("user.message")), (3, 3, 1), "{seen:#?}");
    assert_eq!(of("span.model_request_start"), of("span.model_request_end"));
    let last = seen.iter().rfind(|event| event["type"] == "agent.message").expect("a message");
    assert_eq!(last["content"][0]["text"], "the end");
    assert!(seen.is_sorted_by(|a, b| a["processed_at"].as_str() < b["processed_at"].as_str()));
}
