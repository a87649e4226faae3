//! Renewed certificates that routes show to their upstreams are put in force while they serve.

use std::collections::HashMap;
use std::sync::Arc;

use sortie_ids::RouteName;

use crate::gateway::{RELOAD_EVERY, Shared};
use crate::routes::Target;

/// Looks at the files every few seconds, until the gateway is asked to stop. A broken certificate is told of once, and
/// the old one stays. Connections that are open keep what they began with.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut said: HashMap<RouteName, String> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RELOAD_EVERY) => {}
            () = shared.tasks.stopping() => return,
        }
        let served = shared.served();
        said.retain(|route, _| served.routes.by_name(route.as_str()).is_some());
        for route in served.routes.iter() {
            let Target::Servers(servers) = &route.target else { continue };
            let Some(identity) = servers.identity().cloned() else { continue };
            let reloading = identity.clone();
            let Ok(reloaded) = tokio::task::spawn_blocking(move || reloading.reload()).await else { continue };
            let result = match reloaded {
                Ok(false) => {
                    said.remove(&route.name);
                    continue;
                }
                Ok(true) => {
                    said.remove(&route.name);
                    let days_left = identity.days_left((shared.clock)());
                    tracing::info!(route = %route.name, days_left, "client certificate renewed");
                    "ok"
                }
                Err(error) => {
                    let text = error.to_string();
                    if said.get(&route.name) == Some(&text) {
                        continue;
                    }
                    tracing::error!(route = %route.name, "the old client certificate stays in force: {text}");
                    said.insert(route.name.clone(), text);
                    "failed"
                }
            };
            metrics::counter!("sortie_gateway_client_certificate_reloads_total", "result" => result).increment(1);
        }
    }
}
