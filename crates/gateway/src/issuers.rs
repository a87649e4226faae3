//! The issuers whose tokens prove a caller, and their keys: from a file, or fetched under the gateway's own rules of
//! dialling, by URL only, without following a redirect, bounded in size and time.
//!
//! Keys are believed for [`FRESH`]. When they cannot be fetched again, they serve for [`USABLE`], and no longer. A token
//! by an unknown key has them fetched at once, but not more than once within [`AGAIN`], so that made-up tokens cannot
//! make this gateway a burden to its identity provider. Waits and ages are measured by the clock that does not jump.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde::Deserialize;
use sortie_identity::{KeySet, KeysError, Unknown, Verified, claimed_issuer};
use sortie_runtime::TaskSet;
use sortie_tls::{ClientConfig, TlsError};
use tokio::sync::watch;
use tokio::time::Instant;
use url::Url;

use crate::config::{IssuerConfig, Server};
use crate::guard::Guard;
use crate::routes::Route;
use crate::upstream::Dialer;

/// How long fetched keys are believed without asking again.
const FRESH: Duration = Duration::from_secs(300);
/// How long they are used while the issuer cannot be reached.
const USABLE: Duration = Duration::from_secs(3600);
/// Shortest time between two fetches.
const AGAIN: Duration = Duration::from_secs(60);
/// The same while there are no keys at all.
const AGAIN_WITHOUT: Duration = Duration::from_secs(5);
/// Longest time for one fetch, with discovery.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);
/// Largest document, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;

/// The issuers of the settings.
#[derive(Default)]
pub(crate) struct Issuers(pub(crate) Vec<Arc<Issuer>>);

/// One issuer.
pub(crate) struct Issuer {
    pub(crate) config: IssuerConfig,
    dialling: Option<Dialling>,
    keys: Keys,
}

/// Where its keys come from.
enum Keys {
    File { text: String, keys: Arc<KeySet> },
    Fetched(Arc<Fetched>),
}

/// How keys are fetched: under the rules for upstreams, or the issuer's own.
#[derive(Clone, PartialEq)]
pub(crate) struct Dialling {
    /// CA certificates in PEM, and whether the machine's own count.
    pub(crate) ca: Option<String>,
    pub(crate) system: bool,
    pub(crate) allowed_ips: Vec<IpNet>,
    pub(crate) connect_timeout: Duration,
}

/// A token in the header of some issuer.
#[derive(Clone, Copy)]
pub(crate) struct Presented<'a> {
    pub(crate) token: &'a [u8],
    header: &'a HeaderName,
}

impl Issuers {
    /// The one token that a request brings to this route, beside the hub's.
    pub(crate) fn presented<'a>(
        &'a self,
        headers: &'a HeaderMap,
        route: &Route,
    ) -> Result<Option<Presented<'a>>, Unknown> {
        let mut found: Option<Presented<'a>> = None;
        for issuer in self.on(route) {
            let header = &issuer.config.header;
            let mut values = headers.get_all(header).iter();
            let Some(value) = values.next() else { continue };
            let Some(token) = behind(value.as_bytes(), issuer.config.prefix.as_bytes()) else { continue };
            if values.next().is_some() || found.is_some_and(|other| other.token != token) {
                return Err(Unknown::Repeated);
            }
            found.get_or_insert(Presented { token, header });
        }
        Ok(found)
    }

    /// Whose a token is; `None` where it is meant for the upstream of a route that forwards what this header has.
    pub(crate) fn owner(&self, presented: &Presented<'_>, route: &Route) -> Result<Option<&Arc<Issuer>>, Unknown> {
        let name = claimed_issuer(presented.token);
        let mut fitting = self.on(route).filter(|issuer| issuer.config.header == presented.header);
        match fitting.find(|issuer| Some(&issuer.config.rules.issuer) == name.as_ref()) {
            Some(issuer) => Ok(Some(issuer)),
            None if route.authorization => Ok(None),
            None if name.is_none() => Err(Unknown::Malformed),
            None => Err(Unknown::Issuer),
        }
    }

    /// The headers that carry tokens to this route, for whoever has to take them out.
    pub(crate) fn headers(&self, route: &sortie_ids::RouteName) -> Vec<HeaderName> {
        let covering = self.0.iter().filter(|issuer| issuer.config.covers(route));
        covering.map(|issuer| issuer.config.header.clone()).collect()
    }

    fn on(&self, route: &Route) -> impl Iterator<Item = &Arc<Issuer>> {
        self.0.iter().filter(|issuer| issuer.config.covers(&route.name))
    }
}

