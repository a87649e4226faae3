//! `/v1/sortie/routes`: what a caller may use right now, asked with any valid key.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Json;
use sortie_api::{List, PageRequest, Route};
use sortie_ids::RouteName;
use sortie_link::protos::RouteMode;

use super::frame::{Call, Failure};
use super::{Api, ApiState};

/// Tunnels looked through; a workspace has at most as many live ones as its limit, ten by default.
const TUNNELS: u32 = 1000;

/// The routes of connected gateways that this caller may call.
pub(super) async fn list(State(api): Api, call: Call) -> Result<Json<List<Route>>, Failure> {
    let page = PageRequest { limit: TUNNELS, before: None, include_archived: false };
    let tunnels = api.store.list_tunnels(&call.caller.key.workspace, page).await?;
    let mut data = Vec::new();
    for tunnel in tunnels.items {
        let mut routes: BTreeMap<RouteName, (RouteMode, usize)> = BTreeMap::new();
        for link in api.links.status(&tunnel.label) {
            for route in link.routes.iter() {
                routes.entry(route.name.clone()).or_insert((route.mode, 0)).1 += 1;
            }
        }
        for (name, (mode, gateways)) in routes {
            if !call.caller.may_call(&tunnel, &name) {
                continue;
            }
            let host = api.base_domain.tunnel(&tunnel.label).route_host(&name);
            let sealed = mode == RouteMode::Sealed;
            data.push(Route {
                tunnel_id: tunnel.id.clone(),
                mode: if sealed { "sealed" } else { "terminated" }.to_owned(),
                url: https_url(&api, &host),
                path: (!sealed).then(|| format!("/t/{}/{name}", tunnel.label)),
                name,
                gateways,
            });
        }
    }
    Ok(Json(List { data, next_page: None }))
}

/// The URL of a hostname on the edge's port.
fn https_url(api: &ApiState, host: &str) -> String {
    if api.edge_port == 443 { format!("https://{host}") } else { format!("https://{host}:{}", api.edge_port) }
}
