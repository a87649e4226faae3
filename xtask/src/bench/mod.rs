//! `cargo xtask bench idle`: what hub and gateway hold when nothing goes on, and per open stream that says nothing.
//!
//! `cargo xtask bench policy`: what a decision costs, beside Cedar alone over all policies.
//!
//! `cargo xtask bench audit`: what records cost, to those who write and to those who read them, beside plain lines and SQLite.
//!
//! `cargo xtask bench tunnel`: what the way through our processes costs, beside the direct way and beside peers, all in
//! one run, round by round in turns, so that whatever else the machine does hits all of them.
//!
//! `cargo xtask bench gateway`: the same for what the gateway decides about a call: what identity, policy and credential
//! cost beside a bare route, by numbers of policies and callers.

mod backends;
mod control;
mod idle;
mod ours;
mod profile;
mod report;
mod targets;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::repo::{Repo, cargo, run};
use crate::tools::Peers;

use backends::release;
use report::{Format, Report};
use targets::Fleet;

const USAGE: &str = "usage: cargo xtask bench tunnel|gateway|idle|policy|audit [OPTIONS]

  idle measures memory and takes only --output; policy takes none; audit takes --rounds, --seconds and --records

  --rounds N       rounds per target (5)
  --seconds N      seconds per round and target (2)
  --only WORD      only targets with this word in their name; the direct ones and the bare routes are always there
  --output FORMAT  table or json (table)
  --profile        also record where hub and gateway spend their time (needs perf; tunnel only)";

/// The benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bench {
    Tunnel,
    Gateway,
    Idle,
}

/// What the caller asked for.
#[derive(Debug)]
pub(crate) struct Options {
    bench: Bench,
    rounds: usize,
    lasting: Duration,
    only: Option<String>,
    format: Format,
    profile: bool,
}

/// Parses the arguments and runs the benchmark.
pub(crate) fn run_all(repo: &Repo, args: &[String]) -> Result<()> {
    if args == ["policy"] {
        return run("cargo bench", cargo(repo).args(["bench", "--locked", "-p", "sortie-policy", "--bench", "decide"]));
    }
    if let Some((_, rest)) = args.split_first().filter(|(first, _)| *first == "audit") {
        let bench = ["bench", "--locked", "-p", "sortie-audit", "--benches", "--"];
        return run("cargo bench", cargo(repo).args(bench).args(rest));
    }
    let Some(options) = options(args)? else {
        println!("{USAGE}");
        return Ok(());
    };
    if cfg!(debug_assertions) {
        return in_release(repo, args, &options);
    }
    let peers = Peers::install_with_bench(repo)?;
    for missing in &peers.missing {
        eprintln!("    missing: {missing}");
    }
    // One thread: the generator must not take both cores of a small machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).context("signals")?;
        tokio::select! {
            measured = measure(repo, &peers, &options) => measured,
            // The programs are in process groups of their own, so they end only because the fleet is dropped here.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

/// Builds everything as it is shipped, and goes on in the release build of this very program: a load generator without
/// optimisation would measure itself. `sortie` is built alone and plainly, so that the features of others do not
/// change it.
fn in_release(repo: &Repo, args: &[String], options: &Options) -> Result<()> {
    let ours = options.only.as_ref().is_none_or(|only| "sortie".contains(only.as_str()));
    if ours || options.bench != Bench::Tunnel {
        run("cargo build --release", cargo(repo).args(["build", "--release", "--locked"]))?;
    }
    let tools = ["build", "--release", "--locked", "-p", "sortie-testkit", "-p", "xtask"];
    run("cargo build --release of the load generator", cargo(repo).args(tools))?;
    let mut again = Command::new(release(&repo.target, "xtask"));
    run("measuring", again.arg("bench").args(args).env("CARGO_TARGET_DIR", &repo.target).current_dir(&repo.root))
}

async fn measure(repo: &Repo, peers: &Peers, options: &Options) -> Result<()> {
    let only = options.only.as_deref();
    let (mut fleet, held) = match options.bench {
        Bench::Idle => return idle::measure(repo, peers, options.format).await,
        Bench::Tunnel => (Fleet::start(repo, peers, only).await?, Vec::new()),
        Bench::Gateway => control::start(repo, peers, only).await?,
    };
    let mut report = Report::default();
    for round in 1..=options.rounds {
        eprintln!("    round {round} of {}", options.rounds);
        for target in &fleet.targets {
            for connections in target.connections {
                report.add(target, *connections, target.measure(*connections, options.lasting).await?);
            }
        }
    }
    report.held = held.iter().map(control::Held::now).collect();
    report.print(options.format, &fleet.failures)?;
    if options.profile {
        profile::record(&fleet, options.lasting).await?;
    }
    fleet.stop().await;
    if let Some(failure) = fleet.failures.first() {
        bail!("a target could not be measured: {failure}");
    }
    Ok(())
}

fn options(args: &[String]) -> Result<Option<Options>> {
    let mut args = args.iter();
    let bench = match args.next().map(String::as_str) {
        Some("tunnel") => Bench::Tunnel,
        Some("gateway") => Bench::Gateway,
        Some("idle") => Bench::Idle,
        Some("--help" | "-h") => return Ok(None),
        _ => bail!("which benchmark?\n{USAGE}"),
    };
    let lasting = Duration::from_secs(2);
    let mut options = Options { bench, rounds: 5, lasting, only: None, format: Format::Table, profile: false };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse::<usize>().context("--rounds")?.max(1),
            "--seconds" => {
                let seconds: f64 = value()?.parse().context("--seconds")?;
                options.lasting = Duration::try_from_secs_f64(seconds).context("--seconds")?;
            }
            "--only" => options.only = Some(value()?.clone()),
            "--output" => options.format = value()?.parse()?,
            "--profile" => options.profile = true,
            "--help" | "-h" => return Ok(None),
            _ => bail!("`{arg}` is not an option\n{USAGE}"),
        }
    }
    Ok(Some(options))
}
