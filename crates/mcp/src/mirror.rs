//! The headers that repeat what the body says: `MCP-Protocol-Version`, `Mcp-Method`, `Mcp-Name` (MCP 2026-07-28, transports,
//! section "Standard Request Headers"), and what the protocol version says about batches.
//!
//! Pure. Who decides by the header and who acts by the body must see the same call, so a contradiction ends it. What a
//! server answers better is left to it: versions that it does not speak, methods that it does not know, params that lack
//! something. `Mcp-Param-*` cannot be judged without the tool's schema and is not looked at.
//!
//! The rules are those of the modern era. A request of the legacy era need not have these headers, and what it has is
//! not judged: no server of that era reads them, and clients that fell back to it have been seen to send the method of
//! the probe before.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName};

use crate::message::{Body, Message, MessageKind};

/// The header with the protocol version.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// The header with the method of a request.
pub const METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
/// The header with the name, URI or task that a request is about.
pub const NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");

/// The first version of the modern era: no sessions, headers that repeat the body.
const FIRST_MODERN: &str = "2026-07-28";
/// The one version that has batches; it is also meant where no version is named.
const WITH_BATCHES: &str = "2025-03-26";

/// Why the head of a request does not go with its body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Contradiction {
    /// The code by which servers tell of it: -32020 (header mismatch, MCP 2026-07-28) or -32600 (invalid request).
    pub code: i32,
    /// What is wrong. Names headers, never their values.
    pub reason: Cow<'static, str>,
}

impl Contradiction {
    fn mismatch(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code: -32020, reason: reason.into() }
    }

    fn invalid(reason: &'static str) -> Self {
        Self { code: -32600, reason: reason.into() }
    }
}

/// Compares the head of a request with the messages in its body.
///
/// # Errors
/// They contradict each other, a header of the modern era is missing or repeated, or the protocol version has no batches.
pub fn check(headers: &HeaderMap, body: &Body<'_>) -> Result<(), Contradiction> {
    let version = match only(headers, &VERSION_HEADER) {
        Ok(version) => version,
        Err(_) if !era_is_modern(headers, body) => {
            return Err(Contradiction::invalid("MCP-Protocol-Version is given more than once, or is not text"));
        }
        Err(mismatch) => return Err(mismatch),
    };
    if matches!(body, Body::Batch(_)) && version.is_some_and(|version| version != WITH_BATCHES) {
        return Err(Contradiction::invalid("this protocol version has no batches; send each message on its own"));
    }
    body.messages().iter().try_for_each(|message| match version {
        Some(version) if is_modern(version) => modern(headers, Some(version), message),
        version if message.protocol_version.is_some() => modern(headers, version, message),
        _ => Ok(()),
    })
}

/// The text of a header's value that may be wrapped as `=?base64?...?=`; `None` if what is wrapped is not canonical
/// base64 of UTF-8.
pub fn unwrapped(value: &str) -> Option<Cow<'_, str>> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(Cow::Borrowed(value)),
        Some(payload) => String::from_utf8(STANDARD.decode(payload).ok()?).ok().map(Cow::Owned),
    }
}

fn modern(headers: &HeaderMap, version: Option<&str>, message: &Message<'_>) -> Result<(), Contradiction> {
    // Without it in the body, the server says what else is missing there.
    if message.protocol_version.is_some() && message.protocol_version.as_deref() != version {
        let reason = "MCP-Protocol-Version has to be there once and equal the protocol version in `_meta`";
        return Err(Contradiction::mismatch(reason));
    }
    // A server refuses responses itself: there are none in this era.
    let (Some(method), true) = (message.method.as_deref(), message.kind != MessageKind::Response) else {
        return Ok(());
    };
    let told = only(headers, &METHOD_HEADER)?;
    let optional = message.kind == MessageKind::Notification || method == "initialize";
    if told.map_or(!optional, |told| told != method) {
        return Err(Contradiction::mismatch("Mcp-Method has to be there once and equal the method in the body"));
    }
    let named = only(headers, &NAME_HEADER)?;
    let (name, required) = match method {
        "tools/call" | "prompts/get" => (&message.name, true),
        "resources/read" => (&message.uri, true),
        // The tasks extension; not every client repeats the id.
        "tasks/get" | "tasks/update" | "tasks/cancel" => (&message.task_id, false),
        _ => return Ok(()),
    };
    let Some(name) = name else { return Ok(()) };
    let same = match named {
        None => !required,
        Some(named) => unwrapped(named).is_some_and(|named| named == *name),
    };
    if same {
        Ok(())
    } else {
        Err(Contradiction::mismatch("Mcp-Name has to be there once and equal the name, URI or task in the body"))
    }
}

