//! `sortie sessions`.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sortie_api::{DeletedSession, Session};
use sortie_ids::{EnvironmentId, SessionId, VaultId};

use super::{text, time};
use crate::cli::HubAccess;
use crate::client::Hub;
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

/// Longest line of an event that is printed for people, in characters.
const MAX_LINE: usize = 500;

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// Make a session of an agent. With a message it works at once.
    Create(CreateArgs),
    /// List sessions, newest first.
    List {
        /// Only those of this agent.
        #[arg(long)]
        agent: Option<String>,
        /// Only those that do this: idle, running, rescheduling or terminated; may be repeated.
        #[arg(long)]
        status: Vec<String>,
        /// Archived ones, too.
        #[arg(long)]
        all: bool,
    },
    /// Show a session.
    Get {
        /// The session.
        session: SessionId,
    },
    /// Send a message, or events from a file.
    Send {
        /// The session.
        session: SessionId,
        /// What to say.
        #[arg(required_unless_present = "file")]
        message: Option<String>,
        /// A JSON file with one event or an array of them; `-` for standard input.
        #[arg(long, value_name = "FILE", conflicts_with = "message")]
        file: Option<PathBuf>,
    },
    /// List what happened, in its order.
    Events {
        /// The session.
        session: SessionId,
        /// Only events of this type, such as agent.message; may be repeated.
        #[arg(long = "type", value_name = "TYPE")]
        kinds: Vec<String>,
    },
    /// Print what happens from now on, until the session ends or you press Ctrl-C.
    Stream {
        /// The session.
        session: SessionId,
        /// Messages as they are written, too.
        #[arg(long)]
        deltas: bool,
    },
    /// End the session's turn.
    Interrupt {
        /// The session.
        session: SessionId,
    },
    /// End a session that does not work, for ever; it can still be read.
    Archive {
        /// The session.
        session: SessionId,
    },
    /// Remove a session that does not work, with everything that is known of it.
    Delete {
        /// The session.
        session: SessionId,
    },
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The agent: its id, or id@version.
    #[arg(long, value_name = "AGENT[@VERSION]")]
    agent: String,
    /// Where the tools of the sandbox run.
    #[arg(long, value_name = "ENVIRONMENT")]
    environment: EnvironmentId,
    /// What to call it.
    #[arg(long)]
    title: Option<String>,
    /// Where credentials are looked for; may be repeated, the first one counts most.
    #[arg(long = "vault", value_name = "VAULT")]
    vaults: Vec<VaultId>,
    /// What to say first.
    message: Option<String>,
}

pub(crate) async fn run(command: SessionsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        SessionsCommand::Create(args) => shown(output, &hub.post("/v1/sessions", &args.body()?).await?),
        SessionsCommand::List { agent, status, all } => {
            let mut query = vec![("include_archived".to_owned(), all.to_string())];
            query.extend(agent.map(|agent| ("agent_id".to_owned(), agent)));
            query.extend(status.into_iter().map(|status| ("statuses[]".to_owned(), status)));
            let sessions: Vec<Session> = hub.all(&path("/v1/sessions", &query)).await?;
            output::list(output, &sessions, &["id", "status", "agent", "title", "created", "archived"], |session| {
                vec![
                    session.id.to_string(),
                    session.status.as_str().to_owned(),
                    session.agent.name.clone(),
                    text(session.title.as_ref()),
                    session.created_at.to_string(),
                    time(session.archived_at),
                ]
            })
        }
        SessionsCommand::Get { session } => shown(output, &hub.get(&format!("/v1/sessions/{session}")).await?),
        SessionsCommand::Send { session, message, file } => {
            let events = match (message, file) {
                (Some(message), _) => json!([says(&message)]),
                (None, Some(file)) => events_in(&file)?,
                (None, None) => return Err(Failure::usage("what is to be sent?")),
            };
            send(&hub, output, &session, events).await
        }
        SessionsCommand::Events { session, kinds } => {
            let query: Vec<_> = kinds.into_iter().map(|kind| ("types[]".to_owned(), kind)).collect();
            let events: Vec<Value> = hub.all(&path(&format!("/v1/sessions/{session}/events"), &query)).await?;
            if output == Style::Json {
                return output::json(&json!({"data": events}));
            }
            events.iter().for_each(|event| println!("{}", line(event)));
            Ok(())
        }
        SessionsCommand::Stream { session, deltas } => stream(&hub, output, &session, deltas).await,
        SessionsCommand::Interrupt { session } => {
            send(&hub, output, &session, json!([{"type": "user.interrupt"}])).await
        }
        SessionsCommand::Archive { session } => {
            shown(output, &hub.post(&format!("/v1/sessions/{session}/archive"), &json!({})).await?)
        }
        SessionsCommand::Delete { session } => {
            let deleted: DeletedSession = hub.delete(&format!("/v1/sessions/{session}")).await?;
            output::one(output, &deleted, &[("deleted", deleted.id.to_string())])
        }
    }
}

