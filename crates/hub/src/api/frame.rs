//! What every request passes: an id, admission, and one form for every failure.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sortie_api::{ApiError, KeyKind, KeyRole};
use sortie_audit::Kind;
use sortie_ids::{RequestId, TunnelId, WorkspaceId};
use sortie_store::{Object, StoreError};
use tracing::Instrument as _;

use super::audit::{Ledger, outcome};
use super::operations::{Access, Operation};
use super::{API_VERSIONS, ApiState, Caller, authenticate, betas, workers};
use crate::audit::{PeerAddress, Refused, Surface};
use crate::call::class;

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const ORGANIZATION_ID: HeaderName = HeaderName::from_static("anthropic-organization-id");
const WORKSPACE_ID: HeaderName = HeaderName::from_static("anthropic-workspace-id");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const VERSION: &str = "anthropic-version";

/// A failed request on its way out; [`enclose`] gives it the body, since only there the request's id is known.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    error: ApiError,
    /// For the log only.
    cause: Option<String>,
}

impl Failure {
    /// What the caller is told.
    pub(super) fn message(&self) -> &str {
        &self.error.message
    }
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
            StoreError::NotFound(Object::Environment) => {
                let details = json!({"error_code": "environment_not_found"});
                ApiError::not_found(capitalised(&sentence)).with_details(details)
            }
            StoreError::NotFound(_) => ApiError::not_found(capitalised(&sentence)),
            StoreError::Archived(_) => ApiError::conflict(capitalised(&sentence)),
            StoreError::TooManyTunnels(_)
            | StoreError::TooManyCertificates(_)
            | StoreError::TooManyKeys(_)
            | StoreError::TooManyWorkspaces(_)
            | StoreError::TooManyHealthchecks(_) => ApiError::limit_reached(sentence),
            StoreError::Outdated => ApiError::conflict(capitalised(&sentence)).with_retry(true),
            StoreError::NoWorkers(_) | StoreError::AtWork => ApiError::invalid_request(capitalised(&sentence)),
            StoreError::NotSelfHosted(_) => ApiError::invalid_request(sentence),
            StoreError::Refused(error) => ApiError::clone(error),
            StoreError::IdempotencyKeyReused => ApiError::conflict(capitalised(&sentence)),
            StoreError::TooManyIdempotencyKeys(_) => ApiError::rate_limited(capitalised(&sentence)).with_retry(false),
            StoreError::KeyRefused(_) | StoreError::GrantOfNothing(_) => ApiError::invalid_request(sentence),
            StoreError::Lost | StoreError::Taken(_) => {
                let public = ApiError::overloaded("The hub cannot reach its database at the moment.");
                return Self { error: public, cause: Some(sentence) };
            }
            StoreError::File { .. }
            | StoreError::Connect { .. }
            | StoreError::OldServer
            | StoreError::Encoding
            | StoreError::NoSchema
            | StoreError::Foreign
            | StoreError::Newer
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

pub(super) fn capitalised(sentence: &str) -> String {
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

/// Counts the answers of an operation, refusals included.
pub(super) async fn count(
    State((api, operation)): State<(Arc<ApiState>, &'static Operation)>,
    mut request: Request,
    next: Next,
) -> Response {
    request.extensions_mut().insert(BodyLimit(operation.body));
    let response = admit(&api, operation, request, next).await;
    let status = class(response.status().as_u16());
    metrics::counter!("sortie_hub_api_requests_total", "operation" => operation.id.as_str(), "status" => status)
        .increment(1);
    response
}

/// Lets a request pass whose sender may ask for this, with fitting headers; tells its handler who calls.
async fn admit(api: &ApiState, operation: &'static Operation, mut request: Request, next: Next) -> Response {
    let access = operation.access;
    if access == Access::Anyone {
        return next.run(request).await;
    }
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let caller = match authenticate(&api.store, request.headers()).await {
        Ok(caller) => caller,
        Err(error) => {
            if error.status == StatusCode::UNAUTHORIZED {
                api.audit.count(Surface::Api, Refused::Unauthenticated, peer, None).await;
            }
            return Failure::from(error).into_response();
        }
    };
    let (organization, workspace) = (caller.key.organization.clone(), caller.key.workspace.clone());
    let permitted = permit(&caller, access, api.store.default_workspace());
    let permitted = match permitted.and_then(|()| permit_role(&caller, operation.role)) {
        Ok(()) => workers::permit(api, &caller, access, &mut request).await,
        Err(error) => Err(error.into()),
    };
    let mut response = match permitted.and_then(|()| check(&caller, request.headers()).map_err(Failure::from)) {
        Ok(()) => recorded(api, operation, caller, request, next).await,
        Err(failure) => {
            if failure.error.status == StatusCode::FORBIDDEN {
                api.audit.count(Surface::Api, Refused::NotPermitted, peer, Some(&caller.key.id)).await;
            }
            failure.into_response()
        }
    };
    set(response.headers_mut(), ORGANIZATION_ID, organization.as_str());
    set(response.headers_mut(), WORKSPACE_ID, workspace.as_str());
    response
}

/// Lets an admitted request run between the record that it begins and those of what came of it.
async fn recorded(
    api: &ApiState,
    operation: &'static Operation,
    caller: Caller,
    mut request: Request,
    next: Next,
) -> Response {
    let ledger = match Ledger::begin(&api.audit, operation, &caller, &mut request).await {
        Ok(ledger) => ledger,
        Err(error) => return Failure::from(error).into_response(),
    };
    let extensions = request.extensions_mut();
    extensions.insert(caller);
    extensions.insert(operation.access);
    extensions.insert(ledger.clone());
    let response = next.run(request).await;
    match ledger.end(outcome(&response)).await {
        Ok(()) => response,
        Err(error) => Failure::from(error).into_response(),
    }
}

/// Judges the kind of the key, which says nothing about any object.
fn permit(caller: &Caller, access: Access, default_workspace: &WorkspaceId) -> Result<(), ApiError> {
    let manages = caller.key.kind == KeyKind::Manage;
    match access {
        Access::Anyone | Access::AnyKey => Ok(()),
        // Judged by what they name, too.
        Access::Queue | Access::Lease | Access::Environment | Access::Worker => Ok(()),
        Access::Manage | Access::Organization if !manages => Err(ApiError::permission(match caller.key.kind {
            KeyKind::Environment => "The key of an environment serves its workers only; this needs a manage key.",
            _ => "A use key calls routes only; this needs a manage key.",
        })),
        Access::Organization if caller.key.workspace != *default_workspace => {
            Err(ApiError::permission("This concerns the organization; it needs a manage key of the default workspace."))
        }
        Access::Manage | Access::Organization => Ok(()),
        // Answered by another part of the hub, which judges each route.
        Access::Route => Err(ApiError::permission("This is no path of the API.")),
    }
}

/// Judges how much a `manage` key may do.
fn permit_role(caller: &Caller, least: KeyRole) -> Result<(), ApiError> {
    let role = caller.key.role;
    if caller.key.kind != KeyKind::Manage || role >= least {
        return Ok(());
    }
    let (role, least) = (role.as_str(), least.as_str());
    Err(ApiError::permission(format!("The key has the role {role}; this needs a key with the role {least}.")))
}

fn check(caller: &Caller, headers: &HeaderMap) -> Result<(), ApiError> {
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
    betas::check(headers)
}

/// An admitted request: who sent it, what for, and what is recorded of it.
pub(super) struct Call {
    pub(super) caller: Caller,
    access: Access,
    ledger: Ledger,
}

impl Call {
    /// Records what was done, when the handler has ended and before its answer goes out.
    pub(super) fn note(&self, kind: Kind, fields: Value) {
        self.ledger.note(kind, fields);
    }

    /// The workspace of a tunnel that the request names: the key's own, or on the organisation's surface the tunnel's.
    /// Who names a tunnel knows it, so that no later attempt to make one finds it.
    ///
    /// # Errors
    /// 404 when the organisation has no such tunnel; database errors.
    pub(super) async fn home(&self, api: &ApiState, tunnel: &TunnelId) -> Result<WorkspaceId, Failure> {
        let key = &self.caller.key;
        api.store.claim_tunnel(&key.id, tunnel).await?;
        match self.access {
            Access::Organization => Ok(api.store.workspace_of_tunnel(&key.organization, tunnel).await?),
            _ => Ok(key.workspace.clone()),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Call {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let known = parts.extensions.get::<Caller>().zip(parts.extensions.get::<Ledger>());
        let access = parts.extensions.get::<Access>().copied();
        let call = known.zip(access).map(|((caller, ledger), access)| Self {
            caller: caller.clone(),
            access,
            ledger: ledger.clone(),
        });
        call.ok_or_else(|| Failure {
            error: ApiError::internal(),
            cause: Some("a handler was reached without admission".to_owned()),
        })
    }
}

/// Largest body that an operation takes, in bytes.
#[derive(Clone, Copy)]
pub(super) struct BodyLimit(pub(super) usize);

/// The failure for a body that could not be read.
pub(super) fn unreadable(status: StatusCode, limit: usize) -> Failure {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::too_large(format!("The body is larger than {limit} bytes.")).into()
    } else {
        ApiError::invalid_request("The body could not be read to its end.").into()
    }
}
