//! The gateway as the control point, attacked from outside: a running hub and gateway, a server behind them that writes
//! down everything it is asked, and callers who want more than they may. What matters most in each test is what the
//! server was never asked.

#![expect(clippy::indexing_slicing, reason = "a missing part of an answer is a failed test")]

#[path = "../e2e/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the harness of all end-to-end tests, of which each binary uses a part")]
mod common;
#[path = "../hostile/recorder.rs"]
#[allow(dead_code, reason = "shared with the tests of hostile HTTP")]
mod recorder;

mod bodies;
mod clock;
mod exchange;
mod files;
mod identity;
mod lists;
mod oracle;
mod provider;
mod rebinding;
mod server;
mod sessions;
mod support;
