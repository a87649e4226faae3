//! What somebody who can write into the directory may do to it, and that it shows.

mod written;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sortie_audit::{Fault, Hash, ReadError, Report, SigningKey, Trust, Trusted, VerifyError, kinds, verify};
use written::{Written, copy};

/// Two files with a call each, and a checkpoint of all.
fn small() -> Written {
    let mut log = Written::new();
    for tool in ["read", "write"] {
        log.rotate();
        log.call("a", tool);
        log.checkpoint();
    }
    log
}

fn by_key(log: &Written) -> Trusted {
    Trusted { keys: vec![log.key.verifying_key()], checkpoints: Vec::new() }
}

fn held(log: &Written, dir: &Path) -> Result<Report, VerifyError> {
    verify(dir, &by_key(log), |_| ())
}

/// Whether it is found with the key alone.
fn refused(log: &Written, dir: &Path) -> VerifyError {
    held(log, dir).expect_err("not noticed")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = ["log", "checkpoints"]
        .iter()
        .flat_map(|sub| fs::read_dir(dir.join(sub)).expect("dir"))
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.push(dir.join("key.pub"));
    files.sort();
    files
}

/// A log whose first file has these lines instead.
fn with_lines(log: &Written, lines: &[Vec<u8>]) -> written::Copy {
    let damaged = log.copy();
    let bytes: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
    fs::write(first(damaged.dir()), bytes).expect("written");
    damaged
}

fn first(dir: &Path) -> PathBuf {
    dir.join(format!("log/{:020}.jsonl", 0))
}

