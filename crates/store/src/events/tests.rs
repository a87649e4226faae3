use sortie_ids::SessionId;

use super::*;
use crate::sessions::tests::{Ground, at, everything, idle, message};
use crate::testing::{Fixture, on_both};

on_both![
    pages_of_every_size_put_together_are_the_whole_list,
    an_event_that_takes_its_place_between_two_pages_is_not_missed,
    a_page_holds_so_many_bytes_and_a_larger_event_stands_alone,
    lists_are_filtered_by_type_and_time,
];

/// A session with five events in their places, ten microseconds apart, and three that wait; the ids in the order of lists.
async fn filled(ground: &Ground) -> (SessionId, Vec<EventId>) {
    let made = ground.session().await;
    let placed = [at(10, message("a")), idle(20), at(30, message("b")), idle(40), at(50, message("c"))];
    let waiting = [message("d"), message("e"), message("f")];
    let ids = placed.iter().chain(&waiting).map(|event| event.id.clone()).collect();
    ground
        .commit(&made, |step| {
            step.events = placed.to_vec();
            step.arrived = waiting.to_vec();
        })
        .await;
    (made.session.id, ids)
}

fn ids(page: &EventPage) -> Vec<EventId> {
    page.lines.iter().map(|line| serde_json::from_str::<Event>(line).expect("event").id).collect()
}

async fn pages_of_every_size_put_together_are_the_whole_list(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (session, expected) = filled(&ground).await;
    for descending in [false, true] {
        let mut expected = expected.clone();
        if descending {
            expected.reverse();
        }
        for limit in 1..=9 {
            let mut asked = EventQuery { descending, limit, ..everything() };
            let mut found = Vec::new();
            loop {
                let page = ground.fixture.store.list_events(&session, &asked).await.expect("page");
                assert!(page.lines.len() <= usize::try_from(limit).expect("small"));
                found.extend(ids(&page));
                asked.place = page.next;
                if page.next.is_none() {
                    break;
                }
                assert!(!page.lines.is_empty());
            }
            assert_eq!(found, expected, "{limit} at a time, descending: {descending}");
        }
    }
}

async fn an_event_that_takes_its_place_between_two_pages_is_not_missed(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (session, expected) = filled(&ground).await;
    let asked = EventQuery { limit: 6, ..everything() };
    let page = ground.fixture.store.list_events(&session, &asked).await.expect("page");
    assert_eq!(ids(&page), expected[..6]);
    // The last one that waits takes its place before the others.
    let waiting = ground.fixture.store.waiting(&session).await.expect("waiting");
    let record = ground.fixture.store.any_session(&session).await.expect("session");
    ground.commit(&record, |step| step.events = vec![at(60, waiting[2].clone())]).await;
    let asked = EventQuery { place: page.next, ..asked };
    let rest = ground.fixture.store.list_events(&session, &asked).await.expect("page");
    assert_eq!(ids(&rest), [expected[7].clone(), expected[6].clone()]);
}

async fn a_page_holds_so_many_bytes_and_a_larger_event_stands_alone(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let made = ground.session().await;
    let large = at(30, message(&"x".repeat(5000)));
    let events = vec![idle(10), idle(20), large, idle(40), idle(50)];
    let size = |event: &Event| u64::try_from(serde_json::to_string(event).expect("json").len()).expect("small");
    let (two, expected) = (size(&events[0]) + size(&events[1]), events.clone());
    ground.commit(&made, |step| step.events = events).await;
    for descending in [false, true] {
        let mut asked = EventQuery { bytes: two, descending, ..everything() };
        let mut sizes = Vec::new();
        let mut found = Vec::new();
        loop {
            let page = ground.fixture.store.list_events(&made.session.id, &asked).await.expect("page");
            sizes.push(page.lines.len());
            found.extend(ids(&page));
            asked.place = page.next;
            if page.next.is_none() {
                break;
            }
        }
        if descending {
            found.reverse();
        }
        assert_eq!(found, expected.iter().map(|event| event.id.clone()).collect::<Vec<_>>());
        assert!(sizes.iter().all(|size| *size <= 3) && sizes.len() <= 4, "{sizes:?}");
    }
}

async fn lists_are_filtered_by_type_and_time(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (session, expected) = filled(&ground).await;
    let found = async |asked: EventQuery| {
        let page = ground.fixture.store.list_events(&session, &asked).await.expect("page");
        ids(&page).iter().filter_map(|id| expected.iter().position(|known| known == id)).collect::<Vec<_>>()
    };
    let kinds = |kinds: &[&str]| kinds.iter().map(|kind| (*kind).to_owned()).collect();
    assert_eq!(found(EventQuery { kinds: kinds(&["session.status_idle"]), ..everything() }).await, [1, 3]);
    assert_eq!(found(EventQuery { kinds: kinds(&["user.message"]), ..everything() }).await, [0, 2, 4, 5, 6, 7]);
    assert!(found(EventQuery { kinds: kinds(&["user_message", "user"]), ..everything() }).await.is_empty());
    assert_eq!(found(EventQuery { from: Some(20), to: Some(40), ..everything() }).await, [1, 2, 3]);
    assert_eq!(found(EventQuery { from: Some(41), ..everything() }).await, [4]);
    let descending = EventQuery { to: Some(20), descending: true, ..everything() };
    assert_eq!(found(descending).await, [1, 0]);
}
