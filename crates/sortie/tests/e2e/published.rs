//! What the hub records of its own, and what gateways publish to it: where things go wrong.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, Process, Program, skip_host};

use crate::audit::{fill, is_root, records};
use crate::common::{Answer, SOON, Tunnel, World, client, echo_route, run, send, sortie, text, until};

fn copy(from: &Path, to: &Path) {
    let _none = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("directory");
    for entry in std::fs::read_dir(from).expect("directory") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("type").is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).expect("copied")),
        }
    }
}

/// The sizes of the checkpoints that the hub has and has not refused, newest first.
async fn published(world: &World, tunnel: &Tunnel) -> Vec<u64> {
    let list = run(world.operator(&["audit", "published", &tunnel.id, "--output", "json"])).await.json();
    let list = list.as_array().or_else(|| list.get("data")?.as_array()).cloned().unwrap_or_else(|| panic!("{list}"));
    list.iter().filter(|one| one["refused"].is_null()).filter_map(|one| one["size"].as_u64()).collect()
}

#[tokio::test]
async fn a_log_that_was_set_back_is_noticed_by_the_hub_and_by_verify() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let settings = format!("{}\n[audit]\ncheckpoint_every = \"1s\"\n", echo_route(&echo));
    let dir = world.home.join("setup.data").join("audit");
    let verify = || world.operator(&["audit", "verify", "--published"]).arg(&dir);

    let mut gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
    world.serves_again(&tunnel, "echo").await;
    until("a checkpoint is published", SOON, async || !published(&world, &tunnel).await.is_empty()).await;
    assert!(gateway.process.stop(SOON).await.expect("it stops").success());
    let backup = world.home.join("backup");
    copy(&dir, &backup);
    assert!(run(verify()).await.ok().contains("checkpoints from elsewhere"));

    let mut gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
    for _ in 0..20 {
        world.serves_again(&tunnel, "echo").await;
    }
    let later = u64::try_from(records(&backup).len()).expect("small") + 20;
    let grown = async || published(&world, &tunnel).await.first().is_some_and(|size| *size > later);
    until("the log that has grown is published", SOON, grown).await;
    let report = send(world.http.get(format!("{}/readyz", gateway.health))).await.json();
    assert_eq!((&report["published"][0]["place"], &report["published"][0]["ok"]), (&json!("hub"), &json!(true)));
    assert!(gateway.process.stop(SOON).await.expect("it stops").success());
    run(verify()).await.ok();

    copy(&backup, &dir);
    run(world.operator(&["audit", "verify"]).arg(&dir)).await.ok();
    run(verify()).await.failed(1, &["NOT verified"]);

    let gateway = world.gateway(&tunnel.dir, &settings, &[]).await;
    let hub = world.home.join("hub").join("audit");
    let refused = || records(&hub).into_iter().find(|record| record["event"] == "checkpoint_refused");
    until("the hub records it", SOON, async || refused().is_some()).await;
    let refused = refused().expect("recorded");
    assert_eq!((&refused["tunnel_id"], &refused["why"]), (&json!(tunnel.id), &json!("smaller")));
    let told = async || {
        let report = send(world.http.get(format!("{}/readyz", gateway.health))).await;
        // No call is held up by it.
        assert_eq!(report.status, 200, "{}", report.text());
        report.json()["published"][0]["ok"] == false
    };
    until("the gateway tells of it", SOON, told).await;
    world.serves(&tunnel, "echo").await;

    // A new log in the place of the old one is none that was published.
    let other = world.home.join("other");
    copy(&hub, &other);
    let swapped = run(world.operator(&["audit", "verify", "--published"]).arg(&other)).await;
    swapped.failed(1, &["NOT verified: no checkpoint of sortie-hub/"]);
}

#[tokio::test]
async fn what_was_asked_of_a_hub_that_is_killed_is_on_record() {
    let mut world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    world.serves_again(&tunnel, "echo").await;
    // The gateway is asked for the decision, and does not answer.
    let stop =
        |signal: &str| std::process::Command::new("kill").args([signal, &gateway.process.id().to_string()]).status();
    assert!(stop("-STOP").expect("kill").success());
    let path = format!("/v1/sortie/tunnels/{}/approvals/apr_1", tunnel.id);
    let decide = world.api(Method::POST, &path).json(&json!({"decision": "deny"}));
    let mut pending = tokio::task::JoinSet::new();
    pending.spawn(async move { decide.send().await.is_ok() });
    let hub = world.home.join("hub").join("audit");
    let of = |event: &str| -> Vec<Value> {
        let all = records(&hub).into_iter();
        all.filter(|record| record["event"] == event && record["operation"] == "decide_approval").collect()
    };
    until("the request is recorded", SOON, async || !of("management_requested").is_empty()).await;
    world.hub.kill();
    let answered = pending.join_next().await.expect("one").expect("request");
    assert!(!answered, "nothing was answered");
    assert!(stop("-CONT").expect("kill").success());

    world.restart_hub().await;
    let requested = of("management_requested");
    assert_eq!(requested.len(), 1);
    let first = requested.first().expect("one");
    assert_eq!((&first["target"]["approval_id"], &first["actor"]["type"]), (&json!("apr_1"), &json!("key")));
    assert_eq!(first["actor"]["ip_address"], "127.0.0.1");
    let outcome = records(&hub).into_iter().filter(|record| record["id"] == first["id"]).count();
    assert_eq!(outcome, 1, "what came of it is not known");
    run(sortie(&world.home).args(["audit", "verify"]).arg(&hub)).await.ok();
}

