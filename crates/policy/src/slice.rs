//! What is known of one caller's calls of one thing before the call is looked at.

use std::sync::Arc;

use cedar_policy::{Entities, PolicySet, Request};

use crate::decision::{Decision, NOT_ALLOWED};
use crate::query::Target;
use crate::schema::Action;

/// The policies that apply to one caller doing one thing, and what they come to.
pub(crate) struct Slice {
    key: Key,
    /// The policies that could decide, in order.
    pub(crate) applying: Vec<usize>,
    /// A list may show it.
    pub(crate) visible: bool,
    pub(crate) outcome: Outcome,
}

#[derive(Default)]
struct Key {
    caller: u64,
    action: Option<Action>,
    route: Box<str>,
    target: Option<(u8, Box<str>)>,
    region: Option<Box<str>>,
}

/// What the policies come to.
pub(crate) enum Outcome {
    /// This, whatever the call.
    Decided(Decision),
    /// It depends on the call.
    Open(Box<Open>),
}

/// What is needed to decide on a call.
pub(crate) struct Open {
    /// Permits that hold for every call.
    pub(crate) fixed: Vec<usize>,
    /// The parts of policies that vary, with the list of them.
    pub(crate) set: Arc<(Vec<usize>, PolicySet)>,
    /// Bits of what they look at in the context.
    pub(crate) context: u16,
    /// Indexes of the facts that they need.
    pub(crate) facts: Vec<usize>,
    /// A request without context.
    pub(crate) request: Request,
    pub(crate) entities: Entities,
}

impl Slice {
    /// No policy is in scope.
    pub(crate) fn nothing() -> Self {
        Self::decided(Vec::new(), false, Decision::deny(Vec::new(), NOT_ALLOWED.to_owned()))
    }

    pub(crate) fn decided(applying: Vec<usize>, visible: bool, decision: Decision) -> Self {
        Self { key: Key::default(), applying, visible, outcome: Outcome::Decided(decision) }
    }

    pub(crate) fn open(applying: Vec<usize>, visible: bool, open: Open) -> Self {
        Self { key: Key::default(), applying, visible, outcome: Outcome::Open(Box::new(open)) }
    }

    /// Says what it was made for.
    pub(crate) fn name(
        &mut self,
        caller: u64,
        action: Action,
        route: &str,
        target: Option<Target<'_>>,
        region: Option<&str>,
    ) {
        self.key = Key {
            caller,
            action: Some(action),
            route: route.into(),
            target: target.map(|target| plain(&target)).map(|(kind, name)| (kind, name.into())),
            region: region.map(Into::into),
        };
    }

    /// Whether it was made for this.
    pub(crate) fn is(
        &self,
        caller: u64,
        action: Action,
        route: &str,
        target: Option<Target<'_>>,
        region: Option<&str>,
    ) -> bool {
        self.key.caller == caller
            && self.key.action == Some(action)
            && *self.key.route == *route
            && self.key.target.as_ref().map(|(kind, name)| (*kind, &**name)) == target.as_ref().map(plain)
            && self.key.region.as_deref() == region
    }
}

fn plain<'a>(target: &Target<'a>) -> (u8, &'a str) {
    match target {
        Target::Tool(name) => (0, name),
        Target::Resource(name) => (1, name),
        Target::Prompt(name) => (2, name),
    }
}
