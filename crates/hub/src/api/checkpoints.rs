//! `/v1/sortie/tunnels/{tunnel_id}/checkpoints`: what the gateways of a tunnel have published of their audit logs.

use axum::extract::State;
use axum::response::Json;
use sortie_api::{List, ListQuery, PublishedCheckpoint};
use sortie_ids::TunnelId;

use super::Api;
use super::extract::{Asked, At};
use super::frame::{Call, Failure};

pub(super) async fn list(
    State(api): Api,
    call: Call,
    At(tunnel): At<TunnelId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<PublishedCheckpoint>>, Failure> {
    let home = call.home(&api, &tunnel).await?;
    let name = format!("checkpoints of {tunnel}");
    let page = query.check(&name, &api.limits)?;
    let page = api.store.list_checkpoints(&home, &tunnel, page).await?;
    Ok(super::list(&name, page, |checkpoint| checkpoint))
}
