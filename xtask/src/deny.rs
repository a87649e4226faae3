//! `cargo xtask deny`: what we depend on, against `deny.toml`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::repo::{Repo, cargo, program, run};

/// The version that is installed where there is none.
const VERSION: &str = "0.20.2";

/// Bans, licences and sources always; advisories when their database can be fetched, and a plain word when not.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    let deny = installed(repo)?;
    let mut offline = Command::new(&deny);
    offline.args(["--locked", "--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    run("cargo deny: bans, licenses, sources", offline.current_dir(&repo.root))?;

    eprintln!("==> cargo deny: advisories");
    let mut online = Command::new(&deny);
    online.args(["--locked", "--workspace", "check", "--hide-inclusion-graph", "advisories"]);
    let checked = online.current_dir(&repo.root).output().context("cargo deny")?;
    let said = String::from_utf8_lossy(&checked.stderr);
    if checked.status.success() {
        eprint!("{said}");
        Ok(())
    } else if said.contains("failed to fetch advisory database") || said.contains("failed to load advisory database") {
        eprintln!("advisories were NOT checked: the advisory database could not be fetched from here");
        Ok(())
    } else {
        eprint!("{said}");
        bail!("cargo deny found advisories ({})", checked.status);
    }
}

fn installed(repo: &Repo) -> Result<PathBuf> {
    if let Some(deny) = program("cargo-deny") {
        return Ok(deny);
    }
    let deny = repo.tools().join("bin/cargo-deny");
    if !deny.is_file() {
        let build = repo.tools().join("build");
        let mut install = cargo(repo);
        install.args(["install", "cargo-deny", "--version", VERSION, "--locked", "--root"]).arg(repo.tools());
        // A folder of its own: the dependencies of tools are not ours.
        run("cargo install cargo-deny (minutes, once)", install.env("CARGO_TARGET_DIR", &build))?;
        fs::remove_dir_all(&build).with_context(|| build.display().to_string())?;
    }
    Ok(deny)
}
