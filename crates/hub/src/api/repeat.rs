//! Answers to requests that came before.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use sortie_ids::Digest;
use sortie_store::{Made, Once};
use zeroize::Zeroizing;

/// Says that nothing was made, since an earlier request made it.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A request with an idempotency key, answered with the object that is shown of what it makes.
pub(super) fn once<T, U: Serialize>(
    idempotency_key: String,
    request: Digest,
    shown: impl FnOnce(&T) -> U + Send + Sync + 'static,
) -> Once<T> {
    let answer = |made: &T| Zeroizing::new(serde_json::to_vec(&shown(made)).unwrap_or_default());
    Once { idempotency_key, request, answer: Box::new(answer) }
}

/// The answer to a repetition: the first answer byte for byte, or what an earlier attempt made. Nobody on the way keeps
/// it, since it may show a secret.
pub(super) fn again<T, U: Serialize>(earlier: Made<T>, shown: impl FnOnce(&T) -> U) -> Response {
    let mut response = match earlier {
        Made::Now(made) | Made::Before(made) => super::json(shown(&made)),
        Made::Answered(bytes) => {
            let kind = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, kind)], Body::from(bytes.to_vec())).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}
