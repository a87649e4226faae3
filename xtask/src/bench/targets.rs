//! Everything that is measured: which programs run, what is called, and whose time counts as what.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use sortie_testkit::usage::{cpu_us, group_members, rss_kb};
use sortie_testkit::{Load, LoadReport, Process};

use super::backends::{self, Server, release};
use super::ours::Ours;
use crate::repo::Repo;
use crate::tools::Peers;

/// Hub and gateway with many routes beside the one that is called, which must cost nothing.
const MANY: &str = "1000 routes";
const MANY_ROUTES: usize = 998;
/// Sessions per MCP target, and its largest number of connections.
const MCP_SESSIONS: usize = 8;

/// What a round is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// GET of a JSON body of 113 bytes.
    Http,
    /// An MCP `tools/call` of `echo` in a session.
    Mcp,
}

/// One way to the upstream.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The numbers of connections that it is measured with.
    pub(crate) connections: &'static [usize],
    /// What each connection sends, in turn; connections beyond the last start over.
    loads: Vec<Vec<Load>>,
    /// The target that this one is the same as but for one thing.
    pub(crate) base: Option<&'static str>,
    /// Process groups on the way.
    path: Vec<u32>,
    /// Process groups of the upstream.
    upstream: Vec<u32>,
}

/// One round of one target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) path_cpu_us: f64,
    pub(crate) upstream_cpu_us: f64,
    pub(crate) rss_kb: f64,
    pub(crate) errors: u64,
}

impl Target {
    /// Calls it for so long over so many connections.
    pub(crate) async fn measure(&self, connections: usize, lasting: Duration) -> Result<Sample> {
        let (path, upstream) = (members(&self.path), members(&self.upstream));
        let before = (cpu_us(&path), cpu_us(&upstream));
        let report = self.load(connections, lasting).await?;
        let after = (cpu_us(&path), cpu_us(&upstream));
        // The warm-up is in the processes' time, so it is in the number of requests as well.
        let requests = float(report.answered + report.errors + report.warmed).max(1.0);
        if let Some(error) = report.first_error.as_ref().filter(|_| report.answered == 0) {
            bail!("{}: nothing was answered: {error}", self.name);
        }
        Ok(Sample {
            rate: report.rate(),
            p50_us: f64::from(report.p50_us()),
            p99_us: f64::from(report.p99_us()),
            path_cpu_us: float(after.0.saturating_sub(before.0)) / requests,
            upstream_cpu_us: float(after.1.saturating_sub(before.1)) / requests,
            rss_kb: float(rss_kb(&path) + rss_kb(&upstream)),
            errors: report.errors,
        })
    }

    /// Makes its load and nothing else.
    pub(crate) async fn load(&self, connections: usize, lasting: Duration) -> Result<LoadReport> {
        let lists = self.loads.iter().cycle().take(connections).map(Vec::as_slice);
        Load::run_in_turn(lists, lasting).await.with_context(|| format!("{}, {connections} connections", self.name))
    }
}

/// All running programs and the targets on them.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) targets: Vec<Target>,
    /// Targets that could not be set up, in words.
    pub(crate) failures: Vec<String>,
    /// Hub and gateway, when they run.
    pub(crate) ours: Option<Ours>,
    pub(crate) others: Vec<Process>,
    pub(crate) dir: Option<tempfile::TempDir>,
}

