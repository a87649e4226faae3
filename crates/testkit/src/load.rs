//! An HTTP/1.1 load generator: so many keep-alive connections, one request after the other on each, for so long.
//! It reads every answer to its end and counts everything but 2xx as an error.

use std::io;
use std::iter::repeat_n;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};
use url::Url;

/// Requests per connection that are not measured, so that connections, caches and sessions are warm.
const WARM_UP: usize = 20;

/// How long an answer may take before its connection is given up.
const STALLED: Duration = Duration::from_secs(10);

/// What to send, how often at once and for how long.
#[derive(Clone, Debug)]
pub struct Load {
    url: String,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
    connections: usize,
    lasting: Duration,
}

/// Why no load could be made.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The URL is not one that this generator can call.
    #[error("`{0}` is not a http:// URL with a host; the load generator speaks plain HTTP/1.1 only")]
    Url(String),
    /// A connection could not be opened.
    #[error("{url} does not accept connections")]
    Connect {
        /// The URL that was called.
        url: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The warm-up was not answered with 2xx.
    #[error("{url} fails before any load: {reason}")]
    WarmUp {
        /// The URL that was called.
        url: String,
        /// The status or the break.
        reason: String,
    },
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Answers with 2xx, read to the end.
    pub answered: u64,
    /// Requests of the warm-up, which are in no other number.
    pub warmed: u64,
    /// All other answers, and breaks.
    pub errors: u64,
    /// What the first error was.
    pub first_error: Option<String>,
    /// The time that the measured part took.
    pub elapsed: Duration,
    /// Microseconds per answered request, ascending.
    latencies_us: Vec<u32>,
}

impl Load {
    /// GET of a `http://` URL over one connection for one second.
    pub fn get(url: impl Into<String>) -> Self {
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { url: url.into(), method: Method::GET, headers, body, connections: 1, lasting: Duration::from_secs(1) }
    }

    /// POST of a JSON body to a `http://` URL over one connection for one second.
    pub fn post_json(url: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let mut load = Self::get(url).header("content-type", "application/json");
        load.method = Method::POST;
        load.body = body.into();
        load
    }

    /// One more header; a name or value that HTTP does not allow is left out.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            self.headers.append(name, value);
        }
        self
    }

    /// So many connections, at least one.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// For so long, the warm-up not counted.
    pub fn lasting(mut self, lasting: Duration) -> Self {
        self.lasting = lasting;
        self
    }

    /// Makes one request over a connection of its own and returns the whole answer, whatever its status.
    ///
    /// # Errors
    /// Bad URL, no connection, or an answer that broke off.
    pub async fn once(&self) -> Result<Response<Bytes>, LoadError> {
        let mut worker = Worker::connect(self).await?;
        let broke = |error: hyper::Error| LoadError::WarmUp { url: self.url.clone(), reason: error.to_string() };
        let request = worker.take_turn();
        let (head, body) = worker.sender.send_request(request).await.map_err(broke)?.into_parts();
        Ok(Response::from_parts(head, body.collect().await.map_err(broke)?.to_bytes()))
    }

    /// Makes the load on the caller's runtime.
    ///
    /// # Errors
    /// When nothing could be measured at all: bad URL, no connection, or a warm-up that is not answered with 2xx.
    /// Errors under load are counted in the report.
    pub async fn run(&self) -> Result<LoadReport, LoadError> {
        Self::run_each(repeat_n(self, self.connections), self.lasting).await
    }

    /// Makes one connection for each of these loads, so that each can speak in a session of its own; their own
    /// `connections` and `lasting` do not matter.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_each<'a>(
        loads: impl IntoIterator<Item = &'a Load>,
        lasting: Duration,
    ) -> Result<LoadReport, LoadError> {
        Self::run_in_turn(loads.into_iter().map(std::slice::from_ref), lasting).await
    }

    /// Makes one connection for each of these lists, which sends the requests of its list in turn, all to the server of
    /// the first: many callers over few connections. An empty list makes none.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_in_turn<'a>(
        lists: impl IntoIterator<Item = &'a [Load]>,
        lasting: Duration,
    ) -> Result<LoadReport, LoadError> {
        let mut workers = Vec::new();
        let mut warmed = 0;
        for list in lists {
            let Some(first) = list.first() else { continue };
            let mut worker = Worker::connect(first).await?;
            for load in list.get(1..).unwrap_or_default() {
                worker.requests.push(Target::parse(load)?.request(load)?);
            }
            // Each request of the list at least once.
            let rounds = list.len().max(WARM_UP);
            worker.warm_up(&first.url, rounds).await?;
            warmed += u64::try_from(rounds).unwrap_or(u64::MAX);
            workers.push(worker);
        }
        let begin = Instant::now();
        let end = begin + lasting;
        let mut running: JoinSet<LoadReport> = workers.into_iter().map(|worker| worker.call_until(end)).collect();
        let mut report = LoadReport { warmed, ..LoadReport::default() };
        loop {
            match timeout_at((end + STALLED).into(), running.join_next()).await {
                Ok(Some(Ok(part))) => report.add(part),
                Ok(Some(Err(broken))) => report.fail(broken.to_string()),
                Ok(None) => break,
                Err(_) => {
                    report.fail(format!("{} connections got no answer for {STALLED:?}", running.len()));
                    break;
                }
            }
        }
        report.elapsed = begin.elapsed();
        report.latencies_us.sort_unstable();
        Ok(report)
    }
}

