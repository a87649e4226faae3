//! URLs of MCP servers, as agents and credentials name them.

use url::{Host, Url};

use crate::ApiError;

/// Longest URL that is taken, in characters.
const MAX_URL: usize = 2048;

/// Checks the URL of an MCP server: http or https, with no user name and password in it, which would be shown, and no
/// fragment, which no server sees. Whether it can be reached, and whether it may be, is seen when it is called.
///
/// # Errors
/// 400; `member` is its place in the request.
pub fn check_mcp_url(member: &str, text: &str) -> Result<Url, ApiError> {
    let refused = |reason: &str| Err(ApiError::invalid_request(format!("{member}: {reason}")));
    let length = text.chars().count();
    if length > MAX_URL {
        return refused(&format!("{length} characters, at most {MAX_URL}"));
    }
    let Ok(url) = Url::parse(text) else { return refused("not a URL, such as https://mcp.example.com/mcp") };
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return refused("must begin with https:// (or http://) and name a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refused("must not hold a user name or password; keep those in a vault");
    }
    if url.fragment().is_some() {
        return refused("must not have a fragment (`#...`)");
    }
    Ok(url)
}

/// Checks the URL of an OAuth token endpoint (RFC 6749, section 3.2), which secrets are sent to: https, or http on this
/// machine.
///
/// # Errors
/// 400; `member` is its place in the request.
pub(crate) fn check_token_endpoint(member: &str, text: &str) -> Result<(), ApiError> {
    let url = check_mcp_url(member, text)?;
    let local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "https" || local {
        return Ok(());
    }
    Err(ApiError::invalid_request(format!("{member}: must begin with https://, since secrets are sent there")))
}

/// The one form of an MCP server's URL under which its credential is found: scheme and host in lower case, no default
/// port, no slash at the end of the path. None for what is no URL with a host.
pub fn normalized_mcp_url(text: &str) -> Option<String> {
    let mut url = Url::parse(text).ok().filter(Url::has_host)?;
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/').to_owned();
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let origin = url.origin().ascii_serialization();
    Some(format!("{origin}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_has_one_url() {
        let form = |text| normalized_mcp_url(text).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(form("HTTPS://MCP.Example.com:443/Mcp/"), "https://mcp.example.com/Mcp");
        assert_eq!(form("http://Example.com:80"), "http://example.com");
        assert_eq!(form("https://example.com:8443/"), "https://example.com:8443");
        assert_eq!(form("https://example.com/a/../mcp//"), "https://example.com/mcp");
        assert_eq!(form("https://example.com/mcp/?a=B/"), "https://example.com/mcp?a=B/");
        assert_eq!(form("https://[::1]:443/mcp"), "https://[::1]/mcp");
        for (one, other) in [
            ("https://example.com/mcp", "https://example.com/MCP"),
            ("https://example.com/mcp", "http://example.com/mcp"),
            ("https://example.com/mcp", "https://example.com:8443/mcp"),
            ("https://example.com/mcp", "https://example.com/mcp?a"),
            ("https://example.com/a%2Fb", "https://example.com/a/b"),
        ] {
            assert_ne!(form(one), form(other));
        }
        for none in ["", "example.com/mcp", "mailto:a@example.com", "https://"] {
            assert_eq!(normalized_mcp_url(none), None, "{none}");
        }
    }

    #[test]
    fn urls_hold_no_secrets_and_no_surprises() {
        for good in ["https://mcp.example.com/mcp", "http://127.0.0.1:4180/t/a/b/mcp", "https://x.y.sortie.localhost"] {
            assert!(check_mcp_url("url", good).is_ok(), "{good}");
        }
        let long = format!("https://example.com/{}", "a".repeat(2048));
        for bad in [
            "",
            "mcp.example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "https://user@example.com",
            "https://:secret@example.com",
            "https://example.com/#a",
            long.as_str(),
        ] {
            let error = check_mcp_url("url", bad).expect_err(bad);
            assert!(error.message.starts_with("url: ") && !error.message.contains("secret"), "{}", error.message);
        }
    }

    #[test]
    fn refresh_tokens_are_not_sent_in_the_clear() {
        for good in ["https://auth.example.com/token", "http://127.0.0.1:8080/token", "http://localhost/token"] {
            assert!(check_token_endpoint("token_endpoint", good).is_ok(), "{good}");
        }
        for bad in ["http://auth.example.com/token", "http://localhost.example.com/token", "http://10.0.0.1/token"] {
            assert!(check_token_endpoint("token_endpoint", bad).is_err(), "{bad}");
        }
    }
}
