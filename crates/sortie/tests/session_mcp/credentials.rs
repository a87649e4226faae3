//! Credentials of vaults at use: a server that takes one token only, and a token endpoint that gives the next.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sortie_api::McpServer;
use sortie_orchestrator::mcp::McpContext;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use url::form_urlencoded;

use crate::world::{World, server, texts};

const AUTHENTICATION: &str = "mcp_authentication_failed_error";

/// What the guarded server knows.
#[derive(Default)]
struct State {
    /// The one token that it takes.
    token: String,
    /// The one refresh token that it takes; none: it refuses all.
    refresh: Option<String>,
    /// How many tokens it has given.
    given: usize,
}

/// `/mcp` and `/token` on one port.
struct Guarded {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

impl Guarded {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new(State::default()));
        let (mut tasks, known) = (JoinSet::new(), state.clone());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, known.clone()));
            }
        });
        Self { addr, state, _tasks: tasks }
    }

    fn takes(&self, token: &str, refresh: Option<&str>) {
        let mut state = self.state.lock().expect("no panic");
        (state.token, state.refresh) = (token.to_owned(), refresh.map(str::to_owned));
    }

    fn given(&self) -> usize {
        self.state.lock().expect("no panic").given
    }

    fn server(&self) -> McpServer {
        server(format!("http://{}/mcp", self.addr))
    }

    /// What a vault is told of it.
    fn oauth(&self, access: &str, refresh: &str, expires_at: Option<&str>) -> Value {
        json!({"auth": {"type": "mcp_oauth", "mcp_server_url": format!("http://{}/mcp/", self.addr),
            "access_token": access, "expires_at": expires_at, "refresh": {
                "token_endpoint": format!("http://{}/token", self.addr), "client_id": "me", "refresh_token": refresh,
                "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "client-secret"}}}})
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut read = Vec::new();
    let head = loop {
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break (head.to_owned(), body.to_owned());
        }
    };
    let (status, body) = answer(&head.0, &head.1, &mut state.lock().expect("no panic"));
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n");
    let said = stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).await;
    drop(said);
}

fn answer(head: &str, body: &str, state: &mut State) -> (u16, String) {
    if head.starts_with("POST /token ") {
        let form: HashMap<_, _> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
        let known = state.refresh.is_some() && form.get("refresh_token") == state.refresh.as_ref();
        if !known || form.get("client_secret").map(String::as_str) != Some("client-secret") {
            return (400, json!({"error": "invalid_grant", "sent": body}).to_string());
        }
        state.given += 1;
        let given = state.given;
        (state.token, state.refresh) = (format!("access-{given}"), Some(format!("refresh-{given}")));
        let tokens = json!({"access_token": state.token, "token_type": "Bearer", "expires_in": 3600,
            "refresh_token": state.refresh});
        return (200, tokens.to_string());
    }
    if !head.to_ascii_lowercase().contains(&format!("authorization: bearer {}\r\n", state.token)) {
        return (401, json!({"error": "unknown token", "head": head}).to_string());
    }
    let message: Value = serde_json::from_str(body).expect("JSON");
    let result = match message["method"].as_str() {
        Some("server/discover") => json!({"supportedVersions": ["2026-07-28"], "capabilities": {}}),
        Some("tools/list") => json!({"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}),
        _ => json!({"content": [{"type": "text", "text": "in"}]}),
    };
    (200, json!({"jsonrpc": "2.0", "id": message["id"], "result": result}).to_string())
}

/// A hub that may reach the server, and what a workspace's manager does in its API.
struct Vaults {
    world: World,
    http: reqwest::Client,
    vault: String,
}

impl Vaults {
    async fn start() -> Self {
        let world = World::allowing(&["127.0.0.1"]).await;
        let tls = sortie_tls::api_client_config(None, false).expect("TLS");
        let http = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy();
        let mut vaults = Self { world, http: http.build().expect("client"), vault: String::new() };
        let made = vaults.post("", &json!({"display_name": "keys"})).await;
        vaults.vault = made["id"].as_str().expect("id").to_owned();
        vaults
    }

    /// Sends a body to a place under `/v1/vaults`.
    async fn post(&self, path: &str, body: &Value) -> Value {
        let url = format!("{}/v1/vaults{path}", self.world.hub.api_url);
        let post = self.http.post(url).header("x-api-key", self.world.hub.api_key.expose()).json(body);
        let answer = post.send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("a body"));
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Puts a credential into the vault; the path of it.
    async fn put(&self, credential: &Value) -> String {
        let made = self.post(&format!("/{}/credentials", self.vault), credential).await;
        format!("/{}/credentials/{}", self.vault, made["id"].as_str().expect("id"))
    }

    async fn session(&self) -> McpContext {
        McpContext { vaults: vec![self.vault.parse().expect("id")], ..self.world.session().await }
    }

    /// The failure of a session to use the server: it names the credential, and repeats nothing secret.
    async fn refused(&self, server: &McpServer, path: &str) {
        let session = self.session().await;
        let failure = self.world.list(&session, server).await.expect_err("refused");
        assert_eq!(failure.kind, AUTHENTICATION, "{failure:?}");
        let id = path.rsplit('/').next().expect("id");
        assert_eq!((&failure.details["vault_id"], &failure.details["credential_id"]), (&json!(self.vault), &json!(id)));
        let told = format!("{failure:?}");
        for secret in ["access-", "refresh-", "client-secret", "static-"] {
            assert!(!told.contains(secret), "{told}");
        }
    }
}

#[tokio::test]
async fn a_static_token_is_used_as_it_is_now() {
    let (guarded, vaults) = (Guarded::start().await, Vaults::start().await);
    guarded.takes("static-1", None);
    let (here, session) = (guarded.server(), vaults.session().await);
    let failure = vaults.world.list(&session, &here).await.expect_err("no credential");
    assert_eq!((failure.kind, failure.details.len()), (AUTHENTICATION, 0), "{failure:?}");

    let url = &here.url;
    let path =
        vaults.put(&json!({"auth": {"type": "static_bearer", "mcp_server_url": url, "token": "static-1"}})).await;
    vaults.world.list(&session, &here).await.expect("tools");
    let said = vaults.world.call(&session, &here, "t", json!({})).await.expect("an answer");
    assert_eq!(texts(&said), "in");
    // What is replaced counts at once, for sessions that run.
    guarded.takes("static-2", None);
    vaults.refused(&here, &path).await;
    vaults.post(&path, &json!({"auth": {"type": "static_bearer", "token": "static-2"}})).await;
    let said = vaults.world.call(&session, &here, "t", json!({})).await.expect("an answer");
    assert_eq!(texts(&said), "in");
    vaults.world.end().await;
}

#[tokio::test]
async fn tokens_of_oauth_are_renewed_once_for_all() {
    let (guarded, vaults) = (Guarded::start().await, Vaults::start().await);
    guarded.takes("access-0", Some("refresh-0"));
    let here = guarded.server();
    let path = vaults.put(&guarded.oauth("access-0", "refresh-0", None)).await;
    let (one, other) = (vaults.session().await, vaults.session().await);
    vaults.world.list(&one, &here).await.expect("tools");
    assert_eq!(guarded.given(), 0, "a token whose end is not known is used until it is refused");
    // Refused, it is renewed: by one exchange for all.
    guarded.takes("access-x", Some("refresh-0"));
    let (first, second) =
        tokio::join!(vaults.world.call(&one, &here, "t", json!({})), vaults.world.list(&other, &here));
    assert_eq!(texts(&first.expect("an answer")), "in");
    second.expect("tools");
    assert_eq!(guarded.given(), 1);
    // The new tokens are those of the vault now.
    guarded.takes("access-y", Some("refresh-1"));
    vaults.world.call(&one, &here, "t", json!({})).await.expect("an answer");
    assert_eq!(guarded.given(), 2);
    // The endpoint refuses: the session is told, and no secret is.
    guarded.takes("access-z", None);
    vaults.refused(&here, &path).await;

    let invalid = vaults.post(&format!("{path}/mcp_oauth_validate"), &json!({})).await;
    assert_eq!((&invalid["status"], &invalid["refresh"]["status"]), (&json!("invalid"), &json!("failed")), "{invalid}");
    let told = invalid.to_string();
    assert!(told.contains("invalid_grant") && invalid["mcp_probe"]["http_response"]["status_code"] == 401, "{told}");
    for secret in ["access-2", "refresh-2", "client-secret"] {
        assert!(!told.contains(secret), "`{secret}` is in {told}");
    }
    guarded.takes("access-z", Some("refresh-2"));
    let valid = vaults.post(&format!("{path}/mcp_oauth_validate"), &json!({})).await;
    assert_eq!((&valid["status"], &valid["refresh"]["status"]), (&json!("valid"), &json!("succeeded")), "{valid}");
    assert_eq!((&valid["mcp_probe"], &valid["has_refresh_token"]), (&Value::Null, &json!(true)));
    vaults.world.end().await;
}
