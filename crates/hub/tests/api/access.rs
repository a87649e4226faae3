//! Every operation of the OpenAPI document against every kind of caller, on a running hub. An operation without a row
//! fails the test, so that nothing is added without saying who may ask for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use sortie_api::{
    CreateAgent, CreateCredential, CreateEnvironment, CreateEnvironmentKey, CreateKey, Grant, KeyKind, Limits, Metadata,
};
use sortie_hub::{AuditConfig, Hub, HubConfig};
use sortie_ids::{Digest, WorkspaceId};
use sortie_orchestrator::queue::Terms;
use sortie_orchestrator::work::{Poll, Queues};
use sortie_runtime::TaskSet;
use sortie_store::{Made, NewCertificate, Store};
use sortie_tls::Authority;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The callers, in the order of the columns below.
const CALLERS: [&str; 6] = ["nobody", "wrong key", "use key", "other workspace", "same workspace", "administrator"];

/// Those who act for workers, in the order of the columns of [`WORKERS`].
const WORK_CALLERS: [&str; 3] = ["environment's key", "session token", "other environment's key"];

/// The statuses that an operation on an object of the workspace, or none, answers to them.
type Row = (&'static str, [u16; 6]);

/// `use key` is granted one route; `same workspace` is a second `manage` key of the workspace that holds the objects,
/// which is not the default one; `administrator` is the `manage` key of the default workspace.
const ROWS: &[Row] = &[
    ("create_tunnel", [401, 401, 403, 200, 200, 200]),
    ("list_tunnels", [401, 401, 403, 200, 200, 200]),
    ("get_tunnel", [401, 401, 403, 404, 200, 404]),
    ("reveal_tunnel_token", [401, 401, 403, 404, 200, 404]),
    ("rotate_tunnel_token", [401, 401, 403, 404, 200, 404]),
    ("list_tunnel_certificates", [401, 401, 403, 404, 200, 404]),
    ("create_tunnel_certificate", [401, 401, 403, 404, 400, 404]),
    ("get_tunnel_certificate", [401, 401, 403, 404, 200, 404]),
    ("archive_tunnel_certificate", [401, 401, 403, 404, 200, 404]),
    ("archive_tunnel", [401, 401, 403, 404, 200, 404]),
    ("list_organization_tunnels", [401, 401, 403, 403, 403, 200]),
    ("get_organization_tunnel", [401, 401, 403, 403, 403, 200]),
    ("reveal_organization_tunnel_token", [401, 401, 403, 403, 403, 200]),
    ("rotate_organization_tunnel_token", [401, 401, 403, 403, 403, 200]),
    ("list_organization_tunnel_certificates", [401, 401, 403, 403, 403, 200]),
    ("create_organization_tunnel_certificate", [401, 401, 403, 403, 403, 400]),
    ("get_organization_tunnel_certificate", [401, 401, 403, 403, 403, 200]),
    ("archive_organization_tunnel_certificate", [401, 401, 403, 403, 403, 200]),
    ("archive_organization_tunnel", [401, 401, 403, 403, 403, 200]),
    ("create_key", [401, 401, 403, 200, 200, 200]),
    ("list_keys", [401, 401, 403, 200, 200, 200]),
    ("get_key", [401, 401, 403, 404, 200, 404]),
    ("archive_key", [401, 401, 403, 404, 200, 404]),
    ("create_workspace", [401, 401, 403, 403, 403, 200]),
    ("list_workspaces", [401, 401, 403, 403, 403, 200]),
    ("create_agent", [401, 401, 403, 200, 200, 200]),
    ("list_agents", [401, 401, 403, 200, 200, 200]),
    ("get_agent", [401, 401, 403, 404, 200, 404]),
    ("update_agent", [401, 401, 403, 404, 200, 404]),
    ("archive_agent", [401, 401, 403, 404, 200, 404]),
    ("list_agent_versions", [401, 401, 403, 404, 200, 404]),
    ("create_environment", [401, 401, 403, 200, 200, 200]),
    ("list_environments", [401, 401, 403, 200, 200, 200]),
    ("get_environment", [401, 401, 403, 404, 200, 404]),
    ("update_environment", [401, 401, 403, 404, 200, 404]),
    ("archive_environment", [401, 401, 403, 404, 200, 404]),
    ("delete_environment", [401, 401, 403, 404, 200, 404]),
    ("poll_work", [401, 401, 403, 403, 403, 403]),
    ("get_work_stats", [401, 401, 403, 404, 200, 404]),
    ("list_work", [401, 401, 403, 404, 200, 404]),
    ("get_work", [401, 401, 403, 404, 200, 404]),
    ("update_work", [401, 401, 403, 404, 200, 404]),
    ("acknowledge_work", [401, 401, 403, 403, 403, 403]),
    ("heartbeat_work", [401, 401, 403, 403, 403, 403]),
    ("stop_work", [401, 401, 403, 404, 200, 404]),
    ("create_environment_key", [401, 401, 403, 404, 200, 404]),
    ("list_environment_keys", [401, 401, 403, 404, 200, 404]),
    ("archive_environment_key", [401, 401, 403, 404, 200, 404]),
    ("create_healthcheck", [401, 401, 403, 404, 200, 404]),
    ("get_healthcheck", [401, 401, 403, 404, 200, 404]),
    ("create_session", [401, 401, 403, 404, 200, 404]),
    ("list_sessions", [401, 401, 403, 200, 200, 200]),
    ("get_session", [401, 401, 403, 404, 200, 404]),
    ("update_session", [401, 401, 403, 404, 200, 404]),
    ("list_session_resources", [401, 401, 403, 404, 200, 404]),
    ("add_session_resource", [401, 401, 403, 404, 400, 404]),
    ("send_session_events", [401, 401, 403, 404, 200, 404]),
    ("list_session_events", [401, 401, 403, 404, 200, 404]),
    ("stream_session_events", [401, 401, 403, 404, 200, 404]),
    ("list_session_threads", [401, 401, 403, 404, 200, 404]),
    ("get_session_thread", [401, 401, 403, 404, 200, 404]),
    ("list_session_thread_events", [401, 401, 403, 404, 200, 404]),
    ("stream_session_thread", [401, 401, 403, 404, 200, 404]),
    ("archive_session_thread", [401, 401, 403, 404, 400, 404]),
    ("archive_session", [401, 401, 403, 404, 200, 404]),
    ("delete_session", [401, 401, 403, 404, 200, 404]),
    ("create_vault", [401, 401, 403, 200, 200, 200]),
    ("list_vaults", [401, 401, 403, 200, 200, 200]),
    ("get_vault", [401, 401, 403, 404, 200, 404]),
    ("update_vault", [401, 401, 403, 404, 200, 404]),
    ("archive_vault", [401, 401, 403, 404, 200, 404]),
    ("delete_vault", [401, 401, 403, 404, 200, 404]),
    ("create_vault_credential", [401, 401, 403, 404, 200, 404]),
    ("list_vault_credentials", [401, 401, 403, 404, 200, 404]),
    ("get_vault_credential", [401, 401, 403, 404, 200, 404]),
    ("update_vault_credential", [401, 401, 403, 404, 200, 404]),
    ("archive_vault_credential", [401, 401, 403, 404, 200, 404]),
    // Only OAuth has something to validate.
    ("validate_vault_credential", [401, 401, 403, 404, 400, 404]),
    ("delete_vault_credential", [401, 401, 403, 404, 200, 404]),
    ("list_routes", [401, 401, 200, 200, 200, 200]),
    ("list_checkpoints", [401, 401, 403, 404, 200, 404]),
    ("list_approvals", [401, 401, 403, 404, 200, 404]),
    ("decide_approval", [401, 401, 403, 404, 404, 404]),
    ("get_discovery", [401, 401, 403, 200, 200, 200]),
    ("rotate_identity", [401, 401, 403, 403, 403, 200]),
    ("get_openid_configuration", [200, 200, 200, 200, 200, 200]),
    ("get_jwks", [200, 200, 200, 200, 200, 200]),
    ("get_openapi", [200, 200, 200, 200, 200, 200]),
    ("get_health", [200, 200, 200, 200, 200, 200]),
    ("get_readiness", [200, 200, 200, 200, 200, 200]),
    ("get_metrics", [401, 401, 403, 200, 200, 200]),
    // No gateway is connected: 503 is a call that was allowed, 502 a route that there is not.
    ("call_route_get", [401, 401, 503, 502, 503, 502]),
    ("call_route_head", [401, 401, 503, 502, 503, 502]),
    ("call_route_options", [401, 401, 503, 502, 503, 502]),
    ("call_route_put", [401, 401, 503, 502, 503, 502]),
    ("call_route_post", [401, 401, 503, 502, 503, 502]),
    ("call_route_patch", [401, 401, 503, 502, 503, 502]),
    ("call_route_delete", [401, 401, 503, 502, 503, 502]),
];

/// What is answered to workers. An operation that is not named here refuses them: 403, a route that is none for them, or
/// what anyone gets.
const WORKERS: &[(&str, [u16; 3])] = &[
    ("poll_work", [200, 403, 404]),
    ("get_work_stats", [200, 403, 404]),
    ("list_work", [200, 403, 404]),
    ("acknowledge_work", [200, 200, 404]),
    ("heartbeat_work", [200, 200, 404]),
    ("stop_work", [200, 200, 404]),
    // The token is of an item without a session.
    ("get_session", [200, 404, 404]),
    // What is sent is an interrupt, and workers send results of tools only.
    ("send_session_events", [403, 404, 404]),
    ("list_session_events", [200, 404, 404]),
    ("stream_session_events", [200, 404, 404]),
];

/// A hub with three workspaces. The objects lie in the middle one.
pub(crate) struct Stage {
    pub(crate) api: String,
    keys: [Option<String>; 6],
    workers: [String; 3],
    places: BTreeMap<&'static str, String>,
    pub(crate) tasks: TaskSet,
    pub(crate) hub: Hub,
    _dir: TempDir,
}

/// Made before the hub runs, since two processes do not share the store's memory of keys.
async fn furnish(store: &Store, limits: &Limits) -> ([Option<String>; 6], [String; 3], BTreeMap<&'static str, String>) {
    let home = store.default_workspace().clone();
    let organization = store.organization_of(&home).await.expect("organisation");
    let workspace = async |name: &str| {
        let name = name.parse().expect("name");
        match store.create_workspace(&organization, name, limits, None).await.expect("workspace") {
            Made::Now(made) => made.id,
            other => panic!("{other:?}"),
        }
    };
    let (middle, other) = (workspace("middle").await, workspace("other").await);
    let key = async |workspace: &WorkspaceId, kind, grants: &[Grant]| {
        let (name, grants) = ("test".parse().expect("name"), grants.to_vec());
        let new =
            CreateKey { kind, role: None, name, expires_at: None, grants, agent: None, user: None, workspace_id: None };
        store.create_key(workspace, new, limits).await.expect("key")
    };
    let tunnel = store.create_tunnel(&middle, None, limits).await.expect("tunnel");
    let ca = Authority::generate("test", 1).expect("CA");
    let new = NewCertificate { pem: ca.cert_pem().to_owned(), fingerprint: Digest::of(b"test"), expires_at: None };
    let added = store.add_certificate(&middle, &tunnel.id, new, limits).await.expect("certificate");
    let grant = Grant { tunnel_id: tunnel.id.clone(), route: Some("files".parse().expect("route")) };
    let agent: CreateAgent = serde_json::from_value(body("create_agent")).expect("agent");
    let agent = store.create_agent(&middle, agent.define().expect("agent")).await.expect("agent");
    let environment: CreateEnvironment = serde_json::from_value(json!({"name": "lab"})).expect("environment");
    let environment = environment.define().expect("environment");
    let environment = store.create_environment(&middle, environment).await.expect("environment");
    let name = "secrets".parse().expect("name");
    let vault = store.create_vault(&middle, name, Metadata::new()).await.expect("vault");
    let sent: CreateCredential = serde_json::from_value(credential("first")).expect("credential");
    let (definition, secrets) = sent.define(store.now()).expect("credential");
    let kept = store.create_credential(&middle, &vault.id, definition, secrets).await.expect("credential");
    let spare = key(&middle, KeyKind::Use, std::slice::from_ref(&grant)).await;
    let shown = |made: sortie_api::CreatedKey| Some(made.secret.expose().to_owned());
    let keys = [
        None,
        Some("sortie-manage-guess".to_owned()),
        shown(key(&middle, KeyKind::Use, &[grant]).await),
        shown(key(&other, KeyKind::Manage, &[]).await),
        shown(key(&middle, KeyKind::Manage, &[]).await),
        shown(key(&home, KeyKind::Manage, &[]).await),
    ];
    let (workers, work) = employ(store, &middle, limits).await;
    let mut places = BTreeMap::from([
        ("{tunnel_id}", tunnel.id.to_string()),
        ("{certificate_id}", added.certificate.id.to_string()),
        ("{key_id}", spare.key.id.to_string()),
        ("{agent_id}", agent.id.to_string()),
        ("{environment_id}", environment.id.to_string()),
        ("{vault_id}", vault.id.to_string()),
        ("{credential_id}", kept.id.to_string()),
        ("{label}", tunnel.label.to_string()),
        ("{route}", "files".to_owned()),
        ("{path}", "mcp".to_owned()),
        ("{approval_id}", "apr_1".to_owned()),
    ]);
    places.extend(work);
    (keys, workers, places)
}

/// An environment with a key, another one's key, and an item that was handed out, with its token.
async fn employ(store: &Store, workspace: &WorkspaceId, limits: &Limits) -> ([String; 3], [(&'static str, String); 3]) {
    let make = async |name: &str| {
        let new = json!({"name": name, "config": {"type": "self_hosted"}});
        let new: CreateEnvironment = serde_json::from_value(new).expect("environment");
        let made = store.create_environment(workspace, new.define().expect("environment")).await.expect("environment");
        let new = CreateEnvironmentKey { name: "worker".parse().expect("name"), expires_at: None };
        (made.id.clone(), store.create_environment_key(workspace, &made.id, new, limits).await.expect("key"))
    };
    let ((environment, key), (_, other)) = (make("workshop").await, make("other").await);
    let queues = Queues::new(store.clone(), Terms { lease_seconds: 60, start_seconds: 60 });
    let check = queues.healthcheck(workspace, &environment).await.expect("item");
    let poll = Poll {
        workspace: workspace.clone(),
        environment: environment.clone(),
        key: key.key.id.clone(),
        worker: None,
        wait: Duration::ZERO,
        reclaim: Duration::ZERO,
    };
    let handed = queues.poll(&poll).await.expect("polled").expect("the item");
    assert_eq!(handed.item.id, check.id);
    let spare = CreateEnvironmentKey { name: "spare".parse().expect("name"), expires_at: None };
    let spare = store.create_environment_key(workspace, &environment, spare, limits).await.expect("key");
    let [key, token, other] = [&key.secret, &handed.token, &other.secret].map(|secret| secret.expose().to_owned());
    let places = [
        ("{workshop}", environment.to_string()),
        ("{work_id}", check.id.to_string()),
        ("{worker_key_id}", spare.key.id.to_string()),
    ];
    ([key, token, other], places)
}

impl Stage {
    pub(crate) async fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let limits = Limits::default();
        let store = Store::open(dir.path()).await.expect("store");
        let (keys, workers, places) = furnish(&store, &limits).await;
        store.close().await;
        let tasks = TaskSet::new();
        let here = ([127, 0, 0, 1], 0).into();
        let config = HubConfig {
            data_dir: dir.path().to_owned(),
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
            limits,
            audit: AuditConfig::default(),
            mcp: sortie_hub::McpConfig::default(),
            models: None,
        };
        let hub = Hub::start(config, &tasks).await.expect("started");
        let api = hub.api_url.trim_start_matches("http://").to_owned();
        let mut stage = Self { api, keys, workers, places, tasks, hub, _dir: dir };
        let session = stage.create_session().await;
        let threads = format!("/v1/sessions/{session}/threads");
        let threads = stage.asked("GET", &threads, Value::Null).await;
        stage
            .places
            .insert("{thread_id}", threads.pointer("/data/0/id").and_then(Value::as_str).expect("id").to_owned());
        stage.places.insert("{session_id}", session);
        stage
    }

    /// Makes a session in the middle workspace; its id.
    pub(crate) async fn create_session(&self) -> String {
        let made = self.asked("POST", "/v1/sessions", body("create_session")).await;
        made.get("id").and_then(Value::as_str).expect("id").to_owned()
    }

    /// The answer to the key of the middle workspace, which must be one of success.
    pub(crate) async fn asked(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.send(method, path, self.middle_key(), &body).await;
        assert_eq!(status, 200, "{method} {path}: {answer}");
        let body = answer.split_once("\r\n\r\n").expect("body").1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// The `manage` key of the middle workspace.
    pub(crate) fn middle_key(&self) -> Option<&str> {
        self.keys[4].as_deref()
    }

    /// Sends a request; the status and the whole answer.
    pub(crate) async fn send(&self, method: &str, path: &str, key: Option<&str>, body: &str) -> (u16, String) {
        // What workers are asked about lies in an environment of its own, since the other one is deleted.
        let path = match path.contains("/work") || path.contains("/keys") || path.contains("/healthcheck") {
            true if path.contains("{environment_id}") => {
                path.replace("{environment_id}", "{workshop}").replace("{key_id}", "{worker_key_id}")
            }
            _ => path.to_owned(),
        };
        let path = self.places.iter().fold(path, |path, (place, value)| path.replace(place, value));
        let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let body = self.places.iter().fold(body.to_owned(), |body, (place, value)| body.replace(place, value));
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{key}content-length: {length}\r\n\r\n{body}"
        );
        let mut stream = TcpStream::connect(&self.api).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        loop {
            let read = stream.read_buf(&mut answer).await.expect("read");
            // Streams of events have no end.
            let streams = answer.windows(17).any(|part| part == b"text/event-stream");
            if read == 0 || streams && answer.windows(4).any(|part| part == b"\r\n\r\n") {
                break;
            }
        }
        let answer = String::from_utf8(answer).expect("text");
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("{method} {path}: {answer:?}")), answer)
    }
}

