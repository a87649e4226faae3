//! `sortie hub`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sortie_hub::{Hub, HubConfig, HubError};
use sortie_runtime::TaskSet;

use super::{DataLock, ReadyFile, stop_signal};
use crate::cli::HubArgs;
use crate::error::Failure;

#[derive(Serialize)]
struct Ready {
    api_url: String,
    api_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_ca_file: Option<PathBuf>,
    edge_addr: String,
    edge_ca_file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_url: Option<String>,
    audit_dir: PathBuf,
}

pub(crate) async fn hub(args: HubArgs) -> Result<(), Failure> {
    let _lock = DataLock::take(&args.data_dir)?;
    let ready_file = ReadyFile::prepare(args.ready_file)?;
    let tasks = TaskSet::new();
    let config = HubConfig {
        data_dir: args.data_dir,
        database: args.database.url()?,
        api: args.api,
        edge: args.edge,
        health: args.health,
        base_domain: args.base_domain,
        names: args.name,
        advertised_edge: args.advertise_edge,
        allowed_origins: args.allow_origin,
        insecure_http: args.insecure_http,
        address_share: args.address_share,
        issuer: args.issuer,
        region: args.region,
        limits: args.limits.limits(),
        mcp: args.mcp.config(),
        models: args.models,
        audit: args.audit.config()?,
    };
    let hub = Hub::start(config, &tasks).await.map_err(|error| match error {
        HubError::Nameless(_) => Failure::usage(error),
        _ => Failure::failed(error),
    })?;
    tracing::info!(api = hub.api_url, edge = hub.edge_addr, "the hub serves");
    ready_file.write(&Ready {
        api_url: hub.api_url.clone(),
        api_key: hub.api_key.expose().to_owned(),
        api_ca_file: hub.api_ca_file.clone(),
        edge_addr: hub.edge_addr.clone(),
        edge_ca_file: hub.edge_ca_file.clone(),
        health_url: hub.health_addr.map(|addr| format!("http://{addr}")),
        audit_dir: hub.audit_dir.clone(),
    })?;
    stop_signal().await?;
    drop(ready_file);
    if !tasks.shutdown(Duration::from_secs(args.shutdown_timeout)).await {
        tracing::warn!("calls were still running at the deadline and were cut");
    }
    hub.close().await;
    Ok(())
}
