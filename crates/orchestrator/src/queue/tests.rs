use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use sortie_api::WorkState;
use sortie_ids::{Digest, EnvironmentId, KeyId, SessionId};
use sortie_store::WorkItem;

use super::*;

const TERMS: Terms = Terms { lease_seconds: 60, start_seconds: 90 };
const RECLAIM: i64 = 5;
const FORCE: Stop = Stop { force: true, by_worker: true };
const ASK: Stop = Stop { force: false, by_worker: false };

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("time")
}

fn item() -> WorkItem {
    WorkItem::new(EnvironmentId::random(), Some(SessionId::random()), at(0))
}

fn hand(number: u32) -> Hand {
    Hand { worker: None, key: KeyId::random(), token: Digest::of(&number.to_be_bytes()) }
}

fn beat(expected: &str) -> Beat {
    Beat { expected: Some(expected.to_owned()), ..Beat::default() }
}

/// An item that is handed out and taken at second 0.
fn taken() -> WorkItem {
    let mut item = item();
    hand_out(&mut item, at(0), hand(0));
    acknowledge(&mut item, at(0), TERMS).expect("taken");
    item
}

#[test]
fn an_item_is_served_to_its_end() {
    let mut item = taken();
    assert_eq!(item.state, WorkState::Starting);
    heartbeat(&mut item, at(1), &beat(NO_HEARTBEAT), TERMS).expect("first");
    assert_eq!((item.state, item.ttl_seconds), (WorkState::Active, Some(60)));
    let first = shown(item.latest_heartbeat_at.expect("heartbeat"));
    heartbeat(&mut item, at(1), &beat(&first), TERMS).expect("second");
    let second = shown(item.latest_heartbeat_at.expect("heartbeat"));
    assert_ne!(first, second, "each differs, though no time has passed");
    for stale in [first.as_str(), NO_HEARTBEAT, "", "2026-01-01T00:00:00Z"] {
        assert_eq!(heartbeat(&mut item, at(2), &beat(stale), TERMS), Err(LeaseLost), "{stale}");
    }
    stop(&mut item, at(3), ASK, TERMS).expect("asked");
    assert_eq!((item.state, item.stop_requested_at), (WorkState::Stopping, Some(at(3))));
    heartbeat(&mut item, at(4), &beat("whatever"), TERMS).expect("told");
    assert_eq!(item.state, WorkState::Stopping);
    stop(&mut item, at(5), FORCE, TERMS).expect("done");
    assert_eq!((item.state, item.stopped_at), (WorkState::Stopped, Some(at(5))));
    assert_eq!(stop(&mut item, at(6), FORCE, TERMS), Err(AlreadyStopped));
    heartbeat(&mut item, at(6), &beat(&second), TERMS).expect("told");
    assert!(!is_extended(&item));
}

#[test]
fn a_heartbeat_whose_answer_was_lost_is_said_again() {
    let mut item = taken();
    heartbeat(&mut item, at(1), &beat(NO_HEARTBEAT), TERMS).expect("first");
    let again = Beat { again: true, ..beat(NO_HEARTBEAT) };
    heartbeat(&mut item, at(2), &again, TERMS).expect("the first again");
    let first = shown(item.previous_heartbeat_at.expect("heartbeat"));
    heartbeat(&mut item, at(2), &Beat { again: true, ..beat(&first) }, TERMS).expect("the one before, again");
    assert_eq!(heartbeat(&mut item, at(2), &again, TERMS), Err(LeaseLost), "no older one");
}

#[test]
fn what_is_taken_and_never_begun_waits_again() {
    let mut item = taken();
    settle(&mut item, at(89));
    assert_eq!(item.state, WorkState::Starting);
    settle(&mut item, at(90));
    assert_eq!((item.state, item.token, item.queued_at), (WorkState::Queued, None, at(90)));
    assert_eq!(heartbeat(&mut item, at(91), &beat(NO_HEARTBEAT), TERMS), Err(LeaseLost));
    assert_eq!(acknowledge(&mut item, at(91), TERMS), Err(NotWaiting(WorkState::Queued)));
}

