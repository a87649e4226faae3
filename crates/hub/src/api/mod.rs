//! The HTTP API: tunnels as the public contract has them, and beside them, under `/v1/sortie/`, what Sortie adds.
//!
//! What is answered, and to whom, is one table (`operations.rs`). No secret is logged, and the two that are shown (a tunnel's token, a new key) are
//! answered with `cache-control: no-store`. A failure inside is logged under the request's id and answered without its
//! cause. Each request is a task that runs to its end, also when the caller goes away.

mod agents;
mod approvals;
mod audit;
mod auth;
mod betas;
mod certificates;
mod checkpoints;
mod environments;
mod events;
mod extract;
mod frame;
mod identity;
mod keys;
mod openapi;
mod operations;
mod organization;
mod pairs;
mod repeat;
mod routes;
mod sessions;
mod threads;
mod tunnels;
mod vaults;
mod work;
mod workers;
mod workspaces;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Json, Response};
use jiff::Timestamp;
use serde::Serialize;
use sortie_api::{ApiError, Cursor, Discovery, Limits, List};
use sortie_edge::Links;
use sortie_ids::{BaseDomain, Digest};
use sortie_orchestrator::live::Live;
use sortie_orchestrator::model::Models;
use sortie_orchestrator::sessions::Sessions;
use sortie_orchestrator::work::Queues;
use sortie_store::{Page, Store};

use crate::audit::Audit;
use crate::gateways::Gateways;
use crate::identity::Signer;
use crate::mcp::Validator;
pub(crate) use audit::of_key;
pub use auth::{Caller, authenticate};
use frame::Failure;
pub use openapi::document;
use operations::{OPERATIONS, Served};
pub(crate) use operations::{Own, own};

/// The values of the header `anthropic-version` that are understood; a request without one is taken, too.
pub const API_VERSIONS: [&str; 2] = ["2023-06-01", "2026-10-21"];

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
    /// Who signs callers' identities.
    pub signer: Signer,
    /// Base URL of the API.
    pub api_url: String,
    /// The answer of `GET /v1/sortie/discovery`, but for the keys.
    pub discovery: Discovery,
    /// The gateways that are connected.
    pub links: Links,
    /// The way to ask them.
    pub gateways: Gateways,
    /// What tries credentials.
    pub validator: Validator,
    /// Where what is done is recorded.
    pub audit: Audit,
    /// The queues of environments.
    pub work: Queues,
    /// The port of the edge, as clients reach it.
    pub edge_port: u16,
    /// The sessions of agents.
    pub sessions: Sessions,
    /// The models that they may have.
    pub models: Arc<dyn Models>,
    /// What is published of them.
    pub live: Live,
}

type Api = State<Arc<ApiState>>;

/// The API as one service. It has a fallback (404 in the form of the API), so a router that it is merged into has none.
pub fn router(state: ApiState) -> Router {
    let state = Arc::new(state);
    let routed = OPERATIONS.iter().filter_map(|operation| match operation.served {
        Served::Router(handler) => Some((operation, handler)),
        Served::Front(_) => None,
    });
    routed
        .fold(Router::new(), |router, (operation, handler)| {
            let admission = middleware::from_fn_with_state((Arc::clone(&state), operation), frame::count);
            let body = DefaultBodyLimit::max(operation.body);
            router.route(&operation.path, handler().route_layer(body).route_layer(admission))
        })
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .layer(middleware::from_fn(frame::enclose))
        .with_state(state)
}

async fn discovery(State(api): Api) -> Json<Discovery> {
    let identity_jwks = api.signer.jwks(api.store.now().as_second());
    Json(Discovery { identity_jwks, ..api.discovery.clone() })
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

/// An answer that is not of one type with others of its handler.
fn json(body: impl Serialize) -> Response {
    Json(body).into_response()
}

/// An answer with a secret in it, which nobody on the way keeps.
fn unstored(body: impl Serialize) -> Response {
    let mut response = json(body);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
