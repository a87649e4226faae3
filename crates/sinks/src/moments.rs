//! For tests: the moments of a delivery, at each of which the process may end.

use std::fmt;
use std::sync::Arc;

/// A moment of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Records were read, and not sent yet.
    Read,
    /// They were sent, and the receiver has not acknowledged them yet; never with a receiver that does so in its answer.
    Sent,
    /// They were acknowledged, and the cursor is where it was.
    Acknowledged,
    /// The cursor has moved.
    Moved,
}

/// For tests: told of each moment, and stopped at each step that a cursor takes to the disk. Nothing is by default.
#[derive(Clone, Default)]
pub struct Watch {
    /// The steps of cursors.
    pub disk: sortie_audit::Faults,
    told: Option<Arc<dyn Fn(Moment) + Send + Sync>>,
}

impl Watch {
    /// Tells this of each moment.
    pub fn new(disk: sortie_audit::Faults, told: impl Fn(Moment) + Send + Sync + 'static) -> Self {
        Self { disk, told: Some(Arc::new(told)) }
    }

    pub(crate) fn tell(&self, moment: Moment) {
        if let Some(told) = &self.told {
            told(moment);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch(..)")
    }
}
