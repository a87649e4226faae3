//! May this caller do that? Policies are Cedar, from `.cedar` files or a TOML file with a short form; a decision is a
//! value with its reasons.
//!
//! Denied unless permitted, and what is forbidden stays forbidden. The only crate that knows Cedar: none of its types is
//! public here. Pure: files are read by a function that the caller gives, and the time is an argument.

mod cache;
mod caller;
mod case;
mod conditions;
mod decision;
mod engine;
mod error;
mod explain;
mod facts;
mod file;
mod index;
mod learn;
mod moment;
mod policy;
mod query;
mod recorded;
mod review;
mod rules;
mod schema;
mod slice;
mod statements;
mod toml_values;

pub use case::{Case, CaseResult};
pub use decision::{Decision, Effect, Fact, PolicyName};
pub use engine::Engine;
pub use error::PolicyError;
pub use explain::{Explanation, Looked, PolicyText, Verdict};
pub use facts::{FactFault, FactForm, Found};
pub use learn::{Learner, Proposal, Trial};
pub use query::{Act, Counts, Query, Target};
pub use recorded::{Answer, Recorded, Unknown};
pub use review::{Access, Grant, Reach, Subject};
