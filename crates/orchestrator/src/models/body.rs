//! The body of a request in the form of the Messages API. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::config::Upstream;
use crate::model::ModelRequest;

/// What `speed` needs on some models.
pub(super) const FAST: &str = "fast-mode-2026-02-01";
/// Messages of the user at the end that an endpoint is told to keep in its cache: the newest, and the one before it, under
/// which it finds what it kept the last time.
const KEPT_MESSAGES: usize = 2;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<[Value; 1]>,
    messages: Vec<Cow<'a, Value>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Cow<'a, Value>>,
    #[serde(flatten)]
    more: BTreeMap<&'a str, Cow<'a, Value>>,
}

/// The name of a model at an upstream.
pub(super) fn name_at(upstream: &Upstream, model: &str) -> String {
    upstream.model.replacen('*', model, 1)
}

/// Whether the agent wants to be answered at the higher price.
pub(super) fn is_fast(request: &ModelRequest) -> bool {
    request.model.settings.get("speed").is_some_and(|speed| speed == "fast")
}

/// The body of a request to an upstream, as JSON. The same conversation begins with the same bytes each time.
///
/// # Errors
/// Those of writing JSON, which there are none of.
pub(super) fn body(request: &ModelRequest, upstream: &Upstream) -> serde_json::Result<Vec<u8>> {
    let keep = upstream.prompt_caching;
    let mut messages: Vec<Cow<'_, Value>> = request.messages.iter().map(Cow::Borrowed).collect();
    let mut tools: Vec<Cow<'_, Value>> = request.tools.iter().map(Cow::Borrowed).collect();
    let system = request.system.as_ref().map(|text| [kept(json!({"type": "text", "text": text}), keep)]);
    if keep {
        // Tools come before the prompt: what is kept of that holds them, too.
        if let (None, Some(last)) = (&system, tools.last_mut()) {
            *last = Cow::Owned(kept(last.clone().into_owned(), true));
        }
        let users = messages.iter_mut().rev().filter(|message| message["role"] == "user");
        for message in users.take(KEPT_MESSAGES) {
            let content = message.to_mut().get_mut("content").and_then(Value::as_array_mut);
            if let Some(block) = content.and_then(|blocks| blocks.last_mut()) {
                *block = kept(block.take(), true);
            }
        }
    }
    let name = name_at(upstream, &request.model.id);
    let max_tokens = request.max_tokens.min(upstream.limits.max_tokens);
    let mut more = settings(&request.model.settings);
    more.extend(upstream.body.iter().map(|(name, value)| (name.as_str(), Cow::Borrowed(value))));
    more.retain(|name, _| !upstream.omit.iter().any(|omitted| omitted == name));
    if upstream.omit.iter().any(|omitted| omitted == "tools") {
        tools.clear();
    }
    serde_json::to_vec(&Body { model: &name, max_tokens, stream: true, system, messages, tools, more })
}

/// What an agent says about its model, as members of a request.
fn settings(settings: &Map<String, Value>) -> BTreeMap<&str, Cow<'_, Value>> {
    let mut members = BTreeMap::new();
    let effort = settings.get("effort").map(|effort| effort.get("type").unwrap_or(effort));
    if let Some(effort) = effort.filter(|effort| effort.is_string()) {
        members.insert("output_config", Cow::Owned(json!({"effort": effort})));
    }
    if let Some(speed) = settings.get("speed").filter(|speed| *speed == "fast") {
        members.insert("speed", Cow::Borrowed(speed));
    }
    if let Some(place) = settings.get("inference_geo").filter(|place| place.is_string()) {
        members.insert("inference_geo", Cow::Borrowed(place));
    }
    members
}

