//! Many callers at once who all use the same JSON-RPC ids: what answers a call is the stream it came on, never its id.

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::{Serving, client, modern, send, serving, text};

/// Sessions at once.
const SESSIONS: usize = 100;
/// Calls of each session at once; every session numbers them alike.
const CALLS: usize = 5;

/// A caller of the route with the key of all.
#[derive(Clone)]
struct Caller {
    http: Client,
    url: String,
    key: String,
}

impl Caller {
    fn post(&self) -> RequestBuilder {
        self.http.post(&self.url).header("x-api-key", &self.key)
    }

    fn legacy(&self, session: Option<&str>, id: usize, method: &str, params: &Value) -> RequestBuilder {
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let post = self.post().header("content-type", "application/json");
        let post = post.header("accept", "application/json, text/event-stream").body(body.to_string());
        session.iter().fold(post, |post, session| post.header("mcp-session-id", *session))
    }

    /// A session of its own, with its stream: every call gets its own answer, the stream its own announcements.
    async fn in_a_session(self, name: String) {
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {},
                             "clientInfo": { "name": name, "version": "1" } });
        let opened = send(self.legacy(None, 0, "initialize", &params)).await;
        let session = opened.header("mcp-session-id").expect("a session").to_owned();
        let get = self.http.get(&self.url).header("x-api-key", &self.key).header("accept", "text/event-stream");
        let mut stream = get.header("mcp-session-id", &session).send().await.expect("a stream");
        let tool = |id, tool: &str, said: &str| {
            let params = json!({ "name": tool, "arguments": { "text": said } });
            self.legacy(Some(&session), id, "tools/call", &params)
        };
        let mut calls = JoinSet::new();
        for id in 1..=CALLS {
            let said = format!("{name}, call {id}");
            let request = tool(id, "echo", &said);
            calls.spawn(async move { own(&send(request).await.json(), id, &said) });
        }
        while let Some(ended) = calls.join_next().await {
            ended.expect("each gets its own");
        }
        let announced = format!("for {name} only");
        assert_eq!(send(tool(9, "announce", &announced)).await.status, 200);
        let mut heard = String::new();
        while !heard.contains(&announced) {
            let chunk = stream.chunk().await.expect("a stream").expect("it goes on");
            heard.push_str(&String::from_utf8_lossy(&chunk));
        }
        assert_eq!(heard.matches("notifications/message").count(), 1, "{name} heard others: {heard}");
    }

    /// Calls without a session, answered with a stream each.
    async fn without_a_session(self, name: String) {
        for id in 1..=CALLS {
            let arguments = json!({ "count": 3, "interval_ms": 5 });
            let mut request = modern(self.post(), &json!(id), "progress", &arguments).build().expect("a request");
            // A progress token of its own under the same id.
            let body = request.body().and_then(|body| body.as_bytes()).expect("a body").to_vec();
            let body = String::from_utf8(body).expect("text").replace("\"p\"", &json!(name).to_string());
            request.headers_mut().remove("content-length");
            *request.body_mut() = Some(body.into());
            let answer = self.http.execute(request).await.expect("an answer").text().await.expect("a body");
            let own = answer.matches(&format!("\"progressToken\":\"{name}\"")).count();
            assert_eq!((own, answer.matches("progressToken").count()), (3, 3), "{answer}");
            assert!(answer.contains("progress done"), "{answer}");
        }
    }
}

/// That an answer has this id and says this.
fn own(answer: &Value, id: usize, said: &str) {
    assert_eq!(answer.get("id"), Some(&json!(id)), "{answer}");
    assert_eq!(text(answer, "/result/content/0/text"), said);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_sessions_with_the_same_ids_get_their_own_answers() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    // Connections are shared as a proxy in front of many clients shares them.
    let shared = client();
    let mut crowd = JoinSet::new();
    for number in 0..SESSIONS {
        let http = if number % 2 == 0 { shared.clone() } else { client() };
        let caller = Caller { http, url: world.url(&tunnel, "echo", "/mcp"), key: world.api_key.clone() };
        crowd.spawn(caller.clone().in_a_session(format!("session {number}")));
        crowd.spawn(caller.without_a_session(format!("caller {number}")));
    }
    while let Some(ended) = crowd.join_next().await {
        ended.expect("each gets its own");
    }
}
