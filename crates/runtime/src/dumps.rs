//! What is in memory stays in memory.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps this process from leaving its memory behind: no core is written, whatever the machine's limits and its core
/// pattern say, and no other process of the same user may attach to it or read its memory or environment. To be called
/// once at the start, before secrets are read. Programs that this one starts inherit the limit, and nothing else.
///
/// # Errors
/// What the system said.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
