use serde_json::json;
use tokio::sync::mpsc;

use super::*;

fn read(events: &[Value]) -> (Result<ModelAnswer, Broken>, Vec<Delta>) {
    let (deltas, mut received) = mpsc::unbounded_channel();
    let mut answer = Answer::default();
    let taken: Result<(), Broken> = events.iter().try_for_each(|event| answer.take(&event.to_string(), &deltas));
    drop(deltas);
    let mut seen = Vec::new();
    while let Ok(delta) = received.try_recv() {
        seen.push(delta);
    }
    (taken.and_then(|()| answer.finish()), seen)
}

fn start() -> Value {
    let usage = json!({"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": null,
                       "cache_creation_input_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": 2}});
    json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [],
           "usage": usage}})
}

fn block(index: usize, block: Value, deltas: &[Value]) -> Vec<Value> {
    let mut events = vec![json!({"type": "content_block_start", "index": index, "content_block": block})];
    let delta = |delta: &Value| json!({"type": "content_block_delta", "index": index, "delta": delta});
    events.extend(deltas.iter().map(delta));
    events.push(json!({"type": "content_block_stop", "index": index}));
    events
}

fn end(reason: &str) -> Vec<Value> {
    let delta = json!({"stop_reason": reason, "stop_sequence": null});
    vec![
        json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9, "cache_read_input_tokens": 4}}),
        json!({"type": "message_stop"}),
    ]
}

fn whole(blocks: Vec<Vec<Value>>, reason: &str) -> Vec<Value> {
    [vec![start(), json!({"type": "ping"})], blocks.concat(), end(reason)].concat()
}

fn input(json: &str) -> Value {
    json!({"type": "input_json_delta", "partial_json": json})
}

#[test]
fn an_answer_is_put_together() {
    let said = |text: &str| json!({"type": "text_delta", "text": text});
    let empty = || json!({"type": "text", "text": ""});
    let uses = json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}});
    let citation = json!({"type": "citations_delta", "citation": {"cited_text": "x"}});
    let events = whole(
        vec![
            block(
                0,
                json!({"type": "thinking", "thinking": "", "signature": ""}),
                &[
                    json!({"type": "thinking_delta", "thinking": "Hm"}),
                    json!({"type": "thinking_delta", "thinking": "."}),
                    json!({"type": "signature_delta", "signature": "sig"}),
                ],
            ),
            vec![json!({"type": "newer_event", "index": 77})],
            block(1, empty(), &[said("a"), said(""), said("b"), json!({"type": "newer_delta"}), citation]),
            block(2, uses.clone(), &[input(""), input("{\"comm"), input("and\": \"ls\"}")]),
            block(3, uses, &[]),
            block(4, empty(), &[said("c")]),
            block(5, json!({"type": "redacted_thinking", "data": "zzz"}), &[]),
        ],
        "tool_use",
    );
    let (answer, deltas) = read(&events);
    let answer = answer.expect("answer");
    assert_eq!(
        Value::Array(answer.content),
        json!([
            {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
            {"type": "text", "text": "ab", "citations": [{"cited_text": "x"}]},
            {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}},
            {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}},
            {"type": "text", "text": "c"},
            {"type": "redacted_thinking", "data": "zzz"},
        ])
    );
    let usage = &answer.usage;
    assert_eq!((usage.input_tokens, usage.output_tokens), (5, 9));
    assert_eq!((usage.cache_creation_input_tokens, usage.cache_read_input_tokens), (3, 4));
    assert_eq!((answer.cached_for_an_hour, answer.stop_reason.as_str()), (2, "tool_use"));
    let text = |index, text: &str| Delta::Text { index, text: text.to_owned() };
    assert_eq!(deltas, [Delta::Thinking, text(0, "a"), text(0, "b"), text(1, "c"), Delta::Thinking]);
}

#[test]
fn what_the_limit_has_cut_is_no_use_of_a_tool() {
    let uses = json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}});
    let blocks =
        || vec![block(0, json!({"type": "text", "text": "a"}), &[]), block(1, uses.clone(), &[input("{\"comm")])];
    let answer = read(&whole(blocks(), "max_tokens")).0.expect("answer");
    assert_eq!(Value::Array(answer.content), json!([{"type": "text", "text": "a"}]));
    let broken = read(&whole(blocks(), "tool_use")).0.expect_err("broken");
    assert_eq!(broken, Broken::Garbage("the input of a tool is no JSON object"));
}

#[test]
fn what_is_no_answer_is_refused() {
    let text = || json!({"type": "text", "text": ""});
    let opened = |index: usize| json!({"type": "content_block_start", "index": index, "content_block": text()});
    let delta = |index: usize| json!({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": "a"}});
    let bad_usage = json!({"type": "message_delta", "delta": {}, "usage": {"output_tokens": -1}});
    let user = json!({"type": "message_start", "message": {"role": "user"}});
    let nameless = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "x"}});
    for (events, why) in [
        (vec![json!([])], "no JSON object"),
        (vec![json!({})], "no type"),
        (vec![json!({"type": "message_start"})], "no message"),
        (vec![user], "not the assistant's"),
        (vec![start(), start()], "begins twice"),
        (vec![opened(0)], "does not begin with"),
        (end("end_turn"), "does not begin with"),
        (vec![start(), opened(1)], "follow one another"),
        (vec![start(), opened(0), opened(1)], "follow one another"),
        (vec![start(), delta(0)], "not open"),
        (vec![start(), opened(0), delta(1)], "not open"),
        (vec![start(), opened(0), json!({"type": "message_stop"})], "within a block"),
        (vec![start(), json!({"type": "content_block_start", "index": 0})], "no content_block"),
        (vec![start(), json!({"type": "content_block_start", "content_block": {}})], "no index"),
        (vec![start(), opened(0), json!({"type": "content_block_delta", "index": 0})], "delta is missing"),
        (vec![start(), nameless], "no id or name"),
        (vec![start(), bad_usage], "figure of usage"),
        (vec![start(), json!({"type": "message_stop"})], "no stop_reason"),
    ] {
        let error = read(&events).0.expect_err(why).to_string();
        assert!(error.contains(why), "{error}, not {why}");
    }
    assert_eq!(read(&[]).0, Err(Broken::Cut));
    assert_eq!(read(&[start(), opened(0), delta(0)]).0, Err(Broken::Cut));
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let failed = Broken::Failed { kind: "overloaded_error".into(), message: "Overloaded".into() };
    assert_eq!(read(&[start(), overloaded]).0, Err(failed));
}

#[test]
fn an_endless_answer_has_an_end() {
    let (deltas, _received) = mpsc::unbounded_channel();
    let mut answer = Answer::default();
    answer.take(&start().to_string(), &deltas).expect("begun");
    let ping = json!({"type": "ping", "more": "x".repeat(1024 * 1024)}).to_string();
    let taken = (0..MAX_ANSWER / ping.len()).try_for_each(|_| answer.take(&ping, &deltas));
    assert_eq!(taken, Ok(()));
    assert_eq!(answer.take(&ping, &deltas), Err(Broken::Large));
}
