//! `sortie up` as a new user meets it: what the banner prints is pasted and run, and Ctrl-C leaves nothing behind.

#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failure")]

mod interop;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use sortie_testkit::{EchoServer, Process, Program, TempHome, eventually, skip_tool, tool};

use interop::{LATE, sortie, succeeds};

/// The last line of the banner.
const END: &str = "Ctrl-C stops everything.";

/// `sortie up` over a directory with one file, on free ports.
struct Up {
    process: Process,
    ready: Value,
    ready_file: PathBuf,
    banner: String,
}

impl Up {
    async fn start(home: &TempHome) -> Self {
        Self::start_with(home, &[]).await
    }

    async fn start_with(home: &TempHome, flags: &[&str]) -> Self {
        home.write("papers/plan.md", "# Plan\nTODO: ship it\n").expect("paper");
        let ready_file = home.join("ready.json");
        let program = sortie(home).args(["up", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--files"]);
        let program = program.arg(home.join("papers")).arg("--ready-file").arg(&ready_file).args(flags);
        let mut process = program.spawn().expect("up");
        let ready = process.ready_file(&ready_file, LATE).await.expect("ready");
        process.ready_output(END, LATE).await.expect("banner");
        let banner = process.output();
        Self { process, ready, ready_file, banner }
    }

    /// The lines to paste under a comment, up to the next empty line.
    fn paste(&self, comment: &str) -> String {
        let mut lines = self.banner.lines().skip_while(|line| line.trim() != comment).skip(1);
        let block: Vec<&str> = lines.by_ref().take_while(|line| !line.trim().is_empty()).collect();
        assert!(!block.is_empty(), "the banner has no lines under `{comment}`:\n{}", self.banner);
        // A here-document must start in the first column; the banner indents everything by two.
        let block: Vec<&str> = block.iter().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
        block.join("\n")
    }
}

/// Runs lines as a user pastes them: in a shell, with our binary, and maybe another Python, found first.
async fn pasted(home: &TempHome, lines: &str, python: Option<&Path>) -> String {
    let bin = home.join("bin");
    std::fs::create_dir_all(&bin).expect("bin");
    let _there = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sortie"), bin.join("sortie"));
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for folder in python.and_then(Path::parent).into_iter().chain([bin.as_path()]) {
        path = [folder.as_os_str(), path.as_os_str()].join(std::ffi::OsStr::new(":"));
    }
    let shell = home.apply(Program::new("sh")).env("PATH", path).env("NO_PROXY", "*");
    succeeds(shell.args(["-eu", "-c", lines])).await
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[tokio::test]
async fn what_the_banner_says_works_when_pasted() {
    let home = TempHome::new().expect("home");
    let up = Up::start(&home).await;
    for field in ["api_url", "api_key", "use_key", "edge_addr", "edge_ca_file"] {
        assert!(up.ready[field].is_string(), "no {field} in {}", up.ready);
    }

    let said = pasted(&home, &up.paste("# this program, in another terminal"), None).await;
    assert!(said.contains("search") && said.contains("plan.md"), "list and call: {said}");

    if in_path("curl") {
        for by in ["# curl, by path", "# curl, by hostname"] {
            let said = pasted(&home, &up.paste(by), None).await;
            assert!(said.contains("\"serverInfo\""), "{by}: {said}");
        }
    } else {
        skip_tool("there is no curl; install the package curl");
    }

    if let Some(sdk) = tool("SORTIE_TEST_PYTHON_MCP1") {
        let said = pasted(&home, &up.paste("# Python (pip install 'mcp<2')"), Some(&sdk)).await;
        assert!(said.contains("['list', 'read', 'search']"), "{said}");
    }
}

#[tokio::test]
async fn the_use_key_calls_and_does_nothing_else() {
    let home = TempHome::new().expect("home");
    let up = Up::start(&home).await;
    let (url, key) = (up.ready["api_url"].as_str().expect("url"), up.ready["use_key"].as_str().expect("key"));
    let with_key = || sortie(&home).env("SORTIE_API_URL", url).env("SORTIE_API_KEY", key);
    let said = succeeds(with_key().args(["mcp", "call", "files", "read", r#"{"path": "plan.md"}"#])).await;
    assert!(said.contains("TODO: ship it"), "{said}");
    let mut refused = with_key().args(["tunnels", "list"]).spawn().expect("sortie");
    assert_eq!(refused.exit(LATE).await.expect("exit").code(), Some(1), "{}", refused.output());
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_behind_and_a_second_start_finds_its_tunnel() {
    let home = TempHome::new().expect("home");
    let mut first = Up::start(&home).await;
    let pids = first.process.pids();
    assert!(private(&first.ready_file), "the ready file holds keys");
    assert!(private(&home.join(".config/sortie/profile.toml")), "the profile holds a key");
    let api = first.ready["api_url"].as_str().and_then(|url| url.strip_prefix("http://")).expect("api");
    let listeners: Vec<SocketAddr> = [api, first.ready["edge_addr"].as_str().expect("edge")]
        .iter()
        .map(|addr| addr.parse().expect("address"))
        .collect();

    first.process.signal(Signal::INT);
    let status = first.process.exit(Duration::from_secs(10)).await.expect("ends");
    assert_eq!(status.code(), Some(0), "{}", first.process.output());
    assert!(!first.ready_file.exists(), "the ready file is gone");
    for addr in &listeners {
        drop(TcpListener::bind(addr).expect("the port is free"));
    }
    let gone = eventually(LATE, || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    assert!(gone.await.is_some(), "{pids:?}");

    let second = Up::start(&home).await;
    assert_eq!(second.ready["tunnel"], first.ready["tunnel"], "the tunnel and its hostname stay");
    assert_eq!(second.ready["use_key"], first.ready["use_key"], "what was pasted before still works");
}

#[tokio::test]
async fn a_server_of_ones_own_is_one_flag_away_and_ctrl_c_ends_its_calls() {
    let home = TempHome::new().expect("home");
    let echo = EchoServer::start().await.expect("echo");
    let mut up = Up::start_with(&home, &["--route", &format!("echo=http://{}", echo.addr())]).await;
    let said = succeeds(sortie(&home).args(["mcp", "call", "echo", "echo", r#"{"text": "by a flag"}"#])).await;
    assert!(said.contains("by a flag"), "{said}");
    let said = succeeds(sortie(&home).args(["mcp", "list", "echo"])).await;
    assert!(said.contains("progress"), "{said}");

    let mut call = sortie(&home).args(["mcp", "call", "echo", "slow", r#"{"ms": 600000}"#]).spawn().expect("call");
    let begun = || echo.events().iter().any(|event| event.event == "started").then_some(());
    assert!(eventually(LATE, begun).await.is_some(), "{}", call.output());
    up.process.signal(Signal::INT);
    let status = up.process.exit(Duration::from_secs(10)).await.expect("a call that runs does not hold it up");
    assert_eq!(status.code(), Some(0), "{}", up.process.output());
    assert!(!call.exit(LATE).await.expect("the caller is told").success(), "{}", call.output());
    let ended = || echo.events().iter().any(|event| matches!(event.event.as_str(), "disconnected" | "cancelled"));
    assert!(eventually(LATE, || ended().then_some(())).await.is_some(), "{:?}", echo.events());
}

#[tokio::test]
async fn a_second_start_on_the_same_data_is_refused_and_harms_nothing() {
    let home = TempHome::new().expect("home");
    let up = Up::start(&home).await;
    let ready_file = home.join("second.json");
    let program = sortie(&home).args(["up", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--files"]);
    let mut second = program.arg(home.path()).arg("--ready-file").arg(&ready_file).spawn().expect("up");
    assert_eq!(second.exit(LATE).await.expect("ends").code(), Some(1), "{}", second.output());
    second.ready_output("another sortie process", LATE).await.expect("says why");
    assert!(!ready_file.exists(), "it never served");
    let said = succeeds(sortie(&home).args(["mcp", "call", "files", "read", r#"{"path": "plan.md"}"#])).await;
    assert!(said.contains("TODO: ship it") && up.ready_file.exists(), "{said}");
}

fn private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o777 == 0o600)
}

/// The Inspector needs a newer Node than servers do, and is a program of its own.
#[tokio::test]
async fn the_inspector_lists_tools() {
    let Some(inspector) = tool("SORTIE_TEST_INSPECTOR") else { return };
    let Some(node) = tool("SORTIE_TEST_NODE22") else { return };
    let home = TempHome::new().expect("home");
    let up = Up::start(&home).await;
    let line = up.paste("# MCP Inspector");
    let run = format!("'{}' '{}'", node.display(), inspector.display());
    let line = line.replace("npx @modelcontextprotocol/inspector", &run);
    let said = pasted(&home, &line, Some(&node)).await;
    for name in ["list", "read", "search"] {
        assert!(said.contains(&format!("\"name\": \"{name}\"")), "{said}");
    }
}
