//! The keys that callers' identities are signed with: published, and changed.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{Json, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use sortie_api::{ApiError, IdentityRotation, RotateIdentity};
use sortie_identity::RotateError;
use sortie_link::protos::FromEdge;

use super::extract::Object;
use super::frame::{Call, Failure};
use super::{Api, audit};
use crate::identity::RotationError;

/// How long readers may keep the published keys: no longer than a new key waits before it signs.
const CACHED: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The keys alone (RFC 7517 section 5).
pub(super) async fn jwks(State(api): Api) -> Response {
    let mut document = api.signer.jwks(api.store.now().as_second());
    let keys = document.get_mut("keys").map(Value::take).unwrap_or_default();
    published(json!({"keys": keys}))
}

/// Where the keys of the issuer are (OpenID Connect Discovery 1.0, section 3).
pub(super) async fn configuration(State(api): Api) -> Response {
    let issuer = api.signer.issuer();
    let base = if issuer.starts_with("https://") { &issuer } else { &api.api_url };
    let jwks_uri = format!("{base}/.well-known/jwks.json");
    published(sortie_identity::discovery(&issuer, &jwks_uri))
}

fn published(document: Value) -> Response {
    let mut response = super::json(document);
    response.headers_mut().insert(header::CACHE_CONTROL, CACHED);
    response
}

/// Changes the signing key, and tells the gateways that are connected. Those that are not learn of it when they come.
pub(super) async fn rotate(
    State(api): Api,
    call: Call,
    Object(body): Object<RotateIdentity>,
) -> Result<Json<IdentityRotation>, Failure> {
    if body.after_seconds > RotateIdentity::MAX_AFTER {
        let reason = format!("after_seconds: at most {}", RotateIdentity::MAX_AFTER);
        return Err(ApiError::invalid_request(reason).into());
    }
    let rotated = api.signer.rotate(&api.store, i64::from(body.after_seconds)).await;
    let rotation = rotated.map_err(|error| match error {
        RotationError::Ring(RotateError::Changing { until }) => {
            let until = Timestamp::from_second(until).unwrap_or(Timestamp::MAX);
            Failure::from(ApiError::conflict(format!(
                "The keys are being changed already: the old one is in use until {until}. Rotate again after that."
            )))
        }
        RotationError::Ring(error) => {
            tracing::error!(%error, "the identity keys could not be rotated");
            ApiError::internal().into()
        }
        RotationError::Store(error) => error.into(),
    })?;
    audit::identity_rotated(&call, &rotation.kid, &rotation.old_kid);
    api.links.tell_all(&FromEdge::IdentityKeys { announcements: api.signer.announcements() });
    let time = |seconds| Timestamp::from_second(seconds).map_err(|_| ApiError::internal());
    Ok(Json(IdentityRotation {
        signs_from: time(rotation.begins)?,
        old_verifies_until: time(rotation.old_ends)?,
        kid: rotation.kid,
        old_kid: rotation.old_kid,
    }))
}
