//! Headers that repeat the body: a call passes exactly if its name is what the header says, unwrapped. The input is the
//! header's value, a line feed, and the name.

#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use sortie_mcp::message::parse;
use sortie_mcp::mirror::{check, unwrapped};

const VERSION: &str = "2026-07-28";

fuzz_target!(|input: &str| {
    let (header, name) = input.split_once('\n').unwrap_or((input, input));
    if let Some(text) = unwrapped(header)
        && text != header
    {
        assert_eq!(wrapped(&text), header, "there is one way to wrap a text");
    }
    assert_eq!(unwrapped(&wrapped(name)).as_deref(), Some(name));

    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": name, "_meta": {"io.modelcontextprotocol/protocolVersion": VERSION}}})
    .to_string();
    let body = parse(body.as_bytes()).expect("a message");
    for (value, same) in [(header.to_owned(), unwrapped(header).as_deref() == Some(name)), (wrapped(name), true)] {
        let Ok(value) = HeaderValue::from_str(&value) else { continue };
        let text = value.to_str().is_ok();
        let mut headers = HeaderMap::new();
        headers.insert("mcp-protocol-version", HeaderValue::from_static(VERSION));
        headers.insert("mcp-method", HeaderValue::from_static("tools/call"));
        headers.insert("mcp-name", value.clone());
        assert_eq!(check(&headers, &body).is_ok(), same && text, "{value:?} {name:?}");
        headers.append("mcp-name", value);
        assert!(check(&headers, &body).is_err(), "twice");
    }
});

fn wrapped(text: &str) -> String {
    format!("=?base64?{}?=", STANDARD.encode(text))
}
