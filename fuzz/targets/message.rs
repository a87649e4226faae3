//! Request bodies: what is accepted is the same JSON to another reader, with the same message in it, and no key twice.

#![no_main]

use std::collections::HashSet;
use std::fmt;

use libfuzzer_sys::fuzz_target;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use sortie_mcp::message::{Fault, id_in_part, may_speak_jsonrpc, parse};

fuzz_target!(|body: &[u8]| {
    // The grammar alone: values that no float or text can hold are allowed in it.
    let is_json = std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    let value = serde_json::from_slice::<Value>(body).ok();
    let speaks = |value: &Value| {
        value.as_object().is_some_and(|object| object.keys().any(|key| key.to_lowercase() == "jsonrpc"))
    };
    match parse(body) {
        Ok(parsed) => {
            assert!(is_json);
            assert!(may_speak_jsonrpc(body));
            let Some(value) = value else { return };
            assert!(serde_json::from_slice::<Unique>(body).is_ok(), "a key comes twice");
            let values = value.as_array().cloned().unwrap_or_else(|| vec![value]);
            assert_eq!(parsed.messages().len(), values.len());
            for (message, value) in parsed.messages().iter().zip(&values) {
                assert_eq!(value["jsonrpc"], "2.0");
                assert_eq!(message.method.as_deref(), value["method"].as_str());
                let params = &value["params"];
                assert_eq!(message.name.as_deref(), params["name"].as_str());
                assert_eq!(message.uri.as_deref(), params["uri"].as_str());
                assert_eq!(message.task_id.as_deref(), params["taskId"].as_str());
                let version = &params["_meta"]["io.modelcontextprotocol/protocolVersion"];
                assert_eq!(message.protocol_version.as_deref(), version.as_str());
                let same = |raw: Option<&serde_json::value::RawValue>, value: Option<&Value>| {
                    assert_eq!(raw.map(|raw| serde_json::from_str::<Value>(raw.get()).expect("JSON")).as_ref(), value);
                };
                same(message.arguments(), params.get("arguments"));
                same(message.params(), value.get("params").filter(|params| params.is_object()));
                same(message.id, value.get("id").filter(|id| !id.is_null()));
            }
            // The first part of it shows the same id, or none.
            let id = parsed.request_id();
            for cut in [body.len() / 4, body.len() / 2, body.len().saturating_sub(1)] {
                if let (Some(early), Some(id), 1) = (id_in_part(&body[..cut]), &id, values.len()) {
                    assert_eq!(early.get(), id.get());
                }
            }
        }
        Err(refused) => {
            assert!(refused.at <= body.len());
            if refused.fault.code() == -32700 && refused.fault != Fault::TooDeep {
                assert!(!is_json || body.starts_with("\u{feff}".as_bytes()), "{refused}");
            }
            // What may be JSON-RPC to somebody is never let through as something else.
            let spoken = value.as_ref().is_some_and(|value| match value {
                Value::Array(elements) => elements.iter().any(speaks),
                other => speaks(other),
            });
            assert!(!spoken || refused.speaks_jsonrpc);
        }
    }
});

/// JSON without a key that comes twice in one object.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON with unique keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut keys = HashSet::new();
        while let Some((key, Unique)) = map.next_entry::<String, Unique>()? {
            if !keys.insert(key) {
                return Err(serde::de::Error::custom("twice"));
            }
        }
        Ok(Unique)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Unique, A::Error> {
        while elements.next_element::<Unique>()?.is_some() {}
        Ok(Unique)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unique, E> {
        Ok(Unique)
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique)
    }
}
