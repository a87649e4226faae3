//! Approvals through the hub: the holder of a `manage` key decides, and the hub says who that is.
//!
//! Taken only where the settings say so. The hub's word is a token of its own kind: it is for approvals at this host
//! alone, so that no caller's token can be used for it, nor the other way round.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use serde::Serialize;
use sortie_api::{APPROVALS_HEADER, ApiError, Approver, DecideApproval, List, approvals_audience};
use sortie_ids::{ApprovalId, KeyId, RequestId};

use crate::body::{BodyError, CallBody, whole};
use crate::gateway::Shared;
use crate::routes::requested_host;

/// Longest body of a request, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// What a subject begins with that is the holder of a key.
const KEY: &str = "key:";

/// Whether a request is about approvals.
pub(crate) fn is_ours<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(APPROVALS_HEADER)
}

/// Answers the hub.
pub(crate) async fn answer<B>(shared: &Shared, request: Request<B>) -> Response<CallBody>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    let id = RequestId::random();
    let (status, body) = match respond(shared, request).await {
        Ok(body) => (http::StatusCode::OK, body),
        Err(error) => (error.status, error.body(id.as_str())),
    };
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn respond<B>(shared: &Shared, request: Request<B>) -> Result<Vec<u8>, ApiError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BodyError>,
{
    let key = approver(shared, &request)?;
    if !shared.served().config.approvals.from.hub() {
        let reason = "this gateway's settings let nobody decide through the hub: add \"hub\" to approvals.from there";
        return Err(ApiError::permission(reason));
    }
    let path = request.uri().path().to_owned();
    let approval = path.strip_prefix("/v1/approvals/").map(str::parse::<ApprovalId>);
    match (request.method().clone(), approval) {
        (Method::GET, None) if path == "/v1/approvals" => {
            json(&List { data: shared.approvals.waiting(), next_page: None })
        }
        (Method::POST, Some(Ok(approval))) => {
            let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
            let body = body.map_err(|_| ApiError::invalid_request("the body is too large, or broke off"))?.to_bytes();
            let decide: DecideApproval = serde_json::from_slice(&body)
                .map_err(|error| ApiError::invalid_request(format!("the body: {error}")))?;
            json(&shared.approvals.decide(&approval, Approver::Hub { key }, decide)?)
        }
        _ => Err(ApiError::not_found("there is no such operation here")),
    }
}

/// The key whose holder the hub says it is.
fn approver<B>(shared: &Shared, request: &Request<B>) -> Result<KeyId, ApiError> {
    let served = shared.served();
    let host = requested_host(request).unwrap_or_default();
    let route = served.routes.by_host(&host).ok_or_else(|| ApiError::not_found("there is no such host here"))?;
    let audience = approvals_audience(&route.host);
    let caller = shared.keys.word(request.headers(), &audience, (shared.clock)()).map_err(|unknown| {
        tracing::warn!("an approver's identity {unknown}");
        ApiError::authentication(format!("the approver's identity {unknown}"))
    })?;
    let key = caller.subject.strip_prefix(KEY).and_then(|key| key.parse().ok());
    key.ok_or_else(|| ApiError::authentication("the approver's identity is not that of a key"))
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(value).map_err(|_| ApiError::internal())
}
