//! The second verifier, of `second_verifier.py`, agrees with ours: on good logs, on damaged ones, and on proofs.

mod written;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sortie_audit::{Draft, Log, Options, SigningKey, Trusted, VerifyingKey, kinds, prove, verify};
use sortie_testkit::tool;
use written::Written;

/// A Python that has the package `cryptography`.
fn python() -> Option<PathBuf> {
    tool("SORTIE_TEST_PYTHON_MCP2")
}

fn second(python: &Path, args: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/second_verifier.py");
    let output = Command::new(python).arg(script).args(args).output().expect("python");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    assert_eq!(output.status.success(), value.get("ok") == Some(&json!(true)));
    value
}

/// Both verifiers say the same, and how it came out.
fn agree(python: &Path, dir: &Path, keys: &[VerifyingKey], kept: Option<&Path>) -> bool {
    let mut args = vec![dir.display().to_string()];
    for key in keys {
        args.extend(["--key".to_owned(), key.to_string()]);
    }
    let mut trusted = Trusted { keys: keys.to_vec(), checkpoints: Vec::new() };
    if let Some(kept) = kept {
        args.extend(["--checkpoint".to_owned(), kept.display().to_string()]);
        trusted.checkpoints.push(("kept".to_owned(), fs::read_to_string(kept).expect("note")));
    }
    let theirs = second(python, &args.iter().map(String::as_str).collect::<Vec<_>>());
    match verify(dir, &trusted, |_| ()) {
        Ok(report) => {
            let ours = serde_json::to_value(report).expect("json");
            for member in ["trust", "first", "size", "root", "torn"] {
                assert_eq!(theirs.get(member), ours.get(member), "{member}: {theirs}");
            }
            true
        }
        Err(error) => {
            assert_eq!(theirs.get("ok"), Some(&json!(false)), "ours: {error}");
            false
        }
    }
}

#[test]
fn a_log_of_the_real_writer_is_verified_by_both() {
    let Some(python) = python() else { return };
    let home = tempfile::tempdir().expect("dir");
    let (dir, key_file) = (home.path().join("audit"), home.path().join("audit.key"));
    let hostile = ["a\nb\"}", "\u{2028}\u{1b}[2J\0\u{85}", "\\\"", "é\u{10ffff}", "9223372036854775808"];
    for run in 0..3 {
        let options =
            Options { dir: dir.clone(), key_file: key_file.clone(), origin: "test".to_owned(), ..Options::default() };
        let log = Log::open(options).expect("log");
        for n in 0..70 {
            let text = hostile.get(n % hostile.len()).expect("text");
            let fields = json!({"id": n, "tool": text, *text: {"x": [text, 1.5e300, -0.0, null, u64::MAX]}});
            log.append_now(&Draft::new(kinds::CALL_REFUSED, &fields).expect("draft")).expect("appended");
        }
        log.close().expect("closed");
        let pkcs8 = fs::read(&key_file).expect("key");
        let key = SigningKey::from_pkcs8("test", &pkcs8).expect("key").verifying_key();
        assert!(agree(&python, &dir, std::slice::from_ref(&key), None), "run {run}");
        assert!(agree(&python, &dir, &[], None));
    }
}

#[test]
fn both_say_the_same_of_damaged_logs() {
    let Some(python) = python() else { return };
    let log = Written::three_files();
    let keys = [log.key.verifying_key()];
    let kept = log.dir().join("kept");
    fs::copy(log.checkpoint_at(20), &kept).expect("kept");
    assert!(agree(&python, log.dir(), &keys, Some(&kept)));
    assert!(agree(&python, log.dir(), &[], Some(&kept)));
    let mut verdicts = Vec::new();
    let mut damaged = |change: &dyn Fn(&Path)| {
        let copy = log.copy();
        change(copy.dir());
        verdicts.push(agree(&python, copy.dir(), &keys, Some(&kept)));
        verdicts.push(agree(&python, copy.dir(), &[], None));
    };
    let file = |dir: &Path, first: u64| dir.join(format!("log/{first:020}.jsonl"));
    for at in [0, 9, 60, 100, 140, 300, 1000, 3000, 5000] {
        damaged(&|dir| {
            let mut bytes = fs::read(file(dir, 10)).expect("file");
            *bytes.get_mut(at).expect("byte") ^= 4;
            fs::write(file(dir, 10), bytes).expect("written");
        });
    }
    for first in [0, 10, 20] {
        damaged(&|dir| fs::remove_file(file(dir, first)).expect("removed"));
        damaged(&|dir| fs::write(file(dir, first), "").expect("emptied"));
        damaged(&|dir| {
            let bytes = fs::read(file(dir, first)).expect("file");
            fs::write(file(dir, first), bytes.get(..bytes.len() - 7).expect("part")).expect("cut");
        });
    }
    damaged(&|dir| {
        fs::write(dir.join("key.pub"), SigningKey::generate("test").verifying_key().to_string()).expect("w")
    });
    damaged(&|dir| fs::write(file(dir, 30), "").expect("written"));
    damaged(&|dir| fs::write(file(dir, 30), "{\"seq\":30").expect("written"));
    damaged(&|dir| OpenOptions::new().append(true).open(file(dir, 20)).and_then(|mut f| f.write_all(b"x")).expect("w"));
    damaged(&|dir| fs::write(dir.join("log/x"), "").expect("written"));
    let note = |dir: &Path, size: u64| dir.join(format!("checkpoints/{size:020}"));
    damaged(&|dir| fs::rename(note(dir, 20), note(dir, 21)).expect("renamed"));
    damaged(&|dir| {
        fs::remove_dir_all(dir.join("checkpoints")).and_then(|()| fs::create_dir(dir.join("checkpoints"))).expect("r")
    });
    damaged(&|dir| {
        let text = fs::read_to_string(note(dir, 30)).expect("note");
        fs::write(note(dir, 30), format!("{}=\n", text.trim_end())).expect("written");
    });
    let (good, bad) = (verdicts.iter().filter(|good| **good).count(), verdicts.iter().filter(|good| !**good).count());
    assert!(good >= 5 && bad >= 25, "{good} {bad}");
}

#[test]
fn both_believe_the_same_proofs() {
    let Some(python) = python() else { return };
    let log = Written::three_files();
    let key = log.key.verifying_key();
    let path = log.dir().join("proof.json");
    for seq in [0, 7, 19, 29] {
        let proof = prove(log.dir(), seq, |_| ()).expect("proof");
        let mut other = prove(log.dir(), (seq + 1) % 30, |_| ()).expect("proof");
        other.path.clone_from(&proof.path);
        let mut longer = proof.clone();
        longer.path.push(log.tree.root());
        for (proof, good) in [(&proof, true), (&other, false), (&longer, false)] {
            fs::write(&path, serde_json::to_vec(proof).expect("json")).expect("written");
            let said = second(&python, &["--proof", &path.display().to_string(), "--key", &key.to_string()]);
            assert_eq!(said.get("ok"), Some(&json!(good)), "{said}");
            assert_eq!(proof.check(std::slice::from_ref(&key)).is_ok(), good);
        }
    }
}
