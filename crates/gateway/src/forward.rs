//! One call: whose it is, where it goes, and both bodies on their way.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;
use serde_json::value::RawValue;
use sortie_api::{HOP_HEADER, Hop, HopError, IDENTITY_HEADER, REQUEST_ID_HEADER, is_framed_once, is_plainly_framed};
use sortie_credentials::Applied;
use sortie_identity::{Assurance, Caller};
use sortie_ids::RequestId;
use sortie_link::protos::RouteMode;
use sortie_runtime::http::{MAX_HEAD, MAX_INNER_HEADERS};

use crate::answer::Shaping;
use crate::approvals::patient::{self, Events, takes_events};
use crate::approvals::{Asked, relay};
use crate::audit::Deciding;
use crate::body::{BodyError, CallBody, RequestBody, Sent, Watched, whole};
use crate::config::Refusals;
use crate::control::{self, Asking, Passed};
use crate::credentials;
use crate::gateway::Shared;
use crate::headers::{Rewrite, answer};
use crate::identity::PROBE_SUBJECT;
use crate::intake::{self, Intake};
use crate::limits::{Bounds, Counted, request_too_large};
use crate::lists::{Around, Concerns, Watch};
use crate::probe::printable;
use crate::record::Record;
use crate::routes::{Route, Target, requested_host};
use crate::served::Served;
use crate::sessions;
use crate::upstream::{DialError, SendError};

/// The header that marks a probe of the hub.
const PROBE_HEADER: &str = "sortie-probe";
/// The name under which the public API tells the id of a call.
const PUBLIC_REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Who is at the other end of an inner TLS connection, by what TLS has proved.
#[derive(Clone)]
pub(crate) enum Peer {
    /// Anybody who could reach the link: each request must prove the hub's word for its caller.
    Unproven,
    /// Whoever reached the gateway's own listener: each request is of the one caller that the settings assert.
    Asserted,
    /// A client with a certificate that this sealed route's CA signed.
    Client(Arc<Route>, Arc<Caller>),
}

/// A call that ended here, and the JSON-RPC id to answer with.
struct Failed {
    error: HopError,
    id: Option<Box<RawValue>>,
}

/// Answers one request. Dropping the future, or the answer's body, ends the upstream's request at once.
pub(crate) async fn handle<B>(shared: Arc<Shared>, peer: Peer, request: Request<B>) -> Response<CallBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    if matches!(peer, Peer::Unproven) && relay::is_ours(&request) {
        // On the heap, as all that is rare.
        return Box::pin(relay::answer(&shared, request)).await;
    }
    let request_id = match &peer {
        Peer::Unproven => given_id(request.headers()),
        Peer::Asserted | Peer::Client(..) => None,
    };
    let request_id = request_id.unwrap_or_else(RequestId::random);
    let mut record = Record::begin(request_id.clone(), request.method().clone(), shared.audit.clone());
    let head_only = request.method() == Method::HEAD;
    let served = shared.served();
    if served.config.log_request_start {
        tracing::info!(%request_id, method = %request.method(), "request started");
    }
    let (response, hop) = match serve(&shared, &served, &peer, request, &mut record).await {
        Ok(response) => (response, None),
        Err(failed) => (refusal(&failed, &request_id, served.config.control.refusals), Some(failed.error.hop)),
    };
    record.answered(response.status(), hop);
    let bodiless = head_only || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let payloads = served.payloads.as_ref().filter(|payloads| shared.audit.is_on() && payloads.answers);
    let sent =
        Sent::begin(shared.audit.is_on() && served.config.audit.result_digest, payloads.map(|payloads| payloads.most));
    record.payloads = payloads.cloned();
    response.map(|body| Watched::new(body, bodiless, sent, move |end, sent| record.finish(end, sent)).boxed())
}

