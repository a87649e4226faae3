//! The HTTP API: tunnels as the public contract has them, and beside them, under `/v1/sortie/`, what Sortie adds.
//!
//! Every path needs a `manage` key. No secret is logged, and the two that are shown (a tunnel's token, a new key) are
//! answered with `cache-control: no-store`. A failure inside is logged under the request's id and answered without its
//! cause. Each request is a task that runs to its end, also when the caller goes away.

mod audit;
mod auth;
mod certificates;
mod extract;
mod frame;
mod keys;
mod tunnels;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::Serialize;
use sortie_api::{ApiError, Cursor, Discovery, Limits, List};
use sortie_ids::{BaseDomain, Digest};
use sortie_store::{Page, Store};

pub use auth::{Caller, authenticate};
use frame::Failure;

/// The values of the header `anthropic-version` that are understood; a request without one is taken, too.
pub const API_VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];

/// Largest request body taken, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// What a check of a CA certificate found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedCa {
    /// SHA-256 of the DER encoding.
    pub fingerprint: Digest,
    /// The end of its validity.
    pub expires_at: Timestamp,
}

/// Checks that a PEM text is exactly one acceptable CA certificate at this moment; the error is one sentence for the
/// caller, and does not repeat the text.
pub type CaCheck = fn(&str) -> Result<CheckedCa, String>;

/// What the API works with.
#[derive(Clone)]
pub struct ApiState {
    /// Where everything is kept.
    pub store: Store,
    /// The domain that tunnel domains end with.
    pub base_domain: BaseDomain,
    /// Bounds on what callers may create and ask for.
    pub limits: Limits,
    /// The rules for CA certificates.
    pub check_ca: CaCheck,
    /// The answer of `GET /v1/sortie/discovery`.
    pub discovery: Discovery,
}

type Api = State<Arc<ApiState>>;

/// The API as one service. It has a fallback (404 in the form of the API), so a router that it is merged into has none.
pub fn router(state: ApiState) -> Router {
    let state = Arc::new(state);
    Router::new()
        .route("/v1/tunnels", post(tunnels::create).get(tunnels::list))
        .route("/v1/tunnels/{tunnel_id}", get(tunnels::retrieve))
        .route("/v1/tunnels/{tunnel_id}/archive", post(tunnels::archive))
        .route("/v1/tunnels/{tunnel_id}/reveal_token", post(tunnels::reveal_token))
        .route("/v1/tunnels/{tunnel_id}/rotate_token", post(tunnels::rotate_token))
        .route("/v1/tunnels/{tunnel_id}/certificates", post(certificates::create).get(certificates::list))
        .route("/v1/tunnels/{tunnel_id}/certificates/{certificate_id}", get(certificates::retrieve))
        .route("/v1/tunnels/{tunnel_id}/certificates/{certificate_id}/archive", post(certificates::archive))
        .route("/v1/sortie/keys", post(keys::create).get(keys::list))
        .route("/v1/sortie/keys/{key_id}", get(keys::retrieve))
        .route("/v1/sortie/keys/{key_id}/archive", post(keys::archive))
        .route("/v1/sortie/discovery", get(discovery))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(middleware::from_fn_with_state(Arc::clone(&state), frame::admit))
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(frame::enclose))
        .with_state(state)
}

async fn discovery(State(api): Api) -> Json<Discovery> {
    Json(api.discovery.clone())
}

async fn unknown_path() -> Failure {
    ApiError::not_found("This path is not part of the API.").into()
}

async fn wrong_method() -> Failure {
    ApiError::method_not_allowed("This path does not take this method; the allow header names those that it takes.")
        .into()
}

/// A stored page as the page that the API shows.
fn list<T, U>(name: &str, page: Page<T>, object: impl Fn(T) -> U) -> Json<List<U>> {
    let next_page = page.next.map(|sequence| Cursor::after(sequence).encode(name));
    Json(List { data: page.items.into_iter().map(object).collect(), next_page })
}

/// An answer with a secret in it, which nobody on the way keeps.
fn unstored(body: impl Serialize) -> Response {
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
