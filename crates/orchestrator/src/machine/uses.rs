//! Uses of tools, from the model's wish to the one answer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sortie_api::{ContentBlock, Evaluated, Evaluation, Event, EventBody, Permission, PermissionPolicy, Verdict};
use sortie_ids::EventId;

use super::run::Run;
use super::{Fate, NotTaken, Stage, Tool, Use, text_block};
use crate::mcp::{McpAnswer, McpFailure};
use crate::prompt::{Tool as Offered, Toolbox};
use crate::transcript::{Entry, ToolName};

/// The answer to a use that an interrupt has ended.
pub(super) const INTERRUPTED: &str = "The tool execution was interrupted before it had a result. It may have run, in part \
                                      or in whole: look before you try it again.";
/// The answer to a use that the end of the session has ended.
pub(super) const ARCHIVED: &str = "The session was archived before this tool use had a result.";
/// The answer to a call that was running when the process ended.
pub(super) const MAY_HAVE_RUN: &str = "The connection to this tool was lost while it ran, since the hub was restarted. It \
                                       may have run, in part or in whole: look before you try it again.";
const NO_OUTPUT: &str = "(no output)";

/// A block of the model's answer that uses a tool.
pub(super) struct Wish {
    pub(super) block: String,
    pub(super) name: String,
    pub(super) input: Map<String, Value>,
    /// Why it cannot be meant as it stands.
    pub(super) broken: Option<&'static str>,
}

/// Whether the session itself has given this answer, not a client.
pub(crate) fn is_closing(body: &EventBody) -> bool {
    let content = match body {
        EventBody::UserToolResult { content: Some(content), is_error: Some(true), .. }
        | EventBody::UserCustomToolResult { content: Some(content), is_error: Some(true), .. }
        | EventBody::AgentMcpToolResult { content: Some(content), is_error: Some(true), .. } => content,
        EventBody::AgentToolResult { .. } => return true,
        _ => return false,
    };
    [INTERRUPTED, ARCHIVED, MAY_HAVE_RUN].iter().any(|text| *content == [text_block(*text)])
}

/// Judges an answer of a client; `uses` are those that are open when it comes, and is kept so.
pub(super) fn fate(body: &EventBody, uses: &mut Vec<(EventId, Stage, Tool)>) -> Result<Fate, NotTaken> {
    let id = match (body, body.answers()) {
        (EventBody::UserToolConfirmation { .. }, Some(id))
        | (EventBody::UserToolResult { .. } | EventBody::UserCustomToolResult { .. }, Some(id)) => id,
        _ => return Err(NotTaken::Invalid(format!("{} is not sent by clients", body.kind()))),
    };
    let Some(at) = uses.iter().position(|(open, ..)| open == id) else { return Ok(Fate::Known(id.clone())) };
    let Some((_, stage, tool)) = uses.get_mut(at) else { return Ok(Fate::Known(id.clone())) };
    let (stage_now, invalid) = (*stage, |why: String| Err(NotTaken::Invalid(why)));
    match (body, &*tool, stage_now) {
        (EventBody::UserToolConfirmation { result: Verdict::Allow, .. }, _, Stage::Ask) => {
            *stage = if matches!(tool, Tool::Mcp { .. }) { Stage::Ready } else { Stage::Open };
        }
        (EventBody::UserToolConfirmation { result: Verdict::Deny, .. }, _, Stage::Ask)
        | (EventBody::UserToolResult { .. }, Tool::Sandbox, Stage::Open)
        | (EventBody::UserCustomToolResult { .. }, Tool::Custom, Stage::Open) => {
            uses.remove(at);
        }
        // A person's word that was given before, perhaps.
        (EventBody::UserToolConfirmation { .. }, _, _) => return Ok(Fate::Known(id.clone())),
        (EventBody::UserToolResult { .. }, Tool::Sandbox, Stage::Ask) => {
            return invalid(format!("{id} waits for a user.tool_confirmation, and takes a result only after that"));
        }
        (_, Tool::Mcp { .. }, _) => return invalid(format!("{id} is called by the server, and takes no result")),
        (_, Tool::Custom, _) => return invalid(format!("{id} is answered by a user.custom_tool_result")),
        (_, Tool::Sandbox, _) => return invalid(format!("{id} is answered by a user.tool_result")),
    }
    Ok(Fate::New)
}

