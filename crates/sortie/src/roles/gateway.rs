//! `sortie gateway`.

use serde::Serialize;
use sortie_gateway::{Gateway, GatewayConfig, GatewayError, Setup};
use sortie_runtime::TaskSet;

use super::{DataLock, ReadyFile, local_upstreams, stop_signal};
use crate::cli::GatewayArgs;
use crate::error::Failure;

#[derive(Serialize)]
struct Ready {
    #[serde(skip_serializing_if = "Option::is_none")]
    health_url: Option<String>,
    domain: String,
    routes: Vec<String>,
}

/// The log filter of the configuration file, which is needed before anything is logged.
pub(crate) fn log(args: &GatewayArgs) -> Result<String, Failure> {
    GatewayConfig::load(&args.config).map(|config| config.log).map_err(Failure::usage)
}

pub(crate) async fn gateway(args: GatewayArgs) -> Result<(), Failure> {
    let _lock = DataLock::take(&args.data_dir)?;
    let ready_file = ReadyFile::prepare(args.ready_file)?;
    let config = GatewayConfig::load(&args.config).map_err(Failure::usage)?;
    let setup = Setup::load(&args.setup_dir).map_err(Failure::usage)?;
    let domain = setup.domain().to_string();
    let routes = config.routes.keys().map(ToString::to_string).collect();
    let tasks = TaskSet::new();
    let started = Gateway::start(config, setup, args.edge, args.health, local_upstreams(), tasks.clone()).await;
    let gateway = started.map_err(|error| match error {
        // The port is somebody else's; everything else is a setting or a file that it names.
        GatewayError::Health { .. } => Failure::failed(error),
        _ => Failure::usage(error),
    })?;
    let ready = Ready { health_url: gateway.health_addr().map(|addr| format!("http://{addr}")), domain, routes };
    tokio::select! {
        stopped = stop_signal() => stopped?,
        () = gateway.ready() => {
            tracing::info!("the gateway serves");
            ready_file.write(&ready)?;
            stop_signal().await?;
        }
    }
    drop(ready_file);
    gateway.drain().await;
    if !tasks.shutdown(gateway.shutdown_timeout()).await {
        tracing::warn!("calls were still running at the deadline and were cut");
    }
    Ok(())
}