impl LoadReport {
    /// Answered requests per second.
    pub fn rate(&self) -> f64 {
        let answered = u32::try_from(self.answered).map_or(f64::from(u32::MAX), f64::from);
        if self.elapsed.is_zero() { 0.0 } else { answered / self.elapsed.as_secs_f64() }
    }

    /// The median latency in microseconds; 0 without any answer.
    pub fn p50_us(&self) -> u32 {
        self.quantile_us(50)
    }

    /// The latency in microseconds that 99 of 100 answers did not exceed; 0 without any answer.
    pub fn p99_us(&self) -> u32 {
        self.quantile_us(99)
    }

    fn quantile_us(&self, percent: usize) -> u32 {
        let rank = (self.latencies_us.len() * percent).div_ceil(100).saturating_sub(1);
        self.latencies_us.get(rank).copied().unwrap_or(0)
    }

    fn add(&mut self, part: LoadReport) {
        self.answered += part.answered;
        self.errors += part.errors;
        self.first_error = self.first_error.take().or(part.first_error);
        self.latencies_us.extend(part.latencies_us);
    }

    fn fail(&mut self, reason: String) {
        self.errors += 1;
        self.first_error.get_or_insert(reason);
    }
}

/// Where to connect and the request without its body, both made once.
struct Target {
    host: String,
    port: u16,
    path: String,
    headers: HeaderMap,
}

