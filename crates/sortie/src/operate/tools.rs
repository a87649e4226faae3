//! `sortie tools`: what the gateway on this machine has pinned of its servers' tools.

mod diff;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sortie_gateway::visible;
use sortie_ids::RouteName;

use crate::cli::{ToolsChoice, ToolsCommand};
use crate::error::Failure;
use crate::local::LocalGateway;
use crate::output::{self, Style};

/// How much of a digest is enough for people.
const SHORT: usize = 12;

/// What the gateway tells of its pins.
#[derive(Deserialize)]
struct Pinned {
    data: Vec<Entry>,
    damaged: Vec<Damage>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    route: String,
    kind: String,
    name: String,
    status: String,
    risks: Vec<Risk>,
    approved: Vec<Approved>,
    held: Vec<Held>,
}

#[derive(Deserialize, Serialize)]
struct Risk {
    text: String,
    holds: bool,
}

#[derive(Deserialize, Serialize)]
struct Approved {
    digest: String,
    since: String,
    by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    definition: Option<Value>,
}

#[derive(Deserialize, Serialize)]
struct Held {
    digest: String,
    why: String,
    first_seen: String,
    last_seen: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    definition: Option<Value>,
}

#[derive(Deserialize, Serialize)]
struct Damage {
    route: String,
    reason: String,
}

#[derive(Serialize)]
struct Chosen<'a> {
    route: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<&'a str>,
    all: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    also: bool,
}

#[derive(Deserialize, Serialize)]
struct Done {
    done: Vec<String>,
}

pub(crate) async fn run(command: ToolsCommand, output: Style) -> Result<(), Failure> {
    let gateway = LocalGateway::open(command.data_dir())?;
    match command {
        ToolsCommand::List { route, .. } => list(&gateway, route.as_ref(), output).await,
        ToolsCommand::Diff { route, tool, .. } => differ(&gateway, route.as_ref(), tool.as_deref(), output).await,
        ToolsCommand::Approve { choice, digest, also } => {
            decide(&gateway, "approve", &choice, digest.as_deref(), also, output).await
        }
        ToolsCommand::Forget { choice } => decide(&gateway, "forget", &choice, None, false, output).await,
    }
}

async fn list(gateway: &LocalGateway, route: Option<&RouteName>, output: Style) -> Result<(), Failure> {
    let pinned = ask(gateway, route, None, false).await?;
    let head = ["route", "kind", "name", "status", "definition", "since", "by", "risks"];
    output::list(output, &pinned.data, &head, |entry| {
        let approved = entry.approved.last();
        let digest = approved.map(|one| &one.digest).or(entry.held.last().map(|one| &one.digest));
        let since = approved.map(|one| &one.since).or(entry.held.last().map(|one| &one.first_seen));
        let risks: Vec<&str> = entry.risks.iter().map(|risk| risk.text.as_str()).collect();
        vec![
            entry.route.clone(),
            entry.kind.clone(),
            visible(&entry.name),
            entry.status.clone(),
            digest.map_or("-", |digest| short(digest)).to_owned(),
            since.map_or("-", String::as_str).to_owned(),
            approved.map_or("-", |one| one.by.as_str()).to_owned(),
            if risks.is_empty() { "-".to_owned() } else { visible(&risks.join("; ")) },
        ]
    })?;
    tell_damage(&pinned.damaged)
}

async fn differ(
    gateway: &LocalGateway,
    route: Option<&RouteName>,
    tool: Option<&str>,
    output: Style,
) -> Result<(), Failure> {
    let mut pinned = ask(gateway, route, tool, true).await?;
    if let (Some(tool), true) = (tool, pinned.data.is_empty()) {
        return Err(Failure::failed(format!("nothing is known of `{}`; see sortie tools list", visible(tool))));
    }
    pinned.data.retain(|entry| !entry.held.is_empty());
    if output == Style::Json {
        return output::json(&serde_json::json!({ "data": pinned.data, "damaged": pinned.damaged }));
    }
    if pinned.data.is_empty() && pinned.damaged.is_empty() {
        println!("Nothing is held back.");
    }
    for entry in &pinned.data {
        print(entry);
    }
    tell_damage(&pinned.damaged)
}

fn print(entry: &Entry) {
    let approved = entry.approved.last();
    for held in &entry.held {
        let why = match held.why.as_str() {
            "changed" => "it is not the one that was approved",
            "risky" => "it looks like an attack",
            _ => "nobody has approved it yet",
        };
        println!("{} {} {}: held back, {why}", entry.route, entry.kind, visible(&entry.name));
        for risk in &entry.risks {
            println!("! {}", visible(&risk.text));
        }
        if let Some(approved) = approved {
            println!("--- {}  approved {} by {}", short(&approved.digest), approved.since, visible(&approved.by));
        }
        println!("+++ {}  first seen {}, last {}", short(&held.digest), held.first_seen, held.last_seen);
        let before = approved.and_then(|one| one.definition.as_ref()).map(diff::lines).unwrap_or_default();
        let after = held.definition.as_ref().map(diff::lines).unwrap_or_default();
        for line in diff::diff(&before, &after) {
            println!("{line}");
        }
        println!();
    }
}

async fn decide(
    gateway: &LocalGateway,
    verb: &str,
    choice: &ToolsChoice,
    digest: Option<&str>,
    also: bool,
    output: Style,
) -> Result<(), Failure> {
    let chosen = Chosen {
        route: choice.route.as_str(),
        tool: choice.tool.as_deref(),
        instructions: choice.instructions.as_deref(),
        all: choice.all,
        digest,
        also,
    };
    let done: Done = gateway.post(&format!("/v1/tools/{verb}"), &chosen).await?;
    match output {
        Style::Json => output::json(&done),
        Style::Table => {
            let did = if verb == "approve" { "approved" } else { "forgotten" };
            done.done.iter().for_each(|what| println!("{}: {did}", visible(what)));
            if done.done.is_empty() {
                println!("Nothing was held back.");
            }
            Ok(())
        }
    }
}

async fn ask(
    gateway: &LocalGateway,
    route: Option<&RouteName>,
    name: Option<&str>,
    whole: bool,
) -> Result<Pinned, Failure> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(route.map(|route| ("route", route.as_str())));
    query.extend_pairs(name.map(|name| ("name", name)));
    query.append_pair("definitions", if whole { "true" } else { "false" });
    gateway.get(&format!("/v1/tools?{}", query.finish())).await
}

fn tell_damage(damaged: &[Damage]) -> Result<(), Failure> {
    let Some(first) = damaged.first() else { return Ok(()) };
    Err(Failure::failed(format!(
        "what was pinned of route `{}` is damaged, so all its tools are held back: {}; put the file back and restart the \
         gateway, or run sortie tools forget {} --all",
        first.route, first.reason, first.route
    )))
}

fn short(digest: &str) -> &str {
    digest.get(..SHORT).unwrap_or(digest)
}
