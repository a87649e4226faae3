//! A log to test with, and a check of what it has written that shares only the hashes and the notes with the writer.

#![allow(dead_code, reason = "each test takes what it needs")]
#![allow(clippy::indexing_slicing, reason = "a panic is how a check fails")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sortie_audit::{Checkpoint, Draft, Frontier, Hash, Log, Options, VerifyingKey, kinds};

/// A directory for a log and its key.
pub(crate) struct Home(pub(crate) tempfile::TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("dir"))
    }

    /// On a disk that is none, where there is one: quick, and it forgets nothing until the machine stops.
    pub(crate) fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        Self(tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).expect("dir"))
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.0.path().join("audit")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.0.path().join("audit.key")
    }

    pub(crate) fn options(&self) -> Options {
        Options { dir: self.dir(), key_file: self.key(), ..Options::default() }
    }

    pub(crate) fn open(&self) -> Log {
        Log::open(self.options()).expect("opens")
    }

    pub(crate) fn check(&self) -> Vec<Value> {
        check(&self.dir())
    }
}

/// Something to record.
pub(crate) fn draft(id: &str) -> Draft {
    Draft::new(kinds::CALL_DONE, &serde_json::json!({ "id": id })).expect("draft")
}

/// The numbers in the names of files, in order.
pub(crate) fn numbers(dir: &Path) -> Vec<u64> {
    let names =
        fs::read_dir(dir).expect("dir").map(|entry| entry.expect("entry").file_name().into_string().expect("name"));
    let mut found: Vec<u64> =
        names.map(|name| name.strip_suffix(".jsonl").unwrap_or(&name).parse().expect("a number")).collect();
    found.sort_unstable();
    found
}

/// The whole log, in order; panics where it is not what it must be. It may end with an unfinished line, and its oldest files
/// may be gone.
pub(crate) fn check(dir: &Path) -> Vec<Value> {
    let files = numbers(&dir.join("log"));
    let (mut records, mut leaves) = (Vec::new(), Vec::new());
    let first = files.first().copied().unwrap_or(0);
    let (mut tree, mut prev) = before(dir, first);
    let mut roots = HashMap::from([(tree.size(), tree.root())]);
    for (at, first) in files.iter().enumerate() {
        assert_eq!(*first, tree.size(), "the files are without a gap");
        let bytes = fs::read(file(dir, *first)).expect("file");
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
            leaves.push(prev);
            tree.push(prev);
            roots.insert(tree.size(), tree.root());
            records.push(record);
        }
    }
    let key = fs::read_to_string(dir.join("key.pub")).expect("key.pub");
    let key: VerifyingKey = key.trim_end().parse().expect("a key");
    for size in numbers(&dir.join("checkpoints")).into_iter().filter(|size| *size >= first) {
        let note = fs::read_to_string(dir.join(format!("checkpoints/{size:020}"))).expect("note");
        let signed = Checkpoint::open(&note, &key).expect("signed");
        assert_eq!(signed.size, size);
        assert_eq!(Some(&signed.root), roots.get(&size), "checkpoint {size}");
    }
    check_levels(dir, usize::try_from(first).expect("small"), &leaves);
    records
}

pub(crate) fn file(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("log/{first:020}.jsonl"))
}

/// What is in front of a file, as it says itself.
fn before(dir: &Path, first: u64) -> (Frontier, Hash) {
    if first == 0 {
        return (Frontier::default(), Hash::NONE);
    }
    let text = fs::read_to_string(file(dir, first)).expect("file");
    let record: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    let hash = |value: &Value| value.as_str().expect("text").parse::<Hash>().expect("a hash");
    let peaks = record["frontier"].as_array().expect("a list").iter().map(hash).collect();
    (Frontier::new(first, peaks).expect("one for each bit"), hash(&record["prev"]))
}

/// The kept hashes are those of the log.
fn check_levels(dir: &Path, first: usize, leaves: &[Hash]) {
    for level in 0u32.. {
        let Ok(bytes) = fs::read(dir.join(format!("tree/{level}"))) else { break };
        let width = 256usize.pow(level);
        for (at, hash) in bytes.as_chunks::<32>().0.iter().enumerate().skip(first.div_ceil(width)) {
            let mut tree = Frontier::default();
            leaves[at * width - first..(at + 1) * width - first].iter().for_each(|leaf| tree.push(*leaf));
            assert_eq!(tree.root(), Hash::from(*hash), "level {level}, entry {at}");
        }
    }
}

/// The events of records, in order.
pub(crate) fn events(records: &[Value]) -> Vec<&str> {
    records.iter().map(|record| record["event"].as_str().expect("text")).collect()
}
