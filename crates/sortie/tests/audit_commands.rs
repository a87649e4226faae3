//! `sortie audit`: what it prints, and its exit codes, on logs of the real writer.
#![allow(clippy::indexing_slicing, reason = "of JSON in tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sortie_audit::{Draft, Log, Options, kinds};
use sortie_testkit::TempHome;

struct Kept {
    home: TempHome,
    dir: PathBuf,
}

impl Kept {
    /// A log with 24 records: an opening, eleven calls with their ends, and a clean stop.
    fn new() -> Self {
        let home = TempHome::new().expect("home");
        let kept = Self { dir: home.join("audit"), home };
        kept.more(11);
        kept
    }

    fn more(&self, calls: u64) {
        let options = Options {
            dir: self.dir.clone(),
            key_file: self.home.join("audit.key"),
            origin: "test".to_owned(),
            ..Options::default()
        };
        let log = Log::open(options).expect("log");
        for n in 0..calls {
            let tool = if n == 3 { "evil\u{1b}[2J\u{202e}\n" } else { "read" };
            let decided = json!({"id": format!("req_{n}"), "route": "files", "method": "tools/call", "tool": tool,
                "caller": {"issuer": "i", "subject": "key:1", "agent": "research"}, "outcome": "forwarded"});
            let decided = Draft::new(kinds::CALL_ALLOWED, &decided).expect("draft");
            let seq = log.append_now(&decided).expect("appended");
            let done = json!({"id": format!("req_{n}"), "decided": seq, "status": 200, "end": "complete", "duration_us": 1234});
            log.append_now(&Draft::new(kinds::CALL_DONE, &done).expect("draft")).expect("appended");
        }
        log.close().expect("closed");
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sortie"));
        command.env_clear().env("HOME", self.home.path()).current_dir(self.home.path());
        command.arg("audit").args(args).output().expect("sortie")
    }

    /// Exit code, standard output, standard error.
    fn said(&self, args: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.run(args);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (status.code().expect("code"), text(stdout), text(stderr))
    }

    fn good(&self, args: &[&str]) -> String {
        let (code, out, err) = self.said(args);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}: {out}");
        out
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[args, &["--output", "json"]].concat())).expect("json")
    }

    fn file(&self) -> PathBuf {
        self.dir.join("log/00000000000000000000.jsonl")
    }

    fn newest_checkpoint(&self) -> PathBuf {
        let entries = fs::read_dir(self.dir.join("checkpoints")).expect("dir");
        entries.map(|entry| entry.expect("entry").path()).max().expect("checkpoint")
    }
}

fn arg(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn verify_says_what_the_trust_rests_on() {
    let kept = Kept::new();
    let dir = arg(&kept.dir);
    let plain = kept.good(&["verify", dir]);
    assert!(plain.contains("self-consistent only"), "{plain}");
    let key = kept.good(&["key", dir]);
    let by_key = kept.good(&["verify", dir, "--key", key.trim()]);
    assert!(!by_key.contains("self-consistent only") && by_key.contains("by the key given"), "{by_key}");
    fs::write(kept.home.join("key"), &key).expect("written");
    let kept_note = kept.home.join("note");
    fs::copy(kept.newest_checkpoint(), &kept_note).expect("kept");
    let report = kept.json(&["verify", dir, "--key", "key", "--checkpoint", "note"]);
    assert_eq!(
        (&report["ok"], &report["trust"], &report["size"]),
        (&json!(true), &json!("key-and-checkpoint"), &json!(24))
    );

    // An older state of everything, put back.
    let backup = fs::read(kept.file()).expect("log");
    let checkpoint = kept.newest_checkpoint();
    kept.more(1);
    fs::copy(kept.newest_checkpoint(), &kept_note).expect("kept");
    fs::remove_file(kept.newest_checkpoint()).expect("removed");
    for later in fs::read_dir(kept.dir.join("log")).expect("log").map(|file| file.expect("file").path()) {
        fs::remove_file(later).expect("removed");
    }
    fs::write(kept.file(), &backup).expect("back");
    assert!(checkpoint.exists());
    kept.good(&["verify", dir, "--key", "key"]);
    let (code, _, err) = kept.said(&["verify", dir, "--key", "key", "--checkpoint", "note"]);
    assert!(code == 1 && err.contains("NOT verified") && err.contains("note"), "{code} {err}");
}

#[test]
fn verify_fails_with_its_code_and_the_place() {
    let kept = Kept::new();
    let dir = arg(&kept.dir);
    let good = fs::read_to_string(kept.file()).expect("log");
    fs::write(kept.file(), good.replacen("\"tool\":\"read\"", "\"tool\":\"rm\"", 1)).expect("changed");
    let (code, _, err) = kept.said(&["verify", dir]);
    assert_eq!(code, 1);
    assert!(err.contains("00000000000000000000.jsonl: line 3 (byte ") && err.contains("record 2"), "{err}");
    let (code, out, _) = kept.said(&["verify", dir, "--output", "json"]);
    let report: Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, &report["ok"]), (1, &json!(false)));
    let lines: Vec<&str> = good.lines().collect();
    fs::write(kept.file(), format!("{}\n", lines[..20].join("\n"))).expect("cut");
    let (code, _, err) = kept.said(&["verify", dir]);
    assert!(code == 1 && err.contains("the log has 20") && err.contains("24"), "{err}");

    // Wrong use is another code.
    for wrong in [
        &["verify", "nowhere"][..],
        &["verify"],
        &["verify", dir, "--key", "nonsense"],
        &["verify", dir, "--checkpoint", "nowhere"],
        &["verify", "--proof", "x"],
        &["show", dir, "x"],
        &["show", dir, "99"],
        &["tail", "nowhere"],
        &["key", "nowhere"],
    ] {
        let (code, out, err) = kept.said(wrong);
        assert!(code == 2 && out.is_empty() && !err.is_empty(), "{wrong:?}: {code} {err}");
    }
}