async fn serve<B>(
    shared: &Arc<Shared>,
    served: &Served,
    peer: &Peer,
    request: Request<B>,
    record: &mut Record,
) -> Result<Response<CallBody>, Failed>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    let announced = request.body().size_hint().lower();
    let jsonrpc = speaks_jsonrpc(&request);
    let (head, body) = request.into_parts();
    let request = Request::from_parts(head, ());

    let admitted = admit(shared, served, peer, &request, record).await;
    let limit = match &admitted {
        Ok(Admitted::Call(route, _)) => route.max_request_body,
        _ => served.config.max_request_body,
    };
    let body = RequestBody::new(body, limit, jsonrpc, record.tally.clone());
    let checked = admitted.and_then(|admitted| {
        if announced > limit {
            return Err(too_large(limit));
        }
        Ok(admitted)
    });
    let outcome = match checked {
        Ok(Admitted::Probe) => {
            let mut response = Response::new(whole(Vec::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        Ok(Admitted::Call(route, caller)) => {
            let call = Call { shared, served, route: &route, caller: &caller };
            call.make(peer, request, &body, record).await
        }
        Err(error) => Err(unadmitted(shared, served, &request, record, error).await),
    };
    match outcome {
        Ok(response) => {
            body.forget();
            Ok(response)
        }
        Err(error) => Err(Failed { error, id: body.jsonrpc_id().await }),
    }
}

/// Records a request that is refused before it was looked at, and returns what to answer.
async fn unadmitted(
    shared: &Shared,
    served: &Served,
    request: &Request<()>,
    record: &Record,
    error: HopError,
) -> HopError {
    match record.known() {
        Some(known) => {
            let id = (&record.request_id, &record.tally);
            Deciding::new(&shared.audit, served, known, request, id).refused(error).await
        }
        None => {
            shared.audit.unidentified(record.route().map(|route| route.name.as_str()), &error);
            error
        }
    }
}

/// A request that may go on.
enum Admitted {
    Call(Arc<Route>, Arc<Caller>),
    Probe,
}

/// Finds the route and checks who is calling.
async fn admit(
    shared: &Shared,
    served: &Served,
    peer: &Peer,
    request: &Request<()>,
    record: &mut Record,
) -> Result<Admitted, HopError> {
    // HTTP/1 buffers are bounded only to about twice this, and HTTP/2 has no bound of their number.
    let size = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if size > MAX_HEAD || request.headers().len() > MAX_INNER_HEADERS {
        let reason = format!("the headers are more than {MAX_INNER_HEADERS}, or larger than {MAX_HEAD} bytes");
        let error = HopError::new(Hop::Route, reason);
        return Err(error.with_status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    }
    let host = requested_host(request);
    let route = host.as_deref().and_then(|host| served.routes.by_host(host));
    let route = match (peer, route) {
        (Peer::Unproven | Peer::Asserted, Some(route)) if route.mode() == RouteMode::Terminated => route,
        (Peer::Client(proven, _), Some(route)) if proven.proves(route) => route,
        (Peer::Client(proven, caller), _) => {
            record.routed(proven.clone());
            record.called(caller.clone());
            let reason = "this connection serves only the host that it was opened for";
            return Err(HopError::new(Hop::Route, reason).with_status(StatusCode::MISDIRECTED_REQUEST));
        }
        // A sealed route looks unknown here: only the proof that it demands shows it.
        (Peer::Unproven | Peer::Asserted, _) => {
            tracing::warn!(host = printable(host.as_deref().unwrap_or("")), "no route for host");
            return Err(HopError::no_route());
        }
    };
    record.routed(route.clone());
    let caller = match peer {
        Peer::Client(_, caller) => caller.clone(),
        // Taken at each call, so that a change of the settings bites at once.
        Peer::Asserted => served.asserted.clone().ok_or_else(|| {
            let reason = "the settings of the gateway say no more who calls by its listener ([listener.caller])";
            HopError::new(Hop::Identity, reason)
        })?,
        Peer::Unproven => match verified(shared, served, route, request.headers()).await? {
            Some(caller) => caller,
            None => return Ok(Admitted::Probe),
        },
    };
    record.called(caller.clone());
    // CONNECT asks for a tunnel, TRACE for the headers that the upstream gets.
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        let error = HopError::new(Hop::Route, format!("the method {} is not served", request.method()));
        return Err(error.with_status(StatusCode::NOT_IMPLEMENTED));
    }
    if !is_plainly_framed(request.headers()) {
        let reason = "the only transfer coding that is understood is `chunked`, once and alone";
        return Err(HopError::new(Hop::Route, reason).with_status(StatusCode::NOT_IMPLEMENTED));
    }
    Ok(Admitted::Call(route.clone(), caller))
}

/// The caller by the word of the hub, and of an issuer beside it; none for the hub's own probe.
async fn verified(
    shared: &Shared,
    served: &Served,
    route: &Route,
    headers: &HeaderMap,
) -> Result<Option<Arc<Caller>>, HopError> {
    let verified = shared.keys.verify(&served.issuers, headers, route, (shared.clock)()).await;
    let caller = verified.map_err(|unknown| {
        tracing::warn!(route = %route.name, "caller identity {unknown}");
        HopError::new(Hop::Identity, format!("caller identity {unknown}"))
    })?;
    if caller.subject == PROBE_SUBJECT && caller.assurance == Assurance::Asserted {
        return match headers.get(PROBE_HEADER) {
            Some(_) => Ok(None),
            None => Err(HopError::new(Hop::Identity, "caller identity is that of a probe, which makes no calls")),
        };
    }
    Ok(Some(caller))
}

/// A call of a caller who is known.
struct Call<'a> {
    shared: &'a Arc<Shared>,
    served: &'a Served,
    route: &'a Arc<Route>,
    caller: &'a Arc<Caller>,
}

impl Call<'_> {
    /// Looks at its message and its session, decides, and has it forwarded, now or when somebody has approved it. Each of
    /// these is recorded before it counts.
    async fn make<B>(
        &self,
        peer: &Peer,
        request: Request<()>,
        body: &RequestBody<B>,
        record: &mut Record,
    ) -> Result<Response<CallBody>, HopError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let id = (&record.request_id, &record.tally);
        let mut deciding = Deciding::new(&self.shared.audit, self.served, (self.route, self.caller), &request, id);
        let considered = self.consider(&request, body, record, &mut deciding).await;
        let (going, asked, id) = match considered {
            Ok(considered) => considered,
            Err(error) => return Err(deciding.refused(error).await),
        };
        if asked.is_empty() {
            return going.on(self.shared, self.route, peer, request, body, &deciding).await;
        }
        // On the heap, as all that is rare.
        let waiting = self.wait(going, asked, id, peer, request, body, deciding);
        Box::pin(waiting).await
    }

    /// Holds it to all that it has to pass: what goes on then, and what has to be approved first.
    async fn consider<B>(
        &self,
        request: &Request<()>,
        body: &RequestBody<B>,
        record: &mut Record,
        deciding: &mut Deciding,
    ) -> Result<Considered, HopError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let (shared, route) = (self.shared, self.route);
        let now = (shared.clock)();
        let asking = Asking { caller: self.caller, route, request, now };
        let held_to = self.served.control.held_to(route.protocol);
        let caller = sessions::Caller::from(self.caller.as_ref());
        let pass = |intake: Intake<'_>| {
            deciding.note(&asking, &intake, &self.served.shown);
            let passed = control::pass(shared, self.served, &asking, &record.request_id, &intake)?;
            Ok((Concerns::of(&intake, route), passed))
        };
        let (concerns, Passed { bounds, verdict, counted, asked, id }) =
            intake::judge(held_to, request, body, &shared.memory, pass).await?;
        let refused = record.judged(self.caller, &verdict);
        deciding.judged(&self.served.control, verdict, now);
        refused?;
        // Only who may call a tool is told what is known of it.
        concerns.admit(route, caller.digest())?;
        record.credential = route.credentials.of(self.caller)?.map(|credential| credential.name().clone());
        deciding.credential = record.credential.clone();
        if let Some(limit) = bounds.max_request_body
            && !body.restrict(limit)
        {
            return Err(request_too_large(limit));
        }
        let named = shared.sessions.admit(route, caller, request.headers(), now)?;
        let around = Around {
            caller: caller.digest(),
            visible: &|| self.served.control.visible(self.caller, route, shared.clock),
            request_id: &record.request_id,
            memory: &shared.memory,
            clock: shared.clock,
        };
        let watch = Watch::new(route, request.method(), &concerns, &around);
        let going = Going { who: self.caller.clone(), caller, named, bounds, counted, concerns, watch };
        Ok((going, asked, id))
    }

    /// Has it forwarded when all that was asked for is approved.
    #[expect(clippy::too_many_arguments, reason = "all of a call that outlives its handler")]
    async fn wait<B>(
        &self,
        mut going: Going,
        asked: Vec<(usize, Asked)>,
        id: Option<Box<RawValue>>,
        peer: &Peer,
        request: Request<()>,
        body: &RequestBody<B>,
        mut deciding: Deciding,
    ) -> Result<Response<CallBody>, HopError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let every = self.route.settings.keepalive.filter(|_| takes_events(request.method(), request.headers()));
        let events = every.zip(id).map(|(every, id)| Events { every, id, request_id: deciding.id().clone() });
        deciding.waits().await?;
        let (shared, route, caller) = (self.shared.clone(), self.route.clone(), self.caller.clone());
        let (peer, body) = (peer.clone(), body.clone());
        let asked: Vec<_> = asked
            .into_iter()
            .map(|(at, one)| {
                let approved = shared.approvals.ask(&self.served.config.approvals, one);
                async move { approved.await.map(|approved| (at, approved)) }
            })
            .collect();
        let answering = async move {
            let approving = async {
                for (at, approved) in futures_util::future::try_join_all(asked).await? {
                    let (request_id, by) = (deciding.id(), approved.decision.by);
                    tracing::info!(%request_id, approval = %approved.id, %by, "approved call goes on");
                    deciding.approvals.push((at, approved.id));
                }
                going.concerns.admit(&route, going.caller.digest())?;
                // What is not allowed any more, by another policy or at this hour, is not made allowed by an approval.
                let served = shared.served();
                going.counted.clear();
                let now = (shared.clock)();
                let asking = Asking { caller: &caller, route: &route, request: &request, now };
                let again = |intake: Intake<'_>| Ok(control::reconsider(&shared, &served, &asking, &intake));
                let held_to = served.control.held_to(route.protocol);
                let (verdict, counted) = intake::judge(held_to, &request, &body, &shared.memory, again).await?;
                let refused = verdict.refusal();
                deciding.judged(&served.control, verdict, now);
                going.counted = counted;
                refused.map_or(Ok(()), Err)
            };
            let approved = approving.await;
            let answer = match approved {
                Ok(()) => going.on(&shared, &route, &peer, request, &body, &deciding).await,
                Err(error) => Err(deciding.refused(error).await),
            };
            answer.inspect_err(|error| deciding.failed(error.hop))
        };
        patient::wait(Box::pin(answering), events).await
    }
}

