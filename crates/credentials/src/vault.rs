//! A client of HashiCorp Vault and OpenBao: logs in, reads secrets, keeps token and leases alive, gives both back.
//!
//! Written to the HTTP API that both share (version 1). A token is renewed when two thirds of its life have passed;
//! where that does not go on, the client logs in anew while the old token still works.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sortie_runtime::{Backoff, TaskSet};
use sortie_tls::Secret;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use url::Url;

use crate::http_client::{Answer, HttpClient, Trust};
use crate::live::random;
use crate::problem::Problem;
use crate::source::{Source, VaultSecret};

/// How long a lease that was replaced is left alone, for calls that were begun with it.
const GRACE: Duration = Duration::from_secs(5);
/// How long giving back everything may take at the end.
const GIVING_BACK: Duration = Duration::from_secs(5);
/// Least time between two looks at one token.
const SHORTEST: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Most leases that wait to be given back; beyond it the oldest ends by itself.
const MOST_REPLACED: usize = 1024;

const UNREACHABLE: &str = "the vault cannot be reached";
const FAILED: &str = "the vault failed";
const REFUSED: &str = "the vault refuses it";
const SEALED: &str = "the vault is sealed or starting";

/// `[vault.NAME]`: a server, and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultSpec {
    /// The name in the settings.
    pub name: String,
    /// Where it is, without `/v1`: `https://vault.internal:8200`.
    pub address: Url,
    /// The namespace of all requests, if there is one.
    pub namespace: Option<String>,
    /// How to log in.
    pub auth: VaultAuth,
    /// Whom to trust, for `https`.
    pub trust: Trust,
}

/// How to log in at a vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VaultAuth {
    /// With a token that somebody else has made, such as a Vault agent. It is renewed, never revoked.
    Token(Source),
    /// With a role's id and a secret id. The token that this gives is revoked at the end.
    AppRole {
        /// Where the method is mounted; usually `approle`.
        mount: String,
        /// The role's id.
        role_id: String,
        /// The secret id.
        secret_id: Source,
    },
}

/// A client of one server. Its task ends, and gives back what it has, when this is closed or dropped.
pub struct Vault {
    inner: Arc<Inner>,
    close: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("spec", &self.inner.spec).finish_non_exhaustive()
    }
}

impl Vault {
    /// A client that logs in when it is first needed. Blocks to read the file of CAs; to be called within a runtime.
    ///
    /// # Errors
    /// Nobody can be trusted so, or what it logs in with is not there.
    pub fn start(spec: VaultSpec, tasks: &TaskSet) -> Result<Self, String> {
        let (VaultAuth::Token(source) | VaultAuth::AppRole { secret_id: source, .. }) = &spec.auth;
        source.check()?;
        let http = HttpClient::new(&spec.trust, &spec.address)?;
        let inner = Arc::new(Inner {
            http,
            spec,
            session: tokio::sync::Mutex::new(None),
            generation: watch::Sender::new(0),
            replaced: Mutex::default(),
            wake: Notify::new(),
        });
        let (close, closing) = watch::channel(false);
        let (ends, ended) = watch::channel(());
        let task = keep(inner.clone(), closing);
        tasks.spawn("vault", async move {
            task.await;
            drop(ends);
        });
        Ok(Self { inner, close, ended })
    }

    /// What it was started with.
    pub fn spec(&self) -> &VaultSpec {
        &self.inner.spec
    }

    /// Whether one that was started with this would be the same. Blocks to look at the file of CAs.
    pub fn is_as(&self, spec: &VaultSpec) -> bool {
        self.inner.spec == *spec && self.inner.http.trusts_as(&spec.trust)
    }

    /// Gives back leases that were replaced and the token, and waits for that: at most some seconds. To be called after
    /// the credentials were closed.
    pub async fn close(&self) {
        self.close.send_replace(true);
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    pub(crate) fn client(&self) -> Arc<Inner> {
        self.inner.clone()
    }
}

pub(crate) struct Inner {
    spec: VaultSpec,
    http: HttpClient,
    session: tokio::sync::Mutex<Option<Session>>,
    /// Counts logins: leases belong to the token that they were made with.
    generation: watch::Sender<u64>,
    replaced: Mutex<Vec<(Instant, String)>>,
    wake: Notify,
}

struct Session {
    token: Arc<Secret>,
    generation: u64,
    renewable: bool,
    /// How long it lived when it was new; `None`: for ever.
    life: Option<Duration>,
    until: Option<Instant>,
    renew_at: Option<Instant>,
}

impl Session {
    fn new(token: Secret, generation: u64, life: u64, renewable: bool) -> Self {
        let life = (life > 0).then(|| Duration::from_secs(life));
        let mut session = Self { token: Arc::new(token), generation, renewable, life, until: None, renew_at: None };
        session.extended(life);
        session
    }

