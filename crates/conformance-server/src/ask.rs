//! What is asked of a client by a result (`input_required`), over as many rounds as it takes. Nothing is remembered
//! between rounds: what a later one needs is in the state, which is sealed for one tool.

use rmcp::ErrorData;
use rmcp::model::{
    ClientCapabilities, InputRequest, InputRequests, InputRequiredResult, InputResponses, JsonObject,
    RequestStateCodec, SealOptions,
};
use serde_json::{Value, json};

/// A request as one round sees it.
#[derive(Debug)]
pub(crate) struct Round<'r> {
    /// The tool or prompt.
    pub(crate) name: &'r str,
    /// What the client answered; empty in the first round.
    pub(crate) responses: InputResponses,
    /// The state that the client brought back.
    pub(crate) state: Option<String>,
    /// What the client says that it can do.
    pub(crate) capabilities: ClientCapabilities,
    /// Seals states.
    pub(crate) seals: &'r RequestStateCodec,
}

/// How a round ends.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The answer's text.
    Text(String),
    /// Another question.
    Ask(InputRequiredResult),
}

type Asked = Result<Outcome, ErrorData>;

impl Round<'_> {
    /// Plays the round of a tool that asks; `None` for other tools.
    pub(crate) fn tool(&self) -> Option<Asked> {
        Some(match self.name.strip_prefix("test_input_required_result_").unwrap_or(self.name) {
            "elicitation" | "test_streaming_elicitation" => self.greeting(),
            "sampling" => self.capital(),
            "list_roots" => self.roots(),
            "request_state" | "tampered_state" => self.with_state(),
            "multiple_inputs" => self.three_at_once(),
            "multi_round" => self.two_rounds(),
            "capabilities" => self.what_it_can(),
            _ => return None,
        })
    }

    /// Asks for a text in this field of a form, until there is one.
    pub(crate) fn text_of(&self, key: &str, message: &str, field: &str) -> Asked {
        match self.accepted(key).and_then(|form| form.get(field)?.as_str()) {
            Some(text) => Ok(Outcome::Text(text.to_owned())),
            None => self.ask(json!({ key: form(message, field, "string") }), None),
        }
    }

    fn greeting(&self) -> Asked {
        match self.text_of("user_name", "What is your name?", "name")? {
            Outcome::Text(name) => Ok(Outcome::Text(format!("Hello, {name}!"))),
            ask => Ok(ask),
        }
    }

    fn capital(&self) -> Asked {
        match self.responses.get("capital_question").and_then(|thought| thought.pointer("/content/text")?.as_str()) {
            Some(thought) => Ok(Outcome::Text(thought.to_owned())),
            None => self.ask(json!({ "capital_question": prompt("What is the capital of France?") }), None),
        }
    }

    fn roots(&self) -> Asked {
        match self.responses.get("client_roots").and_then(|answer| answer.get("roots")) {
            Some(roots) => Ok(Outcome::Text(format!("Roots: {roots}"))),
            None => self.ask(json!({ "client_roots": { "method": "roots/list", "params": {} } }), None),
        }
    }

    fn with_state(&self) -> Asked {
        if self.opened()?.is_some() && self.accepted("confirm").is_some() {
            return Ok(Outcome::Text("state-ok".to_owned()));
        }
        self.ask(json!({ "confirm": form("Please confirm", "ok", "boolean") }), Some(&json!("asked")))
    }

    fn three_at_once(&self) -> Asked {
        let keys = ["user_name", "greeting", "client_roots"];
        if self.opened()?.is_some() && keys.iter().all(|key| self.responses.contains_key(*key)) {
            return Ok(Outcome::Text("all three".to_owned()));
        }
        let [name, greeting, roots] = keys;
        let requests = json!({
            name: form("What is your name?", "name", "string"),
            greeting: prompt("Generate a greeting"),
            roots: { "method": "roots/list", "params": {} },
        });
        self.ask(requests, Some(&json!("asked")))
    }

    fn two_rounds(&self) -> Asked {
        let state = self.opened()?;
        if let (Some(Value::String(name)), Some(form)) = (&state, self.accepted("step2")) {
            return Ok(Outcome::Text(format!("{name} likes {}", form.get("color").unwrap_or(&Value::Null))));
        }
        if let (Some(_), Some(name)) = (&state, self.accepted("step1").and_then(|form| form.get("name"))) {
            let second = json!({ "step2": form("Step 2: What is your favorite color?", "color", "string") });
            return self.ask(second, Some(name));
        }
        let first = json!({ "step1": form("Step 1: What is your name?", "name", "string") });
        self.ask(first, Some(&Value::Null))
    }

    fn what_it_can(&self) -> Asked {
        if !self.responses.is_empty() {
            return Ok(Outcome::Text("thank you".to_owned()));
        }
        let mut requests = JsonObject::new();
        if self.capabilities.sampling.is_some() {
            requests.insert("thought".to_owned(), prompt("Say something"));
        }
        if self.capabilities.elicitation.is_some() {
            requests.insert("word".to_owned(), form("Say something", "word", "string"));
        }
        if requests.is_empty() {
            requests.insert("thought".to_owned(), prompt("Say something"));
        }
        self.ask(Value::Object(requests), None)
    }

    /// Asks, unless the client did not say that it can do what is asked.
    fn ask(&self, requests: Value, state: Option<&Value>) -> Asked {
        let requests: InputRequests = serde_json::from_value(requests).expect("questions of ours are well-formed");
        let mut missing = ClientCapabilities::default();
        for request in requests.values() {
            match request {
                InputRequest::CreateMessage(_) if self.capabilities.sampling.is_none() => {
                    missing.sampling = Some(Default::default());
                }
                InputRequest::Elicitation(_) if self.capabilities.elicitation.is_none() => {
                    missing.elicitation = Some(Default::default());
                }
                InputRequest::ListRoots(_) if self.capabilities.roots.is_none() => {
                    missing.roots = Some(Default::default());
                }
                _ => {}
            }
        }
        if missing != ClientCapabilities::default() {
            return Err(ErrorData::missing_required_client_capability(missing));
        }
        let state = state.map(|state| {
            let options = SealOptions::new().associated_data(self.name.as_bytes());
            self.seals.seal_json_with(state, &options).expect("a JSON value can be written as JSON")
        });
        Ok(Outcome::Ask(InputRequiredResult::new(Some(requests), state)))
    }

    /// The state that the client brought back, if any; an error when it is not one that was sealed for this tool.
    fn opened(&self) -> Result<Option<Value>, ErrorData> {
        let opened = self.state.as_deref().map(|state| self.seals.open_json_with(state, self.name.as_bytes()));
        opened.transpose().map_err(|error| ErrorData::invalid_params(format!("requestState: {error}"), None))
    }

    /// The form under this key, if the user filled it in.
    fn accepted(&self, key: &str) -> Option<&JsonObject> {
        let response = self.responses.get(key)?;
        response.get("content")?.as_object().filter(|_| response.get("action") == Some(&json!("accept")))
    }
}

/// A question to the user with one field.
pub(crate) fn form(message: &str, field: &str, kind: &str) -> Value {
    json!({
        "method": "elicitation/create",
        "params": {
            "mode": "form",
            "message": message,
            "requestedSchema": { "type": "object", "properties": { field: { "type": kind } }, "required": [field] },
        },
    })
}

/// A question to the client's model.
fn prompt(text: &str) -> Value {
    json!({
        "method": "sampling/createMessage",
        "params": {
            "messages": [{ "role": "user", "content": { "type": "text", "text": text } }],
            "maxTokens": 100,
        },
    })
}
