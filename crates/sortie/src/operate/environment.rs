//! `sortie environments`, but for keys and checks.

use serde_json::json;
use sortie_api::{DeletedEnvironment, Environment};

use super::resources::{PAGE, body, of_archived};
use super::{text, time};
use crate::cli::EnvironmentCommand;
use crate::client::Hub;
use crate::error::Failure;
use crate::output;
use crate::output::Style;

const PATH: &str = "/v1/environments";

pub(super) async fn run(hub: &Hub, command: EnvironmentCommand, output: Style) -> Result<(), Failure> {
    match command {
        EnvironmentCommand::List { archived } => {
            let all: Vec<Environment> = hub.all_by(PAGE, &of_archived(PATH, archived)).await?;
            output::list(output, &all, &["id", "name", "type", "created", "archived"], |one| {
                vec![
                    one.id.to_string(),
                    one.definition.name.clone(),
                    one.definition.config.kind().to_owned(),
                    one.created_at.to_string(),
                    time(one.archived_at),
                ]
            })
        }
        EnvironmentCommand::Get { environment } => {
            let one: Environment = hub.get(&format!("{PATH}/{environment}")).await?;
            show(output, &one)
        }
        EnvironmentCommand::Create { name, description } => {
            let sent = json!({"name": name, "description": description, "config": {"type": "self_hosted"}});
            let made: Environment = hub.post(PATH, &sent).await?;
            show(output, &made)
        }
        EnvironmentCommand::Update { environment, body: from } => {
            let changed: Environment = hub.post(&format!("{PATH}/{environment}"), &body(&from)?).await?;
            show(output, &changed)
        }
        EnvironmentCommand::Archive { environment } => {
            let one: Environment = hub.post(&format!("{PATH}/{environment}/archive"), &json!({})).await?;
            show(output, &one)
        }
        EnvironmentCommand::Delete { environment } => {
            let deleted: DeletedEnvironment = hub.delete(&format!("{PATH}/{environment}")).await?;
            output::one(output, &deleted, &[("deleted", deleted.id.to_string())])
        }
    }
}

fn show(output: Style, environment: &Environment) -> Result<(), Failure> {
    let definition = &environment.definition;
    output::one(
        output,
        environment,
        &[
            ("id", environment.id.to_string()),
            ("name", definition.name.clone()),
            ("type", definition.config.kind().to_owned()),
            ("description", text(definition.description.as_ref())),
            ("created", environment.created_at.to_string()),
            ("archived", time(environment.archived_at)),
        ],
    )
}
