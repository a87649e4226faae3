//! `mcp-echo` as a program: its ready file, its end on `SIGTERM`, its refusal of unknown options.

use std::time::Duration;

use sortie_testkit::{Load, Program, TempHome};

const SOON: Duration = Duration::from_secs(10);
const MCP_ECHO: &str = env!("CARGO_BIN_EXE_mcp-echo");

#[tokio::test]
async fn it_says_where_it_serves_and_ends_when_asked() {
    let home = TempHome::new().expect("home");
    let (ready_file, log) = (home.join("ready.json"), home.join("events.jsonl"));
    let program = Program::new(MCP_ECHO).args(["--http", "127.0.0.1:0", "--ready-file"]).arg(&ready_file);
    let mut process = program.arg("--log").arg(&log).spawn().expect("mcp-echo");
    let ready = process.ready_file(&ready_file, SOON).await.expect("ready");
    let url = ready["url"].as_str().expect("url");
    let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
    let load = Load::post_json(url, initialize).header("accept", "application/json, text/event-stream");
    load.lasting(Duration::from_millis(10)).run().await.expect("answers");
    assert!(std::fs::read_to_string(&log).expect("log").contains(r#""event":"session-started""#));
    assert!(process.stop(SOON).await.expect("stop").success(), "{}", process.output());
}

#[tokio::test]
async fn wrong_use_is_exit_code_2() {
    let mut process = Program::new(MCP_ECHO).args(["--http", "nowhere"]).spawn().expect("mcp-echo");
    assert_eq!(process.exit(SOON).await.expect("exit").code(), Some(2));
    process.ready_output("usage: mcp-echo", SOON).await.expect("usage");
}
