//! A server on loopback that answers as a test wants it to.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sortie_connectors::files::{FilesConfig, FilesLimits, FilesService, files};
use sortie_tls::TlsAcceptor;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// A listener on loopback; it ends with this value.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<http::request::Parts>>>,
    _tasks: JoinSet<()>,
}

impl Listener {
    pub(crate) async fn new<F, Fut>(tls: Option<TlsAcceptor>, answer: F) -> Self
    where
        F: Fn(Request<Bytes>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let log = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, tls, log) = (answer.clone(), tls.clone(), Arc::clone(&log));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, log) = (answer.clone(), Arc::clone(&log));
                    async move {
                        let (parts, body) = request.into_parts();
                        log.lock().expect("no panic").push(parts.clone());
                        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                        Ok::<_, Infallible>(answer(Request::from_parts(parts, body)).await)
                    }
                });
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    // Clients that hang up are part of the tests.
                    let _ = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => Ok(()),
                        },
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                    };
                });
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn seen(&self) -> Vec<http::request::Parts> {
        self.seen.lock().expect("no panic").clone()
    }
}

pub(crate) fn connector() -> (tempfile::TempDir, FilesService) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("a.txt"), "hello\n").expect("write");
    let config = FilesConfig { root: dir.path().to_owned(), limits: FilesLimits::default() };
    let service = files(config).expect("the directory is there");
    (dir, service)
}

pub(crate) fn answer(status: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    let builder = Response::builder().status(status).header("content-type", content_type);
    builder.body(Full::new(body.into()).boxed()).expect("a response")
}
