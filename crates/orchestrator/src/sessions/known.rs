//! Answers of clients that are given again.

use sortie_api::{Event, EventBody};
use sortie_ids::EventId;

use super::Refusal;
use crate::machine::is_closing;

/// What becomes of an answer to a tool use that does not wait for it. `before` are the answers and words that it has got.
pub(super) fn echo(body: &EventBody, tool_use: &EventId, before: &[Event]) -> Result<Event, Refusal> {
    if let Some(same) = before.iter().find(|event| event.body == *body) {
        return Ok(same.clone());
    }
    if before.iter().any(|event| is_closing(&event.body)) {
        // Not a conflict: workers try those again.
        return Err(Refusal::Invalid(format!(
            "{tool_use} was ended by the session itself, and takes no answer any more"
        )));
    }
    let is_word = |body: &EventBody| matches!(body, EventBody::UserToolConfirmation { .. });
    match before.iter().find(|event| is_word(&event.body) == is_word(body)).or(before.last()) {
        Some(other) if is_word(body) || !is_word(&other.body) || denies(&other.body) => {
            Err(Refusal::Conflict(format!("{tool_use} was answered before, with other words, by {}", other.id)))
        }
        _ => Err(Refusal::Invalid(format!("the session has no tool use {tool_use} that waits for a {}", body.kind()))),
    }
}

fn denies(body: &EventBody) -> bool {
    matches!(body, EventBody::UserToolConfirmation { result: sortie_api::Verdict::Deny, .. })
}
