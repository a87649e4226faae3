use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sortie_testkit::postgres::PASSWORD;
use sortie_testkit::{Postgres, Relay};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::db;
use crate::testing::{Fixture, all};
use crate::{DatabaseUrl, Options, Store, StoreError};

/// How long the way back may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

async fn open(url: &str, dir: &TempDir) -> Result<Store, StoreError> {
    let database: DatabaseUrl = url.parse().expect("url");
    Store::open_with(Options { database: Some(database), ..Options::new(dir.path()) }).await
}

/// Why a store does not open, with everything that is said about it.
async fn refused(url: &str) -> (StoreError, String) {
    let dir = tempfile::tempdir().expect("dir");
    let Err(error) = open(url, &dir).await else { panic!("{url} was opened") };
    let source = std::error::Error::source(&error).map(|source| format!("{source} {source:?}")).unwrap_or_default();
    let said = format!("{error} {error:?} {source}");
    assert!(!said.contains(PASSWORD) && !said.contains("hunter2"), "{said}");
    (error, said)
}

/// Tries until it works, as callers do; how long that took.
async fn until_written(store: &Store, value: &str) -> Duration {
    let begin = Instant::now();
    while let Err(error) = store.put_meta("written", value).await {
        assert!(begin.elapsed() < SOON, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begin.elapsed()
}

/// Everything that is there, read by connections of which some may be dead.
async fn names(store: &Store) -> BTreeSet<String> {
    let begin = Instant::now();
    loop {
        match db::query("SELECT name FROM meta").read_all(&store.db()).await {
            Ok(rows) => return rows.iter().map(|row| row.text("name").expect("name")).collect(),
            Err(error) => assert!(begin.elapsed() < SOON, "{error}"),
        }
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why_and_no_password() {
    let Some(mut server) = Postgres::start().await else { return };
    let addr = server.addr();
    let (error, _) = refused(&format!("postgres://sortie:hunter2@{addr}/postgres")).await;
    assert!(error.to_string().ends_with("it refuses this user with this password"), "{error}");
    let (error, _) = refused(&format!("postgres://nobody:hunter2@{addr}/postgres")).await;
    assert!(error.to_string().ends_with("it refuses this user with this password"), "{error}");
    let (error, _) = refused(&server.url().replace("/postgres", "/nothing")).await;
    assert!(error.to_string().ends_with("make it with `CREATE DATABASE`"), "{error}");
    let (error, _) = refused(&format!("{}?sslmode=verify-full", server.url_at(addr))).await;
    assert!(error.to_string().contains("its server is not proven"), "{error}");
    let (error, _) = refused(&format!("{}?options=-c%20search_path=nowhere", server.url())).await;
    assert!(matches!(error, StoreError::NoSchema), "{error}");
    server.run("psql", &["-c", "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0"]);
    let (error, _) = refused(&server.url().replace("/postgres", "/ascii")).await;
    assert!(matches!(error, StoreError::Encoding), "{error}");
    server.stop().await;
    let (error, _) = refused(&server.url_at(addr)).await;
    assert!(error.to_string().contains("nothing answers there"), "{error}");
}

#[tokio::test]
async fn over_tcp_the_password_opens_it() {
    let Some(server) = Postgres::start().await else { return };
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&server.url_at(server.addr()), &dir).await.expect("open");
    store.put_meta("a", "b").await.expect("put");
    store.close().await;
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let Some(server) = Postgres::start().await else { return };
    // What stands between says that it is version 12.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let (addr, target) = (listener.local_addr().expect("addr"), server.addr());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let upstream = TcpStream::connect(target).await.expect("server");
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = upstream.into_split();
            let there = tokio::io::copy(&mut from_client, &mut to_server);
            let back = async {
                let mut chunk = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = from_server.read(&mut chunk).await {
                    let name = b"server_version\0";
                    if let Some(at) = chunk[..read].windows(name.len()).position(|part| part == name) {
                        chunk[at + name.len()..at + name.len() + 2].copy_from_slice(b"12");
                    }
                    to_client.write_all(&chunk[..read]).await.expect("client");
                }
            };
            tokio::join!(there, back).0.expect("copied");
        }
    });
    let (error, _) = refused(&server.url_at(addr)).await;
    assert!(matches!(error, StoreError::OldServer), "{error}");
}

#[tokio::test]
async fn tables_of_others_and_of_newer_versions_are_left_alone() {
    let Some(server) = Postgres::start().await else { return };
    server.run("psql", &["-c", "CREATE TABLE secrets (of TEXT)"]);
    server.run("psql", &["-c", "CREATE TABLE another (program TEXT)"]);
    assert!(matches!(refused(&server.url()).await.0, StoreError::Foreign));
    let tables = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.run("psql", &["-At", "-c", tables]).trim(), "another secrets");

    // A schema of our own beside it is fine, and with its data goes on from where it was.
    server.run("psql", &["-c", "CREATE SCHEMA ours"]);
    let url = format!("{}?options=-c%20search_path=ours", server.url());
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&url, &dir).await.expect("open");
    store.put_secret("a", b"b").await.expect("put");
    store.close().await;
    let store = open(&url, &dir).await.expect("open again");
    assert_eq!(store.get_secret("a").await.expect("read").expect("there").as_slice(), b"b");
    store.close().await;
    assert!(matches!(refused(&url).await.0, StoreError::MasterKeyMissing(_)), "the key is not in the database");

    server.run("psql", &["-c", "INSERT INTO ours._sqlx_migrations VALUES (9999, 'later', now(), true, '', 0)"]);
    assert!(matches!(refused(&url).await.0, StoreError::Newer));
    server.run("psql", &["-c", "DELETE FROM ours._sqlx_migrations WHERE version = 9999"]);
    server.run("psql", &["-c", "UPDATE ours._sqlx_migrations SET checksum = 'x' WHERE version = 1"]);
    assert!(matches!(refused(&url).await.0, StoreError::Foreign));
}

