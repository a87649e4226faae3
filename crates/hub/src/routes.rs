//! The routes that a caller may use right now: what `GET /v1/sortie/routes` answers to any valid key.

use std::collections::BTreeMap;

use sortie_api::{ApiError, List, PageRequest, Route};
use sortie_ids::RouteName;
use sortie_link::protos::RouteMode;

use crate::api::Caller;
use crate::front::Front;

/// Tunnels looked through; a workspace has at most as many live ones as its limit, ten by default.
const TUNNELS: u32 = 1000;

/// The routes of connected gateways that this caller may call.
pub(crate) async fn list(front: &Front, caller: &Caller) -> Result<List<Route>, ApiError> {
    let page = PageRequest { limit: TUNNELS, before: None, include_archived: false };
    let tunnels = front.calls.store.list_tunnels(&caller.key.workspace, page).await.map_err(|error| {
        tracing::error!(%error, "tunnels could not be listed");
        ApiError::internal()
    })?;
    let mut data = Vec::new();
    for tunnel in tunnels.items {
        let mut routes: BTreeMap<RouteName, (RouteMode, usize)> = BTreeMap::new();
        for link in front.links.status(&tunnel.label) {
            for route in link.routes.iter() {
                routes.entry(route.name.clone()).or_insert((route.mode, 0)).1 += 1;
            }
        }
        for (name, (mode, gateways)) in routes {
            if !caller.may_call(&tunnel, &name) {
                continue;
            }
            let host = front.base.tunnel(&tunnel.label).route_host(&name);
            let sealed = mode == RouteMode::Sealed;
            data.push(Route {
                tunnel_id: tunnel.id.clone(),
                mode: if sealed { "sealed" } else { "terminated" }.to_owned(),
                url: front.https_url(&host),
                path: (!sealed).then(|| format!("/t/{}/{name}", tunnel.label)),
                name,
                gateways,
            });
        }
    }
    Ok(List { data, next_page: None })
}
