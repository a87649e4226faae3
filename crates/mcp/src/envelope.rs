//! The look that a proxy takes at a request's JSON-RPC 2.0 envelope when it must answer in the server's place.
//!
//! Pure, and in time and memory linear in the body: values that are not looked at are skipped without recursion. How
//! large a body may be is the caller's bound. Whatever is unclear (a batch, a key twice, a wrong type) is not a
//! request: the answer is then not in JSON-RPC.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The members that make a JSON object a message of JSON-RPC 2.0. A member that comes twice is an error.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    fn parse(body: &'a [u8]) -> Option<Self> {
        // JSON between systems is UTF-8 (RFC 8259 section 8.1), also in the values that are skipped here.
        let text = std::str::from_utf8(body).ok()?;
        // An object, not an array: serde would take the members of a sequence in order.
        if !text.trim_ascii_start().starts_with('{') {
            return None;
        }
        let envelope: Self = serde_json::from_str(text).ok()?;
        (envelope.jsonrpc.as_deref() == Some("2.0")).then_some(envelope)
    }
}

/// The id of a single JSON-RPC request (section 4), exactly as it was sent: a string or a number. `None` for a
/// notification, a response, a batch, and anything that is not clearly a request.
pub fn request_id(body: &[u8]) -> Option<Box<RawValue>> {
    let envelope = Envelope::parse(body)?;
    envelope.method.as_ref()?;
    if envelope.result.is_some() || envelope.error.is_some() {
        return None;
    }
    let id = envelope.id?;
    // Raw text is only checked for its grammar. What has no value (half a surrogate pair, a number beyond all floats)
    // cannot be put into an answer by everyone, so it is no id.
    let value: Value = serde_json::from_str(id.get()).ok()?;
    (value.is_string() || value.is_number()).then(|| id.to_owned())
}

/// Whether this `content-type` is that of JSON (RFC 8259, section 11), whatever its parameters.
pub fn is_json(content_type: Option<&str>) -> bool {
    let essence = content_type.and_then(|text| text.split(';').next()).unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(body: &str) -> Option<String> {
        request_id(body.as_bytes()).map(|id| id.get().to_owned())
    }

    #[test]
    fn ids_come_back_as_they_were_sent() {
        for sent in
            ["1", "-7", "0", "1.0", "1e3", "123456789012345678901234567890", r#""a-1""#, r#""""#, r#""\u00e9 \" \n""#]
        {
            for body in [
                format!(r#"{{"jsonrpc":"2.0","id":{sent},"method":"tools/call","params":{{"id":9}}}}"#),
                format!(
                    "\n {{ \"params\" : [[[]]] , \"method\" : \"x\", \"id\" : {sent} , \"jsonrpc\":\"2.0\" }} \r\n"
                ),
                format!(r#"{{"\u006asonrpc":"2\u002e0","method":"x","id":{sent},"x":null,"x":1}}"#),
            ] {
                assert_eq!(id(&body).as_deref(), Some(sent), "{body}");
            }
        }
    }

    #[test]
    fn what_is_not_clearly_a_request_has_no_id() {
        for body in [
            "",
            "null",
            "7",
            "\"x\"",
            "{",
            "{}",
            "[]",
            r#"["2.0",1,"x"]"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"x"}]"#,
            r#"{"id":1,"method":"x"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":2.0,"id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":[1],"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"\u0069d":2,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","method":"y"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x"} {}"#,
            r#"{"jsonrpc":"2.0","id":01,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":NaN,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1e999,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":"\ud800","method":"x"}"#,
        ] {
            assert_eq!(id(body), None, "{body}");
        }
        assert!(request_id(b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"x\"}").is_none());
        assert!(request_id(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\",\"params\":\"\xff\"}").is_none());
    }

    #[test]
    fn json_is_known_by_its_type_whatever_the_parameters() {
        for kind in ["application/json", "Application/JSON ;charset=utf-8"] {
            assert!(is_json(Some(kind)), "{kind}");
        }
        for other in [None, Some(""), Some("text/plain"), Some("application/json5"), Some("x; application/json")] {
            assert!(!is_json(other), "{other:?}");
        }
    }

    #[test]
    fn depth_and_length_do_no_harm() {
        let deep = format!(
            r#"{{"jsonrpc":"2.0","id":5,"method":"x","params":{}{}}}"#,
            "[".repeat(500_000),
            "]".repeat(500_000)
        );
        assert_eq!(id(&deep).as_deref(), Some("5"));
        let open = format!(r#"{{"jsonrpc":"2.0","id":5,"method":"x","params":{}"#, "{\"a\":".repeat(500_000));
        assert_eq!(id(&open), None);
        let deep_id =
            format!(r#"{{"jsonrpc":"2.0","id":{}{},"method":"x"}}"#, "[".repeat(500_000), "]".repeat(500_000));
        assert_eq!(id(&deep_id), None);
    }

    /// Small changes of a good request: whatever comes out is a JSON scalar, and it was in the body.
    #[test]
    fn damaged_requests_never_give_an_id_that_was_not_sent() {
        let good =
            br#"{"jsonrpc":"2.0","id":"q-17","method":"tools/call","params":{"name":"read","arguments":{"path":"a"}}}"#;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..50_000 {
            let mut body = good.to_vec();
            for _ in 0..=(next() % 3) {
                let at = usize::try_from(next() % u64::try_from(body.len()).expect("small")).expect("small");
                let byte = next().to_le_bytes()[0];
                match next() % 4 {
                    0 => body[at] = byte,
                    1 => body.insert(at, byte),
                    2 => {
                        body.remove(at);
                    }
                    _ => body.truncate(at.max(8)),
                }
            }
            if let Some(id) = request_id(&body) {
                let text = id.get();
                assert!(std::str::from_utf8(&body).expect("a body with an id is UTF-8").contains(text));
                let value: serde_json::Value = serde_json::from_str(text).expect("the id is JSON");
                assert!(value.is_string() || value.is_number(), "{text}");
            }
        }
    }
}
