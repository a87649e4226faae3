//! `cargo xtask test`: peers, one build, all tests, and a list of those that did not run.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::repo::{Repo, cargo, in_ci, program, run};
use crate::tools::Peers;

/// Runs everything and returns the summary line of the test runner.
///
/// Tests say `skipped: tool: <reason>` where something that could be installed is missing, and `skipped: host:
/// <reason>` where this machine cannot do it. Both are listed; with `CI=true` the first kind is a failure, as is a
/// line of neither kind.
pub(crate) fn run_all(repo: &Repo, args: &[String]) -> Result<String> {
    let peers = Peers::install(repo)?;
    for missing in &peers.missing {
        eprintln!("    missing: {missing}");
    }
    run("cargo build", cargo(repo).args(["build", "--workspace", "--locked"]))?;
    let mut doctests = cargo(repo);
    doctests.args(["test", "--workspace", "--doc", "--locked", "--quiet"]);
    eprintln!("==> doctests");
    // Shown only when one fails: the result lines of crates without any say nothing.
    let doctests = with(&peers, &mut doctests).output().context("doctests")?;
    if !doctests.status.success() {
        eprint!("{}{}", String::from_utf8_lossy(&doctests.stdout), String::from_utf8_lossy(&doctests.stderr));
        bail!("doctests failed ({})", doctests.status);
    }

    let (passed, summary, skips) =
        if program("cargo-nextest").is_some() { nextest(repo, &peers, args)? } else { plain(repo, &peers, args)? };
    let (blamed, listed) = verdict(&skips, peers.missing.len());
    print!("{listed}");
    if !passed {
        bail!("tests failed: {summary}");
    }
    if blamed && in_ci() {
        bail!("tests were skipped for want of a tool, which CI=true does not allow: {summary}");
    }
    Ok(summary)
}

/// Whether a skip is somebody's fault, and the list as it is shown.
fn verdict(skips: &[String], missing_peers: usize) -> (bool, String) {
    if skips.is_empty() {
        return (missing_peers > 0, "no test was skipped\n".to_owned());
    }
    let mut listed = format!("{} skipped:\n", skips.len());
    for skip in skips {
        listed.push_str(&format!("  {skip}\n"));
    }
    let blamed = skips.iter().any(|skip| !skip.contains("skipped: host: "));
    (blamed || missing_peers > 0, listed)
}

type Outcome = (bool, String, Vec<String>);

fn nextest(repo: &Repo, peers: &Peers, args: &[String]) -> Result<Outcome> {
    // Below the root wherever the target folder is: its place is relative to nextest's own configuration.
    let report = repo.root.join("target/nextest/default/junit.xml");
    // A report of an earlier run must not be taken for this one's.
    let _absent = fs::remove_file(&report);
    let mut command = cargo(repo);
    command.args(["nextest", "run", "--workspace", "--locked"]).args(args);
    let (passed, said) = watched("cargo nextest run", with(peers, &mut command).stderr(Stdio::piped()))?;
    let summary = said.lines().rev().find(|line| line.trim_start().starts_with("Summary ["));
    let summary = summary.context("the test runner printed no summary")?.trim().to_owned();
    Ok((passed, summary, skips_in_report(&report)?))
}

/// Without cargo-nextest: the same tests, their output shown.
fn plain(repo: &Repo, peers: &Peers, args: &[String]) -> Result<Outcome> {
    let mut command = cargo(repo);
    let split = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (before, after) = args.split_at_checked(split).unwrap_or((args, &[]));
    command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--locked", "--no-fail-fast"]).args(before);
    command.args(["--", "--show-output"]).args(after.iter().filter(|arg| *arg != "--"));
    let (passed, said) = watched("cargo test", with(peers, &mut command).stdout(Stdio::piped()))?;
    let results: Vec<&str> = said.lines().filter(|line| line.starts_with("test result: ")).collect();
    let count = |word: &str| results.iter().filter_map(|line| number_before(line, word)).sum::<u64>();
    let summary = format!("test result: {} passed; {} failed", count("passed"), count("failed"));
    let skips = said.lines().filter(|line| line.starts_with("skipped: ")).map(str::to_owned).collect();
    Ok((passed, summary, skips))
}

fn with<'a>(peers: &Peers, command: &'a mut Command) -> &'a mut Command {
    command.envs(peers.variables.iter().map(|(name, path)| (*name, path)))
}

/// Runs a command whose piped output is passed on line by line and also returned.
fn watched(name: &str, command: &mut Command) -> Result<(bool, String)> {
    eprintln!("==> {name}");
    let mut child = command.spawn().with_context(|| name.to_owned())?;
    let pipe: Box<dyn Read> = match (child.stdout.take(), child.stderr.take()) {
        (Some(out), _) => Box::new(out),
        (_, Some(err)) => Box::new(err),
        _ => bail!("{name}: no output to watch"),
    };
    let mut said = String::new();
    for line in BufReader::new(pipe).split(b'\n') {
        let line = line.with_context(|| name.to_owned())?;
        let line = String::from_utf8_lossy(&line);
        writeln!(std::io::stderr(), "{line}").context("standard error")?;
        said.push_str(&line);
        said.push('\n');
    }
    Ok((child.wait().with_context(|| name.to_owned())?.success(), said))
}

fn number_before(line: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let at = words.iter().position(|found| found.trim_end_matches(';') == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

fn skips_in_report(report: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(report).with_context(|| format!("{} is missing", report.display()))?;
    Ok(skips_in(&text))
}

/// `<test>: skipped: <reason>` for each such line in the outputs of a JUnit report.
fn skips_in(report: &str) -> Vec<String> {
    let mut test = "";
    let mut skips = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("<testcase name=\"") {
            test = rest.split('"').next().unwrap_or_default();
        }
        let line = line.rsplit("<system-out>").next().unwrap_or_default();
        let line = line.split("</system-out>").next().unwrap_or_default();
        if line.starts_with("skipped: ") {
            let reason = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")]
                .iter()
                .fold(line.to_owned(), |line, (entity, text)| line.replace(entity, text));
            skips.push(format!("{test}: {reason}"));
        }
    }
    skips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_found_in_a_report() {
        let report = r#"<testsuite name="a">
    <testcase name="links::survive" classname="a" time="0.1">
      <system-out>
running 1 test
skipped: host: no network namespaces &lt;EPERM&gt;
test links::survive ... ok
</system-out></testcase>
    <testcase name="peers::sdk" classname="a"><system-out>skipped: tool: X is not set</system-out></testcase>
    <testcase name="quiet" classname="a" time="0.1"><system-out>not skipped: x</system-out></testcase>"#;
        let skips = skips_in(report);
        assert_eq!(
            skips,
            ["links::survive: skipped: host: no network namespaces <EPERM>", "peers::sdk: skipped: tool: X is not set",]
        );
        assert!(verdict(&skips, 0).0, "a missing tool is somebody's fault");
        assert!(!verdict(&skips[..1], 0).0, "a kernel is nobody's");
        assert!(verdict(&["x: skipped: just so".to_owned()], 0).0, "a skip of no kind is");
        assert!(verdict(&[], 1).0, "so is a peer that could not be installed");
    }

    #[test]
    fn counts_are_read_from_result_lines() {
        let line = "test result: ok. 27 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!((number_before(line, "passed"), number_before(line, "failed")), (Some(27), Some(1)));
    }
}
