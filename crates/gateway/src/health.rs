//! Health over plain HTTP, for the operator's own machinery: `/healthz`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use sortie_api::{Hop, is_loopback_name};
use sortie_link::protos::RouteMode;
use sortie_runtime::Metrics;
use sortie_runtime::http::{HEAD_DEADLINE, MAX_HEADERS};
use sortie_sinks::publish::PlaceStatus;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::audit::AuditReport;
use crate::body::{CallBody, whole};
use crate::gateway::Shared;
use crate::probe::ProbeReport;
use crate::reload::ConfigReport;
use crate::routes::{Target, requested_host};
use crate::served::issuer_name;

/// Connections at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;

/// Whether the gateway serves, and what each part of the path says.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    /// Whether a call would come through to this gateway.
    pub ready: bool,
    /// Why not, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The outbound link.
    pub link: LinkReport,
    /// The gateway's certificate.
    pub inner_tls: InnerTlsReport,
    /// The hub's keys.
    pub identity: IdentityReport,
    /// The settings.
    pub config: ConfigReport,
    /// The audit log; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditReport>,
    /// Where checkpoints of the audit log are published; absent where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PlaceStatus>,
    /// The listener for the hosted service's own traffic; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerReport>,
    /// The newest probe over the whole path; absent before the first one and where every route is sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeReport>,
    /// A dial of the upstream, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<ProbeReport>,
}

/// The outbound link.
#[derive(Clone, Debug, Serialize)]
pub struct LinkReport {
    /// Whether one is up.
    pub connected: bool,
    /// The edge's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
    /// Since when (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Why none is up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The listener for the hosted service's own traffic.
#[derive(Clone, Debug, Serialize)]
pub struct ListenerReport {
    /// Where it listens.
    pub address: String,
    /// How many connections are open.
    pub connections: usize,
    /// As whom every call counts; absent when the settings in force name nobody, and everything is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
}

/// The gateway's certificate.
#[derive(Clone, Debug, Serialize)]
pub struct InnerTlsReport {
    /// Whole days that it is still valid; negative when it has expired.
    pub days_left: i64,
}

/// The hub's keys.
#[derive(Clone, Debug, Serialize)]
pub struct IdentityReport {
    /// How many are pinned.
    pub keys: usize,
}

impl Shared {
    /// What is known without asking anybody.
    pub(crate) fn readiness(&self) -> Readiness {
        self.judge(self.prober.last())
    }

    /// The same after a probe, unless there was one within the last two seconds.
    pub(crate) async fn fresh_readiness(&self) -> Readiness {
        let served = self.served();
        let route = served.routes.iter().find(|route| route.mode() == RouteMode::Terminated);
        let probe = match route {
            Some(route) => Some(self.prober.fresh(&self.link, &route.name).await),
            None => None,
        };
        self.judge(probe)
    }

    fn judge(&self, probe: Option<ProbeReport>) -> Readiness {
        let link = self.link.now();
        let served = self.served();
        let days_left = served.identity.days_left((self.clock)());
        let probed = served.routes.iter().any(|route| route.mode() == RouteMode::Terminated);
        let reason = match (&link.up, &probe) {
            (None, _) => Some(format!("link: {}", link.trouble.clone().unwrap_or_else(|| "no link is up".to_owned()))),
            (Some(_), Some(probe)) if !probe.ok => Some(format!(
                "{}: {}",
                probe.hop.as_deref().unwrap_or("unknown hop"),
                probe.reason.as_deref().unwrap_or("the probe failed")
            )),
            (Some(_), None) if probed => Some("the path has not been probed yet".to_owned()),
            _ => None,
        };
        let unrecorded = self.audit.refuses().map(|why| format!("audit: {why}"));
        let reason = reason.or(unrecorded);
        Readiness {
            ready: reason.is_none(),
            reason,
            link: LinkReport {
                connected: link.up.is_some(),
                edge: link.up.as_ref().map(|up| up.edge.clone()),
                since: link.up.as_ref().and_then(|up| Some(jiff::Timestamp::from_second(up.since).ok()?.to_string())),
                reason: link.trouble,
            },
            inner_tls: InnerTlsReport { days_left },
            identity: IdentityReport { keys: self.keys.len() },
            config: self.config_report(),
            audit: self.audit.report(),
            published: self.publishing.status(),
            listener: self.listener.as_ref().map(|listener| ListenerReport {
                address: listener.address.to_string(),
                connections: listener.connections(),
                caller: served.asserted.as_ref().map(|caller| caller.subject.clone()),
            }),
            probe,
            upstream: None,
        }
    }
}

impl Shared {
    /// The keys that prove to upstreams what this gateway says of callers.
    fn published_keys(&self) -> serde_json::Value {
        self.signer.as_ref().map(|signer| signer.jwks((self.clock)())).unwrap_or_default()
    }