/// The value of a header that may come once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Contradiction> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let again = values.next().is_some();
    match value.to_str() {
        Ok(text) if !again => Ok(Some(text)),
        _ => Err(Contradiction::mismatch(format!("{name} is given more than once, or is not text"))),
    }
}

fn era_is_modern(headers: &HeaderMap, body: &Body<'_>) -> bool {
    let mut versions = headers.get_all(VERSION_HEADER).iter();
    versions.any(|version| version.to_str().is_ok_and(is_modern))
        || body.messages().iter().any(|message| message.protocol_version.is_some())
}

/// Versions are dates, which sort as text. What is no date is not of this era, and left to the server to refuse.
fn is_modern(version: &str) -> bool {
    let shaped = version.len() == FIRST_MODERN.len()
        && version.bytes().zip(FIRST_MODERN.bytes()).all(|(byte, model)| match model {
            b'-' => byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    shaped && version >= FIRST_MODERN
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::parse;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), value.parse().expect(value));
        }
        headers
    }

    /// The code of the contradiction, or 0.
    fn code(pairs: &[(&'static str, &str)], body: &str) -> i32 {
        let body = parse(body.as_bytes()).expect(body);
        check(&headers(pairs), &body).map_or_else(|contradiction| contradiction.code, |()| 0)
    }

    const VERSION: (&str, &str) = ("mcp-protocol-version", "2026-07-28");
    const CALL: (&str, &str) = ("mcp-method", "tools/call");
    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;

    fn call(name: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":{name},{META}}}}}"#)
    }

    #[test]
    fn a_modern_request_repeats_its_body_in_its_head() {
        for (pairs, expected) in [
            (vec![VERSION, CALL, ("mcp-name", "read")], 0),
            (vec![VERSION, CALL, ("mcp-name", "=?base64?cmVhZA==?=")], 0),
            (vec![VERSION, CALL, ("mcp-name", "read"), ("mcp-param-x", "1"), ("mcp-param-x", "2")], 0),
            (vec![], -32020),
            (vec![CALL, ("mcp-name", "read")], -32020),
            (vec![VERSION, ("mcp-name", "read")], -32020),
            (vec![VERSION, CALL], -32020),
            (vec![("mcp-protocol-version", "2025-11-25"), CALL, ("mcp-name", "read")], -32020),
            (vec![("mcp-protocol-version", "2027-01-01"), CALL, ("mcp-name", "read")], -32020),
            (vec![VERSION, ("mcp-method", "Tools/Call"), ("mcp-name", "read")], -32020),
            (vec![VERSION, ("mcp-method", "tools/list"), ("mcp-name", "read")], -32020),
            (vec![VERSION, CALL, ("mcp-name", "write")], -32020),
            (vec![VERSION, CALL, ("mcp-name", "cmVhZA==")], -32020),
            (vec![VERSION, CALL, ("mcp-name", "=?base64?cmVhZB==?=")], -32020),
            (vec![VERSION, CALL, ("mcp-name", "=?base64?cmVhZA?=")], -32020),
            (vec![VERSION, CALL, ("mcp-name", "=?BASE64?cmVhZA==?=")], -32020),
            (vec![VERSION, VERSION, CALL, ("mcp-name", "read")], -32020),
            (vec![VERSION, CALL, CALL, ("mcp-name", "read")], -32020),
            (vec![VERSION, CALL, ("mcp-name", "read"), ("mcp-name", "read")], -32020),
        ] {
            assert_eq!(code(&pairs, &call("\"read\"")), expected, "{pairs:?}");
        }
        // Escapes in the body are undone before it is compared.
        assert_eq!(code(&[VERSION, CALL, ("mcp-name", "read")], &call(r#""\u0072ead""#)), 0);
        // Nothing that the server could take for a name: it says so.
        assert_eq!(code(&[VERSION, CALL], &call("7")), 0);
    }

    #[test]
    fn each_method_has_its_own_member() {
        let body = |method: &str, member: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"{member}":"a:b",{META}}}}}"#)
        };
        for (method, member, absent) in [
            ("tools/call", "name", -32020),
            ("prompts/get", "name", -32020),
            ("resources/read", "uri", -32020),
            ("tasks/get", "taskId", 0),
            ("tasks/update", "taskId", 0),
            ("tasks/cancel", "taskId", 0),
        ] {
            let told = ("mcp-method", method);
            assert_eq!(code(&[VERSION, told, ("mcp-name", "a:b")], &body(method, member)), 0, "{method}");
            assert_eq!(code(&[VERSION, told, ("mcp-name", "a:c")], &body(method, member)), -32020, "{method}");
            assert_eq!(code(&[VERSION, told], &body(method, member)), absent, "{method}");
        }
        // What is not known is the server's to judge.
        assert_eq!(code(&[VERSION, ("mcp-method", "x/y"), ("mcp-name", "z")], &body("x/y", "name")), 0);
    }

    #[test]
    fn what_the_server_answers_better_is_left_to_it() {
        // A version that it does not speak, in head and body alike.
        let future = call("\"read\"").replace("2026-07-28", "2099-01-01");
        assert_eq!(code(&[("mcp-protocol-version", "2099-01-01"), CALL, ("mcp-name", "read")], &future), 0);
        // No `_meta`: -32602.
        let bare = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        assert_eq!(code(&[VERSION, ("mcp-method", "tools/list")], bare), 0);
        assert_eq!(code(&[VERSION], bare), -32020);
        assert_eq!(code(&[VERSION], &bare.replace("tools/list", "initialize")), 0);
        // Responses and notifications.
        assert_eq!(code(&[VERSION], r#"{"jsonrpc":"2.0","id":1,"result":{}}"#), 0);
        let note = r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#;
        assert_eq!(code(&[VERSION], note), 0);
        assert_eq!(code(&[VERSION, ("mcp-method", "notifications/progress")], note), -32020);
    }

    #[test]
    fn the_legacy_era_knows_no_such_headers() {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#;
        for pairs in [
            vec![],
            vec![("mcp-protocol-version", "2025-11-25")],
            vec![("mcp-protocol-version", "banana")],
            vec![("mcp-protocol-version", "2025-11-25"), ("mcp-method", "server/discover"), ("mcp-name", "x")],
            vec![("mcp-method", "server/discover"), ("mcp-method", "x")],
        ] {
            assert_eq!(code(&pairs, body), 0, "{pairs:?}");
        }
        // But two versions are two eras, or none.
        let twice = ["2025-11-25", "2025-06-18"].map(|version| ("mcp-protocol-version", version));
        assert_eq!(code(&twice, body), -32600);
        assert_eq!(code(&[twice[0], VERSION], body), -32020);
    }

    #[test]
    fn batches_belong_to_one_version() {
        let batch = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#;
        for (version, expected) in
            [("2025-03-26", 0), ("2024-11-05", -32600), ("2025-06-18", -32600), ("2025-11-25", -32600), ("x", -32600)]
        {
            assert_eq!(code(&[("mcp-protocol-version", version)], batch), expected, "{version}");
        }
        assert_eq!(code(&[], batch), 0);
        assert_eq!(code(&[VERSION], batch), -32600);
        // A modern message does not hide in a batch.
        assert_eq!(code(&[], &format!("[{}]", call("\"read\""))), -32020);
    }

    #[test]
    fn wrapped_values_are_undone() {
        for (value, text) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("=?base64?w6k=?=", Some("\u{e9}")),
            ("=?base64??=", Some("")),
            ("=?base64?=", Some("=?base64?=")),
            ("=?base64?/w==?=", None),
            ("=?base64?*?=", None),
        ] {
            assert_eq!(unwrapped(value).as_deref(), text, "{value}");
        }
    }
}