fn lines(file: &Path) -> Vec<Vec<u8>> {
    let text = fs::read(file).expect("file");
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

#[test]
fn each_byte_that_is_flipped_is_noticed() {
    let log = small();
    let damaged = log.copy();
    let mut flipped = 0;
    for file in files(damaged.dir()) {
        let good = fs::read(&file).expect("file");
        for at in 0..good.len() {
            let mut bad = good.clone();
            *bad.get_mut(at).expect("byte") ^= 1 << (at % 8);
            fs::write(&file, bad).expect("written");
            assert!(held(&log, damaged.dir()).is_err(), "byte {at} of {}", file.display());
            flipped += 1;
        }
        fs::write(&file, good).expect("written");
    }
    assert!(flipped > 3000);
    held(&log, damaged.dir()).expect("whole again");
}

#[test]
fn behind_the_newest_checkpoint_a_flipped_byte_shows_or_leaves_a_torn_end() {
    let mut log = small();
    log.call("a", "late");
    let file = log.file.clone();
    let good = fs::read(&file).expect("file");
    let begin = good.len() - lines(&file).iter().rev().take(2).map(|line| line.len() + 1).sum::<usize>();
    let mut torn = Vec::new();
    let last = good.len() - lines(&file).last().expect("line").len() - 1;
    let mut quiet = 0;
    for at in begin..good.len() {
        let mut bad = good.clone();
        *bad.get_mut(at).expect("byte") ^= 1;
        fs::write(&file, bad).expect("written");
        match held(&log, log.dir()) {
            Ok(report) if report.torn > 0 => torn.push(at),
            // Nothing follows the last record, and nothing is signed after it.
            Ok(report) => {
                assert!(at >= last && report.unsigned == 2, "byte {at}");
                quiet += 1;
            }
            Err(_) => {}
        }
    }
    assert_eq!(torn, [good.len() - 1], "only without its end");
    assert!(quiet > 0);
    // A checkpoint that covers everything leaves nothing to chance.
    fs::write(&file, &good).expect("written");
    log.checkpoint();
    for at in begin..good.len() {
        let mut bad = good.clone();
        *bad.get_mut(at).expect("byte") ^= 1;
        fs::write(&file, bad).expect("written");
        assert!(held(&log, log.dir()).is_err(), "byte {at}");
    }
}

#[test]
fn records_that_are_cut_out_swapped_put_in_or_doubled_are_noticed() {
    let log = Written::three_files();
    let good = lines(&first(log.dir()));
    for at in 0..good.len() {
        let mut cut = good.clone();
        cut.remove(at);
        refused(&log, with_lines(&log, &cut).dir());
        let mut doubled = good.clone();
        doubled.insert(at, good.get(at).expect("line").clone());
        refused(&log, with_lines(&log, &doubled).dir());
        for other in 0..at {
            let mut swapped = good.clone();
            swapped.swap(at, other);
            refused(&log, with_lines(&log, &swapped).dir());
        }
        // One that fits to the record before it, and to its number.
        let mut inserted = good.clone();
        let before =
            at.checked_sub(1).and_then(|before| good.get(before)).map_or(Hash::NONE, |line| Hash::of_leaf(line));
        let mut line = Vec::new();
        let draft = sortie_audit::Draft::new(kinds::CALL_DONE, &json!({"id": "lie"})).expect("draft");
        draft.write(u64::try_from(at).expect("small"), &before, log.time, &mut line);
        inserted.insert(at, line);
        refused(&log, with_lines(&log, &inserted).dir());
    }
    assert!(matches!(held(&log, with_lines(&log, &good).dir()), Ok(report) if report.size == 30));
}

#[test]
fn a_log_that_is_cut_off_anywhere_is_noticed() {
    let log = small();
    let damaged = log.copy();
    for file in files(damaged.dir()).into_iter().filter(|file| file.extension().is_some_and(|end| end == "jsonl")) {
        let good = fs::read(&file).expect("file");
        for length in 0..good.len() {
            fs::write(&file, good.get(..length).expect("part")).expect("written");
            refused(&log, damaged.dir());
        }
        fs::write(&file, good).expect("written");
    }
    // Behind the newest checkpoint it is a crash, whatever is left of the record.
    let mut log = small();
    let covered = fs::read(&log.file).expect("file").len();
    log.call("a", "late");
    let good = fs::read(&log.file).expect("file");
    let whole: Vec<usize> = good.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for length in covered..=good.len() {
        fs::write(&log.file, good.get(..length).expect("part")).expect("written");
        let report = held(&log, log.dir()).expect("a crash");
        let last = whole.iter().rev().find(|end| **end <= length).expect("line");
        assert_eq!(report.torn, u64::try_from(length - last).expect("small"));
    }
}

#[test]
fn files_that_are_missing_renamed_or_strange_are_noticed() {
    let log = Written::three_files();
    let middle = |dir: &Path| dir.join(format!("log/{:020}.jsonl", 10));
    let last = |dir: &Path| dir.join(format!("log/{:020}.jsonl", 20));
    let damaged = |change: &dyn Fn(&Path)| {
        let copy = log.copy();
        change(copy.dir());
        refused(&log, copy.dir())
    };
    let gap = damaged(&|dir| fs::remove_file(middle(dir)).expect("removed"));
    assert!(matches!(gap, VerifyError::Read(ReadError::Gap { missing: 10, .. })), "{gap}");
    let short = damaged(&|dir| fs::remove_file(last(dir)).expect("removed"));
    assert!(matches!(short, VerifyError::Short { size: 20, signed: 30, .. }), "{short}");
    damaged(&|dir| fs::rename(middle(dir), dir.join(format!("log/{:020}.jsonl", 11))).expect("renamed"));
    damaged(&|dir| fs::rename(last(dir), dir.join(format!("log/{:020}.jsonl", 40))).expect("renamed"));
    damaged(&|dir| fs::rename(first(dir), dir.join("log/old.jsonl")).expect("renamed"));
    damaged(&|dir| {
        fs::rename(first(dir), dir.join("x")).expect("renamed");
        fs::rename(middle(dir), first(dir)).expect("renamed");
        fs::rename(dir.join("x"), middle(dir)).expect("renamed");
    });
    // Moved out of the way of the first records, to look archived.
    damaged(&|dir| {
        fs::rename(first(dir), dir.join(format!("log/{:020}.jsonl", 5))).expect("renamed");
    });
    for empty in [first as fn(&Path) -> PathBuf, middle, last] {
        damaged(&|dir| fs::write(empty(dir), "").expect("emptied"));
    }
    damaged(&|dir| fs::write(dir.join("log/notes.txt"), "x").expect("written"));
    damaged(&|dir| fs::create_dir(dir.join(format!("log/{:020}.jsonl", 30))).expect("made"));
    damaged(&|dir| {
        fs::rename(middle(dir), dir.join("elsewhere")).expect("moved");
        std::os::unix::fs::symlink(dir.join("elsewhere"), middle(dir)).expect("linked");
    });
    damaged(&|dir| {
        fs::remove_file(last(dir)).expect("removed");
        fifo(&last(dir));
    });
    damaged(&|dir| fifo(&dir.join(format!("checkpoints/{:020}", 31))));
    damaged(&|dir| {
        std::os::unix::fs::symlink(dir.join("key.pub"), dir.join(format!("checkpoints/{:020}", 31))).expect("linked");
    });
    damaged(&|dir| fs::write(dir.join(format!("checkpoints/{:020}", 31)), vec![b'x'; 1 << 20]).expect("written"));
    let renamed = damaged(&|dir| {
        fs::rename(dir.join(format!("checkpoints/{:020}", 20)), dir.join(format!("checkpoints/{:020}", 21)))
            .expect("moved");
    });
    assert!(matches!(renamed, VerifyError::Renamed { size: 20, .. }), "{renamed}");
    // What a crash leaves beside the checkpoints, and an empty next file, are nothing strange.
    let crashed = log.copy();
    fs::write(crashed.dir().join("checkpoints/.00000000000000000031.tmp"), "half").expect("written");
    fs::write(crashed.dir().join(format!("log/{:020}.jsonl", 30)), "").expect("written");
    assert_eq!(held(&log, crashed.dir()).expect("verified").size, 30);
}

fn fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo");
    assert!(made.success());
}

