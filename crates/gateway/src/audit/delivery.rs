//! The sinks of the audit log.

use http::Method;
use sortie_api::{Hop, HopError, List};
use sortie_audit::Log;
use sortie_sinks::{OutletError, Outlets, SinkStatus};

use super::{Audit, NotOpened};
use crate::admin::{Answer, Operation, answering};
use crate::config::GatewayConfig;

/// What the admin socket answers.
pub(crate) static OPERATIONS: &[Operation] = &[Operation {
    method: Method::GET,
    path: "/v1/audit/sinks",
    answer: |shared, _| answering(async move { Answer::json(&List { data: shared.audit.sinks(), next_page: None }) }),
}];

/// Begins to deliver. Blocks.
///
/// # Errors
/// What is missing, with the setting that it is about.
pub(super) fn start(log: &Log, settings: &GatewayConfig) -> Result<Outlets, NotOpened> {
    let sinks = &settings.audit.sinks;
    Outlets::start(log, sinks, &settings.vaults).map_err(|error| match error {
        OutletError::Vault(name, what) => NotOpened::Sink(format!("vault.{name}"), what),
        OutletError::Sink(error) => {
            let at = sinks.iter().position(|sink| sink.name == error.sink()).unwrap_or_default();
            NotOpened::Sink(format!("audit.sinks.{at}"), error.to_string())
        }
    })
}

impl Audit {
    /// Whether something that is recorded may begin.
    ///
    /// # Errors
    /// A sink is too far behind, and the settings have calls refused for that: 503.
    pub(super) fn admits(&self) -> Result<(), HopError> {
        let Some(open) = &self.0 else { return Ok(()) };
        open.outlets.sinks().admits().map_err(|behind| {
            metrics::counter!("sortie_gateway_audit_sink_refusals_total", "sink" => behind.sink.clone()).increment(1);
            let reason = format!("the audit sink `{}` is too far behind, so nothing is forwarded", behind.sink);
            HopError::new(Hop::Audit, reason)
        })
    }

    /// How each sink is doing.
    pub(crate) fn sinks(&self) -> Vec<SinkStatus> {
        self.0.as_ref().map(|open| open.outlets.sinks().status()).unwrap_or_default()
    }

    /// Delivers what is left of a log that was closed, for some seconds at most.
    pub(crate) async fn deliver_rest(&self) {
        if let Some(open) = &self.0 {
            open.outlets.close().await;
        }
    }
}
