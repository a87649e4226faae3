//! What the log says about changes, and what it never says.

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

    /// The fields of the audit events so far.
    fn events(&self) -> Vec<Value> {
        let lines = self.text();
        let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("json"));
        let audit = records.filter(|record| record.get("target").is_some_and(|target| target == "sortie::audit"));
        audit.filter_map(|record| record.get("fields").cloned()).collect()
    }
}

#[tokio::test]
async fn changes_are_logged_once_and_secrets_never() {
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

    let events = log.events();
    let names: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
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
    for event in &events {
        assert_eq!(event["actor_key_id"], hub.manage_id.as_str());
        assert!(event["request_id"].as_str().is_some_and(|id| id.starts_with("req_")));
    }
    assert_eq!(events[0]["tunnel_id"], tunnel);
    assert_eq!(events[0]["request_id"].as_str(), made.header("request-id"));
    assert_eq!(events[2]["tunnel_token_id"], rotated.text("/id"));
    assert_eq!(events[2]["reason"], "left\nthe team");
    assert_eq!(events[3]["certificate_id"], first.text("/id"));
    assert_eq!(events[6]["certificate_id"], second.text("/id"), "archived with its tunnel");
    assert_eq!(events[6]["certificate_fingerprint"], second.text("/fingerprint"));
    assert_eq!(events[8]["token_name"], "second");

    let text = log.text();
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
