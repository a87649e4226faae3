use sortie_api::{CreateKey, CreatedKey, DisplayName, KeyKind};
use sortie_ids::KeyId;
use tokio::task::JoinSet;

use super::*;
use crate::TunnelRecord;
use crate::testing::{Fixture, all, on_both};

on_both![
    an_idempotency_key_makes_one_object_for_a_day,
    simultaneous_requests_with_one_key_make_one_object,
    a_refused_request_may_be_repeated_under_its_key,
    answers_are_bounded_and_sealed,
    a_later_attempt_finds_what_an_earlier_one_made,
    first_attempts_are_requests_of_their_own,
    what_its_creator_knows_or_nobody_can_use_is_not_found,
];

fn once(idempotency_key: &str, request: &str) -> Once<TunnelRecord> {
    Once {
        idempotency_key: idempotency_key.to_owned(),
        request: Digest::of(request.as_bytes()),
        answer: Box::new(|tunnel| Zeroizing::new(tunnel.id.as_str().as_bytes().to_vec())),
    }
}

async fn create(f: &Fixture, repeat: Repeat<TunnelRecord>) -> Result<Made<TunnelRecord>, StoreError> {
    f.store.create_tunnel_once(&f.home, None, &f.limits, repeat).await
}

async fn create_once(f: &Fixture, idempotency_key: &str, request: &str) -> Result<Made<TunnelRecord>, StoreError> {
    create(f, Repeat::Once(once(idempotency_key, request))).await
}

async fn key(f: &Fixture) -> KeyId {
    let new = CreateKey {
        role: None,
        kind: KeyKind::Manage,
        name: "test".parse::<DisplayName>().expect("name"),
        expires_at: None,
        grants: Vec::new(),
        agent: None,
        user: None,
        workspace_id: None,
    };
    f.store.create_key(&f.home, new, &f.limits).await.expect("key").key.id
}

/// One attempt; the id, and whether it was made now.
async fn attempt(f: &Fixture, key: &KeyId, request: &str, number: u32) -> (TunnelId, bool) {
    let attempt = Attempt { key: key.clone(), request: Digest::of(request.as_bytes()), number };
    match create(f, Repeat::Attempt(attempt)).await.expect("created") {
        Made::Now(tunnel) => (tunnel.id, true),
        Made::Before(tunnel) => (tunnel.id, false),
        Made::Answered(_) => panic!("no idempotency key was sent"),
    }
}

async fn count(f: &Fixture) -> usize {
    f.store.list_tunnels(&f.home, all()).await.expect("list").items.len()
}

async fn an_idempotency_key_makes_one_object_for_a_day(mut f: Fixture) {
    let Made::Now(made) = create_once(&f, "a", "{}").await.expect("made") else { panic!("not made") };
    f.reopen().await;
    f.store.archive_tunnel(&f.home, &made.id).await.expect("archived");
    f.pass(KEPT - 1);
    let Made::Answered(answer) = create_once(&f, "a", "{}").await.expect("answered") else { panic!("made again") };
    assert_eq!(answer.as_slice(), made.id.as_str().as_bytes(), "the first answer, whatever became of the tunnel");
    assert!(matches!(create_once(&f, "a", "{ }").await, Err(StoreError::IdempotencyKeyReused)));
    assert!(matches!(create_once(&f, "b", "{}").await, Ok(Made::Now(_))));
    let elsewhere = f.store.create_tunnel_once(&f.foreign, None, &f.limits, Repeat::Once(once("a", "x"))).await;
    assert!(matches!(elsewhere, Ok(Made::Now(_))), "each workspace has its own");
    f.pass(1);
    assert!(matches!(create_once(&f, "a", "another").await, Ok(Made::Now(_))));
}

async fn simultaneous_requests_with_one_key_make_one_object(f: Fixture) {
    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let (store, home, limits) = (f.store.clone(), f.home.clone(), f.limits);
        tasks.spawn(async move {
            store.create_tunnel_once(&home, None, &limits, Repeat::Once(once("same", "{}"))).await.expect("answered")
        });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Made::Now(_))).count(), 1);
    assert_eq!(count(&f).await, 1);
}

async fn a_refused_request_may_be_repeated_under_its_key(mut f: Fixture) {
    f.limits.tunnels_per_organization = 0;
    assert!(matches!(create_once(&f, "a", "{}").await, Err(StoreError::TooManyTunnels(0))));
    f.limits.tunnels_per_organization = 1;
    assert!(matches!(create_once(&f, "a", "{}").await, Ok(Made::Now(_))));
}

