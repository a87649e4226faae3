//! Official clients that walk through a server: the same client over several ways has to see the same each time.

#![allow(dead_code, reason = "each test program uses a part")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sortie_testkit::{Process, Program, TempHome, free_port, tool};

use super::{Hub, LATE, Tunnel, python};

/// A client, and which era it speaks.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) mode: &'static str,
    walker: Walker,
}

/// The script that uses a client's library.
enum Walker {
    Python { interpreter: PathBuf, script: &'static str },
    Node { modules: PathBuf, flags: &'static [&'static str] },
}

impl Client {
    fn python(name: &'static str, mode: &'static str, interpreter: &Path, script: &'static str) -> Self {
        Self { name, mode, walker: Walker::Python { interpreter: interpreter.to_owned(), script } }
    }

    fn node(name: &'static str, mode: &'static str, modules: &Path, flags: &'static [&'static str]) -> Self {
        Self { name, mode, walker: Walker::Node { modules: modules.to_owned(), flags } }
    }

    /// Whether it speaks the stateless era with a server that does.
    pub(crate) fn modern(&self) -> bool {
        self.mode == "auto"
    }

    /// This client on its walk.
    pub(crate) fn walk(&self, home: &TempHome, way: &Way, kind: &str) -> Program {
        let program = match &self.walker {
            Walker::Python { interpreter, script } => python(home, interpreter, script).env("PYTHONWARNINGS", "ignore"),
            Walker::Node { modules, flags } => {
                let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node/walk.mjs");
                let program = home.apply(Program::new("node")).arg(script).args(*flags).arg("--modules").arg(modules);
                way.ca.iter().fold(program, |program, ca| program.env("NODE_EXTRA_CA_CERTS", ca))
            }
        };
        let program = program.arg(&way.url).arg(kind).args(["--mode", self.mode]);
        let program = way.key.iter().fold(program, |program, key| program.args(["--key", key]));
        match (&self.walker, &way.ca) {
            (Walker::Python { .. }, Some(ca)) => program.arg("--ca").arg(ca),
            _ => program,
        }
    }
}

/// The official SDK for Python, both generations.
pub(crate) fn python_clients() -> Option<Vec<Client>> {
    let (one, two) = (tool("SORTIE_TEST_PYTHON_MCP1")?, tool("SORTIE_TEST_PYTHON_MCP2")?);
    Some(vec![
        Client::python("Python 1", "legacy", &one, "mcp_walk.py"),
        Client::python("Python 2 auto", "auto", &two, "mcp_walk.py"),
        Client::python("Python 2 legacy", "legacy", &two, "mcp_walk.py"),
    ])
}

/// The client of fastmcp.
pub(crate) fn fastmcp_clients() -> Option<Vec<Client>> {
    let interpreter = tool("SORTIE_TEST_PYTHON_FASTMCP")?;
    Some(vec![
        Client::python("fastmcp auto", "auto", &interpreter, "fastmcp_walk.py"),
        Client::python("fastmcp legacy", "legacy", &interpreter, "fastmcp_walk.py"),
    ])
}

/// The official SDK for TypeScript, both generations.
pub(crate) fn node_clients() -> Option<Vec<Client>> {
    let modules = tool("SORTIE_TEST_NODE_MODULES")?;
    Some(vec![
        Client::node("TypeScript 1", "legacy", &modules, &["--sdk", "1"]),
        Client::node("TypeScript 2 auto", "auto", &modules, &["--sdk", "2"]),
        Client::node("TypeScript 2 legacy", "legacy", &modules, &["--sdk", "2"]),
    ])
}

/// `mcp-remote`, behind clients that speak stdio only.
pub(crate) fn bridged_clients() -> Option<Vec<Client>> {
    let modules = tool("SORTIE_TEST_NODE_MODULES")?;
    Some(vec![
        Client::node("mcp-remote, TypeScript 1", "legacy", &modules, &["--bridge", "--sdk", "1"]),
        Client::node("mcp-remote, TypeScript 2", "auto", &modules, &["--bridge", "--sdk", "2"]),
    ])
}

/// A way to a server: what it is called, its URL, and what a client needs for it.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    key: Option<String>,
    ca: Option<OsString>,
}

