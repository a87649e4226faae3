//! A stand-in for a server of HashiCorp Vault or OpenBao, as far as its HTTP API concerns a client that reads secrets.
//!
//! It answers as they do: AppRole logins, tokens that end, secrets of KV versions 1 and 2, secrets with leases
//! (`database/creds/...`) that are renewed up to a longest life and revoked, 403 for a token that is unknown, ended, or
//! has no policy for a path, 404 for what is not there, 503 while sealed. Of what writes it has only secrets that are made by
//! it, as certificates of PKI are.
//!
//! | Path | Answers |
//! |---|---|
//! | `POST auth/approle/login` | a token for the right `role_id` and `secret_id`, else 400 |
//! | `GET auth/token/lookup-self`, `PUT auth/token/renew-self`, `PUT auth/token/revoke-self` | about the token itself |
//! | `GET <any path>` | a secret that was put there |
//! | `GET database/creds/<role>` | a fresh user name and password with a lease |
//! | `PUT <any path>` | what a test has put there to be made, one after the other |
//! | `PUT sys/leases/renew`, `PUT sys/leases/revoke` | about one lease |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The role that may log in.
pub const ROLE_ID: &str = "5d3c4f5e-role";

/// A running stand-in. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct VaultServer {
    addr: SocketAddr,
    state: Arc<Mutex<VaultState>>,
    _tasks: JoinSet<()>,
}

/// What it holds and how it behaves; a test may change all of it at any time.
#[derive(Debug)]
pub struct VaultState {
    /// Answers everything with 503.
    pub sealed: bool,
    /// The namespace that requests must name, if any.
    pub namespace: Option<String>,
    /// What the role logs in with.
    pub secret_id: String,
    /// How long a new token lives, and how long it may be made to live.
    pub token_ttl: (Duration, Duration),
    /// How long a new lease lives, and how long it may be made to live.
    pub lease_ttl: (Duration, Duration),
    /// Secrets by path, as `data` has them; the caller writes KV v2 with its own `data` and `metadata`.
    pub secrets: BTreeMap<String, Value>,
    /// What writing to a path makes (`pki/issue/...`), as `data` has it: each time the next, and the last for ever.
    pub made: BTreeMap<String, Vec<Value>>,
    /// What was written to these paths, in order.
    pub written: Vec<Value>,
    /// Paths that no policy allows.
    pub forbidden: Vec<String>,
    /// Every secret text that was given out: tokens, user names and passwords.
    pub given: Vec<String>,
    /// Method and path of each request, in order.
    pub requests: Vec<String>,
    tokens: BTreeMap<String, Life>,
    leases: BTreeMap<String, (Life, String)>,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    until: Instant,
    longest: Instant,
}

impl Life {
    fn new((ttl, longest): (Duration, Duration)) -> Self {
        let now = Instant::now();
        Self { until: now + ttl, longest: now + longest }
    }

    fn lives(&self) -> bool {
        self.until > Instant::now()
    }

    fn left(&self) -> u64 {
        // As a server that has just given it: whole seconds, rounded.
        (self.until.saturating_duration_since(Instant::now()) + Duration::from_millis(500)).as_secs()
    }

    fn extend(&mut self, by: Duration) {
        self.until = (Instant::now() + by).min(self.longest);
    }
}

impl Default for VaultState {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            sealed: false,
            namespace: None,
            secret_id: "b1c2-secret-id".to_owned(),
            token_ttl: (hour, hour * 24),
            lease_ttl: (hour, hour * 24),
            secrets: BTreeMap::new(),
            made: BTreeMap::new(),
            written: Vec::new(),
            forbidden: Vec::new(),
            given: Vec::new(),
            requests: Vec::new(),
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
        }
    }
}

impl VaultState {
    /// Puts a secret of KV version 2 at `<mount>/data/<name>`.
    pub fn put_kv2(&mut self, path: &str, data: Value) {
        self.secrets.insert(path.to_owned(), json!({"data": data, "metadata": {"version": 1, "destroyed": false}}));
    }

    /// Makes a token as an operator would, for clients that do not log in by themselves.
    pub fn issue_token(&mut self) -> String {
        let token = self.secret("hvs.");
        self.tokens.insert(token.clone(), Life::new(self.token_ttl));
        token
    }

    /// Ends every token at once, with all leases.
    pub fn end_tokens(&mut self) {
        self.tokens.clear();
        self.leases.clear();
    }

    /// The leases that live.
    pub fn live_leases(&self) -> Vec<String> {
        self.leases.iter().filter(|(_, (life, _))| life.lives()).map(|(id, _)| id.clone()).collect()
    }

    /// How many tokens live.
    pub fn live_tokens(&self) -> usize {
        self.tokens.values().filter(|life| life.lives()).count()
    }

    /// How many requests began with this.
    pub fn count(&self, request: &str) -> usize {
        self.requests.iter().filter(|seen| seen.starts_with(request)).count()
    }

    fn secret(&mut self, kind: &str) -> String {
        let text = format!("{kind}{}", uuid::Uuid::now_v7().simple());
        self.given.push(text.clone());
        text
    }

