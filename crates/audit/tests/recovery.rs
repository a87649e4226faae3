//! Opening what was left, by a crash or by somebody else's hand.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Home, draft, events, numbers};
use proptest::prelude::*;
use sortie_audit::{Log, OpenError, Options};

/// No checkpoints but those that the tests ask for.
fn quiet(home: &Home) -> Options {
    let never = Duration::from_secs(3600);
    Options { max_file_bytes: 4096, checkpoint_every: never, checkpoint_records: u64::MAX, ..home.options() }
}

/// A log of some files, closed, and then some records behind its last checkpoint.
fn left_by_a_crash() -> Home {
    let home = Home::new();
    let log = Log::open(quiet(&home)).expect("opens");
    for at in 0..30 {
        log.append_now(&draft(&format!("{at} {}", "x".repeat(100)))).expect("kept");
    }
    log.close().expect("closes");
    drop(log);
    let log = Log::open(quiet(&home)).expect("opens");
    for at in 30..35 {
        log.append_now(&draft(&at.to_string())).expect("kept");
    }
    home
}

fn last_file(home: &Home) -> PathBuf {
    let last = numbers(&home.dir().join("log")).pop().expect("a file");
    home.dir().join(format!("log/{last:020}.jsonl"))
}

fn copy(from: &Home) -> Home {
    let to = Home::in_memory();
    for part in ["log", "checkpoints", "tree"] {
        fs::create_dir_all(to.dir().join(part)).expect("dir");
        for entry in fs::read_dir(from.dir().join(part)).expect("dir") {
            let entry = entry.expect("entry");
            fs::copy(entry.path(), to.dir().join(part).join(entry.file_name())).expect("copy");
        }
    }
    for part in ["", "log", "checkpoints", "tree"] {
        fs::set_permissions(to.dir().join(part), fs::Permissions::from_mode(0o700)).expect("mode");
    }
    fs::copy(from.key(), to.key()).expect("copy");
    to
}

#[test]
fn a_last_file_that_is_cut_anywhere_is_gone_on_with_or_refused() {
    let left = left_by_a_crash();
    let file = last_file(&left);
    let bytes = fs::read(&file).expect("file");
    let checkpoint = numbers(&left.dir().join("checkpoints")).pop().expect("one");
    let before = left.check().len();
    for cut in 0..bytes.len() {
        let home = copy(&left);
        fs::write(last_file(&home), &bytes[..cut]).expect("cut");
        let first: u64 = file.file_stem().expect("name").to_str().expect("text").parse().expect("number");
        let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
        let records = first + u64::try_from(whole).expect("small");
        let torn = !bytes[..cut].is_empty() && bytes[cut - 1] != b'\n';
        match Log::open(quiet(&home)) {
            Err(error) => assert!(records < checkpoint, "cut at {cut}: {error}"),
            Ok(log) => {
                assert!(records >= checkpoint, "cut at {cut}");
                log.append_now(&draft("after")).expect("kept");
                log.close().expect("closes");
                let found = home.check();
                assert_eq!(found[usize::try_from(records).expect("small")]["reason"], "restarted");
                let recovered = found.iter().filter(|record| record["event"] == "log_recovered").count();
                assert_eq!(recovered, usize::from(torn), "cut at {cut}");
            }
        }
    }
    assert_eq!(left.check().len(), before);
}

#[test]
fn a_changed_byte_in_front_of_the_checkpoint_is_refused() {
    let left = left_by_a_crash();
    let bytes = fs::read(last_file(&left)).expect("file");
    let checkpoint = numbers(&left.dir().join("checkpoints")).pop().expect("one");
    let first: u64 = last_file(&left).file_stem().expect("name").to_str().expect("text").parse().expect("number");
    let signed = usize::try_from(checkpoint - first).expect("small");
    let end: usize = bytes.split_inclusive(|byte| *byte == b'\n').take(signed).map(<[u8]>::len).sum();
    for at in 0..end {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(last_file(&left), &changed).expect("write");
        let error = Log::open(quiet(&left)).expect_err("refused").to_string();
        assert!(error.contains("keep the directory as evidence"), "{error}");
    }
}

#[test]
fn a_log_that_is_shorter_than_its_checkpoint_is_refused() {
    let left = left_by_a_crash();
    fs::remove_file(last_file(&left)).expect("removed");
    let error = Log::open(quiet(&left)).expect_err("refused");
    assert!(matches!(error, OpenError::CutOff { .. }), "{error}");
    fs::remove_dir_all(left.dir().join("log")).expect("removed");
    let error = Log::open(quiet(&left)).expect_err("refused");
    assert!(matches!(error, OpenError::CutOff { records: 0, .. }), "{error}");
}

#[test]
fn a_log_without_its_checkpoints_is_refused() {
    let left = left_by_a_crash();
    for size in numbers(&left.dir().join("checkpoints")) {
        fs::remove_file(left.dir().join(format!("checkpoints/{size:020}"))).expect("removed");
    }
    assert!(matches!(Log::open(quiet(&left)).expect_err("refused"), OpenError::NoCheckpoint { .. }));
}

