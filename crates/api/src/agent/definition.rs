//! Agents as they are stored and shown, and the requests that make and change them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sortie_ids::AgentId;

use super::tools::{self, SentServer, SentTool, can_read, match_servers, read, refused};
use super::{AgentTool, McpServer, Metadata, Model};
use crate::{ApiError, Patch, check_metadata, patch_metadata};

/// Longest name of an agent, in characters.
const MAX_NAME: usize = 256;
/// Longest prompt, in characters.
const MAX_SYSTEM: usize = 100_000;
/// Longest description, in characters.
const MAX_DESCRIPTION: usize = 2048;
/// Longest name of a model, in characters.
const MAX_MODEL: usize = 256;
/// Most skills of an agent.
const MAX_SKILLS: usize = 20;
/// Longest id and version of a skill, in characters.
const MAX_SKILL: usize = 256;
/// Longest name of a role, in characters.
const MAX_ROLE: usize = 2048;
/// How hard models work, at most as hard as the last one. `high` is what the Messages API takes for granted.
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];
const USUAL_EFFORT: &str = "high";
const SPEEDS: [&str; 2] = ["standard", "fast"];

/// An agent in one of its versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "agent")]
#[schemars(rename = "Agent", transform = crate::schema::typed("agent"))]
pub struct Agent {
    /// Its id.
    pub id: AgentId,
    /// Which version this is; the first is 1, and each change makes the next.
    pub version: u32,
    /// What it is in this version.
    #[serde(flatten)]
    pub definition: AgentDefinition,
    /// When the agent was made, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When this version was made.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub updated_at: Timestamp,
    /// When the agent was archived; it never comes back.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

/// What an agent is, checked and resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AgentDefinition {
    /// Its name.
    pub name: String,
    /// What people are told of it.
    pub description: Option<String>,
    /// The prompt.
    pub system: Option<String>,
    /// The model.
    pub model: Model,
    /// What the model may use.
    pub tools: Vec<AgentTool>,
    /// The servers of those tools.
    pub mcp_servers: Vec<McpServer>,
    /// Skills: `type`, `skill_id` and `version` of each.
    pub skills: Vec<Value>,
    /// Always none: refused at creation.
    pub multiagent: Option<Value>,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// Who its runs are.
    pub execution_identity: ExecutionIdentity,
}

/// Who the runs of an agent are, as its owner wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecutionIdentity {
    /// Nobody in particular.
    #[default]
    ServiceAccount,
    /// A role at AWS.
    AwsRole {
        /// Its name there, in at most 2,048 characters.
        role_arn: String,
    },
}

/// A model with what else is set, as it is sent; a model's name alone will do.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SentModel {
    /// Its name at the model's endpoint, in 1 to 256 characters.
    pub id: String,
    /// How hard it works: `low`, `medium`, `high`, `xhigh` or `max`, or an object with that as its `type`.
    #[serde(default)]
    pub effort: Option<Value>,
    /// `standard` or `fast`.
    #[serde(default)]
    pub speed: Option<String>,
    /// Where it runs.
    #[serde(default)]
    pub inference_geo: Option<String>,
}

/// The body of `POST /v1/agents`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAgent {
    /// 1 to 256 characters.
    pub name: String,
    /// The model: its name, or an object.
    #[schemars(with = "SentModel")]
    pub model: Value,
    /// At most 2,048 characters.
    #[serde(default)]
    pub description: Option<String>,
    /// At most 100,000 characters.
    #[serde(default)]
    pub system: Option<String>,
    /// At most 256 tools over all toolsets.
    #[serde(default)]
    #[schemars(with = "Option<Vec<SentTool>>")]
    pub tools: Option<Vec<Value>>,
    /// At most 20, each named by an `mcp_toolset` in `tools`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<SentServer>>")]
    pub mcp_servers: Option<Vec<Value>>,
    /// At most 20; they need the tool `read`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<SentSkill>>")]
    pub skills: Option<Vec<Value>>,
    /// Not offered: refused.
    #[serde(default)]
    pub multiagent: Option<Value>,
    /// At most 16 pairs.
    #[serde(default)]
    pub metadata: Option<Metadata>,
    /// Kept and shown.
    #[serde(default)]
    pub execution_identity: Option<ExecutionIdentity>,
}

/// The body of `POST /v1/agents/{agent_id}`. What is left out stays; lists take the place of what was there.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateAgent {
    /// The newest version, as the caller knows it: with another one the update is refused.
    pub version: Option<u32>,
    /// 1 to 256 characters; cannot be cleared.
    pub name: Patch<String>,
    /// Cannot be cleared. An effort that is left out stays where the model's name does.
    #[schemars(with = "Option<SentModel>")]
    pub model: Patch<Value>,
    /// `null` or an empty text clears it.
    pub description: Patch<String>,
    /// `null` or an empty text clears it.
    pub system: Patch<String>,
    /// `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<SentTool>>")]
    pub tools: Patch<Vec<Value>>,
    /// `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<SentServer>>")]
    pub mcp_servers: Patch<Vec<Value>>,
    /// `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<SentSkill>>")]
    pub skills: Patch<Vec<Value>>,
    /// Not offered: refused, but for `null`.
    pub multiagent: Patch<Value>,
    /// Pairs: a text takes the place of what was there, `null` takes it away.
    pub metadata: Patch<BTreeMap<String, Option<String>>>,
    /// `null` restores the default.
    pub execution_identity: Patch<ExecutionIdentity>,
}

