//! The test vectors of `docs/audit-format.md` are what this library makes.

mod written;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::json;
use sortie_audit::{Hash, SigningKey, Trusted, kinds, prove, verify};
use written::Written;

/// An Ed25519 private key in PKCS#8 (RFC 8410), before its 32 bytes.
const PKCS8: &str = "302e020100300506032b657004220420";

fn vectors() -> String {
    let pkcs8 = hex::decode(format!("{PKCS8}{}", "01".repeat(32))).expect("hex");
    let mut log = Written::with_key(SigningKey::from_pkcs8("vector", &pkcs8).expect("key"));
    log.rotate();
    log.add(kinds::CALL_REFUSED, &json!({"id": "req_1", "tool": "a\nb \u{e9} \"c\""}));
    log.add(kinds::LOG_CLOSED, &json!({}));
    let note = log.checkpoint();
    let key = log.key.verifying_key();
    verify(log.dir(), &Trusted { keys: vec![key.clone()], ..Trusted::default() }, |_| ()).expect("verified");
    let lines = fs::read_to_string(&log.file).expect("text");
    let mut text = format!("Key: `{key}`\n\nRecords:\n\n```\n{lines}```\n\nLeaf hashes, root and checkpoint:\n\n```\n");
    for (n, line) in lines.lines().enumerate() {
        writeln!(text, "leaf {n}  {}", Hash::of_leaf(line.as_bytes())).expect("text");
    }
    let proof = prove(log.dir(), 1, |_| ()).expect("proof");
    let path: Vec<String> = proof.path.iter().map(Hash::to_string).collect();
    write!(text, "root    {}\n```\n\n```\n{note}```\n\n", log.tree.root()).expect("text");
    write!(text, "The path that proves record 1:\n\n```\n{}\n```\n", path.join("\n")).expect("text");
    text
}

#[test]
fn the_vectors_of_the_specification_are_ours() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/audit-format.md");
    let document = fs::read_to_string(path).expect("document");
    let (begin, end) = ("<!-- vectors: begin -->\n", "<!-- vectors: end -->");
    let said = document.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).expect("vectors").0;
    let ours = vectors();
    assert!(said == ours, "docs/audit-format.md has to say between its marks:\n{ours}");
}
