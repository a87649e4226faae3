//! Checkpoints as gateways publish them: over a link, to a running hub, and read from its API.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use sortie_api::{CreateTunnel, Limits};
use sortie_audit::{ConsistencyProver, Frontier, Hash, SigningKey};
use sortie_hub::{AuditConfig, Hub, HubConfig};
use sortie_ids::{TunnelId, TunnelToken};
use sortie_link::protos::{
    CHECKPOINTS, CheckpointVerdict, ContinuityProof, FromEdge, FromGateway, GatewayHello, PublishedNote, VERSION,
};
use sortie_link::{Event, GatewayLink};
use sortie_runtime::TaskSet;
use sortie_store::Store;
use sortie_tls::{ServerName, TlsConnector, Versions, client_config};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(20);

struct Stage {
    dir: TempDir,
    hub: Option<Hub>,
    tasks: TaskSet,
    tunnel: TunnelId,
    token: TunnelToken,
}

async fn start(dir: &Path) -> (Hub, TaskSet) {
    let tasks = TaskSet::new();
    let here = ([127, 0, 0, 1], 0).into();
    let config = HubConfig {
        data_dir: dir.to_owned(),
        database: None,
        api: here,
        edge: here,
        health: None,
        base_domain: "sortie.localhost".parse().expect("base domain"),
        names: Vec::new(),
        advertised_edge: None,
        allowed_origins: Vec::new(),
        insecure_http: false,
        address_share: 100,
        issuer: None,
        region: None,
        limits: Limits::default(),
        audit: AuditConfig::default(),
        mcp: sortie_hub::McpConfig::default(),
        models: None,
    };
    (Hub::start(config, &tasks).await.expect("started"), tasks)
}

impl Stage {
    async fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let home = store.default_workspace().clone();
        let CreateTunnel { display_name } = CreateTunnel::default();
        let tunnel = store.create_tunnel(&home, display_name, &Limits::default()).await.expect("tunnel").id;
        let token = store.reveal_token(&home, &tunnel).await.expect("token").value;
        store.close().await;
        let (hub, tasks) = start(dir.path()).await;
        Self { dir, hub: Some(hub), tasks, tunnel, token }
    }

    async fn restart(&mut self) {
        self.stop().await;
        // It holds its audit log, which one process has at a time.
        self.hub = None;
        let (hub, tasks) = start(self.dir.path()).await;
        (self.hub, self.tasks) = (Some(hub), tasks);
    }

    fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("it runs")
    }

    async fn stop(&self) {
        assert!(self.tasks.shutdown(SOON).await, "all tasks ended");
        self.hub().close().await;
    }

    async fn link(&self) -> GatewayLink {
        let tasks = TaskSet::new();
        let ca = std::fs::read_to_string(&self.hub().edge_ca_file).expect("CA");
        let tls = client_config(&ca, false, Versions::Tls13, &[sortie_link::ALPN]).expect("TLS");
        let tcp = TcpStream::connect(self.hub().edge_listener).await.expect("connect");
        let name = ServerName::try_from("localhost").expect("name");
        let stream = TlsConnector::from(tls).connect(name, tcp).await.expect("handshake");
        let hello = GatewayHello {
            version: VERSION,
            features: vec![],
            token: self.token.expose().to_owned(),
            gateway_instance: "test".into(),
            software: "test".into(),
            routes: vec![],
        };
        let link = sortie_link::establish(stream, &hello, &tasks).await.expect("link");
        assert!(link.has_feature(CHECKPOINTS));
        link
    }

    async fn listed(&self) -> Vec<Value> {
        let api = self.hub().api_url.trim_start_matches("http://");
        let path = format!("/v1/sortie/tunnels/{}/checkpoints", self.tunnel);
        let key = self.hub().api_key.expose();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(api).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_else(|| panic!("{answer}"));
        let list: Value = serde_json::from_str(body).expect("json");
        list.get("data").and_then(Value::as_array).unwrap_or_else(|| panic!("{answer}")).clone()
    }

    fn records(&self, event: &str) -> Vec<Value> {
        let mut files: Vec<_> = std::fs::read_dir(self.hub().audit_dir.join("log"))
            .expect("log")
            .map(|entry| entry.expect("entry").path())
            .collect();
        files.sort();
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).expect("file")).collect();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("json"));
        all.filter(|record| record["event"] == event).collect()
    }
}

/// A log of a gateway, as far as its tree goes.
struct Log {
    key: SigningKey,
    leaves: Vec<Hash>,
}

impl Log {
    fn new(records: u32) -> Self {
        let key = SigningKey::generate("sortie-gateway");
        Self { key, leaves: (0..records).map(|n| Hash::of_leaf(&n.to_be_bytes())).collect() }
    }

    fn tree(&self, size: usize) -> Frontier {
        let mut tree = Frontier::default();
        self.leaves.iter().take(size).for_each(|leaf| tree.push(*leaf));
        tree
    }

    fn note(&self, size: usize) -> PublishedNote {
        let tree = self.tree(size);
        let note = self.key.sign(tree.size(), tree.root());
        PublishedNote { key: self.key.verifying_key().to_string(), note, proof: None }
    }

    fn proven(&self, from: usize, size: usize) -> PublishedNote {
        let old = self.tree(from);
        let mut prover = ConsistencyProver::new(&old, size as u64).expect("larger");
        self.leaves.iter().take(size).skip(from).for_each(|leaf| prover.push(*leaf));
        let hashes = prover.finish().expect("leaves").iter().map(ToString::to_string).collect();
        PublishedNote { proof: Some(ContinuityProof { from: old.size(), hashes: Some(hashes) }), ..self.note(size) }
    }
}

