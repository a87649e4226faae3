//! `cargo xtask lint`.

use anyhow::Result;

use crate::repo::{Repo, cargo, run};
use crate::tidy;

/// Format, tidiness, clippy: the quick ones first.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    run("cargo fmt --check", cargo(repo).args(["fmt", "--all", "--check"]))?;
    // A workspace of its own; its code is built only where the nightly compiler is.
    let targets = ["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"];
    run("cargo fmt --check of the fuzz targets", cargo(repo).args(targets))?;
    tidy::check(repo)?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run("cargo clippy", cargo(repo).args(clippy))
}
