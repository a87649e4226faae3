//! `cargo xtask deny`: what we depend on, against `deny.toml`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::repo::{Repo, run};
use crate::tools::installed_crate;

/// The version that is installed where there is none.
const VERSION: &str = "0.20.2";

/// Bans, licences and sources always; advisories when their database can be fetched, and a plain word when not.
pub(crate) fn run_all(repo: &Repo) -> Result<()> {
    let deny = installed_crate(repo, "cargo-deny", VERSION, &[])?;
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
