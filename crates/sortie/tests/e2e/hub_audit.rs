//! Where a hub's own records and checkpoints go: sinks and places of a file of their own.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::TempHome;

use crate::audit::records;
use crate::common::{SOON, Upstream, World, run, send, sortie, text, until};

const TAKEN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// What some thousand operations may take on a loaded machine.
const LONG: Duration = Duration::from_secs(120);

/// The records that a receiver has taken, each once, in order.
fn taken(receiver: &Upstream) -> Vec<Value> {
    let bodies = receiver.seen().into_iter().map(|seen| String::from_utf8(seen.body).expect("text"));
    let lines = bodies.flat_map(|body| body.lines().map(str::to_owned).collect::<Vec<_>>());
    let mut all: Vec<Value> = lines.map(|line| serde_json::from_str(&line).expect("a record")).collect();
    all.sort_by_key(|record| record["seq"].as_u64());
    all.dedup();
    all
}

async fn create_key(world: &World) -> u16 {
    let body = json!({"kind": "manage", "name": "k".repeat(60), "grants": []});
    let asked = world.api(Method::POST, "/v1/sortie/keys").header("user-agent", "a".repeat(200)).json(&body);
    send(asked).await.status
}

/// What the hub says of its one sink, and whether its audit is well.
async fn sink(world: &World) -> (Value, bool) {
    let report = send(world.http.get(format!("{}/readyz", world.api_url))).await.json();
    let of = |pointer: &str| report.pointer(pointer).cloned().unwrap_or_else(|| panic!("no {pointer}: {report}"));
    (of("/sinks/0"), of("/audit/ok") == true)
}

async fn hub_with(home: &TempHome, file: &str) -> World {
    let file = home.write("hub-audit.toml", file).expect("file");
    World::start_in(vec![("SORTIE_AUDIT_CONFIG", file.display().to_string())]).await
}

#[tokio::test]
async fn its_records_reach_the_sinks_and_its_checkpoints_the_places_through_a_kill() {
    let home = TempHome::new().expect("home");
    let (receiver, bucket) = (Upstream::saying(TAKEN).await, Upstream::saying(TAKEN).await);
    std::fs::create_dir(home.join("worm")).expect("directory");
    let file = format!(
        "[[sinks]]\nname = \"siem\"\nkind = \"http\"\nurl = \"{}/in\"\nbatch_wait = \"10ms\"\n\
         [[publish]]\nname = \"worm\"\nfile = \"worm\"\n\
         [[publish]]\nname = \"bucket\"\nurl = \"{}/{{origin}}/{{size}}\"\n",
        receiver.url(),
        bucket.url()
    );
    let mut world = hub_with(&home, &file).await;
    for _ in 0..3 {
        assert_eq!(create_key(&world).await, 200);
    }
    let any = || taken(&receiver).iter().filter(|record| record["operation"] == "create_key").count();
    until("they arrive", SOON, async || any() >= 6).await;
    assert_eq!(create_key(&world).await, 200);
    world.hub.kill();
    world.restart_hub().await;
    until("what a kill left arrives", SOON, async || any() >= 8).await;
    let report = send(world.http.get(format!("{}/readyz", world.api_url))).await.json();
    let sink = report.pointer("/sinks/0").expect("a sink");
    assert_eq!((&sink["name"], &sink["state"], &sink["denies"]), (&json!("siem"), &json!("delivering"), &json!(false)));
    assert!(sink.get("last_error").is_none());
    assert!(world.hub.stop(SOON).await.expect("it stops").success());

    let log = records(&world.home.join("hub").join("audit"));
    assert_eq!(taken(&receiver), log, "every record, that of the end included");
    assert_eq!(log.last().expect("a record")["event"], "log_closed");
    // The checkpoint of the end stands for all of them.
    let published = std::fs::read_dir(home.join("worm")).expect("worm").next().expect("a log").expect("entry").path();
    let newest = std::fs::read_dir(&published).expect("log").map(|file| file.expect("entry").file_name());
    let newest = newest.max().expect("a checkpoint").to_string_lossy().parse::<usize>().expect("a size");
    assert_eq!(newest, log.len());
    let put = bucket.seen();
    let line = put.last().expect("a checkpoint").head.lines().next().expect("a line").to_owned();
    assert!(line.starts_with("PUT /sortie-hub-") && line.ends_with(&format!("/{:020} HTTP/1.1", log.len())), "{line}");
}

