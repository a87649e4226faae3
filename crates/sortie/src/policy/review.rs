//! `sortie policy who` and `what`: access review.

use std::collections::BTreeMap;

use serde::Serialize;
use sortie_gateway::GatewayConfig;
use sortie_policy::{Answer, Effect, Engine, Grant, Subject};

use super::args::{PastArgs, PolicyFileArgs, WhatArgs, WhoArgs};
use super::past::{Call, Past};
use crate::audit::plural;
use crate::error::Failure;
use crate::output::{self, Style};

pub(crate) fn who(args: &WhoArgs, style: Style) -> Result<(), Failure> {
    let engine = load(&args.file)?;
    let mut rows: Vec<Row> = engine.who(&args.route, &args.tool).into_iter().map(Row::of).collect();
    let uses = uses(&engine, &args.past, &[], &mut rows)?;
    match style {
        Style::Json => output::json(&Report { verified: uses.as_ref().map(|uses| uses.verified), data: rows }),
        Style::Table => {
            let cells = |row: &Row| {
                let callers = if row.callers.is_empty() { "anyone".to_owned() } else { row.callers.join(" and ") };
                vec![callers, row.access.to_owned(), row.conditions(false), row.policy.clone()]
            };
            table(&["who", "may call", "if", "policy"], &rows, uses, cells);
            if !rows.iter().any(|row| row.access != "forbidden") {
                println!("nobody may call {} of {}", args.tool, args.route);
            }
            Ok(())
        }
    }
}

pub(crate) fn what(args: &WhatArgs, style: Style) -> Result<(), Failure> {
    let engine = load(&args.file)?;
    let pairs: Vec<String> =
        args.agent.iter().map(|agent| format!("agent={agent}")).chain(args.caller.iter().cloned()).collect();
    let subject = subject(&pairs)?;
    let mut rows: Vec<Row> = engine.what(&subject).into_iter().map(Row::of).collect();
    let uses = uses(&engine, &args.past, &pairs, &mut rows)?;
    match style {
        Style::Json => output::json(&Report { verified: uses.as_ref().map(|uses| uses.verified), data: rows }),
        Style::Table => {
            let cells = |row: &Row| {
                let what = format!("{} {}", row.kind, row.name);
                vec![row.route.clone(), what, row.access.to_owned(), row.conditions(true), row.policy.clone()]
            };
            table(&["route", "what", "may use", "if", "policy"], &rows, uses, cells);
            if rows.is_empty() {
                println!("no policy is for it: it may do nothing");
            }
            Ok(())
        }
    }
}

fn load(args: &PolicyFileArgs) -> Result<Engine, Failure> {
    match (&args.policy, &args.config) {
        (Some(file), _) => super::load(file),
        (None, Some(config)) => {
            let settings = GatewayConfig::load(config).map_err(Failure::usage)?;
            let file = settings.control.policy_file.ok_or_else(|| {
                Failure::usage(format!(
                    "{}: it names no policy_file, so that every caller may do all",
                    config.display()
                ))
            })?;
            super::load(&file)
        }
        (None, None) => Err(Failure::usage("name the policies: --policy FILE or --config gateway.toml")),
    }
}

/// What is known of a caller, from `KEY=VALUE` pairs.
fn subject(pairs: &[String]) -> Result<Subject, Failure> {
    let mut out = Subject::default();
    let mut name = None;
    for pair in pairs {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.to_owned();
        match key {
            "agent" => out.agent = Some(value),
            "issuer" => out.issuer = Some(value),
            "subject" => name = Some(value),
            "organization" => out.organization = Some(value),
            "workspace" => out.workspace = Some(value),
            "group" => out.groups.push(value),
            _ => {
                return Err(Failure::usage(format!(
                    "--caller `{pair}`: write KEY=VALUE with issuer, subject, organization, workspace, agent or group"
                )));
            }
        }
    }
    out.caller = match (&out.issuer, name) {
        (Some(issuer), Some(name)) => Some(format!("{issuer}#{name}")),
        (None, Some(_)) => {
            return Err(Failure::usage("--caller subject= needs issuer=: a subject is its issuer's name"));
        }
        (_, None) => None,
    };
    Ok(out)
}

#[derive(Debug, Serialize)]
struct Report {
    /// The log was verified first; absent where none was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    data: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    access: &'static str,
    callers: Vec<String>,
    /// Of these, what is not known of the caller that was asked about.
    unknown_callers: Vec<String>,
    route: String,
    kind: &'static str,
    name: String,
    conditions: Vec<String>,
    unless: Vec<String>,
    asks: Vec<String>,
    policy: String,
    place: String,
    /// How many recorded calls it let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<u64>,
    /// When the last of them was.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used: Option<String>,
    #[serde(skip)]
    grant: Grant,
}

