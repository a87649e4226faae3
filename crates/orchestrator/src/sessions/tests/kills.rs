//! The process is killed at every step that is stored, right before it is and right after.

use serde_json::{Value, json};
use sortie_api::{Event, EventBody, RetryStatus, SessionStatus, StopReason};
use sortie_ids::SessionId;

use super::{Home, PATIENCE, answers, is_use, kinds, reason, said, script};

/// Scripts, and what is said at their end.
fn courses() -> Vec<(&'static str, Value)> {
    vec![
        ("words", json!([{"text": "the end"}])),
        ("sandbox", json!([{"tools": [{"name": "bash", "input": {"command": "ls"}}]}, {"text": "the end"}])),
        (
            "all kinds of tools",
            json!([
                {"text": "first", "tools": [
                    {"name": "bash", "input": {"command": "ls"}}, {"name": "write", "input": {}}, {"name": "pick"},
                    {"name": "a", "server": "files"}, {"name": "b", "server": "files"}, {"name": "web_search"}]},
                {"tools": [{"name": "a", "server": "files"}, {"name": "a", "server": "files"}]},
                {"text": "the end"}]),
        ),
        (
            "failures",
            json!([{"error": "overloaded", "retry_after": 0.01}, {"text": "half", "stop_reason": "max_tokens"},
                {"text": "paused", "stop_reason": "pause_turn"}, {"text": "the end"}]),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_at_every_step_the_turn_goes_on() {
    for (name, steps) in courses() {
        for before in [false, true] {
            let mut killed = 0;
            for step in 1.. {
                if !one(name, &steps, step, before).await {
                    break;
                }
                killed += 1;
            }
            assert!(killed >= 2, "{name}: there was nothing to kill");
            println!("{name}, {}: {killed} kills", if before { "before" } else { "after" });
        }
    }
}

/// Kills the process at this step; false when the turn has fewer.
async fn one(name: &str, steps: &Value, step: i64, before: bool) -> bool {
    let what = format!("{name}, step {step}, {}", if before { "before" } else { "after" });
    let mut home = Home::new().await;
    let id = home.create(Vec::new()).await.id;
    home.sessions().0.fault.arm(step, before);
    let turn = async {
        // Cut, this may have been taken or not; the next process is asked.
        let _cut = home.post(&id, vec![script(steps.clone())]).await;
        home.serve(&id).await;
    };
    let was_killed = tokio::select! {
        () = turn => false,
        () = home.sessions().0.fault.killed() => true,
    };
    if !was_killed {
        check(&home, &id, &what, &[]).await;
        return false;
    }
    let seen = home.events(&id).await;
    home.kill().await;
    home.open().await;
    let at_work = home.sessions().recover().await.expect("recovered");
    let events = home.events(&id).await;
    if !events.iter().any(|event| matches!(event.body, EventBody::UserMessage { .. })) {
        assert!(before && step == 1, "{what}: the message is lost");
        assert_eq!((at_work, events.len()), (0, 0));
        return true;
    }
    tokio::time::timeout(PATIENCE, home.serve(&id)).await.expect("it ends");
    check(&home, &id, &what, &seen).await;
    home.kill().await;
    true
}

async fn check(home: &Home, id: &SessionId, what: &str, seen: &[Event]) {
    let events = home.events(id).await;
    assert!(events.starts_with(seen), "{what}: what was listed stays");
    assert!(events.is_sorted_by(|a, b| a.processed_at < b.processed_at), "{what}");
    let uses = events.iter().filter(|event| is_use(&event.body));
    for used in uses.clone() {
        assert_eq!(answers(&events, &used.id), 1, "{what}: {used:?}");
    }
    for (tool_use, calls) in home.servers.calls.lock().expect("calls").iter() {
        assert_eq!(*calls, 1, "{what}: {tool_use} was called again");
    }
    let messages = events.iter().filter(|event| matches!(event.body, EventBody::UserMessage { .. })).count();
    assert_eq!(messages, 1, "{what}");
    let session = home.session(id).await;
    assert_eq!((session.status, reason(&events)), (SessionStatus::Idle, Some(StopReason::EndTurn)), "{what}");
    assert_eq!(said(&events).last().map(String::as_str), Some("the end"), "{what}: {:?}", kinds(&events));
    let count = |wanted: fn(&EventBody) -> bool| events.iter().filter(|event| wanted(&event.body)).count();
    let begun = count(|body| matches!(body, EventBody::ModelRequestStart {}));
    let ended = count(|body| matches!(body, EventBody::ModelRequestEnd { .. }));
    assert_eq!(begun, ended, "{what}: {:?}", kinds(&events));
    // A request that was made again is told of.
    let failed = count(|body| matches!(body, EventBody::ModelRequestEnd { is_error: true, .. }));
    let told =
        count(|body| matches!(body, EventBody::SessionError { error } if error.retry_status == RetryStatus::Retrying));
    assert_eq!(failed, told, "{what}");
    let used = events.iter().filter_map(|event| match &event.body {
        EventBody::ModelRequestEnd { model_usage, .. } => Some(model_usage.output_tokens),
        _ => None,
    });
    assert_eq!(session.usage.output_tokens, used.sum::<u64>(), "{what}");
    let calls = home.servers.calls.lock().expect("calls").len();
    let wanted = uses.filter(|used| matches!(used.body, EventBody::AgentMcpToolUse { .. })).count();
    assert!(calls <= wanted, "{what}");
}
