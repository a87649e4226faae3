//! Reading in order, also while the log grows, is rotated, recovered or archived.

mod written;

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use serde_json::{Value, json};
use sortie_audit::{ReadError, Records, kinds, span};
use written::Written;

/// The numbers of all records that come.
fn all(records: &mut Records) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Some(record) = records.read().expect("read") {
        let value: Value = serde_json::from_slice(record.line).expect("json");
        assert_eq!(value.get("seq"), Some(&json!(record.seq)));
        seen.push(record.seq);
    }
    seen
}

#[test]
fn all_records_come_in_order_from_any_on() {
    let log = Written::three_files();
    assert_eq!(span(log.dir()).expect("span"), (0, 30));
    for from in 0..=30 {
        let mut records = Records::open(log.dir(), from).expect("open");
        assert_eq!(all(&mut records), (from..30).collect::<Vec<_>>());
        assert_eq!(records.next_seq(), 30);
    }
    assert!(matches!(Records::open(log.dir(), 31), Err(ReadError::Beyond { wanted: 31, size: 30 })));
    let nothing = tempfile::tempdir().expect("dir");
    assert!(matches!(Records::open(nothing.path(), 0), Err(ReadError::NotALog(_))));
}

#[test]
fn what_is_written_later_comes_later() {
    let mut log = Written::new();
    let mut records = Records::open(log.dir(), 0).expect("open");
    assert!(Records::open(log.dir(), 1).is_err());
    assert!(all(&mut records).is_empty());
    log.rotate();
    log.call("a", "b");
    assert_eq!(all(&mut records), [0, 1, 2]);
    assert!(all(&mut records).is_empty());
    log.rotate();
    assert_eq!(all(&mut records), [3]);
    log.call("a", "b");
    log.rotate();
    log.rotate();
    assert_eq!(all(&mut records), [4, 5, 6, 7]);
}

#[test]
fn an_unfinished_record_is_none_and_may_be_replaced() {
    let mut log = Written::new();
    log.rotate();
    let mut records = Records::open(log.dir(), 0).expect("open");
    let whole = fs::read(&log.file).expect("file");
    let mut file = OpenOptions::new().append(true).open(&log.file).expect("file");
    // The beginning of a record that another one replaces after a crash.
    file.write_all(br#"{"seq":1,"prev":"5555"#).expect("written");
    assert_eq!(all(&mut records), [0]);
    assert!(all(&mut records).is_empty());
    fs::write(&log.file, whole).expect("recovered");
    log.add(kinds::LOG_RECOVERED, &json!({"bytes": 20}));
    assert_eq!(all(&mut records), [1]);
    // A file that a crash left empty.
    let next = log.log(2);
    fs::write(&next, "").expect("written");
    assert!(all(&mut records).is_empty());
    log.rotate();
    assert_eq!(all(&mut records), [2]);
}

#[test]
fn what_is_missing_or_changed_is_noticed() {
    let log = Written::three_files();
    let mut records = Records::open(log.dir(), 5).expect("open");
    let middle = log.log(10);
    let kept = fs::read(&middle).expect("file");
    fs::remove_file(&middle).expect("removed");
    let missing = loop {
        match records.read() {
            Ok(record) => assert!(record.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(missing, ReadError::Gap { missing: 10, .. }), "{missing}");
    fs::remove_file(log.log(0)).expect("removed");
    assert!(matches!(records.read(), Err(ReadError::Archived { wanted: 10, first: 20 })));
    assert!(matches!(Records::open(log.dir(), 5), Err(ReadError::Archived { wanted: 5, first: 20 })));

    fs::write(&middle, &kept).expect("back");
    let mut records = Records::open(log.dir(), 12).expect("open");
    assert_eq!(records.read().expect("read").map(|record| record.seq), Some(12));
    let mut records = Records::open(log.dir(), 30).expect("open");
    assert_eq!(records.read().expect("read"), None);
    fs::write(log.log(20), "").expect("cut");
    assert!(matches!(records.read(), Err(ReadError::Damaged { .. })));

    let text = String::from_utf8(kept).expect("text");
    fs::write(&middle, text.replacen("\"seq\":12", "\"seq\":13", 1)).expect("changed");
    let mut records = Records::open(log.dir(), 10).expect("open");
    assert!(records.read().is_ok() && records.read().is_ok());
    assert!(matches!(records.read(), Err(ReadError::Damaged { .. })));
}
