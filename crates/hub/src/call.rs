//! One MCP call: who is calling, which tunnel and route, then through inner TLS to the gateway and back, untouched.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::value::RawValue;
use sortie_api::{
    HOP_HEADER, Hop, HopError, IDENTITY_HEADER, PATH_PREFIX_HEADER, REQUEST_ID_HEADER, frame_request, is_framed_once,
    join_cookies, strip_hop_by_hop, strip_ours,
};
use sortie_identity::Caller;
use sortie_ids::{RequestId, RouteName, TunnelLabel, WorkspaceId};
use sortie_link::EdgeLink;
use sortie_link::protos::ProbeFailure;
use sortie_runtime::http::Sending;
use sortie_store::Store;

use crate::api::authenticate;
use crate::audit::{Audit, PeerAddress, Refused, Surface};
use crate::body::{GatewayBody, RequestBody, ResponseBody};
use crate::identity::Signer;
use crate::inner::{Inner, Peer, Pool, Shared, is_lasting};
use crate::tunnels::{LiveTunnel, Tunnels};

/// Where a call goes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) label: TunnelLabel,
    pub(crate) route: RouteName,
    /// What follows the route: passed on byte for byte.
    pub(crate) path: PathAndQuery,
    /// Whether the call came to the API's own origin, where an answer must not be able to act.
    pub(crate) on_api_origin: bool,
}

/// Makes calls.
pub(crate) struct Calls {
    pub(crate) store: Store,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) signer: Signer,
    pub(crate) audit: Audit,
}

/// How much of a request is read for the id in a refusal, and for how long.
const ID_BYTES: usize = 64 * 1024;
const ID_WAIT: Duration = Duration::from_secs(2);
/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(4);

/// What in an answer would act on the whole origin that it comes from, which for the path form is the API's own.
const ACTS_ON_ORIGIN: [HeaderName; 5] = [
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::ALT_SVC,
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("service-worker-allowed"),
];

