//! The official MCP conformance suite, directly and through a tunnel. Its server scenarios by path and by hostname: each
//! gives the same line, and each check of it the same outcome. Its client scenarios with an official client by path.

#[path = "conformance/follower.rs"]
mod follower;
mod interop;
#[path = "conformance/keyed.rs"]
mod keyed;
#[path = "conformance/suite.rs"]
mod suite;

use std::net::{Ipv4Addr, SocketAddr};

use sortie_conformance_server::ConformanceServer;
use sortie_testkit::{TempHome, tool};
use sortie_tls::api_client_config;

use follower::Follower;
use interop::{Hub, Tunnel, script};
use keyed::{Keyed, Target};
use suite::{Suite, changes};

/// The client scenarios that look at what is on the way, and their revisions of the protocol.
const CLIENT_SCENARIOS: [(&str, &str); 7] = [
    ("elicitation-sep1034-client-defaults", "2025-11-25"),
    ("sse-retry", "2025-11-25"),
    ("tools_call", "2026-07-28"),
    ("request-metadata", "2026-07-28"),
    ("sep-2322-client-request-state", "2026-07-28"),
    ("http-standard-headers", "2026-07-28"),
    ("http-custom-headers", "2026-07-28"),
];

/// A gateway's settings with one route.
fn route(upstream: SocketAddr) -> String {
    format!("[upstream]\nallowed_ips = [\"127.0.0.1\"]\n[routes.conformance]\nupstream = \"http://{upstream}\"\n")
}

/// Requires that the suite finds the same on every way, that nothing fails, and that it looked at everything.
///
/// All ways go through a relay that adds the key, the direct one too: the suite can be told a URL and nothing else.
async fn same_everywhere(revision: &str, scenarios: usize, total: &str) {
    let Some(suite) = Suite::installed() else { return };
    let home = TempHome::new().expect("home");
    let server = ConformanceServer::bind((Ipv4Addr::LOCALHOST, 0).into()).await.expect("server");
    let hub = Hub::start(&home).await;
    let upstream = server.addr();
    let config =
        format!("[upstream]\nallowed_ips = [\"127.0.0.1\"]\n[routes.conformance]\nupstream = \"http://{upstream}\"\n");
    let tunnel = Tunnel::open(&home, &hub, &config).await;

    let key = || tunnel.use_key.clone();
    let direct = Keyed::start(Target { addr: upstream, public: None, key: key() }).await.expect("relay");
    let by_path = tunnel.path_url(&hub, "conformance");
    let (api, path) = by_path.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
    let api: SocketAddr = api.parse().expect("the API's address");
    let path_relay = Keyed::start(Target { addr: api, public: None, key: key() }).await.expect("relay");
    let by_host = tunnel.host_url(&hub, "conformance");
    let public = by_host.strip_prefix("https://").and_then(|rest| rest.strip_suffix("/mcp")).expect("a URL");
    let edge: SocketAddr = hub.text("edge_addr").parse().expect("the edge's address");
    let ca = std::fs::read_to_string(hub.text("edge_ca_file")).expect("the edge's CA");
    let trust = api_client_config(Some(&ca), true).expect("trust");
    let public = Some((trust, public.to_owned()));
    let host_relay = Keyed::start(Target { addr: edge, public, key: key() }).await.expect("relay");

    let ways = [
        ("direct", format!("http://{}/mcp", direct.addr)),
        ("path", format!("http://{}/{path}", path_relay.addr)),
        ("host", format!("http://{}/mcp", host_relay.addr)),
    ];
    let running = ways.map(|(way, url)| suite.start(&home, way, &url, revision));
    let mut reports = Vec::new();
    for run in running {
        reports.push((run.way, run.report().await));
    }
    let [(_, direct), tunnelled @ ..] = reports.as_slice() else { panic!("a report of each run") };
    assert!(direct.passed && direct.lines.contains(&total.to_owned()), "{:#?}", direct.lines);
    assert_eq!(direct.checks.len(), scenarios, "{:#?}", direct.lines);
    let differences: Vec<_> = tunnelled.iter().flat_map(|(way, report)| report.differences(way, direct)).collect();
    assert!(
        differences.is_empty(),
        "through the tunnel (+) it is not as it is directly (-):\n{}",
        differences.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_era_of_sessions_conforms_through_a_tunnel_as_it_does_directly() {
    same_everywhere("2025-11-25", 33, "Total: 84 passed, 0 failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_era_without_sessions_conforms_through_a_tunnel_as_it_does_directly() {
    same_everywhere("2026-07-28", 50, "Total: 197 passed, 0 failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_conforms_through_a_tunnel_as_it_does_directly() {
    let Some(suite) = Suite::installed() else { return };
    let Some(python) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let home = TempHome::new().expect("home");
    let port_file = home.join("port");
    let server = Follower::start(port_file.clone()).await.expect("relay");
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &route(server.addr)).await;

    let direct = format!("{} {}", python.display(), script("mcp_explore.py").display());
    let by_path = tunnel.path_url(&hub, "conformance");
    let base = by_path.strip_suffix("/mcp").expect("a URL");
    let tunnelled = format!("{direct} --through {base} --upstream {} --key {}", port_file.display(), tunnel.use_key);
    let (mut failed, mut differences) = (Vec::new(), Vec::new());
    for (scenario, revision) in CLIENT_SCENARIOS {
        let ((passed, before), (_, now)) = tokio::join!(
            suite.client(&home, ("direct", scenario, revision), &direct),
            suite.client(&home, ("path", scenario, revision), &tunnelled),
        );
        if !passed {
            failed.push(format!("{scenario}, {revision}: {before:#?}"));
        }
        differences.extend(changes(&format!("{scenario}, {revision}"), &before, &now));
    }
    assert!(failed.is_empty(), "directly:\n{}", failed.join("\n"));
    assert!(
        differences.is_empty(),
        "through the tunnel (+) it is not as it is directly (-):\n{}",
        differences.join("\n")
    );
}
