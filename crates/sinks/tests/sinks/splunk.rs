//! The HTTP Event Collector: its answers, as Splunk documents them, and what follows from each.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use sortie_credentials::{CredentialKind, CredentialSpec, Source};
use sortie_sinks::{OnRefused, SinkKind, SinkSpec, SinkState, SplunkSpec, Tls};

use crate::support::{Audit, Receiver, Reply, Seen, spec, status};

const TOKEN: &str = "B5A79AAD-D822-46CC-80D1-819F80D7BFB0";

pub(crate) fn splunk(home: &Path, addr: &str, acknowledge: bool) -> SinkSpec {
    let file = home.join("hec");
    std::fs::write(&file, TOKEN).expect("token");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let header = "authorization".parse().expect("header");
    let kind = CredentialKind::Header { header, prefix: "Splunk ".to_owned(), secret: Source::File(file) };
    let kind = SplunkSpec {
        url: format!("http://{addr}/").parse().expect("url"),
        token: CredentialSpec { name: "siem".to_owned(), kind },
        index: Some("audit".to_owned()),
        source: None,
        sourcetype: "sortie:audit".to_owned(),
        acknowledge,
        tls: Tls::default(),
    };
    spec("siem", SinkKind::Splunk(kind))
}

fn said(status: u16, code: u32) -> Reply {
    Reply::Full(status, vec![("content-type", "application/json")], json!({"text": TOKEN, "code": code}).to_string())
}

/// The events of a request: objects one after the other.
pub(crate) fn events(seen: &Seen) -> Vec<Value> {
    let events = serde_json::Deserializer::from_slice(&seen.body).into_iter::<Value>();
    events.map(|event| event.expect("json")).collect()
}

#[tokio::test]
async fn events_are_what_the_collector_wants() {
    let audit = Audit::new();
    let size = audit.append(20).await;
    let receiver = Receiver::start(|_| said(200, 0)).await;
    let sinks = audit.start(vec![splunk(audit.home.path(), &receiver.addr.to_string(), false)]);
    status(&sinks, |now| now.next == size).await;
    let seen = receiver.seen();
    assert_eq!(seen[0].path, "/services/collector/event");
    assert_eq!(seen[0].headers["authorization"], format!("Splunk {TOKEN}"));
    let events = events(&seen[0]);
    let lines = audit.lines();
    assert_eq!(events.len(), lines.len());
    for (event, line) in events.iter().zip(&lines) {
        let record: Value = serde_json::from_str(line).expect("json");
        assert_eq!(event["event"], record);
        assert_eq!((&event["index"], &event["sourcetype"]), (&json!("audit"), &json!("sortie:audit")));
        assert_eq!(event["source"], audit.log.verifying_key().name());
        assert_eq!(event["fields"]["seq"], record["seq"]);
        let time: jiff::Timestamp = record["time"].as_str().expect("time").parse().expect("time");
        let seconds = format!("{}.{:06}", time.as_second(), time.subsec_nanosecond() / 1000);
        assert_eq!(event["time"], seconds);
    }
}

#[tokio::test]
async fn a_collector_that_is_busy_or_knows_no_token_is_asked_again() {
    let audit = Audit::new();
    let size = audit.append(5).await;
    for (status_code, code, why) in [
        (503, 9, "code 9: the collector is busy"),
        (403, 4, "code 4: the token is unknown"),
        (401, 2, "code 2: the token is missing"),
        (400, 7, "code 7: the token may not write to this index"),
        (500, 8, "code 8"),
    ] {
        let receiver = Receiver::start(move |_| said(status_code, code)).await;
        let mut sink = splunk(audit.home.path(), &receiver.addr.to_string(), false);
        // Nothing of this is wrong with a record: none may be skipped for it.
        sink.on_refused = OnRefused::Skip;
        let sinks = audit.start(vec![sink]);
        let now = status(&sinks, |now| now.state == SinkState::Retrying).await;
        assert_eq!((now.next, now.dropped), (0, 0));
        let told = now.last_error.expect("a reason");
        assert!(told.contains(why) && !told.contains(TOKEN), "{told}");
        sinks.close(std::time::Duration::ZERO).await;
    }
    let receiver = Receiver::start(|_| said(200, 0)).await;
    let sinks = audit.start(vec![splunk(audit.home.path(), &receiver.addr.to_string(), false)]);
    status(&sinks, |now| now.next == size).await;
}