#[test]
fn an_earlier_state_is_noticed_by_a_checkpoint_from_elsewhere() {
    let mut log = Written::new();
    log.rotate();
    log.call("a", "b");
    log.checkpoint();
    let backup = log.copy();
    log.call("a", "what was done since");
    let published = log.checkpoint();
    let elsewhere = Trusted { checkpoints: vec![("published".to_owned(), published.clone())], ..by_key(&log) };
    verify(log.dir(), &elsewhere, |_| ()).expect("verified");
    assert_eq!(held(&log, backup.dir()).expect("the key alone cannot tell").trust, Trust::Key);
    let rolled = verify(backup.dir(), &elsewhere, |_| ()).expect_err("noticed");
    assert!(matches!(rolled, VerifyError::Short { size: 3, signed: 5, .. }), "{rolled}");

    // Gone on from the earlier state, with the real key: another history of the same length.
    let mut fork = Written::with_key(SigningKey::from_pkcs8("test", log.key.pkcs8()).expect("key"));
    copy(backup.dir(), fork.dir());
    fork.file = fork.log(0);
    for line in lines(&fork.log(0)) {
        fork.tree.push(Hash::of_leaf(&line));
    }
    let prev = lines(&fork.log(0)).last().map(|line| Hash::of_leaf(line)).expect("line");
    for (seq, prev) in [(3, prev), (4, prev)] {
        let before = lines(&fork.log(0)).last().map(|line| Hash::of_leaf(line)).filter(|_| seq == 4).unwrap_or(prev);
        let mut line = Vec::new();
        let draft = sortie_audit::Draft::new(kinds::CALL_DONE, &json!({"id": "other"})).expect("draft");
        draft.write(seq, &before, log.time, &mut line);
        fork.line(&line);
    }
    fork.checkpoint();
    held(&log, fork.dir()).expect("the key alone cannot tell");
    let forked = verify(fork.dir(), &elsewhere, |_| ()).expect_err("noticed");
    assert!(matches!(forked, VerifyError::OtherRoot { size: 5, .. }), "{forked}");
    let words = forked.to_string();
    assert!(words.contains("published") && words.contains(&fork.tree.root().to_string()), "{words}");

    // An old checkpoint in the place of the newest.
    fs::write(log.checkpoint_at(5), fs::read(log.checkpoint_at(3)).expect("note")).expect("written");
    assert!(matches!(refused(&log, log.dir()), VerifyError::Renamed { size: 3, .. }));
    fs::remove_file(log.checkpoint_at(5)).expect("removed");
    fs::write(&log.file, fs::read(backup.dir().join("log/00000000000000000000.jsonl")).expect("file"))
        .expect("written");
    assert!(verify(log.dir(), &elsewhere, |_| ()).is_err());
}