#[test]
fn what_a_silent_worker_was_to_end_has_ended() {
    let mut item = taken();
    heartbeat(&mut item, at(1), &beat(NO_HEARTBEAT), TERMS).expect("first");
    stop(&mut item, at(10), ASK, TERMS).expect("asked");
    settle(&mut item, at(69));
    assert_eq!(item.state, WorkState::Stopping);
    settle(&mut item, at(70));
    assert_eq!(item.state, WorkState::Stopped);
    // Nobody has this one, so nobody is waited for.
    let mut item = self::item();
    stop(&mut item, at(0), ASK, TERMS).expect("asked");
    assert_eq!(item.state, WorkState::Stopping);
    settle(&mut item, at(0));
    assert_eq!(item.state, WorkState::Stopped);
}

#[test]
fn a_health_check_ends_unanswered_or_by_a_worker() {
    let check = || {
        let mut check = WorkItem::new(EnvironmentId::random(), None, at(0));
        check.lease_ends_at = Some(at(60));
        check
    };
    let mut failed = check();
    hand_out(&mut failed, at(1), hand(0));
    acknowledge(&mut failed, at(1), TERMS).expect("taken");
    settle(&mut failed, at(60));
    assert_eq!((failed.state, failed.stop_requested_at), (WorkState::Stopped, Some(at(60))));
    let mut passed = check();
    hand_out(&mut passed, at(1), hand(0));
    acknowledge(&mut passed, at(1), TERMS).expect("taken");
    stop(&mut passed, at(2), FORCE, TERMS).expect("stopped");
    assert_eq!((passed.state, passed.stop_requested_at), (WorkState::Stopped, None));
}

#[test]
fn a_lease_is_as_long_as_the_worker_asks_within_bounds() {
    for (asked, given) in [(1, 10), (45, 45), (1_000_000, 3600)] {
        let mut item = taken();
        let beat = Beat { ttl_seconds: Some(asked), ..beat(NO_HEARTBEAT) };
        heartbeat(&mut item, at(1), &beat, TERMS).expect("first");
        assert_eq!(item.ttl_seconds, Some(given));
        assert_eq!(item.lease_ends_at, Some(at(1 + i64::from(given))));
    }
}

/// What happens to an item, and who does it: a worker by its number.
#[derive(Clone, Debug)]
enum Act {
    Pass(i64),
    Poll(usize),
    Acknowledge(usize),
    /// With the heartbeat that it knows.
    Beat(usize),
    /// With one that it makes up.
    Guess,
    Stop,
    Force(usize),
    ForceByOperator,
}

const WORKERS: usize = 3;

fn acts() -> impl Strategy<Value = Act> {
    let worker = || 0..WORKERS;
    prop_oneof![
        4 => (0i64..40).prop_map(Act::Pass),
        4 => worker().prop_map(Act::Poll),
        4 => worker().prop_map(Act::Acknowledge),
        8 => worker().prop_map(Act::Beat),
        1 => Just(Act::Guess),
        1 => Just(Act::Stop),
        1 => worker().prop_map(Act::Force),
        1 => Just(Act::ForceByOperator),
    ]
}

/// What a worker knows.
#[derive(Clone, Debug, Default)]
struct Worker {
    token: Option<Digest>,
    heartbeat: Option<String>,
    /// Until when it believes to have the item.
    until: Option<i64>,
}

/// Where the item is, told again in the shortest way.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Model {
    Queued { polled: Option<i64> },
    Starting { end: i64 },
    Active { end: i64 },
    Stopping { end: i64 },
    Stopped,
}

impl Model {
    fn pass(self, now: i64) -> Self {
        match self {
            Self::Starting { end } | Self::Active { end } if end <= now => Self::Queued { polled: None },
            Self::Stopping { end } if end <= now => Self::Stopped,
            same => same,
        }
    }

