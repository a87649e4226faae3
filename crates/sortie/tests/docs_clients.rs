//! The page `docs/clients.md`: every block of it is run as it stands there, against a server behind a tunnel.

#![allow(clippy::indexing_slicing, reason = "a missing part of the page is a failure")]

mod interop;

use std::path::{Path, PathBuf};

use sortie_testkit::{Program, TempHome, tool};

use interop::{Hub, LATE, Tunnel, blocks_of, succeeds};

const TOOLS: [&str; 3] = ["list", "read", "search"];

/// The blocks under a heading, with the word behind their fence.
fn blocks(heading: &str) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/clients.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no `{heading}`"));
    let section = section.split("\n## ").next().expect("a section");
    let blocks = blocks_of(section);
    assert!(!blocks.is_empty(), "no block under `{heading}`");
    blocks
}

/// The only block under a heading.
fn block(heading: &str, kind: &str) -> String {
    let mut all = blocks(heading);
    assert!(all.len() == 1 && all[0].0 == kind, "{heading}: {all:?}");
    all.remove(0).1
}

/// The built-in server behind a tunnel, and a program with what the page wants in its environment.
struct Page {
    home: TempHome,
    url: String,
    key: String,
    _hub: Hub,
    _tunnel: Tunnel,
}

impl Page {
    async fn open() -> Self {
        let home = TempHome::new().expect("home");
        home.write("papers/a.md", "hello\n").expect("paper");
        let hub = Hub::start(&home).await;
        let config = format!("[routes.files]\nupstream = \"builtin:files\"\nroot = {:?}\n", home.join("papers"));
        let tunnel = Tunnel::open(&home, &hub, &config).await;
        Self { url: tunnel.path_url(&hub, "files"), key: tunnel.use_key.clone(), home, _hub: hub, _tunnel: tunnel }
    }

    fn program(&self, path: &Path) -> Program {
        let program = self.home.apply(Program::new(path)).env("NO_PROXY", "*").env("PYTHONWARNINGS", "ignore");
        program.env("SORTIE_URL", &self.url).env("SORTIE_KEY", &self.key)
    }

    async fn lists(&self, what: &str, program: Program) {
        let said = succeeds(program).await;
        for name in TOOLS {
            assert!(said.contains(name), "{what}: {said}");
        }
    }

    async fn python(&self, heading: &str, variable: &str) {
        let Some(interpreter) = tool(variable) else { return };
        let script = self.home.write("block.py", block(heading, "python")).expect("written");
        self.lists(heading, self.program(&interpreter).arg(script)).await;
    }

    async fn node(&self, heading: &str, modules: &Path) {
        let script = self.home.write("block.mjs", block(heading, "js")).expect("written");
        let linked = self.home.join("node_modules");
        if !linked.exists() {
            std::os::unix::fs::symlink(modules, &linked).expect("linked");
        }
        self.lists(heading, self.program(Path::new("node")).arg(script)).await;
    }
}

#[tokio::test]
async fn the_blocks_for_python() {
    let page = Page::open().await;
    page.python("Python SDK 1.x", "SORTIE_TEST_PYTHON_MCP1").await;
    page.python("Python SDK 2.x", "SORTIE_TEST_PYTHON_MCP2").await;
    page.python("fastmcp", "SORTIE_TEST_PYTHON_FASTMCP").await;
}

#[tokio::test]
async fn the_blocks_for_node() {
    let Some(modules) = tool("SORTIE_TEST_NODE_MODULES") else { return };
    let page = Page::open().await;
    page.node("TypeScript SDK 1.x", &modules).await;
    page.node("TypeScript SDK 2.x", &modules).await;
}

#[tokio::test]
async fn the_block_for_the_inspector() {
    let (Some(inspector), Some(node)) = (tool("SORTIE_TEST_INSPECTOR"), tool("SORTIE_TEST_NODE22")) else { return };
    let page = Page::open().await;
    let run = format!("'{}' '{}'", node.display(), inspector.display());
    let line = block("MCP Inspector", "sh").replace("npx @modelcontextprotocol/inspector", &run);
    let auto = format!("{} --protocol-era auto", line.trim_end());
    for line in [line, auto] {
        page.lists("MCP Inspector", page.program(Path::new("sh")).args(["-eu", "-c", &line])).await;
    }
}

/// A client that reads such a list of servers, and starts what it names.
const READS_SERVERS: &str = "
import asyncio, json, sys
from fastmcp import Client

async def main():
    async with Client(json.load(open(sys.argv[1]))) as client:
        print([tool.name for tool in await client.list_tools()])

asyncio.run(main())
";

#[tokio::test]
async fn the_blocks_for_mcp_remote() {
    let Some(modules) = tool("SORTIE_TEST_NODE_MODULES") else { return };
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let page = Page::open().await;
    let all = blocks("mcp-remote, for clients that speak stdio only");
    let [(sh, file), (json, servers)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((sh.as_str(), json.as_str()), ("sh", "json"));
    let mut shell = page.program(Path::new("sh")).args(["-eu", "-c", file]).spawn().expect("sh");
    assert!(shell.exit(LATE).await.expect("ends").success(), "{}", shell.output());
    let headers = page.home.join(".config/sortie/headers");
    assert_eq!(std::fs::read_to_string(&headers).expect("headers"), format!("x-api-key: {}\n", page.key));
    assert!(private(&headers), "a key is in it");

    // The page's own example, with what it says to put in.
    let installed: PathBuf = modules.join("mcp-remote/dist/proxy.js");
    let mut servers: serde_json::Value = serde_json::from_str(servers).expect("JSON");
    let server = servers.pointer_mut("/mcpServers/files").expect("a server");
    assert_eq!(server["command"], "npx");
    let arguments: Vec<String> = serde_json::from_value(server["args"].clone()).expect("arguments");
    assert_eq!(arguments[0], "-y");
    let pinned = std::fs::read_to_string(modules.join("mcp-remote/package.json")).expect("package");
    let pinned: serde_json::Value = serde_json::from_str(&pinned).expect("JSON");
    assert_eq!(arguments[1], format!("mcp-remote@{}", pinned["version"].as_str().expect("version")));
    let mut arguments = arguments[1..].to_vec();
    arguments[0] = installed.display().to_string();
    arguments.push("--allow-http".to_owned());
    for argument in &mut arguments {
        if argument == "https://files.abcd1234.tunnels.example.com/mcp" {
            argument.clone_from(&page.url);
        } else if argument == "/home/me/.config/sortie/headers" {
            *argument = headers.display().to_string();
        }
    }
    *server = serde_json::json!({ "command": "node", "args": arguments });
    let list = page.home.write("servers.json", servers.to_string()).expect("written");
    let script = page.home.write("reads.py", READS_SERVERS).expect("written");
    page.lists("mcp-remote", page.program(&interpreter).arg(script).arg(list)).await;
}

fn private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o777 == 0o600)
}