/// A block or tool up to which the endpoint is to keep what it has read.
fn kept(mut block: Value, keep: bool) -> Value {
    if let (true, Some(block)) = (keep, block.as_object_mut()) {
        block.insert("cache_control".to_owned(), json!({"type": "ephemeral"}));
    }
    block
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sortie_api::Model;

    use super::*;
    use crate::model::Source;
    use crate::models::ModelsConfig;

    fn upstream(more: &str) -> Upstream {
        let text = format!("[[upstreams]]\nname = \"a\"\nmatch = [\"*\"]\nbase_url = \"http://127.0.0.1:1\"\n{more}");
        ModelsConfig::parse(&text, Path::new("models.toml")).expect("settings").upstreams.remove(0)
    }

    fn request(messages: usize) -> ModelRequest {
        let message = |number: usize| {
            let role = if number.is_multiple_of(2) { "user" } else { "assistant" };
            json!({"role": role, "content": [{"type": "text", "text": "x"}, {"type": "text", "text": number.to_string()}]})
        };
        let settings = json!({"effort": {"type": "high"}, "speed": "standard"});
        ModelRequest {
            model: Model { id: "m-1".into(), settings: settings.as_object().cloned().expect("object") },
            system: Some("Be brief.".into()),
            messages: (0..messages).map(message).collect(),
            tools: vec![json!({"name": "a"}), json!({"name": "b"})],
            max_tokens: 64_000,
            source: Source {
                session: "sesn_1".parse().expect("id"),
                agent: "agent_1".parse().expect("id"),
                environment: "env_1".parse().expect("id"),
            },
        }
    }

    fn written(request: &ModelRequest, upstream: &Upstream) -> Value {
        serde_json::from_slice(&body(request, upstream).expect("json")).expect("json")
    }

    fn without_marks(mut value: Value) -> Value {
        match &mut value {
            Value::Object(all) => {
                all.remove("cache_control");
                all.values_mut().for_each(|value| *value = without_marks(value.take()));
            }
            Value::Array(all) => all.iter_mut().for_each(|value| *value = without_marks(value.take())),
            _ => {}
        }
        value
    }

    #[test]
    fn what_stays_is_marked_to_be_kept() {
        let mark = json!({"type": "ephemeral"});
        let body = written(&request(5), &upstream(""));
        assert_eq!(body["system"][0]["cache_control"], mark);
        let marked: Vec<bool> = (0..5).map(|n| body["messages"][n]["content"][1]["cache_control"] == mark).collect();
        assert_eq!(marked, [false, false, true, false, true]);
        assert_eq!(body.to_string().matches("cache_control").count(), 3, "endpoints take four at most");
        let mut bare = request(1);
        bare.system = None;
        assert_eq!(written(&bare, &upstream(""))["tools"][1]["cache_control"], mark);

        let plain = written(&request(5), &upstream("prompt_caching = false"));
        assert_eq!(plain, without_marks(body));
    }

    #[test]
    fn a_longer_conversation_begins_as_the_shorter_one() {
        let body = |messages| without_marks(written(&request(messages), &upstream("")));
        let (shorter, longer) = (body(7), body(9));
        let (shorter, longer) = (&shorter["messages"], &longer["messages"]);
        assert_eq!(shorter.as_array().expect("messages")[..], longer.as_array().expect("messages")[..7]);
    }

    #[test]
    fn settings_become_members() {
        let body = written(&request(1), &upstream("model = \"vendor.*-v1\"\nmax_tokens = 9"));
        assert_eq!((&body["model"], &body["max_tokens"]), (&json!("vendor.m-1-v1"), &json!(9)));
        assert_eq!((&body["stream"], &body["output_config"]), (&json!(true), &json!({"effort": "high"})));
        assert!(body.get("speed").is_none());
        let mut fast = request(1);
        fast.model.settings.insert("speed".into(), "fast".into());
        fast.model.settings.insert("effort".into(), "low".into());
        let body = written(&fast, &upstream("body = { thinking = { type = \"adaptive\" } }"));
        assert_eq!((&body["speed"], &body["output_config"]["effort"]), (&json!("fast"), &json!("low")));
        assert_eq!(body["thinking"], json!({"type": "adaptive"}));
        let body = written(&fast, &upstream("omit = [\"output_config\", \"speed\", \"tools\"]"));
        let mut members: Vec<&str> = body.as_object().expect("object").keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["max_tokens", "messages", "model", "stream", "system"]);
    }
}
