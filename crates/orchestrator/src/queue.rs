//! What may become of an item of work: it waits, is handed out, taken, kept alive by heartbeats, and ended.
//!
//! Knows no clock and no store. Nothing stays for ever: whatever is not `queued` or `stopped` has an end (`lease_ends_at`),
//! after which [`settle`] puts it back into the queue, or ends it. A token is made each time that an item is handed out; so
//! a worker that was thought dead can do nothing for a session that another one has.

use jiff::{SignedDuration, Timestamp};
use sortie_api::WorkState;
use sortie_ids::{Digest, KeyId};
use sortie_store::WorkItem;

/// What a worker expects at its first heartbeat: that nobody has the item.
pub const NO_HEARTBEAT: &str = "NO_HEARTBEAT";
/// Shortest and longest lease that a worker may ask for, in seconds.
const LEASES: (u32, u32) = (10, 3600);

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// A lease without a heartbeat, in seconds, where the worker does not say.
    pub lease_seconds: u32,
    /// From an item's acknowledgement to its first heartbeat, in seconds.
    pub start_seconds: u32,
}

/// To whom an item is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hand {
    /// What the worker calls itself.
    pub worker: Option<String>,
    /// The key that it asked with.
    pub key: KeyId,
    /// Of the token that it gets.
    pub token: Digest,
}

/// What a worker says with a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// The heartbeat that it believes to be the latest.
    pub expected: Option<String>,
    /// Whether it says so again, since it got no answer.
    pub again: bool,
    /// How long the lease is to last, in seconds.
    pub ttl_seconds: Option<u32>,
}

/// How an item is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// At once.
    pub force: bool,
    /// Whether a worker says so.
    pub by_worker: bool,
}

/// An item that cannot be taken: its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotWaiting(pub WorkState);

/// A heartbeat that expects what is not so: the worker has lost the item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseLost;

/// An item that is over already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlreadyStopped;

/// Does what has become due: an item whose worker is silent waits again, one that was to end has ended, and so has a health
/// check that nobody answered.
pub fn settle(item: &mut WorkItem, now: Timestamp) {
    if item.lease_ends_at.is_none_or(|end| now < end) {
        return;
    }
    match item.state {
        WorkState::Stopped => {}
        _ if item.session.is_none() => {
            item.stop_requested_at.get_or_insert(now);
            end(item, now);
        }
        WorkState::Stopping => end(item, now),
        WorkState::Queued | WorkState::Starting | WorkState::Active => requeue(item, now),
    }
}

/// Whether the item may be handed out, where one that was handed out at `reclaim` or before and is not acknowledged may be
/// again.
pub fn is_claimable(item: &WorkItem, reclaim: Timestamp) -> bool {
    item.state == WorkState::Queued && item.polled_at.is_none_or(|at| at <= reclaim)
}

/// Hands an item out that may be: whoever had it before can do nothing with it from now on.
pub fn hand_out(item: &mut WorkItem, now: Timestamp, hand: Hand) {
    item.polled_at = Some(now);
    item.worker = hand.worker;
    item.key = Some(hand.key);
    item.token = Some(hand.token);
}

/// Its worker takes the item. Said twice, it is as if it was said once.
///
/// # Errors
/// The item was not handed out, or is beyond its beginning.
pub fn acknowledge(item: &mut WorkItem, now: Timestamp, terms: Terms) -> Result<(), NotWaiting> {
    settle(item, now);
    match item.state {
        WorkState::Queued if item.polled_at.is_some() => {
            item.state = WorkState::Starting;
            item.acknowledged_at = Some(now);
            if item.session.is_some() {
                item.lease_ends_at = Some(after(now, terms.start_seconds));
            }
            Ok(())
        }
        WorkState::Starting => Ok(()),
        state => Err(NotWaiting(state)),
    }
}

