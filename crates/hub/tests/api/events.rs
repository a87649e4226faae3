//! What is recorded of changes, and what neither records nor the log ever say.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use crate::fixture::{Hub, pem};

/// Collects the log of a test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("lock").clone()).expect("text")
    }
}

/// Whether a record says that an operation began, or that nothing came of it.
fn is_frame(record: &Value) -> bool {
    record["event"].as_str().is_some_and(|event| event.starts_with("management_"))
}

#[tokio::test]
async fn changes_are_recorded_once_and_secrets_never() {
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().json().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish();
    // Requests and writes run on this thread, which is the only one of the runtime.
    let guard = tracing::subscriber::set_default(subscriber);
    let hub = Hub::new().await;
    let made = hub.post("/v1/tunnels", json!({})).await;
    let tunnel = made.text("/id").to_owned();
    let path = format!("/v1/tunnels/{tunnel}");
    let revealed = hub.post(&format!("{path}/reveal_token"), Value::Null).await;
    let rotated = hub.post(&format!("{path}/rotate_token"), json!({"reason": "left\nthe team"})).await;
    let certificates = format!("{path}/certificates");
    let first = hub.post(&certificates, json!({"ca_certificate_pem": pem("a")})).await;
    hub.post(&certificates, json!({"ca_certificate_pem": pem("a")})).await;
    let second = hub.post(&certificates, json!({"ca_certificate_pem": pem("b")})).await;
    for _ in 0..2 {
        hub.post(&format!("{certificates}/{}/archive", first.text("/id")), Value::Null).await;
        hub.post(&format!("{path}/archive"), Value::Null).await;
    }
    let key = hub.post("/v1/sortie/keys", json!({"kind": "manage", "name": "second"})).await;
    for _ in 0..2 {
        hub.post(&format!("/v1/sortie/keys/{}/archive", key.text("/id")), Value::Null).await;
    }
    drop(guard);

    let records = hub.records();
    let (told, rest): (Vec<&Value>, Vec<&Value>) =
        records.iter().filter(|record| record["id"].is_string()).partition(|record| !is_frame(record));
    let names: Vec<&str> = told.iter().filter_map(|event| event["event"].as_str()).collect();
    let expected = [
        "tunnel_created",
        "tunnel_token_revealed",
        "tunnel_token_rotated",
        "tunnel_certificate_added",
        "tunnel_certificate_added",
        "tunnel_certificate_revoked",
        "tunnel_certificate_revoked",
        "tunnel_archived",
        "tunnel_token_minted",
        "tunnel_token_revoked",
    ];
    assert_eq!(names, expected);
    for event in &told {
        assert_eq!(event["actor"]["key_id"], hub.manage_id.as_str());
        assert_eq!(event["actor"]["key_kind"], "manage");
        assert!(event["id"].as_str().is_some_and(|id| id.starts_with("req_")));
    }
    assert_eq!(told[0]["tunnel_id"], tunnel);
    assert_eq!(told[0]["id"].as_str(), made.header("request-id"));
    assert_eq!(told[1]["target"]["tunnel_id"], tunnel);
    assert_eq!(told[2]["tunnel_token_id"], rotated.text("/id"));
    assert_eq!(told[2]["reason"], "left\nthe team");
    assert_eq!(told[3]["certificate_id"], first.text("/id"));
    assert_eq!(told[6]["certificate_id"], second.text("/id"), "archived with its tunnel");
    assert_eq!(told[6]["certificate_fingerprint"], second.text("/fingerprint"));
    assert_eq!(told[8]["token_name"], "second");
    let unchanged = rest.iter().filter(|record| record["event"] == "management_unchanged").count();
    assert_eq!(unchanged, 4, "the same certificate again, and three that were archived before");
    let requested = rest.iter().filter(|record| record["event"] == "management_requested").count();
    assert_eq!(requested, 13);

    let text = log.text() + &serde_json::to_string(&records).expect("json");
    for secret in [
        hub.manage.as_str(),
        hub.usage.as_str(),
        revealed.text("/tunnel_token"),
        rotated.text("/tunnel_token"),
        key.text("/secret"),
    ] {
        assert!(!text.contains(secret));
    }
}

