//! Where hub and gateway spend their time under load, by perf's timer (it needs no hardware counters).

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sortie_testkit::Program;

use super::targets::{Fleet, Kind};
use crate::repo::program;

/// Symbols that are shown per process and kind of load.
const SHOWN: usize = 30;

/// Records both processes under each kind of load and prints the symbols with the most time of their own.
pub(crate) async fn record(fleet: &Fleet, lasting: Duration) -> Result<()> {
    let Some(ours) = &fleet.ours else { bail!("there is nothing of ours to profile: hub and gateway do not run") };
    let perf = program("perf").context("perf is missing; install linux-perf")?;
    let dir = tempfile::tempdir().context("a temporary folder")?;
    for (kind, what) in [(Kind::Http, "HTTP"), (Kind::Mcp, "MCP")] {
        let target = fleet.targets.iter().find(|target| target.name == "sortie" && target.kind == kind);
        let Some(target) = target else { continue };
        for (role, process) in [("hub", &ours.hub), ("gateway", &ours.gateway)] {
            let file = dir.path().join(format!("{what}-{role}.perf"));
            let pids: Vec<String> = process.pids().iter().map(u32::to_string).collect();
            let recorder = Program::new(&perf).args(["record", "-q", "-g", "-e", "cpu-clock", "-F", "999", "-o"]);
            let seconds = lasting.as_secs_f64().to_string();
            let recorder = recorder.arg(&file).arg("-p").arg(pids.join(",")).args(["--", "sleep", &seconds]);
            let mut recording = recorder.spawn()?;
            let connections = target.connections.iter().copied().max().unwrap_or(1);
            target.load(connections, lasting).await?;
            let status = recording.exit(lasting + Duration::from_secs(30)).await?;
            if !status.success() {
                bail!("perf record failed ({status}):\n{}", recording.output());
            }
            println!("\n{what} c={connections}, {role}: time of its own by symbol");
            print!("{}", symbols(&perf, &file)?);
        }
    }
    Ok(())
}

fn symbols(perf: &std::path::Path, file: &std::path::Path) -> Result<String> {
    let options = ["report", "--stdio", "--no-children", "-g", "none", "--percent-limit", "0.3", "-i"];
    let mut report = Command::new(perf);
    let output = report.args(options).arg(file).args(["--sort", "overhead,symbol"]).output().context("perf report")?;
    if !output.status.success() {
        bail!("perf report failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).take(SHOWN);
    Ok(lines.map(|line| format!("{}\n", line.trim_end_matches([' ', '-']))).collect())
}
