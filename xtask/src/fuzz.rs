//! `cargo xtask fuzz`: builds the targets of `fuzz/` with the nightly compiler and runs each for a while, as many at once
//! as there are cores. Everything that is built or found lies below the target folder; the inputs that every run begins
//! with lie in `fuzz/seeds`.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::repo::{Repo, cargo, program, run};

/// The version of cargo-fuzz that is installed where there is none.
const VERSION: &str = "0.13.2";
/// How long each target runs, in seconds.
const SECONDS: u32 = 60;
/// Longest input, in bytes.
const LONGEST: u32 = 16 * 1024;
/// Longest time for one input, in seconds: all targets are linear.
const SLOWEST: u32 = 10;

const USAGE: &str = "usage: cargo xtask fuzz [--seconds N] [TARGET...]";

/// What a run by hand asks for.
pub(crate) fn run_all(repo: &Repo, args: &[String]) -> Result<()> {
    let (mut seconds, mut wanted) = (SECONDS, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => seconds = args.next().context(USAGE)?.parse().context(USAGE)?,
            "--help" | "-h" => {
                println!("{USAGE}\ntargets: {}", targets(repo)?.join(", "));
                return Ok(());
            }
            option if option.starts_with('-') => bail!("`{option}` is not an option\n{USAGE}"),
            target => wanted.push(target.to_owned()),
        }
    }
    if let Some(missing) = missing() {
        bail!("{missing}");
    }
    fuzz(repo, seconds, wanted)
}

/// The run in CI: `Some` with the reason if it could not be done here.
pub(crate) fn in_turn(repo: &Repo) -> Result<Option<String>> {
    if let Some(missing) = missing() {
        return Ok(Some(missing));
    }
    if let Err(error) = installed(repo) {
        return Ok(Some(format!("cargo-fuzz could not be installed: {error:#}")));
    }
    fuzz(repo, SECONDS, Vec::new()).map(|()| None)
}

/// What has to be there and is not.
fn missing() -> Option<String> {
    let nightly = nightly("rustc").arg("--version").output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        return Some("the nightly compiler is not installed; run: rustup toolchain install nightly".to_owned());
    }
    program("c++").is_none().then(|| "there is no C++ compiler, which libFuzzer needs".to_owned())
}

fn fuzz(repo: &Repo, seconds: u32, wanted: Vec<String>) -> Result<()> {
    let known = targets(repo)?;
    if let Some(unknown) = wanted.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target `{unknown}`; there are: {}", known.join(", "));
    }
    let tool = installed(repo)?;
    let folder = repo.target.join("fuzz");
    let mut build = nightly(tool);
    // Nothing here is unsafe, so the address sanitizer would find nothing that is worth its time.
    build.args(["fuzz", "build", "--sanitizer", "none", "--fuzz-dir"]).arg(repo.root.join("fuzz"));
    run("cargo fuzz build", build.arg("--target-dir").arg(&folder).current_dir(&repo.root))?;

    let queue: VecDeque<String> = if wanted.is_empty() { known } else { wanted }.into();
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(queue.len());
    eprintln!("==> fuzzing {} targets for {seconds} s each, {workers} at once", queue.len());
    let (queue, failures) = (Mutex::new(queue), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(target) = lock(&queue).pop_front() {
                    if let Err(error) = run_target(repo, &target, seconds) {
                        eprintln!("    {target}: {error:#}");
                        lock(&failures).push(target);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failures.is_empty() {
        bail!("fuzzing failed: {}", failures.join(", "));
    }
    Ok(())
}

fn run_target(repo: &Repo, target: &str, seconds: u32) -> Result<()> {
    let folder = repo.target.join("fuzz");
    let (corpus, artifacts) = (folder.join("corpus").join(target), folder.join("artifacts").join(target));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = Command::new(folder.join(host()?).join("release").join(target));
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={LONGEST}"),
        format!("-timeout={SLOWEST}"),
        format!("-artifact_prefix={}/", artifacts.display()),
        "-rss_limit_mb=2048".to_owned(),
        "-print_final_stats=1".to_owned(),
    ]);
    let output = command.arg(&corpus).arg(repo.root.join("fuzz/seeds").join(target)).output().context("not started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let end: Vec<&str> = said.lines().rev().take(40).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        bail!("{}\n{}\nthe input lies in {}", output.status, end.join("\n"), artifacts.display());
    }
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    eprintln!("    {target:<12}{:>12} runs", runs.unwrap_or("?").trim());
    Ok(())
}

/// The names of all targets, which are those of their files.
fn targets(repo: &Repo) -> Result<Vec<String>> {
    let folder = repo.root.join("fuzz/targets");
    let files = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for file in files {
        let path = file.context("fuzz/targets")?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

fn installed(repo: &Repo) -> Result<PathBuf> {
    if let Some(tool) = program("cargo-fuzz") {
        return Ok(tool);
    }
    let tool = repo.tools().join("bin/cargo-fuzz");
    if !tool.is_file() {
        let build = repo.tools().join("build-fuzz");
        let mut install = cargo(repo);
        install.args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--root"]).arg(repo.tools());
        // A folder of its own: the dependencies of tools are not ours.
        run("cargo install cargo-fuzz (minutes, once)", install.env("CARGO_TARGET_DIR", &build))?;
        fs::remove_dir_all(&build).with_context(|| build.display().to_string())?;
    }
    Ok(tool)
}

/// A program under the nightly toolchain, whatever toolchain this one runs under.
fn nightly(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).arg(program);
    for variable in ["CARGO", "CARGO_TARGET_DIR", "RUSTC", "RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command
}

/// The machine's own target triple, below which cargo-fuzz builds.
fn host() -> Result<String> {
    let said = nightly("rustc").arg("-vV").output().context("rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    said.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc names no host")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let repo = Repo::find().expect("repository");
        let manifest = fs::read_to_string(repo.root.join("fuzz/Cargo.toml")).expect("manifest");
        for target in targets(&repo).expect("targets") {
            assert!(
                manifest.contains(&format!("path = \"targets/{target}.rs\"")),
                "{target} is not in fuzz/Cargo.toml"
            );
            let seeds = fs::read_dir(repo.root.join("fuzz/seeds").join(&target));
            assert!(seeds.is_ok_and(|mut seeds| seeds.next().is_some()), "{target} has no seeds");
        }
    }
}
