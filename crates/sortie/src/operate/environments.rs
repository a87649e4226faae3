//! `sortie environments`.

use std::time::{Duration, Instant};

use sortie_api::{CreateEnvironmentKey, CreatedKey, Healthcheck, HealthcheckOutcome, Key};
use sortie_ids::EnvironmentId;

use super::{environment, text, time};
use crate::cli::{EnvironmentKeysCommand, EnvironmentsCommand, HubAccess};
use crate::client::Hub;
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

/// How often it is asked how a check went.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Longer than a check waits for its answer.
const GIVE_UP: Duration = Duration::from_secs(70);

pub(crate) async fn run(command: EnvironmentsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        EnvironmentsCommand::Of(command) => environment::run(&hub, command, output).await,
        EnvironmentsCommand::Keys(command) => keys(&hub, command, output).await,
        EnvironmentsCommand::Check { environment } => check(&hub, &environment, output).await,
    }
}

async fn keys(hub: &Hub, command: EnvironmentKeysCommand, output: Style) -> Result<(), Failure> {
    let path = |environment: &EnvironmentId| format!("/v1/sortie/environments/{environment}/keys");
    match command {
        EnvironmentKeysCommand::List { environment } => {
            let keys: Vec<Key> = hub.all(&format!("{}?include_archived=true", path(&environment))).await?;
            output::list(output, &keys, &["id", "name", "expires", "last used", "archived"], |key| {
                vec![
                    key.id.to_string(),
                    key.name.to_string(),
                    time(key.expires_at),
                    time(key.last_used_at),
                    time(key.archived_at),
                ]
            })
        }
        EnvironmentKeysCommand::Create { environment, name, expires_at } => {
            let body = CreateEnvironmentKey { name: name.parse().map_err(Failure::usage)?, expires_at };
            let made: CreatedKey = hub.post(&path(&environment), &body).await?;
            output::one(
                output,
                &made,
                &[
                    ("id", made.key.id.to_string()),
                    ("environment", environment.to_string()),
                    ("expires", time(made.key.expires_at)),
                    ("secret", made.secret.expose().to_owned()),
                ],
            )?;
            if output == Style::Table {
                eprintln!("The secret is shown this once.");
            }
            Ok(())
        }
        EnvironmentKeysCommand::Archive { environment, key } => {
            let path = format!("{}/{key}/archive", path(&environment));
            let key: Key = hub.post(&path, &serde_json::json!({})).await?;
            output::one(output, &key, &[("id", key.id.to_string()), ("archived", time(key.archived_at))])
        }
    }
}

/// Asks the workers of an environment for an answer, and waits for it.
async fn check(hub: &Hub, environment: &EnvironmentId, output: Style) -> Result<(), Failure> {
    let path = format!("/v1/sortie/environments/{environment}/healthcheck");
    let mut check: Healthcheck = hub.post(&path, &serde_json::json!({})).await?;
    if output == Style::Table {
        eprintln!("Waiting for a worker to answer, up to a minute.");
    }
    let end = Instant::now() + GIVE_UP;
    while check.outcome == HealthcheckOutcome::Waiting && Instant::now() < end {
        tokio::time::sleep(ASK_EVERY).await;
        check = hub.get(&format!("{path}/{}", check.id)).await?;
    }
    let passed = check.outcome == HealthcheckOutcome::Passed;
    let outcome = if passed { "a worker answered" } else { "no worker answered" };
    let shown =
        [("outcome", outcome.to_owned()), ("worker", text(check.worker_id.clone())), ("ended", time(check.ended_at))];
    output::one(output, &check, &shown)?;
    if passed { Ok(()) } else { Err(Failure::failed(format!("no worker of {environment} answered within a minute"))) }
}
