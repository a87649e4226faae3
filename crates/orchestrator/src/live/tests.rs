use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::Value;
use sortie_api::{ModelUsage, StopReason};

use super::*;

const BOTH: Deltas = Deltas { message: true, thinking: true };

fn event(body: EventBody) -> Frame {
    let event = Event { id: EventId::random(), processed_at: Some(Timestamp::UNIX_EPOCH), body };
    Frame::Event(Arc::new(event))
}

fn said(id: &EventId, text: &str) -> Frame {
    let body = EventBody::AgentMessage { content: vec![json!({"type": "text", "text": text})] };
    Frame::Event(Arc::new(Event { id: id.clone(), processed_at: Some(Timestamp::UNIX_EPOCH), body }))
}

fn delta(id: &EventId, text: &str) -> Frame {
    Frame::Delta { id: id.clone(), index: 0, text: text.to_owned() }
}

fn request_end() -> Frame {
    let (model_request_start_id, model_usage) = (EventId::random(), ModelUsage::default());
    event(EventBody::ModelRequestEnd { model_request_start_id, is_error: false, model_usage })
}

/// What is there to read at this moment: the names of frames, with their data.
fn read(stream: &mut Subscription) -> Vec<(String, Value)> {
    let mut frames = Vec::new();
    while let Some(Some(frame)) = stream.next().now_or_never() {
        let text = std::str::from_utf8(&frame).expect("text");
        let (name, data) = text.strip_suffix("\n\n").expect("end").split_once('\n').expect("two lines");
        let data = data.strip_prefix("data: ").expect("data");
        frames
            .push((name.strip_prefix("event: ").expect("name").to_owned(), serde_json::from_str(data).expect("json")));
    }
    frames
}

fn names(stream: &mut Subscription) -> Vec<String> {
    read(stream).into_iter().map(|(name, _)| name).collect()
}

fn has_ended(stream: &mut Subscription) -> bool {
    matches!(stream.next().now_or_never(), Some(None))
}

#[test]
fn every_reader_sees_what_is_published_after_it_came_and_nothing_of_other_sessions() {
    let live = Live::default();
    let (session, other) = (SessionId::random(), SessionId::random());
    live.publish(&session, event(EventBody::SessionStatusRunning {}));
    let mut first = live.subscribe(&session, Deltas::default(), None);
    live.publish(&session, event(EventBody::AgentThinking {}));
    let mut second = live.subscribe(&session, Deltas::default(), None);
    let mut elsewhere = live.subscribe(&other, Deltas::default(), None);
    let usage = EventBody::SessionUsage { usage: sortie_api::Usage::default(), budget: None };
    live.publish(&session, event(usage));
    let idle = EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn, stop_details: None };
    live.publish(&session, event(idle));
    assert_eq!(names(&mut first), ["agent.thinking", "message", "session.status_idle"]);
    let frames = read(&mut second);
    assert_eq!(frames[0].1["type"], "session.usage");
    assert_eq!(frames[1].1["processed_at"], "1970-01-01T00:00:00.000000Z");
    assert!(names(&mut elsewhere).is_empty());
    assert_eq!(live.readers(), 3);
    drop((first, second));
    assert_eq!(live.readers(), 1);
    assert_eq!(locked(&live.0.sessions).len(), 1, "nothing is kept of a session that nobody watches");
}

#[test]
fn previews_are_for_those_who_asked_and_end_with_their_event() {
    let live = Live::default();
    let session = SessionId::random();
    let mut both = live.subscribe(&session, BOTH, None);
    let mut thinking = live.subscribe(&session, Deltas { thinking: true, message: false }, None);
    let mut none = live.subscribe(&session, Deltas::default(), None);
    let (thought, message) = (EventId::random(), EventId::random());
    live.publish(&session, Frame::Start { id: thought, thinking: true });
    live.publish(&session, Frame::Start { id: message.clone(), thinking: false });
    live.publish(&session, delta(&message, "Hel"));
    let mut late = live.subscribe(&session, BOTH, None);
    live.publish(&session, delta(&message, "lo"));
    live.publish(&session, said(&message, "Hello"));
    live.publish(&session, delta(&message, "too late"));
    live.publish(&session, request_end());
    let frames = read(&mut both);
    let seen: Vec<&str> = frames.iter().map(|(name, _)| name.as_str()).collect();
    let start = ["event_start", "event_start", "event_delta", "event_delta"];
    assert_eq!(seen[..4], start);
    assert_eq!(seen[4..], ["agent.message", "span.model_request_end"]);
    let delta = json!({"type": "content_delta", "index": 0, "content": {"type": "text", "text": "Hel"}});
    assert_eq!(frames[2].1, json!({"type": "event_delta", "event_id": message, "delta": delta}));
    assert_eq!(frames[1].1, json!({"type": "event_start", "event": {"type": "agent.message", "id": message}}));
    assert_eq!(names(&mut thinking), ["event_start", "agent.message", "span.model_request_end"]);
    assert_eq!(names(&mut none), ["agent.message", "span.model_request_end"]);
    assert_eq!(names(&mut late), ["agent.message", "span.model_request_end"], "came in the middle");
}