#[test]
fn a_log_written_anew_is_only_self_consistent() {
    let log = Written::three_files();
    let forged = Written::three_files();
    let report = verify(forged.dir(), &Trusted::default(), |_| ()).expect("nothing contradicts itself");
    assert_eq!(report.trust, Trust::SelfConsistent);
    assert!(matches!(refused(&log, forged.dir()), VerifyError::OtherKey { .. }));
    // With the true key put beside it, the checkpoints betray it; without them, that nothing is signed.
    let key = format!("{}\n", log.key.verifying_key());
    fs::write(forged.dir().join("key.pub"), key).expect("written");
    assert!(matches!(refused(&log, forged.dir()), VerifyError::Checkpoint(..)));
    assert!(verify(forged.dir(), &Trusted::default(), |_| ()).is_err());
    for size in [10, 20, 30] {
        fs::remove_file(forged.checkpoint_at(size)).expect("removed");
    }
    assert!(matches!(refused(&log, forged.dir()), VerifyError::Unsigned(_)));
    // The true checkpoints do not fit to it.
    fs::write(forged.checkpoint_at(30), fs::read(log.checkpoint_at(30)).expect("note")).expect("written");
    assert!(matches!(refused(&log, forged.dir()), VerifyError::OtherRoot { size: 30, .. }));
    let note = fs::read_to_string(log.checkpoint_at(20)).expect("note");
    let elsewhere = Trusted { keys: Vec::new(), checkpoints: vec![("kept".to_owned(), note)] };
    assert!(matches!(verify(forged.dir(), &elsewhere, |_| ()), Err(VerifyError::OtherRoot { size: 20, .. })));
}

#[test]
fn a_checkpoint_of_another_key_or_origin_is_refused() {
    let log = small();
    let stranger = SigningKey::generate("test");
    fs::write(log.checkpoint_at(6), stranger.sign(6, log.tree.root())).expect("written");
    assert!(matches!(refused(&log, log.dir()), VerifyError::Checkpoint(..)));
    // The same key under another name is another log.
    let renamed = SigningKey::from_pkcs8("other", log.key.pkcs8()).expect("key");
    fs::write(log.checkpoint_at(6), renamed.sign(6, log.tree.root())).expect("written");
    assert!(matches!(refused(&log, log.dir()), VerifyError::Checkpoint(..)));
    let elsewhere = Trusted { checkpoints: vec![("x".to_owned(), stranger.sign(3, Hash::NONE))], ..by_key(&log) };
    log.checkpoint();
    held(&log, log.dir()).expect("good again");
    assert!(matches!(verify(log.dir(), &elsewhere, |_| ()), Err(VerifyError::Checkpoint(name, _)) if name == "x"));
}

#[test]
fn what_is_recorded_cannot_make_lines_or_members() {
    let hostile = [
        "a\nb",
        "a\r\nb",
        "\"},{\"seq\":0",
        "\\",
        "\u{1b}[2J",
        "\u{2028}\u{2029}",
        "\0",
        "\u{7f}\u{85}\u{9b}",
        "\u{202e}",
        "\",\"event\":\"log_closed",
        "a\n{\"seq\":2,\"prev\":\"",
        "\u{feff}",
        "\u{fffd}\u{10ffff}",
    ];
    let mut log = Written::new();
    log.rotate();
    for text in hostile {
        log.add(kinds::CALL_REFUSED, &json!({"tool": text, text: text, "arguments": {"shown": {text: [text]}}}));
    }
    log.checkpoint();
    let report = held(&log, log.dir()).expect("verified");
    assert_eq!(report.records, u64::try_from(hostile.len()).expect("small") + 1);
    for (line, text) in lines(&log.file).iter().skip(1).zip(hostile) {
        let value: serde_json::Value = serde_json::from_slice(line).expect("json");
        assert_eq!(value.get("event"), Some(&json!("call_decided")));
        assert_eq!(value.pointer("/arguments/shown").and_then(|shown| shown.get(text)), Some(&json!([text])));
        assert!(line.iter().all(|byte| *byte >= 0x20));
    }
}

