//! The audit of a gateway where things go wrong: the process is killed, the disk is full.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, Process, Program, skip_host, tool};

use crate::common::{SOON, Tunnel, World, echo_route, modern, run, send, sortie, text, until};

/// All records of a log, in order.
pub(crate) fn records(dir: &Path) -> Vec<Value> {
    let entries = std::fs::read_dir(dir.join("log")).expect("log");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).expect("file")).collect();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn count(dir: &Path, event: &str) -> usize {
    records(dir).iter().filter(|record| record["event"] == event).count()
}

#[tokio::test]
async fn what_was_answered_is_on_record_when_the_gateway_is_killed() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let settings = echo_route(&echo);
    let dir = world.home.join("setup.data").join("audit");
    for round in 1..=3 {
        let mut gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
        let ready: Value = serde_json::from_slice(&std::fs::read(&gateway.ready_file).expect("ready")).expect("json");
        assert_eq!(Path::new(text(&ready, "/audit_dir")), dir);
        world.serves_again(&tunnel, "echo").await;
        let before = count(&dir, "call_done");
        let answer = world.echo(&tunnel, "echo", "the last words").await;
        gateway.process.kill();
        assert_eq!(answer.status, 200);
        let records = records(&dir);
        assert_eq!(count(&dir, "call_done"), before + 1, "round {round}");
        let done = records.iter().rfind(|record| record["event"] == "call_done").expect("done");
        let decided = &records[usize::try_from(done["decided"].as_u64().expect("number")).expect("number")];
        assert_eq!((&decided["id"], &decided["tool"]), (&done["id"], &json!("echo")), "round {round}");
        assert_eq!((&done["status"], &done["end"]), (&json!(200), &json!("complete")));
    }
    let mut gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
    world.serves_again(&tunnel, "echo").await;
    assert!(gateway.process.stop(SOON).await.expect("it stops").success());
    let records = records(&dir);
    assert!(records.iter().enumerate().all(|(number, record)| record["seq"] == number), "one log over all processes");
    assert_eq!(records.last().expect("a record")["event"], "log_closed");
}

/// A gateway whose data directory is a small file system of its own.
async fn on_a_small_disk(world: &World, tunnel: &Tunnel, settings: &str) -> Option<(Process, PathBuf, String)> {
    let data = world.home.join("small");
    std::fs::create_dir_all(&data).expect("directory");
    let mount = ["--mount", "--propagation", "private", "sh", "-c"];
    let root = is_root();
    let script = format!("mount -t tmpfs -o size=4m none {0} && exec \"$0\" \"$@\"", data.display());
    let unshare = |script: &str| {
        let program = Program::new("unshare").args(if root { &[][..] } else { &["--user", "--map-root-user"] });
        world.home.apply(program.args(mount).arg(script))
    };
    let mut tried = match unshare(&format!("mount -t tmpfs -o size=1m none {}", data.display())).spawn() {
        Ok(tried) => tried,
        Err(error) => {
            skip_host(&format!("no mount namespaces: {error}"));
            return None;
        }
    };
    if !tried.exit(SOON).await.is_ok_and(|status| status.success()) {
        skip_host(&format!("no file system of our own in a mount namespace: {}", tried.output()));
        return None;
    }
    let (config, ready_file) =
        (world.home.write("small.toml", settings).expect("config"), world.home.join("small.ready"));
    let mut process = unshare(&script)
        .arg(env!("CARGO_BIN_EXE_sortie"))
        .args(["gateway", "--health", "127.0.0.1:0", "--config"])
        .arg(config)
        .arg("--data-dir")
        .arg(&data)
        .arg("--setup-dir")
        .arg(&tunnel.dir)
        .arg("--ready-file")
        .arg(&ready_file)
        .spawn()
        .expect("gateway");
    let ready = process.ready_file(&ready_file, SOON).await.expect("gateway serves");
    let seen = PathBuf::from(format!("/proc/{}/root{}", process.id(), data.display()));
    let health = text(&ready, "/health_url").to_owned();
    Some((process, seen, health))
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Leaves no room at all.
pub(crate) fn fill(dir: &Path) {
    let mut file = std::fs::File::create(dir.join("filler")).expect("filler");
    for size in [64 * 1024, 4096, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
}

async fn ready(world: &World, health: &str) -> (u16, Value) {
    let answer = send(world.http.get(format!("{health}/readyz"))).await;
    (answer.status, answer.json())
}

#[tokio::test]
async fn a_full_disk_refuses_calls_until_there_is_room() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let settings = echo_route(&echo);
    let Some((mut gateway, data, health)) = on_a_small_disk(&world, &tunnel, &settings).await else { return };
    world.serves_again(&tunnel, "echo").await;
    let audit = data.join("audit");
    fill(&data);
    // What is left of the last block of the disk takes some records.
    until("calls are refused", SOON, async || world.echo(&tunnel, "echo", "on a full disk").await.status != 200).await;
    for id in 1..4 {
        let post = world.request(Method::POST, &tunnel, "echo", "/mcp");
        let answer = send(modern(post, &json!(id), "echo", &json!({"text": "never seen"}))).await;
        answer.rpc_refused(503, "audit", "cannot be recorded", &json!(id));
        send(world.request(Method::GET, &tunnel, "echo", "/mcp")).await.refused(503, "audit", "cannot be recorded");
    }
    let (status, report) = ready(&world, &health).await;
    assert_eq!((status, &report["ready"], &report["audit"]["ok"]), (503, &json!(false), &json!(false)), "{report}");
    assert!(text(&report, "/reason").starts_with("audit: "), "{report}");
    assert!(!gateway.output().contains("never seen"));

    std::fs::remove_file(data.join("filler")).expect("room");
    // By itself: no call is needed for it.
    until("it is ready again", SOON, async || ready(&world, &health).await.0 == 200).await;
    world.serves(&tunnel, "echo").await;
    let all = records(&audit);
    assert!(all.iter().enumerate().all(|(number, record)| record["seq"] == number), "nothing is torn");
    assert_eq!(count(&audit, "records_dropped"), 1, "what is missing is said");
    let forwarded = all.iter().filter(|record| record["outcome"] == "forwarded").count();
    assert!(gateway.stop(SOON).await.expect("it stops").success());
    assert!(forwarded > 1, "{forwarded}");
}

#[tokio::test]
async fn a_full_disk_lets_calls_through_where_the_settings_say_so() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let settings = echo_route(&echo) + "[audit]\non_failure = \"drop-and-count\"\n";
    let Some((_gateway, data, health)) = on_a_small_disk(&world, &tunnel, &settings).await else { return };
    world.serves_again(&tunnel, "echo").await;
    let audit = data.join("audit");
    fill(&data);
    let lost = async || ready(&world, &health).await.1["audit"]["dropped"].as_u64().unwrap_or(0);
    until("records are lost", SOON, async || {
        world.serves(&tunnel, "echo").await;
        lost().await > 2
    })
    .await;
    assert_eq!(ready(&world, &health).await.0, 200, "it serves");
    std::fs::remove_file(data.join("filler")).expect("room");
    until("what is missing is said", SOON, async || {
        world.serves(&tunnel, "echo").await;
        count(&audit, "records_dropped") == 1
    })
    .await;
    let all = records(&audit);
    assert!(all.iter().enumerate().all(|(number, record)| record["seq"] == number), "nothing is torn");
    let dropped = all.iter().find(|record| record["event"] == "records_dropped").expect("dropped");
    assert!(dropped["count"].as_u64().is_some_and(|count| count > 2), "{dropped}");
}