#[tokio::test]
async fn an_event_that_the_collector_cannot_read_is_found_and_skipped() {
    let audit = Audit::new();
    let size = audit.append(30).await;
    let receiver = Receiver::start(|seen| {
        let bad = String::from_utf8_lossy(&seen.body).contains("\"req_9\"");
        if bad { said(400, 6) } else { said(200, 0) }
    })
    .await;
    let mut sink = splunk(audit.home.path(), &receiver.addr.to_string(), false);
    sink.on_refused = OnRefused::Skip;
    let sinks = audit.start(vec![sink]);
    let now = status(&sinks, |now| now.next == size + 1).await;
    assert_eq!(now.dropped, 1);
    assert!(audit.lines().pop().expect("a record").contains(r#""first":10,"last":10,"records":1,"reason":"refused""#));
}

/// An indexer that acknowledges: what it loses, it never does.
struct Indexer {
    next: u64,
    /// Whether requests up to this one are lost after they were taken.
    loses: u64,
    acknowledged: BTreeMap<u64, bool>,
}

impl Indexer {
    fn answer(&mut self, seen: &Seen) -> Reply {
        let channel = seen.headers.get("x-splunk-request-channel").and_then(|id| id.to_str().ok()).expect("a channel");
        assert!(uuid::Uuid::parse_str(channel).is_ok(), "{channel}");
        let ok = |body: Value| Reply::Full(200, vec![], body.to_string());
        if seen.path == "/services/collector/event" {
            let id = self.next;
            self.next += 1;
            self.acknowledged.insert(id, id >= self.loses);
            return ok(json!({"text": "Success", "code": 0, "ackId": id}));
        }
        assert_eq!(seen.path, "/services/collector/ack");
        let asked: Value = serde_json::from_slice(&seen.body).expect("json");
        let ids = asked
            .get("acks")
            .and_then(Value::as_array)
            .expect("a list")
            .iter()
            .map(|id| id.as_u64().expect("a number"));
        let acks: BTreeMap<String, bool> =
            ids.map(|id| (id.to_string(), self.acknowledged.get(&id) == Some(&true))).collect();
        ok(json!({"acks": acks}))
    }
}

#[tokio::test]
async fn with_acknowledgement_the_cursor_moves_when_the_indexer_has_the_events() {
    let audit = Audit::new();
    let size = audit.append(5).await;
    let mut indexer = Indexer { next: 0, loses: u64::MAX, acknowledged: BTreeMap::new() };
    let receiver = Receiver::start(move |seen| indexer.answer(seen)).await;
    let sinks = audit.start(vec![splunk(audit.home.path(), &receiver.addr.to_string(), true)]);
    let asked = |receiver: &Receiver| receiver.seen().iter().filter(|seen| seen.path.ends_with("/ack")).count();
    sortie_testkit::eventually(crate::support::LONG, || (asked(&receiver) > 2).then_some(())).await.expect("asks");
    assert_eq!(sinks.status()[0].next, 0, "nothing is delivered that was not acknowledged");
    // An indexer that starts anew: the old channel's ids mean nothing, and are not acknowledged.
    sinks.close(std::time::Duration::ZERO).await;
    let mut indexer = Indexer { next: 0, loses: 0, acknowledged: BTreeMap::new() };
    receiver.behave(move |seen| indexer.answer(seen));
    let sinks = audit.start(vec![splunk(audit.home.path(), &receiver.addr.to_string(), true)]);
    status(&sinks, |now| now.next == size).await;
    let delivered = receiver.seen().into_iter().rfind(|seen| seen.path.ends_with("/event")).expect("an event");
    assert_eq!(events(&delivered).len() as u64, size, "all of them were sent again");
}
