use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Map;
use sortie_api::PermissionPolicy;

use super::*;
use crate::mcp::McpTool;
use crate::transcript::ToolName;

fn agent(tools: Value) -> SessionAgent {
    serde_json::from_value(json!({
        "type": "agent", "id": "agent_1", "version": 1, "name": "a", "description": null, "system": "Be brief.",
        "model": {"id": "scripted"}, "tools": tools, "mcp_servers": [], "skills": [], "multiagent": null,
    }))
    .expect("agent")
}

fn listed(names: &[&str]) -> Arc<[McpTool]> {
    let tool = |name: &&str| McpTool {
        name: (*name).to_owned(),
        description: Some(format!("about {name}")),
        input_schema: Map::from_iter([("type".to_owned(), "object".into())]),
    };
    names.iter().map(tool).collect()
}

fn config(enabled: bool, policy: &str) -> Value {
    json!({"enabled": enabled, "permission_policy": {"type": policy}})
}

fn named(name: &str, enabled: bool, policy: &str) -> Value {
    let mut config = config(enabled, policy);
    config["name"] = name.into();
    config
}

#[test]
fn models_are_told_what_is_enabled() {
    let agent = agent(json!([
        {"type": "agent_toolset_20260401", "default_config": config(true, "always_allow"),
         "configs": [named("write", false, "always_allow"), named("bash", true, "always_ask")]},
        {"type": "mcp_toolset", "mcp_server_name": "wiki", "default_config": config(false, "always_ask"),
         "configs": [named("search", true, "always_allow"), named("no such", true, "always_allow")]},
        {"type": "mcp_toolset", "mcp_server_name": "down", "default_config": config(true, "always_ask"), "configs": []},
        {"type": "custom", "name": "weather", "description": "d", "input_schema": {"type": "object"}},
    ]));
    let servers = BTreeMap::from([("wiki".to_owned(), listed(&["search", "delete", "search"]))]);
    let toolbox = Toolbox::new(&agent, &servers);
    let names: Vec<&str> = toolbox.tools().iter().filter_map(|tool| tool["name"].as_str()).collect();
    assert_eq!(names, ["bash", "read", "edit", "glob", "grep", "mcp__wiki__search", "weather"]);
    for tool in toolbox.tools() {
        assert_eq!(tool["input_schema"]["type"], "object", "{tool}");
        assert!(tool["description"].as_str().is_some_and(|text| !text.is_empty()), "{tool}");
    }
    let found = |name: &str| toolbox.find(name).map(|tool| (tool.name.clone(), tool.policy));
    let (allow, ask) = (Some(PermissionPolicy::AlwaysAllow), Some(PermissionPolicy::AlwaysAsk));
    assert_eq!(found("bash"), Some((ToolName::Sandbox("bash".into()), ask)));
    let search = ToolName::Mcp { server: "wiki".into(), tool: "search".into() };
    assert_eq!(found("mcp__wiki__search"), Some((search, allow)));
    assert_eq!(found("weather"), Some((ToolName::Custom("weather".into()), None)));
    assert_eq!(found("write"), None);
    let delete = ToolName::Mcp { server: "wiki".into(), tool: "delete".into() };
    assert_eq!((found("mcp__wiki__delete"), Toolbox::guess("mcp__wiki__delete")), (None, delete));
    assert_eq!(Toolbox::guess("write"), ToolName::Sandbox("write".into()));
}

#[test]
fn names_that_do_not_fit_are_told_apart() {
    assert_eq!(mcp_name("wiki", "search_all"), "mcp__wiki__search_all");
    assert_eq!(mcp_name("wiki", "_x"), "mcp__wiki___x");
    let (long, dotted) = ("t".repeat(64), mcp_name("my.wiki", "search.all"));
    assert!(dotted.starts_with("mcp__my-wiki-") && dotted.ends_with("__search_all"), "{dotted}");
    for (one, other) in [(("a__b", "c"), ("a", "b__c")), (("a.b", "c"), ("a_b", "c")), (("a_", "b"), ("a", "_b"))] {
        assert_ne!(mcp_name(one.0, one.1), mcp_name(other.0, other.1));
    }
    assert_ne!(mcp_name("wiki", &long), mcp_name("wiki", &format!("{long}t")));
    assert_ne!(mcp_name("wiki", ""), mcp_name("", "wiki"));
}

fn use_of(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "bash", "input": {}})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn assistant(content: Vec<Value>) -> Entry {
    Entry::Assistant { content, uses: BTreeMap::new() }
}

fn result(id: &str, is_error: bool) -> Entry {
    Entry::ToolResult { tool_use_id: id.to_owned(), content: vec![text("r")], is_error }
}

fn said(message: &str) -> Entry {
    Entry::User { content: vec![text(message)] }
}

#[test]
fn a_transcript_becomes_a_conversation() {
    let entries = [
        said("a"),
        said("b"),
        Entry::System { content: vec![text("s")] },
        assistant(vec![text(""), use_of("1"), use_of("2")]),
        result("2", false),
        result("1", true),
        said("c"),
        assistant(vec![text("")]),
        assistant(vec![text("d")]),
    ];
    let expected = json!([
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "system", "content": [text("s")]},
        {"role": "assistant", "content": [use_of("1"), use_of("2")]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "2", "content": [text("r")]},
            {"type": "tool_result", "tool_use_id": "1", "content": [text("r")], "is_error": true},
            text("c"),
        ]},
        {"role": "assistant", "content": [text("d")]},
    ]);
    assert_eq!(Value::Array(messages(&entries).expect("paired")), expected);
}

