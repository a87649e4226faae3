//! The values of the header `anthropic-beta`.

use axum::http::HeaderMap;
use sortie_api::ApiError;

const BETA: &str = "anthropic-beta";
/// Unknown values that an answer repeats, and characters of each.
const NAMED: usize = 5;
const NAMED_CHARACTERS: usize = 64;

/// What clients of today send, sorted: the values that the official SDKs name, and those that belong to signing in and
/// to the older surface of tunnels. Here they change nothing; another value is a mistake, or asks for what is not here.
const KNOWN: [&str; 61] = [
    "admin-user-sign-out-2026-10-08",
    "advisor-tool-2026-03-01",
    "agent-memory-2026-07-22",
    "analytics-usage-cost-2026-08-24",
    "cache-diagnosis-2026-04-07",
    "ce-claude-code-managed-settings-2026-10-06",
    "ce-plugins-2026-09-01",
    "ce-user-management-2026-07-13",
    "code-execution-2025-05-22",
    "compact-2026-01-12",
    "compact-2026-09-04",
    "computer-use-2024-10-22",
    "computer-use-2025-01-24",
    "computer-use-2025-11-24",
    "context-1m-2025-08-07",
    "context-management-2025-06-27",
    "dev-full-thinking-2025-05-14",
    "dreaming-2026-04-21",
    "experimental-claude-tag-2026-10-21",
    "extended-cache-ttl-2025-04-11",
    "fallback-credit-2026-06-01",
    "fallback-credit-2026-07-01",
    "fast-mode-2026-02-01",
    "files-api-2025-04-14",
    "inline-tools-2026-09-15",
    "interleaved-thinking-2025-05-14",
    "managed-agents-2026-04-01",
    "mcp-client-2025-04-04",
    "mcp-client-2025-11-20",
    "mcp-client-2026-09-15",
    "mcp-tunnels-2026-05-19",
    "mcp-tunnels-2026-06-22",
    "message-batches-2024-09-24",
    "message-threads-2026-08-12",
    "mid-conversation-output-config-2026-07-01",
    "mid-conversation-system-clear-at-2026-08-21",
    "mid-conversation-tool-changes-2026-07-01",
    "model-context-window-exceeded-2025-08-26",
    "oauth-2025-04-20",
    "oidc-federation-2026-04-01",
    "output-128k-2025-02-19",
    "output-300k-2026-03-24",
    "pdfs-2024-09-25",
    "prompt-caching-2024-07-31",
    "server-side-fallback-2026-06-01",
    "server-side-fallback-2026-07-01",
    "skills-2025-10-02",
    "spend-limit-reads-2026-09-26",
    "structured-outputs-2025-11-13",
    "task-budgets-2026-03-13",
    "telemetry-destinations-2026-08-11",
    "thinking-binding-controls-2026-08-01",
    "thinking-display-updates-2026-08-18",
    "thinking-token-count-2026-05-13",
    "token-counting-2024-11-01",
    "token-efficient-tools-2025-02-19",
    "user-profiles-2026-03-24",
    "user-profiles-2026-08-18",
    "user-profiles-2026-09-04",
    "user-profiles-billing-2026-10-01",
    "webhooks-2026-10-07",
];

/// Checks the header: values separated by commas, in one line or several.
///
/// # Errors
/// 400, which names the values that are not known.
pub(super) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut unknown = Vec::new();
    for line in headers.get_all(BETA) {
        let line = String::from_utf8_lossy(line.as_bytes()).into_owned();
        let values = line.split(',').map(str::trim).filter(|value| KNOWN.binary_search(value).is_err());
        unknown.extend(values.map(|value| value.chars().take(NAMED_CHARACTERS).collect::<String>()));
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = unknown.iter().take(NAMED).map(|value| format!("`{value}`")).collect();
    let more = if unknown.len() > NAMED { ", and others," } else { "" };
    let named = named.join(", ");
    Err(ApiError::invalid_request(format!(
        "Unexpected value(s) {named}{more} for the `{BETA}` header; leave them or the header out"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_searched() {
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn unknown_values_are_named() {
        let headers = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(BETA, line.parse().expect("value"));
            }
            headers
        };
        for known in [
            vec![],
            vec!["mcp-tunnels-2026-06-22"],
            vec!["oauth-2025-04-20, mcp-tunnels-2026-06-22", "mcp-tunnels-2026-05-19"],
        ] {
            assert!(check(&headers(&known)).is_ok(), "{known:?}");
        }
        let error = check(&headers(&["mcp-tunnels-2026-06-22,one", "two"])).expect_err("unknown");
        assert_eq!((error.status.as_u16(), error.should_retry), (400, None));
        let words = "Unexpected value(s) `one`, `two` for the `anthropic-beta` header; leave them or the header out";
        assert_eq!(error.message, words);
        let long = "x".repeat(5000);
        let many = vec!["y"; 3000].join(",");
        let error = check(&headers(&[&long, &many])).expect_err("unknown");
        assert!(error.message.len() < 300, "{}", error.message);
        for empty in ["", "mcp-tunnels-2026-06-22,", "MCP-TUNNELS-2026-06-22"] {
            assert!(check(&headers(&[empty])).is_err(), "{empty:?}");
        }
    }
}
