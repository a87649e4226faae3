//! An MCP server with everything that the official conformance suite asks of one: the tools, prompts and resources that
//! its scenarios name, for both eras of the protocol on one URL. Tests run the suite against it directly and through a
//! tunnel.
//!
//! It never ships: no crate may depend on it outside `dev-dependencies`. It serves loopback only, refuses other names in
//! `Host`, and remembers nothing beyond a session. Its tasks end when the [`ConformanceServer`] is dropped.

#![expect(deprecated, reason = "the suite asks for what the protocol will lose, too: logs, sampling, roots")]

mod ask;
mod content;
mod handler;
mod tasks;
mod tools;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use handler::{Handler, Shared};

/// The header with the id of a session.
const SESSION: &str = "mcp-session-id";

/// A running server. Dropping it ends its calls, its sessions and its listener.
#[derive(Debug)]
pub struct ConformanceServer {
    addr: SocketAddr,
    _running: DropGuard,
}

impl ConformanceServer {
    /// Serves MCP at `/mcp` on this address of loopback; port 0 picks a free port. Needs a Tokio runtime.
    ///
    /// # Errors
    /// `InvalidInput` for an address beyond loopback; else those of binding a socket.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        if !addr.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{addr} is not an address of loopback")));
        }
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let running = CancellationToken::new();
        let sessions = Arc::new(LocalSessionManager::default());
        let shared = Arc::new(Shared::new(Arc::clone(&sessions)));
        // `Host` is checked, `Origin` is not: a gateway puts this server's own name into `Host`, so that a page that
        // reaches it through a tunnel is refused by the tunnel or not at all.
        let config = StreamableHttpServerConfig::default().with_cancellation_token(running.child_token());
        let handlers = Arc::clone(&shared);
        let mcp = StreamableHttpService::new(move || Ok(Handler::new(Arc::clone(&handlers))), sessions, config);
        let watched = middleware::from_fn(move |request, next| watch_returns(Arc::clone(&shared), request, next));
        let served = axum::serve(listener, Router::new().route_service("/mcp", mcp).layer(watched));
        let stop = running.clone();
        #[expect(clippy::disallowed_methods, reason = "a test server: its one task ends with the token of its owner")]
        tokio::spawn(async move {
            tokio::select! {
                ended = served => ended.expect("serving ends only with the process"),
                () = stop.cancelled() => {}
            }
        });
        Ok(Self { addr, _running: running.drop_guard() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of its MCP endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.addr)
    }
}

/// Notes which session's client came back for the rest of a stream that was closed on it: after the stream is its own
/// again, so that what is sent from then on reaches it.
async fn watch_returns(shared: Arc<Shared>, request: Request, next: Next) -> Response {
    let session = request.headers().get(SESSION).filter(|_| request.headers().contains_key("last-event-id")).cloned();
    let answer = next.run(request).await;
    if let Some(session) = session.filter(|_| answer.status().is_success()) {
        shared.came_back(session);
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_listens_on_loopback_only() {
        let everywhere = ConformanceServer::bind(([0, 0, 0, 0], 0).into()).await;
        assert_eq!(everywhere.expect_err("refused").kind(), io::ErrorKind::InvalidInput);
        let server = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("server");
        let addr = server.addr();
        drop(server);
        let gone = async { while tokio::net::TcpStream::connect(addr).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("nobody listens there any more");
    }
}