#[test]
fn lines_of_no_exact_form_are_refused_though_signed() {
    let head = |seq: u64, prev: &Hash| {
        format!(
            r#"{{"seq":{seq},"prev":"{prev}","time":"2026-11-22T22:40:01.500000Z","code":"G1001W","event":"call_decided""#
        )
    };
    let mut good = Written::new();
    good.rotate();
    let prev = lines(&good.file).first().map(|line| Hash::of_leaf(line)).expect("line");
    let long = format!("{},\"x\":\"{}\"}}", head(1, &prev), "y".repeat(256 * 1024));
    let cases: Vec<Vec<u8>> = vec![
        format!("{},\"id\":\"a\",\"id\":\"b\"}}", head(1, &prev)).into(),
        format!("{},\"event\":\"log_closed\"}}", head(1, &prev)).into(),
        format!("{},\"id\":\"a\u{1}b\"}}", head(1, &prev)).into(),
        [head(1, &prev).as_bytes(), b",\"id\":\"\xff\"}"].concat(),
        [head(1, &prev).as_bytes(), b",\"id\":\"\xed\xa0\x80\"}"].concat(),
        format!("{},\"id\":\"a\"}}{{}}", head(1, &prev)).into(),
        format!("{},\"id\":\"a\"}}\r", head(1, &prev)).into(),
        format!("\u{feff}{}}}", head(1, &prev)).into(),
        head(1, &prev).replacen("{\"seq\":1", "{ \"seq\": 1", 1).into(),
        long.into(),
        vec![b'z'; 5 << 20],
        Vec::new(),
    ];
    for line in cases {
        let mut log = Written::with_key(SigningKey::from_pkcs8("test", good.key.pkcs8()).expect("key"));
        copy(good.dir(), log.dir());
        log.file = log.log(0);
        log.tree.push(prev);
        log.line(&line);
        log.checkpoint();
        let shown = String::from_utf8_lossy(line.get(..line.len().min(400)).unwrap_or_default()).into_owned();
        match held(&log, log.dir()) {
            Err(VerifyError::Record(place, Fault::Form(_))) => assert_eq!((place.seq, place.line), (1, 2), "{shown}"),
            other => panic!("{shown}: {other:?}"),
        }
    }
}

#[test]
fn files_that_do_not_begin_as_files_do_are_refused() {
    let mut log = Written::new();
    log.file = log.log(0);
    log.call("a", "b");
    log.checkpoint();
    assert!(matches!(refused(&log, log.dir()), VerifyError::Record(_, Fault::NotOpened)));

    let opened = |frontier: Vec<Hash>, format: u32| {
        json!({"format": format, "reason": "begun", "key": "k", "software": "s",
        "frontier": frontier})
    };
    for (fields, format) in [(opened(vec![Hash::NONE], 1), false), (opened(Vec::new(), 2), true)] {
        let mut log = Written::new();
        log.file = log.log(0);
        log.add(kinds::LOG_OPENED, &fields);
        log.checkpoint();
        match refused(&log, log.dir()) {
            VerifyError::Record(_, Fault::Format(2)) => assert!(format),
            VerifyError::Record(_, Fault::Frontier) => assert!(!format),
            other => panic!("{other}"),
        }
    }
    // An archived beginning that is made up does not lead to the signed root.
    let log = Written::three_files();
    fs::remove_file(log.log(0)).expect("archived");
    let text = fs::read_to_string(log.log(10)).expect("text");
    let at = text.find("frontier").expect("member") + 20;
    let digit = if text.get(at..=at) == Some("0") { "1" } else { "0" };
    let lied = format!("{}{digit}{}", text.get(..at).expect("part"), text.get(at + 1..).expect("part"));
    fs::write(log.log(10), lied).expect("written");
    refused(&log, log.dir());
}