/// Publishes over a link, again when the edge takes no more at the moment.
async fn publish(link: &mut GatewayLink, note: &PublishedNote) -> CheckpointVerdict {
    let end = Instant::now() + SOON;
    loop {
        assert!(link.teller().tell(FromGateway::Checkpoint(note.clone())));
        let verdict = loop {
            let event = tokio::time::timeout(SOON, link.next()).await.expect("in time").expect("the link lives");
            if let Event::Message(FromEdge::CheckpointResult { verdict }) = event {
                break verdict;
            }
        };
        if verdict != CheckpointVerdict::Later {
            return verdict;
        }
        assert!(Instant::now() < end, "the edge takes it");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn refused(verdict: CheckpointVerdict, word: &str) {
    match verdict {
        CheckpointVerdict::Refused { reason } => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_published_cannot_be_taken_back() {
    let mut stage = Stage::set().await;
    let mut log = Log::new(100);
    let mut link = stage.link().await;
    assert_eq!(publish(&mut link, &log.note(10)).await, CheckpointVerdict::Kept);
    assert_eq!(publish(&mut link, &log.note(10)).await, CheckpointVerdict::Kept, "again");
    assert_eq!(publish(&mut link, &log.note(40)).await, CheckpointVerdict::Prove { from: 10 });
    assert_eq!(publish(&mut link, &log.proven(10, 40)).await, CheckpointVerdict::Kept);

    // The link is lost and the hub restarted: what was published is still there.
    link.close();
    stage.restart().await;
    let mut link = stage.link().await;
    assert_eq!(publish(&mut link, &log.note(10)).await, CheckpointVerdict::Kept, "one that was published before");
    assert_eq!(stage.records("checkpoint_refused").len(), 0);

    // A directory that was restored from a backup goes another way from there.
    refused(publish(&mut link, &log.note(25)).await, "set back");
    let last = log.leaves.len() - 1;
    log.leaves[20..=last].reverse();
    refused(publish(&mut link, &log.note(40)).await, "records were changed");
    assert_eq!(publish(&mut link, &log.note(60)).await, CheckpointVerdict::Prove { from: 40 });
    refused(publish(&mut link, &log.proven(40, 60)).await, "do not continue");
    let unprovable = ContinuityProof { from: 12, hashes: None };
    let unprovable = PublishedNote { proof: Some(unprovable), ..log.note(60) };
    assert_eq!(publish(&mut link, &unprovable).await, CheckpointVerdict::Prove { from: 40 });

    let listed = stage.listed().await;
    let told: Vec<_> = listed.iter().map(|one| (one["size"].as_u64(), one["refused"].is_string())).collect();
    let told: Vec<_> = told.into_iter().map(|(size, refused)| (size.expect("size"), refused)).collect();
    assert_eq!(told, [(25, true), (40, false), (10, false)], "the newest first, and the first contradiction");
    assert_eq!(listed[1]["proven"], true);
    let records = stage.records("checkpoint_refused");
    let why: Vec<&str> = records.iter().filter_map(|record| record["why"].as_str()).collect();
    assert_eq!(why, ["smaller", "other_root", "not_a_continuation"]);
    assert!(records.iter().all(|record| record["tunnel_id"] == stage.tunnel.as_str()));
    assert_eq!(records[0]["note"], listed[0]["note"], "the proof of it is in the record, too");
    link.close();
    stage.stop().await;
}

#[tokio::test]
async fn forgeries_are_refused_and_another_log_is_noticed() {
    let stage = Stage::set().await;
    let (log, other) = (Log::new(50), Log::new(50));
    let mut link = stage.link().await;
    assert_eq!(publish(&mut link, &log.note(10)).await, CheckpointVerdict::Kept);

    let forged = PublishedNote { key: other.note(1).key, ..log.note(20) };
    refused(publish(&mut link, &forged).await, "not signed");
    let forged = PublishedNote { note: log.note(10).note.replace("\n10\n", "\n30\n"), ..log.note(10) };
    refused(publish(&mut link, &forged).await, "signature");
    let long = PublishedNote { note: "x".repeat(10_000), ..log.note(10) };
    refused(publish(&mut link, &long).await, "larger");
    assert_eq!(stage.listed().await.len(), 1);

    assert_eq!(publish(&mut link, &other.note(5)).await, CheckpointVerdict::Kept);
    let changed = stage.records("audit_key_changed");
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0]["other_logs"][0].as_str(), Some(log.key.verifying_key().name()));
    assert_eq!(changed[0]["actor"]["type"], "hub");
    // Each log goes on by itself.
    assert_eq!(publish(&mut link, &log.proven(10, 20)).await, CheckpointVerdict::Kept);
    assert_eq!(publish(&mut link, &other.proven(5, 6)).await, CheckpointVerdict::Kept);
    assert_eq!(stage.records("audit_key_changed").len(), 1);
    link.close();
    stage.stop().await;
}

#[tokio::test]
async fn the_logs_of_a_tunnel_are_so_many_and_leave_a_record_when_they_go() {
    let stage = Stage::set().await;
    let mut link = stage.link().await;
    let first = Log::new(5);
    assert_eq!(publish(&mut link, &first.note(5)).await, CheckpointVerdict::Kept);
    for _ in 0..16 {
        assert_eq!(publish(&mut link, &Log::new(1).note(1)).await, CheckpointVerdict::Kept);
    }
    assert_eq!(stage.listed().await.len(), 16);
    let forgotten = stage.records("checkpoints_forgotten");
    assert_eq!(forgotten.len(), 1);
    assert_eq!(forgotten[0]["note"].as_str(), Some(first.note(5).note.as_str()), "it can still be proven");
    link.close();
    stage.stop().await;
}
