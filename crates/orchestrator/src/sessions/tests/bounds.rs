//! Many sessions, few places, and the end of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use sortie_api::{Model, ModelUsage, SessionStatus};
use tokio::sync::mpsc::UnboundedSender;

use super::{Home, PATIENCE, Settings, kinds, message, said, script};
use crate::model::{Delta, ModelAnswer, ModelError, ModelRequest, Models};

/// A model that is slow, and counts who asks it.
#[derive(Default)]
struct Slow {
    answers: bool,
    at_once: AtomicUsize,
    most: AtomicUsize,
}

impl Models for Slow {
    fn ask<'a>(
        &'a self,
        _: &'a ModelRequest,
        _: UnboundedSender<Delta>,
    ) -> BoxFuture<'a, Result<ModelAnswer, ModelError>> {
        Box::pin(async move {
            if !self.answers {
                std::future::pending::<()>().await;
            }
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(3)).await;
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            let content = vec![json!({"type": "text", "text": "the end"})];
            let (stop_reason, stop_details) = ("end_turn".to_owned(), None);
            Ok(ModelAnswer { content, stop_reason, stop_details, usage: ModelUsage::default(), cached_for_an_hour: 0 })
        })
    }

    fn check(&self, _: &Model) -> Result<(), String> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_at_work_are_bounded_and_the_others_get_their_turn() {
    let slow = Arc::new(Slow { answers: true, ..Slow::default() });
    let settings = Settings { at_work: 2, ..Settings::default() };
    let home = Home::with(slow.clone(), settings).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(home.create(vec![message("hello")]).await.id);
    }
    for id in &ids {
        home.serve(id).await;
        assert_eq!(said(&home.events(id).await), ["the end"]);
    }
    assert!(slow.most.load(Ordering::SeqCst) <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_there_is_no_task() {
    let home = Home::new().await;
    let id = home.create(vec![script(json!([{"text": "the end"}]))]).await.id;
    home.serve(&id).await;
    let asleep = async {
        while home.sessions().awake() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asleep).await.expect("it goes to rest");
    // What was kept goes on where it was, and so does what was not.
    for room in [usize::MAX, 0] {
        home.sessions().0.known().kept.resize(room);
        home.post(&id, vec![script(json!([{"text": "again"}]))]).await.expect("taken");
        home.serve(&id).await;
    }
    assert_eq!(said(&home.events(&id).await), ["the end", "again", "again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_streamed_is_what_is_listed() {
    let home = Home::new().await;
    let id = home.create(Vec::new()).await.id;
    let live = &home.open.as_ref().expect("open").live;
    let stream = live.subscribe(&id, crate::live::Deltas { message: true, thinking: true }, None);
    let steps = json!([
        {"thinking": "hm", "text": ["the ", "first"], "tools": [{"name": "bash"}, {"name": "a", "server": "files"}]},
        {"error": "overloaded", "retry_after": 0.01},
        {"text": ["the ", "end"]}]);
    home.post(&id, vec![script(steps)]).await.expect("taken");
    home.serve(&id).await;
    stream.close();
    let frames: Vec<_> = stream.collect().await;
    let data = frames.iter().map(|frame| {
        let text = std::str::from_utf8(frame).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
        serde_json::from_str::<serde_json::Value>(line).expect("json")
    });
    let data: Vec<_> = data.collect();
    let stored: Vec<_> = data.iter().filter(|event| !event["processed_at"].is_null()).cloned().collect();
    let listed = home.events(&id).await;
    let listed: Vec<_> = listed.iter().map(|event| serde_json::to_value(event).expect("json")).collect();
    assert_eq!(stored, listed);
    let waited = data.iter().filter(|event| event.get("processed_at").is_some_and(serde_json::Value::is_null));
    assert_eq!(waited.count(), 1, "the message, before it was processed");
    let message = listed.iter().find(|event| event["type"] == "agent.message").expect("a message");
    let previewed = data.iter().filter(|event| event["event_id"] == message["id"]);
    let previewed: String = previewed.filter_map(|event| event["delta"]["content"]["text"].as_str()).collect();
    assert_eq!(previewed, message["content"][0]["text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_go_on_after_a_kill() {
    let mut home = Home::with(Arc::new(Slow::default()), Settings::default()).await;
    let mut ids = Vec::new();
    for _ in 0..1000 {
        ids.push(home.create(vec![message("hello")]).await.id);
    }
    home.kill().await;
    home.models = Arc::new(Slow { answers: true, ..Slow::default() });
    home.open().await;
    let begun = Instant::now();
    assert_eq!(home.sessions().recover().await.expect("recovered"), 1000);
    println!("taken up within {:?}", begun.elapsed());
    let all = async {
        while !home.store().sessions_at_work().await.expect("read").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("all come to an end");
    println!("all done within {:?}", begun.elapsed());
    for id in ids.iter().step_by(97) {
        assert_eq!(said(&home.events(id).await), ["the end"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_requests_and_leaves_a_session_that_goes_on() {
    let mut home = Home::with(Arc::new(Slow::default()), Settings::default()).await;
    let id = home.create(vec![message("hello")]).await.id;
    home.wait(&id, |_, events| kinds(events).contains(&"span.model_request_start").then_some(())).await;
    let open = home.open.as_ref().expect("open");
    assert!(open.tasks.shutdown(PATIENCE).await, "nothing has to be aborted");
    assert_eq!(home.session(&id).await.status, SessionStatus::Rescheduling);
    let tail = kinds(&home.events(&id).await);
    let expected =
        ["span.model_request_end", "session.error", "session.thread_status_rescheduled", "session.status_rescheduled"];
    assert!(tail.ends_with(&expected), "{tail:?}");
    home.kill().await;
    home.models = Arc::new(Slow { answers: true, ..Slow::default() });
    home.open().await;
    home.sessions().recover().await.expect("recovered");
    home.serve(&id).await;
    assert_eq!(said(&home.events(&id).await), ["the end"]);
}