#[tokio::test]
async fn a_second_hub_is_refused_while_the_first_lives() {
    let Some(f) = Fixture::on_postgres().await else { return };
    let other = tempfile::tempdir().expect("dir");
    let url = f.server.as_ref().expect("server").url();
    let Err(error) = open(&url, &other).await else { panic!("two hubs") };
    assert!(matches!(&error, StoreError::Taken(by) if by.contains("connected from this machine since 20")), "{error}");
    f.store.put_meta("a", "b").await.expect("the first is not disturbed");
    // Gone without a word, as when it is killed: it holds nothing any more.
    drop(f.store);
    let _sealed = std::fs::copy(f.dir.path().join("store.key"), other.path().join("store.key")).expect("key");
    let store = open(&url, &other).await.expect("the next one");
    assert_eq!(store.get_meta("a").await.expect("read").as_deref(), Some("b"));
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_the_server_is_killed() {
    let Some(mut f) = Fixture::on_postgres().await else { return };
    let mut acknowledged = BTreeSet::new();
    for round in 0..3 {
        let mut tasks = JoinSet::new();
        for task in 0..6 {
            let store = f.store.clone();
            tasks.spawn(async move {
                let mut done = Vec::new();
                for write in 0.. {
                    let name = format!("{round}.{task}.{write}");
                    match store.put_meta(&name, "x").await {
                        Ok(()) => done.push(name),
                        Err(_) => break,
                    }
                }
                done
            });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let server = f.server.as_mut().expect("server");
        server.kill();
        let done: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
        assert!(!done.is_empty(), "nothing was written before the end");
        acknowledged.extend(done);
        let error = f.store.put_meta("while", "it is gone").await.expect_err("no server");
        assert!(matches!(error, StoreError::Lost | StoreError::Database { .. }), "{error}");
        server.restart().await;
        until_written(&f.store, "again").await;
        let there = names(&f.store).await;
        let gone: Vec<&String> = acknowledged.difference(&there).collect();
        assert!(gone.is_empty(), "acknowledged, and gone: {gone:?}");
    }
}

#[tokio::test]
async fn connections_that_are_cut_are_made_anew_and_frozen_ones_given_up() {
    let Some(server) = Postgres::start().await else { return };
    let relay = Relay::start(server.addr()).await.expect("relay");
    let dir = tempfile::tempdir().expect("dir");
    let store = open(&server.url_at(relay.addr()), &dir).await.expect("open");
    until_written(&store, "first").await;
    relay.cut();
    assert!(store.put_meta("written", "cut").await.is_err());
    relay.resume();
    until_written(&store, "second").await;
    assert_eq!(store.get_meta("written").await.expect("read").as_deref(), Some("second"));

    // Nothing is answered, and nobody says so: writing ends within the bounds, and goes on afterwards.
    relay.freeze();
    let begin = Instant::now();
    while store.put_meta("written", "frozen").await.is_ok() {}
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let lost = store.put_meta("written", "frozen").await.expect_err("frozen");
    assert!(matches!(lost, StoreError::Lost | StoreError::Database { .. }), "{lost}");
    relay.resume();
    until_written(&store, "third").await;
    store.close().await;
}

#[tokio::test]
async fn a_hub_that_loses_its_lock_to_another_writes_nothing_more() {
    let Some(f) = Fixture::on_postgres().await else { return };
    f.store.put_meta("written", "by the first").await.expect("put");
    // The connection with the lock is ended, and somebody else comes before it is back, for a while.
    let taken = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'; \
                 SELECT pg_advisory_lock(1936683636::bigint << 32 | 'public'::regnamespace::oid::bigint); SELECT pg_sleep(5)";
    let server = f.server.expect("server");
    let other = tokio::task::spawn_blocking(move || {
        server.run("psql", &["-c", taken]);
        server
    });
    let begin = Instant::now();
    let by = loop {
        match f.store.put_meta("written", "before it knows").await {
            Err(StoreError::Taken(by)) => break by,
            // A server that knows another hub refuses new connections before this hub knows.
            Ok(()) | Err(StoreError::Lost | StoreError::Database { .. }) => {
                assert!(begin.elapsed() < SOON, "it never knew")
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert!(by.starts_with("connected from"), "{by}");
    let organization = f.store.organization_of(&f.home).await.expect("reading goes on");
    f.store.list_workspaces(&organization, all()).await.expect("reading goes on");
    let _server = other.await.expect("the other");
    until_written(&f.store, "by the first again").await;
}

#[tokio::test]
async fn simultaneous_limits_hold_across_connections() {
    let Some(f) = Fixture::on_postgres().await else { return };
    // More than there are connections: each waits for its turn, none for a connection that never comes.
    let mut tasks = JoinSet::new();
    for _ in 0..40 {
        let (store, home, limits) = (f.store.clone(), f.home.clone(), f.limits);
        tasks.spawn(async move { store.create_tunnel(&home, None, &limits).await.is_ok() });
    }
    let made = tasks.join_all().await.into_iter().filter(|made| *made).count();
    assert_eq!(made, 10);
}