impl Row {
    fn of(grant: Grant) -> Self {
        let names = |list: &[sortie_policy::PolicyName]| list.iter().map(ToString::to_string).collect();
        Self {
            access: grant.access.as_str(),
            callers: grant.callers.clone(),
            unknown_callers: grant.unknown_callers.clone(),
            route: grant.reach.route.clone(),
            kind: grant.reach.kind,
            name: grant.reach.name.clone(),
            conditions: grant.conditions.clone(),
            unless: names(&grant.unless),
            asks: names(&grant.asks),
            policy: grant.policy.to_string(),
            place: grant.place.clone(),
            used: None,
            last_used: None,
            grant,
        }
    }

    /// What must hold, in one cell.
    fn conditions(&self, with_callers: bool) -> String {
        let callers = self.unknown_callers.iter().filter(|_| with_callers);
        let mut all: Vec<String> = callers.chain(&self.conditions).cloned().collect();
        all.extend(self.unless.iter().map(|policy| format!("unless `{policy}` forbids it")));
        all.extend(self.asks.iter().map(|policy| format!("`{policy}` may ask first")));
        if all.is_empty() { "-".to_owned() } else { all.join("; ") }
    }
}

/// What recorded calls say beside the policies.
struct Uses {
    verified: bool,
    calls: u64,
    unknown: u64,
}

/// Counts the recorded calls that each row lets through; `None` where no log is named.
fn uses(engine: &Engine, args: &PastArgs, callers: &[String], rows: &mut [Row]) -> Result<Option<Uses>, Failure> {
    if args.audit.is_none() {
        if args.since.is_some() || args.until.is_some() || !args.trust.key.is_empty() {
            return Err(Failure::usage(
                "--since, --until and --key are about recorded calls: name the log, --audit DIR",
            ));
        }
        return Ok(None);
    }
    let past = Past::open(args, callers)?;
    let mut uses = Uses { verified: past.verified, calls: 0, unknown: 0 };
    let mut by_policy: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.access != "forbidden") {
        row.used = Some(0);
        by_policy.entry(row.policy.clone()).or_default().push(at);
    }
    past.each(|call| {
        if call.was().is_none() || call.again || call.is_cut() {
            return Ok(());
        }
        let (kind, name) = target(&call);
        let is_about = |row: &Row| row.grant.reach.contains(&call.decided.route, kind, &name);
        if !rows.iter().any(is_about) {
            return Ok(());
        }
        uses.calls += 1;
        let decision = match call.ask(engine) {
            Answer::Decided(decision) if decision.effect != Effect::Deny => decision,
            Answer::Decided(_) => return Ok(()),
            Answer::Unknown(_) => {
                uses.unknown += 1;
                return Ok(());
            }
        };
        for at in decision.policies.iter().filter_map(|policy| by_policy.get(policy.as_str())).flatten() {
            if let Some(row) =
                rows.get_mut(*at).filter(|row| row.grant.reach.contains(&call.decided.route, kind, &name))
            {
                row.used = row.used.map(|used| used + 1);
                row.last_used = Some(call.time.clone());
            }
        }
        Ok(())
    })?;
    Ok(Some(uses))
}

/// The kind and the name of what a call is about, as rows have them.
fn target(call: &Call) -> (&'static str, String) {
    let act = &call.decided.act;
    match (&act.tool, &act.resource, &act.prompt) {
        (Some(tool), ..) => ("tool", tool.clone()),
        (_, Some(resource), _) => ("resource", resource.clone()),
        (_, _, Some(prompt)) => ("prompt", prompt.clone()),
        _ => ("method", act.method.clone()),
    }
}

fn table(head: &[&str], rows: &[Row], uses: Option<Uses>, cells: impl Fn(&Row) -> Vec<String>) {
    if rows.is_empty() {
        return;
    }
    let mut head = head.to_vec();
    if uses.is_some() {
        head.extend(["used", "last used"]);
    }
    let whole = |row: &Row| {
        let mut all = cells(row);
        if uses.is_some() {
            all.push(row.used.map_or_else(|| "-".to_owned(), |used| used.to_string()));
            all.push(
                row.last_used.clone().unwrap_or_else(|| if row.used.is_some() { "never" } else { "-" }.to_owned()),
            );
        }
        all
    };
    output::table(&head, &rows.iter().map(whole).collect::<Vec<_>>());
    if let Some(uses) = uses.filter(|uses| uses.unknown > 0) {
        println!(
            "{} of {} not counted: what policies look at was not recorded",
            uses.unknown,
            plural(uses.calls, "call")
        );
    }
}
