//! Connections to one server of a route, kept for the next call. Each is driven by the call that uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Context;
use std::time::Duration;

use http::{Request, Response};
use hyper::client::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use sortie_runtime::TaskSet;
use sortie_runtime::http::{Carrier, Driven, DrivenBody, MAX_HEAD, Outgoing};
use sortie_tls::is_client_refusal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dial::{DialError, Dialer};
use super::stream::UpstreamStream;
use crate::body::CallBody;

/// How long an idle connection is used: less than the five seconds after which common servers close theirs.
const IDLE: Duration = Duration::from_secs(3);
/// How often idle connections are looked at, to close those that will not be used.
const SWEEP: Duration = Duration::from_secs(1);
/// Most idle connections to one server of a route; more are closed.
const MAX_IDLE: usize = 64;

type Connection = Driven<TokioIo<UpstreamStream>, Outgoing<CallBody>>;

/// An answer's body, which whoever reads it drives.
pub(crate) type UpstreamBody = DrivenBody<Carried>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// Nothing was sent.
    #[error("it could not be dialled: {0}")]
    Dial(DialError),
    /// The server has not accepted our certificate, or that there is none: it has read nothing of the call.
    #[error("it does not accept the client certificate, or that there is none: {0}")]
    ClientCertificate(String),
    /// The connection broke; the call may have run.
    #[error("it broke off: {}", with_cause(.0))]
    Broke(hyper::Error),
    /// The server gave more interim answers than are read.
    #[error("it sent too many interim answers")]
    Interim,
    /// There is nothing to dial.
    #[error("the route has no server")]
    NoServer,
}

impl From<DialError> for SendError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::ClientCertificate(told) => Self::ClientCertificate(told),
            error => Self::Dial(error),
        }
    }
}

impl From<hyper::Error> for SendError {
    fn from(error: hyper::Error) -> Self {
        // In TLS 1.3 a server judges our certificate when the connection is open for us already.
        match is_client_refusal(&error) {
            true => Self::ClientCertificate(with_cause(&error)),
            false => Self::Broke(error),
        }
    }
}

fn with_cause(error: &hyper::Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// The connections to one server.
pub(crate) struct Pool {
    dialer: Dialer,
    idle: Mutex<Idle>,
    tasks: TaskSet,
}

#[derive(Default)]
struct Idle {
    kept: Vec<(Connection, Instant)>,
    /// Somebody looks at them now and then.
    swept: bool,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, tasks: TaskSet) -> Arc<Self> {
        Arc::new(Self { dialer, idle: Mutex::default(), tasks })
    }

    /// Sends a request over a kept connection or a new one. Only what was not sent, since the server had closed a kept
    /// connection, is tried on another one: it cannot have run.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<CallBody>,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let (head, body) = request.into_parts();
        let (body, sending) = Outgoing::new(body);
        let mut request = Request::from_parts(head, body);
        loop {
            let (mut connection, fresh) = match self.take() {
                Some(kept) => (kept, false),
                // On the heap, as all that is rare: every call would have room for it otherwise.
                None => (Box::pin(self.open()).await?, true),
            };
            match connection.send(request).await {
                Ok(response) => {
                    if sending.is_some_and(|sending| sending.is_going_on()) {
                        self.tasks.spawn("upstream", connection.wire().detach());
                    }
                    let carried = Carried { connection, pool: self.clone() };
                    return Ok(response.map(|incoming| DrivenBody::new(incoming, carried)));
                }
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ if connection.is_cut() => return Err(SendError::Interim),
                    _ => return Err(failed.into_error().into()),
                },
            }
        }
    }

    async fn open(&self) -> Result<Connection, SendError> {
        let io = TokioIo::new(self.dialer.dial().await?);
        let mut builder = Builder::new();
        // The number of header lines is bounded by hyper, which makes room for each head anew where it is told of one.
        builder.max_buf_size(MAX_HEAD);
        Ok(Driven::open(&builder, io, CancellationToken::new()).await?)
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.lock();
        while let Some((mut connection, since)) = idle.kept.pop() {
            if since.elapsed() < IDLE && connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(self: &Arc<Self>, connection: Connection) {
        if self.tasks.is_stopping() {
            return;
        }
        let mut idle = self.lock();
        if idle.kept.len() >= MAX_IDLE {
            return;
        }
        idle.kept.push((connection, Instant::now()));
        if !std::mem::replace(&mut idle.swept, true) {
            self.tasks.spawn("upstream-idle", sweep(Arc::downgrade(self), self.tasks.clone()));
        }
    }

    /// Closes what will not be used, or everything; false when nothing is left.
    fn sweep(&self, all: bool) -> bool {
        let mut idle = self.lock();
        idle.kept.retain_mut(|(connection, since)| !all && since.elapsed() < IDLE && connection.is_ready());
        idle.swept = !idle.kept.is_empty();
        idle.swept
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at idle connections until there are none.
async fn sweep(pool: Weak<Pool>, tasks: TaskSet) {
    loop {
        let stopping = tokio::time::timeout(SWEEP, tasks.stopping()).await.is_ok();
        if !pool.upgrade().is_some_and(|pool| pool.sweep(stopping)) {
            return;
        }
    }
}

/// A connection that an answer comes over, and where it belongs.
pub(crate) struct Carried {
    connection: Connection,
    pool: Arc<Pool>,
}

impl Carrier for Carried {
    fn drive(&mut self, cx: &mut Context<'_>) {
        self.connection.wire().drive(cx);
    }

    fn give_back(mut self) {
        if self.connection.is_ready() {
            self.pool.keep(self.connection);
        } else {
            // Where the answer came early, the server may read the rest of the request.
            self.connection.wire().let_go();
        }
    }
}
