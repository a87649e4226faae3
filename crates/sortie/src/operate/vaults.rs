//! `sortie vaults`.

use serde_json::json;
use sortie_api::{Credential, DeletedCredential, DeletedVault, Vault};
use sortie_ids::VaultId;

use super::resources::{PAGE, body, of_archived};
use super::{text, time};
use crate::cli::{CredentialsCommand, HubAccess, VaultsCommand};
use crate::client::Hub;
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

const PATH: &str = "/v1/vaults";

pub(crate) async fn run(command: VaultsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        VaultsCommand::List { archived } => {
            let vaults: Vec<Vault> = hub.all_by(PAGE, &of_archived(PATH, archived)).await?;
            output::list(output, &vaults, &["id", "name", "created", "archived"], |vault| {
                vec![
                    vault.id.to_string(),
                    vault.display_name.to_string(),
                    vault.created_at.to_string(),
                    time(vault.archived_at),
                ]
            })
        }
        VaultsCommand::Get { vault } => {
            let vault: Vault = hub.get(&format!("{PATH}/{vault}")).await?;
            show(output, &vault)
        }
        VaultsCommand::Create { name } => {
            let made: Vault = hub.post(PATH, &json!({"display_name": name})).await?;
            show(output, &made)
        }
        VaultsCommand::Update { vault, body: from } => {
            let changed: Vault = hub.post(&format!("{PATH}/{vault}"), &body(&from)?).await?;
            show(output, &changed)
        }
        VaultsCommand::Archive { vault } => {
            let vault: Vault = hub.post(&format!("{PATH}/{vault}/archive"), &json!({})).await?;
            show(output, &vault)
        }
        VaultsCommand::Delete { vault } => {
            let deleted: DeletedVault = hub.delete(&format!("{PATH}/{vault}")).await?;
            output::one(output, &deleted, &[("deleted", deleted.id.to_string())])
        }
        VaultsCommand::Credentials(command) => credentials(&hub, command, output).await,
    }
}

async fn credentials(hub: &Hub, command: CredentialsCommand, output: Style) -> Result<(), Failure> {
    let all = |vault: &VaultId| format!("{PATH}/{vault}/credentials");
    match command {
        CredentialsCommand::List { vault, archived } => {
            let credentials: Vec<Credential> = hub.all_by(PAGE, &of_archived(&all(&vault), archived)).await?;
            output::list(output, &credentials, &["id", "type", "for", "name", "archived"], |credential| {
                let auth = &credential.definition.auth;
                vec![
                    credential.id.to_string(),
                    auth.kind().to_owned(),
                    auth.place(),
                    text(credential.definition.display_name.as_ref()),
                    time(credential.archived_at),
                ]
            })
        }
        CredentialsCommand::Get { vault, credential } => {
            let credential: Credential = hub.get(&format!("{}/{credential}", all(&vault))).await?;
            show_credential(output, &credential)
        }
        CredentialsCommand::Create { vault, body: from } => {
            let made: Credential = hub.post(&all(&vault), &body(&from)?).await?;
            show_credential(output, &made)
        }
        CredentialsCommand::Update { vault, credential, body: from } => {
            let changed: Credential = hub.post(&format!("{}/{credential}", all(&vault)), &body(&from)?).await?;
            show_credential(output, &changed)
        }
        CredentialsCommand::Archive { vault, credential } => {
            let credential: Credential = hub.post(&format!("{}/{credential}/archive", all(&vault)), &json!({})).await?;
            show_credential(output, &credential)
        }
        CredentialsCommand::Delete { vault, credential } => {
            let deleted: DeletedCredential = hub.delete(&format!("{}/{credential}", all(&vault))).await?;
            output::one(output, &deleted, &[("deleted", deleted.id.to_string())])
        }
    }
}

fn show(output: Style, vault: &Vault) -> Result<(), Failure> {
    output::one(
        output,
        vault,
        &[
            ("id", vault.id.to_string()),
            ("name", vault.display_name.to_string()),
            ("created", vault.created_at.to_string()),
            ("archived", time(vault.archived_at)),
        ],
    )
}

fn show_credential(output: Style, credential: &Credential) -> Result<(), Failure> {
    let auth = &credential.definition.auth;
    output::one(
        output,
        credential,
        &[
            ("id", credential.id.to_string()),
            ("vault", credential.vault_id.to_string()),
            ("type", auth.kind().to_owned()),
            ("for", auth.place()),
            ("name", text(credential.definition.display_name.as_ref())),
            ("archived", time(credential.archived_at)),
        ],
    )
}
