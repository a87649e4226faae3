//! Proofs of single records: made from the log, or from the hashes beside it; believed only when nothing in them is changed.

mod written;

use std::fs;

use sortie_audit::{Hash, Proof, ProofError, ProveError, SigningKey, prove};
use written::Written;

/// Writes the hashes that are kept beside a log: all leaves, and the root of each 256.
fn levels(log: &Written) {
    let leaves: Vec<Hash> = lines(log).iter().map(|line| Hash::of_leaf(line)).collect();
    let dir = log.dir().join("tree");
    fs::create_dir_all(&dir).expect("dir");
    let bytes = |hashes: &[Hash]| hashes.iter().flat_map(|hash| *hash.as_bytes()).collect::<Vec<_>>();
    fs::write(dir.join("0"), bytes(&leaves)).expect("leaves");
    let roots: Vec<Hash> = leaves.chunks_exact(256).map(root).collect();
    fs::write(dir.join("1"), bytes(&roots)).expect("roots");
}

fn root(leaves: &[Hash]) -> Hash {
    let mut tree = sortie_audit::Frontier::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    tree.root()
}

fn lines(log: &Written) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        fs::read_dir(log.dir().join("log")).expect("dir").map(|file| file.expect("f").path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| fs::read_to_string(file).expect("text")).collect();
    text.lines().map(|line| line.as_bytes().to_vec()).collect()
}

#[test]
fn each_record_is_proven_alone() {
    let log = Written::three_files();
    let keys = [log.key.verifying_key()];
    for (seq, line) in (0..).zip(lines(&log)) {
        let proof = prove(log.dir(), seq, |_| ()).expect("proof");
        assert_eq!((proof.index, proof.size, proof.record.as_bytes()), (seq, 30, line.as_slice()));
        let text = serde_json::to_vec(&proof).expect("json");
        let read = Proof::parse(&text).expect("document");
        assert_eq!(read.check(&keys).expect("proven").root, log.tree.root());
        assert!(matches!(read.check(&[]), Err(ProofError::Checkpoint(_))));
        let stranger = [SigningKey::generate("test").verifying_key()];
        assert!(matches!(read.check(&stranger), Err(ProofError::Checkpoint(_))));
    }
    assert!(matches!(prove(log.dir(), 30, |_| ()), Err(ProveError::Unsigned(30, 30))));
}

#[test]
fn a_proof_of_something_else_proves_nothing() {
    let log = Written::three_files();
    let keys = [log.key.verifying_key()];
    let proof = prove(log.dir(), 7, |_| ()).expect("proof");
    let other = prove(log.dir(), 8, |_| ()).expect("proof");
    let refused = |changed: Proof| changed.check(&keys).expect_err("refused");
    assert!(matches!(refused(Proof { record: other.record.clone(), ..proof.clone() }), ProofError::OtherRecord { .. }));
    assert!(matches!(
        refused(Proof { index: 8, record: other.record.clone(), ..proof.clone() }),
        ProofError::OtherRoot
    ));
    assert!(matches!(refused(Proof { path: other.path.clone(), ..proof.clone() }), ProofError::OtherRoot));
    assert!(matches!(refused(Proof { size: 31, ..proof.clone() }), ProofError::OtherSize { .. }));
    let lied = proof.record.replace("agent-0", "agent-1");
    assert!(lied != proof.record);
    assert!(matches!(refused(Proof { record: lied, ..proof.clone() }), ProofError::OtherRoot));
    assert!(matches!(refused(Proof { record: format!("{} ", proof.record), ..proof.clone() }), ProofError::Record(_)));
    let early = fs::read_to_string(log.checkpoint_at(10)).expect("note");
    assert!(matches!(refused(Proof { size: 10, checkpoint: early, ..proof.clone() }), ProofError::OtherRoot));
    let text = serde_json::to_string(&proof).expect("json");
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let believed = Proof::parse(&bytes).is_ok_and(|proof| proof.check(&keys).is_ok());
        assert!(!believed, "byte {at}: {}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_hashes_beside_the_log_are_used_and_never_trusted() {
    let mut log = Written::new();
    log.rotate();
    for n in 0..330 {
        log.call("a", &n.to_string());
    }
    log.checkpoint();
    let keys = [log.key.verifying_key()];
    let slow = prove(log.dir(), 300, |_| ()).expect("proof");
    levels(&log);
    let mut read = 0;
    let quick = prove(log.dir(), 300, |_| read += 1).expect("proof");
    assert_eq!((quick, read), (slow.clone(), 0), "the log itself was not read through");
    for name in ["0", "1"] {
        let path = log.dir().join("tree").join(name);
        let kept = fs::read(&path).expect("hashes");
        for damaged in [kept[..kept.len() / 2].to_vec(), vec![0; kept.len()], Vec::new()] {
            fs::write(&path, damaged).expect("damaged");
            let proof = prove(log.dir(), 300, |_| ()).expect("proof");
            assert_eq!(proof, slow);
            proof.check(&keys).expect("proven");
        }
        fs::write(&path, kept).expect("back");
    }
}

#[test]
fn records_are_proven_also_when_older_files_were_archived() {
    let log = Written::three_files();
    let before: Vec<_> = (0..30).map(|seq| prove(log.dir(), seq, |_| ()).expect("proof")).collect();
    for archived in [0, 10] {
        fs::remove_file(log.log(archived)).expect("archived");
        for (seq, proof) in (0..).zip(&before) {
            match prove(log.dir(), seq, |_| ()) {
                Ok(again) => assert_eq!((again, true), (proof.clone(), seq >= archived + 10)),
                Err(error) => assert!(seq < archived + 10, "{seq}: {error}"),
            }
        }
    }
}

#[test]
fn a_changed_log_proves_nothing() {
    let log = Written::three_files();
    let text = fs::read_to_string(log.log(0)).expect("text");
    fs::write(log.log(0), text.replacen("tool_3", "tool_4", 1)).expect("changed");
    assert!(matches!(prove(log.dir(), 25, |_| ()), Err(ProveError::OtherRoot(_))));
}
