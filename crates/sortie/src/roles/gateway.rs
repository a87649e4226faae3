//! `sortie gateway`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sortie_gateway::{Gateway, GatewayConfig, GatewayError, GatewayOptions, Setup};
use sortie_runtime::{ReloadSignal, TaskSet};

use super::{DataLock, ReadyFile, local_upstreams, stop_signal};
use crate::cli::GatewayArgs;
use crate::error::Failure;

#[derive(Serialize)]
struct Ready {
    #[serde(skip_serializing_if = "Option::is_none")]
    health_url: Option<String>,
    /// Where the hosted service's connector hands its traffic over.
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_url: Option<String>,
    domain: String,
    routes: Vec<String>,
    /// The directory of the audit log.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_dir: Option<PathBuf>,
}

pub(crate) async fn gateway(args: GatewayArgs, config: GatewayConfig) -> Result<(), Failure> {
    let mut reloads = ReloadSignal::listen().map_err(|error| Failure::failed(format!("no signals: {error}")))?;
    let _lock = DataLock::take(&args.data_dir)?;
    let ready_file = ReadyFile::prepare(args.ready_file)?;
    let setup = Setup::load(&args.setup_dir).map_err(Failure::usage)?;
    let domain = setup.domain().to_string();
    let routes = config.routes.keys().map(ToString::to_string).collect();
    let tasks = TaskSet::new();
    let options = GatewayOptions {
        edges: args.edge,
        health: args.health,
        local: local_upstreams(),
        data_dir: Some(args.data_dir),
        ..GatewayOptions::default()
    };
    let started = Gateway::start(config, setup, options, tasks.clone()).await;
    let gateway = started.map_err(|error| match error {
        // The port is somebody else's, or the disk is full; everything else is a setting or a file that it names.
        GatewayError::Health { .. }
        | GatewayError::Listen { .. }
        | GatewayError::Admin { .. }
        | GatewayError::Audit { .. } => Failure::failed(error),
        _ => Failure::usage(error),
    })?;
    let ready = Ready {
        health_url: gateway.health_addr().map(|addr| format!("http://{addr}")),
        listen_url: gateway.listen_addr().map(|addr| format!("http://{addr}")),
        domain,
        routes,
        audit_dir: gateway.audit_dir().map(Path::to_owned),
    };
    gateway.watch(args.config);
    let serving = async {
        tokio::select! {
            stopped = stop_signal() => stopped,
            () = gateway.ready() => {
                tracing::info!("the gateway serves");
                ready_file.write(&ready)?;
                stop_signal().await
            }
        }
    };
    tokio::select! {
        stopped = serving => stopped?,
        () = async {
            loop {
                reloads.next().await;
                tracing::info!("SIGHUP: reading the configuration");
                gateway.reload();
            }
        } => {}
    }
    drop(ready_file);
    gateway.drain().await;
    if !tasks.shutdown(gateway.shutdown_timeout()).await {
        tracing::warn!("calls were still running at the deadline and were cut");
    }
    gateway.close().await;
    Ok(())
}