/// A body with which the operation succeeds.
fn body(operation: &str) -> Value {
    match operation {
        "create_key" => json!({"kind": "manage", "name": "made"}),
        "create_workspace" => json!({"name": "made"}),
        "create_tunnel_certificate" => json!({"ca_certificate_pem": pem("one")}),
        "create_organization_tunnel_certificate" => json!({"ca_certificate_pem": pem("two")}),
        "decide_approval" => json!({"decision": "deny"}),
        "create_agent" => json!({"name": "made", "model": "scripted"}),
        "create_environment" | "create_environment_key" => json!({"name": "made"}),
        "create_vault" => json!({"display_name": "made"}),
        "update_vault" | "update_vault_credential" => json!({"display_name": "changed"}),
        "create_vault_credential" => credential("other"),
        "update_agent" | "update_environment" => json!({"description": "changed"}),
        "update_session" => json!({"title": "changed"}),
        "update_work" => json!({"metadata": {"changed": "yes"}}),
        "send_session_events" => {
            json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": "hello"}]}]})
        }
        _ => json!({}),
    }
}

fn credential(server: &str) -> Value {
    let url = format!("https://{server}.example.com");
    json!({"auth": {"type": "static_bearer", "mcp_server_url": url, "token": "secret"}})
}

/// What no operation here does: it asks for what is not offered, or of what is not there or of another kind.
const REFUSED: [(&str, u16); 4] = [
    ("decide_approval", 404),
    ("add_session_resource", 400),
    ("archive_session_thread", 404),
    ("validate_vault_credential", 400),
];

