//! The official Python SDK against the API, over a real socket.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::fixture::{Hub, pem};

/// Names the Python interpreter that has the SDK.
const PYTHON: &str = "SORTIE_TEST_PYTHON_ANTHROPIC";

#[tokio::test]
async fn the_python_sdk_works_unmodified() {
    let Some(python) = std::env::var_os(PYTHON) else {
        println!("skipped: {PYTHON} does not name a Python with the package `anthropic`");
        return;
    };
    let hub = Hub::new().await;
    let files = tempfile::tempdir().expect("dir");
    let (first, second) = (files.path().join("ca.pem"), files.path().join("ca2.pem"));
    std::fs::write(&first, pem("the first certificate")).expect("write");
    std::fs::write(&second, pem("the second certificate")).expect("write");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let address = listener.local_addr().expect("address");
    let mut tasks = JoinSet::new();
    let router = hub.router.clone();
    tasks.spawn(async move { axum::serve(listener, router).await });

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/tunnels_api.py");
    let mut command = Command::new(python);
    command.arg(script).arg(format!("http://{address}")).args([&hub.manage, &hub.usage]).args([&first, &second]);
    command.env("NO_PROXY", "127.0.0.1").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("python runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}
