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

    #[cfg(test)]
    pub(super) fn resize(&mut self, room: usize) {
        self.room = room;
        while self.bytes > room && self.drop_oldest() {}
    }

    pub(super) fn put(&mut self, core: Core) {
        let id = core.id().clone();
        drop(self.take(&id));
        self.bytes = self.bytes.saturating_add(core.bytes());
        self.order.insert(self.next, id.clone());
        self.cores.insert(id, (self.next, core));
        self.next += 1;
        while self.bytes > self.room && self.drop_oldest() {}
    }

    pub(super) fn take(&mut self, id: &SessionId) -> Option<Core> {
        let (at, core) = self.cores.remove(id)?;
        self.order.remove(&at);
        self.bytes = self.bytes.saturating_sub(core.bytes());
        Some(core)
    }

    fn drop_oldest(&mut self) -> bool {
        let oldest = self.order.first_key_value().map(|(_, id)| id.clone());
        oldest.is_some_and(|id| self.take(&id).is_some())
    }
}
