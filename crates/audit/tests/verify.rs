//! Logs that are what was written, and what is said of them.

mod written;

use std::fs;

use serde_json::json;
use sortie_audit::{Log, Options, Report, SigningKey, Trust, Trusted, VerifyError, kinds, verify};
use written::Written;

fn check(log: &Written, trusted: &Trusted) -> Result<Report, VerifyError> {
    verify(log.dir(), trusted, |_| ())
}

fn by_key(log: &Written) -> Trusted {
    Trusted { keys: vec![log.key.verifying_key()], checkpoints: Vec::new() }
}

#[test]
fn a_good_log_is_verified_and_the_report_says_on_what_ground() {
    let mut log = Written::three_files();
    log.call("late", "x");
    let elsewhere = |size| {
        let note = fs::read_to_string(log.checkpoint_at(size)).expect("note");
        Trusted { keys: Vec::new(), checkpoints: vec![("kept".to_owned(), note)] }
    };
    let report = check(&log, &Trusted::default()).expect("verified");
    assert_eq!((report.trust, report.signed, report.unsigned), (Trust::SelfConsistent, Some(30), 2));
    assert_eq!((report.first, report.size, report.records, report.files), (0, 32, 32, 3));
    assert_eq!((report.checkpoints, report.uncompared, report.torn), (3, 0, 0));
    assert_eq!(report.root, log.tree.root());
    assert_eq!(report.begins.as_deref(), Some("2026-11-22T22:40:00.000000Z"));
    assert_eq!(report.origin.as_deref(), Some(log.key.verifying_key().name()));

    let report = check(&log, &by_key(&log)).expect("verified");
    assert_eq!((report.trust, report.signed), (Trust::Key, Some(30)));
    // Only what the checkpoint from elsewhere covers rests on it.
    let report = check(&log, &elsewhere(10)).expect("verified");
    assert_eq!((report.trust, report.signed, report.unsigned), (Trust::Checkpoint, Some(10), 22));
    let both = Trusted { keys: by_key(&log).keys, ..elsewhere(20) };
    let report = check(&log, &both).expect("verified");
    assert_eq!((report.trust, report.signed, report.checkpoints), (Trust::KeyAndCheckpoint, Some(30), 4));
}

#[test]
fn files_may_be_archived_from_the_front() {
    let log = Written::three_files();
    fs::remove_file(log.log(0)).expect("archived");
    let report = check(&log, &by_key(&log)).expect("verified");
    assert_eq!((report.first, report.size, report.records, report.uncompared), (10, 30, 20, 0));
    fs::remove_file(log.log(10)).expect("archived");
    let report = check(&log, &by_key(&log)).expect("verified");
    assert_eq!((report.first, report.records, report.uncompared, report.checkpoints), (20, 10, 1, 2));
    // A checkpoint from elsewhere that covers only what is not here proves nothing of what is.
    let note = fs::read_to_string(log.checkpoint_at(10)).expect("note");
    let old = Trusted { keys: by_key(&log).keys, checkpoints: vec![("old".to_owned(), note)] };
    assert!(matches!(check(&log, &old), Err(VerifyError::Uncompared { first: 20 })));
}

#[test]
fn a_log_of_the_real_writer_is_verified_also_after_a_restart() {
    let home = tempfile::tempdir().expect("dir");
    let dir = home.path().join("audit");
    let options = || Options { dir: dir.clone(), key_file: home.path().join("audit.key"), ..options() };
    for _ in 0..2 {
        let log = Log::open(options()).expect("log");
        for n in 0..40 {
            let draft = sortie_audit::Draft::new(kinds::CALL_DONE, &json!({"id": n})).expect("draft");
            log.append_now(&draft).expect("appended");
        }
        log.close().expect("closed");
    }
    let pkcs8 = fs::read(home.path().join("audit.key")).expect("key");
    let key = SigningKey::from_pkcs8("test", &pkcs8).expect("key").verifying_key();
    let report = verify(&dir, &Trusted { keys: vec![key], ..Trusted::default() }, |_| ()).expect("verified");
    assert_eq!((report.size, report.unsigned, report.trust), (84, 0, Trust::Key));
}

fn options() -> Options {
    Options { origin: "test".to_owned(), ..Options::default() }
}

#[test]
fn a_key_without_anything_signed_proves_nothing() {
    let mut log = Written::new();
    log.rotate();
    assert!(matches!(check(&log, &by_key(&log)), Err(VerifyError::Unsigned(_))));
    assert_eq!(check(&log, &Trusted::default()).expect("verified").signed, None);
    log.checkpoint();
    assert!(check(&log, &by_key(&log)).is_ok());
    fs::remove_file(log.dir().join("key.pub")).expect("removed");
    assert!(matches!(check(&log, &Trusted::default()), Err(VerifyError::NoKey { .. })));
    assert!(check(&log, &by_key(&log)).is_ok());
}

#[test]
fn keys_that_were_before_count_when_they_are_given() {
    let mut log = Written::three_files();
    let before = std::mem::replace(&mut log.key, SigningKey::generate("test"));
    fs::write(log.dir().join("key.pub"), format!("{}\n", log.key.verifying_key())).expect("key");
    log.rotate();
    log.checkpoint();
    assert!(matches!(check(&log, &by_key(&log)), Err(VerifyError::Checkpoint(..))));
    let both = Trusted { keys: vec![log.key.verifying_key(), before.verifying_key()], checkpoints: Vec::new() };
    assert_eq!(check(&log, &both).expect("verified").checkpoints, 4);
}