#[tokio::test]
async fn payloads_open_with_the_customers_key_and_nothing_else() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let (key, other) = (world.home.join("payload.key"), world.home.join("other.key"));
    for key in [&key, &other] {
        run(sortie(&world.home).args(["audit", "keygen"]).arg(key)).await.ok();
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&key).expect("key").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = run(sortie(&world.home).args(["audit", "keygen"]).arg(&key)).await;
    again.failed(2, &["payload.key exists"]);
    // A private key has no place there.
    let wrong = echo_route(&echo) + &format!("[audit.payload]\nkey_file = \"{}\"\n", key.display());
    let (mut refused, _) = world.spawn_gateway(&tunnel.dir, &wrong, &[]);
    assert_eq!(refused.exit(SOON).await.expect("it ends").code(), Some(2));
    assert!(refused.output().contains("audit.payload.key_file: "), "{}", refused.output());

    let payload = format!("[audit.payload]\nkey_file = \"{}.pub\"\nanswers = true\nmax_bytes = 200\n", key.display());
    let mut gateway = world.gateway(&tunnel.dir, &(echo_route(&echo) + &payload), &[]).await;
    world.serves_again(&tunnel, "echo").await;
    let said = "a secret that two know";
    let answer = world.echo(&tunnel, "echo", said).await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.echo(&tunnel, "echo", &"x".repeat(1000)).await.status, 200);
    assert!(gateway.process.stop(SOON).await.expect("it stops").success());
    let dir = world.home.join("setup.data").join("audit");
    let log = dir.join("log").join("00000000000000000000.jsonl");
    assert!(!std::fs::read_to_string(&log).expect("log").contains("secret"), "it is sealed");

    let ours = run(sortie(&world.home).args(["audit", "decrypt", "--key"]).arg(&key).arg(&dir)).await.ok();
    let ours: Vec<Value> = ours.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let arguments = json!({ "text": said }).to_string();
    let sent = ours.iter().position(|opened| opened["payload"] == arguments).expect("the arguments");
    let (sent, answered) = (&ours[sent], &ours[sent + 1]);
    assert_eq!((&sent["event"], &sent["cut"]), (&json!("call_decided"), &json!(false)));
    assert_eq!((&answered["event"], &answered["id"]), (&json!("call_done"), &sent["id"]));
    assert!(answer.text().starts_with(text(answered, "/payload")), "{answered}");
    let long = &ours[ours.len() - 2];
    assert_eq!((text(long, "/payload").len(), &long["cut"], &long["bytes"]), (200, &json!(true), &json!(1011)));
    let closed = run(sortie(&world.home).args(["audit", "decrypt", "--key"]).arg(&other).arg(&dir)).await;
    closed.failed(1, &["nothing opens with this key"]);

    let Some(python) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python/open_payloads.py");
    let theirs = run(Program::new(python).arg(script).arg(&key).arg(&log)).await.json();
    let same = |opened: &Value| json!({ "seq": opened["seq"], "payload": opened["payload"], "cut": opened["cut"] });
    assert_eq!(theirs, json!(ours.iter().map(same).collect::<Vec<_>>()));
}
