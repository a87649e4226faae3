//! What both ends of a call's way through us do to heads and trailers. Pure.

use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::HEADER_PREFIX;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Removes what concerns one connection only (RFC 9110, section 7.6.1): what `Connection` names, what is known to be so,
/// and `Proxy-*`. Of `TE` the wish for trailers stays (section 10.1.4), since trailers pass.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = lists(headers, TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = lists(headers, CONNECTION).filter_map(|name| name.parse().ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, KEEP_ALIVE, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    remove_beginning(headers, "proxy-");
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes every header that begins with [`HEADER_PREFIX`]: none of them is taken from outside.
pub fn strip_ours(headers: &mut HeaderMap) {
    remove_beginning(headers, HEADER_PREFIX);
}

/// What trailers must not say (RFC 9110, section 6.5.1), since some recipients merge them into the head: how long the
/// message is, where it goes, who sends it.
const NEVER_TRAILERS: [&str; 14] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "host",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-api-key",
];

/// Removes from trailers what only a head may say, and what is ours.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    for name in NEVER_TRAILERS {
        trailers.remove(name);
    }
    for prefix in [HEADER_PREFIX, "proxy-", "x-forwarded-"] {
        remove_beginning(trailers, prefix);
    }
}

/// Whether the body is framed in a way that needs no guess: by no transfer coding at all, or by `chunked` once and
/// alone. Other codings would have to be undone here, since they concern one connection only.
pub fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    first && codings.next().is_none()
}

/// Whether an answer says in one way, and once, how long it is. Else two readers of it could disagree, and
/// what one takes for the rest of this answer would be the next one's beginning for the other.
pub fn is_framed_once(headers: &HeaderMap) -> bool {
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    let coded = headers.contains_key(TRANSFER_ENCODING);
    let plain = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    is_plainly_framed(headers) && lengths + usize::from(coded) <= 1 && headers.get(CONTENT_LENGTH).is_none_or(plain)
}

/// Writes anew how long the body of a request is: `length` in bytes, or chunked where that is not known. What the
/// sender wrote about it is for the connection that it came over; two such statements would be two requests for some
/// reader behind us. The length that a sender stated is checked where it was read.
pub fn frame_request(headers: &mut HeaderMap, length: Option<u64>) {
    let stated = headers.remove(CONTENT_LENGTH).is_some();
    headers.remove(TRANSFER_ENCODING);
    // What servers behind CGI and its heirs would take for them.
    headers.remove("content_length");
    headers.remove("transfer_encoding");
    match length {
        // Said also for GET, whose body would be lost otherwise.
        None => drop(headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))),
        Some(0) if !stated => {}
        Some(length) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
    }
}

/// Makes one line of the cookies that HTTP/2 may split over several, which HTTP/1.1 does not know (RFC 9113, section
/// 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&pieces.join(&b"; "[..]))
    {
        headers.insert(COOKIE, whole);
    }
}

/// The members of a list that may come in several lines.
fn lists(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes every header whose name, in lower case, begins so. An underscore counts as a hyphen: servers behind CGI and
/// its heirs cannot tell the two apart.
pub fn remove_beginning(headers: &mut HeaderMap, prefix: &str) {
    let same = |(a, b): (u8, u8)| a == b || (a == b'_' && b == b'-');
    let begins =
        |name: &HeaderName| name.as_str().len() >= prefix.len() && name.as_str().bytes().zip(prefix.bytes()).all(same);
    let found: Vec<_> = headers.keys().filter(|name| begins(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

/// Whether a bare host, in lower case, names this machine only: what a listener on loopback answers to.
pub fn is_loopback_name(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
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

    #[test]
    fn what_concerns_one_connection_ends_there() {
        let mut given = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "x-more, not a name"),
            ("x-private", "1"),
            ("x-more", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authorization", "Basic x"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("trailer", "x-sum"),
            ("x-unknown", "1"),
            ("x-unknown", "2"),
        ]);
        strip_hop_by_hop(&mut given);
        assert_eq!(given, headers(&[("trailer", "x-sum"), ("x-unknown", "1"), ("x-unknown", "2")]));
    }

    #[test]
    fn the_wish_for_trailers_passes_also_where_connection_names_it() {
        for pairs in [vec![("te", "gzip, Trailers"), ("connection", "TE")], vec![("te", "trailers")]] {
            let mut given = headers(&pairs);
            strip_hop_by_hop(&mut given);
            assert_eq!(given, headers(&[("te", "trailers")]));
        }
    }

    #[test]
    fn a_body_is_framed_once_and_by_us() {
        for (given, length, want) in [
            (vec![("content-length", "5"), ("content-length", "6")], Some(5), vec![("content-length", "5")]),
            (vec![("content-length", "5"), ("transfer-encoding", "x")], None, vec![("transfer-encoding", "chunked")]),
            (vec![("content-length", "0")], Some(0), vec![("content-length", "0")]),
            (vec![("transfer-encoding", "chunked")], Some(0), vec![]),
        ] {
            let mut given = headers(&given);
            frame_request(&mut given, length);
            assert_eq!(given, headers(&want));
        }
        for odd in [vec![("content-length", "5"), ("content-length", "5")], vec![("content-length", "5, 5")]] {
            assert!(!is_framed_once(&headers(&odd)), "{odd:?}");
        }
        assert!(!is_framed_once(&headers(&[("content-length", "5"), ("transfer-encoding", "chunked")])));
        assert!(is_framed_once(&headers(&[("content-length", "5")])) && is_framed_once(&headers(&[])));
        assert!(is_plainly_framed(&headers(&[("content-length", "5")])));
        assert!(is_plainly_framed(&headers(&[("transfer-encoding", "Chunked")])));
        for codings in
            [vec!["gzip, chunked"], vec!["identity"], vec!["chunked", "chunked"], vec!["chunked;x"], vec![""]]
        {
            let codings: Vec<_> = codings.into_iter().map(|coding| ("transfer-encoding", coding)).collect();
            assert!(!is_plainly_framed(&headers(&codings)), "{codings:?}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_belongs_into_a_head() {
        let mut given = headers(&[
            ("content-length", "1"),
            ("transfer-encoding", "chunked"),
            ("host", "x"),
            ("authorization", "x"),
            ("set-cookie", "x"),
            ("sortie-hop", "policy"),
            ("x-forwarded-for", "x"),
            ("proxy-connection", "x"),
            ("x-sum", "1"),
        ]);
        clean_trailers(&mut given);
        assert_eq!(given, headers(&[("x-sum", "1")]));
    }

    #[test]
    fn an_underscore_does_not_hide_a_name() {
        let mut given = headers(&[("sortie_identity", "x"), ("sortie", "x"), ("x_sortie_y", "x")]);
        strip_ours(&mut given);
        assert_eq!(given, headers(&[("sortie", "x"), ("x_sortie_y", "x")]));
    }

    #[test]
    fn ours_are_taken_from_nobody_and_cookies_become_one_line() {
        let mut given =
            headers(&[("sortie-identity", "x"), ("sortie-later", "x"), ("cookie", "a=b"), ("cookie", "c=d")]);
        strip_ours(&mut given);
        join_cookies(&mut given);
        assert_eq!(given, headers(&[("cookie", "a=b; c=d")]));
    }
}
