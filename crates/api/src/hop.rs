//! Failures on the path of a call, named by the hop at which it ended, in the form that the caller understands.

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The stations of a call, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// The edge refused or could not place the connection.
    Edge,
    /// No live link to a gateway of the tunnel, or it broke under the call.
    Link,
    /// The gateway's certificate is not acceptable, or its TLS failed.
    InnerTls,
    /// Who is calling is missing, unknown or wrong.
    Identity,
    /// No such route.
    Route,
    /// The caller may not do this.
    Policy,
    /// What happens cannot be recorded, so it does not happen.
    Audit,
    /// The MCP server could not be dialled.
    UpstreamConnect,
    /// The MCP server broke the exchange.
    Upstream,
}

impl Hop {
    /// The name in the header `sortie-hop` and in error bodies.
    pub fn as_str(self) -> &'static str {
        match self {
            Hop::Edge => "edge",
            Hop::Link => "link",
            Hop::InnerTls => "inner-tls",
            Hop::Identity => "identity",
            Hop::Route => "route",
            Hop::Policy => "policy",
            Hop::Audit => "audit",
            Hop::UpstreamConnect => "upstream-connect",
            Hop::Upstream => "upstream",
        }
    }

    /// The status that a failure at this hop answers with, unless a deadline or a size limit was the cause.
    pub fn status(self) -> StatusCode {
        match self {
            Hop::Edge | Hop::Link | Hop::Audit => StatusCode::SERVICE_UNAVAILABLE,
            Hop::InnerTls | Hop::Route | Hop::UpstreamConnect | Hop::Upstream => StatusCode::BAD_GATEWAY,
            Hop::Identity => StatusCode::UNAUTHORIZED,
            Hop::Policy => StatusCode::FORBIDDEN,
        }
    }
}

/// The header that names the hop.
pub const HOP_HEADER: &str = "sortie-hop";
/// The header that carries one id for a call through every process.
pub const REQUEST_ID_HEADER: &str = "sortie-request-id";
/// The header with the caller's identity, signed by the hub; never taken from outside.
pub const IDENTITY_HEADER: &str = "sortie-identity";
/// The header that tells the gateway what the hub took off the front of the path (`/t/<label>/<route>`), where the
/// caller used the path form.
pub const PATH_PREFIX_HEADER: &str = "sortie-path-prefix";
/// The header that marks a request of the hub about calls that wait at a gateway for a person; never taken from outside.
pub const APPROVALS_HEADER: &str = "sortie-approvals";
/// Every header of ours begins so, and none with this beginning is taken from outside.
pub const HEADER_PREFIX: &str = "sortie-";

/// The audience of an identity that decides about calls which wait at the gateway of this host. It is no hostname, so that
/// it is never that of a call.
pub fn approvals_audience(host: &str) -> String {
    format!("urn:sortie:approvals:{host}")
}

/// Why a call ended before its answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {reason}", hop.as_str())]
pub struct HopError {
    /// Where.
    pub hop: Hop,
    /// What the caller's HTTP client sees.
    pub status: StatusCode,
    /// Why, in words that are safe for the caller.
    pub reason: String,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u32>,
    /// The code of the error object for a caller that spoke JSON-RPC: one of our own, unless the caller broke a rule
    /// for which JSON-RPC or MCP has a code.
    pub code: i32,
}

/// JSON-RPC code of our own failures: outside -32768..-32000, which JSON-RPC and MCP reserve.
const JSONRPC_CODE: i32 = -31000;

impl HopError {
    /// A failure at a hop with its usual status.
    pub fn new(hop: Hop, reason: impl Into<String>) -> Self {
        let retry_after = matches!(hop, Hop::Edge | Hop::Link | Hop::Audit).then_some(1);
        Self { hop, status: hop.status(), reason: reason.into(), retry_after, code: JSONRPC_CODE }
    }

