//! The servers of one route: a pool of connections for each, which of them a call goes to, and which are down.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Response, request};
use ipnet::IpNet;
use sortie_credentials::Certificate;
use sortie_runtime::TaskSet;
use sortie_tls::{ClientConfig, ReloadingIdentity};
use tokio::time::Instant;

use super::dial::{DialError, Dialer};
use super::pool::{Pool, SendError, UpstreamBody};
use super::sessions::{SessionKey, Sessions};
use super::shown::ShownPools;
use super::target_of;
use crate::body::CallBody;
use crate::config::Server;
use crate::guard::Guard;
use crate::sessions::SESSION_HEADER;

/// How long a server that could not be connected is passed over, before it is looked at again.
const DOWN: Duration = Duration::from_secs(10);

/// Everything that decides how the servers of a route are dialled, files by their text. What is equal may share
/// connections, and nothing else does.
#[derive(Clone, PartialEq)]
pub(crate) struct Spec {
    pub(crate) servers: Vec<Server>,
    /// The `Host` that they get, where it is not their own authority.
    pub(crate) host: Option<HeaderValue>,
    pub(crate) allowed_ips: Vec<IpNet>,
    pub(crate) connect_timeout: Duration,
    /// CA certificates in PEM, and whether the machine's own count.
    pub(crate) trust: (Option<String>, bool),
    pub(crate) client_files: Option<(PathBuf, PathBuf)>,
    pub(crate) server_name: Option<String>,
}

impl Spec {
    pub(crate) fn https(&self) -> bool {
        self.servers.iter().any(Server::tls)
    }
}

/// The servers of one route.
pub(crate) struct Servers {
    spec: Spec,
    endpoints: Vec<Endpoint>,
    sessions: Arc<Sessions>,
    identity: Option<Arc<ReloadingIdentity>>,
    tasks: TaskSet,
}

struct Endpoint {
    server: Server,
    host: HeaderValue,
    dialer: Dialer,
    pool: Arc<Pool>,
    /// Of connections that show a caller's certificate.
    shown: ShownPools,
    down: Arc<Mutex<Down>>,
}

#[derive(Default)]
struct Down {
    since: Option<Instant>,
    /// Somebody is looking whether it is back.
    looking: bool,
}

/// An answer's head, and the number of the server that gave it.
pub(crate) struct Answered {
    pub(crate) response: Response<UpstreamBody>,
    pub(crate) server: usize,
}

impl Servers {
    /// `tls` and `identity` are what `spec` says about TLS, ready for use. `previous` are the same route's servers until
    /// now, whose sessions stay where they are.
    pub(crate) fn new(
        spec: Spec,
        tls: Option<Arc<ClientConfig>>,
        identity: Option<Arc<ReloadingIdentity>>,
        previous: Option<&Servers>,
        tasks: TaskSet,
    ) -> Self {
        let guard = Guard::new(spec.allowed_ips.clone());
        let endpoint = |server: &Server| {
            let tls = tls.clone().filter(|_| server.tls());
            let name = spec.server_name.clone();
            let dialer = Dialer::new(server.clone(), guard.clone(), spec.connect_timeout, tls, name);
            let own = HeaderValue::from_str(server.authority()).unwrap_or_else(|_| HeaderValue::from_static(""));
            Endpoint {
                server: server.clone(),
                host: spec.host.clone().unwrap_or(own),
                pool: Pool::new(dialer.clone(), tasks.clone()),
                shown: ShownPools::default(),
                dialer,
                down: Arc::default(),
            }
        };
        let endpoints = spec.servers.iter().map(endpoint).collect();
        let sessions = previous.map(|previous| {
            let number = |old: usize| spec.servers.iter().position(|new| Some(new) == previous.spec.servers.get(old));
            previous.sessions.renumbered(number)
        });
        Self { endpoints, sessions: Arc::new(sessions.unwrap_or_default()), identity, tasks, spec }
    }

    /// Whether these serve as well under new settings. What the machine trusts may have changed, so that it is read anew.
    pub(crate) fn serves(&self, spec: &Spec) -> bool {
        self.spec == *spec && !(spec.https() && spec.trust.1)
    }