impl Target {
    fn parse(load: &Load) -> Result<Self, LoadError> {
        let bad = || LoadError::Url(load.url.clone());
        let url = Url::parse(&load.url).map_err(|_| bad())?;
        let host = url.host_str().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or_else(bad)?;
        if url.scheme() != "http" {
            return Err(bad());
        }
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let mut headers = load.headers.clone();
        if !headers.contains_key(HOST) {
            let bare = url.host_str().ok_or_else(bad)?;
            let authority = url.port().map_or_else(|| bare.to_owned(), |port| format!("{bare}:{port}"));
            headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|_| bad())?);
        }
        Ok(Self { host, port, path, headers })
    }

    fn request(&self, load: &Load) -> Result<Request<Full<Bytes>>, LoadError> {
        let mut request = Request::new(Full::new(load.body.clone()));
        *request.method_mut() = load.method.clone();
        *request.uri_mut() = self.path.parse().map_err(|_| LoadError::Url(load.url.clone()))?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// One connection, and the requests that it sends in turn.
struct Worker {
    sender: SendRequest<Full<Bytes>>,
    requests: Vec<Request<Full<Bytes>>>,
    next: usize,
    _connection: JoinSet<()>,
}

impl Worker {
    async fn connect(load: &Load) -> Result<Self, LoadError> {
        let target = Target::parse(load)?;
        let connect = |source| LoadError::Connect { url: load.url.clone(), source };
        let warm_up = |reason| LoadError::WarmUp { url: load.url.clone(), reason };
        let stream = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(connect)?;
        stream.set_nodelay(true).map_err(connect)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| warm_up(error.to_string()))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // A break shows in the request that is under way.
            let _broken = connection.await;
        });
        Ok(Self { sender, requests: vec![target.request(load)?], next: 0, _connection: driver })
    }

    async fn warm_up(&mut self, url: &str, rounds: usize) -> Result<(), LoadError> {
        let failed = |reason| LoadError::WarmUp { url: url.to_owned(), reason };
        for _ in 0..rounds {
            let called = timeout(STALLED, self.call()).await;
            called.unwrap_or_else(|_| Err("no answer in time".to_owned())).map_err(failed)?;
        }
        Ok(())
    }

    async fn call_until(mut self, end: Instant) -> LoadReport {
        let mut report = LoadReport::default();
        let mut before = Instant::now();
        while before < end {
            let called = self.call().await;
            let after = Instant::now();
            match called {
                Ok(()) => {
                    report.answered += 1;
                    let spent = u32::try_from((after - before).as_micros()).unwrap_or(u32::MAX);
                    report.latencies_us.push(spent);
                }
                Err(reason) => {
                    report.fail(reason);
                    if self.sender.is_closed() {
                        break;
                    }
                }
            }
            before = after;
        }
        report
    }

    /// The request whose turn it is.
    fn take_turn(&mut self) -> Request<Full<Bytes>> {
        let turn = self.next;
        self.next = (turn + 1) % self.requests.len().max(1);
        self.requests.get(turn).cloned().expect("a worker is made with one request, and turns stay below their number")
    }

    async fn call(&mut self) -> Result<(), String> {
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let request = self.take_turn();
        let answer = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut begin = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| error.to_string())?;
            if !status.is_success() && begin.len() < 300 {
                begin.extend(frame.data_ref().into_iter().flatten().take(300));
            }
        }
        if status.is_success() { Ok(()) } else { Err(format!("{status}: {}", String::from_utf8_lossy(&begin))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EchoServer;

    #[tokio::test]
    async fn answers_are_counted_and_timed() {
        let server = EchoServer::start().await.expect("server");
        let load = Load::get(format!("http://{}/small", server.addr())).connections(4);
        let report = load.lasting(Duration::from_millis(200)).run().await.expect("load");
        assert_eq!(report.errors, 0, "{:?}", report.first_error);
        assert!(report.answered > 50, "{}", report.answered);
        assert!(report.p50_us() > 0 && report.p50_us() <= report.p99_us());
        assert!(report.rate() > 100.0);
    }

    #[tokio::test]
    async fn requests_of_one_connection_take_turns() {
        let server = EchoServer::start().await.expect("server");
        let found = Load::get(format!("http://{}/small", server.addr()));
        let twice = [found.clone(), found.clone()];
        let report = Load::run_in_turn([twice.as_slice(), &[]], Duration::from_millis(100)).await.expect("load");
        assert_eq!((report.warmed, report.errors), (20, 0), "{:?}", report.first_error);
        let missing = Load::get(format!("http://{}/no-such-path", server.addr()));
        let both = [found, missing];
        let error = Load::run_in_turn([both.as_slice()], Duration::from_millis(100)).await;
        assert!(error.expect_err("the second has its turn").to_string().contains("404"));
    }

    #[tokio::test]
    async fn a_target_that_refuses_is_named() {
        let server = EchoServer::start().await.expect("server");
        let url = format!("http://{}/no-such-path", server.addr());
        let error = Load::get(&url).run().await.expect_err("not found");
        assert!(error.to_string().contains("404"), "{error}");
        let error = Load::get("https://localhost/").run().await.expect_err("not plain");
        assert!(matches!(error, LoadError::Url(_)), "{error}");
    }

    #[test]
    fn quantiles_of_few_answers() {
        let report = |latencies_us| LoadReport { latencies_us, ..LoadReport::default() };
        assert_eq!(report(vec![]).p99_us(), 0);
        assert_eq!(report(vec![7]).p50_us(), 7);
        assert_eq!(report((1..=100).collect()).p50_us(), 50);
        assert_eq!(report((1..=100).collect()).p99_us(), 99);
    }
}
