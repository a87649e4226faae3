//! Accepting connections and telling them apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sortie_ids::{LinkId, TunnelToken};
use sortie_link::Welcome;
use sortie_link::protos::{CHECKPOINTS, CheckpointVerdict, EdgeHello, FromEdge, FromGateway, Kind, RouteMode, VERSION};
use sortie_runtime::{NoPlace, Place, Places, TaskSet, notice_absence};
use sortie_tls::{Hello, MAX_HELLO, Prefixed, TlsAcceptor, TlsError, Versions, read_hello, server_config};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::{Directory, EdgeConfig, Links, NotAdmitted, Terminator};

/// How long a client may take to send its ClientHello.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a client may take for its TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a link may publish a checkpoint: each costs the hub a signature's check and a write.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Bytes that a sealed connection holds in each direction, beside the windows of its stream.
const COPY_BUFFER: usize = 16 * 1024;

/// Why an edge cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// TLS cannot be configured.
    #[error("the edge's TLS cannot be set up")]
    Tls(#[from] TlsError),
}

/// The edge. Clones share it.
#[derive(Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

struct Shared {
    config: EdgeConfig,
    link_tls: TlsAcceptor,
    client_tls: TlsAcceptor,
    links: Links,
    instance: String,
    directory: Arc<dyn Directory>,
    terminator: Arc<dyn Terminator>,
    places: Kinds,
}

/// The places by what a connection is, so that no kind can crowd out another: neither who says nothing, nor a crowd of
/// clients, nor whoever offers the link's ALPN without having a token.
struct Kinds {
    /// Until the ClientHello of a client, or the token of a gateway, was read.
    newcomers: Places,
    clients: Places,
    links: Places,
}

impl Kinds {
    fn new(config: &EdgeConfig) -> Self {
        let (all, share) = (config.max_connections, config.address_share);
        let (newcomers, links) = (all / 10, all / 5);
        Self {
            newcomers: Places::new(newcomers, share),
            clients: Places::new(all - newcomers - links, share),
            links: Places::new(links, share),
        }
    }
}

impl Edge {
    /// An edge that does not listen yet; `links` is where its links will be found.
    ///
    /// # Errors
    /// When its TLS cannot be configured.
    pub fn new(
        config: EdgeConfig,
        links: Links,
        directory: Arc<dyn Directory>,
        terminator: Arc<dyn Terminator>,
    ) -> Result<Self, EdgeError> {
        let link_tls = server_config(config.identity.clone(), Versions::Tls13, &[sortie_link::ALPN], None)?;
        let client_tls = server_config(config.identity.clone(), Versions::Legacy, &[b"h2", b"http/1.1"], None)?;
        let places = Kinds::new(&config);
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                link_tls: link_tls.into(),
                client_tls: client_tls.into(),
                links,
                instance: LinkId::random().as_str().trim_start_matches(LinkId::PREFIX).to_owned(),
                directory,
                terminator,
                places,
            }),
        })
    }

    /// Accepts connections until the set is stopped; gateways are told then, and what runs may finish.
    pub async fn serve(&self, listener: TcpListener, tasks: TaskSet) {
        loop {
            let accepted = tokio::select! {
                () = tasks.stopping() => return,
                accepted = accept(&listener, &self.shared.places.newcomers) => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: waiting is all that helps, and the next one may come through.
                    tracing::warn!(%error, "the edge could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let newcomer = match self.shared.places.newcomers.take(peer.ip()) {
                Ok(place) => place,
                Err(why) => {
                    let reason = no_place(why);
                    tracing::debug!(%peer, "{reason}");
                    continue;
                }
            };
            let (shared, inside) = (self.shared.clone(), tasks.clone());
            tasks.spawn("edge-connection", async move {
                if let Err(error) = shared.connection(stream, peer, newcomer, &inside).await {
                    tracing::debug!(%peer, error, "edge connection ended");
                }
            });
        }
    }
}

async fn accept(listener: &TcpListener, newcomers: &Places) -> std::io::Result<(TcpStream, SocketAddr)> {
    newcomers.free().await;
    let (stream, peer) = listener.accept().await?;
    notice_absence(&stream);
    Ok((stream, peer))
}

/// Counts a connection that is closed for want of a place.
fn no_place(why: NoPlace) -> String {
    metrics::counter!("sortie_edge_connections_refused_total", "reason" => why.as_str()).increment(1);
    format!("closed: {why}")
}

