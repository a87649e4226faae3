//! The sinks of a log, and the vaults that their secrets are in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sortie_audit::Log;
use sortie_credentials::{Source, Vault, VaultSpec};
use sortie_runtime::TaskSet;

use crate::{SinkSpec, Sinks, StartError};

/// How long what is left may be delivered when the log is closed.
const LAST: Duration = Duration::from_secs(5);

/// Sinks with vaults of their own, so that they outlive all that the log is about, and deliver the record of its end.
#[derive(Debug)]
pub struct Outlets {
    sinks: Sinks,
    vaults: BTreeMap<String, Arc<Vault>>,
}

/// Why sinks cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// A vault cannot be used.
    #[error("vault `{0}`: {1}")]
    Vault(String, String),
    /// A sink cannot.
    #[error(transparent)]
    Sink(#[from] StartError),
}

impl Outlets {
    /// Begins to deliver; of the vaults only those are used that a sink names. The tasks end with [`Outlets::close`], or
    /// with the value. Blocks: reads files.
    ///
    /// # Errors
    /// Something that a sink needs is not there, or its cursor is not one of this log.
    pub fn start(log: &Log, specs: &[SinkSpec], vaults: &BTreeMap<String, VaultSpec>) -> Result<Self, OutletError> {
        let tasks = TaskSet::new();
        let named = |vault: &str| specs.iter().filter_map(SinkSpec::credential).any(|one| is_in(one.source(), vault));
        let mut started = BTreeMap::new();
        for (name, spec) in vaults.iter().filter(|(name, _)| named(name)) {
            let vault = Vault::start(spec.clone(), &tasks).map_err(|what| OutletError::Vault(name.clone(), what))?;
            started.insert(name.clone(), Arc::new(vault));
        }
        let sinks = Sinks::start(log, specs.to_vec(), &started, &tasks)?;
        Ok(Self { sinks, vaults: started })
    }

    /// The sinks.
    pub fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Delivers what there is of a log that was closed, for some seconds at most.
    pub async fn close(&self) {
        self.sinks.close(LAST).await;
        for vault in self.vaults.values() {
            vault.close().await;
        }
    }
}

fn is_in(source: &Source, vault: &str) -> bool {
    matches!(source, Source::Vault(secret) if secret.server == vault)
}
