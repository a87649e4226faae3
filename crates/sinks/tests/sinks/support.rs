//! A log that the test writes, and an HTTP receiver that behaves as the test says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sortie_audit::{Draft, Log, Options, kinds};
use sortie_runtime::TaskSet;
use sortie_sinks::{Batch, Body, HttpSpec, SinkKind, SinkSpec, SinkStatus, Sinks, StartError, Tls};
use sortie_testkit::eventually;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How long anything may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A log, and the sinks of it.
pub(crate) struct Audit {
    pub(crate) home: TempDir,
    pub(crate) log: Log,
    pub(crate) tasks: TaskSet,
}

impl Audit {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Options)) -> Self {
        let home = tempfile::tempdir().expect("dir");
        let log = open(home.path(), change);
        Self { home, log, tasks: TaskSet::new() }
    }

    pub(crate) fn cursor(&self, sink: &str) -> PathBuf {
        self.log.dir().join("sinks").join(sink)
    }

    /// Appends records; the numbers of all that there are then.
    pub(crate) async fn append(&self, records: u64) -> u64 {
        let mut last = 0;
        for number in 0..records {
            last = self.log.append(&draft(&json!({"id": format!("req_{number}")}))).await.expect("appended");
        }
        last + 1
    }

    pub(crate) fn start(&self, specs: Vec<SinkSpec>) -> Sinks {
        self.try_start(specs).expect("starts")
    }

    pub(crate) fn try_start(&self, specs: Vec<SinkSpec>) -> Result<Sinks, StartError> {
        Sinks::start(&self.log, specs, &BTreeMap::new(), &self.tasks)
    }

    /// The lines of the log, as they are.
    pub(crate) fn lines(&self) -> Vec<String> {
        lines(&self.log.dir())
    }
}

pub(crate) fn open(home: &Path, change: impl FnOnce(&mut Options)) -> Log {
    let mut options = Options {
        dir: home.join("audit"),
        key_file: home.join("audit.key"),
        origin: "sortie-test".to_owned(),
        ..Options::default()
    };
    change(&mut options);
    Log::open(options).expect("opens")
}

pub(crate) fn lines(dir: &Path) -> Vec<String> {
    let mut files: Vec<_> =
        std::fs::read_dir(dir.join("log")).expect("log").map(|file| file.expect("file").path()).collect();
    files.sort();
    let texts = files.iter().map(|file| std::fs::read_to_string(file).expect("text"));
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

pub(crate) fn draft(fields: &Value) -> Draft {
    Draft::new(kinds::CALL_DONE, fields).expect("draft")
}

pub(crate) fn seq(line: &str) -> u64 {
    let line: Value = serde_json::from_str(line).expect("json");
    line.get("seq").and_then(Value::as_u64).expect("a number")
}

/// A sink that waits for nothing.
pub(crate) fn spec(name: &str, kind: SinkKind) -> SinkSpec {
    let mut spec = SinkSpec::new(name, kind);
    spec.batch = Batch { wait: Duration::from_millis(20), ..Batch::default() };
    spec.timeout = Duration::from_secs(2);
    spec
}

pub(crate) fn http(name: &str, url: &str) -> SinkSpec {
    let kind = HttpSpec {
        url: url.parse().expect("url"),
        method: Method::POST,
        body: Body::Lines,
        credential: None,
        tls: Tls::default(),
    };
    spec(name, SinkKind::Http(kind))
}

/// The one sink that there is, when it is as wanted.
pub(crate) async fn status(sinks: &Sinks, wanted: impl Fn(&SinkStatus) -> bool) -> SinkStatus {
    let found = eventually(LONG, || sinks.status().pop().filter(&wanted)).await;
    found.unwrap_or_else(|| panic!("it is {:?}", sinks.status()))
}

/// What a receiver got.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn lines(&self) -> Vec<String> {
        String::from_utf8(self.body.to_vec()).expect("text").lines().map(str::to_owned).collect()
    }
}

/// What it answers.
pub(crate) enum Reply {
    Status(u16),
    Full(u16, Vec<(&'static str, &'static str)>, String),
    /// Nothing, for as long as the connection lasts.
    Silence,
    /// The end of the connection.
    Gone,
}

type Behaviour = Box<dyn FnMut(&Seen) -> Reply + Send>;

pub(crate) struct Receiver {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<(Vec<Seen>, Behaviour)>>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    pub(crate) async fn start(behaviour: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
        Self::on(listener, behaviour)
    }

    pub(crate) fn on(listener: TcpListener, behaviour: impl FnMut(&Seen) -> Reply + Send + 'static) -> Self {
        let addr = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new((Vec::new(), Box::new(behaviour) as Behaviour)));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, state.clone()));
        Self { addr, state, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/in", self.addr)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state().0.clone()
    }

    pub(crate) fn behave(&self, behaviour: impl FnMut(&Seen) -> Reply + Send + 'static) {
        self.state().1 = Box::new(behaviour);
    }

    fn state(&self) -> MutexGuard<'_, (Vec<Seen>, Behaviour)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of all requests.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().flat_map(Seen::lines).collect()
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<(Vec<Seen>, Behaviour)>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request: Request<Incoming>| answer(state.clone(), request));
        connections.spawn(async move {
            let server = hyper::server::conn::http1::Builder::new();
            let _ended = server.serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    state: Arc<Mutex<(Vec<Seen>, Behaviour)>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let seen = Seen { path: head.uri.to_string(), headers: head.headers, body };
    let reply = {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = state.1(&seen);
        state.0.push(seen);
        reply
    };
    let (status, headers, body) = match reply {
        Reply::Status(status) => (status, vec![], String::new()),
        Reply::Full(status, headers, body) => (status, headers, body),
        Reply::Gone => return Err(std::io::Error::other("gone")),
        Reply::Silence => std::future::pending::<Result<_, Infallible>>().await.expect("never"),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("status");
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().expect("value"));
    }
    Ok(response)
}

/// Collects what is logged by this thread's runtime while it lives.
pub(crate) struct Logged(Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard);

impl Logged {
    pub(crate) fn start() -> Self {
        use tracing_subscriber::fmt;
        use tracing_subscriber::util::SubscriberInitExt as _;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = Into(lines.clone());
        let subscriber = fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE).with_ansi(false);
        Self(lines, subscriber.with_writer(Mutex::new(writer)).finish().set_default())
    }

    pub(crate) fn text(&self) -> String {
        let _alive = &self.1;
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

struct Into(Arc<Mutex<Vec<u8>>>);

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
