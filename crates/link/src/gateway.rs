//! The gateway's end: the dialler, which is the HTTP/2 server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use sortie_ids::LinkId;
use sortie_runtime::TaskSet;
use sortie_runtime::http::MAX_MISTAKES;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::control::{AbortOnDrop, ControlError, ControlReader, write_control};
use crate::liveness::{Heard, LastHeard, watch};
use crate::protos::{EdgeHello, FromEdge, FromGateway, GatewayHello, Kind, STREAM_KIND, VERSION, line, unreadable};
use crate::stream::LinkStream;
use crate::{LINK_WINDOW, MAX_FRAME, MAX_HEADERS, MAX_RESETS, MAX_STREAMS, STREAM_WINDOW};

/// How long the edge may take from the end of outer TLS to its verdict on the token.
const WELCOME_DEADLINE: Duration = Duration::from_secs(10);
const CONTROL_QUEUE: usize = 16;
/// Streams that wait for the gateway to take them; further ones are refused. As many as may be open: a crowd of callers
/// comes in one piece, before whoever takes the streams had a turn.
const CALL_QUEUE: usize = MAX_STREAMS as usize;

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum EstablishError {
    /// The peer does not speak HTTP/2, or broke it.
    #[error("the link's HTTP/2 failed")]
    Http2(#[from] h2::Error),
    /// The control stream broke.
    #[error("the control stream failed")]
    Control(#[from] ControlError),
    /// What the edge said is not the protocol.
    #[error("the edge does not speak the link protocol: {0}")]
    Protocol(String),
    /// Nothing came in time.
    #[error("the edge did not answer within {} s", WELCOME_DEADLINE.as_secs())]
    Deadline,
    /// The edge refused the token.
    #[error("the edge refused the link: {reason}")]
    Refused {
        /// The edge's reason.
        reason: String,
        /// Whether the same token may be good later.
        retry: bool,
    },
}

/// A stream that the edge opened: one TLS connection to be ended here.
#[derive(Debug)]
pub struct Call {
    /// Whose.
    pub kind: Kind,
    /// The hostname that the edge says it is for; to be believed only as far as TLS and identity confirm it.
    pub host: String,
    /// Its bytes.
    pub stream: LinkStream,
}

/// What the edge does on an established link.
#[derive(Debug)]
pub enum Event {
    /// It opened a stream.
    Call(Call),
    /// It said something.
    Message(FromEdge),
}

/// An established link.
pub struct GatewayLink {
    id: LinkId,
    edge_instance: String,
    features: Vec<String>,
    domain: String,
    identity_keys: Vec<String>,
    calls: mpsc::Receiver<Call>,
    messages: mpsc::Receiver<FromEdge>,
    teller: Teller,
    tasks: TaskSet,
    drain: Arc<tokio::sync::Notify>,
}

impl std::fmt::Debug for GatewayLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayLink").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Sends messages to the edge.
#[derive(Clone, Debug)]
pub struct Teller(mpsc::Sender<FromGateway>);

impl Teller {
    /// False when the link has ended or the edge does not read.
    pub fn tell(&self, message: FromGateway) -> bool {
        self.0.try_send(message).is_ok()
    }
}

/// Makes a link of a connection whose outer TLS, with the edge's certificate checked, is done.
///
/// # Errors
/// See [`EstablishError`]; the connection is closed then.
pub async fn establish<S>(io: S, hello: &GatewayHello, tasks: &TaskSet) -> Result<GatewayLink, EstablishError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let heard = LastHeard::new();
    let io = Heard::new(io, heard.clone());
    let tasks = tasks.child();
    let abort = AbortOnDrop::new(tasks.clone());
    let exchange = async {
        let mut connection = h2::server::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(LINK_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            .max_concurrent_streams(MAX_STREAMS)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(Some(MAX_MISTAKES))
            .max_pending_accept_reset_streams(MAX_RESETS)
            .handshake::<_, Bytes>(io)
            .await?;
        let pings = connection.ping_pong();
        let (request, mut respond) = connection
            .accept()
            .await
            .ok_or_else(|| EstablishError::Protocol("it closed before the control stream".into()))??;
        if request.method() != Method::POST || !request.uri().path().ends_with("/control") {
            return Err(EstablishError::Protocol("the first stream is not the control stream".into()));
        }
        let mut send = respond.send_response(Response::new(()), false)?;
        let mut control = ControlReader::new(request.into_body());

        // Nothing is read or written unless the connection is driven, which `accept` does.
        let mut early = Vec::new();
        let text = drive(&mut connection, &mut early, control.next()).await??;
        let text = text.ok_or_else(|| EstablishError::Protocol("it closed before its hello".into()))?;
        let edge: EdgeHello =
            serde_json::from_slice(&text).map_err(|error| EstablishError::Protocol(unreadable(&error)))?;
        if edge.version != VERSION {
            return Err(EstablishError::Protocol(format!("it speaks version {}, not {VERSION}", edge.version)));
        }
        send.send_data(line(hello), false)?;
        let text = drive(&mut connection, &mut early, control.next()).await??;
        let text = text.ok_or_else(|| EstablishError::Protocol("it closed before its verdict".into()))?;
        match serde_json::from_slice(&text) {
            Ok(FromEdge::Welcome { domain, identity_keys }) => {
                Ok((connection, early, pings, send, control, edge, (domain, identity_keys)))
            }
            Ok(FromEdge::Refused { reason, retry }) => Err(EstablishError::Refused { reason, retry }),
            _ => Err(EstablishError::Protocol("its verdict cannot be read".into())),
        }
    };
    let (connection, early, pings, send, control, edge, (domain, identity_keys)) =
        tokio::time::timeout(WELCOME_DEADLINE, exchange).await.map_err(|_| EstablishError::Deadline)??;

    let (to_edge, outgoing) = mpsc::channel(CONTROL_QUEUE);
    let (from_edge, messages) = mpsc::channel(CONTROL_QUEUE);
    let (incoming, calls) = mpsc::channel(CALL_QUEUE);
    let drain = Arc::new(tokio::sync::Notify::new());
    if let Some(pings) = pings {
        let dead = tasks.clone();
        tasks.spawn("link-liveness", async move {
            watch(pings, heard).await;
            tracing::warn!("the edge is silent: the link is dead");
            dead.abort();
        });
    }
    tasks.spawn("link-control-out", write_control(send, outgoing));
    tasks.spawn("link-control-in", async move {
        let mut control = control;
        while let Ok(Some(text)) = control.next().await {
            let Ok(message) = serde_json::from_slice::<FromEdge>(&text) else { return };
            if from_edge.send(message).await.is_err() {
                return;
            }
        }
    });
    let (ended, draining) = (tasks.clone(), drain.clone());
    tasks.spawn("link", async move {
        serve(connection, early, incoming, &draining).await;
        ended.abort();
    });
    abort.disarm();
    Ok(GatewayLink {
        id: edge.link_id,
        edge_instance: edge.edge_instance,
        features: edge.features,
        domain,
        identity_keys,
        calls,
        messages,
        teller: Teller(to_edge),
        tasks,
        drain,
    })
}

/// A stream that the edge opened, before anything was said about it.
type Opened = (Request<RecvStream>, SendResponse<Bytes>);

/// Drives the connection while something of it is awaited. Streams that come meanwhile are kept: an edge opens the first
/// ones right behind its verdict, so that they may be here before the verdict was looked at.
async fn drive<S, T>(
    connection: &mut Connection<S, Bytes>,
    early: &mut Vec<Opened>,
    wait: impl Future<Output = T>,
) -> Result<T, EstablishError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wait = std::pin::pin!(wait);
    loop {
        tokio::select! {
            biased;
            done = &mut wait => return Ok(done),
            stream = connection.accept() => match stream {
                Some(Ok(opened)) if early.len() < CALL_QUEUE => early.push(opened),
                Some(Ok((_, mut respond))) => respond.send_reset(Reason::REFUSED_STREAM),
                Some(Err(error)) => return Err(error.into()),
                None => return Err(EstablishError::Protocol("it closed the connection".into())),
            },
        }
    }
}

/// How often a draining link looks whether its last stream has ended.
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// Accepts streams until the connection has ended; after `drain`, no new ones, and the end comes with the last stream.
async fn serve<S>(
    mut connection: Connection<S, Bytes>,
    early: Vec<Opened>,
    calls: mpsc::Sender<Call>,
    drain: &tokio::sync::Notify,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Every stream holds a clone. (The control stream, which outlives them all, does not.)
    let open = Arc::new(());
    for (request, respond) in early {
        accept_stream(request, respond, &calls, &open);
    }
    let mut draining = false;
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            () = drain.notified(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
            () = tokio::time::sleep(DRAIN_TICK), if draining => {
                if Arc::strong_count(&open) == 1 {
                    return;
                }
                continue;
            }
        };
        match stream {
            Some(Ok((request, respond))) => accept_stream(request, respond, &calls, &open),
            Some(Err(error)) => {
                tracing::debug!(%error, "link connection ended");
                return;
            }
            None => return,
        }
    }
}

