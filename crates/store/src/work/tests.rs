use sortie_api::{CreateEnvironmentKey, Event, SessionStatus};
use sortie_ids::EventId;
use tokio::task::JoinSet;

use super::*;
use crate::sessions::tests::{Ground, at};
use crate::testing::first;
use crate::testing::{Fixture, on_both};

on_both![
    a_session_has_one_item_that_is_not_over,
    what_a_session_asks_for_while_its_worker_leaves_is_not_lost,
    items_are_handed_out_once_and_again_when_nobody_takes_them,
    one_of_many_that_ask_at_once_gets_an_item,
    work_lies_in_its_workspace_and_in_environments_with_workers,
    keys_of_environments_are_listed_and_withdrawn,
];

fn hand(item: &mut WorkItem, now: Timestamp) {
    item.polled_at = Some(now);
}

fn settle(_: &mut WorkItem, _: Timestamp) {}

fn stopped(item: &mut WorkItem, now: Timestamp) {
    item.state = WorkState::Stopped;
    item.stopped_at = Some(now);
}

impl Ground {
    async fn claim(&self) -> Claim {
        let (store, now) = (&self.fixture.store, self.fixture.store.exact_now());
        let reclaim = now - jiff::SignedDuration::from_secs(5);
        store.claim_work(&self.fixture.home, &self.environment, reclaim, settle, hand).await.expect("claim")
    }

    async fn claimed(&self) -> WorkItem {
        match self.claim().await {
            Claim::Item(item) => *item,
            nothing @ Claim::Nothing(_) => panic!("{nothing:?}"),
        }
    }

    async fn items(&self) -> Vec<WorkItem> {
        let page = self.fixture.store.list_work(&self.fixture.home, &self.environment, first(100)).await;
        page.expect("list").items
    }
}

async fn a_session_has_one_item_that_is_not_over(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let mut changes = ground.fixture.store.changes();
    let session = ground.session().await;
    assert_eq!(ground.claim().await, Claim::Nothing(Horizon::default()));
    let session = ground.commit(&session, |step| step.wake = true).await;
    assert_eq!(changes.recv().await, Ok(Change::WorkWaits(ground.environment.clone())));
    let item = ground.claimed().await;
    assert_eq!(item.data(), WorkData::Session { id: session.session.id.clone() });
    let session = ground.commit(&session, |step| step.wake = true).await;
    assert_eq!(ground.items().await.len(), 1, "it has one");
    assert!(changes.try_recv().is_err(), "nothing new waits");
    // An item that is over while its session rests is not followed by another one.
    let (home, environment) = (&ground.fixture.home, &ground.environment);
    ground.fixture.store.change_work(home, environment, &item.id, stopped).await.expect("stopped");
    assert_eq!(ground.items().await.len(), 1);
    let session = ground.commit(&session, |step| step.wake = true).await;
    assert_eq!(ground.items().await.len(), 2, "the last one is over");
    // A session that takes nothing more needs no worker.
    ground
        .commit(&session, |step| {
            step.shown.status = SessionStatus::Terminated;
            step.shown.archived_at = Some(step.shown.created_at);
        })
        .await;
    assert!(ground.items().await.iter().all(|item| item.state == WorkState::Stopped));
}

async fn what_a_session_asks_for_while_its_worker_leaves_is_not_lost(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let session = ground.session().await;
    let session = ground.commit(&session, |step| step.wake = true).await;
    let item = ground.claimed().await;
    let uses = serde_json::json!({
        "type": "agent.tool_use", "id": EventId::random(), "name": "bash", "input": {}, "processed_at": null,
        "evaluated_permission": "allow", "evaluation": {"type": "always_allow"},
    });
    let uses: Event = serde_json::from_value(uses).expect("event");
    let waits = async |ground: &Ground, item: &WorkItem| {
        let (home, environment) = (&ground.fixture.home, &ground.environment);
        ground.fixture.store.change_work(home, environment, &item.id, stopped).await.expect("stopped");
        ground.items().await.iter().filter(|item| item.state == WorkState::Queued).count()
    };
    // The session asks for a tool while it has a worker that is about to leave.
    let session = ground
        .commit(&session, |step| {
            step.events.push(at(1_800_000_000_000_001, uses));
            step.wake = true;
        })
        .await;
    assert_eq!(waits(&ground, &item).await, 1, "another item, since the session waits for a worker");
    // One that ends without being asked for anything is not followed by another: no endless loop of failing workers.
    let second = ground.claimed().await;
    assert_ne!(second.id, item.id);
    assert_eq!(waits(&ground, &second).await, 0);
    drop(session);
}

