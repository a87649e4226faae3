//! Finding records.

mod written;

use std::fs;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sortie_audit::{Member, Search, kinds, search};
use written::Written;

fn found(log: &Written, wanted: &Search) -> Vec<u64> {
    let mut found = Vec::new();
    let take = |record: sortie_audit::Record<'_>| {
        found.push(record.seq);
        true
    };
    search(log.dir(), wanted, take, |_| ()).expect("searched");
    found
}

fn by(members: &[(Member, &str)]) -> Search {
    let members = members.iter().map(|(member, value)| (*member, (*value).to_owned())).collect();
    Search { members, ..Search::default() }
}

/// What a reader of all lines without any shortcut finds.
fn plainly(log: &Written, matches: impl Fn(&Value) -> bool) -> Vec<u64> {
    let mut files: Vec<_> =
        fs::read_dir(log.dir().join("log")).expect("dir").map(|file| file.expect("f").path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| fs::read_to_string(file).expect("text")).collect();
    let values = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("json"));
    values.filter(|value| matches(value)).filter_map(|value| value.get("seq")?.as_u64()).collect()
}

#[test]
fn every_question_has_the_answer_of_a_plain_reader() {
    let mut log = Written::three_files();
    log.add(
        kinds::CALL_REFUSED,
        &json!({"id": "req_x", "route": "files", "outcome": "refused", "hop": "policy",
        "caller": {"subject": "agent-1"}, "method": "tools/call", "tool": "agent-1"}),
    );
    let at = |pointer: &'static str, wanted: &'static str| {
        move |value: &Value| value.pointer(pointer).is_some_and(|said| said == wanted)
    };
    for (member, pointer, wanted, count) in [
        (Member::Agent, "/caller/agent", "agent-1", 4),
        (Member::Subject, "/caller/subject", "agent-1", 1),
        (Member::Tool, "/tool", "tool_2", 3),
        (Member::Tool, "/tool", "agent-1", 1),
        (Member::Route, "/route", "files", 13),
        (Member::Outcome, "/outcome", "refused", 1),
        (Member::Hop, "/hop", "policy", 1),
        (Member::Effect, "/decision/effect", "allow", 12),
        (Member::Event, "/event", "call_done", 12),
        (Member::Code, "/code", "A0001I", 3),
        (Member::Id, "/id", "req_1", 2),
        (Member::User, "/caller/user", "ann", 12),
        (Member::Key, "/caller/key", "sk_1", 12),
        (Member::Trace, "/trace", "0af7651916cd43dd8448eb211c80319c", 12),
        (Member::Tool, "/tool", "nothing", 0),
    ] {
        let seen = found(&log, &by(&[(member, wanted)]));
        assert_eq!(seen, plainly(&log, at(pointer, wanted)), "{member:?}");
        assert_eq!(seen.len(), count, "{member:?} {wanted}");
    }
    assert_eq!(found(&log, &by(&[(Member::Policy, "readers")])).len(), 12);
    assert_eq!(found(&log, &by(&[(Member::Agent, "agent-1"), (Member::Tool, "tool_3")])), [17]);
    assert_eq!(found(&log, &Search { text: Some("tool_3".to_owned()), ..Search::default() }), [7, 17, 27]);
    assert_eq!(found(&log, &Search { from: 28, ..Search::default() }), [28, 29, 30]);
    assert_eq!(found(&log, &Search::default()).len(), 31);
    let mut first = Vec::new();
    search(
        log.dir(),
        &Search::default(),
        |record| {
            first.push(record.seq);
            first.len() < 3
        },
        |_| (),
    )
    .expect("searched");
    assert_eq!(first, [0, 1, 2]);
}

#[test]
fn what_is_written_with_needless_escapes_is_found_too() {
    let mut log = Written::new();
    log.rotate();
    let head = |log: &Written| {
        let mut line = Vec::new();
        let draft = sortie_audit::Draft::new(kinds::CALL_REFUSED, &json!({"x": 1})).expect("draft");
        draft.write(log.tree.size(), &sortie_audit::Hash::NONE, log.time, &mut line);
        String::from_utf8(line).expect("text")
    };
    for tool in [r"a\u0062/c", r"ab\/c", "ab/c", r"ab\/C"] {
        let line = head(&log).replace(r#""x":1"#, &format!(r#""tool":"{tool}""#));
        log.line(line.as_bytes());
    }
    assert_eq!(found(&log, &by(&[(Member::Tool, "ab/c")])), [1, 2, 3]);
    log.add(kinds::CALL_REFUSED, &json!({"tool": "line\nbreak \"q\" \u{1b}[2J"}));
    assert_eq!(found(&log, &by(&[(Member::Tool, "line\nbreak \"q\" \u{1b}[2J")])), [5]);
}

#[test]
fn times_are_bounds_and_files_out_of_them_are_not_read() {
    let mut log = Written::new();
    for day in 0..4 {
        log.time = "2026-11-20T10:00:00Z".parse::<Timestamp>().expect("time") + SignedDuration::from_hours(24 * day);
        log.rotate();
        log.call("a", "b");
    }
    let time = |text: &str| Some(text.parse::<Timestamp>().expect("time"));
    let between = |since: &str, until: &str| Search { since: time(since), until: time(until), ..Search::default() };
    assert_eq!(found(&log, &between("2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z")), [3, 4, 5]);
    // The bounds: from this time on, and before that.
    assert_eq!(found(&log, &between("2026-11-21T10:00:01.5Z", "2026-11-21T10:00:03Z")), [4]);
    assert_eq!(found(&log, &Search { since: time("2026-11-23T00:00:00Z"), ..Search::default() }), [9, 10, 11]);
    // A file that cannot have it is not opened: this one would be seen.
    let first = fs::read_to_string(log.log(0)).expect("text");
    fs::write(log.log(0), first.replacen("2026-11-20T10:00:01.5", "2026-11-22T10:00:01.5", 1)).expect("changed");
    let days = between("2026-11-22T00:00:00Z", "2026-11-23T00:00:00Z");
    assert_eq!(found(&log, &days), [6, 7, 8]);
    assert_eq!(found(&log, &Search { every_file: true, ..days.clone() }), [1, 6, 7, 8]);
    // Times that do not rise rule nothing out.
    let third = fs::read_to_string(log.log(6)).expect("text");
    fs::write(log.log(6), third.replacen("2026-11-22T10:00:00", "2026-11-19T10:00:00", 1)).expect("changed");
    assert_eq!(found(&log, &days), [1, 7, 8]);
}
