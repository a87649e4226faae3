//! Requests that did not prove who was calling: counted, since whoever can send them could fill the disk with records.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sortie_api::HopError;
use sortie_audit::CallsUnidentified;

/// Most reasons that are told apart for one route.
const REASONS: usize = 64;
/// What stands for the others.
const OTHER: &str = "other";

/// How often those of one route are told of.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What was counted since it was told last. Bounded: one for each route that there is, and one for all hosts without one.
#[derive(Default)]
pub(super) struct Unidentified(Mutex<BTreeMap<Option<String>, Counted>>);

#[derive(Default)]
struct Counted {
    since: Option<jiff::Timestamp>,
    reasons: BTreeMap<String, u64>,
    /// When it was told last.
    told: Option<Instant>,
}

impl Unidentified {
    /// Counts a request. Returns what is to be told at once: the first one is, in ten seconds.
    pub(super) fn count(&self, route: Option<&str>, error: &HopError) -> Option<CallsUnidentified> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = all.entry(route.map(ToOwned::to_owned)).or_default();
        counted.since.get_or_insert_with(jiff::Timestamp::now);
        let mut reason = super::cut(&error.to_string());
        if counted.reasons.len() >= REASONS && !counted.reasons.contains_key(&reason) {
            reason = OTHER.to_owned();
        }
        let count = counted.reasons.entry(reason).or_default();
        *count = count.saturating_add(1);
        if counted.is_due() { counted.take(route) } else { None }
    }

    /// What is to be told by now; at the end everything.
    pub(super) fn take(&self, everything: bool) -> Vec<CallsUnidentified> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A route that is gone is forgotten here.
        all.retain(|_, counted| counted.since.is_some() || !counted.is_due());
        let due = all.iter_mut().filter(|(_, counted)| everything || counted.is_due());
        due.filter_map(|(route, counted)| counted.take(route.as_deref())).collect()
    }
}

impl Counted {
    fn is_due(&self) -> bool {
        self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY)
    }

    fn take(&mut self, route: Option<&str>) -> Option<CallsUnidentified> {
        let since = self.since.take()?;
        let reasons = std::mem::take(&mut self.reasons);
        self.told = Some(Instant::now());
        Some(CallsUnidentified {
            route: route.map(ToOwned::to_owned),
            since: format!("{since:.6}"),
            count: reasons.values().fold(0, |sum, count| sum.saturating_add(*count)),
            reasons,
        })
    }
}

#[cfg(test)]
mod tests {
    use sortie_api::Hop;

    use super::*;

    #[test]
    fn a_flood_is_a_few_numbers() {
        let counts = Unidentified::default();
        // Whoever is killed now has lost how many there were, and not that there were some.
        let first = [
            counts.count(Some("docs"), &HopError::new(Hop::Identity, "the first one")),
            counts.count(None, &HopError::no_route()),
        ];
        assert!(first.iter().flatten().all(|told| told.count == 1) && first.iter().all(Option::is_some));
        for n in 0..1000 {
            let route = counts.count(Some("docs"), &HopError::new(Hop::Identity, format!("reason {n}")));
            assert!(route.or(counts.count(None, &HopError::no_route())).is_none(), "not one by one");
        }
        assert!(counts.take(false).is_empty(), "not yet");
        let [nowhere, docs] = counts.take(true).try_into().expect("two");
        assert_eq!((nowhere.route, nowhere.count, nowhere.reasons.len()), (None, 1000, 1));
        assert_eq!((docs.route.as_deref(), docs.count, docs.reasons.len()), (Some("docs"), 1000, REASONS + 1));
        assert_eq!(docs.reasons[OTHER], 1000 - 64);
        assert!(counts.take(true).is_empty());
    }
}
