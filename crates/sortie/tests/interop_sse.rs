//! The legacy transport HTTP with SSE (MCP 2024-11-05) with a tunnel between its official clients and the reference
//! server: by hostname and by path, the same as directly.

mod interop;

use std::path::Path;

use sortie_testkit::{Process, Program, TempHome, free_port, tool};

use interop::{Hub, LATE, Tunnel, python};

/// What a client printed, without what its libraries log.
async fn transcript(mut process: Process, who: &str) -> Vec<String> {
    let status = process.exit(LATE).await.expect("ends");
    process.ready_output("[\"end\"", LATE).await.unwrap_or_else(|error| panic!("{who}: {error}"));
    let said = process.output();
    assert!(status.success(), "{who}: {status}: {said}");
    said.lines().filter(|line| line.starts_with("[\"")).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn the_legacy_transport_looks_the_same_through_a_tunnel() {
    let Some(script) = tool("SORTIE_TEST_SERVER_EVERYTHING") else { return };
    let Some((one, two)) = tool("SORTIE_TEST_PYTHON_MCP1").zip(tool("SORTIE_TEST_PYTHON_MCP2")) else { return };
    let home = TempHome::new().expect("home");
    let port = free_port().expect("port");
    let server = home.apply(Program::new("node")).arg(&script).arg("sse").env("PORT", port.to_string());
    let mut server = server.spawn().expect("node");
    server.ready_output("running on port", LATE).await.expect("server");

    let hub = Hub::start(&home).await;
    let settings = format!(
        "[upstream]\nallowed_ips = [\"127.0.0.1\"]\n[routes.everything]\nupstream = \"http://127.0.0.1:{port}\"\n"
    );
    let tunnel = Tunnel::open(&home, &hub, &settings).await;
    let ca = hub.text("edge_ca_file").to_owned();
    let sse = |url: String| format!("{}/sse", url.strip_suffix("/mcp").expect("an MCP URL"));
    let ways = [
        ("direct", format!("http://127.0.0.1:{port}/sse"), false),
        ("path", sse(tunnel.path_url(&hub, "everything")), true),
        ("host", sse(tunnel.host_url(&hub, "everything")), true),
    ];
    let by_python = |interpreter: &Path, url: &str, tunnelled: bool| {
        let program = python(&home, interpreter, "mcp_sse_walk.py").env("PYTHONWARNINGS", "ignore").arg(url);
        if tunnelled { program.args(["--key", &tunnel.use_key, "--ca", &ca]) } else { program }
    };
    let by_node = |url: &str, tunnelled: bool| {
        let walk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node/sse_walk.mjs");
        let program = home.apply(Program::new("node")).env("NODE_EXTRA_CA_CERTS", &ca).arg(walk).arg(&script).arg(url);
        if tunnelled { program.arg(&tunnel.use_key) } else { program }
    };
    for client in ["python 1", "python 2", "node"] {
        let mut seen = Vec::new();
        let running = ways.iter().map(|(way, url, tunnelled)| {
            let program = match client {
                "python 1" => by_python(&one, url, *tunnelled),
                "python 2" => by_python(&two, url, *tunnelled),
                _ => by_node(url, *tunnelled),
            };
            (format!("{client}, {way}"), program.spawn().expect("client"))
        });
        for (who, process) in running.collect::<Vec<_>>() {
            seen.push((transcript(process, &who).await, who));
        }
        let (direct, _) = seen.first().expect("direct");
        assert!(direct.iter().any(|line| line.contains("你好")), "{client}: {direct:#?}");
        for (lines, who) in &seen {
            assert_eq!(lines, direct, "{who} (left) differs");
        }
    }
}
