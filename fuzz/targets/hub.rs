//! What the hub reads of a request before it knows the caller: the path form, Host and Origin. The input is a path, a
//! host and an origin, in lines.

#![no_main]

use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use sortie_hub::fuzzing::{knows_host, knows_origin, path_target};

fuzz_target!(|input: &str| {
    let mut lines = input.split('\n');
    let (path, host, origin) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    if let Ok(path) = path.parse()
        && let Some((label, route, rest)) = path_target(&path)
    {
        // Nothing is lost, added or undone.
        let whole = path.as_str();
        let behind = whole.strip_prefix(&format!("/t/{label}/{route}")).expect("the beginning");
        assert!(rest == behind || rest == format!("/{behind}"), "{whole} {rest}");
        assert!(!label.contains(['/', '%', '.', '?']) && !route.contains(['/', '%', '.', '?']));
    }
    // Whatever passes on loopback is a name of loopback, read plainly.
    let plain = |host: &str| {
        let host = host.to_ascii_lowercase();
        let host = host
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(host.clone(), |(name, _)| name.to_owned());
        let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
        host.ends_with("localhost") || host.starts_with("127.") || host.starts_with("[") || host == "::1"
    };
    if knows_host(host) {
        assert!(plain(host), "{host}");
    }
    if let Ok(value) = http::HeaderValue::from_str(origin) {
        let mut headers = HeaderMap::new();
        headers.insert("origin", value.clone());
        if knows_origin(&headers) {
            let (_, authority) = origin.split_once("://").expect("a scheme");
            let authority = authority.split(['/', '?', '#']).next().unwrap_or("");
            let authority = authority.rsplit('@').next().unwrap_or("");
            assert!(plain(authority), "{origin}");
        }
        headers.append("origin", value);
        assert!(!knows_origin(&headers), "two origins are none");
    }
});