/// By path and by hostname.
pub(crate) fn ways(hub: &Hub, tunnel: &Tunnel, route: &str) -> Vec<Way> {
    let key = Some(tunnel.use_key.clone());
    let ca = Some(hub.text("edge_ca_file").into());
    vec![
        Way { name: "path", url: tunnel.path_url(hub, route), key: key.clone(), ca: None },
        Way { name: "host", url: tunnel.host_url(hub, route), key, ca },
    ]
}

/// Without a tunnel.
pub(crate) fn direct(port: u16) -> Way {
    Way { name: "direct", url: format!("http://127.0.0.1:{port}/mcp"), key: None, ca: None }
}

/// What a client printed, without what its libraries log.
pub(crate) fn transcript(said: &str) -> Vec<String> {
    let lines: Vec<String> = said.lines().filter(|line| line.starts_with("[\"")).map(ToOwned::to_owned).collect();
    assert_eq!(lines.last().map(String::as_str), Some("[\"end\", null]"), "{said}");
    lines
}

/// Every client on every way; one client's ways at the same time. Returns the transcript of each client, which is the
/// same on all its ways.
pub(crate) async fn same_everywhere(home: &TempHome, clients: &[Client], ways: &[Way], kind: &str) -> Vec<Vec<String>> {
    let mut seen = Vec::new();
    for client in clients {
        let running = ways.iter().map(|way| client.walk(home, way, kind).spawn().expect("client"));
        let running: Vec<Process> = running.collect();
        let mut first: Option<Vec<String>> = None;
        for (way, process) in ways.iter().zip(running) {
            let who = format!("client {}, {}", client.name, way.name);
            let lines = transcript(&ended(process, &who).await);
            let Some(first) = &first else {
                first = Some(lines);
                continue;
            };
            for (expected, found) in first.iter().zip(&lines) {
                assert_eq!(found, expected, "{who} (left) differs");
            }
            assert_eq!(first.len(), lines.len(), "{who}");
        }
        seen.extend(first);
    }
    seen
}

/// The output of a client that ended well.
pub(crate) async fn ended(mut process: Process, who: &str) -> String {
    let status = process.exit(2 * LATE).await.unwrap_or_else(|error| panic!("{who}: {error}"));
    assert!(status.success(), "{who}: {status}: {}", process.output());
    process.ready_output("[\"end\"", Duration::from_secs(1)).await.unwrap_or_else(|error| panic!("{who}: {error}"));
    process.output()
}

/// The line of a step.
pub(crate) fn step<'t>(transcript: &'t [String], name: &str) -> &'t str {
    let start = format!("[\"{name}\", ");
    let found = transcript.iter().find(|line| line.starts_with(&start));
    found.unwrap_or_else(|| panic!("no step `{name}` in {transcript:#?}"))
}

/// A route to a server on loopback.
pub(crate) fn route(name: &str, port: u16) -> String {
    let allowed = "[upstream]\nallowed_ips = [\"127.0.0.1\"]\n";
    format!("{allowed}[routes.{name}]\nupstream = \"http://127.0.0.1:{port}\"\n")
}

/// A server of `tests/python`; with a port, on that one.
pub(crate) async fn server(home: &TempHome, interpreter: &Path, script: &str, port: Option<u16>) -> (Process, u16) {
    let ready_file = home.join("server.json");
    let _absent = std::fs::remove_file(&ready_file);
    let program = python(home, interpreter, script).arg(&ready_file).args(port.map(|port| port.to_string()));
    let mut server = program.spawn().expect("python");
    let ready = server.ready_file(&ready_file, LATE).await.expect("server");
    server.ready_output("startup complete", LATE).await.expect("server");
    let port = ready.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    (server, port.expect("port"))
}

/// A server of `tests/node` on the packages of this folder.
pub(crate) async fn node_server(home: &TempHome, modules: &Path, script: &str) -> (Process, u16) {
    let ready_file = home.join("server.json");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node").join(script);
    let mut server = home.apply(Program::new("node")).arg(script).arg(&ready_file).arg(modules).spawn().expect("node");
    let ready = server.ready_file(&ready_file, LATE).await.expect("server");
    let port = ready.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    (server, port.expect("port"))
}

/// The reference server.
pub(crate) async fn everything(home: &TempHome, script: &Path) -> (Process, u16) {
    let port = free_port().expect("port");
    let server = home.apply(Program::new("node")).arg(script).arg("streamableHttp").env("PORT", port.to_string());
    let mut server = server.spawn().expect("node");
    server.ready_output("listening on port", LATE).await.expect("server");
    (server, port)
}
