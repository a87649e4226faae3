//! Sessions at rest that are still in memory, so that the next event finds them there.

use std::collections::{BTreeMap, HashMap};

use sortie_ids::SessionId;

use super::actor::Core;

/// The ones that were lately awake, up to a number of bytes; the longest unused goes first.
#[derive(Default)]
pub(super) struct Kept {
    cores: HashMap<SessionId, (u64, Core)>,
    order: BTreeMap<u64, SessionId>,
    next: u64,
    bytes: usize,
    room: usize,
}

impl Kept {
    pub(super) fn new(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    pub(super) fn put(&mut self, core: Core) {
        let id = core.id().clone();
        drop(self.take(&id));
        self.bytes = self.bytes.saturating_add(core.bytes());
        self.order.insert(self.next, id.clone());
        self.cores.insert(id, (self.next, core));
        self.next += 1;
        while self.bytes > self.room {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            if let Some((_, core)) = self.cores.remove(&oldest) {
                self.bytes = self.bytes.saturating_sub(core.bytes());
            }
        }
    }

    pub(super) fn take(&mut self, id: &SessionId) -> Option<Core> {
        let (at, core) = self.cores.remove(id)?;
        self.order.remove(&at);
        self.bytes = self.bytes.saturating_sub(core.bytes());
        Some(core)
    }
}