#[test]
fn a_summary_stands_for_what_was_before_it() {
    let summary = |text: &str, upto| Entry::Summary { text: text.to_owned(), upto };
    let entries = [said("a"), assistant(vec![text("b")]), summary("one", 2), said("c"), summary("two", 3), said("d")];
    let messages = messages(&entries).expect("paired");
    assert_eq!(messages.len(), 1);
    let content = messages[0]["content"].as_array().expect("blocks");
    let texts: Vec<&str> = content.iter().filter_map(|block| block["text"].as_str()).collect();
    assert!(texts[0].ends_with("it:\n\ntwo") && texts[1..] == ["c", "d"], "{texts:?}");

    let request = request(
        &agent(json!([])),
        &Toolbox::default(),
        messages.clone(),
        &ModelLimits::default(),
        Source {
            session: "sesn_1".parse().expect("id"),
            agent: "agent_1".parse().expect("id"),
            environment: "env_1".parse().expect("id"),
        },
    );
    let asked = for_summary(request);
    assert_eq!(asked.messages.len(), 1, "two messages of a user in a row are one");
    assert_eq!(asked.messages[0]["content"].as_array().map(Vec::len), Some(4));
}

#[test]
fn what_has_no_pair_is_not_sent() {
    for entries in [
        vec![assistant(vec![use_of("1")])],
        vec![assistant(vec![use_of("1")]), said("a")],
        vec![assistant(vec![use_of("1")]), said("a"), assistant(vec![text("b")]), result("1", false)],
        vec![result("1", false)],
        vec![assistant(vec![use_of("1")]), result("2", false)],
        vec![assistant(vec![use_of("1")]), result("1", false), result("1", false)],
        vec![assistant(vec![use_of("1")]), result("1", false), Entry::Summary { text: "s".into(), upto: 1 }],
    ] {
        messages(&entries).expect_err("unpaired");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Said,
    System,
    Answered(Vec<bool>),
    Summarised,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Said),
        Just(Step::System),
        proptest::collection::vec(any::<bool>(), 0..4).prop_map(Step::Answered),
        Just(Step::Summarised),
    ];
    proptest::collection::vec(step, 0..30)
}

/// A transcript as sessions make them.
fn transcript(steps: &[Step]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Said => entries.push(said(&format!("said {number}"))),
            Step::System => entries.push(Entry::System { content: vec![text("s")] }),
            Step::Answered(tools) => {
                let id = |tool: usize| format!("{number}-{tool}");
                let uses = (0..tools.len()).map(|tool| use_of(&id(tool)));
                entries.push(assistant(std::iter::once(text("answer")).chain(uses).collect()));
                entries.extend(tools.iter().enumerate().rev().map(|(tool, error)| result(&id(tool), *error)));
            }
            Step::Summarised => {
                let upto = u64::try_from(entries.len()).expect("length");
                entries.push(Entry::Summary { text: format!("summary {number}"), upto });
            }
        }
    }
    entries
}

proptest! {
    #[test]
    fn every_transcript_is_taken_and_only_grows_at_its_end(steps in steps()) {
        let entries = transcript(&steps);
        let whole = messages(&entries).expect("paired");
        for pair in whole.windows(2) {
            let repeated = pair[0]["role"] == pair[1]["role"] && pair[0]["role"] != "assistant";
            prop_assert!(!repeated, "{pair:?}");
        }
        // Message by message, each is what it was, but for the last one, which may have grown: caches stay good.
        for (number, entry) in entries.iter().enumerate() {
            let Ok(mut before) = messages(&entries[..number]) else { continue };
            if matches!(entry, Entry::Summary { .. }) { continue }
            let old = before.clone();
            append(&mut before, entry);
            let kept = old.len().saturating_sub(1);
            prop_assert_eq!(&old[..kept], &before[..kept]);
            if let Ok(anew) = messages(&entries[..=number]) {
                prop_assert_eq!(anew, before);
            }
        }
        // Without any one result it is not.
        for (number, entry) in entries.iter().enumerate() {
            let replaced = entries.iter().skip(number).any(|later| matches!(later, Entry::Summary { .. }));
            if matches!(entry, Entry::ToolResult { .. }) && !replaced {
                let mut broken = entries.clone();
                broken.remove(number);
                prop_assert!(messages(&broken).is_err());
            }
        }
    }

    #[test]
    fn names_at_the_model_are_allowed_and_lead_back(
        pairs in proptest::collection::btree_set(("[a-c_.\\-]{1,4}|.{1,70}", "[a-c_.\\-]{1,4}|.{1,70}"), 1..20),
    ) {
        let mut seen = BTreeSet::new();
        for (server, tool) in &pairs {
            let name = mcp_name(server, tool);
            prop_assert!(name.len() <= 64 && name.starts_with("mcp__"), "{}", name);
            prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-'), "{}", name);
            prop_assert!(seen.insert(name.clone()), "{} twice", name);
            if name == format!("mcp__{server}__{tool}") {
                prop_assert_eq!(Toolbox::guess(&name), ToolName::Mcp { server: server.clone(), tool: tool.clone() });
            }
        }
    }
}
