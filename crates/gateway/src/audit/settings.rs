//! Records of settings: what came into force, and what did not.

use std::collections::BTreeMap;

use sortie_audit::{SettingsLoaded, SettingsRefused, kinds};
use sortie_ids::Digest;

use super::{Audit, cut};
use crate::config::GatewayConfig;
use crate::served::{MAX_POLICY, Served, read_up_to};

impl Audit {
    /// These settings are in force. Reads the files. Blocks.
    pub(crate) fn settings_loaded(&self, served: &Served) {
        if !self.is_on() {
            return;
        }
        let (control, config) = (&served.control, &served.config);
        let policies = control.engine.as_ref().map_or(0, |engine| engine.len());
        let loaded = SettingsLoaded {
            files: digests(config),
            policy: control.mode.as_str().to_owned(),
            policy_sha256: control.engine.is_some().then(|| control.text.to_string()),
            policies: u64::try_from(policies).unwrap_or(u64::MAX),
            routes: u64::try_from(config.routes.len()).unwrap_or(u64::MAX),
        };
        self.note(kinds::SETTINGS_LOADED, &loaded);
    }

    /// Settings were refused; those of `config` stay. Reads the files. Blocks.
    pub(crate) fn settings_refused(&self, config: &GatewayConfig, reason: &str) {
        if self.is_on() {
            let refused = SettingsRefused { files: digests(config), reason: cut(reason) };
            self.note(kinds::SETTINGS_REFUSED, &refused);
        }
    }
}

/// The SHA-256 of the file of settings and of those that it names, as far as they can be read.
fn digests(config: &GatewayConfig) -> BTreeMap<String, String> {
    let files = config.files();
    let all = std::iter::once(config.places.path()).chain(files.iter().map(AsRef::as_ref));
    let read = all.filter_map(|path| {
        let bytes = read_up_to(MAX_POLICY, path).ok()?;
        Some((path.display().to_string(), Digest::of(&bytes).to_string()))
    });
    read.collect()
}
