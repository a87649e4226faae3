use std::path::Path;

use serde_json::{Map, Value, json};
use sortie_testkit::messages::{events, written};
use sortie_testkit::{MessagesServer, Piece, Reply};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::model::{BILLING, RATE_LIMITED, Source};

const KEY: &str = "sk-test-0123456789abcdef";

/// A catalog with one upstream for each of these servers, and what belongs to it.
struct Stage {
    catalog: Arc<Catalog>,
    dir: TempDir,
    tasks: TaskSet,
}

const FAST: &str = "timeouts = { connect = \"2s\", first_byte = \"300ms\", between_bytes = \"300ms\" }";

fn settings(servers: &[String], more: &str) -> String {
    let upstream = |(number, url): (usize, &String)| {
        format!(
            "[[upstreams]]\nname = \"up{number}\"\nmatch = [\"m-*\"]\nbase_url = \"{url}\"\nkey = {{ file = \"key\" }}\n{more}\n"
        )
    };
    servers.iter().enumerate().map(upstream).collect()
}

fn put(dir: &Path, settings: &str) {
    sortie_tls::write_private(dir.join("key"), KEY.as_bytes()).expect("key");
    std::fs::write(dir.join("models.toml"), settings).expect("settings");
}

impl Stage {
    fn set(servers: &[&MessagesServer], more: &str) -> Self {
        Self::with(&servers.iter().map(|server| server.url()).collect::<Vec<_>>(), more)
    }

    fn with(servers: &[String], more: &str) -> Self {
        let (dir, tasks) = (tempfile::tempdir().expect("dir"), TaskSet::new());
        put(dir.path(), &settings(servers, more));
        let catalog = Catalog::open(dir.path().join("models.toml"), &tasks).expect("settings");
        Self { catalog, dir, tasks }
    }

    async fn ask(&self) -> (Result<ModelAnswer, ModelError>, Vec<Delta>) {
        let (deltas, mut received) = mpsc::unbounded_channel();
        let outcome = self.catalog.ask(&request("m-1"), deltas).await;
        let mut seen = Vec::new();
        while let Some(delta) = received.recv().await {
            seen.push(delta);
        }
        (outcome, seen)
    }

    /// The failure of a request, which never shows the key.
    async fn failure(&self) -> ModelError {
        let error = self.ask().await.0.expect_err("failure");
        assert!(!format!("{error:?}").contains(KEY), "{error:?}");
        error
    }
}

fn request(model: &str) -> ModelRequest {
    let said = json!([{"type": "text", "text": "Hello?"}]);
    ModelRequest {
        model: Model { id: model.to_owned(), settings: Map::new() },
        system: Some("Be brief.".into()),
        messages: vec![json!({"role": "user", "content": said})],
        tools: vec![json!({"name": "bash", "description": "d", "input_schema": {"type": "object"}})],
        max_tokens: 1000,
        source: Source {
            session: "sesn_1".parse().expect("id"),
            agent: "agent_1".parse().expect("id"),
            environment: "env_1".parse().expect("id"),
        },
    }
}

async fn server(replies: impl IntoIterator<Item = Reply>) -> MessagesServer {
    let server = MessagesServer::with(replies).await.expect("server");
    server.state().key = Some(KEY.to_owned());
    server
}

/// Waits until something is so.
async fn happens(what: &str, mut so: impl FnMut() -> bool) {
    let seen = sortie_testkit::eventually(Duration::from_secs(20), || so().then_some(())).await;
    seen.unwrap_or_else(|| panic!("{what}"));
}

fn text(answer: &ModelAnswer) -> &str {
    answer.content[0]["text"].as_str().expect("text")
}

