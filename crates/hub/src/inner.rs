//! Inner TLS connections to gateways: opened over link streams, kept for the next call, cut when trust ends.
//!
//! A connection of HTTP/1.1 carries one call at a time, at the least cost per call; a kept one serves any route of its
//! gateway that its certificate covers, so that a call does not cost a handshake. Calls that are made to last share
//! connections of HTTP/2, at the least cost per open call.

mod shared;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use sortie_api::{Hop, HopError};
use sortie_edge::Links;
use sortie_ids::TunnelLabel;
use sortie_link::protos::Kind;
use sortie_link::{EdgeLink, LinkStream, OpenError};
use sortie_runtime::TaskSet;
use sortie_runtime::http::{Driven, MAX_ANSWER_HEAD, MAX_INNER_HEADERS, Wire};
use sortie_tls::{CertificateDer, ClientConfig, ClientStream, ServerName, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::body::RequestBody;
use crate::tunnels::LiveTunnel;

use shared::Kept;
pub(crate) use shared::{Shared, is_lasting};

/// How long the handshake of inner TLS may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a call waits for a shared connection that another call is opening, before it opens one of its own.
const OTHERS_OPENING: Duration = Duration::from_secs(2);
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(90);
/// Unused connections kept per tunnel; more are closed.
const KEPT_PER_TUNNEL: usize = 256;

/// What a connection to a gateway is made of.
type Io = TokioIo<ClientStream<LinkStream>>;

/// A connection to a gateway that carries nothing at the moment, or one call.
pub(crate) struct Inner {
    peer: Peer,
    driven: Driven<Io, RequestBody>,
    covered: Vec<String>,
    idle_since: Instant,
}

/// What TLS has shown of a gateway.
pub(crate) struct Peer {
    label: TunnelLabel,
    leaf: CertificateDer<'static>,
    ca: String,
    /// Set when its link takes no more calls.
    retired: Arc<AtomicBool>,
}

/// The connections of all tunnels.
pub(crate) struct Pool {
    links: Links,
    tasks: TaskSet,
    idle: Mutex<HashMap<TunnelLabel, Vec<Inner>>>,
    shared: Mutex<HashMap<TunnelLabel, Vec<Kept>>>,
    /// One shared connection is opened at a time, since those who wait for it can all use it.
    opening: Mutex<HashMap<TunnelLabel, Arc<tokio::sync::Mutex<()>>>>,
    /// What is in use, by the CA that vouches for it, so that it can be cut.
    trust: Mutex<HashMap<TunnelLabel, Vec<(String, CancellationToken)>>>,
}

impl Pool {
    pub(crate) fn new(links: Links, tasks: TaskSet) -> Arc<Self> {
        let (idle, shared, opening, trust) = Default::default();
        Arc::new(Self { links, tasks, idle, shared, opening, trust })
    }

    /// A kept connection to the tunnel's gateway that may serve this host.
    pub(crate) fn take(&self, tunnel: &LiveTunnel, host: &str) -> Option<Inner> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(&tunnel.record.label)?;
        let mut at = kept.len();
        while at > 0 {
            at -= 1;
            let inner = kept.get_mut(at)?;
            if inner.is_over() || !inner.peer.is_vouched_for(tunnel) {
                kept.swap_remove(at);
            } else if inner.covers(host) {
                let mut inner = kept.swap_remove(at);
                if inner.driven.is_ready() {
                    return Some(inner);
                }
            }
        }
        None
    }

    /// Keeps a connection whose call has ended.
    pub(crate) fn keep(&self, mut inner: Inner) {
        if inner.is_over() || self.tasks.is_stopping() || !inner.driven.is_ready() {
            return;
        }
        inner.idle_since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.entry(inner.peer.label.clone()).or_default();
        if kept.len() < KEPT_PER_TUNNEL {
            kept.push(inner);
        }
    }

    /// A connection for a call that is made to last: one that others use, or a new one. `None` where the gateway does not
    /// speak HTTP/2, or is slow to.
    pub(crate) async fn shared(&self, tunnel: &LiveTunnel, host: &str) -> Result<Option<Arc<Shared>>, HopError> {
        if let Some(shared) = self.shared_now(tunnel, host) {
            return Ok(Some(shared));
        }
        let label = &tunnel.record.label;
        let opening =
            self.opening.lock().unwrap_or_else(PoisonError::into_inner).entry(label.clone()).or_default().clone();
        let Ok(_opening) = tokio::time::timeout(OTHERS_OPENING, opening.lock()).await else { return Ok(None) };
        if let Some(shared) = self.shared_now(tunnel, host) {
            return Ok(Some(shared));
        }
        let (stream, peer, end) = self.connect(tunnel, host, &tunnel.shared_tls, None).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Ok(None);
        }
        let shared = Shared::open(stream, peer, end, &self.tasks).await;
        let shared = Arc::new(shared.map_err(|error| ended(&error))?);
        let kept = Kept { shared: shared.clone(), idle_since: Instant::now() };
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).entry(label.clone()).or_default().push(kept);
        Ok(Some(shared))
    }

    fn shared_now(&self, tunnel: &LiveTunnel, host: &str) -> Option<Arc<Shared>> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = shared.get(&tunnel.record.label)?;
        let usable = |shared: &Arc<Shared>| {
            shared.has_room() && shared.peer.is_vouched_for(tunnel) && sortie_tls::covers(&shared.peer.leaf, host)
        };
        kept.iter().map(|kept| &kept.shared).find(|shared| usable(shared)).cloned()
    }

    /// Opens a connection to the tunnel's gateway, over its best link or over the one given.
    pub(crate) async fn open(
        &self,
        tunnel: &LiveTunnel,
        host: &str,
        link: Option<&EdgeLink>,
    ) -> Result<Inner, HopError> {
        let (stream, peer, end) = self.connect(tunnel, host, &tunnel.tls, link).await?;
        let mut builder = Builder::new();
        builder.max_buf_size(MAX_ANSWER_HEAD).max_headers(MAX_INNER_HEADERS);
        let driven = Driven::open(&builder, TokioIo::new(stream), end).await.map_err(|error| ended(&error))?;
        Ok(Inner { peer, driven, covered: vec![host.to_owned()], idle_since: Instant::now() })
    }

    /// TLS with the tunnel's gateway. A link behind which there is no certificate of the tunnel is passed over for
    /// another: whoever stole the token must not be able to stand in the way.
    async fn connect(
        &self,
        tunnel: &LiveTunnel,
        host: &str,
        tls: &Arc<ClientConfig>,
        link: Option<&EdgeLink>,
    ) -> Result<(ClientStream<LinkStream>, Peer, CancellationToken), HopError> {
        if tunnel.cas.is_empty() {
            let reason = "no CA certificate is registered on this tunnel: run `sortie setup init`, or register one";
            return Err(HopError::new(Hop::InnerTls, reason));
        }
        let candidates = match link {
            Some(link) => vec![link.clone()],
            None => self.links.candidates(&tunnel.record.label),
        };
        let mut failure = None;
        for link in candidates {
            match self.connect_over(tunnel, host, tls, &link).await {
                Ok((stream, peer)) => {
                    link.prove();
                    let end = self.trust(&peer);
                    return Ok((stream, peer, end));
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(sortie_edge::no_link))
    }

    async fn connect_over(
        &self,
        tunnel: &LiveTunnel,
        host: &str,
        tls: &Arc<ClientConfig>,
        link: &EdgeLink,
    ) -> Result<(ClientStream<LinkStream>, Peer), HopError> {
        let stream = link.open(Kind::Hub, host).await.map_err(|error| match error {
            OpenError::Full => HopError::new(Hop::Edge, error.to_string()),
            _ => HopError::new(Hop::Link, error.to_string()),
        })?;
        let shaken =
            tokio::time::timeout(HANDSHAKE_DEADLINE, handshake(tunnel, host, tls, stream, link.retired())).await;
        let shaken = shaken.unwrap_or_else(|_| {
            let reason = format!("the gateway did not finish TLS within {} s", HANDSHAKE_DEADLINE.as_secs());
            Err(HopError::new(Hop::InnerTls, reason))
        });
        let outcome = if shaken.is_ok() { "ok" } else { "failed" };
        metrics::counter!("sortie_hub_inner_handshakes_total", "outcome" => outcome).increment(1);
        shaken
    }

    /// What cuts a new connection when its peer is not trusted any more.
    fn trust(&self, peer: &Peer) -> CancellationToken {
        let end = CancellationToken::new();
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let list = trust.entry(peer.label.clone()).or_default();
        // Dead entries go when the list would grow, so that its length stays within twice what is open.
        if list.len() == list.capacity() {
            list.retain(|(_, end)| !end.is_cancelled());
        }
        list.push((peer.ca.clone(), end.clone()));
        end
    }

    /// Cuts what CAs vouched for that are not among these: also calls that run, since their peer is not trusted now.
    pub(crate) fn distrust(&self, label: &TunnelLabel, trusted: &[String]) {
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = trust.get_mut(label) else { return };
        list.retain(|(ca, end)| {
            let keep = trusted.contains(ca);
            if !keep {
                end.cancel();
            }
            keep
        });
        if list.is_empty() {
            trust.remove(label);
        }
    }

    /// The links of a tunnel, best first.
    pub(crate) fn links(&self, label: &TunnelLabel) -> Vec<EdgeLink> {
        self.links.candidates(label)
    }

    /// Closes what carries nothing, for a stop: gateways end their links when the last call has.
    pub(crate) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Closes what is kept in links of this tunnel that take no more calls.
    pub(crate) fn retire(&self, label: &TunnelLabel) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = idle.get_mut(label) {
            kept.retain(|inner| !inner.is_over());
        }
        drop(idle);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = shared.get_mut(label) {
            kept.retain(|kept| kept.shared.is_live());
        }
    }

    /// Closes what was not used for a while. To be called now and then.
    pub(crate) fn sweep(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, kept| {
            kept.retain_mut(|inner| inner.idle_since.elapsed() < IDLE && !inner.is_over() && inner.driven.is_ready());
            !kept.is_empty()
        });
        drop(idle);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|_, kept| {
            kept.retain_mut(|kept| kept.look(IDLE));
            !kept.is_empty()
        });
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        opening.retain(|label, _| shared.contains_key(label));
        drop((opening, shared));
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        trust.retain(|_, list| {
            list.retain(|(_, end)| !end.is_cancelled());
            !list.is_empty()
        });
    }
}