    fn extended(&mut self, life: Option<Duration>) {
        let now = Instant::now();
        self.until = life.map(|life| now + life);
        self.renew_at = life.map(|life| now + (life * 2 / 3).max(SHORTEST));
    }

    fn known(&self) -> (Arc<Secret>, u64) {
        (self.token.clone(), self.generation)
    }

    fn lives(&self) -> bool {
        self.until.is_none_or(|until| until > Instant::now())
    }
}

/// What a path held.
pub(crate) struct Reading {
    data: BTreeMap<String, Value>,
    pub(crate) lease: Option<Lease>,
}

impl Reading {
    /// A certificate, and after it what is said of the chain to its CA (`ca_chain` of PKI).
    pub(crate) fn certificate(&self, name: &str) -> Option<Secret> {
        let leaf = self.field(name)?;
        let chain = self.data.get("ca_chain").and_then(Value::as_array).into_iter().flatten();
        let chain = chain.filter_map(Value::as_str).flat_map(|link| ["\n", link]);
        Some(Secret::new(std::iter::once(leaf.expose()).chain(chain).collect()))
    }

    pub(crate) fn field(&self, name: &str) -> Option<Secret> {
        match self.data.get(name)? {
            Value::String(text) if !text.is_empty() => Some(Secret::new(text.clone())),
            Value::Number(number) => Some(Secret::new(number.to_string())),
            _ => None,
        }
    }
}

/// A secret that was made for us and ends.
pub(crate) struct Lease {
    pub(crate) id: String,
    pub(crate) life: Duration,
    pub(crate) renewable: bool,
    pub(crate) generation: u64,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    lease_duration: u64,
    data: Option<BTreeMap<String, Value>>,
    auth: Option<Auth>,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

impl Inner {
    pub(crate) fn generations(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Reads a secret, or has one made. Logs in where that is needed, and anew where the token has ended before its time.
    pub(crate) async fn read(&self, place: &VaultSecret) -> Result<Reading, Problem> {
        let path = place.path.as_str();
        let making = !place.parameters.is_empty();
        let (method, right) = if making { (Method::PUT, "update") } else { (Method::GET, "read") };
        let mut fresh = false;
        loop {
            let (token, generation) = self.token().await?;
            let body = making.then(|| json!(place.parameters));
            let answer = self.ask(method.clone(), path, Some(&token), body).await?;
            match answer.status {
                StatusCode::OK => return reading(&answer, generation),
                StatusCode::FORBIDDEN if !fresh && !self.is_alive(&token).await? => {
                    self.forget(generation).await;
                    fresh = true;
                }
                StatusCode::FORBIDDEN => {
                    let told = format!("{}: 403 for `{path}`; its policies must allow `{right}` on it", self.name());
                    return Err(Problem::withdrawn(REFUSED, told));
                }
                StatusCode::NOT_FOUND => {
                    let told = format!("{}: there is nothing at `{path}`", self.name());
                    return Err(Problem::withdrawn("the vault does not have it", told));
                }
                status => return Err(self.failed(status, path)),
            }
        }
    }

    /// How long a lease lives on, after it was renewed.
    pub(crate) async fn renew(&self, lease: &Lease) -> Result<Duration, Problem> {
        let (token, _) = self.token().await?;
        let body = json!({"lease_id": lease.id, "increment": lease.life.as_secs()});
        let answer = self.ask(Method::PUT, "sys/leases/renew", Some(&token), Some(body)).await?;
        match (answer.status, answer.json::<Body>()) {
            (StatusCode::OK, Some(body)) => Ok(Duration::from_secs(body.lease_duration)),
            (status, _) => Err(self.failed(status, "sys/leases/renew")),
        }
    }

    /// Has a lease given back when calls that were begun with it have had some time.
    pub(crate) fn replaced(&self, lease: Lease) {
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        if replaced.len() >= MOST_REPLACED {
            replaced.remove(0);
        }
        replaced.push((Instant::now() + GRACE, lease.id));
        self.wake.notify_one();
    }

    /// Gives a lease back now. A failure is told of: the lease ends by itself.
    pub(crate) async fn revoke(&self, lease: &str) {
        let revoking = async {
            let (token, _) = self.token().await?;
            let body = json!({"lease_id": lease});
            let answer = self.ask(Method::PUT, "sys/leases/revoke", Some(&token), Some(body)).await?;
            if answer.status.is_success() { Ok(()) } else { Err(self.failed(answer.status, "sys/leases/revoke")) }
        };
        if let Err(problem) = revoking.await {
            tracing::warn!(vault = self.spec.name, "a lease could not be given back: {}", problem.private);
        }
    }

    fn name(&self) -> String {
        format!("vault `{}`", self.spec.name)
    }

    fn failed(&self, status: StatusCode, path: &str) -> Problem {
        let told = format!("{}: {} for `{path}`", self.name(), status.as_u16());
        let public = if status == StatusCode::SERVICE_UNAVAILABLE { SEALED } else { FAILED };
        Problem::passing(public, told)
    }

    async fn token(&self) -> Result<(Arc<Secret>, u64), Problem> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| session.lives()) {
            return Ok(session.known());
        }
        let new = self.log_in(session.as_ref().map(Session::known)).await?;
        let known = new.known();
        *session = Some(new);
        self.wake.notify_one();
        Ok(known)
    }