#[tokio::test]
async fn an_answer_comes_in_pieces_and_whole() {
    let blocks = [
        json!({"type": "thinking", "thinking": "Hm.", "signature": "sig"}),
        json!({"type": "text", "text": "Let me see."}),
        json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}}),
    ];
    let server = server([Reply::blocks(&blocks, "tool_use")]).await;
    let stage = Stage::set(&[&server], "headers = { x-team = \"a\" }");
    let (answer, deltas) = stage.ask().await;
    let answer = answer.expect("answer");
    assert_eq!(answer.content, blocks);
    assert_eq!((answer.stop_reason.as_str(), answer.cached_for_an_hour), ("tool_use", 2));
    let usage = &answer.usage;
    assert_eq!((usage.input_tokens, usage.output_tokens), (11, 23));
    assert_eq!((usage.cache_creation_input_tokens, usage.cache_read_input_tokens), (5, 7));
    let said: String = deltas
        .iter()
        .filter_map(|delta| match delta {
            Delta::Text { index: 0, text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!((deltas.len(), said.as_str()), (3, "Let me see."));

    let state = server.state();
    let (headers, body) = &state.requests[0];
    assert_eq!((&body["model"], &body["stream"], &body["max_tokens"]), (&json!("m-1"), &json!(true), &json!(1000)));
    assert!(headers["x-api-key"] == KEY && headers["x-team"] == "a");
    let names: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
    assert!(!names.iter().any(|name| name.contains("managed-agents") || name.contains("session")), "{names:?}");
}

/// Each fault of an upstream, and what is said of it.
#[tokio::test]
async fn each_fault_has_its_error() {
    let whole = || events(&[json!({"type": "text", "text": "abcd"})], "end_turn");
    let part = |count: usize, end: Piece| {
        let bytes = whole().iter().take(count).map(|event| Piece::Bytes(written(event))).collect::<Vec<_>>();
        Reply::pieces([bytes, vec![end]].concat())
    };
    let raw = |text: &str| Reply::pieces(vec![Piece::Bytes(text.as_bytes().to_vec())]);
    let large = [b"data: ".to_vec(), vec![b'x'; sse::MAX_EVENT]].concat();
    let html = Reply::Answer {
        status: 200,
        headers: vec![("content-type", "text/html".into())],
        pieces: vec![Piece::Bytes(b"<html>".to_vec())],
    };
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let failing = [&whole()[..3], &[overloaded]].concat();
    let (failed, over, limited) = (REQUEST_FAILED, OVERLOADED, RATE_LIMITED);
    for (reply, kind, retryable, why) in [
        (Reply::Silence, failed, true, "did not begin to answer within 0.3 s"),
        (part(0, Piece::Hang), failed, true, "stood still for 0.3 s"),
        (part(4, Piece::Hang), failed, true, "stood still for 0.3 s"),
        (part(4, Piece::Cut), failed, true, "was cut"),
        (part(0, Piece::Cut), failed, true, "was cut"),
        (part(4, Piece::Wait(Duration::ZERO)), failed, true, "ended in the midst"),
        (raw(""), failed, true, "ended in the midst"),
        (raw("data: {\"type\": \"message_stop\"}\n\n"), failed, true, "does not begin with message_start"),
        (raw("data: nonsense\n\n"), failed, true, "no JSON object"),
        (raw("event: x\ndata: \u{0}\n\n"), failed, true, "no JSON object"),
        (Reply::pieces(vec![Piece::Bytes(b"data: \xff\n\n".to_vec())]), failed, true, "not UTF-8"),
        (Reply::pieces(vec![Piece::Bytes(large)]), failed, true, "more than 8388608 bytes"),
        (html, failed, false, "is its base_url that of a Messages API?"),
        (Reply::events(&failing), over, true, "is overloaded: Overloaded"),
        (Reply::error(529, "overloaded_error", "Overloaded"), over, true, "is overloaded: Overloaded"),
        (Reply::error(429, "rate_limit_error", "Slow"), limited, true, "has reached its rate limit: Slow"),
        (Reply::error(500, "api_error", "Oops"), failed, true, "failed: Oops"),
        (Reply::error(502, "", ""), failed, true, "failed"),
        (Reply::error(503, "", ""), over, true, "is overloaded"),
        (Reply::error(500, "api_error", "Oops").with("x-should-retry", "false"), failed, false, "failed: Oops"),
        (Reply::error(402, "billing_error", "Pay"), BILLING, false, "wants to be paid: Pay"),
        (
            Reply::error(400, "invalid_request_error", "no such thing"),
            failed,
            false,
            "refuses the request: no such thing",
        ),
        (Reply::error(404, "not_found_error", "model: m-1"), failed, false, "does not know this model"),
        (Reply::error(401, "authentication_error", KEY), failed, false, "does not accept the key"),
        (Reply::error(400, "invalid_request_error", KEY), failed, false, "refuses the request"),
        (Reply::error(302, "", "").with("location", "http://127.0.0.1:1/"), failed, false, "redirect"),
    ] {
        let shown = format!("{reply:?}");
        let server = server([reply]).await;
        let stage = Stage::set(&[&server], FAST);
        let error = stage.failure().await;
        assert_eq!((error.kind, error.retryable), (kind, retryable), "{error} of {shown:.300}");
        assert!(error.message.starts_with("model upstream `up0` ") && error.message.contains(why), "{error}: {why}");
        assert_eq!(server.state().requests.len(), 1, "asked once: {shown:.300}");
    }
}

#[tokio::test]
async fn what_an_error_says_for_programs_is_kept() {
    let long = "prompt is too long: 210000 tokens > 200000 maximum";
    let server = server([
        Reply::error(429, "rate_limit_error", "Slow").with("retry-after", "7"),
        Reply::error(400, "invalid_request_error", long),
        Reply::error(413, "request_too_large", "Request exceeds the maximum size"),
        Reply::error(500, "api_error", &format!("{}\n\u{7}", "x".repeat(5000))),
    ])
    .await;
    let stage = Stage::set(&[&server], FAST);
    let error = stage.failure().await;
    assert_eq!((error.retry_after, &error.details["upstream_status"]), (Some(Duration::from_secs(7)), &json!(429)));
    for _ in 0..2 {
        let error = stage.failure().await;
        assert!(error.too_long && !error.retryable, "{error:?}");
    }
    assert!(stage.failure().await.message.len() < 400);
}

#[tokio::test]
async fn slow_answers_are_read_to_their_end() {
    let bytes: Vec<u8> =
        events(&[json!({"type": "text", "text": "äöü"})], "end_turn").iter().flat_map(written).collect();
    let pieces =
        bytes.chunks(7).flat_map(|bytes| [Piece::Bytes(bytes.to_vec()), Piece::Wait(Duration::from_millis(2))]);
    let server = server([Reply::pieces(pieces.collect())]).await;
    let (answer, deltas) = Stage::set(&[&server], FAST).ask().await;
    assert_eq!((text(&answer.expect("answer")), deltas.len()), ("äöü", 2));
}

#[tokio::test]
async fn the_next_one_is_asked_where_nothing_was_answered() {
    let refusing = || async { server((0..4).map(|_| Reply::error(529, "overloaded_error", "x"))).await };
    for (first, asked_first) in [(None, 0), (Some(refusing().await), 1)] {
        let second = server([Reply::says("second")]).await;
        // Nothing listens there.
        let url = first.as_ref().map_or_else(|| "http://127.0.0.1:9".to_owned(), MessagesServer::url);
        let stage = Stage::with(&[url, second.url()], FAST);
        assert_eq!(text(&stage.ask().await.0.expect("answer")), "second");
        let asked = || first.as_ref().map_or(0, |first| first.state().requests.len());
        assert_eq!(asked(), asked_first);
        // It is tried after the other one now.
        stage.ask().await.0.expect("answer");
        assert_eq!((asked(), second.state().requests.len()), (asked_first, 2));
    }
    let (first, second) = (refusing().await, server([Reply::error(429, "rate_limit_error", "y")]).await);
    let error = Stage::set(&[&first, &second], FAST).failure().await;
    assert_eq!(error.kind, RATE_LIMITED);
    assert_eq!(
        error.message,
        "model upstream `up0` is overloaded: x; model upstream `up1` has reached its rate limit: y"
    );
}

#[tokio::test]
async fn what_may_have_been_answered_is_not_asked_again() {
    let whole = events(&[json!({"type": "text", "text": "abcd"})], "end_turn");
    let begun = whole[..4].iter().map(|event| Piece::Bytes(written(event)));
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    for reply in [
        Reply::Silence,
        Reply::pieces(begun.clone().chain([Piece::Cut]).collect()),
        Reply::events(&[&whole[..4], std::slice::from_ref(&overloaded)].concat()),
        Reply::error(400, "invalid_request_error", "x"),
    ] {
        let (first, second) = (server([reply.clone()]).await, server([]).await);
        let stage = Stage::set(&[&first, &second], FAST);
        stage.failure().await;
        assert_eq!(second.state().requests.len(), 0, "{reply:?}");
        // The session may ask again; then the other one is first, if another try can help.
        if !matches!(&reply, Reply::Answer { status: 400, .. }) {
            stage.ask().await.0.expect("answer");
            assert_eq!(second.state().requests.len(), 1, "{reply:?}");
        }
    }
    // An error in place of a beginning is no answer.
    let (first, second) = (server([Reply::events(&[overloaded])]).await, server([Reply::says("second")]).await);
    assert_eq!(text(&Stage::set(&[&first, &second], FAST).ask().await.0.expect("answer")), "second");
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_ends() {
    let server = server([Reply::pieces(vec![Piece::Hang]), Reply::Silence]).await;
    let stage = Stage::set(&[&server], "");
    for count in 1..=2 {
        let (deltas, _received) = mpsc::unbounded_channel();
        let request = request("m-1");
        let waiting = stage.catalog.ask(&request, deltas);
        tokio::select! {
            outcome = waiting => panic!("{outcome:?}"),
            () = happens("it is asked", || server.state().requests.len() == count) => {}
        }
        happens("it ends", || server.state().abandoned == count && server.state().running == 0).await;
    }
}

#[tokio::test]
async fn further_requests_go_elsewhere_or_wait() {
    let (first, second) = (server([Reply::pieces(vec![Piece::Hang])]).await, server([]).await);
    let stage = Stage::set(&[&first, &second], "max_in_flight = 1");
    let (deltas, _received) = mpsc::unbounded_channel();
    let request = request("m-1");
    let mut first_one = stage.catalog.ask(&request, deltas);
    tokio::select! {
        outcome = &mut first_one => panic!("{outcome:?}"),
        () = happens("it is asked", || first.state().requests.len() == 1) => {}
    }
    stage.ask().await.0.expect("answer");
    assert_eq!((first.state().requests.len(), second.state().requests.len()), (1, 1));
    // Both are full: the next one gets the place that comes free.
    second.state().replies.push_back(Reply::pieces(vec![Piece::Hang]));
    let (deltas, _received) = mpsc::unbounded_channel();
    let mut second_one = stage.catalog.ask(&request, deltas);
    tokio::select! {
        outcome = &mut second_one => panic!("{outcome:?}"),
        () = happens("it is asked", || second.state().requests.len() == 2) => {}
    }
    let mut third = Box::pin(stage.ask());
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut third).await.is_err());
    drop(first_one);
    third.await.0.expect("answer");
    assert_eq!(first.state().requests.len(), 2);
}

#[tokio::test]
async fn models_nobody_serves_are_refused() {
    let server = server([]).await;
    let stage = Stage::set(&[&server], "max_tokens = 7\ncontext_window = 4096");
    let model = |id: &str| Model { id: id.to_owned(), settings: Map::new() };
    assert_eq!(stage.catalog.check(&model("m-2")), Ok(()));
    assert_eq!(stage.catalog.check(&model("scripted")), Ok(()));
    assert!(stage.catalog.check(&model("n-2")).expect_err("refused").contains("`n-2`"));
    assert!(Catalog::scripted().check(&model("m-2")).expect_err("refused").contains("--models"));
    let (deltas, _received) = mpsc::unbounded_channel();
    let error = stage.catalog.ask(&request("n-2"), deltas).await.expect_err("refused");
    assert!(!error.retryable && error.message.contains("no upstream serves the model `n-2`"), "{error}");
    assert_eq!(stage.catalog.limits(&model("m-2")), ModelLimits { context_window: 4096, max_tokens: 7 });
    assert_eq!(stage.catalog.limits(&model("scripted")), ModelLimits::default());
}

#[tokio::test]
async fn changed_settings_are_put_in_force_and_broken_ones_are_not() {
    let (first, second) = (server([]).await, server([Reply::says("second")]).await);
    let stage = Stage::set(&[&first], "");
    let served = |model: &str| stage.catalog.check(&Model { id: model.to_owned(), settings: Map::new() }).is_ok();
    let before = stage.catalog.served.load().upstreams[0].clone();
    put(stage.dir.path(), "[[upstreams]]\nname = 5");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(served("m-1"), "the old ones stay");
    let other =
        settings(&[first.url()], "") + &settings(&[second.url()], "").replace("m-*", "n-*").replace("up0", "up1");
    std::fs::write(stage.dir.path().join("say.json"), r#"{"script": [{"text": "filed"}]}"#).expect("script");
    put(stage.dir.path(), &format!("{other}\n[scripts]\nsay = \"say.json\""));
    happens("they are read", || served("n-1")).await;
    assert!(Arc::ptr_eq(&before, &stage.catalog.served.load().upstreams[0]), "what stays as it is stays in use");
    let (deltas, _received) = mpsc::unbounded_channel();
    assert_eq!(text(&stage.catalog.ask(&request("n-1"), deltas).await.expect("answer")), "second");
    let said = async || {
        let (deltas, _received) = mpsc::unbounded_channel();
        let answer = stage.catalog.ask(&request("scripted-say"), deltas).await.expect("answer");
        text(&answer).to_owned()
    };
    assert_eq!(said().await, "filed");
    std::fs::write(stage.dir.path().join("say.json"), r#"{"script": [{"text": "anew"}]}"#).expect("script");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while said().await != "anew" {
        assert!(tokio::time::Instant::now() < deadline, "the script is read again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stage.tasks.shutdown(Duration::from_secs(5)).await);
}

/// The same streams, read by the official SDK and here.
#[tokio::test]
async fn the_official_sdk_reads_the_same() {
    let Some(python) = sortie_testkit::tool("SORTIE_TEST_PYTHON_ANTHROPIC") else { return };
    let tool = |id: &str, input: Value| json!({"type": "tool_use", "id": id, "name": "bash", "input": input});
    let text = |text: &str| json!({"type": "text", "text": text});
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    let mut failing = events(&[text("abcd")], "end_turn");
    failing.truncate(4);
    let cut = failing.iter().map(|event| Piece::Bytes(written(event))).chain([Piece::Cut]).collect();
    failing.push(overloaded);
    let slow = events(&[text("Grüße, 世界 🎈")], "end_turn").iter().flat_map(written).collect::<Vec<u8>>();
    let thinking = json!({"type": "thinking", "thinking": "Hm,\nhm.", "signature": "c2ln"});
    let replies = [
        Reply::blocks(&[text("One."), text("Two.")], "end_turn"),
        Reply::blocks(&[thinking.clone(), text("a\"b\\c\u{2028}d")], "stop_sequence"),
        Reply::blocks(
            &[thinking, tool("toolu_1", json!({"a": [1, {"b": null}], "ü": "x"})), tool("toolu_2", json!({}))],
            "tool_use",
        ),
        Reply::blocks(&[json!({"type": "redacted_thinking", "data": "enp6"}), text("x")], "max_tokens"),
        Reply::blocks(&[], "refusal"),
        Reply::pieces(slow.chunks(3).map(|bytes| Piece::Bytes(bytes.to_vec())).collect()),
        Reply::events(&failing),
        Reply::pieces(cut),
        Reply::error(400, "invalid_request_error", "x"),
    ];
    let (theirs, ours) = (server(replies.clone()).await, server(replies.clone()).await);
    let stage = Stage::set(&[&ours], "");
    let mut read = Vec::new();
    for _ in 0..replies.len() {
        read.push(match stage.ask().await.0 {
            Err(_) => None,
            Ok(answer) => {
                let ModelAnswer { content, stop_reason, usage, .. } = answer;
                let usage = [
                    usage.input_tokens,
                    usage.output_tokens,
                    usage.cache_creation_input_tokens,
                    usage.cache_read_input_tokens,
                ];
                Some(json!({"content": content, "stop_reason": stop_reason, "usage": usage}))
            }
        });
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/python/messages_stream.py");
    let (url, count) = (theirs.url(), replies.len().to_string());
    let run = move || std::process::Command::new(python).arg(script).args([&url, KEY, &count]).output();
    let output = tokio::task::spawn_blocking(run).await.expect("ran").expect("ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<Value> = serde_json::from_slice(&output.stdout).expect("json");
    assert_eq!(said.len(), read.len());
    for (said, read) in said.iter().zip(read) {
        match read {
            Some(read) => assert_eq!(*said, read),
            None => assert!(said.get("error").is_some(), "{said}"),
        }
    }
}
