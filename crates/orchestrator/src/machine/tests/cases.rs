//! Single courses, event by event.

use std::time::Duration;

use serde_json::{Value, json};
use sortie_api::{Evaluated, EventBody, RetryStatus, SessionStatus, StopReason, Verdict};

use super::world::{LIMITS, World, agent, answer, message, plain_agent, text, uses};
use crate::machine::{Asked, Input};
use crate::model::ModelError;
use crate::transcript::Entry;

const RUNNING: [&str; 2] = ["session.status_running", "session.thread_status_running"];
const IDLE: [&str; 3] = ["session.thread_status_idle", "session.usage", "session.status_idle"];

/// A world whose model is asked about a message, with all servers listed.
fn asked() -> World {
    let mut world = World::new(agent());
    world.say("hello");
    world.listed();
    world
}

/// What happened since there were this many events.
fn since(world: &World, seen: usize) -> Vec<&'static str> {
    world.kinds().split_off(seen)
}

fn joined(parts: &[&[&'static str]]) -> Vec<&'static str> {
    parts.concat()
}

fn results(world: &World) -> Vec<(String, bool)> {
    let results = world.entries.iter().filter_map(|entry| match entry {
        Entry::ToolResult { content, is_error, .. } => Some((content[0]["text"].to_string(), *is_error)),
        _ => None,
    });
    results.collect()
}

#[test]
fn words_only() {
    let mut world = World::new(plain_agent());
    world.say("hello");
    world.pass(Duration::from_secs(3));
    let thinking = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
    world.answers(vec![thinking, text("hi"), text("")], "end_turn");
    let turn =
        ["user.message", "span.model_request_start", "agent.thinking", "agent.message", "span.model_request_end"];
    assert_eq!(world.kinds(), joined(&[&RUNNING, &turn, &IDLE]));
    assert_eq!(world.reason(), Some(&StopReason::EndTurn));
    assert!((world.machine.session().stats.active_seconds - 3.001).abs() < 0.01);
    assert_eq!(world.wakes, 1);
}

#[test]
fn a_tool_of_the_sandbox_waits_for_its_worker() {
    let mut world = asked();
    let seen = world.events.len();
    world.answers(vec![uses("bash"), uses("pick")], "tool_use");
    let round = ["agent.tool_use", "agent.custom_tool_use", "span.model_request_end"];
    assert_eq!(since(&world, seen), joined(&[&round, &IDLE]));
    let open = world.open();
    let seen = world.events.len();
    world.result(&open[1], "red");
    assert_eq!(since(&world, seen), joined(&[&["user.custom_tool_result"], &IDLE]), "the rest is named again");
    let seen = world.events.len();
    world.result(&open[0], "files");
    assert_eq!(since(&world, seen), joined(&[&["user.tool_result"], &RUNNING, &["span.model_request_start"]]));
    assert_eq!(results(&world), [("\"red\"".to_owned(), false), ("\"files\"".to_owned(), false)]);
}

#[test]
fn messages_wait_for_tools_and_are_told_behind_them() {
    let mut world = asked();
    world.answers(vec![uses("bash")], "tool_use");
    world.say("and hurry");
    assert_eq!((world.machine.session().status, world.waiting.len()), (SessionStatus::Idle, 1));
    let system = EventBody::SystemMessage { content: vec![text("quick")] };
    let refused = world.machine.check(&[message("and"), system.clone()]);
    assert!(refused.is_err(), "a system message goes behind a result while results are waited for");
    let id = world.open()[0].clone();
    let body = EventBody::UserToolResult { tool_use_id: id, content: None, is_error: None };
    world.post(vec![body, system]).expect("taken");
    let kinds: Vec<_> =
        world.entries.iter().map(|entry| serde_json::to_value(entry).expect("json")["type"].clone()).collect();
    assert_eq!(kinds, ["user", "assistant", "tool_result", "user", "system"]);
    assert_eq!(results(&world), [("\"(no output)\"".to_owned(), false)], "no result is empty");
}

#[test]
fn a_person_allows_or_denies() {
    let mut world = asked();
    world.answers(vec![uses("write"), uses("mcp__mail__a")], "tool_use");
    let open = world.open();
    let body = EventBody::UserToolResult { tool_use_id: open[0].clone(), content: None, is_error: None };
    assert!(world.machine.check(&[body]).is_err(), "no result before the word");
    world.confirm(&open[0], Verdict::Allow);
    assert_eq!(world.open(), open, "an allowed tool of the sandbox still waits for its result");
    let seen = world.events.len();
    world.confirm(&open[1], Verdict::Allow);
    assert_eq!(since(&world, seen), joined(&[&["user.tool_confirmation"], &RUNNING]), "the server is called");
    world.call_ends(&open[1]);
    assert_eq!(world.machine.session().status, SessionStatus::Idle);
    world.result(&open[0], "written");
    world.answers(vec![uses("mcp__mail__b")], "tool_use");
    let open = world.open();
    let seen = world.events.len();
    world.confirm(&open[0], Verdict::Deny);
    let expected = joined(&[&["user.tool_confirmation"], &RUNNING, &["span.model_request_start"]]);
    assert_eq!(since(&world, seen), expected, "the denial is the one answer");
    let (told, is_error) = results(&world).pop().expect("a result");
    assert!(is_error && told.contains("denied") && told.contains("not today"), "{told}");
}

#[test]
fn a_tool_that_is_not_there_is_denied_and_answered() {
    let mut world = asked();
    let no_object = json!({"type": "tool_use", "id": "x", "name": "bash", "input": "ls"});
    world.answers(vec![uses("edit"), uses("mcp__mail__zzz"), no_object], "tool_use");
    assert!(world.outside.asked.is_some(), "the model is told at once");
    let permissions = world.events.iter().filter_map(|event| match &event.body {
        EventBody::AgentToolUse { permission, .. } | EventBody::AgentMcpToolUse { permission, .. } => Some(permission),
        _ => None,
    });
    for permission in permissions {
        assert_eq!(permission.evaluated_permission, Some(Evaluated::Deny));
        assert_eq!(permission.evaluation, None);
    }
    assert!(world.begun.is_empty());
    assert_eq!(results(&world).iter().filter(|(_, is_error)| *is_error).count(), 3);
}

#[test]
fn failures_are_tried_again_and_then_not() {
    let mut world = asked();
    let fails = |world: &mut World| {
        world.outside.asked = None;
        let error = ModelError::passing("model_overloaded_error", "too many");
        let retry_after = Some(Duration::from_secs(7));
        let seen = world.events.len();
        world.step(Input::Unanswered(ModelError { retry_after, ..error }));
        since(world, seen)
    };
    for _ in 1..LIMITS.tries {
        let expected = [
            "span.model_request_end",
            "session.error",
            "session.thread_status_rescheduled",
            "session.status_rescheduled",
        ];
        assert_eq!(fails(&mut world), expected);
        let now = world.events.last().expect("event").processed_at.expect("time");
        let wait = world.outside.due.expect("a wait").duration_since(now);
        assert!((6..8).contains(&wait.as_secs()), "the upstream's wish is kept: {wait:?}");
        let seen = world.events.len();
        world.due();
        assert_eq!(since(&world, seen), joined(&[&RUNNING, &["span.model_request_start"]]));
    }
    world.say("are you there?");
    let expected = joined(&[&["span.model_request_end", "session.error", "user.message"], &IDLE]);
    assert_eq!(fails(&mut world), expected, "what waits is taken along");
    assert_eq!(world.reason(), Some(&StopReason::RetriesExhausted));
    world.say("again");
    world.answers(vec![text("yes")], "end_turn");
    assert_eq!(world.reason(), Some(&StopReason::EndTurn), "the next message starts fresh");
}

#[test]
fn an_upstream_that_asks_for_too_long_a_wait_is_not_waited_for() {
    let mut world = asked();
    world.outside.asked = None;
    let retry_after = Some(LIMITS.longest_wait + Duration::from_secs(1));
    world.step(Input::Unanswered(ModelError { retry_after, ..ModelError::passing("model_rate_limited_error", "no") }));
    assert_eq!(world.reason(), Some(&StopReason::RetriesExhausted));
}

#[test]
fn an_interrupt_stops_the_model_and_what_waits_begins_the_next_turn() {
    let mut world = asked();
    world.say("something else");
    let seen = world.events.len();
    let echoes = world.post(vec![EventBody::UserInterrupt { session_thread_id: None }]).expect("taken");
    assert_eq!(echoes[0].processed_at, None);
    let next = ["user.message", "span.model_request_start"];
    let before = ["user.interrupt", "span.model_request_end"];
    // The servers that are known are not asked again.
    assert_eq!(since(&world, seen), joined(&[&before, &IDLE, &RUNNING, &next]));
    assert!(world.machine.check(&[EventBody::UserInterrupt { session_thread_id: "sthr_2".parse().ok() }]).is_err());
}

#[test]
fn an_interrupt_at_rest_does_nothing() {
    let mut world = World::new(plain_agent());
    world.interrupt();
    assert_eq!(world.kinds(), ["user.interrupt"]);
    assert_eq!(world.machine.session().status, SessionStatus::Idle);
}

#[test]
fn an_interrupt_answers_every_use() {
    let mut world = asked();
    world.answers(vec![uses("bash"), uses("pick"), uses("mcp__files__a"), uses("write")], "tool_use");
    let seen = world.events.len();
    world.interrupt();
    let closed =
        ["user.interrupt", "user.tool_result", "user.custom_tool_result", "agent.mcp_tool_result", "user.tool_result"];
    assert_eq!(since(&world, seen), joined(&[&closed, &IDLE]));
    assert!(world.outside.is_quiet(), "no request is made");
    assert!(world.events.iter().any(|event| crate::machine::is_closing(&event.body)));
}

#[test]
fn a_call_that_ran_at_a_crash_is_not_made_again() {
    let mut world = asked();
    world.answers(vec![uses("mcp__files__a"), uses("mcp__files__b"), uses("mcp__files__c")], "tool_use");
    assert_eq!(world.begun.len(), LIMITS.calls, "the third waits");
    let begun = world.begun.clone();
    world.crash();
    assert_eq!(world.begun.len(), 3, "the third had not begun");
    assert_eq!(world.open().len(), 1);
    let told = results(&world);
    assert!(told.iter().all(|(text, is_error)| *is_error && text.contains("may have run")), "{told:?} of {begun:?}");
}

#[test]
fn a_request_that_was_cut_by_a_crash_is_told_of_and_made_again() {
    let mut world = asked();
    let seen = world.events.len();
    world.crash();
    let expected =
        ["span.model_request_end", "session.error", "session.thread_status_rescheduled", "session.status_rescheduled"];
    assert_eq!(since(&world, seen), expected);
    world.due();
    world.listed();
    assert_eq!(world.outside.asked, Some(Asked::Answer));
    // A hub that dies of it every time gives up.
    for _ in 0..LIMITS.tries {
        world.crash();
        if world.outside.due.is_some() {
            world.due();
            world.listed();
        }
    }
    assert_eq!(world.reason(), Some(&StopReason::RetriesExhausted));
}

#[test]
fn a_full_window_is_summarised_before_the_next_request() {
    let mut world = World::new(plain_agent());
    world.say("hello");
    let mut long = answer(vec![text("long")], "end_turn");
    long.usage.input_tokens = 90_000;
    world.answer(long);
    assert_eq!(world.machine.session().status, SessionStatus::Idle, "not before something is to be asked");
    world.say("go on");
    assert_eq!(world.outside.asked, Some(Asked::Summary { upto: 2, half: false }));
    world.answers(vec![text("they said hello")], "end_turn");
    assert_eq!(world.outside.asked, Some(Asked::Answer));
    assert!(world.kinds().contains(&"agent.thread_context_compacted"));
    let told = crate::prompt::messages(&world.entries).expect("messages");
    let told = serde_json::to_string(&told).expect("json");
    assert!(told.contains("they said hello") && told.contains("go on") && !told.contains("long"), "{told}");
}

#[test]
fn a_conversation_that_stays_too_long_ends_the_turn() {
    let mut world = asked();
    world.answers(vec![text("hi")], "end_turn");
    world.say("go on");
    let too_long = || ModelError { too_long: true, ..ModelError::new("model_request_failed_error", "too long") };
    for expected in [Asked::Answer, Asked::Summary { upto: 2, half: false }, Asked::Summary { upto: 2, half: true }] {
        assert_eq!(world.outside.asked.take(), Some(expected));
        world.step(Input::Unanswered(too_long()));
    }
    let errors = world.events.iter().filter_map(|event| match &event.body {
        EventBody::SessionError { error } => Some((error.kind.as_str(), error.retry_status)),
        _ => None,
    });
    assert_eq!(errors.collect::<Vec<_>>(), [("compaction_limit_reached_error", RetryStatus::Exhausted)]);
    assert_eq!(world.reason(), Some(&StopReason::RetriesExhausted));
}

#[test]
fn rounds_are_bounded() {
    let mut world = asked();
    for _ in 0..=LIMITS.rounds {
        assert!(world.outside.asked.is_some());
        world.answers(vec![uses("web_search")], "tool_use");
    }
    assert!(world.kinds().ends_with(&joined(&[&["session.error"], &IDLE])));
    assert_eq!(world.reason(), Some(&StopReason::RetriesExhausted));
}

#[test]
fn an_answer_at_its_greatest_length_is_asked_to_go_on() {
    let mut world = asked();
    world.answers(vec![text("once upon")], "max_tokens");
    assert!(world.outside.asked.is_some());
    world.answers(vec![text("a time"), uses("bash")], "max_tokens");
    assert!(world.open().is_empty(), "what may be cut is not carried out");
    assert!(results(&world)[0].1 && world.outside.asked.is_some());
    world.answers(vec![text("the end")], "end_turn");
    assert_eq!(world.reason(), Some(&StopReason::EndTurn));
}

#[test]
fn a_refusal_says_why() {
    let mut world = asked();
    let mut refusal = answer(vec![text("no")], "refusal");
    refusal.stop_details = Some(json!({"type": "refusal", "category": "x", "explanation": "because"}));
    world.answer(refusal);
    assert_eq!(world.reason(), Some(&StopReason::Refusal));
    let details = world.events.iter().rev().find_map(|event| match &event.body {
        EventBody::SessionStatusIdle { stop_details, .. } => stop_details.clone(),
        _ => None,
    });
    assert_eq!(details, Some(json!({"type": "refusal", "category": "x", "explanation": "because"})));
    assert!(!world.entries.iter().any(|entry| matches!(entry, Entry::Assistant { .. })));
}

#[test]
fn ids_of_uses_are_unique_whatever_the_model_says() {
    let mut world = asked();
    world.answers(vec![uses("bash"), uses("bash")], "tool_use");
    let Some(Entry::Assistant { content, uses: ids }) = world.entries.last() else { panic!("an answer") };
    assert_eq!(ids.len(), 2);
    assert_ne!(content[0]["id"], content[1]["id"]);
    assert!(content.iter().all(|block| block["id"].as_str().is_some_and(|id| ids.contains_key(id))));
    let _uses: &Vec<Value> = content;
}