/// What stands behind a prefix and its spaces. A word is compared as schemes are, without regard to case.
fn behind<'a>(value: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = value.split_at_checked(prefix.len())?;
    if !start.eq_ignore_ascii_case(prefix) {
        return None;
    }
    let spaced = rest.first() == Some(&b' ');
    let word = !prefix.is_empty() && prefix.iter().all(u8::is_ascii_alphanumeric);
    let token = rest.trim_ascii();
    (!token.is_empty() && (spaced || !word)).then_some(token)
}

impl Issuer {
    /// An issuer whose keys are in a file with this text.
    pub(crate) fn from_file(config: IssuerConfig, text: String) -> Result<Self, KeysError> {
        let keys = Arc::new(KeySet::parse(&text)?);
        Ok(Self { config, dialling: None, keys: Keys::File { text, keys } })
    }

    /// An issuer whose keys are at a URL; with `discovery`, the document there says where.
    pub(crate) fn fetched(
        config: IssuerConfig,
        url: Url,
        discovery: bool,
        dialling: Dialling,
        tasks: TaskSet,
    ) -> Result<Self, TlsError> {
        let tls = match dialling.ca.is_some() || dialling.system {
            false => None,
            true => {
                let ca = dialling.ca.as_deref().unwrap_or("");
                Some(sortie_tls::upstream_client_config(ca, dialling.system, &[b"http/1.1"], None)?)
            }
        };
        let (guard, timeout) = (Guard::new(dialling.allowed_ips.clone()), dialling.connect_timeout);
        let from = From { issuer: config.rules.issuer.clone(), url, discovery, guard, timeout, tls };
        Ok(Self { config, dialling: Some(dialling), keys: Keys::Fetched(Fetched::new(from, tasks)) })
    }

    /// Whether settings and files say the same, so that what was fetched need not be fetched again.
    pub(crate) fn same(&self, config: &IssuerConfig, file: Option<&str>, dialling: Option<&Dialling>) -> bool {
        let text = match &self.keys {
            Keys::File { text, .. } => Some(text.as_str()),
            Keys::Fetched(_) => None,
        };
        self.config == *config && text == file && self.dialling.as_ref() == dialling
    }

    /// The caller that a token proves, and the keys that it was checked against. Where and when it is good is asked of the
    /// result.
    pub(crate) async fn verify(&self, token: &[u8], now: i64) -> Result<(Verified, Arc<KeySet>), Unknown> {
        let by = |keys: Arc<KeySet>| self.config.rules.verify(token, &keys, now).map(|verified| (verified, keys));
        match &self.keys {
            Keys::File { keys, .. } => by(keys.clone()),
            Keys::Fetched(fetched) => {
                let (keys, age) = fetched.keys().await.ok_or(Unknown::KeysUnknown)?;
                match by(keys) {
                    Err(Unknown::Key) => by(fetched.newer_than(age).await.ok_or(Unknown::Key)?),
                    verified => verified,
                }
            }
        }
    }

    /// Whether these are its keys still. Those that were fetched since are others, even if they say the same.
    pub(crate) fn holds(&self, keys: &Arc<KeySet>) -> bool {
        match &self.keys {
            Keys::File { keys: held, .. } => Arc::ptr_eq(held, keys),
            Keys::Fetched(fetched) => fetched.lock().keys.as_ref().is_some_and(|(held, _)| Arc::ptr_eq(held, keys)),
        }
    }

    /// Whether a token for this audience is for a route.
    pub(crate) fn fits(&self, audience: &str, route: &Route) -> bool {
        if !self.config.audiences.is_empty() {
            return self.config.audiences.iter().any(|one| one == audience);
        }
        let host = audience.strip_prefix("https://").map(|rest| rest.split('/').next().unwrap_or_default());
        let host = host.map_or(audience, |host| host.strip_suffix(":443").unwrap_or(host));
        host.eq_ignore_ascii_case(&route.host)
    }
}

/// Keys that are fetched.
struct Fetched {
    from: From,
    tasks: TaskSet,
    state: Mutex<State>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
}

/// What is fetched, and how.
struct From {
    issuer: String,
    url: Url,
    /// Whether the document there says where the keys are, instead of being them.
    discovery: bool,
    guard: Guard,
    timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
}

#[derive(Default)]
struct State {
    keys: Option<(Arc<KeySet>, Instant)>,
    tried: Option<Instant>,
    running: bool,
}

impl Fetched {
    fn new(from: From, tasks: TaskSet) -> Arc<Self> {
        Arc::new(Self { from, tasks, state: Mutex::default(), ended: watch::Sender::new(0) })
    }

