//! What a model is asked: a session's agent, its tools and its transcript in the form of the Messages API. Pure.

mod tools;

use serde_json::{Value, json};
use sortie_api::{ContentBlock, SessionAgent};

use crate::model::{ModelLimits, ModelRequest, Source};
use crate::transcript::Entry;

pub use tools::{Tool, Toolbox, mcp_name};

/// What a model is told before a summary that stands for the beginning of a conversation.
const SUMMARY_FOLLOWS: &str = "The beginning of this conversation was replaced by this summary of it:";

/// What a model is asked when a conversation has become too long.
const SUMMARY_WANTED: &str = "The conversation has become long. Write a summary of it that will stand in its place: whoever \
    goes on from here sees nothing else of it. Write down the task and every wish of the user as they put it, what was done \
    and found out, with names of files, commands, numbers and decisions that are still needed, what failed and why, and \
    what is still to be done. Answer with the summary only, and use no tool.";

/// Uses of tools without a result: no endpoint takes such a conversation, so it is not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transcript has uses of tools without a result, or results without a use: {0}")]
pub struct Unpaired(pub String);

/// The request for the next answer of a session's model, with the messages that its transcript comes to.
pub fn request(
    agent: &SessionAgent,
    toolbox: &Toolbox,
    messages: Vec<Value>,
    limits: &ModelLimits,
    source: Source,
) -> ModelRequest {
    ModelRequest {
        model: agent.model.clone(),
        system: agent.system.clone().filter(|system| !system.is_empty()),
        messages,
        tools: toolbox.tools().to_vec(),
        max_tokens: limits.max_tokens,
        source,
    }
}

/// The messages that a transcript comes to. The entries are all of a session, from its first.
///
/// # Errors
/// See [`Unpaired`].
pub fn messages(entries: &[Entry]) -> Result<Vec<Value>, Unpaired> {
    let mut messages = Vec::new();
    let newest = entries.iter().rev().find_map(|entry| match entry {
        Entry::Summary { text, upto } => Some((text, usize::try_from(*upto).unwrap_or(usize::MAX))),
        _ => None,
    });
    let rest = match newest {
        Some((text, upto)) => {
            let text = format!("{SUMMARY_FOLLOWS}\n\n{text}");
            messages.push(json!({"role": "user", "content": [{"type": "text", "text": text}]}));
            entries.get(upto..).unwrap_or_default()
        }
        None => entries,
    };
    for entry in rest {
        append(&mut messages, entry);
    }
    pairs(&messages)?;
    Ok(messages)
}

/// Adds what an entry comes to. A summary, which replaces what was there, adds nothing: begin anew with [`messages`].
pub fn append(messages: &mut Vec<Value>, entry: &Entry) {
    match entry {
        Entry::User { content } => say(messages, "user", content),
        Entry::System { content } => say(messages, "system", content),
        Entry::Assistant { content, .. } => {
            let content: Vec<&Value> = content.iter().filter(|block| !is_empty_text(block)).collect();
            if !content.is_empty() {
                messages.push(json!({"role": "assistant", "content": content}));
            }
        }
        Entry::ToolResult { tool_use_id, content, is_error } => {
            let mut result = json!({"type": "tool_result", "tool_use_id": tool_use_id, "content": content});
            if *is_error && let Some(result) = result.as_object_mut() {
                result.insert("is_error".to_owned(), true.into());
            }
            say(messages, "user", &[result]);
        }
        Entry::Summary { .. } => {}
    }
}

/// Whether each use of a tool is answered by the message behind it, once, and nothing else is.
///
/// # Errors
/// See [`Unpaired`].
pub fn pairs(messages: &[Value]) -> Result<(), Unpaired> {
    let ids = |message: Option<&Value>, kind: &str, name: &str| -> Vec<String> {
        let blocks = message.and_then(|message| message["content"].as_array()).into_iter().flatten();
        let of_kind = blocks.filter(|block| block["type"] == kind);
        let mut ids: Vec<_> = of_kind.filter_map(|block| block[name].as_str().map(str::to_owned)).collect();
        ids.sort_unstable();
        ids
    };
    for at in 0..=messages.len() {
        let used = at.checked_sub(1).map(|before| ids(messages.get(before), "tool_use", "id")).unwrap_or_default();
        let answered = ids(messages.get(at), "tool_result", "tool_use_id");
        if used != answered {
            let odd = used.iter().chain(&answered).find(|id| !(used.contains(id) && answered.contains(id)));
            return Err(Unpaired(odd.cloned().unwrap_or_else(|| "the same id twice".to_owned())));
        }
    }
    Ok(())
}

/// Turns a request into one for a summary of its conversation. What came before stays as it is, so that the endpoint's
/// cache of it serves once more.
pub fn for_summary(mut request: ModelRequest) -> ModelRequest {
    say(&mut request.messages, "user", &[json!({"type": "text", "text": SUMMARY_WANTED})]);
    request
}

/// Adds blocks in this role: to the last message if it has the same, since two in a row are one to the model.
fn say(messages: &mut Vec<Value>, role: &str, blocks: &[ContentBlock]) {
    let blocks = blocks.iter().filter(|block| !is_empty_text(block)).cloned();
    if let Some(last) = messages.last_mut().filter(|last| last["role"] == role)
        && let Some(content) = last["content"].as_array_mut()
    {
        content.extend(blocks);
        return;
    }
    let content: Vec<Value> = blocks.collect();
    if !content.is_empty() {
        messages.push(json!({"role": role, "content": content}));
    }
}

/// Endpoints refuse texts without a character.
fn is_empty_text(block: &Value) -> bool {
    block["type"] == "text" && block["text"].as_str().is_none_or(str::is_empty)
}

#[cfg(test)]
mod tests;