impl Inner {
    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.driven.send(request).await
    }

    /// What moves the body of the answer.
    pub(crate) fn wire(&mut self) -> &mut Wire<Io, RequestBody> {
        self.driven.wire()
    }

    /// Lets the connection move by itself from now on, to its end.
    pub(crate) fn detach(&mut self, pool: &Pool) {
        pool.tasks.spawn("inner-connection", self.driven.wire().detach());
    }

    /// Whom it leads to.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    fn is_over(&self) -> bool {
        self.driven.is_cut() || self.peer.is_retired()
    }

    fn covers(&mut self, host: &str) -> bool {
        if self.covered.iter().any(|name| name == host) {
            return true;
        }
        let covers = sortie_tls::covers(&self.peer.leaf, host);
        if covers && self.covered.len() < 64 {
            self.covered.push(host.to_owned());
        }
        covers
    }
}

impl Peer {
    /// Whether the CA that signed the gateway's certificate is registered on the tunnel.
    pub(crate) fn is_vouched_for(&self, tunnel: &LiveTunnel) -> bool {
        tunnel.cas.iter().any(|ca| ca.fingerprint() == self.ca)
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }
}

/// TLS over a stream of a link, up to what it has shown of the gateway.
async fn handshake(
    tunnel: &LiveTunnel,
    host: &str,
    tls: &Arc<ClientConfig>,
    stream: LinkStream,
    retired: Arc<AtomicBool>,
) -> Result<(ClientStream<LinkStream>, Peer), HopError> {
    let refused = |reason: String| HopError::new(Hop::InnerTls, reason);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| refused(format!("`{host}` is not a DNS name")))?;
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(broken)?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned());
    let leaf = leaf.ok_or_else(|| refused("the gateway showed no certificate".into()))?;
    let ca = sortie_tls::issuer_fingerprint(&leaf, &tunnel.cas)
        .ok_or_else(|| refused("unknown certificate authority".into()))?;
    Ok((stream, Peer { label: tunnel.record.label.clone(), leaf, ca, retired }))
}

/// HTTP that did not begin.
fn ended(error: &hyper::Error) -> HopError {
    HopError::new(Hop::Link, format!("the gateway's connection ended: {error}"))
}

/// A failure of the handshake: of TLS itself, or of the link beneath.
fn broken(error: io::Error) -> HopError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionRefused => {
            HopError::new(Hop::Link, "the link ended during the TLS handshake")
        }
        _ => HopError::new(Hop::InnerTls, sortie_tls::explain_io(&error)),
    }
}