    /// The keys, and when they were fetched. Waits only when there are none that may be used.
    async fn keys(self: &Arc<Self>) -> Option<(Arc<KeySet>, Instant)> {
        let known = self.lock().keys.clone();
        let usable = known.filter(|(_, at)| at.elapsed() < USABLE);
        match &usable {
            Some((_, at)) if at.elapsed() < FRESH => return usable,
            _ => {}
        }
        let waiting = self.begin();
        if usable.is_some() {
            return usable;
        }
        wait(waiting?).await;
        let known = self.lock().keys.clone();
        known.filter(|(_, at)| at.elapsed() < USABLE)
    }

    /// Keys that were fetched later than those, if the issuer may be asked again.
    async fn newer_than(self: &Arc<Self>, than: Instant) -> Option<Arc<KeySet>> {
        let newer = |state: &State| state.keys.clone().filter(|(_, at)| *at > than).map(|(keys, _)| keys);
        if let Some(keys) = newer(&self.lock()) {
            return Some(keys);
        }
        wait(self.begin()?).await;
        newer(&self.lock())
    }

    /// Has the keys fetched, in a task of its own, so that a caller who hangs up does not end it. What tells of its end;
    /// `None` when the issuer was asked a moment ago.
    fn begin(self: &Arc<Self>) -> Option<watch::Receiver<u64>> {
        let mut state = self.lock();
        let waiting = self.ended.subscribe();
        if state.running {
            return Some(waiting);
        }
        let pause = if state.keys.is_some() { AGAIN } else { AGAIN_WITHOUT };
        if state.tried.is_some_and(|tried| tried.elapsed() < pause) {
            return None;
        }
        state.running = true;
        state.tried = Some(Instant::now());
        drop(state);
        let fetched = self.clone();
        self.tasks.spawn("issuer-keys", async move {
            // However this ends, others may try again.
            let _ended = Ended(fetched.clone());
            let fetch = tokio::time::timeout(FETCH_DEADLINE, fetched.from.fetch());
            let outcome =
                fetch.await.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_DEADLINE.as_secs())));
            let issuer = &fetched.from.issuer;
            match outcome {
                Ok(keys) => {
                    metrics::counter!("sortie_gateway_issuer_fetches_total", "result" => "ok").increment(1);
                    tracing::info!(issuer, keys = keys.len(), "keys of the issuer fetched");
                    fetched.lock().keys = Some((Arc::new(keys), Instant::now()));
                }
                Err(reason) => {
                    metrics::counter!("sortie_gateway_issuer_fetches_total", "result" => "failed").increment(1);
                    tracing::warn!(issuer, "the keys of the issuer cannot be fetched: {reason}");
                }
            }
        });
        Some(waiting)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells that a fetch has ended.
struct Ended(Arc<Fetched>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.lock().running = false;
        self.0.ended.send_modify(|count| *count = count.wrapping_add(1));
    }
}

