//! Errors in the form of the public API.

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The `type` of an error, on which SDKs choose the exception that they raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400, 405, 412: the request cannot be understood or allowed as it is.
    InvalidRequestError,
    /// 401: no acceptable credential.
    AuthenticationError,
    /// 403: the credential does not permit this.
    PermissionError,
    /// 404: no such object or path.
    NotFoundError,
    /// 409: the object's state does not permit this.
    ConflictError,
    /// 413: the body is too large.
    RequestTooLarge,
    /// 429: too many requests.
    RateLimitError,
    /// 500: our fault.
    ApiError,
    /// 503: not now.
    OverloadedError,
}

/// An answer that is an error: what the caller sees, and nothing that it must not see.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The `type` of the error.
    pub kind: ErrorKind,
    /// One sentence that names the thing and the way out.
    pub message: String,
    /// More for programs, if any.
    pub details: Option<Box<Value>>,
    /// What the header `x-should-retry` says; without it an SDK goes by the status (it retries 409, 429 and 5xx).
    pub should_retry: Option<bool>,
}

impl ApiError {
    fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), details: None, should_retry: None }
    }

    /// 400: something in the request is wrong.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequestError, message)
    }

    /// 400 with `x-should-retry: false`: a limit is reached, and the same request will not succeed by itself.
    pub fn limit_reached(message: impl Into<String>) -> Self {
        Self::invalid_request(message).with_retry(false)
    }

    /// 401: the credential is missing, unknown, expired or withdrawn.
    pub fn authentication(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::AuthenticationError, message)
    }

    /// 403: the credential does not permit this.
    pub fn permission(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::PermissionError, message)
    }

    /// 404: no such object or path, or one that the caller may not know of.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFoundError, message)
    }

    /// 405: the path exists, the method on it does not.
    pub fn method_not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::InvalidRequestError, message)
    }

    /// 409 with `x-should-retry: false`: the object's state does not permit this and will not change by itself.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, ErrorKind::ConflictError, message).with_retry(false)
    }

    /// 412: what the request expects of the object is not so.
    pub fn precondition_failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, ErrorKind::InvalidRequestError, message)
    }

    /// 413: the body is too large.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorKind::RequestTooLarge, message)
    }

    /// 429: too many requests.
    pub fn rate_limited(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimitError, message)
    }

    /// 500: our fault; the cause goes to the log, not here.
    pub fn internal() -> Self {
        let message = "The request failed inside the hub. Its log has the cause under this request id.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::ApiError, message)
    }

    /// 503: not now.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::OverloadedError, message)
    }

    /// The same error with `x-should-retry`.
    pub fn with_retry(mut self, should_retry: bool) -> Self {
        self.should_retry = Some(should_retry);
        self
    }

    /// The same error with details for programs.
    pub fn with_details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The JSON body of the answer.
    pub fn body(&self, request_id: &str) -> Vec<u8> {
        let mut error = serde_json::json!({"type": self.kind, "message": self.message});
        if let (Some(details), Some(fields)) = (&self.details, error.as_object_mut()) {
            fields.insert("details".to_owned(), Value::clone(details));
        }
        serde_json::json!({"type": "error", "error": error, "request_id": request_id}).to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_shape_of_the_contract() {
        let error = ApiError::limit_reached("enough").with_details(serde_json::json!({"limit": 10}));
        assert_eq!(error.should_retry, Some(false));
        let body: Value = serde_json::from_slice(&error.body("req_1")).expect("json");
        let expected = serde_json::json!({
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "enough", "details": {"limit": 10}},
            "request_id": "req_1",
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn kinds_have_the_names_of_the_contract() {
        let cases = [
            (ApiError::authentication(""), 401, "authentication_error"),
            (ApiError::permission(""), 403, "permission_error"),
            (ApiError::not_found(""), 404, "not_found_error"),
            (ApiError::method_not_allowed(""), 405, "invalid_request_error"),
            (ApiError::conflict(""), 409, "conflict_error"),
            (ApiError::precondition_failed(""), 412, "invalid_request_error"),
            (ApiError::too_large(""), 413, "request_too_large"),
            (ApiError::rate_limited(""), 429, "rate_limit_error"),
            (ApiError::internal(), 500, "api_error"),
            (ApiError::overloaded(""), 503, "overloaded_error"),
        ];
        for (error, status, kind) in cases {
            assert_eq!(error.status.as_u16(), status);
            assert_eq!(serde_json::to_value(error.kind).expect("json"), kind);
        }
    }
}
