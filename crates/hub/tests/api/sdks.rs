//! The official SDKs against the API, unmodified, over real sockets: every method of tunnels, and answers that are lost.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sortie_testkit::tool;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fixture::{Hub, pem};

/// A Python with the package `anthropic`, and the entry of the Node package `@anthropic-ai/sdk`.
const PYTHON: &str = "SORTIE_TEST_PYTHON_ANTHROPIC";
const NODE: &str = "SORTIE_TEST_NODE_ANTHROPIC";

fn python(interpreter: PathBuf) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(script("python/tunnels_api.py"));
    command
}

fn node(sdk: PathBuf) -> Command {
    let mut command = Command::new("node");
    command.arg(script("node/tunnels_api.mjs")).arg(sdk);
    command
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(name)
}

#[tokio::test]
async fn the_python_sdk_works_unmodified() {
    let Some(interpreter) = tool(PYTHON) else { return };
    every_method(python(interpreter)).await;
}

#[tokio::test]
async fn the_typescript_sdk_works_unmodified() {
    let Some(sdk) = tool(NODE) else { return };
    every_method(node(sdk)).await;
}

#[tokio::test]
async fn lost_answers_leave_no_spare_tunnel_behind_the_python_sdk() {
    let Some(interpreter) = tool(PYTHON) else { return };
    lost_answers(python(interpreter)).await;
}

#[tokio::test]
async fn lost_answers_leave_no_spare_tunnel_behind_the_typescript_sdk() {
    let Some(sdk) = tool(NODE) else { return };
    lost_answers(node(sdk)).await;
}

#[tokio::test]
async fn sessions_work_with_the_python_sdk() {
    let Some(interpreter) = tool(PYTHON) else { return };
    let mut command = Command::new(interpreter);
    command.arg(script("python/sessions_api.py"));
    sessions(command).await;
}

#[tokio::test]
async fn sessions_work_with_the_typescript_sdk() {
    let Some(sdk) = tool(NODE) else { return };
    let mut command = Command::new("node");
    command.arg(script("node/sessions_api.mjs")).arg(sdk);
    sessions(command).await;
}

async fn sessions(mut command: Command) {
    let mut tasks = JoinSet::new();
    let hub = Hub::new().await;
    let address = serve(&hub, &mut tasks).await;
    command.arg(format!("http://{address}")).arg(&hub.manage);
    let said = succeeds(command).await;
    assert!(said.contains("all as expected"), "{said}");
}

#[tokio::test]
async fn agents_environments_and_vaults_work_with_the_python_sdk() {
    let Some(interpreter) = tool(PYTHON) else { return };
    let mut command = Command::new(interpreter);
    command.arg(script("python/agents_api.py"));
    every_resource(command).await;
}

#[tokio::test]
async fn agents_environments_and_vaults_work_with_the_typescript_sdk() {
    let Some(sdk) = tool(NODE) else { return };
    let mut command = Command::new("node");
    command.arg(script("node/agents_api.mjs")).arg(sdk);
    every_resource(command).await;
}

async fn every_resource(mut command: Command) {
    let mut tasks = JoinSet::new();
    let hub = Hub::new().await;
    let address = serve(&hub, &mut tasks).await;
    command.arg(format!("http://{address}")).arg(&hub.manage);
    let said = succeeds(command).await;
    assert!(said.contains("all as expected"), "{said}");
    let records = serde_json::to_string(&hub.records()).expect("json");
    for event in ["agent_updated", "environment_deleted", "vault_archived", "vault_credential_updated"] {
        assert!(records.contains(event), "{event} is on record");
    }
    assert!(!records.contains("canary-secret"), "no secret is");
    assert!(!hub.holds("canary-secret"), "no secret lies open in the data directory");
}

async fn every_method(mut command: Command) {
    let mut tasks = JoinSet::new();
    let hub = Hub::new().await;
    let address = serve(&hub, &mut tasks).await;
    let files = tempfile::tempdir().expect("dir");
    command.arg(format!("http://{address}")).args([&hub.manage, &hub.usage]);
    command.args([certificate(&files, "first"), certificate(&files, "second")]);
    let said = succeeds(command).await;
    assert!(said.contains("all as expected"), "{said}");
    let left = hub.get("/v1/tunnels").await;
    assert!(left.data().is_empty(), "only archived tunnels are left");
}

async fn lost_answers(mut command: Command) {
    let mut tasks = JoinSet::new();
    let hub = Hub::new().await;
    let address = serve(&hub, &mut tasks).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let lossy = listener.local_addr().expect("address");
    tasks.spawn(lose_answers(listener, address, 2));
    let said = succeeds({
        command.arg(format!("http://{lossy}")).arg(&hub.manage);
        command
    })
    .await;
    assert!(said.contains("no spare tunnel"), "{said}");
    let all = hub.get("/v1/tunnels?include_archived=true").await;
    let lost = |tunnel: &&Value| tunnel.get("display_name").is_some_and(|name| name == "lost");
    let made = all.data().iter().filter(lost).count();
    assert_eq!(made, 2, "one whose answer was lost twice, one that was made afterwards: {}", all.body);
}

async fn serve(hub: &Hub, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let router = hub.router.clone();
    tasks.spawn(async move { axum::serve(listener, router).await.expect("serves") });
    address
}

/// A relay that breaks its first connections when the answer comes: the request was delivered, and all its work done.
async fn lose_answers(listener: TcpListener, target: SocketAddr, mut losses: u32) {
    let mut connections = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let mut server = TcpStream::connect(target).await.expect("the hub listens");
        if losses == 0 {
            connections.spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            continue;
        }
        losses -= 1;
        let (mut from_client, _to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let request = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
        let answer = async { from_server.read_u8().await.map(|_| ()) };
        tokio::select! {
            ended = request => panic!("the client gave up before there was an answer: {ended:?}"),
            answered = answer => answered.expect("an answer"),
        }
        client.set_zero_linger().expect("set");
    }
}

fn certificate(files: &TempDir, name: &str) -> PathBuf {
    let path = files.path().join(name);
    std::fs::write(&path, pem(name)).expect("written");
    path
}

async fn succeeds(mut command: Command) -> String {
    command.env("NO_PROXY", "127.0.0.1").env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    said
}