    /// A session by a new login; `before` is the token until now, which is not touched.
    async fn log_in(&self, before: Option<(Arc<Secret>, u64)>) -> Result<Session, Problem> {
        let (secret, body) = match &self.spec.auth {
            VaultAuth::Token(source) => (source.read().await?.secret, None),
            VaultAuth::AppRole { role_id, secret_id, .. } => {
                let secret = source_secret(secret_id).await?;
                let body = json!({"role_id": role_id, "secret_id": secret.expose()});
                (secret, Some(body))
            }
        };
        let name = self.name();
        let same = before.filter(|(token, _)| token.expose() == secret.expose());
        let generation = same.as_ref().map_or(*self.generation.borrow() + 1, |(_, generation)| *generation);
        let session = match (&self.spec.auth, body) {
            (VaultAuth::AppRole { mount, .. }, Some(body)) => {
                let path = format!("auth/{mount}/login");
                let answer = self.ask(Method::POST, &path, None, Some(body)).await?;
                match (answer.status, answer.json::<Body>().and_then(|body| body.auth)) {
                    (StatusCode::OK, Some(auth)) => {
                        Session::new(Secret::new(auth.client_token), generation, auth.lease_duration, auth.renewable)
                    }
                    (StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN, _) => {
                        let told = format!("{name}: the login by AppRole was refused; see role_id and secret_id");
                        return Err(Problem::passing(REFUSED, told));
                    }
                    (status, _) => return Err(self.failed(status, &path)),
                }
            }
            _ => {
                let answer = self.ask(Method::GET, "auth/token/lookup-self", Some(&secret), None).await?;
                let data = answer.json::<Body>().and_then(|body| body.data);
                match (answer.status, data) {
                    (StatusCode::OK, Some(data)) => {
                        let life = data.get("ttl").and_then(Value::as_u64).unwrap_or(0);
                        let renewable = data.get("renewable").and_then(Value::as_bool).unwrap_or(false);
                        Session::new(secret, generation, life, renewable)
                    }
                    (StatusCode::FORBIDDEN, _) => {
                        let told = format!("{name}: its token is not valid (any more); give a new one");
                        return Err(Problem::passing(REFUSED, told));
                    }
                    (status, _) => return Err(self.failed(status, "auth/token/lookup-self")),
                }
            }
        };
        if same.is_none() {
            self.generation.send_replace(generation);
            tracing::info!(vault = self.spec.name, "logged in");
        }
        Ok(session)
    }

    /// Whether a token works at all, to be told from one that may not do something.
    async fn is_alive(&self, token: &Secret) -> Result<bool, Problem> {
        let answer = self.ask(Method::GET, "auth/token/lookup-self", Some(token), None).await?;
        Ok(answer.status != StatusCode::FORBIDDEN)
    }

    async fn forget(&self, generation: u64) {
        let mut session = self.session.lock().await;
        if session.as_ref().is_some_and(|session| session.generation == generation) {
            *session = None;
        }
    }

