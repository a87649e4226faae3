//! The `files` connector with the Python SDKs of both protocol eras, over a loopback listener.
//!
//! The interpreters are named by `SORTIE_TEST_PYTHON_MCP2` (package `mcp` 2.x) and `SORTIE_TEST_PYTHON_MCP1` (1.x);
//! where one is not named, its test says that it is skipped.

mod common;

use std::convert::Infallible;
use std::io::Write as _;
use std::time::Duration;

use common::serve;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sortie_connectors::files::FilesService;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

/// Serves connections until the future is dropped, which ends them all.
async fn listen(listener: TcpListener, service: FilesService) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let service = service.clone();
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let service = service.clone();
                async move { Ok::<_, Infallible>(service.call(request).await) }
            });
            // A client that hangs up early is none of this test's business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// Runs a script against the connector; what it prints, or `None` where its interpreter is not named.
async fn run(variable: &str, script: &str, mode: Option<&str>) -> Option<String> {
    let Some(python) = std::env::var_os(variable) else {
        // Past the harness, which keeps what a passing test prints.
        let _ = writeln!(std::io::stderr(), "skipped: {script} {}: {variable} is not set", mode.unwrap_or_default());
        return None;
    };
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("docs")).expect("mkdir");
    std::fs::write(dir.path().join("docs/a.md"), "hello from a file\n").expect("write");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/mcp", listener.local_addr().expect("an address"));
    let script = format!("{}/tests/python/{script}", env!("CARGO_MANIFEST_DIR"));
    let client = Command::new(python).arg(script).arg(url).args(mode).kill_on_drop(true).output();
    let output = tokio::select! {
        () = listen(listener, serve(dir.path())) => unreachable!("it listens for ever"),
        output = tokio::time::timeout(Duration::from_secs(90), client) => output.expect("the client ends").expect("it runs"),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn python_2_negotiates_the_stateless_era() {
    if let Some(printed) = run("SORTIE_TEST_PYTHON_MCP2", "client_2.py", Some("auto")).await {
        assert!(printed.contains("2026-07-28"), "{printed}");
    }
}

#[tokio::test]
async fn python_2_speaks_the_session_era() {
    if let Some(printed) = run("SORTIE_TEST_PYTHON_MCP2", "client_2.py", Some("legacy")).await {
        assert!(printed.contains("2025-11-25"), "{printed}");
    }
}

#[tokio::test]
async fn python_1_speaks_the_session_era() {
    if let Some(printed) = run("SORTIE_TEST_PYTHON_MCP1", "client_1.py", None).await {
        assert!(printed.contains("2025-11-25"), "{printed}");
    }
}
