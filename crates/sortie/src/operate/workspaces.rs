//! `sortie workspaces`.

use sortie_api::{CreateWorkspace, Workspace};

use crate::cli::{HubAccess, WorkspacesCommand};
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

pub(crate) async fn run(command: WorkspacesCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        WorkspacesCommand::List => {
            let workspaces: Vec<Workspace> = hub.all("/v1/sortie/workspaces").await?;
            output::list(output, &workspaces, &["id", "name", "default", "created"], |one| {
                let default = if one.is_default { "yes" } else { "no" };
                vec![one.id.to_string(), one.name.to_string(), default.to_owned(), one.created_at.to_string()]
            })
        }
        WorkspacesCommand::Create { name } => {
            let body = CreateWorkspace { name: name.parse().map_err(Failure::usage)? };
            let made: Workspace = hub.post("/v1/sortie/workspaces", &body).await?;
            output::one(output, &made, &[("id", made.id.to_string()), ("name", made.name.to_string())])
        }
    }
}