async fn answers_are_bounded_and_sealed(f: Fixture) {
    let filled = db::query(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000) \
         INSERT INTO idempotent_requests SELECT $1, 'k' || i, $2, $3, 1800000000 FROM n",
    );
    f.damage(filled.bind(f.home.as_str()).bind(&[0; 32]).bind(&[0][..])).await;
    assert!(matches!(create_once(&f, "a", "{}").await, Err(StoreError::TooManyIdempotencyKeys(10_000))));
    assert_eq!(count(&f).await, 0, "nothing of it was stored");
    f.pass(KEPT);
    let new = CreateKey {
        role: None,
        kind: KeyKind::Manage,
        name: "test".parse::<DisplayName>().expect("name"),
        expires_at: None,
        grants: Vec::new(),
        agent: None,
        user: None,
        workspace_id: None,
    };
    let shown = |made: &CreatedKey| Zeroizing::new(made.secret.expose().as_bytes().to_vec());
    let once = Once { idempotency_key: "a".to_owned(), request: Digest::of(b"key"), answer: Box::new(shown) };
    let made = f.store.create_key_once(&f.home, &f.home, new, &f.limits, once).await.expect("key");
    let Made::Now(made) = made else { panic!("not made") };
    f.store.close().await;
    assert!(!f.lies_in_a_file(made.secret.expose().as_bytes()), "a secret lies in a file");
}

async fn a_later_attempt_finds_what_an_earlier_one_made(mut f: Fixture) {
    let key = key(&f).await;
    let (first, made) = attempt(&f, &key, "{}", 0).await;
    assert!(made);
    f.reopen().await;
    assert_eq!(attempt(&f, &key, "{}", 1).await, (first.clone(), false), "also after a restart");
    assert_eq!(attempt(&f, &key, "{}", 2).await, (first.clone(), false), "the second answer was lost, too");
    assert!(attempt(&f, &key, "{}", 2).await.1, "a second last attempt is somebody else's");
    assert!(attempt(&f, &key, "{\"display_name\": \"x\"}", 1).await.1, "another body is another request");
    let other = self::key(&f).await;
    assert!(attempt(&f, &other, "{}", 3).await.1, "another key is another sender");
}

async fn first_attempts_are_requests_of_their_own(f: Fixture) {
    let key = key(&f).await;
    let (one, two) = (attempt(&f, &key, "{}", 0).await.0, attempt(&f, &key, "{}", 0).await.0);
    assert_ne!(one, two);
    assert_eq!(attempt(&f, &key, "{}", 1).await, (two.clone(), false), "the latest one that nobody claimed");
    assert_eq!(attempt(&f, &key, "{}", 1).await, (one, false));
    assert!(attempt(&f, &key, "{}", 1).await.1);
}

async fn what_its_creator_knows_or_nobody_can_use_is_not_found(f: Fixture) {
    let (key, other) = (key(&f).await, key(&f).await);
    let (named, _) = attempt(&f, &key, "named", 0).await;
    f.store.claim_tunnel(&other, &named).await.expect("noted");
    assert_eq!(attempt(&f, &key, "named", 1).await, (named.clone(), false), "another key proves nothing");
    f.store.claim_tunnel(&key, &named).await.expect("noted");
    assert!(attempt(&f, &key, "named", 2).await.1);
    let (archived, _) = attempt(&f, &key, "archived", 0).await;
    f.store.archive_tunnel(&f.home, &archived).await.expect("archived");
    assert!(attempt(&f, &key, "archived", 1).await.1);
    attempt(&f, &key, "old", 0).await;
    f.pass(UNCLAIMED + 1);
    assert!(attempt(&f, &key, "old", 1).await.1);
    f.store.claim_tunnel(&key, &TunnelId::random()).await.expect("nothing to note");
}

#[tokio::test]
async fn an_attempt_that_comes_while_the_first_runs_waits_for_it() {
    let f = Fixture::new().await;
    let key = key(&f).await;
    // In the order that they come in, which only SQLite's one connection keeps.
    let busy = f.store.begin().await.expect("the writer");
    let (first, second) = (attempt(&f, &key, "{}", 0), attempt(&f, &key, "{}", 1));
    let release = async {
        // Both wait for the writer by now: joined futures are polled in order, and spawn what they write at once.
        tokio::task::yield_now().await;
        drop(busy);
    };
    let (first, second, ()) = tokio::join!(first, second, release);
    assert_eq!((first.1, second), (true, (first.0, false)));
    assert_eq!(count(&f).await, 1);
}