async fn wait(mut ended: watch::Receiver<u64>) {
    // A fetch ends by its own deadline; the second one here is for a gateway that is stopping.
    let _ = tokio::time::timeout(FETCH_DEADLINE, ended.changed()).await;
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl From {
    async fn fetch(&self) -> Result<KeySet, String> {
        let url = match self.discovery {
            false => self.url.clone(),
            true => {
                let document = self.get(&self.url).await?;
                let found: Discovery = serde_json::from_slice(&document)
                    .map_err(|error| format!("{}: it is no discovery document: {error}", self.url))?;
                if found.issuer != self.issuer {
                    return Err(format!("{}: it is of another issuer, `{}`", self.url, found.issuer.escape_debug()));
                }
                crate::config::fetchable(&found.jwks_uri)
                    .map_err(|reason| format!("{}: jwks_uri: {reason}", self.url))?
            }
        };
        let document = self.get(&url).await?;
        let text = std::str::from_utf8(&document).map_err(|_| format!("{url}: it is not UTF-8"))?;
        KeySet::parse(text).map_err(|error| format!("{url}: {error}"))
    }

    async fn get(&self, url: &Url) -> Result<Bytes, String> {
        let said = |reason: String| format!("{url}: {reason}");
        let port = url.port_or_known_default().unwrap_or(443);
        let host = url.host_str().unwrap_or_default();
        let server: Server = format!("{}://{host}:{port}", url.scheme()).parse().map_err(said)?;
        let tls = self.tls.clone().filter(|_| server.tls());
        let dialer = Dialer::new(server, self.guard.clone(), self.timeout, tls, None);
        let stream = dialer.dial().await.map_err(|error| said(error.to_string()))?;
        let (mut requests, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(16 * 1024)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| said(error.to_string()))?;
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let request = Request::get(path)
            .header(HOST, authority)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("sortie/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close")
            .body(Empty::new())
            .map_err(|error| said(error.to_string()))?;
        let answering = async {
            let answer = requests.send_request(request).await.map_err(|error| said(error.to_string()))?;
            match answer.status() {
                StatusCode::OK => {}
                status if status.is_redirection() => {
                    return Err(said(format!("it answered {status}; redirects are not followed: name the last URL")));
                }
                status => return Err(said(format!("it answered {status}"))),
            }
            let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await;
            body.map(|body| body.to_bytes()).map_err(|error| said(error.to_string()))
        };
        let driven = async {
            let _ended = connection.await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            answer = answering => answer,
            never = driven => match never {},
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::service::service_fn;
    use sortie_identity::{Algorithm, IssuerRules};
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::KeysAt;
    use crate::fixtures::Hub;

    const NOW: i64 = 1_800_000_000;

    /// An identity provider that publishes a key, or answers with a status.
    struct Provider {
        url: Url,
        hub: Hub,
        asked: Arc<AtomicUsize>,
        status: Arc<AtomicU16>,
        tasks: TaskSet,
    }

    impl Provider {
        async fn start(document: impl Fn(&Hub) -> String) -> Self {
            let (tasks, hub) = (TaskSet::new(), Hub::new());
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let url = format!("http://{}/keys", listener.local_addr().expect("address")).parse().expect("url");
            let (asked, status, document) =
                (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU16::new(200)), document(&hub));
            let (asked_here, status_here) = (asked.clone(), status.clone());
            tasks.spawn("provider", async move {
                while let Ok((stream, _)) = listener.accept().await {
                    asked_here.fetch_add(1, Ordering::SeqCst);
                    let answer = service_fn(|_| {
                        let answer = http::Response::builder().status(status_here.load(Ordering::SeqCst));
                        let answer =
                            answer.header("location", "/elsewhere").body(Full::new(Bytes::from(document.clone())));
                        async move { answer }
                    });
                    let _ended =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                }
            });
            Self { url, hub, asked, status, tasks }
        }

        fn issuer(&self, allowed: &str) -> Issuer {
            let rules = IssuerRules {
                issuer: Hub::ISSUER.to_owned(),
                algorithms: vec![Algorithm::EdDsa],
                required: [].into(),
                subject: "{sub}".parse().expect("template"),
                subject_prefix: String::new(),
                callers: Vec::new(),
                fields: [].into(),
                claims: [].into(),
                leeway: 0,
                max_lifetime: 300,
            };
            let config = IssuerConfig {
                rules,
                keys: KeysAt::Jwks(self.url.clone()),
                header: http::header::AUTHORIZATION,
                prefix: "Bearer".to_owned(),
                audiences: Vec::new(),
                routes: None,
                trust: None,
                allowed_ips: None,
            };
            let allowed_ips = vec![allowed.parse().expect("range")];
            let dialling = Dialling { ca: None, system: false, allowed_ips, connect_timeout: Duration::from_secs(5) };
            Issuer::fetched(config, self.url.clone(), false, dialling, self.tasks.clone()).expect("issuer")
        }

        fn token(&self, kid: &str) -> String {
            let claims = serde_json::json!({"iss": Hub::ISSUER, "aud": "a", "sub": "ada", "iat": NOW, "exp": NOW + 60});
            if kid == Hub::KID {
                self.hub.sign(&claims)
            } else {
                self.hub.sign_with(&serde_json::json!({"alg": "EdDSA", "kid": kid}), &claims)
            }
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn fetched(issuer: &Issuer) -> &Fetched {
        match &issuer.keys {
            Keys::Fetched(fetched) => fetched,
            Keys::File { .. } => panic!("a file"),
        }
    }

    /// As if everything had happened so long ago.
    fn age(issuer: &Issuer, by: Duration) {
        let mut state = fetched(issuer).lock();
        state.tried = state.tried.and_then(|tried| tried.checked_sub(by));
        state.keys = state.keys.take().and_then(|(keys, at)| Some((keys, at.checked_sub(by)?)));
    }

    async fn settle(issuer: &Issuer) {
        tokio::time::timeout(Duration::from_secs(10), async {
            while fetched(issuer).lock().running {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the fetch ends");
    }

    #[tokio::test]
    async fn keys_are_fetched_once_and_again_for_an_unknown_one_at_most_once_a_minute() {
        let provider = Provider::start(Hub::jwks).await;
        let issuer = provider.issuer("127.0.0.0/8");
        let (good, unknown) = (provider.token(Hub::KID), provider.token("other"));
        let forged = provider.hub.hmac(&serde_json::json!({"iss": Hub::ISSUER}));
        assert_eq!(issuer.verify(forged.as_bytes(), NOW).await.err(), Some(Unknown::Algorithm));
        for _ in 0..3 {
            assert!(issuer.verify(good.as_bytes(), NOW).await.is_ok());
            assert_eq!(issuer.verify(unknown.as_bytes(), NOW).await.err(), Some(Unknown::Key));
        }
        assert_eq!(provider.asked(), 1, "a minute has not passed");
        age(&issuer, AGAIN);
        for _ in 0..3 {
            assert_eq!(issuer.verify(unknown.as_bytes(), NOW).await.err(), Some(Unknown::Key));
        }
        assert_eq!(provider.asked(), 2);
    }

    #[tokio::test]
    async fn keys_serve_a_while_without_their_issuer_and_no_longer() {
        let provider = Provider::start(Hub::jwks).await;
        let issuer = provider.issuer("127.0.0.0/8");
        let good = provider.token(Hub::KID);
        assert!(issuer.verify(good.as_bytes(), NOW).await.is_ok());
        provider.status.store(503, Ordering::SeqCst);
        age(&issuer, FRESH);
        assert!(issuer.verify(good.as_bytes(), NOW).await.is_ok(), "at once, while they are fetched anew");
        settle(&issuer).await;
        assert_eq!(provider.asked(), 2);
        assert!(issuer.verify(good.as_bytes(), NOW).await.is_ok());
        age(&issuer, USABLE - FRESH);
        assert_eq!(issuer.verify(good.as_bytes(), NOW).await.err(), Some(Unknown::KeysUnknown));
        provider.status.store(200, Ordering::SeqCst);
        age(&issuer, AGAIN);
        assert!(issuer.verify(good.as_bytes(), NOW).await.is_ok(), "and they are back with it");
    }

    #[tokio::test]
    async fn only_keys_from_an_allowed_address_at_that_very_url_count() {
        let huge = |_: &Hub| " ".repeat(MAX_DOCUMENT + 1);
        for (provider, allowed, status) in [
            (Provider::start(Hub::jwks).await, "10.0.0.0/8", 200),
            (Provider::start(Hub::jwks).await, "127.0.0.0/8", 302),
            (Provider::start(huge).await, "127.0.0.0/8", 200),
            (Provider::start(|_| "{}".to_owned()).await, "127.0.0.0/8", 200),
        ] {
            provider.status.store(status, Ordering::SeqCst);
            let issuer = provider.issuer(allowed);
            let verified = issuer.verify(provider.token(Hub::KID).as_bytes(), NOW).await;
            assert_eq!(verified.err(), Some(Unknown::KeysUnknown), "{allowed} {status}");
            assert_eq!(provider.asked(), usize::from(allowed != "10.0.0.0/8"));
        }
    }

    #[tokio::test]
    async fn discovery_of_another_issuer_is_not_believed() {
        let issuer_of = |name: &'static str| {
            move |_: &Hub| format!(r#"{{"issuer": "{name}", "jwks_uri": "http://127.0.0.1:9/keys"}}"#)
        };
        let provider = Provider::start(issuer_of("https://evil.test")).await;
        let (guard, timeout) = (Guard::new(vec!["127.0.0.0/8".parse().expect("range")]), Duration::from_secs(5));
        let (issuer, url) = (Hub::ISSUER.to_owned(), provider.url.clone());
        let from = From { issuer, url, discovery: true, guard, timeout, tls: None };
        let refused = from.fetch().await.expect_err("refused");
        assert!(refused.contains("another issuer, `https://evil.test`"), "{refused}");
    }

    #[test]
    fn tokens_stand_behind_their_prefix() {
        for (value, prefix, token) in [
            ("Bearer a.b.c", "Bearer", Some("a.b.c")),
            ("bearer  a.b.c", "Bearer", Some("a.b.c")),
            ("Bearer sk-x-a.b.c", "Bearer sk-x-", Some("a.b.c")),
            ("a.b.c", "", Some("a.b.c")),
            ("Bearera.b.c", "Bearer", None),
            ("Basic abc", "Bearer", None),
            ("Bearer", "Bearer", None),
            ("Bearer ", "Bearer", None),
        ] {
            assert_eq!(behind(value.as_bytes(), prefix.as_bytes()), token.map(str::as_bytes), "{value} {prefix}");
        }
    }
}
