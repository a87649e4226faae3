//! Records in the words of OCSF 1.8.0, held against what its schema demands of the classes that are used; and as rows.

mod written;

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use sortie_audit::{Hash, KINDS, csv, csv_head, ocsf};
use written::Written;

/// A class: its category, what it demands beyond the base event, its activities, and what else is used of it.
type Class = (i64, i64, &'static [&'static str], &'static [i64], &'static [&'static str]);

/// Those that are used.
const CLASSES: [Class; 4] = [
    (
        6003,
        6,
        &["actor", "api", "src_endpoint"],
        &[1, 2, 3, 4, 99],
        &["dst_endpoint", "http_response", "resources", "trace"],
    ),
    (3004, 3, &["entity"], &[1, 2, 3, 4, 99], &["actor"]),
    (6002, 6, &["app"], &[3, 4], &[]),
    (6008, 6, &[], &[1], &["message"]),
];
/// What every event must say.
const BASE: [&str; 7] = ["activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"];
/// What every event may say.
const BASE_OPTIONAL: [&str; 7] =
    ["activity_name", "raw_data", "status", "status_code", "status_detail", "status_id", "unmapped"];
/// What the profile `security_control` adds.
const CONTROL: [&str; 5] = ["action", "action_id", "authorizations", "disposition", "disposition_id"];

fn conforms(event: &Value) {
    let number = |member: &str| event.get(member).and_then(Value::as_i64);
    let class = number("class_uid").expect("class");
    let (_, category, demands, activities, optional) =
        CLASSES.iter().find(|(uid, ..)| *uid == class).unwrap_or_else(|| panic!("class {class}"));
    let activity = number("activity_id").expect("activity");
    assert_eq!(number("category_uid"), Some(*category));
    assert!(activities.contains(&activity), "{event:#}");
    assert_eq!(number("type_uid"), Some(class * 100 + activity));
    assert!([1, 3, 4].contains(&number("severity_id").expect("severity")));
    assert!(number("status_id").is_none_or(|status| [1, 2, 99].contains(&status)));
    assert!(number("time").expect("time") > 1_700_000_000_000, "milliseconds");
    let members: BTreeSet<&str> = event.as_object().expect("object").keys().map(String::as_str).collect();
    for demanded in BASE.iter().chain(*demands) {
        assert!(members.contains(demanded), "{demanded}: {event:#}");
    }
    let profiles = event.pointer("/metadata/profiles").cloned().unwrap_or_default();
    let controlled = profiles.as_array().is_some_and(|all| all.contains(&json!("security_control")));
    for member in &members {
        let known = BASE.contains(member)
            || BASE_OPTIONAL.contains(member)
            || demands.contains(member)
            || optional.contains(member)
            || controlled && CONTROL.contains(member);
        assert!(known, "{member}: {event:#}");
    }
    // Whoever says 99 says what it is.
    assert!(activity != 99 || event.get("activity_name").is_some_and(|name| name != ""));
    assert!(number("status_id") != Some(99) || event.get("status").is_some());
    let some = |at: &str, of: &[&str]| {
        let found = event.pointer(at);
        assert!(found.is_none_or(|value| of.iter().any(|member| value.get(member).is_some())), "{at}: {event:#}");
    };
    some("/actor", &["process", "user", "session", "app_name", "app_uid"]);
    some("/actor/user", &["account", "name", "uid"]);
    some("/src_endpoint", &["ip", "uid", "name", "hostname", "svc_name"]);
    some("/dst_endpoint", &["ip", "uid", "name", "hostname", "svc_name"]);
    some("/entity", &["name", "uid"]);
    some("/api", &["operation"]);
    some("/api/request", &["uid"]);
    some("/http_response", &["code"]);
    some("/trace", &["uid"]);
    for demanded in ["version", "product"] {
        assert!(event.pointer("/metadata").and_then(|metadata| metadata.get(demanded)).is_some());
    }
    assert_eq!(event.pointer("/metadata/version"), Some(&json!("1.8.0")));
}

/// One record of each kind, and some of calls in their variety.
fn all_kinds() -> Written {
    let mut log = Written::three_files();
    for kind in KINDS.iter().filter(|kind| kind.event != "log_opened") {
        log.add(
            *kind,
            &json!({"id": "req_9", "reason": "why", "tunnel_id": "tnl_1",
            "actor": {"id": "key_1", "workspace": "ws_1"}, "end": "broke off", "hop": "upstream"}),
        );
    }
    for (method, more) in [
        ("http", json!({"http_method": "GET", "http_path": "/a"})),
        ("tools/list", json!({})),
        ("initialize", json!({})),
        ("stream", json!({"outcome": "waits"})),
        ("prompts/get", json!({"prompt": "p", "outcome": "refused"})),
    ] {
        let mut fields = json!({"id": "req_8", "route": "r", "method": method, "outcome": "forwarded",
            "caller": {"issuer": "i", "subject": "s", "organization": "o", "claims": {"groups": ["g"]}}});
        for (name, value) in more.as_object().expect("object") {
            fields.as_object_mut().expect("object").insert(name.clone(), value.clone());
        }
        log.add(sortie_audit::kinds::CALL_ALLOWED, &fields);
    }
    log
}

fn lines(log: &Written) -> Vec<String> {
    let mut files: Vec<_> =
        fs::read_dir(log.dir().join("log")).expect("dir").map(|file| file.expect("f").path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| fs::read_to_string(file).expect("text")).collect();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_kind_of_record_is_an_event_of_the_schema() {
    let lines = lines(&all_kinds());
    let events: Vec<Value> = lines.iter().map(|line| ocsf(line.as_bytes()).expect("event")).collect();
    if let Some(path) = std::env::var_os("SORTIE_OCSF_EVENTS") {
        let text: Vec<String> = events.iter().map(Value::to_string).collect();
        fs::write(path, text.join("\n")).expect("written");
    }
    for (line, event) in lines.iter().zip(&events) {
        conforms(event);
        assert_eq!(event.get("raw_data"), Some(&json!(line)), "what is kept can still be proven");
        assert_eq!(event.pointer("/metadata/uid"), Some(&json!(Hash::of_leaf(line.as_bytes()).to_string())));
    }
    let call = events.get(1).expect("call");
    for (at, value) in [
        ("/class_uid", json!(6003)),
        ("/actor/user/uid", json!("key:sk_1")),
        ("/actor/user/name", json!("ann")),
        ("/actor/user/credential_uid", json!("sk_1")),
        ("/actor/app_name", json!("agent-0")),
        ("/actor/session/uid", json!("sesn_1")),
        ("/api/operation", json!("tools/call")),
        ("/api/service/name", json!("files")),
        ("/resources/0/name", json!("tool_0")),
        ("/action_id", json!(1)),
        ("/status_id", json!(1)),
        ("/authorizations/0/decision", json!("allow")),
        ("/authorizations/0/policy/name", json!("readers")),
        ("/trace/uid", json!("0af7651916cd43dd8448eb211c80319c")),
        ("/metadata/event_code", json!("G1001I")),
        ("/metadata/sequence", json!(1)),
        ("/metadata/correlation_uid", json!("req_1")),
        ("/time", json!(1_795_387_201_500_i64)),
        ("/unmapped/facts/path", json!("/a")),
    ] {
        assert_eq!(call.pointer(at), Some(&value), "{at}");
    }
    let done = events.get(2).expect("done");
    assert_eq!(done.pointer("/http_response"), Some(&json!({"code": 200, "latency": 2, "length": 4096})));
    assert_eq!(done.pointer("/metadata/correlation_uid"), Some(&json!("req_1")));
    assert!(ocsf(b"{}").is_err());
}

#[test]
fn rows_cannot_be_broken_nor_made_formulas() {
    let mut log = Written::new();
    log.rotate();
    for text in ["=1+1", "+1", "-1", "@x", "a,b", "a\"b", "a\nb", "plain"] {
        log.add(sortie_audit::kinds::CALL_REFUSED, &json!({"tool": text, "decision": {"policies": ["p", "q"]}}));
    }
    let columns = csv_head().split(',').count();
    let tool = csv_head().split(',').position(|name| name == "tool").expect("column");
    let mut seen = Vec::new();
    for line in lines(&log).iter().skip(1) {
        let row = csv(line.as_bytes()).expect("row");
        let cells = cells(&row);
        assert_eq!(cells.len(), columns, "{row}");
        seen.push(cells.get(tool).expect("cell").clone());
    }
    assert_eq!(seen, ["'=1+1", "'+1", "'-1", "'@x", "a,b", "a\"b", "a\nb", "plain"]);
    assert!(csv(b"x").is_err());
}

/// The cells of a row, as RFC 4180 reads them.
fn cells(row: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    let mut letters = row.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.next_if_eq(&'"').is_some() => cells.last_mut().expect("cell").push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            other => cells.last_mut().expect("cell").push(other),
        }
    }
    cells
}