    /// Whether settings and files say the same of both.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.spec == other.spec
    }

    /// The certificate that is shown to them.
    pub(crate) fn identity(&self) -> Option<&Arc<ReloadingIdentity>> {
        self.identity.as_ref()
    }

    /// The server of this number.
    pub(crate) fn server(&self, number: usize) -> Option<&Server> {
        self.endpoints.get(number).map(|endpoint| &endpoint.server)
    }

    /// The `Host` that this server gets.
    pub(crate) fn host(&self, number: usize) -> Option<&HeaderValue> {
        self.endpoints.get(number).map(|endpoint| &endpoint.host)
    }

    /// Sends a call to the server of its session, or else to the first that can be connected. `body` gives the call's
    /// body, once for each server that is tried: no byte of it has been read before one was connected. Where there is a
    /// `certificate`, it goes over connections only that have shown it.
    pub(crate) async fn send(
        &self,
        mut head: request::Parts,
        body: impl Fn() -> CallBody,
        certificate: Option<&Arc<Certificate>>,
    ) -> Result<Answered, SendError> {
        let target = target_of(&head.uri);
        let mut failure = None;
        let mut order = self.order(&head).into_iter().peekable();
        while let Some(number) = order.next() {
            let Some(endpoint) = self.endpoints.get(number) else { continue };
            let last = order.peek().is_none();
            let mut headers = if last { std::mem::take(&mut head.headers) } else { head.headers.clone() };
            headers.insert(HOST, endpoint.host.clone());
            let mut request = Request::new(body());
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = target.clone();
            *request.headers_mut() = headers;
            let sent = match certificate {
                None => endpoint.pool.send(request).await,
                Some(certificate) => endpoint.shown.of(certificate, &endpoint.dialer, &self.tasks).send(request).await,
            };
            match sent {
                Ok(response) => {
                    if self.endpoints.len() > 1 {
                        endpoint.is_up();
                        self.keep_session(response.headers(), number);
                    }
                    return Ok(Answered { response, server: number });
                }
                // Nothing was sent, so that another server may be asked.
                Err(SendError::Dial(dial)) if self.endpoints.len() > 1 => {
                    endpoint.is_down(&dial);
                    failure = Some(dial);
                }
                Err(error) => {
                    if let (SendError::ClientCertificate(_), Some(certificate)) = (&error, certificate) {
                        endpoint.shown.forget(certificate);
                    }
                    return Err(error);
                }
            }
        }
        Err(failure.map_or(SendError::NoServer, SendError::Dial))
    }

    /// Whether one of them can be connected; else why the first cannot.
    pub(crate) async fn dial(&self) -> Result<(), DialError> {
        let mut failure = None;
        for endpoint in &self.endpoints {
            match endpoint.dialer.dial().await {
                // One that asks for a caller's certificate is there.
                Ok(_) | Err(DialError::ClientCertificate(_)) => return Ok(()),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Remembers that the legacy transport's session behind this path lives on this server. `None` where there is only
    /// one.
    pub(crate) fn endpoint_keeper(&self, number: usize) -> Option<impl FnOnce(&str) + Send + Sync + use<>> {
        let sessions = self.sessions.clone();
        let several = self.endpoints.len() > 1;
        several.then_some(move |path: &str| sessions.keep(SessionKey::of_endpoint(path), number))
    }

    /// The servers to try, in order: the one of the session alone, or those that are up before those that are down.
    fn order(&self, head: &request::Parts) -> Vec<usize> {
        if self.endpoints.len() < 2 {
            return vec![0];
        }
        let key = match head.headers.get(SESSION_HEADER) {
            Some(id) => Some(SessionKey::of_id(id.as_bytes())),
            None if head.method == Method::POST => {
                head.uri.path_and_query().map(|path| SessionKey::of_endpoint(path.as_str()))
            }
            None => None,
        };
        if let Some(number) = key.and_then(|key| self.sessions.find(key)) {
            return vec![number];
        }
        let (up, down): (Vec<_>, Vec<_>) =
            self.endpoints.iter().enumerate().partition(|(_, endpoint)| !endpoint.passed_over(&self.tasks));
        up.into_iter().chain(down).map(|(number, _)| number).collect()
    }

    fn keep_session(&self, answer: &HeaderMap, number: usize) {
        if let Some(id) = answer.get(SESSION_HEADER) {
            self.sessions.keep(SessionKey::of_id(id.as_bytes()), number);
        }
    }
}

impl Endpoint {
    /// Whether others are to be tried first. After a while somebody looks whether it is back, so that no call waits for
    /// that.
    fn passed_over(&self, tasks: &TaskSet) -> bool {
        let mut down = lock(&self.down);
        let Some(since) = down.since else { return false };
        if since.elapsed() >= DOWN && !down.looking {
            down.looking = true;
            let (dialer, state, server) = (self.dialer.clone(), self.down.clone(), self.server.clone());
            tasks.spawn("upstream-check", async move {
                let back = matches!(dialer.dial().await, Ok(_) | Err(DialError::ClientCertificate(_)));
                let mut down = lock(&state);
                *down = Down { since: (!back).then(Instant::now), looking: false };
                if back {
                    tracing::info!(%server, "upstream can be connected again");
                }
            });
        }
        true
    }

    fn is_up(&self) {
        lock(&self.down).since = None;
    }

    fn is_down(&self, why: &DialError) {
        let before = lock(&self.down).since.replace(Instant::now());
        if before.is_none() {
            tracing::warn!(server = %self.server, "upstream cannot be connected: {why}");
        }
    }
}

fn lock(down: &Mutex<Down>) -> MutexGuard<'_, Down> {
    down.lock().unwrap_or_else(PoisonError::into_inner)
}