#[test]
fn one_record_is_proven_without_the_log() {
    let kept = Kept::new();
    let dir = arg(&kept.dir);
    let key = kept.good(&["key", dir]);
    let proof = kept.good(&["prove", dir, "7"]);
    fs::remove_dir_all(&kept.dir).expect("the log is gone");
    fs::write(kept.home.join("proof"), &proof).expect("written");
    let said = kept.json(&["verify", "--proof", "proof", "--key", key.trim()]);
    assert_eq!((&said["ok"], &said["index"], &said["size"]), (&json!(true), &json!(7), &json!(24)));
    assert!(kept.good(&["verify", "--proof", "proof", "--key", key.trim()]).contains("record 7 is one of 24"));
    fs::write(kept.home.join("proof"), proof.replace("forwarded", "refused")).expect("written");
    let (code, _, err) = kept.said(&["verify", "--proof", "proof", "--key", key.trim()]);
    assert!(code == 1 && err.contains("NOT proven"), "{err}");
}

#[test]
fn records_are_found_shown_and_exported_and_steer_no_terminal() {
    let kept = Kept::new();
    let dir = arg(&kept.dir);
    let found = kept.good(&["search", dir, "--agent", "research", "--tool", "read", "--output", "json"]);
    let lines: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).expect("json")).collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(kept.good(&["search", dir, "--id", "req_2"]).lines().count(), 3, "a head and both records");
    assert_eq!(kept.good(&["search", dir, "--since", "1h", "--until", "2020-01-01"]), "");
    let (code, out, err) = kept.said(&["search", dir, "--limit", "2"]);
    assert!(code == 0 && out.lines().count() == 3 && err.contains("only the first 2"), "{err}");
    let tail = kept.good(&["tail", dir, "-n", "3"]);
    assert!(tail.lines().count() == 4 && tail.lines().last().is_some_and(|line| line.contains("log_closed")), "{tail}");
    assert_eq!(
        kept.good(&["tail", dir, "-n", "100", "--output", "json"]),
        fs::read_to_string(kept.file()).expect("log")
    );

    let shown = [kept.good(&["search", dir]), kept.good(&["show", dir, "7"]), kept.good(&["tail", dir, "-n", "99"])];
    for text in &shown {
        assert!(text.contains("<U+001B>") && text.contains("<U+202E>"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    }
    assert_eq!(kept.json(&["show", dir, "7"])["tool"], "evil\u{1b}[2J\u{202e}\n");

    assert_eq!(kept.good(&["export", dir]), fs::read_to_string(kept.file()).expect("log"));
    let rows = kept.good(&["export", dir, "--format", "csv", "--event", "call_done"]);
    assert_eq!(rows.lines().count(), 12);
    let events = kept.good(&["export", dir, "--format", "ocsf", "--code", "G1001I"]);
    let classes: Vec<Value> = events.lines().map(|line| serde_json::from_str::<Value>(line).expect("json")).collect();
    assert!(classes.len() == 11 && classes.iter().all(|event| event["class_uid"] == 6003));
}
