use std::time::Duration;

use super::*;
use crate::testing::{Fixture, all, first, on_both};

on_both![
    keys_are_found_by_digest_and_scoped,
    keys_that_break_a_rule_are_refused,
    an_archived_key_is_refused_at_once_and_an_expired_one_on_time,
    a_key_is_believed_for_five_seconds_without_the_database,
    a_lookup_that_began_before_the_archiving_brings_nothing_back,
    use_is_noted_about_once_a_minute,
];

fn request(kind: KeyKind, grants: Vec<Grant>) -> CreateKey {
    CreateKey {
        role: None,
        kind,
        name: "ci".parse().expect("name"),
        expires_at: None,
        grants,
        agent: None,
        user: None,
        workspace_id: None,
    }
}

async fn manage(f: &Fixture) -> CreatedKey {
    f.store.create_key(&f.home, request(KeyKind::Manage, Vec::new()), &f.limits).await.expect("key")
}

async fn keys_are_found_by_digest_and_scoped(mut f: Fixture) {
    let tunnel = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
    let grants = vec![
        Grant { tunnel_id: tunnel.clone(), route: Some("files".parse().expect("route")) },
        Grant { tunnel_id: tunnel, route: None },
    ];
    let made = f.store.create_key(&f.home, request(KeyKind::Use, grants.clone()), &f.limits).await.expect("key");
    assert!(made.secret.expose().starts_with("sortie-use-"));
    let other = manage(&f).await;
    f.reopen().await;
    let known = f.store.key_by_digest(&made.secret.digest()).await.expect("found").expect("known");
    assert_eq!((&known.id, &known.workspace, known.kind), (&made.key.id, &f.home, KeyKind::Use));
    assert_eq!(*known.grants, grants[..]);
    assert_eq!(known.organization, f.store.organization_of(&f.home).await.expect("organisation"));
    assert!(f.store.key_by_digest(&Digest::of(b"guess")).await.expect("asked").is_none());

    assert_eq!(f.store.get_key(&f.home, &made.key.id).await.expect("key"), made.key);
    let listed = f.store.list_keys(&f.home, first(100)).await.expect("list").items;
    assert_eq!(listed, [other.key, made.key.clone()]);
    let none = |result| matches!(result, Err(StoreError::NotFound(_)));
    assert!(f.store.list_keys(&f.foreign, all()).await.expect("list").items.is_empty());
    assert!(none(f.store.get_key(&f.foreign, &made.key.id).await.map(drop)));
    assert!(none(f.store.archive_key(&f.foreign, &made.key.id).await.map(drop)));
    assert!(none(f.store.organization_of(&WorkspaceId::random()).await.map(drop)));
}

async fn keys_that_break_a_rule_are_refused(f: Fixture) {
    let tunnel = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
    let foreign = f.store.create_tunnel(&f.foreign, None, &f.limits).await.expect("tunnel").id;
    let grant = |id: &sortie_ids::TunnelId| Grant { tunnel_id: id.clone(), route: None };
    let mut expired = request(KeyKind::Manage, Vec::new());
    expired.expires_at = Some(f.store.now());
    for wrong in [
        request(KeyKind::Use, Vec::new()),
        request(KeyKind::Manage, vec![grant(&tunnel)]),
        request(KeyKind::Use, vec![grant(&tunnel); 101]),
        expired,
    ] {
        let result = f.store.create_key(&f.home, wrong, &f.limits).await;
        assert!(matches!(result, Err(StoreError::KeyRefused(_))), "{result:?}");
    }
    let foreign_grant = request(KeyKind::Use, vec![grant(&tunnel), grant(&foreign)]);
    let result = f.store.create_key(&f.home, foreign_grant, &f.limits).await;
    assert!(matches!(result, Err(StoreError::GrantOfNothing(id)) if id == foreign));
    f.store.archive_tunnel(&f.home, &tunnel).await.expect("archived");
    let result = f.store.create_key(&f.home, request(KeyKind::Use, vec![grant(&tunnel)]), &f.limits).await;
    assert!(matches!(result, Err(StoreError::GrantOfNothing(_))));
    assert!(f.store.list_keys(&f.home, all()).await.expect("list").items.is_empty(), "nothing was stored");

    let few = Limits { keys_per_workspace: 1, ..f.limits };
    f.store.create_key(&f.home, request(KeyKind::Manage, Vec::new()), &few).await.expect("first");
    let result = f.store.create_key(&f.home, request(KeyKind::Manage, Vec::new()), &few).await;
    assert!(matches!(result, Err(StoreError::TooManyKeys(1))));
}

