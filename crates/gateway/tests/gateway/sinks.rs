//! The sinks of the audit log, as the gateway runs them: what is delivered, and what happens while one is too far behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sortie_runtime::TaskSet;

use crate::approvals::admin;
use crate::audit::{post, records, tool};
use crate::support::*;

/// A receiver of the records that takes them, or is busy.
struct Receiver {
    upstream: Upstream,
    lines: Arc<Mutex<Vec<String>>>,
    busy: Arc<AtomicBool>,
}

impl Receiver {
    async fn start(tasks: &TaskSet) -> Self {
        let (lines, busy): (Arc<Mutex<Vec<String>>>, Arc<AtomicBool>) = Default::default();
        let (kept, refuses) = (lines.clone(), busy.clone());
        let upstream = Upstream::serve(tasks, move |request| {
            let (kept, refuses) = (kept.clone(), refuses.clone());
            async move {
                let body = request.into_body().collect().await.expect("body").to_bytes();
                let mut response = Response::new(full(""));
                if refuses.load(Ordering::Relaxed) {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                } else {
                    let text = String::from_utf8(body.to_vec()).expect("text");
                    kept.lock().expect("lock").extend(text.lines().map(str::to_owned));
                }
                response
            }
        })
        .await;
        Self { upstream, lines, busy }
    }

    fn settings(&self) -> String {
        format!(
            "[[audit.sinks]]\nname = \"siem\"\nkind = \"http\"\nurl = \"http://{}/in\"\nspool_bytes = 1048576\n\
             batch_wait = \"10ms\"\n",
            self.upstream.addr
        )
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("lock").clone()
    }
}

#[tokio::test]
async fn calls_are_refused_while_a_sink_is_too_far_behind_and_everything_arrives_in_the_end() {
    let tasks = TaskSet::new();
    // It outlives the gateway.
    let receivers = TaskSet::new();
    let receiver = Receiver::start(&receivers).await;
    let upstream = Upstream::ok(&tasks).await;
    let config = upstream.config().replace("max_request_body = 1000", "max_request_body = 100000");
    let world = World::start(&tasks, &(config + &receiver.settings())).await;
    let long = tool(&"x".repeat(2000), json!({}));
    assert_eq!(post(&world, &long).await.status(), 200);
    until(|| receiver.lines().iter().any(|line| line.contains("\"event\":\"call_done\""))).await;

    receiver.busy.store(true, Ordering::Relaxed);
    let refused = loop {
        let answer = post(&world, &long).await;
        if answer.status() != 200 {
            break refusal(answer).await;
        }
    };
    assert_eq!((refused.0, refused.1.as_str()), (503, "audit"), "{refused:?}");
    assert!(refused.2.to_string().contains("the audit sink `siem` is too far behind"), "{refused:?}");
    let (calls, size) = (upstream.count(), records(world.gateway.audit_dir().expect("audit")).len());
    assert_eq!(post(&world, &long).await.status(), 503);
    assert_eq!(upstream.count(), calls, "the server sees nothing of it");
    until(|| records(world.gateway.audit_dir().expect("audit")).len() >= size).await;
    let (_, list) = admin(&world, "GET", "/v1/audit/sinks", Value::Null).await;
    let sink = &list["data"][0];
    assert_eq!((&sink["name"], &sink["denies"], &sink["state"]), (&json!("siem"), &json!(true), &json!("retrying")));
    assert!(!world.gateway.readiness().ready);

    receiver.busy.store(false, Ordering::Relaxed);
    let again = async {
        while post(&world, &long).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("admitted again");
    world.gateway.drain().await;
    world.gateway.close().await;
    let log = records(world.gateway.audit_dir().expect("audit"));
    let arrived: Vec<Value> =
        receiver.lines().iter().map(|line| serde_json::from_str(line).expect("a record")).collect();
    assert_eq!(arrived, log, "the record of the end is the last one");
    assert_eq!(log.last().expect("a record")["event"], "log_closed");
}