    fn state(self) -> WorkState {
        match self {
            Self::Queued { .. } => WorkState::Queued,
            Self::Starting { .. } => WorkState::Starting,
            Self::Active { .. } => WorkState::Active,
            Self::Stopping { .. } => WorkState::Stopping,
            Self::Stopped => WorkState::Stopped,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn one_worker_has_an_item_and_nothing_stays_for_ever(acts in prop::collection::vec(acts(), 1..60)) {
        let (mut item, mut model, mut now, mut tokens) = (item(), Model::Queued { polled: None }, 0, 0);
        let mut workers = vec![Worker::default(); WORKERS];
        let (lease, start) = (i64::from(TERMS.lease_seconds), i64::from(TERMS.start_seconds));
        for act in acts {
            let before = item.latest_heartbeat_at;
            model = model.pass(now);
            settle(&mut item, at(now));
            // Its token tells a worker from one that had the item before.
            let known = |item: &WorkItem, worker: &Worker| worker.token.is_some() && item.token == worker.token;
            match act {
                Act::Pass(seconds) => {
                    now += seconds;
                    model = model.pass(now);
                    settle(&mut item, at(now));
                }
                Act::Poll(number) => {
                    settle(&mut item, at(now));
                    let free = matches!(model, Model::Queued { polled } if polled.is_none_or(|at| at <= now - RECLAIM));
                    prop_assert_eq!(is_claimable(&item, at(now - RECLAIM)), free);
                    if free {
                        tokens += 1;
                        hand_out(&mut item, at(now), hand(tokens));
                        workers[number] = Worker { token: item.token, ..Worker::default() };
                        model = Model::Queued { polled: Some(now) };
                    }
                }
                Act::Acknowledge(number) if known(&item, &workers[number]) => {
                    let done = acknowledge(&mut item, at(now), TERMS);
                    let taken = match model {
                        Model::Queued { polled: Some(_) } => {
                            model = Model::Starting { end: now + start };
                            true
                        }
                        Model::Starting { .. } => true,
                        _ => false,
                    };
                    prop_assert_eq!(done.is_ok(), taken);
                }
                Act::Beat(number) if known(&item, &workers[number]) => {
                    let expected = workers[number].heartbeat.clone().unwrap_or_else(|| NO_HEARTBEAT.to_owned());
                    let done = heartbeat(&mut item, at(now), &beat(&expected), TERMS);
                    match model {
                        Model::Queued { polled: Some(_) } | Model::Starting { .. } | Model::Active { .. } => {
                            prop_assert!(done.is_ok());
                            model = Model::Active { end: now + lease };
                            workers[number].heartbeat = item.latest_heartbeat_at.map(shown);
                            workers[number].until = Some(now + lease);
                        }
                        Model::Queued { polled: None } => prop_assert_eq!(done, Err(LeaseLost)),
                        Model::Stopping { .. } => {
                            prop_assert!(done.is_ok());
                            model = Model::Stopping { end: now + lease };
                            workers[number].heartbeat = item.latest_heartbeat_at.map(shown);
                            workers[number].until = None;
                        }
                        Model::Stopped => {
                            prop_assert!(done.is_ok() && !is_extended(&item));
                            workers[number].until = None;
                        }
                    }
                }
                Act::Guess => {
                    let done = heartbeat(&mut item, at(now), &beat("guess"), TERMS);
                    if let Model::Stopping { end } = &mut model {
                        *end = now + lease;
                    }
                    let told = matches!(model, Model::Stopping { .. } | Model::Stopped);
                    prop_assert_eq!(done.is_ok(), told);
                }
                Act::Stop => {
                    let done = stop(&mut item, at(now), ASK, TERMS);
                    prop_assert_eq!(done.is_err(), model == Model::Stopped);
                    model = match model {
                        Model::Queued { .. } => Model::Stopping { end: now },
                        Model::Starting { .. } | Model::Active { .. } => Model::Stopping { end: now + lease },
                        same => same,
                    };
                }
                Act::Force(number) if known(&item, &workers[number]) => {
                    prop_assert_eq!(stop(&mut item, at(now), FORCE, TERMS).is_err(), model == Model::Stopped);
                    workers[number].until = None;
                    model = Model::Stopped;
                }
                Act::ForceByOperator => {
                    prop_assert_eq!(stop(&mut item, at(now), FORCE, TERMS).is_err(), model == Model::Stopped);
                    model = Model::Stopped;
                }
                Act::Acknowledge(_) | Act::Beat(_) | Act::Force(_) => {}
            }
            prop_assert_eq!(item.state, model.state());
            if let (Some(before), Some(after)) = (before, item.latest_heartbeat_at) {
                prop_assert!(before <= after);
            }
            let believing = workers.iter().filter(|worker| worker.until.is_some_and(|until| now < until));
            let held = believing.filter(|worker| item.state == WorkState::Active && item.token == worker.token);
            let others = workers.iter().filter(|worker| worker.until.is_some_and(|until| now < until)).count();
            prop_assert!(held.count() <= 1);
            prop_assert!(item.state != WorkState::Active || others <= 1, "two believe to have it: {:?}", workers);
        }
        let end = SignedDuration::from_secs(lease.max(start));
        settle(&mut item, at(now) + end);
        prop_assert!(matches!(item.state, WorkState::Queued | WorkState::Stopped), "{:?}", item);
    }
}