impl Fleet {
    /// Starts what is wanted: `only` narrows the targets that are not direct.
    pub(crate) async fn start(repo: &Repo, peers: &Peers, only: Option<&str>) -> Result<Self> {
        let dir = tempfile::tempdir().context("a temporary folder")?;
        let nginx = peers.path("SORTIE_TEST_NGINX").context("nginx is missing; install nginx-light")?;
        let echo_program = release(&repo.target, "mcp-echo");
        let small = backends::nginx_small(nginx, dir.path()).await?;
        let echo = backends::mcp_echo(&echo_program, dir.path()).await?;
        let mut fleet = Self::default();
        let upstream = (vec![small.process.id()], vec![echo.process.id()]);
        fleet.add_http("direct", format!("http://{}/small", small.addr), None, (vec![], upstream.0.clone()));
        fleet.add_mcp("direct", format!("http://{}/mcp", echo.addr), None, (vec![], upstream.1.clone())).await;

        let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
        if wanted("nginx") {
            let hop = backends::nginx_hop(nginx, dir.path(), small.addr).await;
            if let Some(hop) = fleet.keep("nginx", hop) {
                let processes = (vec![hop.process.id()], upstream.0.clone());
                fleet.add_http("nginx", format!("http://{}/small", hop.addr), None, processes);
                fleet.others.push(hop.process);
            }
        }
        fleet.bridges(peers, &echo_program, only).await;
        if wanted("rathole") {
            let tunnel = match peers.path("SORTIE_TEST_RATHOLE").context("rathole is missing") {
                Ok(rathole) => backends::rathole(rathole, dir.path(), small.addr).await,
                Err(error) => Err(error),
            };
            if let Some((addr, ends)) = fleet.keep("rathole", tunnel) {
                let processes = (ends.iter().map(Process::id).collect(), upstream.0.clone());
                fleet.add_http("rathole", format!("http://{addr}/small"), None, processes);
                fleet.others.extend(ends);
            }
        }
        for (name, folder, routes) in [("sortie", "few", 0), (MANY, "many", MANY_ROUTES)] {
            if !wanted(name) {
                continue;
            }
            let dir = dir.path().join(folder);
            std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
            let ours = Ours::start(&release(&repo.target, "sortie"), &dir, (small.addr, echo.addr), routes).await;
            let Some(ours) = fleet.keep(name, ours) else { continue };
            let path = vec![ours.hub.id(), ours.gateway.id()];
            let (key, url) = (Some(ours.api_key.as_str()), ours.routes_url.as_str());
            fleet.add_http(name, format!("{url}/small/small"), key, (path.clone(), upstream.0.clone()));
            if routes == 0 {
                fleet.add_mcp(name, format!("{url}/echo/mcp"), key, (path, upstream.1.clone())).await;
                fleet.ours = Some(ours);
            } else {
                fleet.others.extend([ours.gateway, ours.hub]);
            }
        }
        fleet.others.extend([small.process, echo.process]);
        fleet.targets.sort_by_key(|target| target.kind);
        fleet.dir = Some(dir);
        Ok(fleet)
    }

    /// Adds the MCP bridges that are wanted, each in front of our small MCP server on standard input and output. That
    /// server is the bridge's child, so its time is counted with it.
    pub(crate) async fn bridges(&mut self, peers: &Peers, echo_program: &Path, only: Option<&str>) {
        for name in ["mcp-proxy", "supergateway"] {
            if only.is_some_and(|only| !name.contains(only)) {
                continue;
            }
            let variable = if name == "mcp-proxy" { "SORTIE_TEST_MCP_PROXY" } else { "SORTIE_TEST_SUPERGATEWAY" };
            let bridge = match peers.path(variable) {
                None => Err(anyhow!("it is missing")),
                Some(bridge) if name == "mcp-proxy" => backends::mcp_proxy(bridge, echo_program).await,
                Some(script) => backends::supergateway(script, echo_program).await,
            };
            if let Some(Server { addr, process }) = self.keep(name, bridge) {
                let processes = (vec![process.id()], vec![]);
                self.add_mcp(name, format!("http://{addr}/mcp"), None, processes).await;
                self.others.push(process);
            }
        }
    }

    /// Asks all programs to end, gateway first, and waits a moment for each.
    pub(crate) async fn stop(&mut self) {
        let moment = Duration::from_secs(5);
        if let Some(ours) = &mut self.ours {
            for process in [&mut ours.gateway, &mut ours.hub] {
                if let Err(error) = process.stop(moment).await {
                    self.failures.push(format!("{error}"));
                }
            }
        }
        // The rest is killed on drop; how peers end is not measured.
        self.others.clear();
    }

