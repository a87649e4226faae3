//! The listener for the hosted service's own traffic.
//!
//! Its connector hands over plain HTTP/1.1 that becomes a WebSocket; the binary messages of that, put together, are the
//! bytes of one inner TLS connection, of which the hosted service is the client. No more than that is known of it: any
//! path is taken, and any host. Nothing in it proves who calls, so that every call is the one caller of the settings.
//! The listener must never believe a header that says otherwise, and reaches terminated routes only.
//!
//! One task per connection, in the gateway's set: a stop ends the listener and half-made connections at once, and lets
//! calls end.

mod carried;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sortie_runtime::notice_absence;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gateway::Shared;
use crate::inner;
use crate::record::Open;
use carried::Carried;

/// Connections at once; another one is closed. They also count among the inner connections, of which this is a quarter.
const MAX_CONNECTIONS: usize = inner::MAX_CONNECTIONS / 4;
/// How long a connection may take to become a WebSocket.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(5);
/// The wait after an error of the machine, such as no more descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// The open port, and the room behind it.
pub(crate) struct Listener {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    room: Arc<Semaphore>,
}

impl Listener {
    /// Opens the port; the address tells which one was free when 0 was asked for.
    pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<(Self, TcpListener)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((Self { address, room: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }, listener))
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        MAX_CONNECTIONS.saturating_sub(self.room.available_permits())
    }
}

/// Takes connections until the gateway is asked to stop.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.tasks.stopping() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection of the listener could not be accepted");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Some(places) = places(&shared) else {
            counted("full");
            tracing::warn!(%peer, "all places for connections of the listener are taken: another one is refused");
            continue;
        };
        let shared_here = shared.clone();
        shared.tasks.spawn("listener", async move {
            let _places = places;
            connection(shared_here, stream, peer).await;
        });
    }
}

/// A place among the connections of the listener and one among all inner connections.
fn places(shared: &Shared) -> Option<[OwnedSemaphorePermit; 2]> {
    let room = shared.listener.as_ref()?.room.clone();
    Some([room.try_acquire_owned().ok()?, shared.inner_connections.clone().try_acquire_owned().ok()?])
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    notice_absence(&stream);
    let _open = Open::new("sortie_gateway_listener_connections");
    let upgraded = tokio::select! {
        upgraded = tokio::time::timeout(UPGRADE_DEADLINE, upgrade::upgrade(&shared, stream)) => upgraded,
        () = shared.tasks.stopping() => return,
    };
    let socket = match upgraded.unwrap_or(Err("it took too long to become a WebSocket".to_owned())) {
        Ok(socket) => socket,
        Err(reason) => {
            counted("refused");
            tracing::warn!(%peer, "a connection of the listener was refused: {reason}");
            return;
        }
    };
    counted("ok");
    let (stream, fault) = Carried::new(socket).await;
    let served = inner::serve_asserted(&shared, stream).await;
    // What broke the WebSocket is the reason for all that came of it.
    let reason = fault.get().map(|reason| format!("a connection of the listener was closed: {reason}"));
    if let Some(reason) = reason.or_else(|| served.err().map(|reason| format!("tls handshake failed: {reason}"))) {
        tracing::warn!(%peer, "{reason}");
    }
}

fn counted(result: &'static str) {
    metrics::counter!("sortie_gateway_listener_connections_total", "result" => result).increment(1);
}
