//! Scripts of the scripted model: what they may say, and where in one a conversation is. Pure.

use serde::Deserialize;
use serde_json::{Map, Value};
use sortie_api::ModelUsage;

/// The longest wait, in milliseconds: ten minutes.
const MAX_WAIT: u64 = 600_000;
/// How often a step may be repeated.
const MAX_REPEAT: u32 = 1_000_000;

/// What the model does, one step for each request.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Script {
    /// The steps.
    pub(super) script: Vec<Step>,
}

/// What the model does with one request.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Step {
    /// What it says: one text, or pieces that are streamed one after the other.
    pub(super) text: Option<Text>,
    /// What it thinks before.
    pub(super) thinking: Option<String>,
    /// What it uses afterwards.
    pub(super) tools: Vec<Use>,
    /// In place of these: the blocks of the answer as the Messages API has them.
    pub(super) content: Option<Vec<Map<String, Value>>>,
    /// Milliseconds until the first piece.
    pub(super) wait_ms: u64,
    /// Milliseconds between pieces.
    pub(super) pace_ms: u64,
    /// Why it ends; by default `tool_use` or `end_turn`.
    pub(super) stop_reason: Option<String>,
    /// More on that.
    pub(super) stop_details: Option<Value>,
    /// What it has used; by default a token for four bytes.
    pub(super) usage: Option<ModelUsage>,
    /// It fails, after what it has said.
    pub(super) error: Option<Fault>,
    /// Of an error: one sentence.
    pub(super) message: Option<String>,
    /// Of an error: whether another try may help; by default as with a real one.
    pub(super) retryable: Option<bool>,
    /// Of an error: seconds to wait before another try.
    pub(super) retry_after: Option<f64>,
    /// The connection ends in the midst of the answer.
    pub(super) cut: bool,
    /// The answer never ends.
    pub(super) hang: bool,
    /// How often, one after the other; by default once.
    pub(super) repeat: Option<u32>,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Text {
    Whole(String),
    Pieces(Vec<String>),
}

/// A use of a tool.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Use {
    /// The tool: as the model is told it, or with `server` as the MCP server calls it.
    pub(super) name: String,
    /// The MCP server.
    #[serde(default)]
    pub(super) server: Option<String>,
    /// What it is given.
    #[serde(default)]
    pub(super) input: Map<String, Value>,
    /// The id of the use; made up by default.
    #[serde(default)]
    pub(super) id: Option<String>,
}

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fault {
    Overloaded,
    RateLimited,
    RequestFailed,
    Billing,
    TooLong,
}

impl Text {
    pub(super) fn pieces(&self) -> &[String] {
        match self {
            Self::Whole(text) => std::slice::from_ref(text),
            Self::Pieces(pieces) => pieces,
        }
    }
}

impl Step {
    /// Whether a request that it is played to gets no answer.
    fn fails(&self) -> bool {
        self.error.is_some() || self.cut || self.hang
    }

    fn times(&self) -> u64 {
        self.repeat.unwrap_or(1).into()
    }

    fn check(&self) -> Result<(), &'static str> {
        let ways = [self.error.is_some(), self.cut, self.hang];
        if ways.iter().filter(|way| **way).count() > 1 {
            return Err("it has more than one of error, cut and hang");
        }
        if self.fails() && (self.stop_reason.is_some() || self.usage.is_some() || !self.tools.is_empty()) {
            return Err("a step with error, cut or hang has no answer, and so no tools, usage or stop_reason");
        }
        if self.error.is_none() && (self.message.is_some() || self.retryable.is_some() || self.retry_after.is_some()) {
            return Err("message, retryable and retry_after belong to an error");
        }
        if self.content.is_some() && (self.text.is_some() || self.thinking.is_some() || !self.tools.is_empty()) {
            return Err("content stands in place of text, thinking and tools");
        }
        if self.wait_ms > MAX_WAIT || self.pace_ms > MAX_WAIT {
            return Err("wait_ms and pace_ms are at most 600000");
        }
        if !(1..=MAX_REPEAT).contains(&self.repeat.unwrap_or(1)) {
            return Err("repeat is 1 to 1000000");
        }
        if self.retry_after.is_some_and(|seconds| !(0.0..=600.0).contains(&seconds)) {
            return Err("retry_after is 0 to 600 seconds");
        }
        Ok(())
    }
}