/// One object of each kind, by its place in paths, and the key of the environment.
async fn furnish(hub: &Hub) -> (Vec<(&'static str, String)>, String) {
    let made = async |path: &str, body: Value| {
        let answer = hub.post(path, body).await;
        assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.body);
        answer
    };
    let tunnel = made("/v1/tunnels", json!({})).await.text("/id").to_owned();
    let ca = made(&format!("/v1/tunnels/{tunnel}/certificates"), json!({"ca_certificate_pem": pem("a")})).await;
    let agent = made("/v1/agents", body("create_agent")).await.text("/id").to_owned();
    let environment = made("/v1/environments", json!({"name": "lab"})).await.text("/id").to_owned();
    let vault = made("/v1/vaults", body("create_vault")).await.text("/id").to_owned();
    let kept = made(&format!("/v1/vaults/{vault}/credentials"), credential("one")).await;
    let session = made("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await;
    let keys = format!("/v1/sortie/environments/{environment}/keys");
    let worker = made(&keys, json!({"name": "worker"})).await;
    let check = made(&format!("/v1/sortie/environments/{environment}/healthcheck"), json!({})).await;
    let key = made("/v1/sortie/keys", body("create_key")).await;
    let places = vec![
        (
            "environments/{environment_id}/keys/{key_id}",
            format!("environments/{environment}/keys/{}", worker.text("/id")),
        ),
        ("{tunnel_id}", tunnel),
        ("{certificate_id}", ca.text("/id").to_owned()),
        ("{key_id}", key.text("/id").to_owned()),
        ("{approval_id}", "apr_1".to_owned()),
        ("{agent_id}", agent),
        ("{environment_id}", environment),
        ("{vault_id}", vault),
        ("{credential_id}", kept.text("/id").to_owned()),
        ("{session_id}", session.text("/id").to_owned()),
        ("{thread_id}", "sthr_1".to_owned()),
        ("{work_id}", check.text("/id").to_owned()),
    ];
    (places, worker.text("/secret").to_owned())
}

#[tokio::test]
async fn every_operation_that_changes_something_leaves_its_records() {
    let document = sortie_hub::api::document();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("operations") {
            // What workers do all the time leaves none.
            let leaves = operation["x-sortie-records"].as_array().filter(|leaves| !leaves.is_empty());
            let Some(leaves) = leaves else { continue };
            let method: http::Method = method.to_ascii_uppercase().parse().expect("method");
            let id = operation["operationId"].as_str().expect("id");
            // On objects of its own, since one operation archives what another one needs.
            let hub = Hub::new().await;
            let (mut places, worker) = furnish(&hub).await;
            if id == "create_session" || id == "delete_environment" {
                let empty = hub.post("/v1/environments", json!({"name": "empty"})).await;
                places.insert(0, ("{environment_id}", empty.text("/id").to_owned()));
            }
            let place = |name: &str| places.iter().find(|(place, _)| *place == name).map(|(_, id)| id.clone());
            let at = |path: &str| places.iter().fold(path.to_owned(), |path, (place, id)| path.replace(place, id));
            let sent = match id {
                "create_session" => json!({"agent": place("{agent_id}"), "environment_id": place("{environment_id}")}),
                _ => body(id),
            };
            // Only workers may end their work.
            let key = if id == "stop_work" { &worker } else { &hub.manage };
            let send =
                async |path: String| hub.send_with(method.clone(), &path, sent.clone(), &[("x-api-key", key)]).await;
            let answer = send(at(path)).await;
            let records = hub.records();
            let own = |record: &&Value| record["id"].as_str() == answer.header("request-id");
            let own: Vec<&Value> = records.iter().filter(own).collect();
            let events: Vec<&Value> = own.iter().map(|record| &record["event"]).collect();
            assert_eq!(events.first(), Some(&&json!("management_requested")), "{id}: {}", answer.body);
            assert!(own.iter().all(|record| record["operation"] == id), "{id}");
            if let Some((_, status)) = REFUSED.iter().find(|(refused, _)| *refused == id) {
                let refused = json!("management_refused");
                let expected = (*status, vec![&refused]);
                assert_eq!((answer.status.as_u16(), events[1..].to_vec()), expected, "{id}");
                continue;
            }
            assert_eq!(answer.status.as_u16(), 200, "{id}: {}", answer.body);
            let expected: Vec<&Value> = leaves.iter().collect();
            assert_eq!(events[1..], expected, "{id}");

            // What is asked of objects that there are not is refused, and that is recorded.
            let nothing = path.split('/').map(|part| match part.split_once("_id}") {
                Some((kind, "")) => place(part).map_or_else(
                    || format!("{kind}_id}}"),
                    |id| format!("{}_nosuch", id.split_once('_').map_or("", |(prefix, _)| prefix)),
                ),
                _ => part.to_owned(),
            });
            let missing = nothing.collect::<Vec<_>>().join("/");
            // A worker is told nothing of what is not its own, before anything begins.
            if missing != *path && id != "stop_work" {
                let refused = send(missing).await;
                assert_eq!(refused.status.as_u16(), 404, "{id}");
                let records = hub.records();
                let last = records.last().expect("records");
                assert_eq!(last["event"], "management_refused", "{id}");
                assert_eq!((last["status"].as_u64(), last["id"].as_str()), (Some(404), refused.header("request-id")));
            }
        }
    }
}

#[tokio::test]
async fn who_asked_is_recorded_without_what_could_mislead() {
    let hub = Hub::new().await;
    let agent = format!("curl/8 {}", "x".repeat(500));
    let headers = [("x-api-key", hub.manage.as_str()), ("user-agent", agent.as_str())];
    hub.send_with(http::Method::POST, "/v1/tunnels", json!({}), &headers).await;
    let records = hub.records();
    let recorded = records.last().expect("records")["actor"]["user_agent"].as_str().expect("user agent").to_owned();
    assert_eq!((recorded.len(), recorded.starts_with("curl/8 ")), (200, true));
    let path = "/v1/tunnels/tnl_%0A%22%7D%1b/reveal_token";
    let refused = hub.post(path, Value::Null).await;
    assert_eq!(refused.status.as_u16(), 404);
    let records = hub.records();
    let last = records.last().expect("records");
    assert_eq!(
        (last["event"].as_str(), last["target"]["tunnel_id"].as_str()),
        (Some("management_refused"), Some("tnl_?\"}?"))
    );
}
