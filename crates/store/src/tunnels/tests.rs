use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use super::*;
use crate::testing::{Fixture, all, certificate, first, on_both};

on_both![
    a_tunnel_survives_a_restart,
    the_limit_counts_live_tunnels_of_the_organisation,
    simultaneous_creations_do_not_pass_the_limit,
    lists_go_backwards_in_pages,
    archiving_ends_everything_once,
    only_the_current_token_opens_links,
    tokens_are_not_readable_in_the_files,
    another_workspace_finds_nothing,
    damaged_rows_are_errors,
    a_write_whose_caller_goes_away_is_still_done_and_announced,
    small_things_are_kept_by_name,
];

async fn tunnel(fixture: &Fixture) -> TunnelRecord {
    fixture.store.create_tunnel(&fixture.home, None, &fixture.limits).await.expect("tunnel")
}

async fn a_tunnel_survives_a_restart(mut f: Fixture) {
    let name = Some("build farm".parse().expect("name"));
    let made = f.store.create_tunnel(&f.home, name, &f.limits).await.expect("tunnel");
    let token = f.store.reveal_token(&f.home, &made.id).await.expect("token");
    let added = f.store.add_certificate(&f.home, &made.id, certificate("a"), &f.limits).await.expect("added");
    f.reopen().await;
    assert_eq!(*f.store.default_workspace(), f.home);
    assert_eq!(f.store.get_tunnel(&f.home, &made.id).await.expect("tunnel"), made);
    assert_eq!(f.store.reveal_token(&f.home, &made.id).await.expect("token").id, token.id);
    let listed = f.store.list_certificates(&f.home, &made.id, all()).await.expect("list");
    assert_eq!(listed.items, [added.certificate]);
    let base = "sortie.localhost".parse().expect("base");
    assert_eq!(made.object(&base).domain, format!("{}.sortie.localhost", made.label));
}

#[tokio::test]
async fn files_are_private_and_the_key_must_stay_the_same() {
    let f = Fixture::new().await;
    tunnel(&f).await;
    for entry in fs::read_dir(f.dir.path()).expect("dir") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("metadata").mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", entry.file_name());
    }
    f.store.close().await;
    let key = f.dir.path().join("store.key");
    fs::rename(&key, f.dir.path().join("elsewhere")).expect("rename");
    assert!(matches!(Store::open(f.dir.path()).await, Err(StoreError::MasterKeyMissing(_))));
    let other = tempfile::tempdir().expect("dir");
    MasterKey::load(&other.path().join("k"), true).expect("another key");
    fs::copy(other.path().join("k"), &key).expect("copy");
    assert!(matches!(Store::open(f.dir.path()).await, Err(StoreError::MasterKeyWrong(_))));
    fs::rename(f.dir.path().join("elsewhere"), &key).expect("rename");
    Store::open(f.dir.path()).await.expect("the right key").close().await;

    let nested = other.path().join("a").join("b");
    Store::open(&nested).await.expect("made").close().await;
    assert_eq!(fs::metadata(&nested).expect("dir").mode() & 0o777, 0o700);
    assert!(matches!(Store::open(&key).await, Err(StoreError::File { .. })), "a file is no directory");
    fs::write(nested.join("store.db"), b"something else").expect("write");
    assert!(matches!(Store::open(&nested).await, Err(StoreError::Database { .. })));
}

async fn the_limit_counts_live_tunnels_of_the_organisation(f: Fixture) {
    let made = tunnel(&f).await;
    for _ in 1..10 {
        tunnel(&f).await;
    }
    let error = f.store.create_tunnel(&f.home, None, &f.limits).await.expect_err("full");
    assert_eq!(error.to_string(), "Organization already has the maximum of 10 non-archived Tunnels");
    f.store.create_tunnel(&f.foreign, None, &f.limits).await.expect("another organisation has its own limit");
    f.store.archive_tunnel(&f.home, &made.id).await.expect("archived");
    tunnel(&f).await;
    assert!(matches!(
        f.store.create_tunnel(&WorkspaceId::random(), None, &f.limits).await,
        Err(StoreError::NotFound(Object::Workspace))
    ));
}

async fn simultaneous_creations_do_not_pass_the_limit(f: Fixture) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let (store, home, limits) = (f.store.clone(), f.home.clone(), f.limits);
        tasks.spawn(async move { store.create_tunnel(&home, None, &limits).await });
    }
    let made = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(made, 10);
}