    pub(crate) fn keep<T>(&mut self, name: &str, started: Result<T>) -> Option<T> {
        started.map_err(|error| self.failures.push(format!("{name}: {error:#}"))).ok()
    }

    fn add_http(&mut self, name: &'static str, url: String, key: Option<&str>, processes: (Vec<u32>, Vec<u32>)) {
        let loads = vec![vec![with_key(Load::get(url), key)]];
        let (path, upstream) = processes;
        let connections = &[32, 1];
        self.targets.push(Target { name, kind: Kind::Http, connections, loads, path, upstream, base: None });
    }

    pub(crate) async fn add_mcp(
        &mut self,
        name: &'static str,
        url: String,
        key: Option<&str>,
        processes: (Vec<u32>, Vec<u32>),
    ) {
        let headers: Vec<_> = key.map(|key| ("x-api-key", key.to_owned())).into_iter().collect();
        self.add_callers(name, &url, &[headers], processes, &[MCP_SESSIONS, 1]).await;
    }

    /// Calls of callers that differ by their headers. Each has sessions of its own, and no session is on two
    /// connections, as with clients that know nothing of each other: within one session two calls under way must not
    /// have the same id.
    pub(crate) async fn add_callers(
        &mut self,
        name: &'static str,
        url: &str,
        callers: &[Headers],
        (path, upstream): (Vec<u32>, Vec<u32>),
        connections: &'static [usize],
    ) {
        let mut loads = vec![Vec::new(); MCP_SESSIONS];
        for (number, headers) in callers.iter().cycle().take(callers.len().max(MCP_SESSIONS)).enumerate() {
            let load = session(url, headers).await;
            let Some(load) = self.keep(name, load) else { return };
            if let Some(connection) = loads.get_mut(number % MCP_SESSIONS) {
                connection.push(load);
            }
        }
        self.targets.push(Target { name, kind: Kind::Mcp, connections, loads, path, upstream, base: None });
    }
}

/// The headers by which a caller is known.
pub(crate) type Headers = Vec<(&'static str, String)>;

/// The call of `echo` in a new session.
async fn session(url: &str, headers: &Headers) -> Result<Load> {
    let session = open_session(url, headers).await?;
    let params = json!({ "name": "echo", "arguments": { "text": "hello" } });
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    Ok(in_session(post(url, headers, &call), &session))
}

fn post(url: &str, headers: &Headers, message: &serde_json::Value) -> Load {
    let load = Load::post_json(url, message.to_string()).header("accept", "application/json, text/event-stream");
    headers.iter().fold(load, |load, (name, value)| load.header(name, value))
}

fn in_session(load: Load, session: &str) -> Load {
    load.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25")
}

/// Opens a session of 2025-11-25 and returns its id.
pub(crate) async fn open_session(url: &str, headers: &Headers) -> Result<String> {
    let client = json!({ "name": "sortie-bench", "version": "1" });
    let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client });
    let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let answer = post(url, headers, &initialize).once().await?;
    if !answer.status().is_success() {
        bail!("initialize: {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
    }
    let session = answer.headers().get("mcp-session-id").and_then(|session| session.to_str().ok());
    let session = session.context("initialize was answered without a session")?.to_owned();
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    in_session(post(url, headers, &initialized), &session).once().await?;
    Ok(session)
}

fn with_key(load: Load, key: Option<&str>) -> Load {
    match key {
        Some(key) => load.header("x-api-key", key),
        None => load,
    }
}

fn members(groups: &[u32]) -> Vec<u32> {
    groups.iter().flat_map(|group| group_members(*group)).collect()
}

/// Counts here stay far below 2^32; a larger one is shown as that.
pub(crate) fn float(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
