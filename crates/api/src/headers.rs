//! What both ends of a call's way through us do to heads and trailers. Pure.

use http::header::{CONNECTION, COOKIE, TE, TRANSFER_ENCODING, UPGRADE};
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

/// Removes every header that begins with [`HEADER_PREFIX`]: none of them is taken from outside. For trailers, too.
pub fn strip_ours(headers: &mut HeaderMap) {
    remove_beginning(headers, HEADER_PREFIX);
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

/// Removes every header whose name, in lower case, begins so.
pub fn remove_beginning(headers: &mut HeaderMap, prefix: &str) {
    let found: Vec<_> = headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
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
    fn ours_are_taken_from_nobody_and_cookies_become_one_line() {
        let mut given =
            headers(&[("sortie-identity", "x"), ("sortie-later", "x"), ("cookie", "a=b"), ("cookie", "c=d")]);
        strip_ours(&mut given);
        join_cookies(&mut given);
        assert_eq!(given, headers(&[("cookie", "a=b; c=d")]));
    }
}
