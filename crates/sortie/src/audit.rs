//! `sortie audit`: what was recorded, and the proof of it. Needs no server, but for what was published to one.

mod args;
mod find;
mod payload;
mod published;
mod sinks;
mod verify;

use std::path::{Path, PathBuf};

use sortie_audit::ReadError;

pub(crate) use self::args::{AuditCommand, TrustArgs};
pub(crate) use self::verify::{check, plural};
use crate::cli::HubAccess;
use crate::error::Failure;
use crate::output::Style;
use crate::profile;

pub(crate) async fn run(command: AuditCommand, access: &HubAccess, style: Style) -> Result<(), Failure> {
    match command {
        AuditCommand::Verify(args) => verify::run(&args, access, style).await,
        AuditCommand::Published { tunnel } => published::list(&tunnel, access, style).await,
        AuditCommand::Tail(args) => find::tail(&args, style).await,
        AuditCommand::Search(args) => find::find(&args, style),
        AuditCommand::Export(args) => find::export(&args),
        AuditCommand::Show { place } => find::show(&place, style),
        AuditCommand::Prove { place } => verify::prove(&place, style),
        AuditCommand::Sinks { data_dir } => sinks::run(data_dir.as_deref(), style).await,
        AuditCommand::Key { dir } => verify::key(dir.as_deref()),
        AuditCommand::Keygen(args) => payload::keygen(&args, style),
        AuditCommand::Decrypt(args) => payload::decrypt(&args),
    }
}

/// The directory that was named, or that of `sortie up`.
pub(crate) fn dir(named: Option<&Path>) -> Result<PathBuf, Failure> {
    match named {
        Some(dir) => Ok(dir.to_owned()),
        None => profile::audit_dir()?.ok_or_else(|| {
            Failure::usage(
                "no audit directory is known: name one, DIR of `audit_dir` in the ready file, or run `sortie up`",
            )
        }),
    }
}

/// A directory that is none is wrong use; all else that goes wrong is not.
pub(crate) fn unread(error: ReadError) -> Failure {
    match error {
        ReadError::NotALog(_) | ReadError::Beyond { .. } => Failure::usage(error),
        error => Failure::failed(error),
    }
}