#[tokio::test]
async fn a_sink_that_is_too_far_behind_stops_changes_or_is_passed_over_as_the_file_says() {
    for on_full in ["deny", "drop-and-count"] {
        let home = TempHome::new().expect("home");
        let port = {
            let reserved = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
            reserved.local_addr().expect("address").port()
        };
        let file = format!(
            "[[sinks]]\nname = \"siem\"\nkind = \"http\"\nurl = \"http://127.0.0.1:{port}/in\"\non_full = \"{on_full}\"\n\
             spool_bytes = 1048576\nbatch_wait = \"10ms\"\n"
        );
        let mut world = hub_with(&home, &file).await;
        let full = async || {
            let statuses = futures_util::future::join_all((0..32).map(|_| create_key(&world))).await;
            let (sink, ok) = sink(&world).await;
            match on_full {
                "deny" => statuses.contains(&503) && sink["denies"] == true && !ok,
                _ => {
                    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
                    sink["dropped"].as_u64().is_some_and(|dropped| dropped > 0) && ok
                }
            }
        };
        until("it is full", LONG, full).await;
        if on_full == "deny" {
            let refused = send(world.api(Method::POST, "/v1/tunnels").json(&json!({}))).await;
            assert_eq!(refused.status, 503, "{}", refused.text());
            let said = text(&refused.json(), "/error/message").to_owned();
            assert!(said.contains("audit sink `siem` is too far behind, so nothing was done"), "{said}");
            assert_eq!(send(world.api(Method::GET, "/v1/tunnels")).await.status, 200, "what changes nothing goes on");
        }
        let receiver = Upstream::saying_at(port, TAKEN).await;
        // It does not wait for its next try, which may be a minute away.
        world.hub.kill();
        world.restart_hub().await;
        // What is refused makes no key, so that this makes one.
        until("changes go on", LONG, async || create_key(&world).await == 200).await;
        until("it has caught up", LONG, async || sink(&world).await.0["lag_records"] == 0).await;
        assert!(world.hub.stop(SOON).await.expect("it stops").success());
        let (got, log) = (taken(&receiver), records(&world.home.join("hub").join("audit")));
        let dropped: Vec<&Value> = log.iter().filter(|record| record["event"] == "sink_dropped").collect();
        let passed = |record: &Value| {
            let seq = record["seq"].as_u64().expect("number");
            let within = |told: &&Value| told["first"].as_u64() <= Some(seq) && Some(seq) <= told["last"].as_u64();
            dropped.iter().any(within)
        };
        let expected: Vec<Value> = log.iter().filter(|record| !passed(record)).cloned().collect();
        assert_eq!(got, expected, "{on_full}: all but what the log says");
        assert_eq!(dropped.is_empty(), on_full == "deny");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_stops_the_start() {
    let home = TempHome::new().expect("home");
    for (text, said) in [
        ("[[sinks]]\nname = \"a\"\n", "hub-audit.toml:1: "),
        (
            "[[sinks]]\nname = \"a\"\nkind = \"http\"\nurl = \"https://a/\"\ntls.ca_file = \"no.pem\"\n",
            "sinks.0.tls.ca_file",
        ),
        ("[[publish]]\nname = \"a\"\nfile = \"absent\"\n", ":3: publish.0.file: "),
    ] {
        let file = home.write("hub-audit.toml", text).expect("file");
        for role in ["hub", "up"] {
            let data = home.join(role);
            let program = sortie(&home).args([role, "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"]);
            let done = run(program.arg(data).arg("--audit-config").arg(&file)).await;
            done.failed(2, &[said]);
        }
    }
}