impl Script {
    /// Reads the script that this text begins with.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Self>();
        let script = values.next().unwrap_or_else(|| serde_json::from_str(text)).map_err(|error| error.to_string())?;
        for (number, step) in script.script.iter().enumerate() {
            step.check().map_err(|why| format!("step {number}: {why}"))?;
        }
        Ok(script)
    }

    /// The step to be played when this many requests were answered, and since the last of them this many were not. None
    /// at the end.
    pub(super) fn step(&self, answered: u64, failed: u64) -> Option<&Step> {
        let (mut answered, mut failed) = (answered, failed);
        for step in &self.script {
            let skipped = match (step.fails(), answered) {
                // Faults before an answer that was given have been played.
                (true, 1..) => step.times(),
                (true, 0) => failed.min(step.times()),
                (false, _) => answered.min(step.times()),
            };
            if skipped < step.times() {
                return Some(step);
            }
            if step.fails() {
                failed -= if answered == 0 { skipped } else { 0 };
            } else {
                answered -= skipped;
            }
        }
        None
    }

    /// Whether a request that this step is played to has to be remembered, since the conversation does not show it.
    pub(super) fn is_fault(step: &Step) -> bool {
        step.fails()
    }
}

/// The script in this text, from where it begins.
pub(super) fn within(text: &str) -> Option<&str> {
    let mut from = 0;
    while let Some(found) = text.get(from..)?.find('{') {
        let at = from + found;
        let inside = text.get(at + 1..)?.trim_ascii_start();
        if inside.strip_prefix("\"script\"").is_some_and(|rest| rest.trim_ascii_start().starts_with(':')) {
            return text.get(at..);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Script {
        Script::parse(text).expect(text)
    }

    fn said(script: &Script, answered: u64, failed: u64) -> Option<&str> {
        match &script.step(answered, failed)?.text {
            Some(Text::Whole(text)) => Some(text),
            _ => Some("-"),
        }
    }

    #[test]
    fn scripts_are_found_in_what_is_said() {
        assert_eq!(within("no script"), None);
        assert_eq!(within("{\"scripts\": []}"), None);
        assert_eq!(within("Play {} this: { \"script\" : [] } and no more"), Some("{ \"script\" : [] } and no more"));
        assert_eq!(script("{\"script\": []} and no more").script, vec![]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            (r#"{"script": [{"txt": "a"}]}"#, "unknown field `txt`"),
            (r#"{"script": [{"text": "a"}, {"cut": true, "hang": true}]}"#, "step 1: it has more than one"),
            (r#"{"script": [{"error": "overloaded", "tools": [{"name": "bash"}]}]}"#, "no tools"),
            (r#"{"script": [{"retry_after": 1}]}"#, "belong to an error"),
            (r#"{"script": [{"content": [], "text": "a"}]}"#, "in place of"),
            (r#"{"script": [{"wait_ms": 600001}]}"#, "at most 600000"),
            (r#"{"script": [{"repeat": 0}]}"#, "repeat is"),
            (r#"{"script": [{"error": "no_such"}]}"#, "unknown variant `no_such`"),
            (r#"{"script": [{"error": "billing", "retry_after": -1}]}"#, "0 to 600"),
            (r#"{"script": ["#, "EOF"),
            (r#"{"script": [], "more": 1}"#, "unknown field `more`"),
        ] {
            let error = Script::parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn steps_go_on_with_answers_and_faults() {
        let text = r#"{"script": [{"text": "a"}, {"error": "overloaded", "repeat": 2}, {"text": "b", "repeat": 2},
            {"cut": true}]}"#;
        let script = script(text);
        assert_eq!(said(&script, 0, 0), Some("a"));
        // A failure that was none of the script's changes nothing.
        assert_eq!(said(&script, 0, 7), Some("a"));
        assert_eq!([0, 1, 2, 3].map(|failed| said(&script, 1, failed)), [Some("-"), Some("-"), Some("b"), Some("b")]);
        // Faults before an answer that was given are over.
        assert_eq!(said(&script, 2, 0), Some("b"));
        assert_eq!([0, 1].map(|failed| said(&script, 3, failed)), [Some("-"), None]);
        // Whoever was answered at the end is not failed afterwards.
        assert_eq!(said(&script, 9, 0), None);
    }
}
