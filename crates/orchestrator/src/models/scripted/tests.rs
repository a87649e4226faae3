use sortie_api::Model;
use tokio::sync::mpsc;

use super::*;
use crate::model::Source;

const DOCUMENT: &str = include_str!("../../../../../docs/scripted-model.md");

fn model(name: &str) -> Model {
    Model { id: name.to_owned(), settings: Map::new() }
}

fn request(messages: Vec<Value>) -> ModelRequest {
    let source = Source {
        session: "sesn_1".parse().expect("id"),
        agent: "agent_1".parse().expect("id"),
        environment: "env_1".parse().expect("id"),
    };
    let tools = vec![json!({"name": "bash"}), json!({"name": "read"})];
    ModelRequest { model: model("scripted"), system: None, messages, tools, max_tokens: 1000, source }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": [{"type": "text", "text": text}]})
}

/// What a request was answered, as the document writes it, with the answer.
async fn played(scripted: &(Scripted, Faults), request: &ModelRequest) -> (Vec<String>, Option<ModelAnswer>) {
    let (deltas, mut received) = mpsc::unbounded_channel();
    let day = Duration::from_secs(86_400);
    let outcome = tokio::time::timeout(day, scripted.0.ask(&scripted.1, request, &deltas)).await;
    drop(deltas);
    let mut lines = Vec::new();
    while let Some(delta) = received.recv().await {
        lines.push(match delta {
            Delta::Thinking => "thinks".to_owned(),
            Delta::Text { text, .. } => format!("says {text:?}"),
        });
    }
    let answer = match outcome {
        Err(_) => {
            lines.push("never ends".to_owned());
            None
        }
        Ok(Err(error)) => {
            let again = match (error.retryable, error.retry_after) {
                (false, _) => String::new(),
                (true, None) => "; again".to_owned(),
                (true, Some(after)) => format!("; again in {} s", after.as_secs()),
            };
            lines.push(format!("fails with {}: {error}{again}", error.kind));
            None
        }
        Ok(Ok(answer)) => {
            for used in answer.content.iter().filter(|block| block["type"] == "tool_use") {
                lines.push(format!("uses {} {}", used["name"].as_str().expect("name"), sorted(&used["input"])));
            }
            lines.push(format!("ends with {}", answer.stop_reason));
            Some(answer)
        }
    };
    (lines, answer)
}

/// What a whole script does in a conversation whose tools answer and whose user goes on.
/// An object with its members by name, whatever order they are kept in.
fn sorted(input: &Value) -> String {
    let members: std::collections::BTreeMap<_, _> = input.as_object().expect("an object").iter().collect();
    serde_json::to_string(&members).expect("json")
}

async fn performed(script: &str) -> Vec<String> {
    let scripted = <(Scripted, Faults)>::default();
    let mut request = request(vec![user(script)]);
    let mut all = Vec::new();
    loop {
        let (lines, answer) = played(&scripted, &request).await;
        let Some(answer) = answer else {
            all.extend(lines);
            continue;
        };
        if answer.content.iter().any(|block| block["text"] == AT_THE_END) {
            return all;
        }
        all.extend(lines);
        let uses = answer.content.iter().filter(|block| block["type"] == "tool_use");
        let results: Vec<Value> = uses
            .map(|used| {
                let text = format!("the result of {}", used["name"].as_str().expect("name"));
                json!({"type": "tool_result", "tool_use_id": used["id"], "content": [{"type": "text", "text": text}]})
            })
            .collect();
        request.messages.push(json!({"role": "assistant", "content": answer.content}));
        request.messages.push(match results.is_empty() {
            true => user("go on"),
            false => json!({"role": "user", "content": results}),
        });
        crate::prompt::pairs(&request.messages).expect("what endpoints take");
    }
}