    /// Renews the token, or logs in anew where it does not live on for long.
    async fn renew_session(&self) -> Result<(), Problem> {
        let due = {
            let session = self.session.lock().await;
            let Some(session) = session.as_ref() else { return Ok(()) };
            if session.renew_at.is_none_or(|at| at > Instant::now()) {
                return Ok(());
            }
            (session.known(), session.renewable, session.life)
        };
        let ((token, generation), renewable, life) = due;
        if renewable {
            let answer = self.ask(Method::PUT, "auth/token/renew-self", Some(&token), Some(json!({}))).await?;
            let lives_on = answer.json::<Body>().and_then(|body| body.auth).map(|auth| auth.lease_duration);
            let lives_on = lives_on.filter(|_| answer.status == StatusCode::OK).map(Duration::from_secs);
            if let (Some(lives_on), Some(life)) = (lives_on, life)
                && lives_on >= life / 2
            {
                let mut session = self.session.lock().await;
                if let Some(session) = session.as_mut().filter(|session| session.generation == generation) {
                    session.extended(Some(lives_on));
                }
                return Ok(());
            }
        }
        let new = self.log_in(Some((token, generation))).await?;
        *self.session.lock().await = Some(new);
        Ok(())
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&Secret>,
        body: Option<Value>,
    ) -> Result<Answer, Problem> {
        let malformed = |_| Problem::withdrawn(FAILED, format!("{}: `{path}` makes no URL", self.name()));
        let url = format!("{}/v1/{path}", self.spec.address.as_str().trim_end_matches('/'));
        let mut request =
            self.http.request(method, Url::parse(&url).map_err(malformed)?).header("x-vault-request", "true");
        if let Some(namespace) = &self.spec.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(token) = token {
            let malformed = |_| Problem::passing(REFUSED, format!("{}: its token is no header's value", self.name()));
            let mut value = HeaderValue::from_str(token.expose()).map_err(malformed)?;
            value.set_sensitive(true);
            request = request.header("x-vault-token", value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let mut answer = self.http.send(request, UNREACHABLE).await;
        if let Err(problem) = &mut answer {
            problem.private = format!("{}: {}", self.name(), problem.private);
        }
        answer
    }

    /// Leases whose time to be given back has come; all of them at the end.
    fn due(&self, all: bool) -> Vec<String> {
        let now = Instant::now();
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        let (due, rest) = std::mem::take(&mut *replaced).into_iter().partition(|(at, _)| all || *at <= now);
        *replaced = rest;
        let due: Vec<(Instant, String)> = due;
        due.into_iter().map(|(_, id)| id).collect()
    }

    async fn next(&self) -> Option<Instant> {
        let renew = self.session.lock().await.as_ref().and_then(|session| session.renew_at);
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        replaced.iter().map(|(at, _)| *at).chain(renew).min()
    }
}

async fn source_secret(source: &Source) -> Result<Secret, Problem> {
    source.read().await.map(|found| found.secret)
}

fn reading(answer: &Answer, generation: u64) -> Result<Reading, Problem> {
    let body: Option<Body> = answer.json();
    let Some((mut data, body)) = body.and_then(|mut body| Some((body.data.take()?, body))) else {
        return Err(Problem::passing(FAILED, "the vault's answer is not what Vault answers"));
    };
    // KV v2 puts the secret beside its metadata.
    if let (Some(Value::Object(_)), Some(Value::Object(inner))) = (data.get("metadata"), data.get("data")) {
        data = inner.clone().into_iter().collect();
    }
    let lease = (!body.lease_id.is_empty()).then(|| Lease {
        id: body.lease_id,
        life: Duration::from_secs(body.lease_duration),
        renewable: body.renewable,
        generation,
    });
    Ok(Reading { data, lease })
}

/// Renews the token and gives leases back, until closed.
async fn keep(vault: Arc<Inner>, mut closing: watch::Receiver<bool>) {
    let mut backoff = Backoff::new(AGAIN, LONGEST);
    let mut said = None;
    loop {
        let next = vault.next().await;
        let sleeping = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleeping => {}
            () = vault.wake.notified() => {}
            _ = closing.wait_for(|closed| *closed) => break,
        }
        for lease in vault.due(false) {
            vault.revoke(&lease).await;
        }
        match vault.renew_session().await {
            Ok(()) => {
                backoff.reset();
                said = None;
            }
            Err(problem) => {
                if said.as_ref() != Some(&problem) {
                    tracing::error!(vault = vault.spec.name, "its token could not be renewed: {}", problem.private);
                    said = Some(problem);
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.next(random()).max(Duration::from_millis(50))) => {}
                    _ = closing.wait_for(|closed| *closed) => break,
                }
            }
        }
    }
    let giving_back = async {
        let session = vault.session.lock().await.take();
        let Some(session) = session.filter(Session::lives) else { return };
        for lease in vault.due(true) {
            let body = json!({"lease_id": lease});
            let _ended_by_itself = vault.ask(Method::PUT, "sys/leases/revoke", Some(&session.token), Some(body)).await;
        }
        if matches!(vault.spec.auth, VaultAuth::AppRole { .. }) {
            let _ended_by_itself =
                vault.ask(Method::PUT, "auth/token/revoke-self", Some(&session.token), Some(json!({}))).await;
        }
    };
    if tokio::time::timeout(GIVING_BACK, giving_back).await.is_err() {
        tracing::warn!(vault = vault.spec.name, "its token was not given back in time; it ends by itself");
    }
}
