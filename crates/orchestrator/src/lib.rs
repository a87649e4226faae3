//! Runs agents: what happens in a session, from a message to the end of a turn.
//!
//! What may happen next is decided by a state machine that knows no clock, no network and no store; a thin shell around it
//! stores each transition before it acts on it. So a session goes on after a crash where its last stored transition left it,
//! and nothing that may have run is done again in silence.

pub mod agent;
pub mod live;
pub mod machine;
pub mod mcp;
pub mod model;
pub mod models;
pub mod prompt;
pub mod queue;
pub mod sessions;
pub mod transcript;
pub mod work;