/// What goes on, what has to be approved first, and the JSON-RPC id of a single request that waits.
type Considered = (Going, Vec<(usize, Asked)>, Option<Box<RawValue>>);

/// A call that nothing holds back any more.
struct Going {
    who: Arc<Caller>,
    caller: sessions::Caller,
    named: Option<sessions::Named>,
    bounds: Bounds,
    counted: Vec<Counted>,
    concerns: Concerns,
    watch: Option<Watch>,
}

impl Going {
    async fn on<B>(
        self,
        shared: &Shared,
        route: &Route,
        peer: &Peer,
        request: Request<()>,
        body: &RequestBody<B>,
        deciding: &Deciding,
    ) -> Result<Response<CallBody>, HopError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        deciding.forwarded().await?;
        self.counted.into_iter().for_each(Counted::keep);
        let method = request.method().clone();
        let request_id = deciding.id();
        let onward = Onward { shared, route, peer, caller: &self.who, request_id, watch: self.watch };
        let response = self.bounds.hold_to(onward.forward(request, body)).await?;
        shared.sessions.answered(route, self.caller, self.named, &method, &response, (shared.clock)());
        Ok(response)
    }
}

/// The way of one call to its upstream.
struct Onward<'a> {
    shared: &'a Shared,
    route: &'a Route,
    peer: &'a Peer,
    caller: &'a Arc<Caller>,
    request_id: &'a RequestId,
    watch: Option<Watch>,
}

