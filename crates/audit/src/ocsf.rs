//! Records in the words of OCSF, the Open Cybersecurity Schema Framework, version 1.8.0 (<https://schema.ocsf.io/1.8.0>):
//! calls as API Activity, management acts as Entity Management, the life of a log as Application Lifecycle, and what goes
//! wrong with it as Application Error.
//!
//! `metadata.uid` is the record's leaf hash and `raw_data` its line, so that what a pipeline has kept can still be proven.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::hash::Hash;
use crate::line::{Line, LineError};

/// The version of the schema.
pub const OCSF_VERSION: &str = "1.8.0";

/// What an activity is, in classes that know nothing closer.
const OTHER: i64 = 99;

/// One record, as an OCSF event.
///
/// # Errors
/// The line is no record.
pub fn ocsf(line: &[u8]) -> Result<Value, LineError> {
    let head = Line::exact(line)?;
    let record: Value = serde_json::from_slice(line).map_err(|error| LineError::Malformed(error.to_string()))?;
    let record = Record(&record);
    let mut event = match head.event {
        "call_decided" => decided(record),
        "call_done" => done(record),
        "log_opened" | "log_closed" => lifecycle(record, head.event),
        "log_recovered" | "clock_stepped_back" | "records_dropped" | "sink_dropped" | "files_removed"
        | "calls_unidentified" => fault(record),
        _ => managed(record, head.event),
    };
    event.put("metadata", Some(metadata(&head, record, line)));
    event.put("severity_id", Some(json!(severity(head.code))));
    event.put("time", head.time.parse::<Timestamp>().ok().map(|time| json!(time.as_millisecond())));
    event.put("raw_data", Some(json!(String::from_utf8_lossy(line))));
    Ok(Value::Object(event.0))
}

/// A record that is read member by member.
#[derive(Clone, Copy)]
struct Record<'a>(&'a Value);

impl<'a> Record<'a> {
    fn get(self, pointer: &str) -> Option<&'a Value> {
        self.0.pointer(pointer).filter(|value| !value.is_null())
    }

    fn text(self, pointer: &str) -> Option<&'a str> {
        self.get(pointer)?.as_str()
    }
}

/// An object that is built member by member; what is absent is left out.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    /// An event of a class.
    fn event(category: i64, class: i64, activity: i64, name: &str) -> Self {
        let mut event = Self::default();
        for (member, value) in [
            ("category_uid", json!(category)),
            ("class_uid", json!(class)),
            ("activity_id", json!(activity)),
            ("activity_name", json!(name)),
            ("type_uid", json!(class * 100 + activity)),
        ] {
            event.put(member, Some(value));
        }
        event
    }

    fn put(&mut self, member: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.0.insert(member.to_owned(), value);
        }
    }

    fn of<const N: usize>(members: [(&str, Option<Value>); N]) -> Option<Value> {
        let mut object = Self::default();
        members.into_iter().for_each(|(member, value)| object.put(member, value));
        (!object.0.is_empty()).then_some(Value::Object(object.0))
    }

    fn status(&mut self, id: i64, name: &str) {
        self.put("status_id", Some(json!(id)));
        self.put("status", Some(json!(name)));
    }
}

fn copied(text: Option<&str>) -> Option<Value> {
    text.map(|text| json!(text))
}

fn metadata(head: &Line<'_>, record: Record<'_>, line: &[u8]) -> Value {
    let product = json!({ "name": "Sortie", "vendor_name": "Sortie", "version": env!("CARGO_PKG_VERSION") });
    let mut profiles = Vec::new();
    if matches!(head.event, "call_decided") {
        profiles.push("security_control");
    }
    if record.get("/trace").is_some() {
        profiles.push("trace");
    }
    let metadata = Object::of([
        ("version", Some(json!(OCSF_VERSION))),
        ("product", Some(product)),
        ("profiles", (!profiles.is_empty()).then(|| json!(profiles))),
        ("uid", Some(json!(Hash::of_leaf(line).to_string()))),
        ("sequence", i32::try_from(head.seq).ok().map(|seq| json!(seq))),
        ("event_code", Some(json!(head.code))),
        ("log_name", Some(json!("audit"))),
        ("original_time", Some(json!(head.time))),
        ("correlation_uid", copied(record.text("/id"))),
        ("tenant_uid", copied(record.text("/caller/workspace").or(record.text("/actor/workspace")))),
    ]);
    metadata.unwrap_or_default()
}

/// By the last letter of the code.
fn severity(code: &str) -> i64 {
    match code.as_bytes().last() {
        Some(b'W') => 3,
        Some(b'E') => 4,
        _ => 1,
    }
}

