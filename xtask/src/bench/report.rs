//! Medians over the rounds, as a table or as JSON, with the ratios that budgets are written in.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::Serialize;

use super::targets::{Kind, Sample, Target};

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            _ => bail!("--output is table or json, not `{text}`"),
        }
    }
}

/// All samples so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    samples: BTreeMap<(Kind, usize, &'static str), Vec<Sample>>,
    order: Vec<(Kind, usize, &'static str)>,
    bases: BTreeMap<&'static str, &'static str>,
    /// Memory of processes, where that is reported.
    pub(crate) held: Vec<Memory>,
}

/// What a process held before and after all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) process: String,
    pub(crate) before_mib: f64,
    pub(crate) after_mib: f64,
}

/// The medians of one target.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    connections: usize,
    target: &'static str,
    requests_per_second: f64,
    best_requests_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of all server processes, the upstream included.
    cpu_us_per_request: f64,
    path_cpu_us_per_request: f64,
    upstream_cpu_us_per_request: f64,
    rss_mb: f64,
    errors: u64,
    /// What this target is the same as but for one thing, and what that thing costs of CPU on the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    beyond: Option<Beyond>,
    /// Requests per second as a part of the direct way's.
    rate_to_direct: f64,
    /// p50 beyond the direct way's.
    added_p50_ms: f64,
    /// Requests per second as a multiple of the bridge's; only for MCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_to_mcp_proxy: Option<f64>,
    /// The same of the bridge on Node.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_to_supergateway: Option<f64>,
    /// CPU on the path as a multiple of the encrypted tunnel's; only for HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_cpu_to_rathole: Option<f64>,
}

/// A comparison within rounds, so that what the machine did in a round hits both sides.
#[derive(Debug, Serialize)]
struct Beyond {
    target: &'static str,
    /// Median over the rounds of the difference within a round.
    path_cpu_us: f64,
    /// The same as a multiple.
    path_cpu_ratio: f64,
}

impl Report {
    /// Adds one round of one target.
    pub(crate) fn add(&mut self, target: &Target, connections: usize, sample: Sample) {
        let key = (target.kind, connections, target.name);
        let samples = self.samples.entry(key).or_default();
        if samples.is_empty() {
            self.order.push(key);
            self.bases.extend(target.base.map(|base| (target.name, base)));
        }
        samples.push(sample);
    }

    /// Prints all rows, most connections first, and what could not be measured.
    pub(crate) fn print(&self, format: Format, failures: &[String]) -> Result<()> {
        let rows = self.rows();
        match format {
            Format::Json => {
                let document = serde_json::json!({ "rows": rows, "memory": self.held, "not_measured": failures });
                println!("{}", serde_json::to_string_pretty(&document)?);
            }
            Format::Table => {
                print!("{}{}", table(&rows), memory_table(&self.held));
                for failure in failures {
                    println!("not measured: {failure}");
                }
            }
        }
        Ok(())
    }

    fn rows(&self) -> Vec<Row> {
        let mut order = self.order.clone();
        order.sort_by_key(|(kind, connections, _)| (*kind, std::cmp::Reverse(*connections)));
        order.iter().filter_map(|key| self.row(*key)).collect()
    }