#[test]
fn the_end_of_a_request_ends_previews_whose_event_never_came() {
    let live = Live::default();
    let session = SessionId::random();
    let mut stream = live.subscribe(&session, BOTH, None);
    let message = EventId::random();
    live.publish(&session, Frame::Start { id: message.clone(), thinking: false });
    live.publish(&session, request_end());
    live.publish(&session, delta(&message, "after the end"));
    assert_eq!(names(&mut stream), ["event_start", "span.model_request_end"]);
}

#[test]
fn a_reader_that_falls_behind_is_told_and_closed_and_others_are_not() {
    let live = Live::default();
    let session = SessionId::random();
    let mut stalled = live.subscribe(&session, BOTH, None);
    let mut prompt = live.subscribe(&session, BOTH, None);
    let mut seen = 0;
    for _ in 0..=MAX_FRAMES {
        live.publish(&session, event(EventBody::AgentThinking {}));
        seen += names(&mut prompt).len();
    }
    assert_eq!(seen, MAX_FRAMES + 1);
    let frames = read(&mut stalled);
    assert_eq!(frames.len(), 1);
    assert_eq!((frames[0].0.as_str(), &frames[0].1["error"]["type"]), ("error", &json!("overloaded_error")));
    assert!(has_ended(&mut stalled));
    assert!(!has_ended(&mut prompt));
}

#[test]
fn bytes_are_bounded_too_and_one_large_event_passes() {
    let live = Live::default();
    let session = SessionId::random();
    let mut stream = live.subscribe(&session, BOTH, None);
    let large = "x".repeat(2 * MAX_BYTES);
    live.publish(&session, said(&EventId::random(), &large));
    assert_eq!(names(&mut stream), ["agent.message"]);
    live.publish(&session, said(&EventId::random(), &large));
    live.publish(&session, said(&EventId::random(), "small"));
    assert_eq!(names(&mut stream), ["error"]);
}

#[test]
fn a_slow_reader_loses_previews_first_and_never_a_piece_out_of_the_middle() {
    let live = Live::default();
    let session = SessionId::random();
    let mut stream = live.subscribe(&session, BOTH, None);
    let message = EventId::random();
    live.publish(&session, Frame::Start { id: message.clone(), thinking: false });
    for _ in 0..10 * MAX_FRAMES {
        live.publish(&session, delta(&message, "word "));
    }
    let seen = names(&mut stream);
    assert_eq!(seen.len(), MAX_PREVIEWS);
    live.publish(&session, delta(&message, "behind a gap"));
    live.publish(&session, said(&message, "whole"));
    assert_eq!(names(&mut stream), ["agent.message"], "it is still open");
}

#[test]
fn streams_end_with_their_session_and_with_the_right_to_read() {
    let live = Live::default();
    let session = SessionId::random();
    let holder = |id: &str| Some(Holder { id: id.to_owned(), until: None });
    let mut kept = live.subscribe(&session, BOTH, holder("key_kept"));
    let mut revoked = live.subscribe(&session, BOTH, holder("key_gone"));
    live.revoke("key_gone");
    live.publish(&session, event(EventBody::AgentThinking {}));
    assert!(has_ended(&mut revoked));
    live.publish(&session, event(EventBody::SessionStatusTerminated {}));
    live.publish(&session, Frame::Deleted);
    assert_eq!(names(&mut kept), ["agent.thinking", "session.status_terminated"]);
    assert!(has_ended(&mut kept));
    let mut last = live.subscribe(&session, BOTH, None);
    live.publish(&session, Frame::Deleted);
    assert_eq!(names(&mut last), ["session.deleted"]);
    assert!(has_ended(&mut last));
}

#[tokio::test(start_paused = true)]
async fn quiet_streams_get_pings_within_15_seconds_and_end_when_the_hub_stops() {
    let tasks = TaskSet::new();
    let live = Live::start(&tasks);
    let mut stream = live.subscribe(&SessionId::random(), BOTH, None);
    for _ in 0..5 {
        let began = tokio::time::Instant::now();
        assert_eq!(stream.next().await.as_deref(), Some(PING));
        assert!(began.elapsed() <= Duration::from_secs(15), "{:?}", began.elapsed());
    }
    tasks.stop();
    assert_eq!(stream.next().await, None);
    let mut late = live.subscribe(&SessionId::random(), BOTH, None);
    assert_eq!(late.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_the_key_expires() {
    let tasks = TaskSet::new();
    let live = Live::start(&tasks);
    let holder = Some(Holder { id: "key_1".to_owned(), until: Some(Timestamp::now()) });
    let mut stream = live.subscribe(&SessionId::random(), BOTH, holder);
    assert_eq!(stream.next().await, None);
    tasks.stop();
}
