//! What a verifier of the audit reads: a line that is taken says to an ordinary reader just what it says to us, and can
//! be neither two lines nor steer a terminal; a checkpoint or a proof counts for nothing that the key has not signed. The
//! first byte says what follows: `n` a checkpoint, `p` a proof; anything else is a line.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sortie_audit::{Checkpoint, Hash, Line, Proof, SigningKey, VerifyingKey, csv, inclusion_root, ocsf};

/// Made anew for each run: no input can hold its signature.
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::generate("fuzz"));

fuzz_target!(|input: &[u8]| match input.split_first() {
    Some((b'n', note)) => checkpoint(&String::from_utf8_lossy(note)),
    Some((b'p', json)) => proof(json),
    _ => line(input),
});

fn line(line: &[u8]) {
    let Ok(read) = Line::exact(line) else { return };
    assert!(line.iter().all(|byte| *byte >= 0x20) && std::str::from_utf8(line).is_ok());
    assert_eq!(Line::head(line).expect("begins so").0, read);
    // An ordinary reader gives up where values nest deeply or hold half a character; else it must see the same.
    let Ok(value) = serde_json::from_slice::<Value>(line) else { return };
    let text = |name: &str| value[name].as_str().expect("a text").to_owned();
    assert_eq!(value["seq"].as_u64(), Some(read.seq));
    assert_eq!(text("prev"), read.prev.to_string());
    assert_eq!((text("time"), text("code"), text("event")), (read.time.into(), read.code.into(), read.event.into()));
    let event = ocsf(line).expect("an event");
    assert_eq!(event["raw_data"].as_str().expect("text").as_bytes(), line);
    assert!(csv(line).is_ok());
}

fn checkpoint(note: &str) {
    let key = KEY.verifying_key();
    assert!(Checkpoint::open(note, &key).is_err(), "nobody has signed this");
    if let Ok(claimed) = Checkpoint::peek(note) {
        assert!(note.starts_with(&claimed.text()), "{note}");
        let signed = KEY.sign(claimed.size, claimed.root);
        let opened = Checkpoint::open(&signed, &key).expect("signed");
        assert_eq!((opened.size, opened.root), (claimed.size, claimed.root));
    }
    if let Ok(read) = note.parse::<VerifyingKey>() {
        assert_eq!(read.to_string().parse(), Ok(read));
    }
}

fn proof(json: &[u8]) {
    let Ok(proof) = Proof::parse(json) else { return };
    assert!(proof.check(&[KEY.verifying_key()]).is_err(), "nobody has signed this");
    let leaf = Hash::of_leaf(proof.record.as_bytes());
    let Some(root) = inclusion_root(proof.index, proof.size, leaf, &proof.path) else { return };
    // A path that leads somewhere, signed: then all the rest has to be right, too.
    let signed = Proof { checkpoint: KEY.sign(proof.size, root), ..proof };
    let exact = Line::exact(signed.record.as_bytes()).is_ok_and(|line| line.seq == signed.index);
    assert_eq!(signed.check(&[KEY.verifying_key()]).is_ok(), exact);
}
