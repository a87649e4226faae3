//! `/v1/tunnels` and the tokens of tunnels.

use axum::extract::State;
use axum::response::{Json, Response};
use sortie_api::{ApiError, CreateTunnel, List, ListQuery, RotateToken, Tunnel};
use sortie_ids::TunnelId;
use sortie_store::{Attempt, Made, Repeat, TunnelRecord};

use super::extract::{Asked, At, Creation, Object};
use super::frame::{Call, Failure};
use super::repeat::{again, once};
use super::{Api, ApiState, audit, unstored};

/// The list that cursors of tunnels belong to.
const LIST: &str = "tunnels";
/// Longest reason for a rotation, in characters; it is kept and logged.
const MAX_REASON: usize = 1000;

pub(super) async fn create(State(api): Api, call: Call, request: Creation<CreateTunnel>) -> Result<Response, Failure> {
    let name = request.body.display_name;
    if let Some(name) = &name {
        api.limits.check_name("display_name", name)?;
    }
    let base = api.base_domain.clone();
    let repeat = match request.idempotency_key {
        Some(key) => Repeat::Once(once(key, request.digest, move |tunnel: &TunnelRecord| tunnel.object(&base))),
        None => Repeat::Attempt(Attempt {
            key: call.caller.key.id.clone(),
            request: request.digest,
            number: request.attempt,
        }),
    };
    match api.store.create_tunnel_once(&call.caller.key.workspace, name, &api.limits, repeat).await? {
        Made::Now(tunnel) => {
            audit::tunnel_created(&call, &tunnel.id);
            Ok(super::json(tunnel.object(&api.base_domain)))
        }
        earlier => Ok(again(earlier, |tunnel| tunnel.object(&api.base_domain))),
    }
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Tunnel>>, Failure> {
    let page = query.check(LIST, &api.limits)?;
    let page = api.store.list_tunnels(&call.caller.key.workspace, page).await?;
    Ok(super::list(LIST, page, |tunnel| tunnel.object(&api.base_domain)))
}

pub(super) async fn retrieve(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Json<Tunnel>, Failure> {
    let tunnel = api.store.get_tunnel(&call.home(&api, &id).await?, &id).await?;
    Ok(Json(tunnel.object(&api.base_domain)))
}

pub(super) async fn archive(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Json<Tunnel>, Failure> {
    Ok(Json(archived(&api, &call, &id).await?.object(&api.base_domain)))
}

/// Archives a tunnel, with what has to be noted of it.
pub(super) async fn archived(api: &ApiState, call: &Call, id: &TunnelId) -> Result<TunnelRecord, Failure> {
    let archived = api.store.archive_tunnel(&call.home(api, id).await?, id).await?;
    for certificate in &archived.certificates {
        audit::certificate_revoked(call, certificate);
    }
    if archived.fresh {
        audit::tunnel_archived(call, id);
    }
    Ok(archived.tunnel)
}

pub(super) async fn reveal_token(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Response, Failure> {
    let token = api.store.reveal_token(&call.home(&api, &id).await?, &id).await?;
    audit::token_revealed(&call, &id, &token);
    Ok(unstored(token))
}

pub(super) async fn rotate_token(
    State(api): Api,
    call: Call,
    At(id): At<TunnelId>,
    Object(body): Object<RotateToken>,
) -> Result<Response, Failure> {
    if body.reason.as_ref().is_some_and(|reason| reason.chars().count() > MAX_REASON) {
        return Err(ApiError::invalid_request(format!("reason: at most {MAX_REASON} characters")).into());
    }
    let home = call.home(&api, &id).await?;
    let token = api.store.rotate_token(&home, &id, body.reason.clone()).await?;
    audit::token_rotated(&call, &id, &token, body.reason.as_deref());
    Ok(unstored(token))
}
