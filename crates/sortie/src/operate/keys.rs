//! `sortie keys`.

use sortie_api::{CreateKey, CreatedKey, Grant, IdentityRotation, Key, KeyKind, RotateIdentity};

use super::time;
use crate::cli::{HubAccess, KeysCommand};
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

pub(crate) async fn run(command: KeysCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        KeysCommand::List => {
            let keys: Vec<Key> = hub.all("/v1/sortie/keys?include_archived=true").await?;
            output::list(output, &keys, &["id", "kind", "name", "may call", "last used", "archived"], |key| {
                vec![
                    key.id.to_string(),
                    key.kind.as_str().to_owned(),
                    key.name.to_string(),
                    grants(key),
                    time(key.last_used_at),
                    time(key.archived_at),
                ]
            })
        }
        KeysCommand::Create { name, manage, role, grant, expires_at, workspace, agent, user } => {
            let grants = grant.iter().map(|text| parse_grant(text)).collect::<Result<_, _>>()?;
            let kind = if manage { KeyKind::Manage } else { KeyKind::Use };
            let name = name.parse().map_err(Failure::usage)?;
            let agent = agent.map(|agent| agent.parse().map_err(Failure::usage)).transpose()?;
            let user = user.map(|user| user.parse().map_err(Failure::usage)).transpose()?;
            let body = CreateKey { kind, role, name, expires_at, grants, agent, user, workspace_id: workspace };
            let made: CreatedKey = hub.post("/v1/sortie/keys", &body).await?;
            output::one(
                output,
                &made,
                &[
                    ("id", made.key.id.to_string()),
                    ("kind", made.key.kind.as_str().to_owned()),
                    ("role", made.key.role.map_or("", sortie_api::KeyRole::as_str).to_owned()),
                    ("workspace", made.key.workspace_id.to_string()),
                    ("may call", grants_or_all(&made.key)),
                    ("secret", made.secret.expose().to_owned()),
                ],
            )?;
            if output == Style::Table {
                eprintln!("The secret is shown this once.");
            }
            Ok(())
        }
        KeysCommand::RotateIdentity { after } => {
            let after_seconds = u32::try_from(after.as_secs()).map_err(Failure::usage)?;
            let body = RotateIdentity { after_seconds };
            let rotation: IdentityRotation = hub.post("/v1/sortie/identity/rotate", &body).await?;
            output::one(
                output,
                &rotation,
                &[
                    ("new key", format!("{}, signs from {}", rotation.kid, rotation.signs_from)),
                    ("old key", format!("{}, verifies until {}", rotation.old_kid, rotation.old_verifies_until)),
                ],
            )
        }
        KeysCommand::Archive { key } => {
            let key: Key = hub.post(&format!("/v1/sortie/keys/{key}/archive"), &serde_json::json!({})).await?;
            output::one(output, &key, &[("id", key.id.to_string()), ("archived", time(key.archived_at))])
        }
    }
}

fn parse_grant(text: &str) -> Result<Grant, Failure> {
    let (tunnel, route) = match text.split_once('/') {
        Some((tunnel, route)) => (tunnel, Some(route.parse().map_err(Failure::usage)?)),
        None => (text, None),
    };
    Ok(Grant { tunnel_id: tunnel.parse().map_err(Failure::usage)?, route })
}

fn grants(key: &Key) -> String {
    let one = |grant: &Grant| match &grant.route {
        Some(route) => format!("{}/{route}", grant.tunnel_id),
        None => grant.tunnel_id.to_string(),
    };
    key.grants.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn grants_or_all(key: &Key) -> String {
    if key.kind == KeyKind::Manage { "everything in the workspace".to_owned() } else { grants(key) }
}
