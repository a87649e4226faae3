//! What is answered.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::{FactFault, FactForm};

/// The answer to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It may be done.
    Allow,
    /// It must not.
    Deny,
    /// It may be done once someone approves.
    Ask,
}

impl Effect {
    /// The name by which files and records call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Ask => "ask",
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a policy: its `@id`, else `file:line`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName(pub(crate) std::sync::Arc<str>);

impl PolicyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value taken from the arguments of a call. It repeats what the caller sent: not for logs. Serialised as
/// `{"string": "..."}`, for the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// A text.
    String(String),
    /// An integer.
    Long(i64),
    /// A number with at most four digits behind the point, as Cedar writes it.
    Decimal(String),
    /// Whether something holds.
    Bool(bool),
    /// Texts, sorted, each once.
    Set(Vec<String>),
    /// An IP address.
    Ip(std::net::IpAddr),
    /// A moment, in milliseconds since 1970.
    Datetime(i64),
}

/// A decision, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What is decided.
    pub effect: Effect,
    /// The policies that decided, in the order of the files; where a fact is missing, those that need it. Empty where
    /// none allows it.
    pub policies: Vec<PolicyName>,
    /// One sentence for the log, and for callers who may know of what they asked for ([`Decision::told`]). It repeats no
    /// arguments.
    pub reason: String,
    /// Nothing of what was asked for is shown to the caller: no arguments and no time could allow it.
    pub hidden: bool,
    /// What the asking policies say that an approver is to know. Empty but for [`Effect::Ask`].
    pub ask: Vec<String>,
    /// The facts that were taken from the arguments.
    pub facts: Vec<(String, Fact)>,
    /// What each fact is that was looked for, found or not: by name, in the order of `facts`.
    pub forms: Vec<(String, FactForm)>,
    /// The facts that were needed and could not be taken, each with why.
    pub faults: Vec<(String, FactFault)>,
}

/// What is said of what no policy allows, and of all that a caller may not know of.
pub(crate) const NOT_ALLOWED: &str = "no policy allows it";

impl Decision {
    /// What the caller is told: of what it may not see the same as of what does not exist, whatever forbids it.
    pub fn told(&self) -> &str {
        if self.hidden { NOT_ALLOWED } else { &self.reason }
    }

    fn new(effect: Effect, policies: Vec<PolicyName>, reason: String) -> Self {
        Self {
            effect,
            policies,
            reason,
            hidden: false,
            ask: Vec::new(),
            facts: Vec::new(),
            forms: Vec::new(),
            faults: Vec::new(),
        }
    }

    pub(crate) fn deny(policies: Vec<PolicyName>, reason: String) -> Self {
        Self::new(Effect::Deny, policies, reason)
    }

    pub(crate) fn allow(policies: Vec<PolicyName>, reason: String) -> Self {
        Self::new(Effect::Allow, policies, reason)
    }

    pub(crate) fn ask(policies: Vec<PolicyName>, reason: String, ask: Vec<String>) -> Self {
        Self { ask, ..Self::new(Effect::Ask, policies, reason) }
    }
}
