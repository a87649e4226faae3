//! Requests that did not prove who was calling: counted, since whoever can send them could fill the disk with records.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use sortie_api::HopError;
use sortie_audit::CallsUnidentified;

/// Most reasons that are told apart for one route.
const REASONS: usize = 64;
/// What stands for the others.
const OTHER: &str = "other";

/// What was counted since it was told last. Bounded: one for each route that there is, and one for all hosts without one.
#[derive(Default)]
pub(super) struct Unidentified(Mutex<BTreeMap<Option<String>, Counted>>);

struct Counted {
    since: jiff::Timestamp,
    reasons: BTreeMap<String, u64>,
}

impl Unidentified {
    pub(super) fn count(&self, route: Option<&str>, error: &HopError) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = all
            .entry(route.map(ToOwned::to_owned))
            .or_insert_with(|| Counted { since: jiff::Timestamp::now(), reasons: BTreeMap::new() });
        let mut reason = super::cut(&error.to_string());
        if counted.reasons.len() >= REASONS && !counted.reasons.contains_key(&reason) {
            reason = OTHER.to_owned();
        }
        let count = counted.reasons.entry(reason).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn take(&self) -> Vec<CallsUnidentified> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let told = all.into_iter().map(|(route, Counted { since, reasons })| CallsUnidentified {
            route,
            since: format!("{since:.6}"),
            count: reasons.values().fold(0, |sum, count| sum.saturating_add(*count)),
            reasons,
        });
        told.collect()
    }
}

#[cfg(test)]
mod tests {
    use sortie_api::Hop;

    use super::*;

    #[test]
    fn a_flood_is_a_few_numbers() {
        let counts = Unidentified::default();
        for n in 0..1000 {
            counts.count(Some("docs"), &HopError::new(Hop::Identity, format!("reason {n}")));
            counts.count(None, &HopError::no_route());
        }
        let [nowhere, docs] = counts.take().try_into().expect("two");
        assert_eq!((nowhere.route, nowhere.count, nowhere.reasons.len()), (None, 1000, 1));
        assert_eq!((docs.route.as_deref(), docs.count, docs.reasons.len()), (Some("docs"), 1000, REASONS + 1));
        assert_eq!(docs.reasons[OTHER], 1000 - 64);
        assert!(counts.take().is_empty());
    }
}
