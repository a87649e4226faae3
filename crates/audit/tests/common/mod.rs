//! A log to test with, and a check of what it has written that shares only the hashes and the notes with the writer.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sortie_audit::{Checkpoint, Draft, Frontier, Hash, Log, Options, VerifyingKey, kinds};

/// A directory for a log and its key.
pub struct Home(pub tempfile::TempDir);

impl Home {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("dir"))
    }

    pub fn dir(&self) -> PathBuf {
        self.0.path().join("audit")
    }

    pub fn key(&self) -> PathBuf {
        self.0.path().join("audit.key")
    }

    pub fn options(&self) -> Options {
        Options { dir: self.dir(), key_file: self.key(), ..Options::default() }
    }

    pub fn open(&self) -> Log {
        Log::open(self.options()).expect("opens")
    }

    pub fn check(&self) -> Vec<Value> {
        check(&self.dir())
    }
}

/// Something to record.
pub fn draft(id: &str) -> Draft {
    Draft::new(kinds::CALL_DONE, &serde_json::json!({ "id": id })).expect("draft")
}

/// The numbers in the names of files, in order.
pub fn numbers(dir: &Path) -> Vec<u64> {
    let names =
        fs::read_dir(dir).expect("dir").map(|entry| entry.expect("entry").file_name().into_string().expect("name"));
    let mut found: Vec<u64> =
        names.map(|name| name.strip_suffix(".jsonl").unwrap_or(&name).parse().expect("a number")).collect();
    found.sort_unstable();
    found
}

/// The whole log, in order; panics where it is not what it must be. It may end with an unfinished line.
pub fn check(dir: &Path) -> Vec<Value> {
    let mut records = Vec::new();
    let (mut tree, mut prev) = (Frontier::default(), Hash::NONE);
    let mut roots = vec![tree.root()];
    let files = numbers(&dir.join("log"));
    for (at, first) in files.iter().enumerate() {
        assert_eq!(*first, tree.size(), "the files are without a gap");
        let bytes = fs::read(dir.join(format!("log/{first:020}.jsonl"))).expect("file");
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        assert!(end == bytes.len() || at + 1 == files.len(), "only the last file may be torn");
        for line in bytes[..end].split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 1]) {
            let record: Value = serde_json::from_slice(line).expect("JSON");
            assert_eq!(record["seq"], tree.size());
            assert_eq!(record["prev"], prev.to_string(), "record {}", tree.size());
            if tree.size() == *first {
                assert_eq!(record["event"], "log_opened");
            }
            if record["event"] == "log_opened" {
                let frontier: Vec<String> = tree.peaks().iter().map(Hash::to_string).collect();
                assert_eq!(record["frontier"], serde_json::json!(frontier));
            }
            prev = Hash::of_leaf(line);
            tree.push(prev);
            roots.push(tree.root());
            records.push(record);
        }
    }
    let key = fs::read_to_string(dir.join("key.pub")).expect("key.pub");
    let key: VerifyingKey = key.trim_end().parse().expect("a key");
    for size in numbers(&dir.join("checkpoints")) {
        let note = fs::read_to_string(dir.join(format!("checkpoints/{size:020}"))).expect("note");
        let signed = Checkpoint::open(&note, &key).expect("signed");
        assert_eq!(signed.size, size);
        assert_eq!(signed.root, roots[usize::try_from(size).expect("small")], "checkpoint {size}");
    }
    check_levels(dir, &records);
    records
}

/// The kept hashes are those of the log.
fn check_levels(dir: &Path, records: &[Value]) {
    for level in 0u32.. {
        let Ok(bytes) = fs::read(dir.join(format!("tree/{level}"))) else { break };
        let width = 256usize.pow(level);
        for (at, hash) in bytes.as_chunks::<32>().0.iter().enumerate() {
            let mut tree = Frontier::default();
            for number in at * width..(at + 1) * width {
                tree.push(leaf(dir, records, number));
            }
            assert_eq!(tree.root(), Hash::from(*hash), "level {level}, entry {at}");
        }
    }
}

/// The leaf hash of a record, as the one after it says, or as its line comes to.
fn leaf(dir: &Path, records: &[Value], number: usize) -> Hash {
    match records.get(number + 1) {
        Some(next) => next["prev"].as_str().expect("text").parse().expect("a hash"),
        None => {
            let last = numbers(&dir.join("log")).pop().expect("a file");
            let bytes = fs::read(dir.join(format!("log/{last:020}.jsonl"))).expect("file");
            assert_eq!(number + 1, records.len());
            let line = bytes.split(|byte| *byte == b'\n').nth(number - usize::try_from(last).expect("small"));
            Hash::of_leaf(line.expect("the last line"))
        }
    }
}

/// The events of records, in order.
pub fn events(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["event"].as_str().expect("text")).collect()
}
