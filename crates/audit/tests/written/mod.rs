//! Logs made by hand, record by record, so that a test decides where files end and what is signed.
#![allow(dead_code, unreachable_pub, reason = "each test program uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use sortie_audit::{Draft, Frontier, Hash, Kind, LogOpened, SigningKey, kinds};
use tempfile::TempDir;

pub struct Written {
    dir: TempDir,
    pub key: SigningKey,
    pub tree: Frontier,
    prev: Hash,
    pub file: PathBuf,
    pub time: Timestamp,
}

impl Written {
    /// An audit directory without a record.
    pub fn new() -> Self {
        Self::with_key(SigningKey::generate("test"))
    }

    pub fn with_key(key: SigningKey) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        for sub in ["log", "checkpoints"] {
            fs::create_dir(dir.path().join(sub)).expect("dir");
        }
        fs::write(dir.path().join("key.pub"), format!("{}\n", key.verifying_key())).expect("key");
        let time = "2026-11-22T22:40:00Z".parse().expect("time");
        Self { dir, key, tree: Frontier::default(), prev: Hash::NONE, file: PathBuf::new(), time }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn log(&self, first: u64) -> PathBuf {
        self.dir().join(format!("log/{first:020}.jsonl"))
    }

    pub fn checkpoint_at(&self, size: u64) -> PathBuf {
        self.dir().join(format!("checkpoints/{size:020}"))
    }

    /// Begins the next file.
    pub fn rotate(&mut self) {
        self.file = self.log(self.tree.size());
        let opened = LogOpened {
            format: 1,
            reason: if self.tree.size() == 0 { "begun" } else { "rotated" }.to_owned(),
            key: self.key.verifying_key().to_string(),
            frontier: self.tree.peaks().to_vec(),
            software: "sortie 0".to_owned(),
        };
        self.add(kinds::LOG_OPENED, &opened);
    }

    pub fn add<T: Serialize + ?Sized>(&mut self, kind: Kind, fields: &T) {
        let mut line = Vec::new();
        Draft::new(kind, fields).expect("draft").write(self.tree.size(), &self.prev, self.time, &mut line);
        self.line(&line);
    }

    /// Adds a line, whatever it says.
    pub fn line(&mut self, line: &[u8]) {
        self.time += SignedDuration::from_millis(1500);
        self.prev = Hash::of_leaf(line);
        self.tree.push(self.prev);
        let mut bytes = fs::read(&self.file).unwrap_or_default();
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        fs::write(&self.file, bytes).expect("write");
    }

    /// Adds a call: what was decided of it, and how it ended.
    pub fn call(&mut self, agent: &str, tool: &str) {
        let id = format!("req_{}", self.tree.size());
        let caller = json!({
            "issuer": "https://hub.test", "subject": "key:sk_1", "assurance": "asserted", "agent": agent, "user": "ann",
            "key": "sk_1", "workspace": "ws_1", "session": "sesn_1", "expires": 1_800_000_000,
        });
        let decision = json!({
            "effect": "allow", "mode": "enforce", "policies": ["readers"], "reason": "readers allows it",
            "policy_sha256": "ab".repeat(32), "now": 1_795_387_200, "facts": {"path": "/a"},
        });
        let decided = self.tree.size();
        self.add(
            kinds::CALL_ALLOWED,
            &json!({
                "id": id, "route": "files", "caller": caller, "method": "tools/call", "tool": tool,
                "arguments": {"sha256": "cd".repeat(32), "bytes": 17}, "outcome": "forwarded", "decision": decision,
                "trace": "0af7651916cd43dd8448eb211c80319c",
            }),
        );
        self.add(
            kinds::CALL_DONE,
            &json!({
                "id": id, "decided": decided, "status": 200, "end": "whole", "request_bytes": 120,
                "response_bytes": 4096, "duration_us": 2300, "result_sha256": "ef".repeat(32),
            }),
        );
    }

    /// Signs what is there, and keeps it.
    pub fn checkpoint(&self) -> String {
        let note = self.note();
        fs::write(self.checkpoint_at(self.tree.size()), &note).expect("write");
        note
    }

    pub fn note(&self) -> String {
        self.key.sign(self.tree.size(), self.tree.root())
    }

    /// Three files with ten records and a checkpoint at the end of each: 30 records.
    pub fn three_files() -> Self {
        let mut log = Self::new();
        for file in 0..3 {
            log.rotate();
            for call in 0..4 {
                log.call(&format!("agent-{file}"), &format!("tool_{call}"));
            }
            log.add(kinds::SETTINGS_LOADED, &json!({"sha256": "00".repeat(32), "routes": 2}));
            log.checkpoint();
        }
        assert_eq!(log.tree.size(), 30);
        log
    }

    pub fn copy(&self) -> Copy {
        let dir = tempfile::tempdir().expect("dir");
        copy(self.dir(), dir.path());
        Copy(dir)
    }
}

/// A copy of a directory, to be damaged.
pub struct Copy(TempDir);

impl Copy {
    pub fn dir(&self) -> &Path {
        self.0.path()
    }
}

pub fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("dir") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            fs::create_dir_all(&target).expect("dir");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}
