//! Heads on their way through: what must not pass is gone, the rest is as it was, and doing it twice changes nothing.
//! The input is lines of `name: value`.

#![no_main]

use std::collections::HashSet;

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use sortie_api::{join_cookies, strip_hop_by_hop, strip_ours};

fuzz_target!(|input: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(100) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let before = headers.clone();
    strip_hop_by_hop(&mut headers);
    strip_ours(&mut headers);
    join_cookies(&mut headers);

    let named: HashSet<HeaderName> = before
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let ends = |name: &HeaderName| {
        let text = name.as_str();
        // Servers behind CGI cannot tell an underscore from a hyphen, so that neither passes.
        let plain = text.replace('_', "-");
        ["connection", "keep-alive", "te", "transfer-encoding", "upgrade"].contains(&text)
            || plain.starts_with("proxy-")
            || plain.starts_with("sortie-")
            || named.contains(name)
    };
    for name in headers.keys() {
        assert!(!ends(name) || name == "te", "{name}");
    }
    assert!(headers.get_all("te").iter().all(|value| value == "trailers"));
    for name in before.keys().filter(|name| !ends(name) && *name != "cookie") {
        assert!(before.get_all(name).iter().eq(headers.get_all(name)), "{name}");
    }
    if !named.contains("cookie") {
        let cookies: Vec<&[u8]> = before.get_all("cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(headers.get("cookie").map(HeaderValue::as_bytes).unwrap_or_default(), cookies.join(&b"; "[..]));
    }
    let once = headers.clone();
    strip_hop_by_hop(&mut headers);
    strip_ours(&mut headers);
    join_cookies(&mut headers);
    assert_eq!(once, headers);
});
