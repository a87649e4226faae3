//! The commands for agents, environments and vaults.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sortie_ids::{AgentId, CredentialId, EnvironmentId, VaultId};

/// Where the JSON of a request is.
#[derive(Args, Debug)]
pub(crate) struct From {
    /// A file with the JSON object; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentsCommand {
    /// List agents in their newest versions, newest first.
    List {
        /// Archived ones, too.
        #[arg(long)]
        archived: bool,
    },
    /// Show an agent.
    Get {
        /// The agent.
        agent: AgentId,
        /// One version of it; the newest, when absent.
        #[arg(long = "at", value_name = "VERSION")]
        version: Option<u32>,
        /// Only what `create --from` and `update --from` take, as JSON.
        #[arg(long)]
        definition: bool,
    },
    /// Make an agent of a JSON definition, such as {"name": "helper", "model": "scripted"}.
    Create {
        #[command(flatten)]
        body: From,
    },
    /// Change an agent by a JSON object; what is left out stays. With `version` in it, only if that is the newest.
    Update {
        /// The agent.
        agent: AgentId,
        #[command(flatten)]
        body: From,
    },
    /// List the versions of an agent, newest first.
    Versions {
        /// The agent.
        agent: AgentId,
    },
    /// Retire an agent for ever; its sessions go on.
    Archive {
        /// The agent.
        agent: AgentId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvironmentCommand {
    /// List environments, newest first.
    List {
        /// Archived ones, too.
        #[arg(long)]
        archived: bool,
    },
    /// Show an environment.
    Get {
        /// The environment.
        environment: EnvironmentId,
    },
    /// Make an environment for workers of one's own.
    Create {
        /// What to call it; no other active environment of the workspace has this name.
        name: String,
        /// What people are told of it.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// Change an environment by a JSON object; what is left out stays.
    Update {
        /// The environment.
        environment: EnvironmentId,
        #[command(flatten)]
        body: From,
    },
    /// Retire an environment for ever; its sessions go on.
    Archive {
        /// The environment.
        environment: EnvironmentId,
    },
    /// Delete an environment that no session is in.
    Delete {
        /// The environment.
        environment: EnvironmentId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VaultsCommand {
    /// List vaults, newest first.
    List {
        /// Archived ones, too.
        #[arg(long)]
        archived: bool,
    },
    /// Show a vault.
    Get {
        /// The vault.
        vault: VaultId,
    },
    /// Make a vault.
    Create {
        /// What to call it.
        name: String,
    },
    /// Change name or metadata of a vault by a JSON object; what is left out stays.
    Update {
        /// The vault.
        vault: VaultId,
        #[command(flatten)]
        body: From,
    },
    /// Retire a vault for ever; the secrets in it are removed.
    Archive {
        /// The vault.
        vault: VaultId,
    },
    /// Delete a vault with all credentials in it.
    Delete {
        /// The vault.
        vault: VaultId,
    },
    /// The credentials in a vault.
    #[command(subcommand)]
    Credentials(CredentialsCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum CredentialsCommand {
    /// List the credentials of a vault, newest first.
    List {
        /// The vault.
        vault: VaultId,
        /// Archived ones, too.
        #[arg(long)]
        archived: bool,
    },
    /// Show a credential, without its secrets.
    Get {
        /// The vault.
        vault: VaultId,
        /// The credential.
        credential: CredentialId,
    },
    /// Put a credential into a vault. Secrets come from the file or from standard input, never from the command line.
    Create {
        /// The vault.
        vault: VaultId,
        #[command(flatten)]
        body: From,
    },
    /// Change a credential by a JSON object; what is left out stays.
    Update {
        /// The vault.
        vault: VaultId,
        /// The credential.
        credential: CredentialId,
        #[command(flatten)]
        body: From,
    },
    /// Retire a credential for ever; its secrets are removed.
    Archive {
        /// The vault.
        vault: VaultId,
        /// The credential.
        credential: CredentialId,
    },
    /// Delete a credential.
    Delete {
        /// The vault.
        vault: VaultId,
        /// The credential.
        credential: CredentialId,
    },
}
