//! From outside text to checked values: ids in paths, queries of lists, JSON bodies.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use sortie_api::{ApiError, ListQuery};

use super::MAX_BODY;
use super::frame::{Failure, unreadable};

/// The ids in a path. One of another form is the id of nothing: 404.
pub(super) struct At<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(ids)) => Ok(Self(ids)),
            Err(_) => Err(ApiError::not_found("The path holds an id that is not of its kind.").into()),
        }
    }
}

/// The query of a list.
pub(super) struct Listing(pub(super) ListQuery);

impl<S: Sync> FromRequestParts<S> for Listing {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::<ListQuery>::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::invalid_request(shortened(&rejection.body_text())).into()),
        }
    }
}

/// A JSON object as body, whatever its content type says; an empty body is an empty object.
pub(super) struct Object<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Object<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| unreadable(rejection.status(), MAX_BODY))?;
        let text = match bytes.trim_ascii() {
            b"" => b"{}",
            // A JSON array would otherwise be taken for the fields in their order.
            text if text.starts_with(b"{") => text,
            _ => return Err(ApiError::invalid_request("The body must be a JSON object.").into()),
        };
        let parsed = serde_json::from_slice(text);
        parsed.map(Self).map_err(|error| ApiError::invalid_request(shortened(&format!("body: {error}"))).into())
    }
}

/// A parser's words, which may repeat a part of what was sent, at a length that fits into an answer.
fn shortened(text: &str) -> String {
    const MOST: usize = 300;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain("...".chars()).collect() }
}
