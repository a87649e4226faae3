//! Why a server did not answer as asked.

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;
use sortie_api::Hop;

use crate::client::{clean, next_step};

/// Why a server did not answer as asked. Words of the other side are cut, and hold no control characters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Sortie ended the exchange at a hop; its reason says whether something may have run.
    #[error("{reason} (at `{}`)", hop.as_str())]
    Hop {
        /// Where.
        hop: Hop,
        /// The HTTP status; 200 where it came inside an answer.
        status: u16,
        /// Why, in Sortie's words.
        reason: String,
    },
    /// Nothing was sent.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// The server does not take the credential, or wants one. Nothing has run.
    #[error("it answered HTTP {status}: {}", if *status == 401 { "it wants another credential" } else { "it forbids this" })]
    Unauthorized {
        /// The HTTP status, 401 or 403.
        status: u16,
    },
    /// The server sends its clients elsewhere, which is not followed: the credential would go there, too.
    #[error("it answered with a redirect (HTTP {0}), which is not followed: use the URL of the endpoint itself")]
    Redirect(u16),
    /// Another HTTP status, without a word in JSON-RPC.
    #[error("it answered HTTP {0}")]
    Status(u16),
    /// The server does not know the session any more. Nothing has run.
    #[error("it does not know the session any more")]
    SessionLost,
    /// The exchange broke off when it was under way.
    #[error("the connection broke before the answer was whole: it may have run, and is not repeated")]
    Broken,
    /// The answer is larger than is read.
    #[error("its answer is larger than {most} bytes, and is not read further: ask for less")]
    TooLarge {
        /// How much is read, in bytes.
        most: usize,
    },
    /// What it answers is not MCP.
    #[error("it does not speak MCP as expected: {0}")]
    Protocol(String),
    /// It refuses the request, in JSON-RPC. Nothing is known of whether something has run.
    #[error("it refused the request: {message} (code {code})")]
    Refused {
        /// The JSON-RPC code.
        code: i64,
        /// In the server's words.
        message: String,
    },
    /// The tool wants to ask something first, or goes on as a task.
    #[error("it asks for more input, or goes on as a task, which sessions cannot answer")]
    Interactive,
    /// Nothing came in time.
    #[error("it did not answer within {seconds} s")]
    Silent {
        /// How long was waited.
        seconds: u64,
    },
}

impl Failure {
    /// The code for a request whose headers do not repeat what its body says (revision 2026-07-28). Nothing has run.
    pub const HEADER_MISMATCH: i64 = -32020;

    /// Whether it is certain that what was asked has not run.
    pub fn has_not_run(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unauthorized { .. } | Self::Redirect(_) | Self::SessionLost => true,
            Self::Refused { code, .. } => *code == Self::HEADER_MISMATCH,
            _ => false,
        }
    }

    /// What to do about it, where its own words do not say.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Hop { hop, status, .. } => Some(next_step(*hop, *status)),
            _ => None,
        }
    }

    pub(crate) fn protocol(reason: &str) -> Self {
        Self::Protocol(reason.to_owned())
    }
}

/// `error.details` of our error object, `error.data` of our JSON-RPC errors.
#[derive(Deserialize)]
struct HopDetails {
    hop: Hop,
    reason: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorObject,
}

#[derive(Deserialize)]
struct ErrorObject {
    code: Option<i64>,
    message: Option<String>,
    details: Option<Value>,
    data: Option<Value>,
}

/// What an answer other than 2xx means. `hop` is what its header names, `in_session` whether the request named a session.
pub(crate) fn of_status(status: StatusCode, hop: Option<Hop>, in_session: bool, body: &[u8]) -> Failure {
    let number = status.as_u16();
    if status.is_redirection() {
        return Failure::Redirect(number);
    }
    let error = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    let details = error.as_ref().and_then(|error| hop_details(error.details.as_ref().or(error.data.as_ref())));
    if let Some(hop) = hop.or(details.as_ref().map(|details| details.hop)) {
        let reason = details.map_or_else(|| format!("HTTP {number}"), |details| clean(&details.reason));
        return Failure::Hop { hop, status: number, reason };
    }
    match (status, error) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => Failure::Unauthorized { status: number },
        (StatusCode::NOT_FOUND, _) if in_session => Failure::SessionLost,
        (_, Some(ErrorObject { code: Some(code), message, .. })) => {
            Failure::Refused { code, message: clean(&message.unwrap_or_default()) }
        }
        _ => Failure::Status(number),
    }
}

/// What the error of a JSON-RPC answer means.
pub(crate) fn of_error(error: &Value) -> Failure {
    if let Some(details) = hop_details(error.get("data")) {
        return Failure::Hop { hop: details.hop, status: 200, reason: clean(&details.reason) };
    }
    let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
    Failure::Refused { code, message: clean(error.get("message").and_then(Value::as_str).unwrap_or_default()) }
}

fn hop_details(value: Option<&Value>) -> Option<HopDetails> {
    HopDetails::deserialize(value?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_hop_that_it_ended_at() {
        let ours = br#"{"type":"error","error":{"type":"api_error","message":"m","details":{"hop":"link","reason":"no gateway"}}}"#;
        let said = of_status(StatusCode::SERVICE_UNAVAILABLE, None, false, ours);
        assert_eq!(said, Failure::Hop { hop: Hop::Link, status: 503, reason: "no gateway".to_owned() });
        let rpc =
            br#"{"jsonrpc":"2.0","id":1,"error":{"code":-31000,"message":"m","data":{"hop":"policy","reason":"r"}}}"#;
        let said = of_status(StatusCode::FORBIDDEN, Some(Hop::Policy), false, rpc);
        assert_eq!(said, Failure::Hop { hop: Hop::Policy, status: 403, reason: "r".to_owned() });
    }

    #[test]
    fn what_has_not_run_is_told_from_what_may_have() {
        assert_eq!(of_status(StatusCode::NOT_FOUND, None, true, b""), Failure::SessionLost);
        assert_eq!(of_status(StatusCode::NOT_FOUND, None, false, b""), Failure::Status(404));
        assert!(of_status(StatusCode::UNAUTHORIZED, None, true, b"{}").has_not_run());
        assert!(!of_status(StatusCode::BAD_GATEWAY, None, true, b"{}").has_not_run());
        let mismatch = br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"Mcp-Param-X"}}"#;
        assert!(of_status(StatusCode::BAD_REQUEST, None, false, mismatch).has_not_run());
        assert!(!Failure::Broken.has_not_run());
    }
}