impl CreateArgs {
    fn body(self) -> Result<Value, Failure> {
        let agent = match self.agent.split_once('@') {
            None => json!(self.agent),
            Some((id, version)) => {
                let version: u32 = version.parse().map_err(Failure::usage)?;
                json!({"type": "agent", "id": id, "version": version})
            }
        };
        let initial: Vec<Value> = self.message.as_deref().map(says).into_iter().collect();
        Ok(json!({
            "agent": agent,
            "environment_id": self.environment,
            "title": self.title,
            "vault_ids": self.vaults,
            "initial_events": initial,
        }))
    }
}

fn says(message: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": message}]})
}

fn events_in(file: &std::path::Path) -> Result<Value, Failure> {
    let read = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let unreadable =
        |error: &dyn std::fmt::Display| Failure::usage(format!("{} cannot be read: {error}", file.display()));
    let value: Value =
        serde_json::from_str(&read.map_err(|error| unreadable(&error))?).map_err(|error| unreadable(&error))?;
    Ok(if value.is_array() { value } else { json!([value]) })
}

async fn send(hub: &Hub, output: Style, session: &SessionId, events: Value) -> Result<(), Failure> {
    let sent: Value = hub.post(&format!("/v1/sessions/{session}/events"), &json!({"events": events})).await?;
    if output == Style::Json {
        return output::json(&sent);
    }
    let events = sent.get("data").and_then(Value::as_array).into_iter().flatten();
    events.for_each(|event| println!("{}", line(event)));
    Ok(())
}

fn path(base: &str, query: &[(String, String)]) -> String {
    let mut written = url::form_urlencoded::Serializer::new(String::new());
    written.extend_pairs(query);
    let query = written.finish();
    if query.is_empty() { base.to_owned() } else { format!("{base}?{query}") }
}

fn shown(output: Style, session: &Session) -> Result<(), Failure> {
    let usage = &session.usage;
    output::one(
        output,
        session,
        &[
            ("id", session.id.to_string()),
            ("status", session.status.as_str().to_owned()),
            ("agent", format!("{} ({}, version {})", session.agent.name, session.agent.id, session.agent.version)),
            ("environment", session.environment_id.to_string()),
            ("title", text(session.title.as_ref())),
            ("tokens", format!("{} in, {} out", usage.input_tokens, usage.output_tokens)),
            ("created", session.created_at.to_string()),
            ("archived", time(session.archived_at)),
        ],
    )
}

/// Prints each event as it comes: a line for people, or a line of JSON.
async fn stream(hub: &Hub, output: Style, session: &SessionId, deltas: bool) -> Result<(), Failure> {
    let query = if deltas { "?event_deltas[]=agent.message&event_deltas[]=agent.thinking" } else { "" };
    let mut answer = hub.stream(&format!("/v1/sessions/{session}/events/stream{query}")).await?;
    let mut rest = Vec::new();
    while let Some(piece) =
        answer.chunk().await.map_err(|error| Failure::failed(format!("the stream broke: {error}")))?
    {
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                print_event(output, data)?;
            }
        }
    }
    Ok(())
}

