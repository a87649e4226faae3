//! `/v1/sortie/tunnels/{tunnel_id}/approvals`: calls that wait for a person at the gateways of a tunnel.

use axum::extract::State;
use axum::response::Json;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use sortie_api::{ApiError, Approval, DecideApproval, List};
use sortie_ids::{ApprovalId, TunnelId};
use sortie_store::{Object, StoreError, TunnelRecord};

use super::extract::{At, Object as Given};
use super::frame::{Call, Failure};
use super::{Api, ApiState, audit};
use crate::gateways::{Question, Reply};

/// What gateways answer these under.
const PATH: &str = "/v1/approvals";

pub(super) async fn list(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Json<List<Approval>>, Failure> {
    let tunnel = tunnel(&api, &call, &id).await?;
    let question = Question { method: Method::GET, path: PATH.to_owned(), body: Bytes::new() };
    let replies = api.gateways.ask_all(&call.caller.key, &tunnel.label, &question).await;
    let (mut data, mut refused) = (Vec::<Approval>::new(), None);
    // A gateway that is asked twice, over an old link and a new one, tells the same twice.
    let mut answered = replies.is_empty();
    for reply in replies {
        match read::<List<Approval>>(reply) {
            Ok(list) => {
                answered = true;
                data.extend(list.data);
            }
            Err(error) => refused = Some(error),
        }
    }
    data.sort_by(|one, two| one.id.cmp(&two.id));
    data.dedup_by(|one, two| one.id == two.id);
    match refused {
        Some(error) if !answered => Err(error.into()),
        _ => Ok(Json(List { data, next_page: None })),
    }
}

pub(super) async fn decide(
    State(api): Api,
    call: Call,
    At((id, approval)): At<(TunnelId, ApprovalId)>,
    Given(decide): Given<DecideApproval>,
) -> Result<Json<Approval>, Failure> {
    let tunnel = tunnel(&api, &call, &id).await?;
    decide.check()?;
    let body = serde_json::to_vec(&decide).map_err(|_| ApiError::internal())?;
    let question = Question { method: Method::POST, path: format!("{PATH}/{approval}"), body: body.into() };
    let replies = api.gateways.ask_until_known(&call.caller.key, &tunnel.label, &question).await;
    let mut refused = ApiError::not_found(format!("No approval `{approval}` is waiting at a gateway of this tunnel."));
    for reply in replies {
        match read::<Approval>(reply) {
            Ok(decided) => {
                audit::approval_decided(&call, &id, &decided);
                return Ok(Json(decided));
            }
            Err(error) if error.status == StatusCode::NOT_FOUND => {}
            Err(error) => refused = error,
        }
    }
    Err(refused.into())
}

/// A tunnel of the caller's workspace that is not archived.
async fn tunnel(api: &ApiState, call: &Call, id: &TunnelId) -> Result<TunnelRecord, Failure> {
    let tunnel = api.store.get_tunnel(&call.caller.key.workspace, id).await?;
    if tunnel.archived_at.is_some() {
        return Err(StoreError::Archived(Object::Tunnel).into());
    }
    Ok(tunnel)
}

/// What a gateway answered; where that is an error, as one of ours with its sentence.
fn read<T: DeserializeOwned>(reply: Reply) -> Result<T, ApiError> {
    let (status, body) = reply.map_err(|error| ApiError::overloaded(format!("A gateway cannot be asked: {error}.")))?;
    if status.is_success() {
        return serde_json::from_slice(&body)
            .map_err(|_| ApiError::overloaded("A gateway answered what cannot be read; its version may be another."));
    }
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = value.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
    Err(match status {
        StatusCode::BAD_REQUEST => ApiError::invalid_request(said),
        StatusCode::FORBIDDEN => ApiError::permission(said),
        StatusCode::NOT_FOUND => ApiError::not_found(said),
        StatusCode::CONFLICT => ApiError::conflict(said),
        _ => ApiError::overloaded(format!("A gateway refused with {}: {said}", status.as_u16())),
    })
}
