//! The look at a request before it goes on: is it the MCP that it says it is?
//!
//! The body is read once, judged, and forwarded as it was received, never written anew. What is not held to the rules of
//! MCP streams through unseen.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body;
use serde_json::value::RawValue;
use sortie_api::{Hop, HopError};
use sortie_mcp::envelope::is_json;
use sortie_mcp::{message, mirror};

use crate::body::{BodyError, RequestBody, Unread};
use crate::config::Protocol;
use crate::forward::too_large;
use crate::memory::Memory;

/// What a route of MCP has a use for (MCP 2025-11-25, transports).
const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS];

/// What a request is, once it was looked at.
pub(crate) enum Intake<'a> {
    /// Messages of MCP, which the body holds and nothing else.
    Messages(&'a message::Body<'a>),
    /// Anything else: what its body says is not known.
    Opaque,
}

/// Judges a request whose caller is known, and has `decide` decide on what it is, in the same pass. Where its body was
/// read, `body` yields it again from the beginning.
///
/// # Errors
/// The request breaks a rule of MCP; its body is too large, too slow, or there is no memory for it; or what `decide` says.
pub(crate) async fn judge<B, T>(
    protocol: Protocol,
    request: &Request<()>,
    body: &RequestBody<B>,
    memory: &Memory,
    decide: impl FnOnce(Intake<'_>) -> Result<T, HopError>,
) -> Result<T, HopError>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    if protocol == Protocol::Http {
        return decide(Intake::Opaque);
    }
    if request.method() != Method::POST {
        if protocol == Protocol::Mcp && !METHODS.contains(request.method()) {
            return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "this route takes GET, POST and DELETE"));
        }
        return decide(Intake::Opaque);
    }
    let headers = request.headers();
    let form = Form::of(headers);
    let strict = match (protocol, form) {
        (Protocol::Mcp, Form::Plain) => true,
        (Protocol::Mcp, _) => return Err(unreadable()),
        (_, Form::Other) => return decide(Intake::Opaque),
        (_, Form::Encoded) if !names_mcp(headers) => return decide(Intake::Opaque),
        (_, Form::Encoded) => return Err(unreadable()),
        (_, Form::Plain | Form::Charset) => names_mcp(headers),
    };
    let bytes = body.read(memory).await.map_err(|(why, part)| {
        body.answer_with(message::id_in_part(&part));
        unread(why, body.limit())
    })?;
    if !strict && !message::may_speak_jsonrpc(&bytes) {
        return decide(Intake::Opaque);
    }
    let broken = |id: Option<Box<RawValue>>, code: i32, reason: String| {
        body.answer_with(Some(id.unwrap_or_else(|| RawValue::NULL.to_owned())));
        refusal(StatusCode::BAD_REQUEST, reason).with_code(code)
    };
    let messages = match message::parse(&bytes) {
        Ok(messages) => messages,
        Err(refused) if !strict && !refused.speaks_jsonrpc => return decide(Intake::Opaque),
        Err(refused) => {
            let reason = format!("the body is not one message of MCP: {refused}");
            return Err(broken(refused.id, refused.fault.code(), reason));
        }
    };
    let id = messages.request_id();
    if form != Form::Plain {
        body.answer_with(id);
        return Err(unreadable());
    }
    if let Err(contradiction) = mirror::check(headers, &messages) {
        return Err(broken(id, contradiction.code, contradiction.to_string()));
    }
    body.answer_with(id);
    decide(Intake::Messages(&messages))
}

/// How the body of a request is written, by its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// JSON in UTF-8.
    Plain,
    /// JSON in a charset that JSON does not have, or of more than one type.
    Charset,
    /// JSON that is compressed or otherwise encoded.
    Encoded,
    /// Not JSON.
    Other,
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        let types: Vec<Option<&str>> = headers.get_all(CONTENT_TYPE).iter().map(|value| value.to_str().ok()).collect();
        if !types.iter().any(|kind| is_json(*kind)) {
            return Self::Other;
        }
        let codings = headers.get_all(CONTENT_ENCODING).iter();
        if codings.into_iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Self::Encoded;
        }
        match types.as_slice() {
            [Some(kind)] if in_utf8(kind) => Self::Plain,
            _ => Self::Charset,
        }
    }
}

/// Whether a `content-type` names no charset, or UTF-8 (RFC 9110, section 8.3.2).
fn in_utf8(kind: &str) -> bool {
    kind.split(';').skip(1).filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        let value = value.trim().trim_matches('"');
        !name.trim().eq_ignore_ascii_case("charset")
            || value.eq_ignore_ascii_case("utf-8")
            || value.eq_ignore_ascii_case("utf8")
    })
}

fn names_mcp(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("mcp-"))
}

fn refusal(status: StatusCode, reason: impl Into<String>) -> HopError {
    HopError::new(Hop::Route, reason).with_status(status)
}

fn unreadable() -> HopError {
    let reason = "a message of MCP is sent as application/json in UTF-8, without content-encoding";
    refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason)
}

fn unread(why: Unread, limit: u64) -> HopError {
    match why {
        Unread::TooLarge => too_large(limit),
        Unread::Slow => refusal(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time"),
        Unread::Broken => refusal(StatusCode::BAD_REQUEST, "the request body broke off"),
        Unread::Spent(spent) => {
            let mut error = refusal(StatusCode::SERVICE_UNAVAILABLE, spent.to_string());
            error.retry_after = Some(1);
            error
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(pairs: &[(&'static str, &str)]) -> Form {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect(value));
        }
        Form::of(&headers)
    }

    #[test]
    fn the_form_of_a_body_is_told_by_its_head() {
        for (kind, expected) in [
            ("application/json", Form::Plain),
            ("Application/JSON; charset=UTF-8", Form::Plain),
            ("application/json;charset=\"utf-8\";x=y", Form::Plain),
            ("application/json; charset=utf-16", Form::Charset),
            ("application/json; charset=utf-8; Charset=utf-7", Form::Charset),
            ("text/plain", Form::Other),
            ("application/json5", Form::Other),
        ] {
            assert_eq!(form(&[("content-type", kind)]), expected, "{kind}");
        }
        assert_eq!(form(&[]), Form::Other);
        let json = ("content-type", "application/json");
        assert_eq!(form(&[json, ("content-type", "text/plain")]), Form::Charset);
        assert_eq!(form(&[json, ("content-encoding", "identity")]), Form::Plain);
        assert_eq!(form(&[json, ("content-encoding", "gzip")]), Form::Encoded);
        assert_eq!(form(&[json, ("content-encoding", "identity"), ("content-encoding", "br")]), Form::Encoded);
    }
}