fn print_event(output: Style, data: &str) -> Result<(), Failure> {
    let event: Value = serde_json::from_str(data).map_err(Failure::failed)?;
    match event.get("type").and_then(Value::as_str) {
        Some("ping") => {}
        Some("error") => {
            let message = event.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason given");
            return Err(Failure::failed(output::printable(message)));
        }
        _ if output == Style::Json => println!("{event}"),
        _ => println!("{}", line(&event)),
    }
    Ok(())
}

/// An event in one line: when, what, and the gist of it.
fn line(event: &Value) -> String {
    let text = |member: &str| event.get(member).and_then(Value::as_str);
    let at = text("processed_at").unwrap_or("-");
    let gist = gist(event);
    let line = format!("{at:<27}  {}  {gist}", text("type").unwrap_or("?"));
    let line = output::printable(&line).replace(['\n', '\t'], " ");
    let line = line.trim_end();
    if line.chars().count() <= MAX_LINE {
        line.to_owned()
    } else {
        line.chars().take(MAX_LINE).chain("...".chars()).collect()
    }
}

fn gist(event: &Value) -> String {
    let at = |pointer: &str| event.pointer(pointer);
    let texts = at("/content").and_then(Value::as_array).into_iter().flatten();
    let said: Vec<&str> = texts.filter_map(|block| block.get("text")?.as_str()).collect();
    let id = |pointer: &str| at(pointer).and_then(Value::as_str).map(str::to_owned);
    let use_of = |name: &str| {
        let input = at("/input").map(Value::to_string).unwrap_or_default();
        format!("{} {name} {input}", id("/id").unwrap_or_default())
    };
    if let Some(name) = id("/name") {
        return use_of(&name);
    }
    if let Some(reason) = at("/stop_reason") {
        let ids = reason.get("event_ids").map(Value::to_string).unwrap_or_default();
        return format!("{} {ids}", reason.get("type").and_then(Value::as_str).unwrap_or_default());
    }
    let named = ["/tool_use_id", "/custom_tool_use_id", "/mcp_tool_use_id", "/result", "/error/message"];
    let mut parts: Vec<String> = named.into_iter().filter_map(id).collect();
    parts.extend(id("/delta/content/text"));
    parts.extend(said.into_iter().map(str::to_owned));
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        for (event, expected) in [
            (
                json!({"type": "user.message", "processed_at": null, "content": [{"type": "text", "text": "a\nb"}]}),
                "user.message  a b",
            ),
            (
                json!({"type": "agent.tool_use", "id": "sevt_1", "name": "bash", "input": {"command": "ls"}}),
                "agent.tool_use  sevt_1 bash {\"command\":\"ls\"}",
            ),
            (
                json!({"type": "session.status_idle", "stop_reason": {"type": "requires_action", "event_ids": ["sevt_1"]}}),
                "session.status_idle  requires_action [\"sevt_1\"]",
            ),
            (json!({"type": "session.error", "error": {"message": "No \u{1b}[2J."}}), "session.error  No \u{fffd}[2J."),
        ] {
            assert_eq!(line(&event).trim_start_matches(['-', ' ']), expected);
        }
        let long = json!({"type": "agent.message", "content": [{"type": "text", "text": "x".repeat(2 * MAX_LINE)}]});
        assert_eq!(line(&long).chars().count(), MAX_LINE + 3);
    }

    #[test]
    fn queries_are_encoded() {
        let query = [("types[]".to_owned(), "agent.message".to_owned()), ("a".to_owned(), "b&c".to_owned())];
        assert_eq!(path("/v1/x", &query), "/v1/x?types%5B%5D=agent.message&a=b%26c");
        assert_eq!(path("/v1/x", &[]), "/v1/x");
    }
}
