//! May this caller do that? Policies are Cedar, from `.cedar` files or a TOML file with a short form; a decision is a
//! value with its reasons.
//!
//! Denied unless permitted, and what is forbidden stays forbidden. The only crate that knows Cedar: none of its types is
//! public here. Pure: files are read by a function that the caller gives, and the time is an argument.

mod decision;
mod engine;
mod error;
mod query;

pub use decision::{Decision, Effect, Fact, PolicyName};
pub use engine::Engine;
pub use error::PolicyError;
pub use query::{Act, Counts, Mode, Query, Target};