    /// Where a reader of those keys starts: at the issuer, where that is a URL, else here.
    fn published_configuration<B>(&self, request: &Request<B>) -> serde_json::Value {
        let issuer = issuer_name(&self.served().config, &self.domain);
        let here = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let here = format!("http://{here}");
        let base = if issuer.starts_with("https://") || issuer.starts_with("http://") { &issuer } else { &here };
        sortie_identity::discovery(&issuer, &format!("{}/.well-known/jwks.json", base.trim_end_matches('/')))
    }
}

/// Dials the upstream of a route under the guard, and hangs up.
async fn dial_upstream(target: &Target) -> ProbeReport {
    match target {
        Target::Local(_) => ProbeReport::good(),
        Target::Servers(servers) => match servers.dial().await {
            Ok(()) => ProbeReport::good(),
            Err(error) => ProbeReport::failed(Hop::UpstreamConnect, error.to_string()),
        },
    }
}

/// Answers health requests until the gateway is asked to stop.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, metrics: Metrics) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a health connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shared.tasks.stopping() => return,
        };
        let (shared_here, metrics) = (shared.clone(), metrics.clone());
        shared.tasks.spawn("health", async move {
            let _permit = permit;
            connection(shared_here, stream, metrics).await;
        });
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, metrics: Metrics) {
    let Ok(listener) = stream.local_addr().map(|address| address.ip()) else { return };
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let (shared, metrics) = (shared.clone(), metrics.clone());
        async move {
            Ok::<_, Infallible>(match is_rebound(listener, &request) {
                true => text(StatusCode::MISDIRECTED_REQUEST, "this listener answers to names of loopback only\n"),
                false => respond(&shared, &metrics, &request).await,
            })
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(16 * 1024)
        .max_headers(MAX_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shared.tasks.stopping() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "health connection ended");
    }
}

/// Whether a page in somebody's browser may have brought a request here under a name of its own (DNS rebinding): on
/// loopback, only names of loopback count.
fn is_rebound<B>(listener: IpAddr, request: &Request<B>) -> bool {
    let names_host = request.headers().contains_key(HOST) || request.uri().authority().is_some();
    let host = requested_host(request);
    let loopback = host.is_some_and(|host| is_loopback_name(host.trim_start_matches('[').trim_end_matches(']')));
    listener.is_loopback() && names_host && !loopback
}

async fn respond<B>(shared: &Shared, metrics: &Metrics, request: &Request<B>) -> Response<CallBody> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let asked = request.uri().query().and_then(|query| query.split('&').find_map(|p| p.strip_prefix("route=")));
            readyz(shared, asked).await
        }
        "/metrics" => {
            let mut response = text(StatusCode::OK, "");
            *response.body_mut() = whole(metrics.render().into_bytes());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(Metrics::CONTENT_TYPE));
            response
        }
        "/.well-known/jwks.json" if shared.signer.is_some() => published(shared.published_keys()),
        "/.well-known/openid-configuration" if shared.signer.is_some() => {
            published(shared.published_configuration(request))
        }
        _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz, /metrics and /.well-known/jwks.json\n"),
    }
}

async fn readyz(shared: &Shared, route: Option<&str>) -> Response<CallBody> {
    let served = shared.served();
    let route = match route {
        None => None,
        Some(name) => match served.routes.by_name(name) {
            Some(route) => Some(route),
            None => return text(StatusCode::NOT_FOUND, "no route of this name is configured\n"),
        },
    };
    let mut readiness = shared.fresh_readiness().await;
    if let Some(route) = route {
        let report = dial_upstream(&route.target).await;
        if readiness.ready && !report.ok {
            readiness.ready = false;
            let hop = report.hop.as_deref().unwrap_or_default();
            readiness.reason = Some(format!("{hop}: {}", report.reason.as_deref().unwrap_or_default()));
        }
        readiness.upstream = Some(report);
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = text(status, "");
    *response.body_mut() = whole(serde_json::to_vec(&readiness).unwrap_or_default());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A document that anybody may keep for five minutes.
fn published(document: serde_json::Value) -> Response<CallBody> {
    let mut response = text(StatusCode::OK, &document.to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    response
}

fn text(status: StatusCode, text: &str) -> Response<CallBody> {
    let mut response = Response::new(whole(text.as_bytes().to_vec()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Opens the listener; the address tells the port that was free when 0 was asked for.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