#[test]
fn a_checkpoint_of_somebody_else_is_refused() {
    let (left, other) = (left_by_a_crash(), left_by_a_crash());
    let newest = numbers(&left.dir().join("checkpoints")).pop().expect("one");
    let file = left.dir().join(format!("checkpoints/{newest:020}"));
    let bytes = fs::read(&file).expect("note");
    fs::copy(other.dir().join(format!("checkpoints/{newest:020}")), &file).expect("copy");
    assert!(matches!(Log::open(quiet(&left)).expect_err("refused"), OpenError::Checkpoint(..)));
    // An old one under a new name.
    fs::remove_file(&file).expect("removed");
    fs::write(left.dir().join("checkpoints/00000000000000000999"), &bytes).expect("write");
    assert!(matches!(Log::open(quiet(&left)).expect_err("refused"), OpenError::Checkpoint(..)));
}

#[test]
fn the_key_is_kept_apart_and_to_ourselves() {
    let left = left_by_a_crash();
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&left.key()), mode(&left.dir()), mode(&last_file(&left))), (0o600, 0o700, 0o600));
    fs::set_permissions(left.key(), fs::Permissions::from_mode(0o604)).expect("mode");
    let error = Log::open(quiet(&left)).expect_err("refused");
    assert!(matches!(error, OpenError::KeyOpen(_)) && error.to_string().contains("chmod 0600"), "{error}");
    fs::remove_file(left.key()).expect("removed");
    assert!(matches!(Log::open(quiet(&left)).expect_err("refused"), OpenError::KeyLost(..)));
    assert!(!left.key().exists(), "no other key is made");
    let inside = Options { key_file: left.dir().join("audit.key"), ..quiet(&left) };
    assert!(matches!(Log::open(inside).expect_err("refused"), OpenError::KeyInside(..)));
    fs::write(left.key(), b"no key").expect("write");
    fs::set_permissions(left.key(), fs::Permissions::from_mode(0o600)).expect("mode");
    assert!(matches!(Log::open(quiet(&left)).expect_err("refused"), OpenError::Key(..)));
}

#[test]
fn a_directory_that_is_not_ours_alone_is_refused() {
    let home = Home::new();
    drop(home.open());
    fs::set_permissions(home.dir().join("log"), fs::Permissions::from_mode(0o770)).expect("mode");
    let error = Log::open(home.options()).expect_err("refused");
    assert!(matches!(error, OpenError::NotOurs(..)) && error.to_string().contains("0700"), "{error}");
    fs::set_permissions(home.dir().join("log"), fs::Permissions::from_mode(0o700)).expect("mode");

    // A link to the directory is followed, one inside of it is not.
    let link = home.0.path().join("link");
    symlink(home.dir(), &link).expect("link");
    let log = Log::open(Options { dir: link, ..home.options() }).expect("opens");
    assert_eq!(log.dir(), fs::canonicalize(home.dir()).expect("path"));
    drop(log);
    let away = home.0.path().join("away");
    fs::rename(home.dir().join("log"), &away).expect("renamed");
    symlink(&away, home.dir().join("log")).expect("link");
    assert!(matches!(Log::open(home.options()).expect_err("refused"), OpenError::NotOurs(..)));
    fs::remove_file(home.dir().join("log")).expect("removed");
    fs::rename(&away, home.dir().join("log")).expect("renamed");
    let file = last_file(&home);
    fs::rename(&file, home.0.path().join("file")).expect("renamed");
    symlink(home.0.path().join("file"), &file).expect("link");
    assert!(matches!(Log::open(home.options()).expect_err("refused"), OpenError::Io(..)));
}

#[test]
fn a_directory_has_one_process() {
    let home = Home::new();
    let log = home.open();
    let error = Log::open(home.options()).expect_err("refused");
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    assert!(error.to_string().contains(&home.dir().file_name().expect("name").display().to_string()), "{error}");
    log.close().expect("closes");
    drop(log);
    drop(home.open());
}

#[test]
fn a_crash_leaves_no_half_of_a_file_begun() {
    // Whatever lies where a file is made until it has its name.
    let home = Home::new();
    drop(home.open());
    fs::write(home.dir().join("new"), b"{\"seq\":").expect("write");
    drop(home.open());
    assert!(!events(&home.check()).contains(&"log_recovered"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any records, any sizes of files, any ends of the process: what was kept is there, in order.
    #[test]
    fn what_was_kept_is_there(
        processes in prop::collection::vec((prop::collection::vec(0usize..3000, 0..12), any::<bool>(), 0usize..200), 1..5),
        max_file_bytes in 4096u64..20_000,
    ) {
        let home = Home::new();
        let mut kept = Vec::new();
        for (sizes, closed, torn) in processes {
            let log = Log::open(Options { max_file_bytes, ..quiet(&home) }).expect("opens");
            for size in sizes {
                let id = format!("{} {}", kept.len(), "y".repeat(size));
                let seq = log.append_now(&draft(&id)).expect("kept");
                kept.push((seq, id));
            }
            match closed {
                true => log.close().expect("closes"),
                false => {
                    drop(log);
                    let text = format!("{{\"seq\":{}", "7".repeat(torn));
                    let mut bytes = fs::read(last_file(&home)).expect("file");
                    bytes.extend_from_slice(&text.as_bytes()[..torn.min(text.len())]);
                    fs::write(last_file(&home), bytes).expect("write");
                }
            }
        }
        let records = home.check();
        for (seq, id) in kept {
            prop_assert_eq!(&records[usize::try_from(seq).expect("small")]["id"], &id);
        }
    }
}