fn decided(record: Record<'_>) -> Object {
    let method = record.text("/method").unwrap_or("unknown");
    let (activity, name) = match method {
        "tools/call" => (OTHER, "Call"),
        "http" => match record.text("/http_method") {
            Some("GET" | "HEAD") => (2, "Read"),
            Some("POST") => (1, "Create"),
            Some("PUT" | "PATCH") => (3, "Update"),
            Some("DELETE") => (4, "Delete"),
            _ => (OTHER, "Call"),
        },
        "resources/read" | "prompts/get" | "stream" => (2, "Read"),
        "session/delete" => (4, "Delete"),
        listing if listing.ends_with("/list") => (2, "Read"),
        other => (OTHER, other),
    };
    let mut event = Object::event(6, 6003, activity, name);
    event.put("actor", Some(actor(record, "/caller")));
    event.put("api", api(record, method));
    event.put("src_endpoint", Some(json!({ "name": record.text("/caller/subject").unwrap_or("unknown") })));
    event.put("dst_endpoint", record.text("/route").map(|route| json!({ "svc_name": route })));
    event.put("resources", resources(record));
    event.put("trace", record.text("/trace").map(|trace| json!({ "uid": trace })));
    let (action, disposition) = match record.text("/outcome") {
        Some("forwarded") => {
            event.status(1, "Success");
            ((1, "Allowed"), (1, "Allowed"))
        }
        Some("refused") => {
            event.status(2, "Failure");
            ((2, "Denied"), (2, "Blocked"))
        }
        _ => {
            event.status(OTHER, "Waits for an approval");
            ((OTHER, "Waits for an approval"), (14, "Delayed"))
        }
    };
    event.put("action_id", Some(json!(action.0)));
    event.put("action", Some(json!(action.1)));
    event.put("disposition_id", Some(json!(disposition.0)));
    event.put("disposition", Some(json!(disposition.1)));
    event.put("status_code", copied(record.text("/hop")));
    event.put("status_detail", copied(record.text("/reason").or(record.text("/decision/reason"))));
    event.put("authorizations", authorizations(record));
    event.put(
        "unmapped",
        Object::of([
            ("arguments", record.get("/arguments").cloned()),
            ("facts", record.get("/decision/facts").cloned()),
            ("policy_sha256", record.get("/decision/policy_sha256").cloned()),
            ("policy_mode", record.get("/decision/mode").cloned()),
            ("approval", record.get("/approval").cloned()),
            ("credential", record.get("/credential").cloned()),
            ("mcp_session", record.get("/mcp_session").cloned()),
            ("region", record.get("/region").cloned()),
            ("assurance", record.get("/caller/assurance").cloned()),
            ("agent_version", record.get("/caller/agent_version").cloned()),
        ]),
    );
    event
}

fn api(record: Record<'_>, method: &str) -> Option<Value> {
    let operation = match (record.text("/http_method"), record.text("/http_path")) {
        (Some(verb), Some(path)) => format!("{verb} {path}"),
        _ => method.to_owned(),
    };
    Object::of([
        ("operation", Some(json!(operation))),
        ("service", record.text("/route").map(|route| json!({ "name": route }))),
        ("request", record.text("/id").map(|id| json!({ "uid": id }))),
    ])
}

fn resources(record: Record<'_>) -> Option<Value> {
    let named = [("tool", "/tool"), ("prompt", "/prompt"), ("resource", "/resource")];
    let found = named.iter().filter_map(|(kind, at)| Some(json!({ "name": record.text(at)?, "type": kind })));
    let found: Vec<Value> = found.collect();
    (!found.is_empty()).then(|| json!(found))
}

fn authorizations(record: Record<'_>) -> Option<Value> {
    let effect = record.text("/decision/effect")?;
    let policies = record.get("/decision/policies").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Some(match policies {
        [] => json!([{ "decision": effect }]),
        some => some.iter().map(|name| json!({ "decision": effect, "policy": { "name": name } })).collect(),
    })
}

/// Who did it: a caller of a call, or of the hub's API.
fn actor(record: Record<'_>, at: &str) -> Value {
    let of = |member: &str| record.text(&format!("{at}/{member}"));
    let groups = record.get(&format!("{at}/claims/groups")).and_then(Value::as_array);
    let groups = groups.map(|groups| groups.iter().map(|name| json!({ "name": name })).collect());
    let organization = of("organization").map(|uid| json!({ "uid": uid }));
    let user = Object::of([
        ("uid", copied(of("subject").or(of("id")))),
        ("name", copied(of("user"))),
        ("credential_uid", copied(of("key"))),
        ("org", organization),
        ("groups", groups),
    ]);
    let session = Object::of([("uid", copied(of("session"))), ("issuer", copied(of("issuer")))]);
    let actor = Object::of([
        ("user", user.filter(|user| user.get("uid").is_some() || user.get("name").is_some())),
        ("session", session),
        ("app_name", copied(of("agent"))),
    ]);
    actor.unwrap_or_else(|| json!({ "app_name": "unknown" }))
}