    /// The failure of a call for a host that no route serves.
    pub fn no_route() -> Self {
        Self::new(Hop::Route, "No route configured for host")
    }

    /// The same failure with another status (a deadline: 504; a body too large: 413; a misdirected host: 421). Only 503
    /// keeps its time for a retry: what is wrong with the request itself will not pass by waiting.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        if status != StatusCode::SERVICE_UNAVAILABLE {
            self.retry_after = None;
        }
        self
    }

    /// The same failure with the code that JSON-RPC or MCP has for it.
    pub fn with_code(mut self, code: i32) -> Self {
        self.code = code;
        self
    }

    /// The `type` of the error object, as the public API names it.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The body: a JSON-RPC error for a caller that spoke JSON-RPC (`Some` with the request's id as it was sent), else
    /// the public API's error object.
    pub fn body(&self, request_id: &str, jsonrpc_id: Option<&RawValue>) -> Vec<u8> {
        let details = Details { hop: self.hop, reason: &self.reason };
        let body = match jsonrpc_id {
            Some(id) => {
                let error = RpcError { code: self.code, message: self.to_string(), data: details };
                serde_json::to_vec(&RpcBody { jsonrpc: "2.0", id, error, request_id })
            }
            None => {
                let error = ObjectError { kind: self.kind(), message: &self.reason, details };
                serde_json::to_vec(&ObjectBody { kind: "error", error, request_id })
            }
        };
        body.expect("strings, numbers and a raw value that was JSON are JSON")
    }
}

#[derive(Serialize)]
struct Details<'a> {
    hop: Hop,
    reason: &'a str,
}

#[derive(Serialize)]
struct RpcError<'a> {
    code: i32,
    message: String,
    data: Details<'a>,
}

/// The id is written as it was read: a number that no float holds stays what it is.
#[derive(Serialize)]
struct RpcBody<'a> {
    jsonrpc: &'static str,
    id: &'a RawValue,
    error: RpcError<'a>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct ObjectError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    details: Details<'a>,
}

#[derive(Serialize)]
struct ObjectBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: ObjectError<'a>,
    request_id: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_rpc_caller_gets_its_own_id_back() {
        let id = serde_json::value::to_raw_value(&serde_json::json!("a-7")).expect("raw");
        let body = HopError::new(Hop::Link, "no gateway is connected").body("req_1", Some(&id));
        let value: serde_json::Value = serde_json::from_slice(&body).expect("json");
        assert_eq!(value["id"], "a-7");
        assert_eq!(value["error"]["data"]["hop"], "link");
        let code = value["error"]["code"].as_i64().expect("code");
        assert!(!(-32768..=-32000).contains(&code));
    }

    #[test]
    fn only_what_may_pass_by_waiting_says_how_long() {
        assert_eq!(HopError::new(Hop::Edge, "full").retry_after, Some(1));
        let misdirected = HopError::new(Hop::Edge, "not this host").with_status(StatusCode::MISDIRECTED_REQUEST);
        assert_eq!(misdirected.retry_after, None);
    }

    #[test]
    fn an_id_is_returned_byte_for_byte() {
        for id in ["1e999", "123456789012345678901234567890", "\"\\u0041\"", "-0.10"] {
            let raw = RawValue::from_string(id.to_owned()).expect("json");
            let body = HopError::no_route().body("req_1", Some(&raw));
            let text = String::from_utf8(body).expect("text");
            assert!(text.contains(&format!("\"id\":{id},")), "{text}");
        }
    }

    #[test]
    fn other_callers_get_the_public_error_object() {
        let error = HopError::no_route();
        assert_eq!(error.status, StatusCode::BAD_GATEWAY);
        let value: serde_json::Value = serde_json::from_slice(&error.body("req_1", None)).expect("json");
        assert_eq!(value["error"]["message"], "No route configured for host");
        assert_eq!(value["error"]["details"]["hop"], "route");
        assert_eq!(value["request_id"], "req_1");
    }
}