impl Onward<'_> {
    async fn forward<B>(self, request: Request<()>, body: &RequestBody<B>) -> Result<Response<CallBody>, HopError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let Self { shared, route, peer, caller, request_id, watch } = self;
        let (mut head, ()) = request.into_parts();
        if let Some(watch) = &watch {
            watch.ask_plain(&mut head.headers);
        }
        let from_hub = matches!(peer, Peer::Unproven);
        let credential = route.credentials.of(caller)?;
        // Only one that was verified; a client of a sealed route sends what it likes.
        let inbound = head.headers.get(IDENTITY_HEADER).filter(|_| from_hub).cloned();
        let inbound = inbound.as_ref().and_then(|token| token.to_str().ok());
        let shaping = Shaping::new(route, &head.method, &head.uri, &head.headers, from_hub);
        let rewrite = Rewrite {
            public_host: &route.host_value,
            authorization: route.authorization,
            token_headers: &route.token_headers,
            request_id,
            length: body.size_hint().exact(),
        };
        rewrite.apply(&mut head.headers);
        if let Some(identity) = &route.identity {
            identity.put(&mut head.headers, caller, (shared.clock)());
        }

        let answering = async {
            // The last thing before the call goes out: nothing else sees the secret.
            let applied = credentials::apply(credential, caller, &mut head.headers, inbound, (shared.clock)()).await?;
            match &route.target {
                Target::Servers(servers) => {
                    let certificate = applied.as_ref().and_then(Applied::certificate);
                    let answered = servers.send(head, || body.clone().boxed(), certificate).await;
                    let answered =
                        answered.map_err(|error| failure(&error, route, body, request_id, applied.as_ref()))?;
                    let response = answered.response.map(|body| body.map_err(Into::into).boxed());
                    Ok((response, Some((servers.as_ref(), answered.server)), applied))
                }
                Target::Local(local) => {
                    let path = head.uri.path_and_query().cloned();
                    let uri = path.map_or_else(
                        || Ok("/".parse().unwrap_or_default()),
                        |path| http::Uri::builder().path_and_query(path).build(),
                    );
                    let mut request = Request::new(body.clone().boxed());
                    *request.uri_mut() = uri.map_err(|_| unusable_target())?;
                    *request.method_mut() = head.method;
                    *request.headers_mut() = head.headers;
                    request
                        .headers_mut()
                        .insert(HOST, route.settings.host.as_ref().unwrap_or(&route.host_value).clone());
                    Ok((local.call(request).await, None, applied))
                }
            }
        };
        let (mut response, from, applied) = match route.deadline {
            None => answering.await?,
            Some(deadline) => tokio::time::timeout(deadline, answering).await.map_err(|_| {
                let reason = format!("route `{}` did not answer within its deadline", route.name);
                HopError::new(Hop::Upstream, reason).with_status(StatusCode::GATEWAY_TIMEOUT)
            })??,
        };
        if body.exceeded() {
            return Err(over(route, body));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let reason = format!("the upstream of route `{}` switched protocols unasked", route.name);
            return Err(HopError::new(Hop::Upstream, reason));
        }
        if !is_framed_once(response.headers()) {
            let reason =
                format!("the upstream of route `{}` does not say in one way how long its answer is", route.name);
            return Err(HopError::new(Hop::Upstream, reason));
        }
        answer(response.headers_mut());
        if let Some(applied) = &applied {
            let status = response.status();
            credentials::answered(applied, status, response.headers_mut());
        }
        if let Some(watch) = watch {
            response = watch.look(response).await?;
        }
        Ok(shaping.shape(response, from))
    }
}

