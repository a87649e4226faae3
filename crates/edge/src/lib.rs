//! The edge: the one port that gateways dial and clients call.
//!
//! It reads the ClientHello of each connection and nothing more: the link's ALPN makes it a link, the hostname of a
//! sealed route is passed on unread to that route's gateway, and every other hostname under the base domain is ended
//! here and handed to the hub. The edge knows hostnames and digests of tunnel tokens; it never has a key that opens
//! inner TLS, and what it passes on it cannot read.
//!
//! Bounds: connections, also per source address, bytes and time of a hello, streams of a link. Every connection is a task of the set given to
//! [`Edge::serve`] and ends with it.

mod links;
mod serve;

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use sortie_ids::{BaseDomain, Digest, RouteName, TunnelId, TunnelLabel};
use sortie_link::EdgeLink;
use sortie_link::protos::{CheckpointVerdict, ProbeFailure, PublishedNote};
use sortie_tls::{Prefixed, ResolvesServerCert, ServerStream};
use tokio::net::TcpStream;

pub use links::{LinkStatus, Links, no_link};
pub use serve::{Edge, EdgeError};

/// A client's connection after its TLS was ended at the edge.
pub type ClientConnection = ServerStream<Prefixed<TcpStream>>;

/// How an edge is set up.
#[derive(Clone)]
pub struct EdgeConfig {
    /// The certificates it shows.
    pub identity: Arc<dyn ResolvesServerCert>,
    /// The domain whose hostnames it serves.
    pub base_domain: BaseDomain,
    /// Connections held at once: a tenth of the places is for those that have not said yet what they are, and further
    /// ones wait in the listener's backlog; a fifth is for links of gateways, the rest for clients.
    pub max_connections: usize,
    /// How many percent of each of these one source address may hold, 1 to 100; further ones are closed.
    pub address_share: u8,
}

/// The tunnel that a token opens.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its id.
    pub tunnel: TunnelId,
    /// Its label.
    pub label: TunnelLabel,
    /// How the keys have changed that the hub signs with, for the gateway; signed, and none of the edge's business.
    pub identity_keys: Vec<String>,
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It is unknown, rotated, or its tunnel is archived.
    Token,
    /// It cannot be looked up at the moment.
    Unavailable,
}

/// What the edge asks of whoever knows the tunnels.
pub trait Directory: Send + Sync + 'static {
    /// The tunnel whose current token has this digest.
    fn admit<'a>(&'a self, token: &'a Digest) -> BoxFuture<'a, Result<Admitted, NotAdmitted>>;
}

/// Where connections go whose TLS the edge has ended.
pub trait Terminator: Send + Sync + 'static {
    /// Serves a client's connection to its end. `host` is the hostname of its SNI, in lower case.
    fn serve(self: Arc<Self>, connection: ClientConnection, host: String, peer: SocketAddr) -> BoxFuture<'static, ()>;

    /// A link of this tunnel was retired: connections that are kept in it for later are to be closed.
    fn retire(&self, label: &TunnelLabel);

    /// Takes the checkpoint of a gateway's audit log that came over this link.
    fn checkpoint<'a>(
        &'a self,
        tunnel: &'a TunnelId,
        link: &'a EdgeLink,
        published: PublishedNote,
    ) -> BoxFuture<'a, CheckpointVerdict>;

    /// Makes a call over this very link to one of its routes, for a gateway that wants to know whether it is reached.
    fn probe<'a>(
        &'a self,
        label: &'a TunnelLabel,
        link: &'a EdgeLink,
        route: &'a RouteName,
    ) -> BoxFuture<'a, Option<ProbeFailure>>;
}
