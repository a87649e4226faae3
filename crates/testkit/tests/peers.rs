//! `mcp-echo` as the official SDKs see it: both protocol eras over HTTP, and the legacy one over standard input.

use std::path::Path;
use std::time::Duration;

use sortie_testkit::{EchoServer, Program, TempHome, tool};

/// Python under load takes seconds to import an SDK.
const LATE: Duration = Duration::from_secs(60);

async fn python(python: &Path, script: &str, args: &[&str]) -> String {
    let home = TempHome::new().expect("home");
    let file = home.write("peer.py", script).expect("script");
    let program = home.apply(Program::new(python)).arg("-u").arg(file).args(args);
    let mut process = program.spawn().expect("python");
    let status = process.exit(LATE).await.expect("exit");
    assert!(status.success(), "{}", process.output());
    process.ready_output("done", LATE).await.expect("output");
    process.output()
}

#[tokio::test]
async fn the_python_sdk_finds_the_modern_era_and_can_fall_back() {
    let Some(sdk) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let server = EchoServer::start().await.expect("server");
    let script = r#"
import asyncio, sys
from mcp.client import Client
async def main(url):
    for settings in ({}, {"mode": "legacy"}):
        async with Client(url, **settings) as client:
            echoed = await client.call_tool("echo", {"text": "grüße"})
            await client.call_tool("progress", {"count": 2, "interval_ms": 10})
            print(client.protocol_version, echoed.content[0].text, len((await client.list_tools()).tools))
asyncio.run(main(sys.argv[1]))
print("done")
"#;
    let said = python(&sdk, script, &[&server.url()]).await;
    assert!(said.contains("2026-07-28 grüße 7") && said.contains("2025-11-25 grüße 7"), "{said}");
}

#[tokio::test]
async fn the_older_python_sdk_speaks_over_standard_input() {
    let Some(sdk) = tool("SORTIE_TEST_PYTHON_MCP1") else { return };
    let script = r#"
import asyncio, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main(program):
    async with stdio_client(StdioServerParameters(command=program, args=["--stdio"])) as (read, write):
        async with ClientSession(read, write) as session:
            print((await session.initialize()).protocolVersion)
            print((await session.call_tool("echo", {"text": "hello"})).content[0].text)
asyncio.run(main(sys.argv[1]))
print("done")
"#;
    let said = python(&sdk, script, &[env!("CARGO_BIN_EXE_mcp-echo")]).await;
    assert!(said.contains("2025-11-25\nhello"), "{said}");
}
