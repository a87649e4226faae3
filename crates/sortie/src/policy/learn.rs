//! `sortie policy learn`: a policy from what was done.

use std::io::Write as _;
use std::path::Path;

use serde_json::json;
use sortie_audit::Outcome;
use sortie_policy::{Engine, Learner, Trial};

use super::args::LearnArgs;
use super::past::{Call, Past, Was};
use crate::audit::plural;
use crate::error::Failure;
use crate::output::{self, Style};

pub(crate) fn run(args: &LearnArgs, style: Style) -> Result<(), Failure> {
    let past = Past::open(&args.past, &args.caller)?;
    let mut learner = Learner::default();
    past.each(|call| {
        if let Some(asked) = used(&call, args.include_shadow) {
            learner.used(&call.decided.caller, &call.decided.route, &call.act(), asked, &call.recorded);
        }
        Ok(())
    })?;
    let (proposal, tried) = learner.propose(|engine| attempt(engine, &past, args.include_shadow))?;
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

/// Asks a policy about all calls of the period.
fn attempt(engine: &Engine, past: &Past, include_shadow: bool) -> Result<Trial, Failure> {
    let mut trial = Trial::default();
    past.each(|call| {
        match used(&call, include_shadow) {
            Some(asked) => trial.used(asked, &call.ask(engine)),
            None if call.was() == Some(Was::Deny) => trial.denied(&call.ask(engine)),
            None => {}
        }
        Ok(())
    })?;
    Ok(trial)
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(file);
    opened.and_then(|mut opened| opened.write_all(text.as_bytes())).map_err(|error| {
        Failure::usage(format!("--write {}: {error}: name a file that is not there yet", file.display()))
    })
}
