//! Tools as servers describe them, in a form that the Messages API takes.
//!
//! One tool that the Messages API refuses would end the whole request. What can be widened is: the model is then told less
//! of what is allowed, and the server still judges each call. What cannot be is left out. Pure.

use serde_json::{Map, Value};

use super::McpTool;

/// Longest description, in characters; the rest is cut.
pub const MAX_DESCRIPTION: usize = 16_384;
/// Largest schema of one tool, in bytes.
pub const MAX_SCHEMA: usize = 256 * 1024;
/// Deepest nesting of a schema; what lies deeper allows anything.
pub const MAX_DEPTH: usize = 32;

/// Keywords that the Messages API does not take at the top of a schema.
const NOT_ON_TOP: [&str; 3] = ["oneOf", "anyOf", "allOf"];
/// Keywords whose members are schemas by names.
const BY_NAME: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords whose values are no schemas, whatever they look like.
const VALUES: [&str; 5] = ["default", "const", "enum", "examples", "required"];

/// A tool for the model.
///
/// # Errors
/// Why it cannot be offered: its schema is no object or not one of an object, is too large, or requires what cannot be
/// named to the model.
pub fn tool(name: &str, description: Option<&str>, schema: &Value) -> Result<McpTool, &'static str> {
    let Some(schema) = schema.as_object() else { return Err("its schema is no object") };
    match schema.get("type") {
        None => {}
        Some(Value::String(kind)) if kind == "object" => {}
        Some(Value::Array(kinds)) if kinds.iter().any(|kind| kind == "object") => {}
        Some(_) => return Err("its schema is not that of an object"),
    }
    if Value::Object(schema.clone()).to_string().len() > MAX_SCHEMA {
        return Err("its schema is too large");
    }
    let mut input_schema = widened(schema, 0);
    for keyword in NOT_ON_TOP.iter().chain(&["$ref"]) {
        input_schema.remove(*keyword);
    }
    input_schema.insert("type".to_owned(), "object".into());
    name_properties(&mut input_schema)?;
    let description = description.map(|text| text.chars().take(MAX_DESCRIPTION).collect::<String>());
    let description = description.filter(|text| !text.trim().is_empty());
    Ok(McpTool { name: name.to_owned(), description, input_schema })
}

/// The schema without references to other documents, and not too deep.
fn widened(schema: &Map<String, Value>, depth: usize) -> Map<String, Value> {
    let reference = schema.get("$ref").or_else(|| schema.get("$dynamicRef"));
    if depth >= MAX_DEPTH || reference.is_some_and(|to| !to.as_str().is_some_and(|to| to.starts_with('#'))) {
        return Map::new();
    }
    let inner = |value: &Value| match value {
        Value::Object(schema) => Value::Object(widened(schema, depth + 1)),
        Value::Array(list) => {
            let each = |one: &Value| match one {
                Value::Object(schema) => Value::Object(widened(schema, depth + 1)),
                other => other.clone(),
            };
            Value::Array(list.iter().map(each).collect())
        }
        other => other.clone(),
    };
    let keyword = |(name, value): (&String, &Value)| {
        let value = match value {
            _ if VALUES.contains(&name.as_str()) => value.clone(),
            Value::Object(members) if BY_NAME.contains(&name.as_str()) => {
                Value::Object(members.iter().map(|(name, schema)| (name.clone(), inner(schema))).collect())
            }
            value => inner(value),
        };
        (name.clone(), value)
    };
    // Of what the schema is a part, and by which rules it is written, is nothing to the model.
    schema.iter().filter(|(name, _)| *name != "$schema" && *name != "$id").map(keyword).collect()
}

/// Drops properties with names that the Messages API does not take.
fn name_properties(schema: &mut Map<String, Value>) -> Result<(), &'static str> {
    match schema.get_mut("properties") {
        None => {}
        Some(Value::Object(properties)) => properties.retain(|name, _| is_name(name)),
        Some(_) => return Err("the properties of its schema are no object"),
    }
    let Some(required) = schema.get("required") else { return Ok(()) };
    let names = required.as_array().map(|names| names.iter().all(|name| name.as_str().is_some_and(is_name)));
    match names {
        Some(true) => Ok(()),
        Some(false) => {
            Err("it requires a property whose name is not one of A-Z, a-z, 0-9, `_`, `.` and `-`, at most 64")
        }
        None => Err("what its schema requires is no list"),
    }
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(given: &Value) -> Value {
        Value::Object(tool("t", None, given).expect("a tool").input_schema)
    }

    #[test]
    fn an_ordinary_schema_stays_as_it_is() {
        let given = json!({"type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"type": "array", "items": {"enum": [{"$ref": "x"}]}},
                           "$ref": {"type": "string"}},
            "$defs": {"A": {"anyOf": [{"type": "string"}, {"type": "null"}]}}});
        let mut expected = given.clone();
        expected["properties"].as_object_mut().expect("object").remove("$ref");
        assert_eq!(schema(&given), expected);
        assert_eq!(schema(&json!({})), json!({"type": "object"}));
    }

    #[test]
    fn what_would_be_refused_is_widened() {
        let given = json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": ["object", "null"],
            "oneOf": [{"required": ["a"]}], "properties": {
                "a": {"$ref": "https://evil.test/schema"}, "b": {"$ref": "file:///etc/passwd", "type": "string"},
                "c d": {"type": "string"}}});
        assert_eq!(schema(&given), json!({"type": "object", "properties": {"a": {}, "b": {}}}));
        let mut deep = json!({"type": "string"});
        for _ in 0..100 {
            deep = json!({"type": "object", "properties": {"a": deep}});
        }
        let mut depth = 0;
        let widened = schema(&deep);
        let mut at = &widened;
        while let Some(next) = at.pointer("/properties/a") {
            (at, depth) = (next, depth + 1);
        }
        assert_eq!((depth, at), (MAX_DEPTH, &json!({})));
    }

    #[test]
    fn what_cannot_be_offered_is_left_out() {
        for (bad, why) in [
            (json!("string"), "no object"),
            (json!(null), "no object"),
            (json!([]), "no object"),
            (json!({"type": "string"}), "not that of an object"),
            (json!({"type": 7}), "not that of an object"),
            (json!({"properties": ["a"]}), "no object"),
            (json!({"required": "a"}), "no list"),
            (json!({"required": ["a b"], "properties": {"a b": {}}}), "requires a property"),
            (json!({"description": "x".repeat(MAX_SCHEMA)}), "too large"),
        ] {
            let said = tool("t", None, &bad).expect_err(why);
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn descriptions_are_cut() {
        let long = "é".repeat(MAX_DESCRIPTION + 1);
        let cut = tool("t", Some(&long), &json!({})).expect("a tool").description.expect("some");
        assert_eq!(cut.chars().count(), MAX_DESCRIPTION);
        assert_eq!(tool("t", Some(" "), &json!({})).expect("a tool").description, None);
    }
}
