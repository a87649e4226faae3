//! Inner TLS connections to gateways: opened over link streams, kept for the next call, cut when trust ends.
//!
//! One connection carries one call at a time (HTTP/1.1). A kept one serves any route of its gateway that its
//! certificate covers, so that a call does not cost a handshake.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use sortie_api::{Hop, HopError};
use sortie_edge::Links;
use sortie_ids::TunnelLabel;
use sortie_link::protos::Kind;
use sortie_link::{EdgeLink, LinkStream, OpenError};
use sortie_runtime::TaskSet;
use sortie_runtime::http::{MAX_ANSWER_HEAD, MAX_INNER_HEADERS, MAX_INTERIM};
use sortie_tls::{CertificateDer, ServerName, TlsConnector};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::body::RequestBody;
use crate::tunnels::LiveTunnel;

/// How long the handshake of inner TLS may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(90);
/// Unused connections kept per tunnel; more are closed.
const KEPT_PER_TUNNEL: usize = 256;

/// A connection to a gateway that carries nothing at the moment, or one call.
pub(crate) struct Inner {
    label: TunnelLabel,
    pub(crate) sender: SendRequest<RequestBody>,
    leaf: CertificateDer<'static>,
    ca: String,
    covered: Vec<String>,
    idle_since: Instant,
    /// Set when its link takes no more calls.
    retired: Arc<AtomicBool>,
    /// Ends the connection when dropped: a call that was given up must not run on.
    end: DropGuard,
}

/// The connections of all tunnels.
pub(crate) struct Pool {
    links: Links,
    tasks: TaskSet,
    idle: Mutex<HashMap<TunnelLabel, Vec<Inner>>>,
    /// What is in use, by the CA that vouches for it, so that it can be cut.
    trust: Mutex<HashMap<TunnelLabel, Vec<(String, CancellationToken)>>>,
}

impl Pool {
    pub(crate) fn new(links: Links, tasks: TaskSet) -> Arc<Self> {
        Arc::new(Self { links, tasks, idle: Mutex::default(), trust: Mutex::default() })
    }

