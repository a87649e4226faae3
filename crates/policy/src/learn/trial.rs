//! Tries what was learned on what it was learned from.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Learner, Proposal, Style, rules};
use crate::decision::Effect;
use crate::engine::Engine;
use crate::recorded::Answer;

/// Most attempts to leave out rules that would allow what was denied.
const ATTEMPTS: usize = 16;

/// What a proposal says about the calls of the period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// Calls that were allowed and went on.
    pub used: u64,
    /// Of these, those that it allows, or asks for where they were asked for.
    pub allowed: u64,
    /// Calls that were denied and that it denies.
    pub denied: u64,
    /// Calls that were denied and that it may allow: what its conditions look at was not recorded.
    pub unknown: u64,
    /// Rules that allow what was denied.
    too_wide: BTreeSet<String>,
}

impl Trial {
    /// Notes the answer about a call that was allowed and went on; `asked` if somebody had to approve it.
    pub fn used(&mut self, asked: bool, answer: &Answer) {
        let wanted = if asked { Effect::Ask } else { Effect::Allow };
        self.used += 1;
        self.allowed += u64::from(matches!(answer, Answer::Decided(decision) if decision.effect == wanted));
    }

    /// Notes the answer about a call that was denied.
    pub fn denied(&mut self, answer: &Answer) {
        match answer {
            Answer::Decided(decision) if decision.effect == Effect::Deny => self.denied += 1,
            Answer::Decided(decision) => self.too_wide.extend(decision.policies.iter().map(|policy| {
                // The parts of a rule are named after it: `learned 1 (base)`.
                let name = policy.as_str();
                name.split_once(" (").map_or(name, |(rule, _)| rule).to_owned()
            })),
            Answer::Unknown(_) => self.unknown += 1,
        }
    }
}

impl Learner {
    /// The policy, without rules that would allow what was denied. `attempt` asks a policy about all calls of the period,
    /// and may be called several times.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub fn propose<E>(&self, mut attempt: impl FnMut(&Engine) -> Result<Trial, E>) -> Result<(Proposal, Trial), E> {
        let mut style = Style::default();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut proposal = rules::propose(self, &style);
            let engine = Engine::load(Path::new("learned.toml"), |_| Ok(proposal.text.clone()));
            let engine = engine.expect("what is written is of the short form");
            let trial = attempt(&engine)?;
            if trial.too_wide.is_empty() {
                proposal.note_trial(&trial);
                return Ok((proposal, trial));
            }
            if attempts >= ATTEMPTS {
                style.leave_out = rules::names(proposal.rules + style.leave_out.len());
            } else if style.no_groups {
                style.leave_out.extend(trial.too_wide);
            }
            style.no_groups = true;
        }
    }
}

impl Proposal {
    fn note_trial(&mut self, trial: &Trial) {
        let missing = trial.used - trial.allowed;
        if missing > 0 {
            self.add_note(format!("{missing} calls that went on would not be allowed"));
        }
        if trial.unknown > 0 {
            self.add_note(format!(
                "{} calls that were denied could be allowed: what conditions look at was not recorded of them",
                trial.unknown
            ));
        }
    }

    /// Says something more of it, in its head.
    fn add_note(&mut self, note: String) {
        let (head, rest) = self.text.split_once("\n\n").unwrap_or((&self.text, ""));
        let title = if self.notes.is_empty() { rules::NOT_AS_SEEN } else { "" };
        self.text = format!("{head}\n{title}# - {note}\n\n{rest}");
        self.notes.push(note);
    }
}
