//! Where things are, and how a command is run.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The folders that tasks work with.
#[derive(Debug)]
pub(crate) struct Repo {
    /// The root of the working tree.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Repo {
    /// The tree that this program was built from.
    pub(crate) fn find() -> Result<Self> {
        let here =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = here.parent().context("xtask lies in the root of the repository")?.to_owned();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// Where test peers and tools are installed.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("test-tools")
    }

    /// A path as it is shown: relative to the root where it lies below it.
    pub(crate) fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

/// Cargo, in the root.
pub(crate) fn cargo(repo: &Repo) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&repo.root).env("CARGO_TARGET_DIR", &repo.target);
    command
}

/// Runs a command with its output shown; a failure names it.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("==> {name}");
    let status = command.status().with_context(|| format!("{name}: could not be started"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// The path of a program in `PATH` or in the system's administration folders.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Whether this is a CI run, where a missing tool is a failure.
pub(crate) fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}
