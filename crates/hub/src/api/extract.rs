//! From outside text to checked values: ids in paths, queries of lists, JSON bodies, and what tells a repeated request.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use sortie_api::ApiError;
use sortie_ids::Digest;

use super::frame::{BodyLimit, Failure, unreadable};

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

/// A query that was read into its type.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::<T>::try_from_uri(&parts.uri) {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(ApiError::invalid_request(shortened(&rejection.body_text())).into()),
        }
    }
}

/// A request that makes something, which may come again: by `idempotency-key`, or as a further attempt of an SDK, which
/// counts them in `x-stainless-retry-count`.
pub(super) struct Creation<T> {
    pub(super) body: T,
    pub(super) idempotency_key: Option<String>,
    pub(super) attempt: u32,
    /// Over method, path and body, byte for byte: a repetition is the same request, not a similar one.
    pub(super) digest: Digest,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Creation<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let idempotency_key = idempotency_key(request.headers())?;
        let attempt = request.headers().get(ATTEMPT).and_then(|count| count.to_str().ok()?.parse().ok()).unwrap_or(0);
        // Neither a method nor a path holds a line's end.
        let mut whole = format!("{} {}\n", request.method(), request.uri().path()).into_bytes();
        let bytes = read(request, state).await?;
        whole.extend_from_slice(&bytes);
        Ok(Self { body: parse(&bytes)?, idempotency_key, attempt, digest: Digest::of(&whole) })
    }
}

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const ATTEMPT: &str = "x-stainless-retry-count";
/// Longest idempotency key, in characters.
const MAX_IDEMPOTENCY_KEY: usize = 255;

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or("");
    let well_formed = (1..=MAX_IDEMPOTENCY_KEY).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if values.next().is_some() || !well_formed {
        return Err(ApiError::invalid_request(format!(
            "{IDEMPOTENCY_KEY}: must be sent once, with 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters"
        )));
    }
    Ok(Some(text.to_owned()))
}

/// A JSON object as body, whatever its content type says; an empty body is an empty object.
pub(super) struct Object<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Object<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        parse(&read(request, state).await?).map(Self)
    }
}

/// The same for a body with secrets in it: what cannot be read is not repeated, neither in the answer nor in the audit.
pub(super) struct Confidential<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Confidential<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = read(request, state).await?;
        let parsed = serde_json::from_slice(object(&bytes)?);
        parsed.map(Self).map_err(|error| ApiError::invalid_request(without_values(&error)).into())
    }
}

/// What is wrong with a body, in words that name members of ours and nothing that was sent.
fn without_values(error: &serde_json::Error) -> String {
    let words = error.to_string();
    if words.starts_with("missing field `") {
        return format!("body: {words}");
    }
    let (line, column) = (error.line(), error.column());
    let what = match words.starts_with("unknown field `") {
        true => "a member that is not known here",
        false => "something that is not of the documented form",
    };
    format!("body: {what}, up to line {line}, column {column}; it is not repeated, as it may be a secret")
}

async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Failure> {
    let limit = request.extensions().get::<BodyLimit>().map_or(0, |limit| limit.0);
    let bytes = Bytes::from_request(request, state).await;
    bytes.map_err(|rejection| unreadable(rejection.status(), limit))
}

/// The text of a JSON object; an empty body is an empty one.
fn object(bytes: &[u8]) -> Result<&[u8], Failure> {
    match bytes.trim_ascii() {
        b"" => Ok(b"{}"),
        // A JSON array would otherwise be taken for the fields in their order.
        text if text.starts_with(b"{") => Ok(text),
        _ => Err(ApiError::invalid_request("The body must be a JSON object.").into()),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let parsed = serde_json::from_slice(object(bytes)?);
    parsed.map_err(|error| ApiError::invalid_request(shortened(&format!("body: {error}"))).into())
}

/// A parser's words, which may repeat a part of what was sent, at a length that fits into an answer.
fn shortened(text: &str) -> String {
    const MOST: usize = 300;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST).chain("...".chars()).collect() }
}
