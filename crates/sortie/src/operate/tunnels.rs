//! `sortie tunnels`.

use sortie_api::{CreateTunnel, RotateToken, Tunnel, TunnelToken};

use super::{text, time};
use crate::cli::{HubAccess, TunnelsCommand};
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

pub(crate) async fn run(command: TunnelsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        TunnelsCommand::List { include_archived } => {
            let tunnels: Vec<Tunnel> = hub.all(&format!("/v1/tunnels?include_archived={include_archived}")).await?;
            output::list(output, &tunnels, &["id", "name", "domain", "created", "archived"], |tunnel| {
                vec![
                    tunnel.id.to_string(),
                    text(tunnel.display_name.as_ref()),
                    tunnel.domain.clone(),
                    tunnel.created_at.to_string(),
                    time(tunnel.archived_at),
                ]
            })
        }
        TunnelsCommand::Create { display_name } => {
            let display_name = display_name.map(|name| name.parse()).transpose().map_err(Failure::usage)?;
            show(output, &hub.post("/v1/tunnels", &CreateTunnel { display_name }).await?)
        }
        TunnelsCommand::Get { tunnel } => show(output, &hub.get(&format!("/v1/tunnels/{tunnel}")).await?),
        TunnelsCommand::Archive { tunnel } => {
            show(output, &hub.post(&format!("/v1/tunnels/{tunnel}/archive"), &serde_json::json!({})).await?)
        }
        TunnelsCommand::RevealToken { tunnel } => {
            let path = format!("/v1/tunnels/{tunnel}/reveal_token");
            show_token(output, &hub.post(&path, &serde_json::json!({})).await?)
        }
        TunnelsCommand::RotateToken { tunnel, reason } => {
            show_token(output, &hub.post(&format!("/v1/tunnels/{tunnel}/rotate_token"), &RotateToken { reason }).await?)
        }
    }
}

fn show(output: Style, tunnel: &Tunnel) -> Result<(), Failure> {
    output::one(
        output,
        tunnel,
        &[
            ("id", tunnel.id.to_string()),
            ("name", text(tunnel.display_name.as_ref())),
            ("domain", tunnel.domain.clone()),
            ("created", tunnel.created_at.to_string()),
            ("archived", time(tunnel.archived_at)),
        ],
    )
}

fn show_token(output: Style, token: &TunnelToken) -> Result<(), Failure> {
    output::one(output, token, &[("id", token.id.to_string()), ("token", token.value.expose().to_owned())])
}