/// A hub whose audit log is on a small file system of its own.
struct Small {
    hub: Process,
    /// Where the log is, as seen from here.
    audit: PathBuf,
    http: reqwest::Client,
    api: String,
    key: String,
}

impl Small {
    async fn start(world: &World, more: &[&str]) -> Option<Self> {
        let (data, audit) = (world.home.join("hub2"), world.home.join("small"));
        std::fs::create_dir_all(&audit).expect("directory");
        let ready_file = world.home.join("hub2.ready");
        let script = format!("mount -t tmpfs -o size=1m,mode=0700 none {} && exec \"$0\" \"$@\"", audit.display());
        let unshare = |script: &str| {
            let program =
                Program::new("unshare").args(if is_root() { &[][..] } else { &["--user", "--map-root-user"] });
            world.home.apply(program.args(["--mount", "--propagation", "private", "sh", "-c"]).arg(script))
        };
        let mut tried = match unshare(&format!("mount -t tmpfs -o size=1m,mode=0700 none {}", audit.display())).spawn()
        {
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
        let mut hub = unshare(&script)
            .arg(env!("CARGO_BIN_EXE_sortie"))
            .args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .arg("--audit-dir")
            .arg(&audit)
            .arg("--ready-file")
            .arg(&ready_file)
            .args(more)
            .spawn()
            .expect("hub");
        let ready = hub.ready_file(&ready_file, SOON).await.expect("hub serves");
        let seen = PathBuf::from(format!("/proc/{}/root{}", hub.id(), audit.display()));
        assert_eq!(text(&ready, "/audit_dir"), audit.display().to_string());
        let (api, key) = (text(&ready, "/api_url").to_owned(), text(&ready, "/api_key").to_owned());
        Some(Self { hub, audit: seen, http: client(), api, key })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.api)).header("x-api-key", &self.key)
    }

    async fn create(&self) -> Answer {
        send(self.request(Method::POST, "/v1/tunnels").json(&json!({}))).await
    }

    async fn tunnels(&self) -> usize {
        let list = send(self.request(Method::GET, "/v1/tunnels")).await.json();
        list.get("data").and_then(Value::as_array).expect("list").len()
    }

    async fn report(&self) -> Value {
        let report = send(self.http.get(format!("{}/readyz", self.api))).await;
        assert_eq!(report.status, 200, "calls go on");
        report.json()
    }
}

#[tokio::test]
async fn a_hub_whose_audit_is_full_does_nothing() {
    let world = World::start().await;
    let Some(mut small) = Small::start(&world, &[]).await else { return };
    assert_eq!(small.create().await.status, 200);
    fill(&small.audit);
    // What is left of the last block of the disk takes some records.
    until("nothing more is done", SOON, async || small.create().await.status != 200).await;
    let before = small.tunnels().await;
    for _ in 0..3 {
        let refused = small.create().await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(text(&refused.json(), "/error/message").contains("takes no records, so nothing was done"));
    }
    assert_eq!(small.tunnels().await, before);
    assert_eq!(small.report().await["audit"]["ok"], false);

    std::fs::remove_file(small.audit.join("filler")).expect("room");
    until("there is room again", SOON, async || small.create().await.status == 200).await;
    let all = records(&small.audit);
    assert!(all.iter().enumerate().all(|(number, record)| record["seq"] == number), "nothing is torn");
    let all = serde_json::to_string(&all).expect("json");
    assert!(!all.contains(&small.key), "no key in a record");
    assert!(small.hub.stop(SOON).await.expect("it stops").success());
}

#[tokio::test]
async fn a_hub_whose_audit_is_full_goes_on_where_it_is_told_to_and_says_what_is_missing() {
    let world = World::start().await;
    let more = ["--audit-on-failure", "drop-and-count", "--max-tunnels", "1000"];
    let Some(mut small) = Small::start(&world, &more).await else { return };
    assert_eq!(small.create().await.status, 200);
    fill(&small.audit);
    let made = AtomicUsize::new(1);
    until("records are lost", SOON, async || {
        let answer = small.create().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        made.fetch_add(1, Ordering::Relaxed);
        small.report().await["audit"]["ok"] == false
    })
    .await;
    let made = made.into_inner();
    // Each leaves two.
    for _ in 0..3 {
        assert_eq!(small.create().await.status, 200);
    }
    assert_eq!(small.tunnels().await, made + 3, "what was asked for was done");
    std::fs::remove_file(small.audit.join("filler")).expect("room");
    let told = || records(&small.audit).into_iter().find(|record| record["event"] == "records_dropped");
    until("what is missing is said", SOON, async || told().is_some()).await;
    let dropped = told().expect("told")["count"].as_u64().expect("count");
    let all = records(&small.audit);
    let recorded = all.iter().filter(|record| record["operation"] == "create_tunnel").count();
    let recorded = u64::try_from(recorded).expect("small");
    assert!(dropped >= 7, "{dropped}");
    assert_eq!(recorded + dropped, 2 * u64::try_from(made + 3).expect("small"), "each record is there, or counted");
    assert!(all.iter().enumerate().all(|(number, record)| record["seq"] == number), "nothing is torn");
    assert_eq!(small.report().await["audit"]["ok"], true);
    assert!(small.hub.stop(SOON).await.expect("it stops").success());
}