async fn items_are_handed_out_once_and_again_when_nobody_takes_them(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let mut expected = Vec::new();
    for _ in 0..3 {
        let session = ground.session().await;
        ground.commit(&session, |step| step.wake = true).await;
        expected.push(session.session.id);
    }
    let store = &ground.fixture.store;
    let counts = async || {
        let reclaim = store.exact_now() - jiff::SignedDuration::from_secs(5);
        store.count_work(&ground.fixture.home, &ground.environment, reclaim).await.expect("counts")
    };
    assert_eq!((counts().await.waiting, counts().await.handed_out), (3, 0));
    let mut handed = Vec::new();
    for _ in 0..3 {
        handed.push(ground.claimed().await.session.expect("session"));
    }
    assert_eq!(handed, expected, "in their order");
    assert_eq!((counts().await.waiting, counts().await.handed_out), (0, 3));
    let since = store.exact_now();
    assert_eq!(ground.claim().await, Claim::Nothing(Horizon { handed_out: Some(since), lease_ends: None }));
    ground.fixture.pass(4);
    assert!(matches!(ground.claim().await, Claim::Nothing(_)));
    ground.fixture.pass(1);
    assert_eq!(ground.claimed().await.session.as_ref(), expected.first());
}

async fn one_of_many_that_ask_at_once_gets_an_item(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    for _ in 0..5 {
        let session = ground.session().await;
        ground.commit(&session, |step| step.wake = true).await;
    }
    let mut claims = JoinSet::new();
    for _ in 0..20 {
        let (store, home, environment) =
            (ground.fixture.store.clone(), ground.fixture.home.clone(), ground.environment.clone());
        claims.spawn(async move {
            let before = store.exact_now() - jiff::SignedDuration::from_secs(5);
            store.claim_work(&home, &environment, before, settle, hand).await.expect("claim")
        });
    }
    let mut won = Vec::new();
    while let Some(claim) = claims.join_next().await {
        if let Claim::Item(item) = claim.expect("task") {
            won.push(item.id);
        }
    }
    won.sort();
    won.dedup();
    assert_eq!(won.len(), 5, "each item once");
}

async fn work_lies_in_its_workspace_and_in_environments_with_workers(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let session = ground.session().await;
    ground.commit(&session, |step| step.wake = true).await;
    let (store, foreign, home) = (&ground.fixture.store, &ground.fixture.foreign, &ground.fixture.home);
    let now = store.exact_now();
    let claim = store.claim_work(foreign, &ground.environment, now, settle, hand).await;
    assert!(matches!(claim, Err(StoreError::NotFound(Object::Environment))), "{claim:?}");
    let claim = store.claim_work(home, &ground.cloud, now, settle, hand).await;
    assert!(matches!(claim, Err(StoreError::NoWorkers(_))), "{claim:?}");
    let item = ground.claimed().await;
    for (workspace, environment) in [(foreign, &ground.environment), (home, &ground.cloud)] {
        let found = store.work(workspace, environment, &item.id).await;
        assert!(matches!(found, Err(StoreError::NotFound(Object::Work))), "{found:?}");
    }
    let listed = store.list_work(foreign, &ground.environment, first(1)).await;
    assert!(matches!(listed, Err(StoreError::NotFound(Object::Environment))), "{listed:?}");
}

async fn keys_of_environments_are_listed_and_withdrawn(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (store, home) = (&ground.fixture.store, &ground.fixture.home);
    let new = |name: &str| CreateEnvironmentKey { name: name.parse().expect("name"), expires_at: None };
    let make = async |name| {
        let made = store.create_environment_key(home, &ground.environment, new(name), &ground.fixture.limits).await;
        made.expect("key")
    };
    let (one, two) = (make("one").await, make("two").await);
    let known = store.key_by_digest(&one.secret.digest()).await.expect("found").expect("known");
    assert_eq!((known.kind, known.environment.as_ref()), (sortie_api::KeyKind::Environment, Some(&ground.environment)));
    let listed = store.list_environment_keys(home, &ground.environment, first(10)).await.expect("list").items;
    assert_eq!(listed, [two.key.clone(), one.key.clone()]);
    let archived = store.archive_environment_key(home, &ground.environment, &one.key.id).await.expect("archived");
    assert!(archived.fresh);
    let known = store.key_by_digest(&one.secret.digest()).await.expect("found").expect("known");
    assert!(!known.is_valid(store.now()), "at once");
    let listed = store.list_environment_keys(home, &ground.environment, first(10)).await.expect("list").items;
    assert_eq!(listed, [two.key.clone()]);
    for (environment, error) in [(&ground.cloud, "workers"), (&ground.archived, "archived")] {
        let made = store.create_environment_key(home, environment, new("x"), &ground.fixture.limits).await;
        let said = made.expect_err("refused").to_string();
        assert!(said.contains(error), "{said}");
    }
    let other = store.archive_environment_key(home, &ground.archived, &two.key.id).await;
    assert!(matches!(other, Err(StoreError::NotFound(Object::Key))));
}
