//! Which links are up, by tunnel.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use sortie_api::{Hop, HopError};
use sortie_ids::{LinkId, RouteName, TunnelLabel};
use sortie_link::protos::{FromEdge, Kind, Route, RouteMode};
use sortie_link::{EdgeLink, LinkStream, OpenError};

/// Links of one tunnel at once: a tenant, or whoever stole its token, must not take the places of all others.
const MAX_LINKS: usize = 64;

/// The live links of an edge. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Links {
    by_label: Arc<RwLock<HashMap<TunnelLabel, Vec<EdgeLink>>>>,
}

/// A link, for people and programs that ask.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// Its id.
    pub id: LinkId,
    /// The gateway's program and version.
    pub software: String,
    /// The routes that it announced.
    pub routes: Arc<Vec<Route>>,
}

impl Links {
    pub(crate) fn add(&self, label: &TunnelLabel, link: EdgeLink) {
        self.write().entry(label.clone()).or_default().push(link);
        metrics::gauge!("sortie_edge_links").increment(1.0);
    }

    /// Makes room for another link of this tunnel; false when there is none. Where there are too many, the oldest goes
    /// whose gateway has shown no certificate, so that a stolen token cannot keep the gateway out.
    pub(crate) fn make_room(&self, label: &TunnelLabel) -> bool {
        let by_label = self.by_label.read().unwrap_or_else(PoisonError::into_inner);
        let links = by_label.get(label).map(Vec::as_slice).unwrap_or_default();
        let live = || links.iter().filter(|link| !link.is_closed());
        if live().count() < MAX_LINKS {
            return true;
        }
        let oldest = live().find(|link| !link.is_proved());
        if let Some(link) = oldest {
            link.close();
        }
        oldest.is_some()
    }

    pub(crate) fn remove(&self, label: &TunnelLabel, id: &LinkId) {
        let mut by_label = self.write();
        if let Some(links) = by_label.get_mut(label) {
            let before = links.len();
            links.retain(|link| link.id() != id);
            if links.len() < before {
                metrics::gauge!("sortie_edge_links").decrement(1.0);
            }
            if links.is_empty() {
                by_label.remove(label);
            }
        }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<TunnelLabel, Vec<EdgeLink>>> {
        self.by_label.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tunnels that have links.
    pub fn labels(&self) -> Vec<TunnelLabel> {
        self.by_label.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The links that may serve this tunnel, best first: those whose gateway has shown a certificate of the tunnel
    /// before those that only had its token, which may be stolen; among them the one that came last first, since an
    /// older one may be dead and not yet known so.
    pub fn candidates(&self, label: &TunnelLabel) -> Vec<EdgeLink> {
        let by_label = self.by_label.read().unwrap_or_else(PoisonError::into_inner);
        let links = by_label.get(label).map(Vec::as_slice).unwrap_or_default();
        let mut live: Vec<_> =
            links.iter().rev().filter(|link| !link.is_closed() && !link.is_retired()).cloned().collect();
        live.sort_by_key(|link| !link.is_proved());
        live
    }

    fn best(&self, label: &TunnelLabel) -> Option<EdgeLink> {
        self.candidates(label).into_iter().next()
    }

    /// The mode of a route as its gateway announced it; `None` while no link is up or when it has no such route.
    pub fn route_mode(&self, label: &TunnelLabel, route: &RouteName) -> Option<RouteMode> {
        self.best(label)?.route_mode(route)
    }

    /// The tunnel's links.
    pub fn status(&self, label: &TunnelLabel) -> Vec<LinkStatus> {
        let by_label = self.by_label.read().unwrap_or_else(PoisonError::into_inner);
        let links = by_label.get(label).map(Vec::as_slice).unwrap_or_default();
        let live = links.iter().filter(|link| !link.is_closed());
        live.map(|link| LinkStatus {
            id: link.id().clone(),
            software: link.software().to_owned(),
            routes: link.routes(),
        })
        .collect()
    }

    /// Opens a stream to the tunnel's gateway over its best link, or the next one where that is full.
    ///
    /// # Errors
    /// At hop `link` when no gateway is connected or its links have just ended, at hop `edge` when they carry all they
    /// may.
    pub async fn open(&self, label: &TunnelLabel, kind: Kind, host: &str) -> Result<LinkStream, HopError> {
        let mut failure = no_link();
        for link in self.candidates(label) {
            match link.open(kind, host).await {
                Ok(stream) => return Ok(stream),
                Err(OpenError::Ended) => self.remove(label, link.id()),
                Err(error @ (OpenError::Full | OpenError::Host(_))) => {
                    failure = HopError::new(Hop::Edge, error.to_string());
                }
            }
        }
        Err(failure)
    }

    /// Says something on every link.
    pub fn tell_all(&self, message: &FromEdge) {
        let by_label = self.by_label.read().unwrap_or_else(PoisonError::into_inner);
        for link in by_label.values().flatten() {
            link.tell(message.clone());
        }
    }

    /// Ends every link of a tunnel, with all calls on them.
    pub fn cut(&self, label: &TunnelLabel) {
        let links = self.write().remove(label).unwrap_or_default();
        for link in links {
            metrics::gauge!("sortie_edge_links").decrement(1.0);
            link.close();
        }
    }
}

/// What a caller hears while no gateway is connected.
pub fn no_link() -> HopError {
    HopError::new(Hop::Link, "no gateway of this tunnel is connected")
}

#[cfg(test)]
mod tests {
    use sortie_link::protos::{EdgeHello, GatewayHello, VERSION};
    use sortie_link::{GatewayLink, Welcome};
    use sortie_runtime::TaskSet;

    use super::*;

    async fn link(tasks: &TaskSet) -> (EdgeLink, GatewayLink) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let edge =
            EdgeHello { version: VERSION, features: vec![], edge_instance: "e".into(), link_id: LinkId::random() };
        let gateway = GatewayHello {
            version: VERSION,
            features: vec![],
            token: String::new(),
            gateway_instance: "g".into(),
            software: String::new(),
            routes: vec![],
        };
        let admit = async |_| Ok(Welcome::default());
        let (edge, gateway) =
            tokio::join!(sortie_link::accept(near, &edge, tasks, admit), sortie_link::establish(far, &gateway, tasks));
        (edge.expect("accepted").0, gateway.expect("established"))
    }

    #[tokio::test]
    async fn a_tunnel_has_so_many_links_and_those_without_proof_give_way() {
        let (tasks, links, label) = (TaskSet::new(), Links::default(), TunnelLabel::random());
        let mut both = Vec::new();
        for _ in 0..MAX_LINKS {
            assert!(links.make_room(&label));
            let (edge, gateway) = link(&tasks).await;
            links.add(&label, edge.clone());
            both.push((edge, gateway));
        }
        both[0].0.prove();
        assert!(links.make_room(&label));
        let closed: Vec<_> = both.iter().map(|(edge, _)| edge.is_closed()).collect();
        assert_eq!(closed.iter().position(|closed| *closed), Some(1), "the oldest without proof");
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1);

        links.add(&label, link(&tasks).await.0);
        links.candidates(&label).iter().for_each(EdgeLink::prove);
        assert!(!links.make_room(&label));
        assert!(links.make_room(&TunnelLabel::random()), "others have room of their own");
        tasks.abort();
    }
}
