//! The project's chores, the same by hand and in CI: `cargo xtask check|test|peers|lint|deny|docs|fuzz|bench|ci`.
//! It never changes tracked files, and writes only below the target folder.

mod bench;
mod deny;
mod fuzz;
mod lint;
mod repo;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::repo::{Repo, cargo, run};
use crate::tools::Peers;

const USAGE: &str = "usage: cargo xtask TASK

  check          cargo check of everything
  test [ARGS]    installs the test peers, builds the workspace, runs all tests; ARGS go to the test runner
  peers          installs the test peers only, and prints the variables that name them, for a shell to read
  lint           rustfmt, clippy with warnings as errors, and the tidiness rules
  deny           licences, banned crates, sources and advisories of the dependencies
  docs           the reference documentation, with warnings as errors
  fuzz [TARGET]  runs the fuzz targets, 60 s each; --seconds N for another time
  bench tunnel   throughput, latency and CPU per request beside peers; `bench --help` for its options
  bench policy   what a decision costs, beside Cedar alone
  ci             lint, docs, deny, test, fuzz";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match perform(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(args: &[String]) -> Result<()> {
    let repo = Repo::find()?;
    match args.split_first().map(|(task, rest)| (task.as_str(), rest)) {
        Some(("check", [])) => run("cargo check", cargo(&repo).args(["check", "--workspace", "--all-targets"])),
        Some(("test", rest)) => {
            let summary = test::run_all(&repo, rest)?;
            println!("{summary}");
            Ok(())
        }
        Some(("peers", [])) => peers(&repo),
        Some(("lint", [])) => lint::run_all(&repo),
        Some(("deny", [])) => deny::run_all(&repo),
        Some(("docs", [])) => docs(&repo),
        Some(("fuzz", rest)) => fuzz::run_all(&repo, rest),
        Some(("bench", rest)) => bench::run_all(&repo, rest),
        Some(("ci", [])) => ci(&repo),
        Some(("help" | "--help" | "-h", _)) => {
            println!("{USAGE}");
            Ok(())
        }
        Some((task, _)) => bail!("`{task}` is not a task, or does not take these arguments\n{USAGE}"),
        None => bail!("no task given\n{USAGE}"),
    }
}

/// For a single test run by hand: `eval "$(cargo xtask peers)"`.
fn peers(repo: &Repo) -> Result<()> {
    let peers = Peers::install(repo)?;
    for missing in &peers.missing {
        eprintln!("    missing: {missing}");
    }
    for (variable, path) in &peers.variables {
        println!("export {variable}='{}'", path.display());
    }
    Ok(())
}

fn docs(repo: &Repo) -> Result<()> {
    let mut command = cargo(repo);
    command.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
    run("cargo doc", &mut command)
}

/// All checks in order. The first failure ends it, but the table of what ran is always printed, and after it, as the
/// last line, the summary of the test runner.
fn ci(repo: &Repo) -> Result<()> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut timed = |name, task: &mut dyn FnMut() -> Result<()>| {
        let begin = Instant::now();
        let done = task();
        times.push((name, begin.elapsed()));
        done
    };
    let (mut summary, mut unfuzzed) = (None, None);
    let done = timed("lint", &mut || lint::run_all(repo))
        .and_then(|()| timed("docs", &mut || docs(repo)))
        .and_then(|()| timed("deny", &mut || deny::run_all(repo)))
        .and_then(|()| {
            timed("test", &mut || {
                summary = Some(test::run_all(repo, &[])?);
                Ok(())
            })
        })
        .and_then(|()| {
            timed("fuzz", &mut || {
                unfuzzed = fuzz::in_turn(repo)?;
                Ok(())
            })
        });
    println!("\n{:<8} {:>9}", "task", "seconds");
    for (index, (name, spent)) in times.iter().enumerate() {
        let failed = if done.is_err() && index + 1 == times.len() { "  FAILED" } else { "" };
        println!("{name:<8} {:>9.1}{failed}", spent.as_secs_f64());
    }
    if let Some(reason) = unfuzzed {
        println!("1 skipped:\n  fuzz: skipped: host: {reason}");
    }
    if let Some(summary) = summary {
        println!("{summary}");
    }
    done
}
