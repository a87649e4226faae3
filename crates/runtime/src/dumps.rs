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

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn nothing_is_left_behind() {
        forbid_dumps().expect("forbidden");
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        assert_eq!(dumpable_behavior().expect("known"), DumpableBehavior::NotDumpable);
    }
}