    /// A kept connection to the tunnel's gateway that may serve this host.
    pub(crate) fn take(&self, tunnel: &LiveTunnel, host: &str) -> Option<Inner> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(&tunnel.record.label)?;
        let mut at = kept.len();
        while at > 0 {
            at -= 1;
            let inner = kept.get_mut(at)?;
            if inner.is_over() || !inner.is_vouched_for(tunnel) {
                kept.swap_remove(at);
            } else if inner.sender.is_ready() && inner.covers(host) {
                return Some(kept.swap_remove(at));
            }
        }
        None
    }

    /// Keeps a connection whose call has ended.
    pub(crate) fn keep(&self, mut inner: Inner) {
        if inner.is_over() || self.tasks.is_stopping() {
            return;
        }
        inner.idle_since = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.entry(inner.label.clone()).or_default();
        if kept.len() < KEPT_PER_TUNNEL {
            kept.push(inner);
        }
    }

    /// Opens a connection to the tunnel's gateway, over its best link or over the one given. A link behind which there
    /// is no certificate of the tunnel is passed over for another: whoever stole the token must not be able to
    /// stand in the way.
    pub(crate) async fn open(
        &self,
        tunnel: &LiveTunnel,
        host: &str,
        link: Option<&EdgeLink>,
    ) -> Result<Inner, HopError> {
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
            match self.open_over(tunnel, host, &link).await {
                Ok(inner) => {
                    link.prove();
                    return Ok(inner);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(sortie_edge::no_link))
    }

    async fn open_over(&self, tunnel: &LiveTunnel, host: &str, link: &EdgeLink) -> Result<Inner, HopError> {
        let stream = link.open(Kind::Hub, host).await.map_err(|error| match error {
            OpenError::Full => HopError::new(Hop::Edge, error.to_string()),
            _ => HopError::new(Hop::Link, error.to_string()),
        })?;
        let opened =
            tokio::time::timeout(HANDSHAKE_DEADLINE, self.handshake(tunnel, host, stream, link.retired())).await;
        let inner = opened.unwrap_or_else(|_| {
            let reason = format!("the gateway did not finish TLS within {} s", HANDSHAKE_DEADLINE.as_secs());
            Err(HopError::new(Hop::InnerTls, reason))
        });
        let outcome = if inner.is_ok() { "ok" } else { "failed" };
        metrics::counter!("sortie_hub_inner_handshakes_total", "outcome" => outcome).increment(1);
        inner
    }

    async fn handshake(
        &self,
        tunnel: &LiveTunnel,
        host: &str,
        stream: LinkStream,
        retired: Arc<AtomicBool>,
    ) -> Result<Inner, HopError> {
        let refused = |reason: String| HopError::new(Hop::InnerTls, reason);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| refused(format!("`{host}` is not a DNS name")))?;
        let stream = TlsConnector::from(tunnel.tls.clone()).connect(name, stream).await.map_err(broken)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned());
        let leaf = leaf.ok_or_else(|| refused("the gateway showed no certificate".into()))?;
        let ca = sortie_tls::issuer_fingerprint(&leaf, &tunnel.cas)
            .ok_or_else(|| refused("unknown certificate authority".into()))?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_ANSWER_HEAD)
            .max_headers(MAX_INNER_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| HopError::new(Hop::Link, format!("the gateway's connection ended: {error}")))?;
        let end = CancellationToken::new();
        self.trust(&tunnel.record.label, &ca, &end);
        let ended = end.clone();
        self.tasks.spawn("inner-connection", async move {
            // An error has reached the call that it belongs to.
            let _ = ended.run_until_cancelled(connection).await;
        });
        Ok(Inner {
            label: tunnel.record.label.clone(),
            sender,
            leaf,
            ca,
            covered: vec![host.to_owned()],
            idle_since: Instant::now(),
            retired,
            end: end.drop_guard(),
        })
    }

    fn trust(&self, label: &TunnelLabel, ca: &str, end: &CancellationToken) {
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let list = trust.entry(label.clone()).or_default();
        // Dead entries go when the list would grow, so that its length stays within twice what is open.
        if list.len() == list.capacity() {
            list.retain(|(_, end)| !end.is_cancelled());
        }
        list.push((ca.to_owned(), end.clone()));
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

    /// Closes what carries nothing, for a stop: gateways end their links when the last call has.
    pub(crate) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Closes what is kept in links of this tunnel that take no more calls.
    pub(crate) fn retire(&self, label: &TunnelLabel) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = idle.get_mut(label) {
            kept.retain(|inner| !inner.is_over());
        }
    }

    /// Closes what was not used for a while. To be called now and then.
    pub(crate) fn sweep(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, kept| {
            kept.retain(|inner| !inner.is_over() && inner.idle_since.elapsed() < IDLE);
            !kept.is_empty()
        });
        drop(idle);
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        trust.retain(|_, list| {
            list.retain(|(_, end)| !end.is_cancelled());
            !list.is_empty()
        });
    }
}

impl Inner {
    /// Whether the CA that signed the gateway's certificate is registered on the tunnel.
    pub(crate) fn is_vouched_for(&self, tunnel: &LiveTunnel) -> bool {
        tunnel.cas.iter().any(|ca| ca.fingerprint() == self.ca)
    }

    /// Ends the connection when its gateway answers this request with too many interim answers. A gateway of ours sends
    /// none.
    pub(crate) fn bound_interim<B>(&self, request: &mut Request<B>) {
        let (end, count) = (self.end.token().clone(), AtomicUsize::new(0));
        hyper::ext::on_informational(request, move |_| {
            if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
                end.cancel();
            }
        });
    }

    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.retired.load(Ordering::Acquire)
    }

    fn covers(&mut self, host: &str) -> bool {
        if self.covered.iter().any(|name| name == host) {
            return true;
        }
        let covers = sortie_tls::covers(&self.leaf, host);
        if covers && self.covered.len() < 64 {
            self.covered.push(host.to_owned());
        }
        covers
    }
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