/// Its worker is at it. The first heartbeat begins the lease, also where the worker did not acknowledge the item; each
/// further one has to name the one before. An item that is to end, or is over, is told so whatever the worker expects.
///
/// # Errors
/// The item is not this worker's, or not any more.
pub fn heartbeat(item: &mut WorkItem, now: Timestamp, beat: &Beat, terms: Terms) -> Result<(), LeaseLost> {
    settle(item, now);
    if item.state == WorkState::Stopped {
        return Ok(());
    }
    let handed_out = item.state != WorkState::Queued || item.polled_at.is_some();
    if !handed_out || (item.state != WorkState::Stopping && !is_expected(item, beat)) {
        return Err(LeaseLost);
    }
    // Each one differs from all before, whatever the clock does.
    let next = item.latest_heartbeat_at.map_or(now, |latest| now.max(latest + SignedDuration::from_micros(1)));
    let ttl = beat.ttl_seconds.or(item.ttl_seconds).unwrap_or(terms.lease_seconds);
    let ttl = if beat.ttl_seconds.is_some() { ttl.clamp(LEASES.0, LEASES.1) } else { ttl };
    item.acknowledged_at.get_or_insert(now);
    item.started_at.get_or_insert(now);
    item.previous_heartbeat_at = item.latest_heartbeat_at.replace(next);
    item.ttl_seconds = Some(ttl);
    if item.session.is_some() {
        item.lease_ends_at = Some(after(now, ttl));
    }
    if item.state != WorkState::Stopping {
        item.state = WorkState::Active;
    }
    Ok(())
}

/// What a heartbeat has to expect, as text.
pub fn shown(heartbeat: Timestamp) -> String {
    format!("{heartbeat:.6}")
}

fn is_expected(item: &WorkItem, beat: &Beat) -> bool {
    let Some(expected) = &beat.expected else { return true };
    let is = |heartbeat: Option<Timestamp>| match heartbeat {
        Some(heartbeat) => *expected == shown(heartbeat),
        None => expected == NO_HEARTBEAT,
    };
    // An answer that was lost is no reason to lose the lease.
    is(item.latest_heartbeat_at) || (beat.again && item.latest_heartbeat_at.is_some() && is(item.previous_heartbeat_at))
}

/// The item is to end: at the word of its worker, or at once. What was asked for by somebody else than a worker is noted, so
/// that the item is not followed by another.
///
/// # Errors
/// It is over already.
pub fn stop(item: &mut WorkItem, now: Timestamp, stop: Stop, terms: Terms) -> Result<(), AlreadyStopped> {
    settle(item, now);
    if item.state == WorkState::Stopped {
        return Err(AlreadyStopped);
    }
    if stop.force {
        if !stop.by_worker {
            item.stop_requested_at.get_or_insert(now);
        }
        end(item, now);
        return Ok(());
    }
    if item.state != WorkState::Stopping {
        item.stop_requested_at = Some(now);
        let held = matches!(item.state, WorkState::Starting | WorkState::Active);
        // Nobody is there to say the word for an item that nobody has.
        let wait = if held { item.ttl_seconds.unwrap_or(terms.lease_seconds) } else { 0 };
        item.lease_ends_at = Some(after(now, wait));
        item.state = WorkState::Stopping;
    }
    Ok(())
}

/// Whether the worker may go on after what it was just told.
pub fn is_extended(item: &WorkItem) -> bool {
    matches!(item.state, WorkState::Active | WorkState::Stopping)
}

fn end(item: &mut WorkItem, now: Timestamp) {
    item.state = WorkState::Stopped;
    item.stopped_at = Some(now);
    item.lease_ends_at = None;
}

fn requeue(item: &mut WorkItem, now: Timestamp) {
    item.state = WorkState::Queued;
    item.queued_at = now;
    item.token = None;
    item.worker = None;
    item.key = None;
    item.polled_at = None;
    item.acknowledged_at = None;
    item.started_at = None;
    item.latest_heartbeat_at = None;
    item.previous_heartbeat_at = None;
    item.lease_ends_at = None;
    item.ttl_seconds = None;
}

fn after(now: Timestamp, seconds: u32) -> Timestamp {
    now.saturating_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