impl Run<'_, '_> {
    /// Shows what the model wants to use, and judges it. To be followed by [`Run::refuse`].
    pub(super) fn wish(&mut self, id: EventId, wish: Wish, names: &BTreeMap<String, Offered>) -> Option<Refused> {
        let Wish { block, name, input, broken } = wish;
        let offered = names.get(&name).filter(|_| broken.is_none());
        let access = Access::of(offered);
        let permission = access.permission();
        let meant = names.get(&name).map_or_else(|| Toolbox::guess(&name), |offered| offered.name.clone());
        let (body, tool) = match meant {
            ToolName::Mcp { server, tool } => {
                let (mcp_server_name, name) = (server.clone(), tool.clone());
                (
                    EventBody::AgentMcpToolUse { mcp_server_name, name, input, permission },
                    Tool::Mcp { server, name: tool },
                )
            }
            ToolName::Custom(name) if access == Access::Free => {
                (EventBody::AgentCustomToolUse { name, input }, Tool::Custom)
            }
            ToolName::Sandbox(name) | ToolName::Custom(name) => {
                (EventBody::AgentToolUse { name, input, permission }, Tool::Sandbox)
            }
        };
        self.emit_as(id.clone(), body);
        let stage = match (access, &tool) {
            (Access::Missing, _) => {
                let why = broken.map_or_else(|| format!("There is no tool `{name}` in this session."), str::to_owned);
                return Some(Refused { id, block, tool, why });
            }
            (Access::Ask, _) => Stage::Ask,
            (Access::Allow, Tool::Mcp { .. }) => Stage::Ready,
            (Access::Allow | Access::Free, _) => Stage::Open,
        };
        self.machine.state.uses.push(Use { id, block, tool, stage });
        None
    }

    /// Answers a use that is not carried out.
    pub(super) fn refuse(&mut self, refused: Refused) {
        let Refused { id, block, tool, why } = refused;
        let (content, is_error) = (Some(vec![text_block(why.as_str())]), Some(true));
        self.emit(match tool {
            Tool::Mcp { .. } => EventBody::AgentMcpToolResult { mcp_tool_use_id: id, content, is_error },
            Tool::Sandbox | Tool::Custom => EventBody::AgentToolResult { tool_use_id: id, content, is_error },
        });
        self.tell(Entry::ToolResult { tool_use_id: block, content: vec![text_block(why)], is_error: true });
    }

    /// Takes a client's answer, which is among the events already.
    pub(super) fn take_answer(&mut self, event: Event) {
        let Some(id) = event.body.answers().cloned() else { return };
        let uses = &mut self.machine.state.uses;
        let Some(open) = uses.iter_mut().find(|open| open.id == id) else { return };
        self.touched = true;
        let (content, is_error) = match event.body {
            EventBody::UserToolConfirmation { result: Verdict::Allow, .. } => {
                open.stage = if matches!(open.tool, Tool::Mcp { .. }) { Stage::Ready } else { Stage::Open };
                return;
            }
            EventBody::UserToolConfirmation { result: Verdict::Deny, deny_message, .. } => {
                let mut text = "The user denied this tool use, and it was not carried out.".to_owned();
                if let Some(message) = deny_message.filter(|message| !message.is_empty()) {
                    text = format!("{text} The user says: {message}");
                }
                (vec![text_block(text)], true)
            }
            EventBody::UserToolResult { content, is_error, .. }
            | EventBody::UserCustomToolResult { content, is_error, .. } => {
                (content.unwrap_or_default(), is_error.unwrap_or(false))
            }
            _ => return,
        };
        self.tell_result(&id, content, is_error);
    }

