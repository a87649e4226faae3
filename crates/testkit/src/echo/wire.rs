//! JSON-RPC messages as the server reads and writes them.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{LEGACY_VERSION, MODERN_VERSION};

/// The versions with a handshake that the server accepts.
pub(super) const LEGACY_VERSIONS: [&str; 3] = ["2025-03-26", "2025-06-18", LEGACY_VERSION];

/// The key of the protocol version in a modern request's `_meta`.
pub(super) const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";

pub(super) const PARSE_ERROR: i64 = -32700;
pub(super) const INVALID_REQUEST: i64 = -32600;
pub(super) const METHOD_NOT_FOUND: i64 = -32601;
pub(super) const INVALID_PARAMS: i64 = -32602;
/// A mirrored header that is missing or differs from the body (2026-07-28).
pub(super) const HEADER_MISMATCH: i64 = -32020;
/// A protocol version that the server does not speak (2026-07-28).
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;

/// A message from a client. Responses to server requests have no method; we never ask, so they are ignored.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    pub(super) jsonrpc: String,
    #[serde(default, deserialize_with = "present")]
    pub(super) id: Option<Value>,
    #[serde(default)]
    pub(super) method: Option<String>,
    #[serde(default)]
    pub(super) params: Value,
}

impl Message {
    /// The protocol version in `_meta`: only modern requests have one.
    pub(super) fn meta_version(&self) -> Option<&str> {
        self.params.get("_meta")?.get(META_VERSION)?.as_str()
    }

    /// The token under which the client wants to hear about progress.
    pub(super) fn progress_token(&self) -> Option<&Value> {
        self.params.get("_meta")?.get("progressToken")
    }

    /// The tool that a `tools/call` names, or empty.
    pub(super) fn tool(&self) -> &str {
        self.params.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// A whole-number argument of a `tools/call`.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.argument(name)?.as_u64()
    }

    /// A text argument of a `tools/call`.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.argument(name)?.as_str()
    }

    fn argument(&self, name: &str) -> Option<&Value> {
        self.params.get("arguments")?.get(name)
    }
}

/// What the server says to a request, before it is put into the era's form.
#[derive(Debug)]
pub(super) enum Reply {
    Result(Value),
    Error { code: i64, message: String, data: Option<Value> },
}

impl Reply {
    pub(super) fn error(code: i64, message: impl Into<String>) -> Self {
        Self::Error { code, message: message.into(), data: None }
    }

    pub(super) fn unsupported(requested: &str) -> Self {
        let data = json!({ "supported": [MODERN_VERSION], "requested": requested });
        Self::Error { code: UNSUPPORTED_VERSION, message: "Unsupported protocol version".into(), data: Some(data) }
    }

    /// The JSON-RPC response.
    pub(super) fn response(self, id: &Value) -> Value {
        match self {
            Self::Result(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            Self::Error { code, message, data } => {
                let mut error = json!({ "code": code, "message": message });
                if let (Some(data), Some(fields)) = (data, error.as_object_mut()) {
                    fields.insert("data".into(), data);
                }
                json!({ "jsonrpc": "2.0", "id": id, "error": error })
            }
        }
    }
}

/// Which rules a request follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Era {
    Legacy,
    Modern,
}

/// Keeps `"id": null` (which is not a valid id) apart from no id at all (a notification).
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}