async fn lists_go_backwards_in_pages(f: Fixture) {
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(tunnel(&f).await);
    }
    made.reverse();
    let (mut seen, mut before, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = f.store.list_tunnels(&f.home, PageRequest { before, ..first(2) }).await.expect("page");
        seen.extend(page.items);
        pages += 1;
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!((seen, pages), (made.clone(), 3));
    assert_eq!(f.store.list_tunnels(&f.home, first(5)).await.expect("page").next, None, "an exact page is the last");

    f.store.archive_tunnel(&f.home, &made[1].id).await.expect("archived");
    assert_eq!(f.store.list_tunnels(&f.home, first(100)).await.expect("list").items.len(), 4);
    let with_archived = f.store.list_tunnels(&f.home, all()).await.expect("list").items;
    assert_eq!(with_archived.len(), 5);
    assert!(with_archived[1].archived_at.is_some());
}

async fn archiving_ends_everything_once(f: Fixture) {
    let made = tunnel(&f).await;
    f.store.add_certificate(&f.home, &made.id, certificate("a"), &f.limits).await.expect("added");
    f.store.add_certificate(&f.home, &made.id, certificate("b"), &f.limits).await.expect("added");
    let token = f.store.reveal_token(&f.home, &made.id).await.expect("token").value;
    let mut changes = f.store.changes();
    f.pass(60);
    let archived = f.store.archive_tunnel(&f.home, &made.id).await.expect("archived");
    assert!(archived.fresh);
    assert_eq!(archived.certificates.len(), 2);
    assert!(archived.certificates.iter().all(|c| c.archived_at == archived.tunnel.archived_at));
    assert_eq!(changes.recv().await.expect("change"), Change::TunnelArchived(made.id.clone()));

    f.pass(60);
    let again = f.store.archive_tunnel(&f.home, &made.id).await.expect("archived");
    assert!(!again.fresh && again.certificates.is_empty());
    assert_eq!(again.tunnel, archived.tunnel);
    assert_eq!(f.store.get_tunnel(&f.home, &made.id).await.expect("kept"), archived.tunnel);
    assert!(changes.try_recv().is_err(), "nothing changed the second time");

    assert_eq!(f.store.tunnel_by_label(&made.label).await.expect("label"), None);
    assert_eq!(f.store.tunnel_by_token_digest(&token.digest()).await.expect("token"), None);
    assert!(f.store.active_cas(&made.id).await.expect("cas").is_empty());
    let archived = |result| matches!(result, Err(StoreError::Archived(Object::Tunnel)));
    assert!(archived(f.store.reveal_token(&f.home, &made.id).await.map(drop)));
    assert!(archived(f.store.rotate_token(&f.home, &made.id, None).await.map(drop)));
    assert!(archived(f.store.add_certificate(&f.home, &made.id, certificate("c"), &f.limits).await.map(drop)));
}

async fn only_the_current_token_opens_links(f: Fixture) {
    let made = tunnel(&f).await;
    let old = f.store.reveal_token(&f.home, &made.id).await.expect("token");
    let same = f.store.reveal_token(&f.home, &made.id).await.expect("token");
    assert_eq!(old.value.expose(), same.value.expose());
    assert_eq!(old.id, TokenId::of(&old.value.digest()));
    let mut changes = f.store.changes();
    let new = f.store.rotate_token(&f.home, &made.id, Some("left the team".to_owned())).await.expect("rotated");
    assert_ne!(new.id, old.id);
    assert_eq!(changes.recv().await.expect("change"), Change::TokenRotated(made.id.clone()));
    assert_eq!(f.store.reveal_token(&f.home, &made.id).await.expect("token").id, new.id);
    assert_eq!(f.store.tunnel_by_token_digest(&old.value.digest()).await.expect("old"), None);
    assert_eq!(f.store.tunnel_by_token_digest(&new.value.digest()).await.expect("new"), Some(made.clone()));
    assert_eq!(f.store.tunnel_by_label(&made.label).await.expect("label"), Some(made));
}

