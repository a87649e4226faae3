//! Prompts, resources and completions.

use rmcp::ErrorData;
use rmcp::model::{GetPromptResult, JsonObject, Prompt, ReadResourceResult, Resource, ResourceTemplate};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::tasks::word;

/// A red pixel, PNG.
pub(crate) const IMAGE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// No sound at all, WAV.
pub(crate) const SOUND: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

/// What a value of ours means to the protocol.
pub(crate) fn meant<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("content of ours is well-formed")
}

pub(crate) fn prompts() -> Vec<Prompt> {
    let needed = |name: &str| json!({ "name": name, "description": "Goes into the prompt", "required": true });
    meant(json!([
        { "name": "test_simple_prompt", "description": "One message" },
        {
            "name": "test_prompt_with_arguments",
            "description": "One message with two arguments in it",
            "arguments": [needed("arg1"), needed("arg2")],
        },
        {
            "name": "test_prompt_with_embedded_resource",
            "description": "A message that is a resource",
            "arguments": [needed("resourceUri")],
        },
        { "name": "test_prompt_with_image", "description": "A message that is an image" },
        { "name": "test_input_required_result_prompt", "description": "Asks for a context first" },
    ]))
}

/// A prompt that needs nothing but its arguments.
pub(crate) fn prompt(name: &str, arguments: &JsonObject) -> Result<GetPromptResult, ErrorData> {
    let text = |text: &str| json!({ "type": "text", "text": text });
    let content = match name {
        "test_simple_prompt" => vec![text("This is a simple prompt for testing.")],
        "test_prompt_with_arguments" => {
            let (one, two) = (word(arguments, "arg1"), word(arguments, "arg2"));
            vec![text(&format!("Prompt with arguments: arg1='{one}', arg2='{two}'"))]
        }
        "test_prompt_with_embedded_resource" => {
            let resource = json!({
                "uri": word(arguments, "resourceUri"),
                "mimeType": "text/plain",
                "text": "Embedded resource content for testing.",
            });
            let embedded = json!({ "type": "resource", "resource": resource });
            vec![embedded, text("Please process the embedded resource above.")]
        }
        "test_prompt_with_image" => {
            let image = json!({ "type": "image", "data": IMAGE, "mimeType": "image/png" });
            vec![image, text("Please analyze the image above.")]
        }
        _ => return Err(ErrorData::invalid_params(format!("there is no prompt {name}"), None)),
    };
    let messages: Vec<Value> =
        content.into_iter().map(|content| json!({ "role": "user", "content": content })).collect();
    Ok(meant(json!({ "resultType": "complete", "messages": messages })))
}

/// A prompt made of one text.
pub(crate) fn prompt_of(text: &str) -> GetPromptResult {
    let message = json!({ "role": "user", "content": { "type": "text", "text": text } });
    meant(json!({ "resultType": "complete", "messages": [message] }))
}

pub(crate) fn resources() -> Vec<Resource> {
    let one = |uri: &str, name: &str, kind: &str| json!({ "uri": uri, "name": name, "description": "A resource for testing", "mimeType": kind });
    meant(json!([
        one("test://static-text", "static-text", "text/plain"),
        one("test://static-binary", "static-binary", "image/png"),
        one("test://watched-resource", "watched-resource", "text/plain"),
    ]))
}

pub(crate) fn templates() -> Vec<ResourceTemplate> {
    meant(json!([{
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "description": "A resource for each id",
        "mimeType": "application/json",
    }]))
}

pub(crate) fn read(uri: &str) -> Result<ReadResourceResult, ErrorData> {
    let text = |kind: &str, text: &str| json!({ "uri": uri, "mimeType": kind, "text": text });
    let templated = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
    let content = match (uri, templated) {
        ("test://static-text", _) => text("text/plain", "This is the content of the static text resource."),
        ("test://static-binary", _) => json!({ "uri": uri, "mimeType": "image/png", "blob": IMAGE }),
        ("test://watched-resource", _) => text("text/plain", "Nothing happens here."),
        (_, Some(id)) => {
            let data = json!({ "id": id, "templateTest": true, "data": format!("Data for ID: {id}") });
            text("application/json", &data.to_string())
        }
        _ => return Err(ErrorData::resource_not_found("there is no such resource", Some(json!({ "uri": uri })))),
    };
    Ok(meant(json!({ "resultType": "complete", "contents": [content] })))
}
