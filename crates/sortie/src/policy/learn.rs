//! `sortie policy learn`: a policy from what was done.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use sortie_audit::Outcome;
use sortie_policy::{Answer, Effect, Engine, LearnStyle, Learner, Proposal};

use super::args::LearnArgs;
use super::past::{Call, Past, Was};
use crate::audit::plural;
use crate::error::Failure;
use crate::output::{self, Style};

/// Most attempts to leave out rules that would allow what was denied.
const ATTEMPTS: usize = 8;

pub(crate) fn run(args: &LearnArgs, style: Style) -> Result<(), Failure> {
    let past = Past::open(&args.past, &args.caller)?;
    let mut learner = Learner::default();
    past.each(|call| {
        if let Some(asked) = used(&call, args.include_shadow) {
            learner.used(&call.decided.caller, &call.decided.route, &call.act(), asked, &call.recorded);
        }
        Ok(())
    })?;
    let (proposal, tried) = propose(&learner, &past, args.include_shadow)?;
    if let Some(file) = &args.write {
        write(file, &proposal.text)?;
    }
    match style {
        Style::Json => output::json(&json!({
            "verified": past.verified,
            "calls": tried.used,
            "allowed": tried.allowed,
            "denied": tried.denied,
            "rules": proposal.rules,
            "notes": proposal.notes,
            "policy": proposal.text,
        })),
        Style::Table => {
            if args.write.is_none() {
                print!("{}", proposal.text);
            }
            let (rules, used) = (proposal.rules, plural(tried.used, "call"));
            eprintln!(
                "{rules} rules from {used}: {} of them allowed; {} denied, as before",
                tried.allowed, tried.denied
            );
            if !proposal.notes.is_empty() {
                eprintln!("{} of what it does not say as it was seen: read its head", proposal.notes.len());
            }
            Ok(())
        }
    }
}

/// Whether a call was allowed and went on, and then whether somebody was asked first.
fn used(call: &Call, include_shadow: bool) -> Option<bool> {
    if call.decided.outcome != Outcome::Forwarded || call.is_cut() {
        return None;
    }
    let shadow = call.decided.decision.as_ref().is_some_and(|decision| decision.mode == "shadow");
    match call.was()? {
        Was::Allow | Was::Unasked => Some(false),
        // A shadow asks nobody.
        Was::Ask if !shadow => Some(true),
        Was::Ask | Was::Deny => (shadow && include_shadow).then_some(false),
    }
}

/// What a proposal says about the calls that it was made from.
#[derive(Default)]
struct Tried {
    used: u64,
    allowed: u64,
    denied: u64,
    /// Rules that allow what was denied.
    too_wide: BTreeSet<String>,
    /// Denied calls that it may allow.
    unknown: u64,
}

/// Proposes, and leaves out what would allow a call that was denied.
fn propose(learner: &Learner, past: &Past, include_shadow: bool) -> Result<(Proposal, Tried), Failure> {
    let mut how = LearnStyle::default();
    for _ in 0..ATTEMPTS {
        let mut proposal = learner.propose(&how);
        let tried = attempt(&proposal, past, include_shadow)?;
        if tried.too_wide.is_empty() {
            let missing = tried.used - tried.allowed;
            if missing > 0 {
                proposal.add_note(format!("{} that went on would not be allowed", plural(missing, "call")));
            }
            if tried.unknown > 0 {
                let calls = plural(tried.unknown, "denied call");
                proposal.add_note(format!("{calls} could be allowed: what conditions look at was not recorded"));
            }
            return Ok((proposal, tried));
        }
        if how.no_groups {
            how.leave_out.extend(tried.too_wide);
        }
        how.no_groups = true;
    }
    Err(Failure::failed(
        "no policy was found that allows nothing of what was denied: learn from fewer callers, by --caller",
    ))
}

fn attempt(proposal: &Proposal, past: &Past, include_shadow: bool) -> Result<Tried, Failure> {
    let engine = Engine::load(&PathBuf::from("learned.toml"), |_| Ok(proposal.text.clone()))
        .map_err(|error| Failure::failed(format!("what was learned is no policy: {error}")))?;
    let mut tried = Tried::default();
    past.each(|call| {
        let was_used = used(&call, include_shadow);
        let was_denied = was_used.is_none() && call.was() == Some(Was::Deny);
        if was_used.is_none() && !was_denied {
            return Ok(());
        }
        match (was_used, call.ask(&engine)) {
            (Some(asked), answer) => {
                tried.used += 1;
                let wanted = if asked { Effect::Ask } else { Effect::Allow };
                tried.allowed += u64::from(matches!(answer, Answer::Decided(decision) if decision.effect == wanted));
            }
            (None, Answer::Decided(decision)) if decision.effect == Effect::Deny => tried.denied += 1,
            (None, Answer::Decided(decision)) => tried.too_wide.extend(decision.policies.iter().map(|policy| {
                // The parts of a rule are named after it: `learned 1 (base)`.
                let name = policy.as_str();
                name.split_once(" (").map_or(name, |(rule, _)| rule).to_owned()
            })),
            (None, Answer::Unknown(_)) => tried.unknown += 1,
        }
        Ok(())
    })?;
    Ok(tried)
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(file);
    opened.and_then(|mut opened| opened.write_all(text.as_bytes())).map_err(|error| {
        Failure::usage(format!("--write {}: {error}: name a file that is not there yet", file.display()))
    })
}