async fn tokens_are_not_readable_in_the_files(f: Fixture) {
    let made = tunnel(&f).await;
    let token = f.store.reveal_token(&f.home, &made.id).await.expect("token").value;
    f.store.put_secret("signing", b"a very plain secret").await.expect("put");
    f.store.close().await;
    assert!(f.lies_in_a_file(made.id.as_str().as_bytes()), "what is no secret is found");
    for secret in [token.expose().as_bytes(), b"a very plain secret"] {
        assert!(!f.lies_in_a_file(secret));
    }
}

async fn another_workspace_finds_nothing(f: Fixture) {
    let made = tunnel(&f).await;
    let added = f.store.add_certificate(&f.home, &made.id, certificate("a"), &f.limits).await.expect("added");
    let (there, id) = (&f.foreign, &made.id);
    let none = |result| matches!(result, Err(StoreError::NotFound(_)));
    assert!(f.store.list_tunnels(there, all()).await.expect("list").items.is_empty());
    assert!(none(f.store.get_tunnel(there, id).await.map(drop)));
    assert!(none(f.store.archive_tunnel(there, id).await.map(drop)));
    assert!(none(f.store.reveal_token(there, id).await.map(drop)));
    assert!(none(f.store.rotate_token(there, id, None).await.map(drop)));
    assert!(none(f.store.add_certificate(there, id, certificate("b"), &f.limits).await.map(drop)));
    assert!(none(f.store.list_certificates(there, id, all()).await.map(drop)));
    assert!(none(f.store.get_certificate(there, id, &added.certificate.id).await.map(drop)));
    assert!(none(f.store.archive_certificate(there, id, &added.certificate.id).await.map(drop)));
    assert_eq!(f.store.active_cas(id).await.expect("cas"), ["pem of a"]);
    assert!(f.store.get_tunnel(&f.home, id).await.expect("untouched").archived_at.is_none());
}

async fn damaged_rows_are_errors(f: Fixture) {
    let made = tunnel(&f).await;
    f.damage(db::query("UPDATE tunnel_tokens SET sealed = $1").bind(&[1, 2][..])).await;
    assert!(matches!(f.store.reveal_token(&f.home, &made.id).await, Err(StoreError::Corrupt("tunnel_tokens.sealed"))));
    f.damage("UPDATE tunnels SET created_at = 9223372036854775807").await;
    assert!(matches!(f.store.get_tunnel(&f.home, &made.id).await, Err(StoreError::Corrupt("created_at"))));
    f.damage("UPDATE tunnels SET created_at = 0, label = 'NOT A LABEL'").await;
    let error = f.store.list_tunnels(&f.home, all()).await.expect_err("damaged");
    assert_eq!(
        error.to_string(),
        "the database holds a value of `label` that cannot be read; restore it from a backup"
    );
}

async fn a_write_whose_caller_goes_away_is_still_done_and_announced(f: Fixture) {
    let made = tunnel(&f).await;
    let mut changes = f.store.changes();
    {
        let write = f.store.rotate_token(&f.home, &made.id, None);
        let mut write = std::pin::pin!(write);
        let waker = std::task::Waker::from(Arc::new(NoWake));
        let mut context = std::task::Context::from_waker(&waker);
        assert!(std::future::Future::poll(write.as_mut(), &mut context).is_pending());
    }
    assert_eq!(changes.recv().await.expect("change"), Change::TokenRotated(made.id));
}

struct NoWake;

impl std::task::Wake for NoWake {
    fn wake(self: Arc<Self>) {}
}

async fn small_things_are_kept_by_name(mut f: Fixture) {
    assert_eq!(f.store.get_meta("base_domain").await.expect("meta"), None);
    f.store.put_meta("base_domain", "a").await.expect("put");
    f.store.put_meta("base_domain", "sortie.localhost").await.expect("put");
    assert!(f.store.get_secret("signing").await.expect("secret").is_none());
    f.store.put_secret("signing", b"one").await.expect("put");
    f.store.put_secret("signing", b"two").await.expect("put");
    f.reopen().await;
    assert_eq!(f.store.get_meta("base_domain").await.expect("meta").as_deref(), Some("sortie.localhost"));
    assert_eq!(f.store.get_secret("signing").await.expect("secret").expect("there").as_slice(), b"two");
    f.damage("INSERT INTO secrets SELECT 'moved', sealed FROM secrets WHERE name = 'signing'").await;
    assert!(matches!(f.store.get_secret("moved").await, Err(StoreError::Corrupt(_))));
}
