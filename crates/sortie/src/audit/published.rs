//! `sortie audit published`, and `verify --published`: what the hub keeps of a gateway's log, out of the gateway's reach.

use std::path::Path;

use sortie_api::{PublishedCheckpoint, Tunnel};
use sortie_audit::{Trusted, VerifyingKey};
use sortie_ids::TunnelId;

use super::verify::plural;
use crate::cli::HubAccess;
use crate::client::Hub;
use crate::error::Failure;
use crate::output::{self, Style};
use crate::profile;

/// Lists what the gateways of a tunnel have published.
pub(crate) async fn list(tunnel: &TunnelId, access: &HubAccess, style: Style) -> Result<(), Failure> {
    let all = of_tunnel(&profile::hub(access)?, tunnel).await?;
    output::list(style, &all, &["log", "records", "root", "received", "continues", "refused"], |one| {
        vec![
            one.origin.clone(),
            one.size.to_string(),
            one.root.chars().take(16).collect(),
            one.received_at.to_string(),
            if one.proven { "proven" } else { "-" }.to_owned(),
            one.refused.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    })
}

/// Adds what was published of the log in a directory to what a verification rests on.
///
/// # Errors
/// Nothing was published of a log with this key: it is none that the hub knows.
pub(crate) async fn trust(
    dir: &Path,
    tunnel: Option<&TunnelId>,
    access: &HubAccess,
    trusted: &mut Trusted,
) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    let origin = super::verify::key_of(dir)?.name().to_owned();
    let tunnels = match tunnel {
        Some(tunnel) => vec![tunnel.clone()],
        None => {
            let all: Vec<Tunnel> = hub.all("/v1/tunnels?include_archived=true").await?;
            all.into_iter().map(|tunnel| tunnel.id).collect()
        }
    };
    let mut published = Vec::new();
    for tunnel in &tunnels {
        published.extend(of_tunnel(&hub, tunnel).await?.into_iter().filter(|one| one.origin == origin));
    }
    let (refused, kept): (Vec<_>, Vec<_>) = published.into_iter().partition(|one| one.refused.is_some());
    if kept.is_empty() {
        return Err(Failure::failed(format!(
            "NOT verified: no checkpoint of {origin} was published to {}, in {}: the log in {} is another one, or its \
             gateway has never reached the hub",
            hub.base(),
            plural(u64::try_from(tunnels.len()).unwrap_or(u64::MAX), "tunnel"),
            dir.display()
        )));
    }
    if let Some(newest) = refused.first() {
        eprintln!(
            "sortie: warning: at {} the hub refused a checkpoint that the key of this log had signed: {}",
            newest.received_at,
            output::printable(newest.refused.as_deref().unwrap_or_default())
        );
    }
    for one in kept {
        let key: VerifyingKey =
            one.key.parse().map_err(|error| Failure::failed(format!("the hub names a key that is none: {error}")))?;
        if !trusted.keys.contains(&key) {
            trusted.keys.push(key);
        }
        trusted.checkpoints.push((format!("published at {}", one.received_at), one.note));
    }
    Ok(())
}

async fn of_tunnel(hub: &Hub, tunnel: &TunnelId) -> Result<Vec<PublishedCheckpoint>, Failure> {
    hub.all(&format!("/v1/sortie/tunnels/{tunnel}/checkpoints")).await
}