fn credential(server: &str) -> Value {
    let url = format!("https://{server}.example.com");
    json!({"auth": {"type": "static_bearer", "mcp_server_url": url, "token": "secret"}})
}

/// A body that the operation takes, as far as it can be made up here.
fn body(operation: &str) -> Value {
    match operation {
        "create_key" => json!({"kind": "manage", "name": "made"}),
        "create_agent" => json!({"name": "made", "model": "scripted"}),
        "create_environment" => json!({"name": "made"}),
        "create_session" => json!({"agent": "{agent_id}", "environment_id": "{workshop}"}),
        "send_session_events" => json!({"events": [{"type": "user.interrupt"}]}),
        "create_workspace" | "create_environment_key" => json!({"name": "made"}),
        "update_work" => json!({"metadata": {"note": "seen"}}),
        "create_vault" => json!({"display_name": "made"}),
        "create_vault_credential" => credential("second"),
        "decide_approval" => json!({"decision": "deny"}),
        // Allowed callers get to the rules for certificates, and no further.
        "create_tunnel_certificate" | "create_organization_tunnel_certificate" => json!({"ca_certificate_pem": "x"}),
        _ => json!({}),
    }
}

#[tokio::test]
async fn every_operation_answers_every_caller_as_the_table_says() {
    let stage = Stage::set().await;
    let document = sortie_hub::api::document();
    let mut operations: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("id");
            operations.insert(id, (method.to_ascii_uppercase(), path));
        }
    }
    let rows: BTreeSet<&str> = ROWS.iter().map(|(id, _)| *id).collect();
    assert_eq!(rows, operations.keys().copied().collect(), "each operation has a row, each row an operation");

    // What archives comes last, the tunnel itself after what lies in it, and after that what deletes.
    let ends = |id: &str| {
        let archives = id.starts_with("archive_");
        let holds = (id.contains("tunnel") || id.contains("vault")) && !id.contains("cert") && !id.contains("cred");
        (id.starts_with("delete_"), archives, holds)
    };
    let mut rows = ROWS.to_vec();
    rows.sort_by_key(|(id, _)| ends(id));
    for (id, expected) in rows {
        let (method, path) = &operations[id];
        for ((caller, key), expected) in CALLERS.iter().zip(&stage.keys).zip(expected) {
            let (status, answer) = stage.send(method, path, key.as_deref(), &body(id).to_string()).await;
            assert_eq!(status, expected, "{id}, {caller}: {answer}");
        }
        let asked = WORKERS.iter().find(|(named, _)| *named == id).map(|(_, expected)| *expected);
        let usual = match id {
            _ if expected[0] == 200 => 200,
            _ if id.starts_with("call_route_") => 403,
            _ => 403,
        };
        for ((caller, key), expected) in WORK_CALLERS.iter().zip(&stage.workers).zip(asked.unwrap_or([usual; 3])) {
            let (status, answer) = stage.send(method, path, Some(key), &body(id).to_string()).await;
            assert_eq!(status, expected, "{id}, {caller}: {answer}");
        }
        let protected = document["paths"][*path][method.to_ascii_lowercase()]["security"] != json!([]);
        assert_eq!(protected, expected[0] == 401, "{id}: what the document says about keys");
    }
    let metrics = stage.send("GET", "/metrics", stage.keys[5].as_deref(), "").await.1;
    let counted = "sortie_hub_api_requests_total{operation=\"create_workspace\",status=\"4xx\"} 8";
    assert!(metrics.contains(counted), "{metrics}");
    let ended = stage.tasks.shutdown(Duration::from_secs(5)).await;
    assert!(ended, "no request is left");
    stage.hub.close().await;
}