/// What a session changes of its agent, for itself alone. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AgentOverrides {
    /// Cannot be cleared; an effort in it is not applied.
    #[schemars(with = "Option<SentModel>")]
    pub model: Patch<Value>,
    /// `null` or an empty text clears it.
    pub system: Patch<String>,
    /// `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<SentTool>>")]
    pub tools: Patch<Vec<Value>>,
    /// `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<SentServer>>")]
    pub mcp_servers: Patch<Vec<Value>>,
    /// `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<SentSkill>>")]
    pub skills: Patch<Vec<Value>>,
}

/// A skill, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SentSkill {
    /// Whose it is.
    #[serde(rename = "type")]
    kind: SkillKind,
    /// Its id.
    skill_id: String,
    /// Its version; the newest, when left out.
    #[serde(default)]
    version: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum SkillKind {
    Anthropic,
    Custom,
}

impl CreateAgent {
    /// What the new agent is.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule.
    pub fn define(self) -> Result<AgentDefinition, ApiError> {
        refuse_multiagent(self.multiagent.as_ref())?;
        let definition = AgentDefinition {
            name: name(self.name)?,
            description: description(self.description)?,
            system: system(self.system)?,
            model: model(self.model, None)?,
            tools: tools::tools(self.tools.unwrap_or_default())?,
            mcp_servers: tools::servers(self.mcp_servers.unwrap_or_default())?,
            skills: skills(self.skills.unwrap_or_default())?,
            multiagent: None,
            metadata: check_metadata(self.metadata.unwrap_or_default())?,
            execution_identity: identity(self.execution_identity.unwrap_or_default())?,
        };
        definition.check()?;
        Ok(definition)
    }
}

impl UpdateAgent {
    /// What the agent is after this.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule.
    pub fn apply(self, before: AgentDefinition) -> Result<AgentDefinition, ApiError> {
        let after = self.merge(before)?;
        after.check()?;
        Ok(after)
    }

    fn merge(self, before: AgentDefinition) -> Result<AgentDefinition, ApiError> {
        if let Patch::Set(multiagent) = &self.multiagent {
            refuse_multiagent(Some(multiagent))?;
        }
        let after = self.model.or_required("model", Value::Null)?;
        let model = if after.is_null() { before.model } else { model(after, Some(&before.model))? };
        Ok(AgentDefinition {
            name: name(self.name.or_required("name", before.name)?)?,
            description: description(self.description.or(before.description))?,
            system: system(self.system.or(before.system))?,
            model,
            tools: self.tools.try_map(tools::tools)?.or_default(before.tools),
            mcp_servers: self.mcp_servers.try_map(tools::servers)?.or_default(before.mcp_servers),
            skills: self.skills.try_map(skills)?.or_default(before.skills),
            multiagent: None,
            metadata: patch_metadata(before.metadata, self.metadata)?,
            execution_identity: identity(self.execution_identity.or_default(before.execution_identity))?,
        })
    }
}

impl AgentOverrides {
    /// What a session runs: this agent with these changes.
    ///
    /// # Errors
    /// 400, naming the member that breaks a rule.
    pub fn apply(self, before: AgentDefinition) -> Result<AgentDefinition, ApiError> {
        if self.model == Patch::Clear {
            return refused("model: agent_model_required: an agent needs a model; leave it out to keep its own".into());
        }
        let earlier = before.model.clone();
        let Self { model, system, tools, mcp_servers, skills } = self;
        let mut after =
            UpdateAgent { model, system, tools, mcp_servers, skills, ..UpdateAgent::default() }.merge(before)?;
        let kept = if after.model.id == earlier.id { earlier.settings.get("effort").cloned() } else { None };
        after.model.settings.insert("effort".to_owned(), kept.unwrap_or_else(|| effort(USUAL_EFFORT)));
        after.check_used()?;
        Ok(after)
    }
}

impl AgentDefinition {
    /// The members that are different in another definition.
    pub fn changed(&self, other: &Self) -> Vec<&'static str> {
        [
            ("name", self.name != other.name),
            ("description", self.description != other.description),
            ("system", self.system != other.system),
            ("model", self.model != other.model),
            ("tools", self.tools != other.tools),
            ("mcp_servers", self.mcp_servers != other.mcp_servers),
            ("skills", self.skills != other.skills),
            ("metadata", self.metadata != other.metadata),
            ("execution_identity", self.execution_identity != other.execution_identity),
        ]
        .into_iter()
        .filter_map(|(member, differs)| differs.then_some(member))
        .collect()
    }

    /// The rules between members.
    fn check(&self) -> Result<(), ApiError> {
        match_servers(&self.tools, &self.mcp_servers)?;
        self.check_used()
    }

    /// The same, but that servers may be there which no toolset uses.
    fn check_used(&self) -> Result<(), ApiError> {
        let used = |server: &&McpServer| {
            self.tools
                .iter()
                .any(|tool| matches!(tool, AgentTool::Mcp { mcp_server_name, .. } if *mcp_server_name == server.name))
        };
        let servers: Vec<McpServer> = self.mcp_servers.iter().filter(used).cloned().collect();
        match_servers(&self.tools, &servers)?;
        if !self.skills.is_empty() && !can_read(&self.tools) {
            return refused(
                "skills: they are read with the tool `read`; enable it in an agent_toolset_20260401".into(),
            );
        }
        Ok(())
    }
}