impl Shared {
    async fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        newcomer: Place,
        tasks: &TaskSet,
    ) -> Result<(), String> {
        let hello = Box::pin(tokio::time::timeout(HELLO_DEADLINE, read_hello(stream, MAX_HELLO))).await;
        let (hello, stream) =
            hello.map_err(|_| "no ClientHello in time".to_owned())?.map_err(|error| error.to_string())?;
        if hello.offers(sortie_link::ALPN) {
            metrics::counter!("sortie_edge_connections_total", "kind" => "link").increment(1);
            return Box::pin(self.link(stream, peer, newcomer, tasks)).await;
        }
        let _place = self.places.clients.take(peer.ip()).map_err(no_place)?;
        drop(newcomer);
        // On the heap, as the handshake below: what lasts has only the room that it needs.
        Box::pin(self.client(hello, stream, peer)).await
    }

    async fn client(&self, hello: Hello, stream: Prefixed<TcpStream>, peer: SocketAddr) -> Result<(), String> {
        let host = hello.sni.unwrap_or_default().to_ascii_lowercase();
        if let Some(name) = self.config.base_domain.parse_host(&host)
            && self.links.route_mode(&name.label, &name.route) == Some(RouteMode::Sealed)
        {
            metrics::counter!("sortie_edge_connections_total", "kind" => "sealed").increment(1);
            let opened = self.links.open(&name.label, Kind::Sealed, &host).await;
            let mut far = opened.map_err(|error| error.to_string())?;
            let mut near = stream;
            tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, COPY_BUFFER, COPY_BUFFER)
                .await
                .map_err(|error| error.to_string())?;
            return Ok(());
        }
        metrics::counter!("sortie_edge_connections_total", "kind" => "terminated").increment(1);
        let handshake = Box::pin(tokio::time::timeout(HANDSHAKE_DEADLINE, self.client_tls.accept(stream))).await;
        let connection = handshake
            .map_err(|_| "no TLS handshake in time".to_owned())?
            .map_err(|error| sortie_tls::explain_io(&error))?;
        self.terminator.clone().serve(connection, host, peer).await;
        Ok(())
    }

    async fn link(
        &self,
        stream: Prefixed<TcpStream>,
        peer: SocketAddr,
        newcomer: Place,
        tasks: &TaskSet,
    ) -> Result<(), String> {
        let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, self.link_tls.accept(stream)).await;
        let stream = handshake
            .map_err(|_| "no TLS handshake in time".to_owned())?
            .map_err(|error| sortie_tls::explain_io(&error))?;
        let hello = EdgeHello {
            version: VERSION,
            features: vec![CHECKPOINTS.to_owned()],
            edge_instance: self.instance.clone(),
            link_id: LinkId::random(),
        };
        let mut admitted = None;
        let accepted = sortie_link::accept(stream, &hello, tasks, async |gateway| {
            let refused = "the tunnel token is unknown: it was rotated, or the tunnel is archived";
            let token = TunnelToken::parse(&gateway.token).map_err(|_| (refused.to_owned(), false))?;
            match self.directory.admit(&token.digest()).await {
                Ok(tunnel) => {
                    if !self.links.make_room(&tunnel.label) {
                        return Err(("the tunnel has as many links as it may".to_owned(), true));
                    }
                    let place = self.places.links.take(peer.ip()).map_err(|why| (no_place(why), true))?;
                    let domain = self.config.base_domain.tunnel(&tunnel.label).to_string();
                    let identity_keys = tunnel.identity_keys.clone();
                    admitted = Some((tunnel, token.digest(), place));
                    Ok(Welcome { domain, identity_keys })
                }
                Err(NotAdmitted::Token) => Err((refused.to_owned(), false)),
                Err(NotAdmitted::Unavailable) => Err(("the token cannot be checked at the moment".to_owned(), true)),
            }
        })
        .await;
        let (link, mut said) = accepted.map_err(|error| {
            metrics::counter!("sortie_edge_links_refused_total").increment(1);
            tracing::warn!(%peer, %error, "a link was refused");
            error.to_string()
        })?;
        let Some((tunnel, token, _place)) = admitted else { return Err("admitted without a tunnel".into()) };
        drop(newcomer);
        let routes = link.routes().len();
        tracing::info!(%peer, tunnel = %tunnel.tunnel, link = %link.id(), routes, software = link.software(), "link up");
        self.links.add(&tunnel.label, link.clone());
        // Whoever archived the tunnel, or changed the hub's keys, between the check and the entry into the table has not
        // found this link to cut or to tell.
        match self.directory.admit(&token).await {
            Err(_) => link.close(),
            Ok(now) if now.identity_keys != tunnel.identity_keys => {
                link.tell(FromEdge::IdentityKeys { announcements: now.identity_keys });
            }
            Ok(_) => {}
        }
        let (mut draining, mut next_checkpoint) = (false, Instant::now());
        loop {
            tokio::select! {
                message = said.recv() => match message {
                    Some(FromGateway::Probe { id, route }) => {
                        let failure = self.terminator.probe(&tunnel.label, &link, &route).await;
                        link.tell(FromEdge::ProbeResult { id, failure });
                    }
                    Some(FromGateway::Checkpoint(published)) => {
                        let verdict = if next_checkpoint <= Instant::now() {
                            let verdict = self.terminator.checkpoint(&tunnel.tunnel, &link, published).await;
                            // The proof that is asked for may come at once.
                            if !matches!(verdict, CheckpointVerdict::Prove { .. }) {
                                next_checkpoint = Instant::now() + CHECKPOINT_EVERY;
                            }
                            verdict
                        } else {
                            CheckpointVerdict::Later
                        };
                        link.tell(FromEdge::CheckpointResult { verdict });
                    }
                    Some(FromGateway::Draining) => {
                        link.retire();
                        self.terminator.retire(&tunnel.label);
                    }
                    Some(FromGateway::Routes { .. } | FromGateway::Unknown) => {}
                    None => break,
                },
                () = link.closed() => break,
                () = tasks.stopping(), if !draining => {
                    draining = true;
                    link.tell(FromEdge::Draining);
                }
            }
        }
        self.links.remove(&tunnel.label, link.id());
        tracing::info!(tunnel = %tunnel.tunnel, link = %link.id(), "link down");
        Ok(())
    }
}