    pub(super) fn called(&mut self, id: &EventId, result: Result<McpAnswer, McpFailure>) {
        let Some(open) = self.machine.state.uses.iter().find(|open| open.id == *id) else { return };
        let Tool::Mcp { server, .. } = open.tool.clone() else { return };
        let (answer, failure) = match result {
            Ok(answer) => (answer, None),
            Err(failure) => {
                let content = vec![text_block(failure.message.as_str())];
                (McpAnswer { content, is_error: true }, Some(failure))
            }
        };
        let McpAnswer { content, is_error } = answer;
        self.emit(EventBody::AgentMcpToolResult {
            mcp_tool_use_id: id.clone(),
            content: Some(content.clone()),
            is_error: Some(is_error),
        });
        self.tell_result(id, content, is_error);
        if let Some(failure) = failure {
            self.mcp_error(&server, failure);
        }
        self.go_on();
    }

    /// Answers every use that has no answer with this text, in the form that whoever may be carrying it out understands.
    pub(super) fn close_all(&mut self, text: &str) {
        let ids: Vec<_> = self.machine.state.uses.iter().map(|open| open.id.clone()).collect();
        for id in ids {
            self.close(&id, text);
        }
    }

    pub(super) fn close(&mut self, id: &EventId, text: &str) {
        let Some(open) = self.machine.state.uses.iter().find(|open| open.id == *id) else { return };
        let (content, is_error) = (Some(vec![text_block(text)]), Some(true));
        let id = id.clone();
        // Workers know a use as answered by these events only; so they do not begin what was interrupted.
        let body = match open.tool {
            Tool::Sandbox => EventBody::UserToolResult { tool_use_id: id.clone(), content, is_error },
            Tool::Custom => EventBody::UserCustomToolResult { custom_tool_use_id: id.clone(), content, is_error },
            Tool::Mcp { .. } => EventBody::AgentMcpToolResult { mcp_tool_use_id: id.clone(), content, is_error },
        };
        self.emit(body);
        self.tell_result(&id, vec![text_block(text)], true);
    }

    /// The one answer to a use, for the model.
    fn tell_result(&mut self, id: &EventId, mut content: Vec<ContentBlock>, is_error: bool) {
        let uses = &mut self.machine.state.uses;
        let Some(at) = uses.iter().position(|open| open.id == *id) else { return };
        let open = uses.remove(at);
        if content.is_empty() {
            content.push(text_block(NO_OUTPUT));
        }
        self.tell(Entry::ToolResult { tool_use_id: open.block, content, is_error });
    }
}

/// A use that is not carried out.
pub(super) struct Refused {
    id: EventId,
    block: String,
    tool: Tool,
    why: String,
}

/// What a use needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// The tool is not there.
    Missing,
    Allow,
    Ask,
    /// No policy is asked: the client runs it, and may refuse.
    Free,
}

impl Access {
    fn of(offered: Option<&Offered>) -> Self {
        match offered.map(|offered| offered.policy) {
            None => Self::Missing,
            Some(None) => Self::Free,
            Some(Some(PermissionPolicy::AlwaysAllow)) => Self::Allow,
            Some(Some(PermissionPolicy::AlwaysAsk)) => Self::Ask,
        }
    }

    fn permission(self) -> Permission {
        let (evaluated, evaluation) = match self {
            Self::Missing => (Some(Evaluated::Deny), None),
            Self::Allow => (Some(Evaluated::Allow), Some(Evaluation::AlwaysAllow)),
            Self::Ask => (Some(Evaluated::Ask), Some(Evaluation::AlwaysAsk)),
            Self::Free => (None, None),
        };
        Permission { evaluated_permission: evaluated, evaluation }
    }
}
