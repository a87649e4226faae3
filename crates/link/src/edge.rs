//! The edge's end: the HTTP/2 client that opens streams.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use sortie_ids::{LinkId, RouteName};
use sortie_runtime::TaskSet;
use sortie_runtime::http::MAX_MISTAKES;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};

use crate::control::{AbortOnDrop, ControlError, ControlReader, write_control};
use crate::liveness::{Heard, LastHeard, watch};
use crate::protos::{
    CONTROL_PATH, EdgeHello, FromEdge, FromGateway, GatewayHello, Kind, MAX_ROUTES, Route, RouteMode, STREAM_ID,
    STREAM_KIND, STREAM_OFFSET, VERSION, line, unreadable,
};
use crate::stream::LinkStream;
use crate::{LINK_WINDOW, MAX_FRAME, MAX_HEADERS, MAX_RESETS, MAX_STREAMS, STREAM_WINDOW};

/// How long the peer may take for HTTP/2 settings and its hello together.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// How long a stream waits for room among those that are open.
const ROOM_DEADLINE: Duration = Duration::from_secs(1);
/// Messages from a gateway that wait for the edge; a gateway that sends more is held back by flow control.
const CONTROL_QUEUE: usize = 16;

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The peer does not speak HTTP/2, or broke it.
    #[error("the link's HTTP/2 failed")]
    Http2(#[from] h2::Error),
    /// The control stream broke.
    #[error("the control stream failed")]
    Control(#[from] ControlError),
    /// The hello is not one.
    #[error("the gateway's hello is not acceptable: {0}")]
    Hello(String),
    /// No hello within five seconds.
    #[error("no hello came within {} s", HELLO_DEADLINE.as_secs())]
    Deadline,
    /// The token was refused; the gateway was told why.
    #[error("the link was refused: {0}")]
    Refused(String),
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The link has ended or is ending.
    #[error("the link has ended")]
    Ended,
    /// The hostname cannot be written into a request.
    #[error("`{0}` is not a hostname")]
    Host(String),
    /// The gateway accepts no more streams now.
    #[error("the link carries all the streams it may")]
    Full,
}

/// What a gateway is told whose token is good.
#[derive(Clone, Debug, Default)]
pub struct Welcome {
    /// The tunnel's domain.
    pub domain: String,
    /// How the hub's keys have changed, oldest first.
    pub identity_keys: Vec<String>,
}

/// One live link. Clones share it.
#[derive(Clone)]
pub struct EdgeLink {
    shared: Arc<Shared>,
    requests: SendRequest<Bytes>,
}

struct Shared {
    id: LinkId,
    software: String,
    gateway_instance: String,
    routes: RwLock<Arc<Vec<Route>>>,
    next_stream: AtomicU64,
    /// Room for streams beside the control stream.
    room: Arc<Semaphore>,
    proved: AtomicBool,
    retired: Arc<AtomicBool>,
    control: mpsc::Sender<FromEdge>,
    tasks: TaskSet,
}

impl std::fmt::Debug for EdgeLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeLink").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

/// Makes a link of a connection whose outer TLS is done.
///
/// `admit` judges the gateway's hello, token included, and answers with the [`Welcome`] or with what to refuse
/// with. The receiver yields what the gateway says later, and ends with the link.
///
/// # Errors
/// See [`AcceptError`]; the connection is closed then.
pub async fn accept<S, A, F>(
    io: S,
    hello: &EdgeHello,
    tasks: &TaskSet,
    admit: A,
) -> Result<(EdgeLink, mpsc::Receiver<FromGateway>), AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: FnOnce(GatewayHello) -> F,
    F: Future<Output = Result<Welcome, (String, bool)>>,
{
    let heard = LastHeard::new();
    let io = Heard::new(io, heard.clone());
    let tasks = tasks.child();
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(LINK_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(0)
        .max_concurrent_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(Some(MAX_MISTAKES))
        .enable_push(false)
        .handshake::<_, Bytes>(io);
    let exchange = async {
        let (requests, mut connection) = handshake.await?;
        let pings = connection.ping_pong();
        let ended = tasks.clone();
        tasks.spawn("link", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "link connection ended");
            }
            ended.abort();
        });
        let mut requests = requests.ready().await?;
        let request = Request::builder().method(Method::POST).uri(CONTROL_PATH).body(()).unwrap_or_default();
        let (response, mut send) = requests.send_request(request, false)?;
        send.send_data(line(hello), false)?;
        let response = response.await?;
        if response.status() != StatusCode::OK {
            return Err(AcceptError::Hello(format!("the control stream answered {}", response.status())));
        }
        let mut control = ControlReader::new(response.into_body());
        let text = control.next().await?.ok_or_else(|| AcceptError::Hello("it ended before the hello".into()))?;
        let hello: GatewayHello =
            serde_json::from_slice(&text).map_err(|error| AcceptError::Hello(unreadable(&error)))?;
        if hello.version != VERSION {
            return Err(AcceptError::Hello(format!("version {}, not {VERSION}", hello.version)));
        }
        if hello.routes.len() > MAX_ROUTES {
            return Err(AcceptError::Hello(format!("more than {MAX_ROUTES} routes")));
        }
        Ok((requests, send, control, hello, pings))
    };
    let abort = AbortOnDrop::new(tasks.clone());
    let (requests, mut send, control, gateway, pings) =
        tokio::time::timeout(HELLO_DEADLINE, exchange).await.map_err(|_| AcceptError::Deadline)??;

    let (software, gateway_instance) = (gateway.software.clone(), gateway.gateway_instance.clone());
    let routes = gateway.routes.clone();
    match admit(gateway).await {
        Ok(Welcome { domain, identity_keys }) => {
            send.send_data(line(&FromEdge::Welcome { domain, identity_keys }), false)?;
        }
        Err((reason, retry)) => {
            send.send_data(line(&FromEdge::Refused { reason: reason.clone(), retry }), true)?;
            // The line has to leave before the connection is dropped; the gateway closes on reading it.
            let mut control = control;
            let _ = tokio::time::timeout(Duration::from_secs(1), control.next()).await;
            return Err(AcceptError::Refused(reason));
        }
    }
    abort.disarm();

    // Its settings came before its hello. The control stream is one of the streams that it allows.
    let most = usize::try_from(MAX_STREAMS).unwrap_or(usize::MAX);
    let room = requests.current_max_send_streams().min(most).saturating_sub(1);
    let (to_gateway, outgoing) = mpsc::channel(CONTROL_QUEUE);
    let (incoming, from_gateway) = mpsc::channel(CONTROL_QUEUE);
    let shared = Arc::new(Shared {
        id: hello.link_id.clone(),
        software: software.chars().take(64).collect(),
        gateway_instance: gateway_instance.chars().take(64).collect(),
        routes: RwLock::new(Arc::new(routes)),
        next_stream: AtomicU64::new(1),
        room: Arc::new(Semaphore::new(room)),
        proved: AtomicBool::new(false),
        retired: Arc::default(),
        control: to_gateway,
        tasks: tasks.clone(),
    });
    if let Some(pings) = pings {
        let dead = tasks.clone();
        tasks.spawn("link-liveness", async move {
            watch(pings, heard).await;
            dead.abort();
        });
    }
    tasks.spawn("link-control-out", write_control(send, outgoing));
    let weak = Arc::downgrade(&shared);
    let ended = tasks.clone();
    tasks.spawn("link-control-in", async move {
        let mut control = control;
        while let Ok(Some(text)) = control.next().await {
            let Ok(message) = serde_json::from_slice::<FromGateway>(&text) else { break };
            if let FromGateway::Routes { routes } = &message
                && let Some(shared) = weak.upgrade()
                && routes.len() <= MAX_ROUTES
            {
                *shared.routes.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(routes.clone());
            }
            if incoming.send(message).await.is_err() {
                break;
            }
        }
        ended.abort();
    });
    Ok((EdgeLink { shared, requests }, from_gateway))
}

