//! What the derived schemas do not know of our objects.

use schemars::Schema;
use serde_json::{Value, json};

/// Describes the member `type`, by which an object says what it is.
pub(crate) fn typed(kind: &'static str) -> impl FnMut(&mut Schema) {
    move |schema| {
        let object = schema.ensure_object();
        if let Some(Value::Object(members)) = object.get_mut("properties") {
            members.insert("type".to_owned(), json!({"type": "string", "const": kind}));
        }
        if let Some(Value::Array(required)) = object.get_mut("required") {
            required.push("type".into());
        }
    }
}