async fn an_archived_key_is_refused_at_once_and_an_expired_one_on_time(f: Fixture) {
    let mut new = request(KeyKind::Manage, Vec::new());
    new.expires_at = Some(f.store.now() + jiff::SignedDuration::from_secs(100));
    let expiring = f.store.create_key(&f.home, new, &f.limits).await.expect("key");
    let known = f.store.key_by_digest(&expiring.secret.digest()).await.expect("found").expect("known");
    assert!(known.is_valid(f.store.now()));
    f.pass(99);
    assert!(known.is_valid(f.store.now()));
    f.pass(1);
    assert!(!known.is_valid(f.store.now()));

    let made = manage(&f).await;
    let mut changes = f.store.changes();
    let digest = made.secret.digest();
    assert!(f.store.key_by_digest(&digest).await.expect("found").expect("known").is_valid(f.store.now()));
    assert!(f.store.archive_key(&f.home, &made.key.id).await.expect("archived").fresh);
    assert!(!f.store.key_by_digest(&digest).await.expect("found").expect("known").is_valid(f.store.now()));
    assert_eq!(changes.recv().await.expect("change"), Change::KeyArchived(made.key.id.clone()));
    assert!(!f.store.archive_key(&f.home, &made.key.id).await.expect("archived").fresh);
    assert!(changes.try_recv().is_err());
    assert_eq!(f.store.list_keys(&f.home, first(100)).await.expect("list").items, [expiring.key]);
}

async fn a_key_is_believed_for_five_seconds_without_the_database(f: Fixture) {
    let made = manage(&f).await;
    let digest = made.secret.digest();
    let before = f.store.key_by_digest(&digest).await.expect("found").expect("known");
    f.damage("UPDATE keys SET kind = 'use'").await;
    f.pass(4);
    let cached = f.store.key_by_digest(&digest).await.expect("found").expect("known");
    assert!(Arc::ptr_eq(&before, &cached));
    f.pass(1);
    assert_eq!(f.store.key_by_digest(&digest).await.expect("found").expect("known").kind, KeyKind::Use);
    f.damage("UPDATE keys SET kind = 'manage'").await;
    f.pass(-3600);
    let read_again = f.store.key_by_digest(&digest).await.expect("found").expect("known");
    assert_eq!(read_again.kind, KeyKind::Manage, "a clock that was set back does not stretch the belief");
}

async fn a_lookup_that_began_before_the_archiving_brings_nothing_back(f: Fixture) {
    let made = manage(&f).await;
    let digest = made.secret.digest();
    let now = f.store.now();
    let known = f.store.key_by_digest(&digest).await.expect("found").expect("known");
    let cache = KeyCache::default();
    let generation = cache.get(&digest, now).expect_err("empty");
    cache.forget_all();
    cache.put(digest, Arc::clone(&known), now, generation);
    let generation = cache.get(&digest, now).expect_err("still empty");
    cache.put(digest, known, now, generation);
    assert!(cache.get(&digest, now).is_ok());
}

async fn use_is_noted_about_once_a_minute(f: Fixture) {
    let made = manage(&f).await;
    let noted = async |expected: Option<Timestamp>| {
        for _ in 0..500 {
            if f.store.get_key(&f.home, &made.key.id).await.expect("key").last_used_at == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("use was not noted");
    };
    let known = f.store.key_by_digest(&made.secret.digest()).await.expect("found").expect("known");
    noted(None).await;
    let first_use = f.store.now();
    f.store.note_use(&known);
    noted(Some(first_use)).await;
    f.pass(59);
    f.store.note_use(&known);
    f.pass(1);
    let second_use = f.store.now();
    f.store.note_use(&known);
    noted(Some(second_use)).await;
}
