//! `cargo xtask lint`.

use anyhow::Result;

use crate::repo::{Repo, cargo, run};
use crate::tidy;

/// Format, tidiness, clippy: the quick ones first.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    run("cargo fmt --check", cargo(repo).args(["fmt", "--all", "--check"]))?;
    tidy::check(repo)?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run("cargo clippy", cargo(repo).args(clippy))
}
