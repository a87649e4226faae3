//! The command line of `sortie audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Say whether the log is what was written. Exit code 1 if it is not.
    Verify(VerifyArgs),
    /// Make a pair of keys, for payloads that records hold sealed.
    Keygen(super::payload::KeygenArgs),
    /// Open the payloads that records hold, one line of JSON each.
    Decrypt(super::payload::DecryptArgs),
}

/// What was kept elsewhere.
#[derive(Args, Debug)]
pub(crate) struct TrustArgs {
    /// The log's key, as `sortie audit key` prints it, or a file with it; may be repeated, for the keys it had before.
    #[arg(long, value_name = "KEY|FILE")]
    pub(crate) key: Vec<String>,
    /// A file with a signed checkpoint of the log that was kept elsewhere; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The audit directory [default: that of `sortie up`].
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
}
