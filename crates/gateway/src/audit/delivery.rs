//! The sinks of the audit log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use sortie_api::{Hop, HopError, List};
use sortie_audit::Log;
use sortie_credentials::{Source, Vault, VaultSpec};
use sortie_runtime::TaskSet;
use sortie_sinks::{Behind, SinkSpec, SinkStatus, Sinks};

use super::{Audit, NotOpened};
use crate::admin::{Answer, Operation, answering};
use crate::config::GatewayConfig;
use crate::credentials::start_vaults;

/// How long what is left may be delivered at the end.
const LAST: Duration = Duration::from_secs(5);

/// What the admin socket answers.
pub(crate) static OPERATIONS: &[Operation] = &[Operation {
    method: Method::GET,
    path: "/v1/audit/sinks",
    answer: |shared, _| answering(async move { Answer::json(&List { data: shared.audit.sinks(), next_page: None }) }),
}];

/// The sinks, with the vaults that their secrets live in.
pub(super) struct Delivery {
    sinks: Sinks,
    vaults: BTreeMap<String, Arc<Vault>>,
}

/// Begins to deliver. The tasks are of a set of their own, since they deliver the record of the end, too; they end with
/// the [`Sinks`]. Blocks.
///
/// # Errors
/// What is missing, with the setting that it is about.
pub(super) fn start(log: &Log, settings: &GatewayConfig) -> Result<Delivery, NotOpened> {
    let (sinks, tasks) = (&settings.audit.sinks, TaskSet::new());
    // Vaults of their own, since those of the routes are closed before the log is.
    let named = |vault: &str| sinks.iter().filter_map(SinkSpec::credential).any(|one| is_in(one.source(), vault));
    let used: BTreeMap<String, VaultSpec> = settings
        .vaults
        .iter()
        .filter(|(name, _)| named(name))
        .map(|(name, spec)| (name.clone(), spec.clone()))
        .collect();
    let missing = |(setting, what): (String, String)| NotOpened::Sink(setting, what);
    let vaults = start_vaults(&used, None, &tasks).map_err(missing)?;
    let started = Sinks::start(log, sinks.clone(), &vaults, &tasks).map_err(|error| {
        let at = sinks.iter().position(|sink| sink.name == error.sink()).unwrap_or_default();
        NotOpened::Sink(format!("audit.sinks.{at}"), error.to_string())
    });
    Ok(Delivery { sinks: started?, vaults })
}

fn is_in(source: &Source, vault: &str) -> bool {
    matches!(source, Source::Vault(secret) if secret.server == vault)
}

impl Delivery {
    /// Why calls are refused, if they are.
    pub(super) fn behind(&self) -> Option<Behind> {
        self.sinks.admits().err()
    }
}

impl Audit {
    /// Whether something that is recorded may begin.
    ///
    /// # Errors
    /// A sink is too far behind, and the settings have calls refused for that: 503.
    pub(super) fn admits(&self) -> Result<(), HopError> {
        let Some(open) = &self.0 else { return Ok(()) };
        open.delivery.sinks.admits().map_err(|behind| {
            metrics::counter!("sortie_gateway_audit_sink_refusals_total", "sink" => behind.sink.clone()).increment(1);
            let reason = format!("the audit sink `{}` is too far behind, so nothing is forwarded", behind.sink);
            HopError::new(Hop::Audit, reason)
        })
    }

    /// How each sink is doing.
    pub(crate) fn sinks(&self) -> Vec<SinkStatus> {
        self.0.as_ref().map(|open| open.delivery.sinks.status()).unwrap_or_default()
    }

    /// Delivers what is left of a log that was closed, for some seconds at most.
    pub(crate) async fn deliver_rest(&self) {
        if let Some(open) = &self.0 {
            open.delivery.sinks.close(LAST).await;
            for vault in open.delivery.vaults.values() {
                vault.close().await;
            }
        }
    }
}