fn refuse_multiagent(sent: Option<&Value>) -> Result<(), ApiError> {
    match sent {
        Some(value) if !value.is_null() => {
            refused("multiagent: not offered here; leave it out, and run each agent in a session of its own".into())
        }
        _ => Ok(()),
    }
}

fn name(name: String) -> Result<String, ApiError> {
    let length = name.chars().count();
    if !(1..=MAX_NAME).contains(&length) {
        return refused(format!("name: {length} characters; 1 to {MAX_NAME} are possible"));
    }
    Ok(name)
}

fn description(description: Option<String>) -> Result<Option<String>, ApiError> {
    text("description", description, MAX_DESCRIPTION)
}

fn system(system: Option<String>) -> Result<Option<String>, ApiError> {
    text("system", system, MAX_SYSTEM)
}

/// A text that may be absent, as an empty one is.
fn text(member: &str, text: Option<String>, most: usize) -> Result<Option<String>, ApiError> {
    let length = text.as_ref().map_or(0, |text| text.chars().count());
    if length > most {
        return refused(format!("{member}: {length} characters, at most {most}"));
    }
    Ok(text.filter(|text| !text.is_empty()))
}

fn model(sent: Value, before: Option<&Model>) -> Result<Model, ApiError> {
    let sent: SentModel = match sent {
        Value::String(id) => SentModel { id, effort: None, speed: None, inference_geo: None },
        object @ Value::Object(_) => read("model", object)?,
        _ => return refused("model: must be the name of a model, or an object with its `id`".into()),
    };
    let length = sent.id.chars().count();
    if !(1..=MAX_MODEL).contains(&length) || sent.id.chars().any(char::is_control) {
        return refused(format!("model: its name must have 1 to {MAX_MODEL} characters"));
    }
    let kept = before.filter(|before| before.id == sent.id).and_then(|before| before.settings.get("effort").cloned());
    let effort = match sent.effort {
        Some(effort) => resolved_effort(&effort)?,
        None => kept.unwrap_or_else(|| effort(USUAL_EFFORT)),
    };
    let speed = sent.speed.unwrap_or_else(|| "standard".to_owned());
    if !SPEEDS.contains(&speed.as_str()) {
        return refused(format!("model.speed: must be one of {}", SPEEDS.join(", ")));
    }
    let mut settings = Map::from_iter([("effort".to_owned(), effort), ("speed".to_owned(), speed.into())]);
    if let Some(region) = text("model.inference_geo", sent.inference_geo, MAX_MODEL)? {
        settings.insert("inference_geo".to_owned(), region.into());
    }
    Ok(Model { id: sent.id, settings })
}

fn effort(level: &str) -> Value {
    json!({"type": level})
}

fn resolved_effort(sent: &Value) -> Result<Value, ApiError> {
    let level = sent.as_str().or_else(|| sent.get("type")?.as_str()).unwrap_or_default();
    match EFFORTS.contains(&level) {
        true => Ok(effort(level)),
        false => refused(format!("model.effort: must be one of {}", EFFORTS.join(", "))),
    }
}

fn skills(sent: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if sent.len() > MAX_SKILLS {
        return refused(format!("skills: {} skills, at most {MAX_SKILLS}", sent.len()));
    }
    let mut all = Vec::with_capacity(sent.len());
    for (at, sent) in sent.into_iter().enumerate() {
        let place = format!("skills[{at}]");
        let SentSkill { kind, skill_id, version } = read(&place, sent)?;
        let version = version.unwrap_or_else(|| "latest".to_owned());
        for (member, text) in [("skill_id", &skill_id), ("version", &version)] {
            let length = text.chars().count();
            if !(1..=MAX_SKILL).contains(&length) {
                return refused(format!("{place}.{member}: {length} characters; 1 to {MAX_SKILL} are possible"));
            }
        }
        all.push(json!({"type": kind, "skill_id": skill_id, "version": version}));
    }
    Ok(all)
}

fn identity(identity: ExecutionIdentity) -> Result<ExecutionIdentity, ApiError> {
    if let ExecutionIdentity::AwsRole { role_arn } = &identity {
        let length = role_arn.chars().count();
        if !(1..=MAX_ROLE).contains(&length) {
            let reason = format!("{length} characters; 1 to {MAX_ROLE} are possible");
            return refused(format!("execution_identity.role_arn: {reason}"));
        }
    }
    Ok(identity)
}

#[cfg(test)]
mod tests;
