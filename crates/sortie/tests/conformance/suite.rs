//! The official conformance suite, and what it reports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sortie_testkit::{Process, Program, TempHome, tool};

use crate::interop::LATE;

/// Between the name of a scenario and the end of its folder's name: `-2026-11-22T16-05-45-108Z`.
const TIME: usize = 25;

/// The suite as it is installed.
pub(crate) struct Suite {
    node: PathBuf,
    script: PathBuf,
}

/// A run that is on its way.
pub(crate) struct Run {
    process: Process,
    results: PathBuf,
    /// Which way it takes.
    pub(crate) way: &'static str,
}

/// What a run found.
#[derive(Debug)]
pub(crate) struct Report {
    /// One line for each scenario in the order of the run, then the sum, then the scenarios that are not scored.
    pub(crate) lines: Vec<String>,
    /// For each scenario its checks in order: status, id, name, description, and what was wrong, if anything.
    pub(crate) checks: BTreeMap<String, Vec<String>>,
    /// Whether all required scenarios passed.
    pub(crate) passed: bool,
}

impl Suite {
    /// The suite and the Node for it; `None`, said aloud, where they are not installed.
    pub(crate) fn installed() -> Option<Self> {
        Some(Self { node: tool("SORTIE_TEST_NODE22")?, script: tool("SORTIE_TEST_CONFORMANCE")? })
    }

    /// Starts all server scenarios of this revision of the protocol.
    pub(crate) fn start(&self, home: &TempHome, way: &'static str, url: &str, revision: &str) -> Run {
        let results = home.join(way);
        let program = home.apply(Program::new(&self.node)).arg(&self.script).args(["server", "--url", url]);
        let program = program.args(["--requirements", revision]).arg("--output-dir").arg(&results);
        Run { process: program.spawn().expect("node"), results, way }
    }
}

impl Suite {
    /// Runs one client scenario with a command that is given the URL of the scenario's server. Returns whether it
    /// passed; and that again, its checks, and what the client printed, but not the record of the traffic, whose order
    /// is the client's.
    pub(crate) async fn client(
        &self,
        home: &TempHome,
        (way, scenario, revision): (&str, &str, &str),
        command: &str,
    ) -> (bool, Vec<String>) {
        let results = home.join(way).join(revision).join(scenario);
        let program = home.apply(Program::new(&self.node)).arg(&self.script).args(["client", "--command", command]);
        let program = program.args(["--scenario", scenario, "--spec-version", revision]);
        let mut process = program.arg("--output-dir").arg(&results).spawn().expect("node");
        let status = process.exit(LATE).await.unwrap_or_else(|error| panic!("{way}, {scenario}: {error}"));
        let mut folders = std::fs::read_dir(&results).expect("results");
        let folder = folders.next().expect("a folder of results").expect("a folder of results").path();
        let checks = read_checks(&folder);
        let found = checks.iter().filter(|check| check["status"] != "INFO").map(shown);
        let said = std::fs::read_to_string(folder.join("stdout.txt")).expect("what the client printed");
        let verdict = std::iter::once(status.to_string());
        (status.success(), verdict.chain(found).chain(said.lines().map(str::to_owned)).collect())
    }
}

impl Run {
    /// Waits for its end.
    pub(crate) async fn report(mut self) -> Report {
        let status = self.process.exit(LATE).await.unwrap_or_else(|error| panic!("{}: {error}", self.way));
        let said = self.process.output();
        let (_, summary) = said.split_once("=== SUMMARY ===").unwrap_or_else(|| panic!("{}: {said}", self.way));
        let lines = summary.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Report { lines, checks: checks(&self.results), passed: status.success() }
    }
}

impl Report {
    /// What differs from the other report, one line each: first of the scenarios, then of their checks.
    pub(crate) fn differences(&self, way: &str, other: &Self) -> Vec<String> {
        let mut found = changes(way, &other.lines, &self.lines);
        let scenarios: BTreeSet<_> = self.checks.keys().chain(other.checks.keys()).collect();
        for scenario in scenarios {
            let [before, now] = [other, self].map(|report| report.checks.get(scenario).map_or(&[][..], Vec::as_slice));
            found.extend(changes(&format!("{way}, {scenario}"), before, now));
        }
        found
    }
}

/// The places at which two lists differ.
pub(crate) fn changes(what: &str, before: &[String], now: &[String]) -> Vec<String> {
    let lengths = before.len().max(now.len());
    let pairs = (0..lengths).map(|at| (before.get(at), now.get(at)));
    let differing = pairs.filter(|(before, now)| before != now);
    let line = |line: Option<&String>| line.map_or("(nothing)", String::as_str).to_owned();
    differing.map(|(before, now)| format!("{what}:\n  - {}\n  + {}", line(before), line(now))).collect()
}

/// The checks of all scenarios, of what stays the same from run to run.
fn checks(results: &Path) -> BTreeMap<String, Vec<String>> {
    let folders = std::fs::read_dir(results).expect("results");
    folders
        .map(|folder| {
            let folder = folder.expect("a folder of results").path();
            let name = folder.file_name().and_then(|name| name.to_str()).expect("a name");
            let name = name.strip_prefix("server-").expect("a server scenario");
            let scenario = name[..name.len() - TIME].to_owned();
            (scenario, read_checks(&folder).iter().map(shown).collect())
        })
        .collect()
}

fn read_checks(folder: &Path) -> Vec<Value> {
    let checks = std::fs::read(folder.join("checks.json")).expect("checks");
    serde_json::from_slice(&checks).expect("checks are JSON")
}

fn shown(check: &Value) -> String {
    let fields = ["status", "id", "name", "description", "errorMessage"];
    fields.map(|field| check[field].as_str().unwrap_or("-")).join(" | ")
}
