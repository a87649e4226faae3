//! `sortie policy replay`: what would a policy have decided?

use std::collections::BTreeMap;

use serde::Serialize;
use sortie_policy::{Answer, Effect};

use super::args::ReplayArgs;
use super::past::{Call, Past, Was, who};
use crate::audit::plural;
use crate::error::Failure;
use crate::output::{self, Style};

/// Most differences that are told apart. What comes beyond them is counted only.
const MAX_GROUPS: usize = 10_000;

pub(crate) fn run(args: &ReplayArgs, style: Style) -> Result<(), Failure> {
    let engine = super::load(&args.file)?;
    let past = Past::open(&args.past, &args.caller)?;
    let mut report = Report { verified: past.verified, ..Report::default() };
    let mut groups: BTreeMap<Difference, Group> = BTreeMap::new();
    past.each(|call| {
        let Some(was) = call.was().filter(|_| !call.again) else {
            report.left_out += u64::from(!call.again);
            return Ok(());
        };
        report.calls += 1;
        let now = if call.is_cut() { Now::cut() } else { Now::of(call.ask(&engine)) };
        match (was, now.decision) {
            (Was::Allow | Was::Unasked, "allow") | (Was::Ask, "ask") | (Was::Deny, "deny") => {
                report.same += 1;
                return Ok(());
            }
            (_, UNKNOWN) => report.unknown += 1,
            _ => report.changed += 1,
        }
        let difference = Difference::of(&call, was, now);
        if groups.len() >= MAX_GROUPS && !groups.contains_key(&difference) {
            report.not_shown += 1;
            return Ok(());
        }
        let group = groups.entry(difference).or_insert(Group { calls: 0, example: call.seq });
        group.calls += 1;
        Ok(())
    })?;
    report.data = groups.into_iter().map(|(difference, group)| Row { difference, group }).collect();
    print(&report, style)?;
    if args.fail_on_change && report.changed + report.unknown > 0 {
        let (changed, unknown) = (report.changed, report.unknown);
        return Err(Failure::failed(format!("{changed} decided otherwise, {unknown} not known")));
    }
    Ok(())
}

const UNKNOWN: &str = "unknown";

/// What the policy says now.
struct Now {
    decision: &'static str,
    policies: Vec<String>,
    needs: Vec<String>,
}

impl Now {
    fn of(answer: Answer) -> Self {
        match answer {
            Answer::Decided(decision) => {
                let policies = decision.policies.iter().map(ToString::to_string).collect();
                Self { decision: Effect::as_str(decision.effect), policies, needs: Vec::new() }
            }
            Answer::Unknown(unknown) => {
                let policies = unknown.policies.iter().map(ToString::to_string).collect();
                Self { decision: UNKNOWN, policies, needs: unknown.needs }
            }
        }
    }

    fn cut() -> Self {
        Self { decision: UNKNOWN, policies: Vec::new(), needs: vec!["a name, which was too long".to_owned()] }
    }
}

/// What differs, of calls that differ alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Difference {
    caller: String,
    route: String,
    what: String,
    was: &'static str,
    now: &'static str,
    /// Of `unknown`, those that look at what was not recorded.
    policies: Vec<String>,
    /// What was not recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    needs: Vec<String>,
}

impl Difference {
    fn of(call: &Call, was: Was, now: Now) -> Self {
        Self {
            caller: who(&call.decided.caller),
            route: call.decided.route.clone(),
            what: call.what(),
            was: was.as_str(),
            now: now.decision,
            policies: now.policies,
            needs: now.needs,
        }
    }
}

#[derive(Debug, Serialize)]
struct Group {
    calls: u64,
    /// The number of the first record of such a call.
    example: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    difference: Difference,
    #[serde(flatten)]
    group: Group,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    /// The log was verified first.
    verified: bool,
    calls: u64,
    same: u64,
    changed: u64,
    unknown: u64,
    /// Calls that were refused before a policy was asked.
    left_out: u64,
    /// Calls that differ and are in no row, since there are too many rows.
    not_shown: u64,
    data: Vec<Row>,
}

fn print(report: &Report, style: Style) -> Result<(), Failure> {
    if style == Style::Json {
        return output::json(report);
    }
    if !report.data.is_empty() {
        let row = |row: &Row| {
            let Difference { caller, route, what, was, now, policies, needs } = &row.difference;
            let by = if policies.is_empty() { "-".to_owned() } else { policies.join(", ") };
            let by = if needs.is_empty() { by } else { format!("{by}: {} was not recorded", needs.join(", ")) };
            let mut cells = vec![caller.clone(), route.clone(), what.clone(), (*was).to_owned(), (*now).to_owned(), by];
            cells.extend([row.group.calls.to_string(), row.group.example.to_string()]);
            cells
        };
        let rows: Vec<_> = report.data.iter().map(row).collect();
        output::table(&["caller", "route", "what", "was", "now", "by", "calls", "example"], &rows);
    }
    let Report { calls, same, changed, unknown, .. } = report;
    println!("{}: {same} decided the same, {changed} otherwise, {unknown} not known", plural(*calls, "call"));
    if report.left_out > 0 {
        println!("{} left out, refused before a policy was asked", plural(report.left_out, "call"));
    }
    if report.not_shown > 0 {
        println!("{} not shown: more than {MAX_GROUPS} rows", plural(report.not_shown, "call"));
    }
    Ok(())
}