/// A failure before the head of the response. The log has the addresses, the caller does not.
fn failure<B>(
    error: &SendError,
    route: &Route,
    body: &RequestBody<B>,
    request_id: &RequestId,
    applied: Option<&Applied<'_>>,
) -> HopError
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    if body.exceeded() {
        return over(route, body);
    }
    let name = &route.name;
    tracing::warn!(%request_id, route = %name, "upstream failed: {error}");
    match error {
        SendError::Dial(dial) => {
            let reason = format!("the upstream of route `{name}`: {}", dial.public());
            let error = HopError::new(Hop::UpstreamConnect, reason);
            match dial {
                DialError::Timeout(_) => error.with_status(StatusCode::GATEWAY_TIMEOUT),
                _ => error,
            }
        }
        SendError::Interim => {
            HopError::new(Hop::Upstream, format!("the upstream of route `{name}` sent too many interim answers"))
        }
        SendError::ClientCertificate(_) => {
            let whose = match applied.filter(|applied| applied.certificate().is_some()) {
                Some(applied) => {
                    applied.refused();
                    format!("the client certificate of credential `{}`", applied.name())
                }
                None => "this call without a client certificate that it knows".to_owned(),
            };
            HopError::new(Hop::UpstreamConnect, format!("the upstream of route `{name}` does not accept {whose}"))
        }
        SendError::Broke(_) | SendError::NoServer => {
            HopError::new(Hop::Upstream, format!("the upstream of route `{name}` broke off before it answered"))
        }
    }
}