    fn row(&self, key: (Kind, usize, &'static str)) -> Option<Row> {
        let (kind, connections, target) = key;
        let samples = self.samples.get(&key)?;
        let of = |samples: &[Sample], field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
        let direct = self.samples.get(&(kind, connections, "direct"))?;
        let beside = |name: &'static str| self.samples.get(&(kind, connections, name));
        let times = |name, rate: f64| beside(name).map(|peer| rate / of(peer, |sample| sample.rate).max(1.0));
        let rate = of(samples, |sample| sample.rate);
        let (path, upstream) = (of(samples, |s| s.path_cpu_us), of(samples, |s| s.upstream_cpu_us));
        let p50 = of(samples, |sample| sample.p50_us);
        Some(Row {
            what: if kind == Kind::Http { "HTTP" } else { "MCP" },
            connections,
            target,
            requests_per_second: rate,
            best_requests_per_second: samples.iter().map(|sample| sample.rate).fold(0.0, f64::max),
            p50_ms: p50 / 1000.0,
            p99_ms: of(samples, |sample| sample.p99_us) / 1000.0,
            cpu_us_per_request: path + upstream,
            path_cpu_us_per_request: path,
            upstream_cpu_us_per_request: upstream,
            rss_mb: of(samples, |sample| sample.rss_kb) / 1024.0,
            errors: samples.iter().map(|sample| sample.errors).sum(),
            beyond: self.beyond(key, samples),
            rate_to_direct: rate / of(direct, |sample| sample.rate).max(1.0),
            added_p50_ms: (p50 - of(direct, |sample| sample.p50_us)) / 1000.0,
            rate_to_mcp_proxy: times("mcp-proxy", rate),
            rate_to_supergateway: times("supergateway", rate),
            path_cpu_to_rathole: beside("rathole").map(|peer| path / of(peer, |sample| sample.path_cpu_us).max(0.1)),
        })
    }
}

impl Report {
    fn beyond(&self, (kind, connections, target): (Kind, usize, &'static str), samples: &[Sample]) -> Option<Beyond> {
        let base = *self.bases.get(target)?;
        let beside = self.samples.get(&(kind, connections, base))?;
        let rounds = || samples.iter().zip(beside).map(|(one, other)| (one.path_cpu_us, other.path_cpu_us));
        Some(Beyond {
            target: base,
            path_cpu_us: median(rounds().map(|(one, other)| one - other).collect()),
            path_cpu_ratio: median(rounds().map(|(one, other)| one / other.max(0.1)).collect()),
        })
    }
}

fn memory_table(held: &[Memory]) -> String {
    if held.is_empty() {
        return String::new();
    }
    let mut table = format!("\n{:<36}{:>12}{:>12}\n", "resident memory, MiB", "before", "after");
    for Memory { process, before_mib, after_mib } in held {
        table.push_str(&format!("{process:<36}{before_mib:>12.1}{after_mib:>12.1}\n"));
    }
    table
}

fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "\n{:<5}{:>3}  {:<31}{:>9}{:>9}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7}{:>7}{:>10}{:>9}{:>12}{:>15}{:>14}  {}\n",
        "",
        "c",
        "target",
        "req/s",
        "best",
        "p50 ms",
        "p99 ms",
        "CPU us",
        "on path",
        "upstream",
        "RSS MB",
        "errors",
        "of direct",
        "+p50 ms",
        "x mcp-proxy",
        "x supergateway",
        "CPU x rathole",
        "path CPU beyond"
    );
    for row in rows {
        let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"));
        let beyond = row.beyond.as_ref().map_or_else(String::new, |Beyond { target, path_cpu_us, path_cpu_ratio }| {
            format!("{path_cpu_us:+.1} us, x {path_cpu_ratio:.2} ({target})")
        });
        table.push_str(&format!(
            "{:<5}{:>3}  {:<31}{:>9.0}{:>9.0}{:>8.3}{:>8.3}{:>8.1}{:>8.1}{:>9.1}{:>7.1}{:>7}{:>10.2}{:>9.3}{:>12}{:>15}{:>14}  {beyond}\n",
            row.what,
            row.connections,
            row.target,
            row.requests_per_second,
            row.best_requests_per_second,
            row.p50_ms,
            row.p99_ms,
            row.cpu_us_per_request,
            row.path_cpu_us_per_request,
            row.upstream_cpu_us_per_request,
            row.rss_mb,
            row.errors,
            row.rate_to_direct,
            row.added_p50_ms,
            ratio(row.rate_to_mcp_proxy),
            ratio(row.rate_to_supergateway),
            ratio(row.path_cpu_to_rathole),
        ));
    }
    table.push_str("medians over the rounds; CPU is user plus system per request of all server processes\n");
    table
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(0.0);
    match values.len() % 2 {
        0 => middle.checked_sub(1).and_then(|lower| values.get(lower)).map_or(upper, |lower| (lower + upper) / 2.0),
        _ => upper,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_even_odd_and_no_values() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(vec![]).abs() < f64::EPSILON);
    }
}
