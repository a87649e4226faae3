//! The heads of requests and responses on their way through. Pure.
//!
//! What a proxy must not touch stays as it is: `Origin`, `Accept`, `Mcp-*`, `Last-Event-ID` and every header that is
//! not named here.

use http::header::{AUTHORIZATION, FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use sortie_api::{REQUEST_ID_HEADER, frame_request, join_cookies, remove_beginning, strip_hop_by_hop, strip_ours};
use sortie_ids::RequestId;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How the head of a request is to be changed for its upstream.
pub(crate) struct Rewrite<'a> {
    /// The name that the caller used.
    pub(crate) public_host: &'a HeaderValue,
    /// Whether `Authorization`, and what else brings tokens, goes on.
    pub(crate) authorization: bool,
    /// The headers that bring tokens of issuers.
    pub(crate) token_headers: &'a [HeaderName],
    /// The id of the call.
    pub(crate) request_id: &'a RequestId,
    /// The length of the body in bytes, where it is known.
    pub(crate) length: Option<u64>,
}

impl Rewrite<'_> {
    /// Changes the headers of a request, which then has no `Host`: that is for whoever sends it on.
    pub(crate) fn apply(&self, headers: &mut HeaderMap) {
        strip_hop_by_hop(headers);
        strip_ours(headers);
        frame_request(headers, self.length);
        remove_beginning(headers, "x-forwarded-");
        headers.remove(FORWARDED);
        if !self.authorization {
            headers.remove(AUTHORIZATION);
            for name in self.token_headers {
                headers.remove(name);
            }
        }
        join_cookies(headers);
        headers.remove(HOST);
        headers.insert(X_FORWARDED_HOST, self.public_host.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
        if let Ok(id) = HeaderValue::from_str(self.request_id.as_str()) {
            headers.insert(REQUEST_ID_HEADER, id);
        }
    }
}

/// Changes the headers of an upstream's response.
pub(crate) fn answer(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    strip_ours(headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().expect(name), value.parse().expect(value));
        }
        headers
    }

    fn rewritten(pairs: &[(&str, &str)], authorization: bool) -> HeaderMap {
        let mut headers = headers(pairs);
        let request_id = "req_1".parse().expect("id");
        let public_host = HeaderValue::from_static("docs.abcd.test");
        let length = headers.get("content-length").map_or(Some(0), |value| value.to_str().ok()?.parse().ok());
        let token_headers = &[HeaderName::from_static("x-agent-token")];
        let rewrite =
            Rewrite { public_host: &public_host, authorization, token_headers, request_id: &request_id, length };
        rewrite.apply(&mut headers);
        headers
    }

    const ALWAYS: [(&str, &str); 3] =
        [("x-forwarded-host", "docs.abcd.test"), ("x-forwarded-proto", "https"), ("sortie-request-id", "req_1")];

    #[test]
    fn each_header_goes_on_or_ends_here() {
        let ends = [
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("sortie-identity", "token"),
            ("sortie-request-id", "req_other"),
            ("sortie-hop", "policy"),
            ("sortie-later", "x"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-prefix", "/x"),
            ("forwarded", "for=1.2.3.4"),
            ("authorization", "Bearer x"),
            ("x-agent-token", "x"),
            ("host", "docs.abcd.test"),
        ];
        assert_eq!(rewritten(&ends, false), headers(&ALWAYS));

        let goes = [
            ("accept", "application/json, text/event-stream"),
            ("origin", "https://app.example"),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", "=?base64?eA==?="),
            ("mcp-param-x", "1"),
            ("mcp-session-id", "s"),
            ("last-event-id", "7"),
            ("content-type", "application/json"),
            ("content-length", "2"),
            ("trailer", "x-sum"),
            ("cookie", "a=b"),
            ("x-unknown", "1"),
            ("x-unknown", "2"),
        ];
        let expected: Vec<_> = ALWAYS.iter().chain(&goes).copied().collect();
        assert_eq!(rewritten(&goes, false), headers(&expected));
    }

    #[test]
    fn authorization_goes_on_where_the_route_says_so_and_trailers_where_the_caller_does() {
        let given = [("authorization", "Bearer x"), ("te", "gzip, Trailers"), ("connection", "TE")];
        let headers = rewritten(&given, true);
        assert_eq!(headers["authorization"], "Bearer x");
        assert_eq!(headers["te"], "trailers");
        assert!(!headers.contains_key("connection"));
    }

    #[test]
    fn a_split_cookie_becomes_one() {
        let headers = rewritten(&[("cookie", "a=b"), ("cookie", "c=d")], false);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=b; c=d"]);
    }

    #[test]
    fn an_upstream_cannot_speak_in_our_name() {
        let mut given = headers(&[
            ("sortie-hop", "identity"),
            ("sortie-x", "1"),
            ("connection", "x-a"),
            ("x-a", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/event-stream"),
            ("mcp-session-id", "s"),
            ("location", "http://10.0.0.5/else"),
            ("set-cookie", "a=b"),
            ("www-authenticate", "Bearer"),
        ]);
        answer(&mut given);
        assert_eq!(
            given,
            headers(&[
                ("content-type", "text/event-stream"),
                ("mcp-session-id", "s"),
                ("location", "http://10.0.0.5/else"),
                ("set-cookie", "a=b"),
                ("www-authenticate", "Bearer"),
            ])
        );
    }
}