fn unusable_target() -> HopError {
    HopError::new(Hop::Route, "the request's target cannot be passed on")
}

/// The refusal of a body that was larger than its route, or a limit, lets it be.
fn over<B>(route: &Route, body: &RequestBody<B>) -> HopError
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    match body.limit() {
        limit if limit < route.max_request_body => request_too_large(limit),
        limit => too_large(limit),
    }
}

pub(crate) fn too_large(limit: u64) -> HopError {
    HopError::new(Hop::Route, format!("the request body is larger than {limit} bytes"))
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

/// Our own answer to a call that ended here.
fn refusal(failed: &Failed, request_id: &RequestId, refusals: Refusals) -> Response<CallBody> {
    let mut response = Response::new(whole(failed.error.body(request_id.as_str(), failed.id.as_deref())));
    // To many clients a 403 is the end of the connection; the error of JSON-RPC is that of the call alone.
    let told = refusals == Refusals::JsonRpc && failed.error.hop == Hop::Policy && failed.id.is_some();
    if !told || failed.error.status != StatusCode::FORBIDDEN {
        *response.status_mut() = failed.error.status;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HOP_HEADER, HeaderValue::from_static(failed.error.hop.as_str()));
    if let Ok(id) = HeaderValue::from_str(request_id.as_str()) {
        headers.insert(PUBLIC_REQUEST_ID, id);
    }
    if let Some(seconds) = failed.error.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The id that the hub gave the call, if it is one.
fn given_id(headers: &HeaderMap) -> Option<RequestId> {
    headers.get(REQUEST_ID_HEADER)?.to_str().ok()?.parse().ok()
}

fn speaks_jsonrpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    request.method() == Method::POST && sortie_mcp::envelope::is_json(kind)
}