impl Calls {
    /// Makes a call for whoever sent it; every failure is an answer that names the hop.
    pub(crate) async fn call(&self, request: Request<Incoming>, target: Target) -> Response<ResponseBody> {
        let began = Instant::now();
        let id = RequestId::random();
        let (method, on_api_origin) = (request.method().clone(), target.on_api_origin);
        let mut response = match self.forward(request, &target, &id).await {
            Ok(response) => response,
            Err(refusal) => Box::pin(refusal.into_response(&id)).await,
        };
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(id.as_str()) {
            headers.insert(REQUEST_ID_HEADER, value);
        }
        if on_api_origin {
            for name in ACTS_ON_ORIGIN {
                headers.remove(name);
            }
            headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        let hop = headers.get(HOP_HEADER).and_then(|value| value.to_str().ok()).and_then(known_hop);
        let status = response.status().as_u16();
        let took = began.elapsed();
        metrics::counter!("sortie_hub_calls_total", "status" => class(status), "hop" => hop.unwrap_or("none"))
            .increment(1);
        metrics::histogram!("sortie_hub_call_seconds").record(took.as_secs_f64());
        tracing::info!(
            request_id = %id,
            tunnel = %target.label,
            route = %target.route,
            %method,
            status,
            hop,
            duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "call"
        );
        response
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        target: &Target,
        id: &RequestId,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let found = self.admit(&request, target).await;
        let (tunnel, host, identity, carrier) = match found {
            Ok(found) => found,
            Err(error) => return Err(Refusal { error, request: Some(request) }),
        };
        *request.version_mut() = http::Version::HTTP_11;
        *request.uri_mut() = target.path.clone().into();
        let length = request.body().size_hint().exact();
        let headers = request.headers_mut();
        if let Some(key) = headers.remove(carrier) {
            drop_copies(headers, key.as_bytes());
        }
        if target.on_api_origin {
            headers.remove(header::COOKIE);
        }
        strip(headers);
        frame_request(headers, length);
        join_cookies(headers);
        let own = [(IDENTITY_HEADER, Some(identity)), (REQUEST_ID_HEADER, HeaderValue::from_str(id.as_str()).ok())];
        for (name, value) in own {
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if let Ok(value) = HeaderValue::from_str(&host) {
            headers.insert(header::HOST, value);
        }
        if target.on_api_origin
            && let Ok(prefix) = HeaderValue::from_str(&format!("/t/{}/{}", target.label, target.route))
        {
            headers.insert(HeaderName::from_static(PATH_PREFIX_HEADER), prefix);
        }
        let (request, sending) = RequestBody::of(request);
        self.send(request, sending, &tunnel, &host).await
    }

    /// Makes a call of the hub's own for a caller of this workspace. Credentials in it are the caller's for the server.
    pub(crate) async fn own(
        &self,
        mut request: Request<Bytes>,
        target: &Target,
        workspace: &WorkspaceId,
        caller: &Caller,
    ) -> Result<Response<ResponseBody>, HopError> {
        let tunnel = self.tunnels.find(&target.label).await?;
        let tunnel = tunnel.filter(|tunnel| tunnel.record.workspace == *workspace).ok_or_else(HopError::no_route)?;
        let host = tunnel.domain.route_host(&target.route);
        let identity = self.signer.sign(caller, &host, self.store.now().as_second());
        let identity =
            identity.ok_or_else(|| HopError::new(Hop::Identity, "the session's identity cannot be signed"))?;
        *request.uri_mut() = target.path.clone().into();
        let id = RequestId::random();
        let length = u64::try_from(request.body().len()).ok();
        let headers = request.headers_mut();
        strip(headers);
        frame_request(headers, length);
        headers.insert(IDENTITY_HEADER, identity);
        for (name, value) in [(HeaderName::from_static(REQUEST_ID_HEADER), id.as_str()), (header::HOST, &host)] {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        self.send(request.map(RequestBody::own), None, &tunnel, &host).await.map_err(|refusal| refusal.error)
    }

    /// Who is calling, and whether they may: nothing is told about a tunnel to who may not call it.
    async fn admit(
        &self,
        request: &Request<Incoming>,
        target: &Target,
    ) -> Result<(Arc<LiveTunnel>, String, HeaderValue, HeaderName), HopError> {
        let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
        let caller = match authenticate(&self.store, request.headers()).await {
            Ok(caller) => caller,
            Err(error) => {
                if error.status == StatusCode::UNAUTHORIZED {
                    self.audit.count(Surface::Calls, Refused::Unauthenticated, peer, None).await;
                }
                return Err(HopError::new(Hop::Identity, error.message.clone()).with_status(error.status));
            }
        };
        let tunnel = self.tunnels.find(&target.label).await?;
        let tunnel = tunnel.filter(|tunnel| tunnel.record.workspace == caller.key.workspace);
        let tunnel = tunnel.ok_or_else(HopError::no_route)?;
        if !caller.may_call(&tunnel.record, &target.route) {
            self.audit.count(Surface::Calls, Refused::NotPermitted, peer, Some(&caller.key.id)).await;
            return Err(HopError::new(Hop::Policy, format!("this key may not call the route `{}`", target.route)));
        }
        let host = tunnel.domain.route_host(&target.route);
        let identity = self.signer.caller(&caller.key, &host, self.store.now().as_second());
        let identity =
            identity.ok_or_else(|| HopError::new(Hop::Identity, "the caller's identity cannot be signed"))?;
        Ok((tunnel, host, identity, caller.carried_by))
    }

    /// Sends a request over a kept connection or a new one, or over a shared one where it is made to last. What may have
    /// been sent is never sent again.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
        sending: Option<Sending>,
        tunnel: &LiveTunnel,
        host: &str,
    ) -> Result<Response<ResponseBody>, Refusal> {
        if is_lasting(&request) {
            match Box::pin(self.shared(tunnel, host)).await {
                Err(error) => return Err(Refusal::of(error, request)),
                Ok(None) => {}
                Ok(Some(shared)) => match shared.send(request).await {
                    Ok(response) => {
                        return answer(response, |body| GatewayBody::shared(body, shared)).map_err(Refusal::from);
                    }
                    Err(mut failed) => request = failed.take_message().ok_or_else(|| broke(failed.error()))?,
                },
            }
        }
        loop {
            let (mut inner, fresh) = match self.pool.take(tunnel, host) {
                Some(inner) => (inner, false),
                // On the heap, as all that is rare: every call would have room for it otherwise.
                None => match Box::pin(self.open(tunnel, host)).await {
                    Ok(inner) => (inner, true),
                    Err(error) => return Err(Refusal::of(error, request)),
                },
            };
            match inner.send(request).await {
                Ok(response) => {
                    let early = sending.as_ref().is_some_and(Sending::is_going_on);
                    if early {
                        inner.detach(&self.pool);
                    }
                    let answered = answer(response, |body| GatewayBody::own(body, inner, self.pool.clone()));
                    let mut answered = answered.map_err(Refusal::from)?;
                    if early {
                        // The rest of the request is not read, so that no other can follow on the caller's connection.
                        answered.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    return Ok(answered);
                }
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    Some(unsent) => {
                        let error = HopError::new(Hop::Link, "the gateway closed the connection before the call");
                        return Err(Refusal::of(error, unsent));
                    }
                    None => return Err(broke(failed.error())),
                },
            }
        }
    }

    /// A new connection. What it rests on is asked for again behind the handshake: an archived tunnel or certificate cuts
    /// the connections that are there, and this one was not yet.
    async fn open(&self, tunnel: &LiveTunnel, host: &str) -> Result<Inner, HopError> {
        let inner = self.pool.open(tunnel, host, None).await?;
        self.confirm(tunnel, inner.peer()).await?;
        Ok(inner)
    }

    /// A connection that calls share, looked at again in the same way.
    async fn shared(&self, tunnel: &LiveTunnel, host: &str) -> Result<Option<Arc<Shared>>, HopError> {
        let shared = self.pool.shared(tunnel, host).await?;
        if let Some(shared) = &shared {
            self.confirm(tunnel, &shared.peer).await?;
        }
        Ok(shared)
    }

    async fn confirm(&self, tunnel: &LiveTunnel, peer: &Peer) -> Result<(), HopError> {
        let now = self.tunnels.find(&tunnel.record.label).await?.ok_or_else(HopError::no_route)?;
        if peer.is_vouched_for(&now) {
            return Ok(());
        }
        Err(HopError::new(Hop::InnerTls, "the CA of the gateway's certificate was archived during the handshake"))
    }

    /// A call of the hub's own over this very link, to the gateway and no further.
    pub(crate) async fn probe(&self, label: &TunnelLabel, link: &EdgeLink, route: &RouteName) -> Option<ProbeFailure> {
        let probe = tokio::time::timeout(PROBE_DEADLINE, self.probe_through(label, link, route)).await;
        let late = || HopError::new(Hop::Link, format!("no answer within {} s", PROBE_DEADLINE.as_secs()));
        let error = probe.unwrap_or_else(|_| Err(late())).err()?;
        Some(ProbeFailure { hop: error.hop.as_str().to_owned(), reason: error.reason })
    }

    async fn probe_through(&self, label: &TunnelLabel, link: &EdgeLink, route: &RouteName) -> Result<(), HopError> {
        let tunnel = self.tunnels.find(label).await?.ok_or_else(HopError::no_route)?;
        let host = tunnel.domain.route_host(route);
        let identity = self.signer.probe(&host, self.store.now().as_second());
        let identity = identity.ok_or_else(|| HopError::new(Hop::Identity, "the probe's identity cannot be signed"))?;
        let mut inner = self.pool.open(&tunnel, &host, Some(link)).await?;
        let request = Request::builder()
            .uri("/")
            .header(header::HOST, &host)
            .header(IDENTITY_HEADER, identity)
            .header(REQUEST_ID_HEADER, RequestId::random().as_str())
            .header("sortie-probe", "1")
            .body(RequestBody::Empty)
            .map_err(|_| HopError::new(Hop::Edge, "the probe cannot be written"))?;
        let response = inner.send(request).await;
        let response = response.map_err(|_| HopError::new(Hop::Link, "the connection broke under the probe"))?;
        // Read to its end, the connection that proved the way is ready for the first call.
        let response = response.map(|body| ResponseBody::Gateway(GatewayBody::own(body, inner, self.pool.clone())));
        let status = response.status();
        let hop = response.headers().get(HOP_HEADER).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let body = Limited::new(response.into_body(), ID_BYTES).collect().await;
        if status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        let reason = body.ok().and_then(|body| reason(&body.to_bytes())).unwrap_or_else(|| format!("status {status}"));
        let hop = hop.and_then(|hop| serde_json::from_value(hop.into()).ok()).unwrap_or(Hop::Upstream);
        Err(HopError::new(hop, reason))
    }
}

/// The reason in one of our own error bodies.
fn reason(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    value.pointer("/error/details/reason").and_then(|reason| reason.as_str()).map(ToOwned::to_owned)
}

/// A gateway's answer, without what only we may say.
fn answer(
    response: Response<Incoming>,
    body: impl FnOnce(Incoming) -> GatewayBody,
) -> Result<Response<ResponseBody>, HopError> {
    let (mut head, incoming) = response.into_parts();
    if !is_framed_once(&head.headers) {
        let reason = "the gateway does not say in one way how long its answer is";
        return Err(HopError::new(Hop::Link, reason).with_status(StatusCode::BAD_GATEWAY));
    }
    let hop = head.headers.remove(HOP_HEADER);
    strip(&mut head.headers);
    if let Some(hop) = hop {
        head.headers.insert(HOP_HEADER, hop);
    }
    Ok(Response::from_parts(head, ResponseBody::Gateway(body(incoming))))
}

fn broke(error: &hyper::Error) -> Refusal {
    tracing::debug!(%error, "a call broke");
    let reason = "the connection to the gateway broke during the call; it may have run, and is not repeated";
    HopError::new(Hop::Link, reason).into()
}

/// Removes what concerns one connection, and every header that only we may set.
fn strip(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    strip_ours(headers);
}

/// The key of a call may come in `Authorization` as well as in `x-api-key`: it must not go on in either.
fn drop_copies(headers: &mut HeaderMap, key: &[u8]) {
    let same = |value: &HeaderValue| value.as_bytes().split(u8::is_ascii_whitespace).any(|part| part == key);
    if headers.get_all(header::AUTHORIZATION).iter().any(same) {
        headers.remove(header::AUTHORIZATION);
    }
}

pub(crate) fn class(status: u16) -> &'static str {
    match status {
        0..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

/// The hop of an answer, as a label from a closed set.
fn known_hop(text: &str) -> Option<&'static str> {
    serde_json::from_value::<Hop>(text.into()).ok().map(Hop::as_str)
}

/// A call that was not forwarded, or broke; with its request where that was not sent.
pub(crate) struct Refusal {
    pub(crate) error: HopError,
    pub(crate) request: Option<Request<Incoming>>,
}

impl From<HopError> for Refusal {
    /// Of a call whose request is gone.
    fn from(error: HopError) -> Self {
        Self { error, request: None }
    }
}

impl Refusal {
    fn of(error: HopError, request: Request<RequestBody>) -> Self {
        let (head, body) = request.into_parts();
        let request = match body {
            RequestBody::Caller(body) => Some(Request::from_parts(head, body.into_inner())),
            RequestBody::Empty | RequestBody::Own(_) => None,
        };
        Self { error, request }
    }

    /// The answer, in JSON-RPC with the request's own id where the caller spoke JSON-RPC.
    pub(crate) async fn into_response(self, id: &RequestId) -> Response<ResponseBody> {
        let rpc = match self.request {
            Some(request) => json_rpc_id(request).await,
            None => None,
        };
        own_response(&self.error, id, rpc.as_deref())
    }
}

async fn json_rpc_id(request: Request<Incoming>) -> Option<Box<RawValue>> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if request.method() != Method::POST || !sortie_mcp::envelope::is_json(kind) {
        return None;
    }
    let body = Limited::new(request.into_body(), ID_BYTES).collect();
    let body = tokio::time::timeout(ID_WAIT, body).await.ok()?.ok()?.to_bytes();
    sortie_mcp::envelope::request_id(&body)
}

/// One of our own answers.
pub(crate) fn own_response(error: &HopError, id: &RequestId, rpc: Option<&RawValue>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Own(Body::from(error.body(id.as_str(), rpc))));
    *response.status_mut() = error.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HOP_HEADER, HeaderValue::from_static(error.hop.as_str()));
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert("request-id", value);
    }
    if let Some(seconds) = error.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if error.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"sortie\""));
    }
    response
}
