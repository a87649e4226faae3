//! What a request must be before anything else is asked of it: one that every reader on its way understands alike.
//!
//! HTTP itself is parsed by hyper, which refuses what is malformed. What is refused here is well-formed, and yet could
//! mean one thing to us and another to somebody before or behind us.

use std::net::Ipv6Addr;

use http::header::HOST;
use http::{Method, Request, StatusCode};
use sortie_api::{Hop, HopError, is_plainly_framed};
use sortie_runtime::http::{MAX_HEAD, MAX_HEADERS};

/// Refuses requests that are no calls: methods that no route serves, targets that are no paths, framing that is not
/// plain, heads beyond the bounds.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), HopError> {
    let refused = |status, reason: String| Err(HopError::new(Hop::Edge, reason).with_status(status));
    // CONNECT asks for a tunnel, TRACE for its own headers back, credentials of others among them.
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return refused(StatusCode::NOT_IMPLEMENTED, format!("the method {} is not served", request.method()));
    }
    let uri = request.uri();
    let asterisk = uri.path() == "*" && request.method() == Method::OPTIONS;
    if !uri.path().starts_with('/') && !asterisk {
        return refused(StatusCode::BAD_REQUEST, "the request's target is not a path".to_owned());
    }
    if uri.scheme_str().is_some_and(|scheme| !["http", "https"].contains(&scheme)) {
        return refused(StatusCode::BAD_REQUEST, "the request's scheme is neither http nor https".to_owned());
    }
    if !is_plainly_framed(request.headers()) {
        let reason = "the only transfer coding that is understood is `chunked`, once and alone";
        return refused(StatusCode::NOT_IMPLEMENTED, reason.to_owned());
    }
    let size: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > MAX_HEAD || request.headers().len() > MAX_HEADERS {
        let reason = format!("the headers are more than {MAX_HEADERS}, or larger than {MAX_HEAD} bytes");
        return refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, reason);
    }
    Ok(())
}

/// The one host that a request names, in its target (HTTP/2, or the absolute form of HTTP/1.1) or in `Host`: in lower
/// case, without port, brackets and one trailing dot. Refused when it names none or two (RFC 9112, section 3.2; RFC 9113,
/// section 8.3.1), or something that is no host.
pub(crate) fn host<B>(request: &Request<B>) -> Result<String, HopError> {
    let refused = |reason: &str| HopError::new(Hop::Edge, reason).with_status(StatusCode::BAD_REQUEST);
    let mut lines = request.headers().get_all(HOST).iter();
    let line = lines.next();
    if lines.next().is_some() {
        return Err(refused("the request has more than one Host"));
    }
    let read = |text: &str| {
        let host = bare(text).map(str::to_ascii_lowercase);
        host.ok_or_else(|| refused("the request's Host is not a host name with or without a port"))
    };
    let target = request.uri().authority().map(|authority| read(authority.as_str())).transpose()?;
    let line = line.map(|value| read(value.to_str().unwrap_or("?"))).transpose()?;
    match (target, line) {
        (Some(target), Some(line)) if target != line => Err(refused("the request's target and its Host differ")),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(refused("the request has no Host")),
    }
}

/// A host without its port, without the brackets of an IPv6 address and without one trailing dot; empty where it was.
/// `None` where there is more to it: a user, a path, or bytes that no host name has.
pub(crate) fn bare(text: &str) -> Option<&str> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(address, _)| address.parse::<Ipv6Addr>().is_ok())?,
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            name.bytes().all(plain).then_some((name, port))?
        }
    };
    let port = port.strip_prefix(':').unwrap_or(if port.is_empty() { "" } else { "?" });
    let is_port = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    is_port.then(|| name.strip_suffix('.').unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).expect("request")
    }

    #[test]
    fn a_request_names_one_host() {
        for (target, hosts, want) in [
            ("/", vec!["A.test"], "a.test"),
            ("/", vec!["a.test:8443"], "a.test"),
            ("/", vec!["a.test.:1"], "a.test"),
            ("/", vec!["a.test:"], "a.test"),
            ("/", vec!["[::1]:80"], "::1"),
            ("/", vec![""], ""),
            ("https://a.test/x", vec![], "a.test"),
            ("https://a.test:1/x", vec!["A.TEST"], "a.test"),
        ] {
            assert_eq!(host(&request(target, &hosts)).ok().as_deref(), Some(want), "{target} {hosts:?}");
        }
        for (target, hosts) in [
            ("/", vec![]),
            ("/", vec!["a.test", "a.test"]),
            ("https://a.test/", vec!["b.test"]),
            ("https://a.test/", vec![""]),
            ("https://user@a.test/", vec![]),
            ("/", vec!["user@a.test"]),
            ("/", vec!["a.test/x"]),
            ("/", vec!["a.test:80:80"]),
            ("/", vec!["a.test:99999999"]),
            ("/", vec!["a.test:x"]),
            ("/", vec!["a test"]),
            ("/", vec!["[::1]evil.test"]),
            ("/", vec!["[::1"]),
            ("/", vec!["[evil.test]"]),
            ("/", vec!["::1"]),
            ("/", vec!["a%2etest"]),
            ("/", vec!["a,b"]),
        ] {
            let refused = host(&request(target, &hosts)).expect_err(target);
            assert_eq!((refused.status, refused.hop), (StatusCode::BAD_REQUEST, Hop::Edge), "{target} {hosts:?}");
        }
        let mut odd = request("/", &[]);
        odd.headers_mut().insert(HOST, http::HeaderValue::from_bytes(b"b\xfccher.test").expect("value"));
        assert_eq!(host(&odd).expect_err("no name").status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn what_is_no_call_is_refused() {
        let with = |method: Method, target: &str, name: &'static str, value: &str| {
            let request = Request::builder().method(method).uri(target).header(name, value);
            check(&request.body(()).expect("request")).map_err(|error| error.status.as_u16())
        };
        for (method, target) in [(Method::GET, "/"), (Method::OPTIONS, "*"), (Method::POST, "https://a.test/x")] {
            assert_eq!(with(method, target, "transfer-encoding", "chunked"), Ok(()), "{target}");
        }
        assert_eq!(with(Method::CONNECT, "a.test:443", "x", "y"), Err(501));
        assert_eq!(with(Method::TRACE, "/", "x", "y"), Err(501));
        assert_eq!(with(Method::GET, "*", "x", "y"), Err(400));
        assert_eq!(with(Method::GET, "ftp://a.test/", "x", "y"), Err(400));
        assert_eq!(with(Method::POST, "/", "transfer-encoding", "gzip, chunked"), Err(501));
        assert_eq!(with(Method::GET, "/", "x", &"y".repeat(MAX_HEAD)), Err(431));
        let mut many = request("/", &[]);
        for _ in 0..=MAX_HEADERS {
            many.headers_mut().append("x", http::HeaderValue::from_static("y"));
        }
        assert_eq!(check(&many).expect_err("many").status.as_u16(), 431);
    }
}