fn done(record: Record<'_>) -> Object {
    let mut event = Object::event(6, 6003, OTHER, "Complete");
    // Who called is said by the record that let it go on, which has the same `correlation_uid`.
    event.put("actor", Some(json!({ "app_name": "sortie" })));
    event.put("src_endpoint", Some(json!({ "svc_name": "sortie" })));
    let code = record.get("/status").cloned();
    let (end, hop) = (record.text("/end"), record.text("/hop"));
    let response = Object::of([("code", code.clone()), ("message", copied(end)), ("error", copied(hop))]);
    event.put(
        "api",
        Object::of([
            ("operation", Some(json!("answer"))),
            ("request", record.text("/id").map(|id| json!({ "uid": id }))),
            ("response", response),
        ]),
    );
    let milliseconds = record.get("/duration_us").and_then(Value::as_u64).map(|time| json!(time / 1000));
    let length = record.get("/response_bytes").and_then(Value::as_u64).and_then(|bytes| i32::try_from(bytes).ok());
    event.put(
        "http_response",
        code.and_then(|code| {
            Object::of([("code", Some(code)), ("latency", milliseconds), ("length", length.map(|n| json!(n)))])
        }),
    );
    match record.text("/code").and_then(|code| code.chars().last()) {
        Some('I') => event.status(1, "Success"),
        _ => event.status(2, "Failure"),
    }
    event.put("status_code", copied(hop));
    event.put("status_detail", copied(end));
    let further = ["decided", "request_bytes", "response_bytes", "duration_us", "result_sha256"];
    event.put("unmapped", unmapped(record, |name| further.contains(&name)));
    event
}

fn lifecycle(record: Record<'_>, name: &str) -> Object {
    let (activity, caption) = if name == "log_opened" { (3, "Start") } else { (4, "Stop") };
    let mut event = Object::event(6, 6002, activity, caption);
    event.put("app", Some(json!({ "name": "Sortie", "vendor_name": "Sortie" })));
    event.put("actor", None);
    event.status(1, "Success");
    event.put("unmapped", unmapped(record, |_| true));
    event
}

fn fault(record: Record<'_>) -> Object {
    let mut event = Object::event(6, 6008, 1, "General Error");
    let kind = record.text("/code").and_then(crate::kind::Kind::by_code);
    event.put("message", kind.map(|kind| json!(kind.about)));
    event.put("unmapped", unmapped(record, |_| true));
    event
}

/// A management act, or something of the gateway that was changed.
fn managed(record: Record<'_>, name: &str) -> Object {
    let (activity, caption) = match name.rsplit('_').next().unwrap_or(name) {
        "created" | "added" | "minted" => (1, "Create"),
        "revealed" => (2, "Read"),
        "archived" | "revoked" | "forgotten" => (4, "Delete"),
        "rotated" | "decided" | "changed" | "loaded" => (3, "Update"),
        _ => (OTHER, name),
    };
    let mut event = Object::event(3, 3004, activity, caption);
    event.put("actor", record.get("/actor").map(|_| actor(record, "/actor")));
    let ids = ["tunnel_id", "certificate_id", "key_id", "workspace_id", "tunnel", "approval", "route"];
    let id = ids.iter().find_map(|member| record.text(&format!("/{member}")));
    let kind = name.rsplit_once('_').map_or(name, |(kind, _)| kind);
    event.put("entity", Object::of([("name", Some(json!(kind))), ("type", Some(json!(kind))), ("uid", copied(id))]));
    match record.text("/code").and_then(|code| code.chars().last()) {
        Some('I') => event.status(1, "Success"),
        _ => event.status(2, "Failure"),
    }
    event.put("status_detail", copied(record.text("/reason")));
    event.put("unmapped", unmapped(record, |member| member != "actor"));
    event
}

/// The record's own members that have no place in the schema.
fn unmapped(record: Record<'_>, wanted: impl Fn(&str) -> bool) -> Option<Value> {
    let own = ["seq", "prev", "time", "code", "event", "id"];
    let members = record.0.as_object()?.iter().filter(|(name, _)| !own.contains(&name.as_str()) && wanted(name));
    let members: Map<String, Value> = members.map(|(name, value)| (name.clone(), value.clone())).collect();
    (!members.is_empty()).then_some(Value::Object(members))
}