#[tokio::test(start_paused = true)]
async fn the_documents_examples_do_what_it_says() {
    let examples = DOCUMENT.split_once("## Examples").expect("examples").1;
    let mut fences = examples.split("```json\n").skip(1);
    let mut count = 0;
    while let Some((script, rest)) = fences.next().and_then(|rest| rest.split_once("```")) {
        let said = rest.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("what it does");
        assert_eq!(performed(script).await, said.lines().collect::<Vec<_>>(), "{script}");
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test(start_paused = true)]
async fn time_passes_as_the_script_says() {
    let began = tokio::time::Instant::now();
    performed(r#"{"script": [{"wait_ms": 1000, "text": ["a", "b", "c"], "pace_ms": 10}]}"#).await;
    assert_eq!(began.elapsed(), Duration::from_millis(1020));
}

#[tokio::test(start_paused = true)]
async fn the_newest_script_counts_then_the_prompt_then_the_file() {
    let said = async |scripted: &(Scripted, Faults), request: &ModelRequest| {
        let answer = played(scripted, request).await.1.expect("answer");
        answer.content[0]["text"].as_str().expect("text").to_owned()
    };
    let scripts = [("", "filed"), ("other", "filed elsewhere")]
        .map(|(name, text)| (name.to_owned(), Arc::from(json!({"script": [{"text": text}]}).to_string())));
    let with = (Scripted::new(scripts.into()), Faults::default());
    let without = Default::default();
    let mut request = request(vec![user("hello")]);
    assert_eq!(said(&without, &request).await, NO_SCRIPT);
    assert_eq!(said(&with, &request).await, "filed");
    request.model = model("scripted-other");
    assert_eq!(said(&with, &request).await, "filed elsewhere");
    request.system =
        Some(r#"Be kind. {"script": [{"text": "prompted"}, {"text": "{{message}} {{tools}} {{x}} {{"}]}"#.into());
    assert_eq!(said(&with, &request).await, "prompted");
    request.messages.push(json!({"role": "assistant", "content": [{"type": "text", "text": "prompted"}]}));
    request.messages.push(user("go on"));
    assert_eq!(said(&with, &request).await, "go on bash read {{x}} {{");
    request.messages.push(json!({"role": "assistant", "content": "x"}));
    request.messages.push(json!({"role": "user", "content": r#"{"script": [{"text": "said"}]}"#}));
    assert_eq!(said(&with, &request).await, "said");

    let with = with.0;
    assert!(with.plays("scripted") && with.plays("scripted-other") && !with.plays("scripted-nosuch"));
    assert!(!with.plays("scripted-") && !with.plays("scriptedx") && !with.plays("claude"));
}

#[tokio::test(start_paused = true)]
async fn ids_and_usage_follow_from_the_conversation() {
    let scripted = <(Scripted, Faults)>::default();
    let tools = r#"{"script": [{"tools": [{"name": "a"}, {"name": "a"}, {"name": "b", "id": "toolu_mine"}],
                    "usage": {"input_tokens": 7, "output_tokens": 8}}, {"tools": [{"name": "a"}]}]}"#;
    let mut request = request(vec![user(tools)]);
    let first = played(&scripted, &request).await.1.expect("answer");
    let ids: Vec<&str> = first.content.iter().filter_map(|block| block["id"].as_str()).collect();
    assert_eq!((ids.len(), ids[2]), (3, "toolu_mine"));
    assert_ne!(ids[0], ids[1]);
    assert_eq!((first.usage.input_tokens, first.usage.output_tokens), (7, 8));
    assert_eq!(played(&scripted, &request).await.1.expect("answer"), first, "the same again");
    request.messages.push(json!({"role": "assistant", "content": first.content}));
    let second = played(&scripted, &request).await.1.expect("answer");
    assert!(!ids.contains(&second.content[0]["id"].as_str().expect("id")));
    assert!(second.usage.input_tokens > 50 && second.usage.output_tokens > 5, "{:?}", second.usage);
}

#[tokio::test(start_paused = true)]
async fn a_script_that_cannot_be_read_is_an_error_that_says_why() {
    let request = request(vec![user(r#"{"script": [{"say": "a"}]}"#)]);
    let (lines, _) = played(&Default::default(), &request).await;
    let said = "fails with model_request_failed_error: the scripted model cannot read its script: unknown field `say`";
    assert!(lines[0].starts_with(said), "{lines:?}");
}
