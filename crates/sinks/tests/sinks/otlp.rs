//! OTLP, as the official messages of opentelemetry-proto read it.

use std::time::Duration;

use serde_json::{Value, json};
use sortie_sinks::{Encoding, OnRefused, OtlpSpec, SinkKind, SinkSpec, SinkState, Tls};
use sortie_testkit::{Process, Program, free_port, tool};

use crate::support::{Audit, LONG, Receiver, Reply, draft, spec, status};

fn otlp(url: &str, encoding: Encoding) -> SinkSpec {
    let kind = OtlpSpec { url: url.parse().expect("url"), encoding, credential: None, tls: Tls::default() };
    spec("collector", SinkKind::Otlp(kind))
}

/// A receiver in Python that takes only what the official messages can read, and writes what it read, one JSON a line.
async fn collector(python: &std::path::Path, out: &std::path::Path) -> (Process, String) {
    let port = free_port().expect("port");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python/otlp_receiver.py");
    let mut process = Program::new(python).arg(script).arg(port.to_string()).arg(out).spawn().expect("python");
    process.ready_port(([127, 0, 0, 1], port).into(), LONG).await.expect("it listens");
    (process, format!("http://127.0.0.1:{port}/v1/logs"))
}

#[tokio::test]
async fn the_official_messages_read_every_record_in_both_encodings() {
    let Some(python) = tool("SORTIE_TEST_PYTHON_OTLP") else { return };
    for encoding in [Encoding::Protobuf, Encoding::Json] {
        let audit = Audit::new();
        let out = audit.home.path().join("out");
        let (_process, url) = collector(&python, &out).await;
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let fields = json!({"id": "req_é\n", "trace": trace, "duration_us": i64::MAX, "shadow": false,
                            "caller": {"subject": "user:ann", "claims": {"groups": ["a"]}}});
        audit.log.append(&draft(&fields)).await.expect("appended");
        let size = audit.append(700).await;
        let sinks = audit.start(vec![otlp(&url, encoding)]);
        let now = status(&sinks, |now| now.next == size).await;
        assert_eq!(now.last_error, None, "its first 503 was not hidden");
        let text = std::fs::read_to_string(&out).expect("out");
        let got: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
        let bodies: Vec<&str> = got.iter().map(|got| got["body"].as_str().expect("text")).collect();
        assert_eq!(bodies, audit.lines(), "{encoding:?}: byte for byte");
        let one = &got[1];
        let name = audit.log.verifying_key().name().to_owned();
        let record: Value = serde_json::from_str(bodies[1]).expect("json");
        let time: jiff::Timestamp = record["time"].as_str().expect("text").parse().expect("time");
        assert_eq!(one["time"].as_i64().map(i128::from), Some(time.as_nanosecond()));
        assert_eq!(one["trace"], trace);
        assert_eq!((&one["severity"], &one["severity_text"]), (&json!(9), &json!("INFO")));
        assert_eq!(one["event"], "call_done");
        assert_eq!(one["resource"]["service.name"], "sortie-test");
        assert_eq!(one["resource"]["service.instance.id"], name);
        let attributes = &one["attributes"];
        assert_eq!(attributes["log.record.uid"], format!("{name}/1"));
        assert_eq!(attributes["sortie.caller.subject"], "user:ann");
        assert_eq!(attributes["sortie.duration_us"], i64::MAX);
        assert_eq!(attributes["sortie.shadow"], false);
        assert_eq!(attributes["sortie.seq"], 1);
        assert_eq!(got[2]["trace"], "");
    }
}

#[tokio::test]
async fn a_collector_that_wants_to_be_left_alone_is() {
    let audit = Audit::new();
    let size = audit.append(3).await;
    let mut tries = 0;
    let receiver = Receiver::start(move |_| {
        tries += 1;
        match tries {
            1 => Reply::Full(503, vec![("retry-after", "2")], String::new()),
            _ => Reply::Full(200, vec![], "{}".to_owned()),
        }
    })
    .await;
    let begin = tokio::time::Instant::now();
    let sinks = audit.start(vec![otlp(&receiver.url(), Encoding::Json)]);
    let now = status(&sinks, |now| now.next == size).await;
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("503")));
    assert_eq!(receiver.seen().len(), 2);
}

#[tokio::test]
async fn a_partial_success_is_not_sent_again_and_told() {
    for on_refused in [OnRefused::Skip, OnRefused::Stop] {
        let audit = Audit::new();
        let size = audit.append(10).await;
        let mut tries = 0;
        let receiver = Receiver::start(move |_| {
            tries += 1;
            let partial = json!({"partialSuccess": {"rejectedLogRecords": "4", "errorMessage": "canary"}}).to_string();
            Reply::Full(200, vec![], if tries == 1 { partial } else { "{}".to_owned() })
        })
        .await;
        let mut sink = otlp(&receiver.url(), Encoding::Json);
        sink.on_refused = on_refused;
        let sinks = audit.start(vec![sink]);
        match on_refused {
            OnRefused::Skip => {
                let now = status(&sinks, |now| now.next == size + 1).await;
                assert_eq!(now.dropped, 4);
                let told = audit.lines().pop().expect("a record");
                assert!(told.contains(r#""first":0,"last":10,"records":4,"reason":"refused""#), "{told}");
                assert_eq!(receiver.seen().len(), 2, "the batch, and the record about it");
            }
            OnRefused::Stop => {
                let now = status(&sinks, |now| now.state == SinkState::Stopped).await;
                assert_eq!((now.next, now.dropped), (0, 0));
                assert!(now.last_error.is_some_and(|why| why.contains("4 of the records 0 to 10")));
                sinks.close(LONG).await;
                assert_eq!(receiver.seen().len(), 1);
            }
        }
    }
}
