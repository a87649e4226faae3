//! The end of inner TLS: each stream of the link becomes one TLS connection with HTTP inside.
//!
//! The kind of a stream only selects which proof is demanded, so that an edge that lies about it gains nothing: without
//! a client certificate every request needs the hub's word and reaches terminated routes only; with one, exactly the
//! sealed route whose CA signed it. What the gateway's own listener hands over ends here, too, as the one caller that the
//! settings assert.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sortie_identity::Caller;
use sortie_link::protos::Kind;
use sortie_link::{Call, LinkStream};
use sortie_runtime::close_gently;
use sortie_runtime::http::{
    CONNECTION_WINDOW, InTasks, MAX_FRAME, MAX_HEAD, MAX_HEAD_U32, MAX_INNER_HEADERS, MAX_MISTAKES, MAX_SEND_BUFFER,
    MAX_STREAMS, MAX_UNSEEN_RESETS, STREAM_WINDOW,
};
use sortie_tls::{MAX_HELLO, ServerStream, TlsAcceptor, explain_io, read_hello};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::forward::{Peer, handle};
use crate::gateway::Shared;
use crate::record::Open;

/// Inner connections open at once; more are refused, which the edge tells its caller.
pub(crate) const MAX_CONNECTIONS: usize = 4096;
/// What inner TLS may carry, most wanted first: a small request costs less over HTTP/1.1.
pub(crate) const ALPN: [&[u8]; 2] = [b"http/1.1", b"h2"];

/// How long TLS may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the hub may take to close the connections that it keeps, when the gateway stops. Whoever closes a connection
/// that the other side may just be writing to loses a call.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// Serves a stream until it ends; with the gateway stopping, until its running calls have ended.
pub(crate) async fn serve(shared: Arc<Shared>, call: Call) {
    let Ok(_permit) = shared.inner_connections.clone().try_acquire_owned() else {
        counted("refused");
        tracing::warn!("{MAX_CONNECTIONS} inner connections are open: another one is refused");
        return;
    };
    let _open = Open::new("sortie_gateway_open_streams");
    let kind = call.kind;
    let accepting = async {
        match kind {
            Kind::Hub => from_hub(&shared, call.stream).await,
            Kind::Sealed => from_client(&shared, call.stream).await,
        }
    };
    // On the heap: what lasts has only the room that it needs.
    let accepted = Box::pin(tokio::time::timeout(HANDSHAKE_DEADLINE, accepting)).await;
    match accepted.unwrap_or_else(|_| Err(too_slow())) {
        Ok(Accepted::Hub(stream)) => {
            counted("ok");
            http(&shared, Peer::Unproven, stream).await;
        }
        Ok(Accepted::Client(peer, stream)) => {
            counted("ok");
            http(&shared, peer, stream).await;
        }
        Err(reason) => {
            counted("failed");
            tracing::warn!(?kind, "tls handshake failed: {reason}");
        }
    }
}

/// Serves a connection of the gateway's own listener, whose caller the settings assert, as [`serve`] does.
///
/// # Errors
/// TLS failed, in words.
pub(crate) async fn serve_asserted<S>(shared: &Arc<Shared>, stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let accepting = TlsAcceptor::from(shared.served().hub_tls.clone()).accept(stream);
    let accepted = Box::pin(tokio::time::timeout(HANDSHAKE_DEADLINE, accepting)).await;
    let accepted = accepted.map(|accepted| accepted.map_err(|error| explain_io(&error)));
    match accepted.unwrap_or_else(|_| Err(too_slow())) {
        Ok(stream) => {
            counted("ok");
            http(shared, Peer::Asserted, stream).await;
            Ok(())
        }
        Err(reason) => {
            counted("failed");
            Err(reason)
        }
    }
}

enum Accepted {
    Hub(ServerStream<LinkStream>),
    Client(Peer, ServerStream<sortie_tls::Prefixed<LinkStream>>),
}

async fn from_hub(shared: &Shared, stream: LinkStream) -> Result<Accepted, String> {
    let stream = TlsAcceptor::from(shared.served().hub_tls.clone()).accept(stream).await;
    stream.map(Accepted::Hub).map_err(|error| explain_io(&error))
}

/// The SNI tells which route's CA the client has to satisfy; only sealed routes have one.
async fn from_client(shared: &Shared, stream: LinkStream) -> Result<Accepted, String> {
    let (hello, stream) = read_hello(stream, MAX_HELLO).await.map_err(|error| error.to_string())?;
    let served = shared.served();
    let route = hello.sni.as_deref().and_then(|host| served.routes.by_host(host));
    let (Some(route), Some(config)) = (route, route.and_then(|route| route.sealed.clone())) else {
        return Err("the client asks for no sealed route of this gateway".to_owned());
    };
    let stream = TlsAcceptor::from(config).accept(stream).await.map_err(|error| explain_io(&error))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    // It counts for this connection: what the certificate itself says of its end, TLS has checked.
    let caller = Caller::of_certificate(certificate.ok_or("the client showed no certificate")?, i64::MAX);
    Ok(Accepted::Client(Peer::Client(route.clone(), Arc::new(caller)), stream))
}

async fn http<S>(shared: &Arc<Shared>, peer: Peer, stream: ServerStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // What TLS negotiated is what is spoken: no guessing from the first bytes.
    let ended = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => http2(shared, peer, stream).await,
        _ => http1(shared, peer, stream).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "inner connection ended");
    }
}

async fn http1<S>(shared: &Arc<Shared>, peer: Peer, mut stream: ServerStream<S>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| {
        let answer = handle(shared.clone(), peer.clone(), request);
        Box::pin(async move {
            let mut answer = answer.await;
            if shared.tasks.is_stopping() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        })
    });
    let mut builder = http1::Builder::new();
    // The wait for the next head has no end here: who keeps a connection open without a request is the hub's to say, and
    // a sealed client's own.
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_INNER_HEADERS).header_read_timeout(None);
    let ended = {
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(&mut stream), service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = async {
                shared.tasks.stopping().await;
                tokio::time::sleep(LAST_CALLS).await;
            } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    close_gently(&mut stream).await;
    ended
}

async fn http2<S>(shared: &Arc<Shared>, peer: Peer, stream: ServerStream<S>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = handle(shared.clone(), peer.clone(), request);
        // On the heap, and gone with the head of the answer, which may go on for hours.
        Box::pin(async move { Ok::<_, Infallible>(answer.await) })
    });
    let mut builder = http2::Builder::new(InTasks::new(shared.tasks.clone(), "inner-http2"));
    builder
        .max_header_list_size(MAX_HEAD_U32)
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(MAX_FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
        .max_local_error_reset_streams(MAX_MISTAKES)
        .keep_alive_interval(None);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.tasks.stopping() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

fn too_slow() -> String {
    format!("it took more than {} s", HANDSHAKE_DEADLINE.as_secs())
}

fn counted(result: &'static str) {
    metrics::counter!("sortie_gateway_inner_handshakes_total", "result" => result).increment(1);
}
