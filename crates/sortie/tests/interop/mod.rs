//! What the tests of the whole program share: the binary in a throw-away home, its roles as processes, its operator
//! commands, and the scripts of the official clients.

#![allow(dead_code, clippy::indexing_slicing, reason = "each test program uses a part, on values that it made")]

pub(crate) mod walk;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use sortie_testkit::{Process, Program, TempHome, eventually};

/// How long a role may take to serve, and a script to end, on a busy machine.
pub(crate) const LATE: Duration = Duration::from_secs(50);

/// Our binary in this home, knowing no hub but what it is told.
pub(crate) fn sortie(home: &TempHome) -> Program {
    let program = home.apply(Program::new(env!("CARGO_BIN_EXE_sortie")));
    UNSET.iter().fold(program, |program, variable| program.without_env(variable))
}

/// What a developer may have set.
const UNSET: [&str; 8] = [
    "SORTIE_API_URL",
    "SORTIE_API_KEY",
    "SORTIE_API_CA",
    "SORTIE_LOG",
    "API_URL",
    "API_TOKEN",
    "HTTPS_PROXY",
    "https_proxy",
];

/// A script of `tests/python`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python").join(name)
}

/// A Python program that talks to loopback only, in this home.
pub(crate) fn python(home: &TempHome, interpreter: &Path, name: &str) -> Program {
    home.apply(Program::new(interpreter))
        .env("NO_PROXY", "*")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg("-u")
        .arg(script(name))
}

/// Runs a program to its end; returns what it printed, and fails the test when it did not succeed.
pub(crate) async fn succeeds(program: Program) -> String {
    let mut process = program.spawn().expect("started");
    let status = process.exit(LATE).await.expect("ended");
    // What was printed last may still be on its way through the pipe.
    let mut said = String::new();
    eventually(Duration::from_secs(1), || {
        let before = std::mem::replace(&mut said, process.output());
        (!said.is_empty() && before == said).then_some(())
    })
    .await;
    assert!(status.success(), "{status}: {said}");
    said
}

/// The blocks of a page, with what stands behind their fence, in its order.
pub(crate) fn blocks_of(page: &str) -> Vec<(String, String)> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    blocks
        .map(|block| block.split_once('\n').map(|(kind, text)| (kind.to_owned(), text.to_owned())).expect("a fence"))
        .collect()
}

/// A hub as a process.
pub(crate) struct Hub {
    /// The program.
    pub(crate) process: Process,
    /// Its ready file.
    pub(crate) ready: Value,
}

impl Hub {
    /// Starts one on free loopback ports.
    pub(crate) async fn start(home: &TempHome) -> Self {
        Self::start_with(home, []).await
    }

    /// The same with further flags.
    pub(crate) async fn start_with<const N: usize>(home: &TempHome, flags: [&str; N]) -> Self {
        let ready_file = home.join("hub.json");
        let program = sortie(home).args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0"]).args(flags);
        let program = program.arg("--data-dir").arg(home.join("hub")).arg("--ready-file").arg(&ready_file);
        let mut process = program.spawn().expect("hub");
        let ready = process.ready_file(&ready_file, LATE).await.expect("hub");
        Self { process, ready }
    }

    /// A text of the ready file.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.ready[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.ready))
    }

    /// An operator command with this hub's manage key.
    pub(crate) fn operator<A: AsRef<OsStr>>(&self, home: &TempHome, args: impl IntoIterator<Item = A>) -> Output {
        self.operator_with(home, self.text("api_key"), args)
    }

    /// An operator command with another key.
    pub(crate) fn operator_with<A: AsRef<OsStr>>(
        &self,
        home: &TempHome,
        key: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sortie"));
        for variable in UNSET {
            command.env_remove(variable);
        }
        command.env("HOME", home.path()).env("XDG_CONFIG_HOME", home.join(".config"));
        command.env("SORTIE_API_URL", self.text("api_url")).env("SORTIE_API_KEY", key);
        command.args(args).stdin(Stdio::null()).output().expect("sortie runs")
    }

    /// The JSON that an operator command prints; fails the test when the command fails.
    pub(crate) fn json<A: AsRef<OsStr>>(&self, home: &TempHome, args: impl IntoIterator<Item = A>) -> Value {
        let output =
            self.operator(home, ["--output".into(), "json".into()].into_iter().chain(args.into_iter().map(owned)));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {out}{err}", output.status);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }
}

fn owned(arg: impl AsRef<OsStr>) -> std::ffi::OsString {
    arg.as_ref().to_owned()
}

/// A tunnel with one gateway on it.
pub(crate) struct Tunnel {
    /// The gateway's program.
    pub(crate) gateway: Process,
    /// What `setup init` wrote.
    pub(crate) setup_dir: PathBuf,
    /// The tunnel's id.
    pub(crate) id: String,
    /// The tunnel's domain.
    pub(crate) domain: String,
    /// A key that may call every route of the tunnel, and nothing else.
    pub(crate) use_key: String,
}

impl Tunnel {
    /// Sets a tunnel up and starts a gateway with these settings.
    pub(crate) async fn open(home: &TempHome, hub: &Hub, config: &str) -> Self {
        let setup_dir = home.join("setup");
        let program = sortie(home).env("API_TOKEN", hub.text("api_key"));
        let output = format!("dir:{}", setup_dir.display());
        succeeds(program.args(["setup", "init", "--api-url", hub.text("api_url"), "--output", &output])).await;
        let read = |name: &str| std::fs::read_to_string(setup_dir.join(name)).expect(name).trim().to_owned();
        let (id, domain) = (read("tunnel-id"), read("tunnel-domain"));
        let made = hub.json(home, ["keys", "create", "interop", "--grant", id.as_str()]);
        let use_key = made["secret"].as_str().expect("secret").to_owned();

        let config = home.write("gateway.toml", config).expect("settings");
        let ready_file = home.join("gateway.json");
        let program = sortie(home).arg("gateway").arg("--config").arg(config).arg("--setup-dir").arg(&setup_dir);
        let program = program.arg("--data-dir").arg(home.join("gateway")).arg("--ready-file").arg(&ready_file);
        let mut gateway = program.spawn().expect("gateway");
        gateway.ready_file(&ready_file, LATE).await.expect("gateway");
        Self { gateway, setup_dir, id, domain, use_key }
    }

    /// The URL of a route's MCP server by path, on the hub's API.
    pub(crate) fn path_url(&self, hub: &Hub, route: &str) -> String {
        let label = self.domain.split('.').next().expect("label");
        format!("{}/t/{label}/{route}/mcp", hub.text("api_url"))
    }

    /// The URL of a route's MCP server by hostname, on the edge's port.
    pub(crate) fn host_url(&self, hub: &Hub, route: &str) -> String {
        let (_, port) = hub.text("edge_addr").rsplit_once(':').expect("port");
        format!("https://{route}.{}:{port}/mcp", self.domain)
    }
}
