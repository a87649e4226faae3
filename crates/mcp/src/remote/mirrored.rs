//! Arguments that a call repeats in its head: `Mcp-Param-*` (MCP 2026-07-28, "Custom Headers from Tool Parameters").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

const ANNOTATION: &str = "x-mcp-header";
/// Deepest nesting of properties that is looked at.
const DEEPEST: usize = 32;

/// An argument that is repeated: where it is, and the header that it goes into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirrored {
    path: Vec<String>,
    header: HeaderName,
}

/// What a tool's schema wants repeated.
///
/// # Errors
/// An annotation that the protocol does not allow: such a tool is not to be offered.
pub(super) fn of_schema(schema: &Value) -> Result<Vec<Mirrored>, &'static str> {
    let mut found = Vec::new();
    collect(schema, &mut Vec::new(), &mut found)?;
    Ok(found)
}

fn collect(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Mirrored>) -> Result<(), &'static str> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Ok(()) };
    if path.len() >= DEEPEST {
        return Ok(());
    }
    for (name, property) in properties {
        path.push(name.clone());
        if let Some(annotation) = property.get(ANNOTATION) {
            let header = annotation.as_str().filter(|name| !name.is_empty());
            let header = header.and_then(|name| format!("mcp-param-{name}").parse::<HeaderName>().ok());
            let header = header.ok_or("an x-mcp-header of its schema is no name of a header")?;
            if !matches!(property.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
                return Err("an x-mcp-header of its schema is on something that is no string, integer or boolean");
            }
            if found.iter().any(|known| known.header == header) {
                return Err("two parts of its schema have the same x-mcp-header");
            }
            found.push(Mirrored { path: path.clone(), header });
        }
        collect(property, path, found)?;
        path.pop();
    }
    Ok(())
}

/// Puts the arguments of a call where the tool wants them repeated.
pub(super) fn put(mirrored: &[Mirrored], arguments: &Map<String, Value>, headers: &mut HeaderMap) {
    for one in mirrored {
        let mut names = one.path.iter();
        let first = names.next().and_then(|name| arguments.get(name));
        let text = match names.try_fold(first, |value, name| Some(value?.get(name))).flatten() {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => continue,
        };
        if let Some(value) = value(&text) {
            headers.insert(one.header.clone(), value);
        }
    }
}

/// A text as the value of a header: as it is, or wrapped where it could not travel so.
pub(super) fn value(text: &str) -> Option<HeaderValue> {
    let plain = text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) && text.trim() == text;
    let looks_wrapped = text.starts_with("=?base64?") && text.ends_with("?=");
    match plain && !looks_wrapped {
        true => HeaderValue::from_str(text).ok(),
        false => HeaderValue::from_str(&format!("=?base64?{}?=", STANDARD.encode(text))).ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_are_repeated_as_the_schema_says() {
        let schema = json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "at": {"type": "object", "properties": {"line": {"type": "integer", "x-mcp-header": "Line"}}},
            "dry": {"type": "boolean", "x-mcp-header": "Dry"},
        }});
        let mirrored = of_schema(&schema).expect("good");
        let mut headers = HeaderMap::new();
        let arguments = json!({"region": "Köln", "at": {"line": 7}, "dry": null});
        put(&mirrored, arguments.as_object().expect("object"), &mut headers);
        let seen = |name: &str| headers.get(name).map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(seen("mcp-param-region"), Some(format!("=?base64?{}?=", STANDARD.encode("Köln"))));
        assert_eq!((seen("mcp-param-line").as_deref(), seen("mcp-param-dry")), (Some("7"), None));
        let wrapped = value("=?base64?eA==?=").expect("value");
        assert_eq!(crate::mirror::unwrapped(wrapped.to_str().expect("text")).as_deref(), Some("=?base64?eA==?="));
    }

    #[test]
    fn annotations_that_the_protocol_does_not_allow_are_refused() {
        for bad in [
            json!({"properties": {"a": {"type": "string", "x-mcp-header": ""}}}),
            json!({"properties": {"a": {"type": "string", "x-mcp-header": "a b"}}}),
            json!({"properties": {"a": {"type": "object", "x-mcp-header": "A"}}}),
            json!({"properties": {"a": {"type": "string", "x-mcp-header": 1}}}),
            json!({"properties": {"a": {"type": "string", "x-mcp-header": "A"},
                                  "b": {"type": "string", "x-mcp-header": "a"}}}),
        ] {
            assert!(of_schema(&bad).is_err(), "{bad}");
        }
    }
}