    fn answer(&mut self, method: &Method, path: &str, headers: &HeaderMap, body: &Value) -> (StatusCode, Value) {
        self.requests.push(format!("{method} {path}"));
        if self.sealed {
            return (StatusCode::SERVICE_UNAVAILABLE, json!({"errors": ["Vault is sealed"]}));
        }
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if self.namespace.as_deref() != header("x-vault-namespace") {
            return (StatusCode::NOT_FOUND, json!({"errors": ["no handler for route"]}));
        }
        if path == "auth/approle/login" {
            return self.log_in(method, body);
        }
        let token = header("x-vault-token").unwrap_or_default().to_owned();
        let Some(life) = self.tokens.get(&token).copied().filter(Life::lives) else {
            let errors = json!({"errors": ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]});
            return (StatusCode::FORBIDDEN, errors);
        };
        let lease = body.get("lease_id").and_then(Value::as_str).unwrap_or_default();
        match (method.as_str(), path) {
            ("GET", "auth/token/lookup-self") => {
                (StatusCode::OK, envelope(json!({"data": {"ttl": life.left(), "renewable": true}})))
            }
            ("PUT" | "POST", "auth/token/renew-self") => {
                let mut life = life;
                life.extend(self.token_ttl.0);
                self.tokens.insert(token.clone(), life);
                (StatusCode::OK, envelope(json!({"auth": auth(&token, &life)})))
            }
            ("PUT" | "POST", "auth/token/revoke-self") => {
                self.tokens.remove(&token);
                self.leases.retain(|_, (_, owner)| *owner != token);
                (StatusCode::NO_CONTENT, Value::Null)
            }
            ("PUT" | "POST", "sys/leases/renew") => {
                let increment = body.get("increment").and_then(Value::as_u64).map(Duration::from_secs);
                let ttl = self.lease_ttl.0;
                match self.leases.get_mut(lease).filter(|(life, _)| life.lives()) {
                    None => (StatusCode::BAD_REQUEST, json!({"errors": ["lease not found"]})),
                    Some((life, _)) => {
                        life.extend(increment.filter(|by| !by.is_zero()).unwrap_or(ttl));
                        let answer = json!({"lease_id": lease, "renewable": true, "lease_duration": life.left()});
                        (StatusCode::OK, envelope(answer))
                    }
                }
            }
            ("PUT" | "POST", "sys/leases/revoke") => {
                self.leases.remove(lease);
                (StatusCode::NO_CONTENT, Value::Null)
            }
            ("PUT" | "POST", path) if self.made.contains_key(path) => {
                self.written.push(body.clone());
                let made = self.made.get_mut(path);
                let data =
                    made.and_then(|made| if made.len() > 1 { Some(made.remove(0)) } else { made.first().cloned() });
                (StatusCode::OK, envelope(json!({"data": data})))
            }
            ("GET", path) if self.forbidden.iter().any(|forbidden| forbidden == path) => {
                (StatusCode::FORBIDDEN, json!({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}))
            }
            ("GET", path) if path.starts_with("database/creds/") => {
                let (username, password) = (self.secret("v-approle-"), self.secret("A1a-"));
                let id = format!("{path}/{}", uuid::Uuid::now_v7().simple());
                let life = Life::new(self.lease_ttl);
                self.leases.insert(id.clone(), (life, token));
                let data = json!({"username": username, "password": password});
                let answer = json!({"lease_id": id, "renewable": true, "lease_duration": life.left(), "data": data});
                (StatusCode::OK, envelope(answer))
            }
            ("GET", path) => match self.secrets.get(path) {
                None => (StatusCode::NOT_FOUND, json!({"errors": []})),
                Some(data) => {
                    let version_2 = data.get("metadata").is_some();
                    let duration = if version_2 { 0 } else { 2_764_800 };
                    (StatusCode::OK, envelope(json!({"lease_duration": duration, "data": data})))
                }
            },
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({"errors": ["unsupported operation"]})),
        }
    }

    fn log_in(&mut self, method: &Method, body: &Value) -> (StatusCode, Value) {
        let given = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default();
        if *method == Method::POST && given("role_id") == ROLE_ID && given("secret_id") == self.secret_id {
            let token = self.issue_token();
            let life = Life::new(self.token_ttl);
            (StatusCode::OK, envelope(json!({"auth": auth(&token, &life)})))
        } else {
            (StatusCode::BAD_REQUEST, json!({"errors": ["invalid role or secret ID"]}))
        }
    }
}

fn auth(token: &str, life: &Life) -> Value {
    json!({"client_token": token, "accessor": "a", "policies": ["default"], "lease_duration": life.left(),
           "renewable": true, "token_type": "service", "orphan": true})
}

/// What every answer has around it.
fn envelope(mut answer: Value) -> Value {
    let around = json!({"request_id": uuid::Uuid::now_v7().to_string(), "lease_id": "", "renewable": false, "lease_duration": 0,
                        "data": null, "wrap_info": null, "warnings": null, "auth": null});
    if let (Some(answer), Value::Object(around)) = (answer.as_object_mut(), around) {
        for (name, value) in around {
            answer.entry(name).or_insert(value);
        }
    }
    answer
}

impl VaultServer {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// Those of binding a socket.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let state: Arc<Mutex<VaultState>> = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, state.clone()));
        Ok(Self { addr, state, _tasks: tasks })
    }

    /// Its address, as clients are told it.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What it holds and how it behaves. Not to be kept over an await.
    pub fn state(&self) -> MutexGuard<'_, VaultState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<VaultState>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(answer(&state, request).await) }
        });
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _closed = connection.await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(state: &Mutex<VaultState>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let path = head.uri.path().trim_start_matches("/v1/").to_owned();
    let (status, answer) =
        state.lock().unwrap_or_else(PoisonError::into_inner).answer(&head.method, &path, &head.headers, &body);
    let text = if answer.is_null() { String::new() } else { answer.to_string() };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}