fn accept_stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    calls: &mpsc::Sender<Call>,
    open: &Arc<()>,
) {
    let kind = request.headers().get(STREAM_KIND).and_then(|value| Kind::parse(value.as_bytes()));
    let host = request.uri().authority().map(|authority| authority.host().to_ascii_lowercase());
    let (Method::CONNECT, Some(kind), Some(host)) = (request.method().clone(), kind, host) else {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        let _ = respond.send_response(response, true);
        return;
    };
    // A full queue means that this process cannot keep up: refusing is honest, and the edge says so to its caller.
    let Ok(permit) = calls.try_reserve() else {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    };
    if let Ok(send) = respond.send_response(Response::new(()), false) {
        permit.send(Call { kind, host, stream: LinkStream::accepted(send, request.into_body(), open.clone()) });
    }
}

impl GatewayLink {
    /// This link's id, given by the edge.
    pub fn id(&self) -> &LinkId {
        &self.id
    }

    /// Which edge process this is.
    pub fn edge_instance(&self) -> &str {
        &self.edge_instance
    }

    /// Whether the edge names this optional behaviour.
    pub fn has_feature(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }

    /// The tunnel's domain, as the edge says.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// How the hub's keys have changed, as the edge says: to be believed only by their signatures.
    pub fn identity_keys(&self) -> &[String] {
        &self.identity_keys
    }

    /// A sender of messages to the edge.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    /// The next thing that the edge does; `None` when the link has ended.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            Some(call) = self.calls.recv() => Some(Event::Call(call)),
            Some(message) = self.messages.recv() => Some(Event::Message(message)),
            else => None,
        }
    }

    /// Lets no new streams begin (GOAWAY, RFC 9113, 6.8); those that run go on, and the link ends with the last.
    pub fn drain(&self) {
        // The edge has to know before connections in the link are closed, or it may begin a call on one of them.
        self.teller.tell(FromGateway::Draining);
        self.drain.notify_one();
    }

    /// Ends the link and every stream on it, at once.
    pub fn close(&self) {
        self.tasks.abort();
    }
}