impl EdgeLink {
    /// Opens a stream for one TLS connection to `host`. Data may be written at once, before the gateway has answered.
    ///
    /// # Errors
    /// See [`OpenError`]; waits at most one second for room among the streams.
    pub async fn open(&self, kind: Kind, host: &str) -> Result<LinkStream, OpenError> {
        let uri: Uri = format!("{host}:443").parse().map_err(|_| OpenError::Host(host.to_owned()))?;
        // HTTP/2 would let streams beyond the peer's limit queue, unseen and without bound.
        let room = tokio::time::timeout(ROOM_DEADLINE, self.shared.room.clone().acquire_owned());
        let room = room.await.map_err(|_| OpenError::Full)?.map_err(|_| OpenError::Ended)?;
        let mut requests = self.requests.clone().ready().await.map_err(|_| OpenError::Ended)?;
        let id = self.shared.next_stream.fetch_add(1, Ordering::Relaxed);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .header(STREAM_ID, id)
            .header(STREAM_OFFSET, 0)
            .header(STREAM_KIND, kind.as_str())
            .body(())
            .map_err(|_| OpenError::Host(host.to_owned()))?;
        let (response, send) = requests.send_request(request, false).map_err(|_| OpenError::Ended)?;
        Ok(LinkStream::opened(send, response, room))
    }

    /// This link's id.
    pub fn id(&self) -> &LinkId {
        &self.shared.id
    }

    /// The gateway's program and version, as it says.
    pub fn software(&self) -> &str {
        &self.shared.software
    }

    /// Which gateway process this is, as it says.
    pub fn gateway_instance(&self) -> &str {
        &self.shared.gateway_instance
    }

    /// The routes that the gateway announced last.
    pub fn routes(&self) -> Arc<Vec<Route>> {
        self.shared.routes.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The mode of a route, if the gateway announced it.
    pub fn route_mode(&self, name: &RouteName) -> Option<RouteMode> {
        self.routes().iter().find(|route| route.name == *name).map(|route| route.mode)
    }

    /// Notes that what is behind this link has shown a certificate of its tunnel: more than the token, which may be
    /// stolen.
    pub fn prove(&self) {
        self.shared.proved.store(true, Ordering::Relaxed);
    }

    /// Notes that the gateway is stopping: nothing more is to be begun on this link.
    pub fn retire(&self) {
        self.shared.retired.store(true, Ordering::Release);
    }

    /// Becomes true when the link is retired; for those who keep connections in it.
    pub fn retired(&self) -> Arc<AtomicBool> {
        self.shared.retired.clone()
    }

    /// Whether [`EdgeLink::retire`] was called.
    pub fn is_retired(&self) -> bool {
        self.shared.retired.load(Ordering::Acquire)
    }

    /// Whether [`EdgeLink::prove`] was called.
    pub fn is_proved(&self) -> bool {
        self.shared.proved.load(Ordering::Relaxed)
    }

    /// Sends a message on the control stream; false when the link has ended or the gateway does not read.
    pub fn tell(&self, message: FromEdge) -> bool {
        self.shared.control.try_send(message).is_ok()
    }

    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.shared.tasks.is_aborted()
    }

    /// Completes when the link has ended.
    pub async fn closed(&self) {
        self.shared.tasks.aborted().await;
    }

    /// Ends the link and every stream on it, at once.
    pub fn close(&self) {
        self.shared.tasks.abort();
    }
}
