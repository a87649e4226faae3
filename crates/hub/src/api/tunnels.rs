//! `/v1/tunnels` and the tokens of tunnels.

use axum::extract::State;
use axum::response::{Json, Response};
use sortie_api::{ApiError, CreateTunnel, List, RotateToken, Tunnel};
use sortie_ids::TunnelId;

use super::extract::{At, Listing, Object};
use super::frame::{Call, Failure};
use super::{Api, audit, unstored};

/// The list that cursors of tunnels belong to.
const LIST: &str = "tunnels";
/// Longest reason for a rotation, in characters; it is kept and logged.
const MAX_REASON: usize = 1000;

pub(super) async fn create(
    State(api): Api,
    call: Call,
    Object(body): Object<CreateTunnel>,
) -> Result<Json<Tunnel>, Failure> {
    let tunnel = api.store.create_tunnel(&call.caller.key.workspace, body.display_name, &api.limits).await?;
    audit::tunnel_created(&call, &tunnel.id);
    Ok(Json(tunnel.object(&api.base_domain)))
}

pub(super) async fn list(State(api): Api, call: Call, Listing(query): Listing) -> Result<Json<List<Tunnel>>, Failure> {
    let page = query.check(LIST, &api.limits)?;
    let page = api.store.list_tunnels(&call.caller.key.workspace, page).await?;
    Ok(super::list(LIST, page, |tunnel| tunnel.object(&api.base_domain)))
}

pub(super) async fn retrieve(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Json<Tunnel>, Failure> {
    let tunnel = api.store.get_tunnel(&call.caller.key.workspace, &id).await?;
    Ok(Json(tunnel.object(&api.base_domain)))
}

pub(super) async fn archive(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Json<Tunnel>, Failure> {
    let archived = api.store.archive_tunnel(&call.caller.key.workspace, &id).await?;
    for certificate in &archived.certificates {
        audit::certificate_revoked(&call, certificate);
    }
    if archived.fresh {
        audit::tunnel_archived(&call, &id);
    }
    Ok(Json(archived.tunnel.object(&api.base_domain)))
}

pub(super) async fn reveal_token(State(api): Api, call: Call, At(id): At<TunnelId>) -> Result<Response, Failure> {
    let token = api.store.reveal_token(&call.caller.key.workspace, &id).await?;
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
    let token = api.store.rotate_token(&call.caller.key.workspace, &id, body.reason.clone()).await?;
    audit::token_rotated(&call, &id, &token, body.reason.as_deref());
    Ok(unstored(token))
}
