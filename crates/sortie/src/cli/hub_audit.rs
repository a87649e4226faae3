//! The flags about the hub's own audit log.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sortie_gateway::AuditDestinations;
use sortie_hub::{AuditConfig, Durability, OnFailure, PlaceSpec};

use crate::error::Failure;

/// How the hub keeps its records.
#[derive(Args, Debug)]
#[command(next_help_heading = "Audit")]
pub(crate) struct HubAuditArgs {
    /// Where what is done to tunnels, keys and workspaces is recorded [default: audit in the data directory].
    #[arg(long, env = "SORTIE_AUDIT_DIR", value_name = "DIR")]
    audit_dir: Option<PathBuf>,
    /// When a record counts as kept: when the kernel has it, or when the disk does.
    #[arg(long, env = "SORTIE_AUDIT_DURABILITY", value_enum, value_name = "WHEN", default_value_t = AuditDurability::Power)]
    audit_durability: AuditDurability,
    /// What happens to operations whose records cannot be kept.
    #[arg(long, env = "SORTIE_AUDIT_ON_FAILURE", value_enum, value_name = "WHAT", default_value_t = AuditOnFailure::Deny)]
    audit_on_failure: AuditOnFailure,
    /// A directory where its checkpoints are published, such as a mount that can be written once.
    #[arg(long, env = "SORTIE_AUDIT_PUBLISH_DIR", value_name = "DIR")]
    audit_publish_dir: Option<PathBuf>,
    #[command(flatten)]
    destinations: AuditDestinationArgs,
}

/// Where the hub's records go, beside its own log.
#[derive(Args, Debug)]
pub(crate) struct AuditDestinationArgs {
    /// A file with the tables `sinks` and `publish`: where the hub's records are delivered, and its checkpoints published.
    #[arg(long, env = "SORTIE_AUDIT_CONFIG", value_name = "FILE")]
    audit_config: Option<PathBuf>,
}

impl AuditDestinationArgs {
    /// Puts what the file says into the hub's settings.
    pub(crate) fn put(&self, config: AuditConfig) -> Result<AuditConfig, Failure> {
        let Some(file) = &self.audit_config else { return Ok(config) };
        let file = std::path::absolute(file).map_err(Failure::usage)?;
        let destinations = AuditDestinations::load(&file).map_err(Failure::usage)?;
        let problems = destinations.check_files();
        if !problems.is_empty() {
            return Err(Failure::usage(problems.join("\nsortie: ")));
        }
        let AuditDestinations { sinks, mut publish, vaults, .. } = destinations;
        publish.extend(config.publish);
        Ok(AuditConfig { sinks, publish, vaults, ..config })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AuditDurability {
    /// The end of the process loses nothing, a power cut the last moments.
    Process,
    /// A power cut loses nothing either.
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AuditOnFailure {
    /// They are refused.
    Deny,
    /// They are done, and the records that are missing are counted.
    DropAndCount,
}

impl HubAuditArgs {
    /// The settings as the hub takes them.
    ///
    /// # Errors
    /// The file with its destinations cannot be used.
    pub(crate) fn config(&self) -> Result<AuditConfig, Failure> {
        self.destinations.put(AuditConfig {
            dir: self.audit_dir.clone(),
            durability: match self.audit_durability {
                AuditDurability::Process => Durability::Process,
                AuditDurability::Power => Durability::Power,
            },
            on_failure: match self.audit_on_failure {
                AuditOnFailure::Deny => OnFailure::Deny,
                AuditOnFailure::DropAndCount => OnFailure::DropAndCount,
            },
            publish: self.audit_publish_dir.iter().map(|dir| PlaceSpec::dir("dir", dir)).collect(),
            ..AuditConfig::default()
        })
    }
}