#[tokio::test]
async fn an_unknown_object_and_a_foreign_one_look_the_same() {
    let stage = Stage::set().await;
    let foreign = stage.keys[3].as_deref();
    for path in [
        "/v1/tunnels/{tunnel_id}",
        "/v1/tunnels/{tunnel_id}/certificates",
        "/v1/tunnels/{tunnel_id}/certificates/{certificate_id}",
        "/v1/sortie/keys/{key_id}",
        "/v1/agents/{agent_id}",
        "/v1/agents/{agent_id}/versions",
        "/v1/environments/{environment_id}",
        "/v1/vaults/{vault_id}",
        "/v1/vaults/{vault_id}/credentials",
        "/v1/vaults/{vault_id}/credentials/{credential_id}",
    ] {
        let said = async |path: &str| {
            let (status, answer) = stage.send("GET", path, foreign, "").await;
            let body = answer.split("\r\n\r\n").nth(1).unwrap_or_else(|| panic!("{answer}"));
            let body: Value = serde_json::from_str(body).expect("json");
            (status, body["error"].clone())
        };
        let unknown = path.replace("{tunnel_id}", "tnl_nosuch").replace("{key_id}", "key_nosuch");
        let unknown = unknown.replace("{session_id}", "sesn_nosuch");
        let unknown = unknown.replace("{agent_id}", "agent_nosuch").replace("{environment_id}", "env_nosuch");
        let unknown = unknown.replace("{vault_id}", "vlt_nosuch");
        let found = said(path).await;
        assert_eq!(found.0, 404, "{path}");
        assert_eq!(found, said(&unknown).await, "{path}");
    }
    // A workspace may be named in a key's body only by administrators.
    let body = json!({"kind": "manage", "name": "x", "workspace_id": "wrkspc_nosuch"}).to_string();
    let home = stage.send("GET", "/v1/tunnels", stage.keys[5].as_deref(), "").await.1;
    let home = home.lines().find_map(|line| line.strip_prefix("anthropic-workspace-id: ")).expect("workspace");
    let named = json!({"kind": "manage", "name": "x", "workspace_id": home}).to_string();
    for key in [3, 4] {
        for body in [&body, &named] {
            assert_eq!(stage.send("POST", "/v1/sortie/keys", stage.keys[key].as_deref(), body).await.0, 404);
        }
    }
    stage.tasks.shutdown(Duration::from_secs(5)).await;
    stage.hub.close().await;
}
