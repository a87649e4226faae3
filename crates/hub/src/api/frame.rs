//! What every request passes: an id, admission, and one form for every failure.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sortie_api::{ApiError, KeyKind};
use sortie_ids::RequestId;
use sortie_store::StoreError;
use tracing::Instrument as _;

use super::{API_VERSIONS, ApiState, Caller, authenticate};

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const ORGANIZATION_ID: HeaderName = HeaderName::from_static("anthropic-organization-id");
const WORKSPACE_ID: HeaderName = HeaderName::from_static("anthropic-workspace-id");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const VERSION: &str = "anthropic-version";
const BETA: &str = "anthropic-beta";

/// A failed request on its way out; [`enclose`] gives it the body, since only there the request's id is known.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    error: ApiError,
    /// For the log only.
    cause: Option<String>,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error, cause: None }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let sentence = error.to_string();
        let public = match &error {
            StoreError::NotFound(_) => ApiError::not_found(capitalised(&sentence)),
            StoreError::Archived(_) => ApiError::conflict(capitalised(&sentence)),
            StoreError::TooManyTunnels(_) | StoreError::TooManyCertificates(_) | StoreError::TooManyKeys(_) => {
                ApiError::limit_reached(sentence)
            }
            StoreError::KeyRefused(_) | StoreError::GrantOfNothing(_) => ApiError::invalid_request(sentence),
            StoreError::File { .. }
            | StoreError::MasterKeyMissing(_)
            | StoreError::MasterKeyWrong(_)
            | StoreError::MasterKeyExposed(_)
            | StoreError::Corrupt(_)
            | StoreError::Database { .. }
            | StoreError::Seal
            | StoreError::Interrupted => {
                let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
                return Self { error: ApiError::internal(), cause: Some(format!("{sentence}{source}")) };
            }
        };
        public.into()
    }
}

fn capitalised(sentence: &str) -> String {
    let mut characters = sentence.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = self.error.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The outermost layer: gives the request an id, and every failure its body.
pub(super) async fn enclose(mut request: Request, next: Next) -> Response {
    let id = RequestId::random();
    request.extensions_mut().insert(id.clone());
    let mut response = to_the_end(next.run(request)).await;
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        if let Some(cause) = &failure.cause {
            tracing::error!(request_id = %id, %cause, "a request failed inside");
        }
        describe(&mut response, &failure.error, &id);
    }
    set(response.headers_mut(), REQUEST_ID, id.as_str());
    response
}

/// Runs a request to its end even when its connection breaks, so that no change stays without its event in the log.
#[expect(clippy::disallowed_methods, reason = "a request that has begun outlives its connection, by milliseconds")]
async fn to_the_end(response: impl Future<Output = Response> + Send + 'static) -> Response {
    match tokio::spawn(response.in_current_span()).await {
        Ok(response) => response,
        Err(error) => Failure { error: ApiError::internal(), cause: Some(error.to_string()) }.into_response(),
    }
}

fn describe(response: &mut Response, error: &ApiError, id: &RequestId) {
    *response.body_mut() = Body::from(error.body(id.as_str()));
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(should_retry) = error.should_retry {
        set(headers, SHOULD_RETRY, if should_retry { "true" } else { "false" });
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Lets a request pass that comes with a `manage` key and fitting headers; tells its handler who calls.
pub(super) async fn admit(State(api): State<Arc<ApiState>>, mut request: Request, next: Next) -> Response {
    let caller = match authenticate(&api.store, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => return Failure::from(error).into_response(),
    };
    let (organization, workspace) = (caller.key.organization.clone(), caller.key.workspace.clone());
    let mut response = match check(&caller, request.headers()) {
        Ok(()) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => Failure::from(error).into_response(),
    };
    set(response.headers_mut(), ORGANIZATION_ID, organization.as_str());
    set(response.headers_mut(), WORKSPACE_ID, workspace.as_str());
    response
}

fn check(caller: &Caller, headers: &HeaderMap) -> Result<(), ApiError> {
    if caller.key.kind != KeyKind::Manage {
        let kind = caller.key.kind.as_str();
        return Err(ApiError::permission(format!("A {kind} key calls routes only; this needs a manage key.")));
    }
    let workspace = caller.key.workspace.as_str();
    if headers.get_all(WORKSPACE_ID).iter().any(|sent| sent != workspace) {
        return Err(ApiError::permission(format!(
            "The key belongs to workspace {workspace}; leave the {WORKSPACE_ID} header out, or send this one."
        )));
    }
    if headers.get_all(VERSION).iter().any(|sent| API_VERSIONS.iter().all(|known| sent != known)) {
        let [older, newer] = API_VERSIONS;
        return Err(ApiError::invalid_request(format!("{VERSION}: must be {older} or {newer}, or be left out")));
    }
    // Any feature may be named, known here or not, so that one client can talk to several services.
    let well_formed = |sent: &HeaderValue| {
        sent.to_str().is_ok_and(|list| {
            list.split(',').all(|name| {
                let name = name.trim_ascii();
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            })
        })
    };
    if !headers.get_all(BETA).iter().all(well_formed) {
        return Err(ApiError::invalid_request(format!("{BETA}: must be names of features, separated by commas")));
    }
    Ok(())
}

/// An admitted request: who sent it, and its id.
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) request_id: RequestId,
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let caller = parts.extensions.get::<Caller>().cloned();
        let request_id = parts.extensions.get::<RequestId>().cloned();
        caller.zip(request_id).map(|(caller, request_id)| Self { caller, request_id }).ok_or_else(|| Failure {
            error: ApiError::internal(),
            cause: Some("a handler was reached without admission".to_owned()),
        })
    }
}

/// The failure for a body that could not be read.
pub(super) fn unreadable(status: StatusCode, limit: usize) -> Failure {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::too_large(format!("The body is larger than {limit} bytes.")).into()
    } else {
        ApiError::invalid_request("The body could not be read to its end.").into()
    }
}
