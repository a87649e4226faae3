//! A process that is killed at any moment: no record that it has acknowledged is missing at the receiver.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use sortie_runtime::TaskSet;
use sortie_sinks::Sinks;
use sortie_testkit::{Program, eventually};

use crate::support::{LONG, Receiver, Reply, draft, http, lines, open, seq};

/// Set for the child: where the log is, and where its records go.
const HOME: &str = "SORTIE_TEST_SINKS_HOME";
const URL: &str = "SORTIE_TEST_SINKS_URL";

/// The child: writes records, notes each number that was acknowledged, and delivers, until it is killed. Nothing without
/// its variables.
#[tokio::test]
#[ignore = "a part of the test below, which runs it as a process"]
async fn child() {
    let (Ok(home), Ok(url)) = (std::env::var(HOME), std::env::var(URL)) else { return };
    let home = std::path::PathBuf::from(home);
    let log = open(&home, |options| {
        options.max_file_bytes = 16 * 1024;
        options.hold = 0;
    });
    let mut sink = http("siem", &url);
    sink.batch.records = 7;
    let sinks = Sinks::start(&log, vec![sink], &BTreeMap::new(), &TaskSet::new()).expect("starts");
    let mut acknowledged =
        std::fs::OpenOptions::new().create(true).append(true).open(home.join("acknowledged")).expect("file");
    loop {
        let seq = log.append(&draft(&json!({"id": "x"}))).await.expect("appended");
        writeln!(acknowledged, "{seq}").expect("noted");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(sinks.admits(), Ok(()));
    }
}

#[tokio::test]
async fn a_process_that_is_killed_at_any_moment_loses_nothing() {
    let home = tempfile::tempdir().expect("dir");
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let program = std::env::current_exe().expect("this program");
    let taken = || receiver.lines().len();
    for round in 0..12u64 {
        let before = taken();
        let child =
            Program::new(&program).args(["--exact", "crash::child", "--nocapture", "--ignored"]).env(HOME, home.path());
        let mut child = child.env(URL, receiver.url()).spawn().expect("child");
        // Killed while it delivers, each time a little later: on its way through a request, or through the cursor.
        let delivers = eventually(LONG, || (taken() > before).then_some(())).await;
        assert!(delivers.is_some(), "it delivers: {}", child.output());
        tokio::time::sleep(Duration::from_micros(1700 * round)).await;
        child.signal(Signal::KILL);
        child.exit(LONG).await.expect("it ended");
    }
    // The last process ends as it should.
    let log = open(home.path(), |options| options.hold = 0);
    let sinks = Sinks::start(&log, vec![http("siem", &receiver.url())], &BTreeMap::new(), &TaskSet::new());
    let sinks = sinks.expect("the cursor is good");
    log.close().expect("closes");
    sinks.close(LONG).await;
    let acknowledged = std::fs::read_to_string(home.path().join("acknowledged")).expect("file");
    let acknowledged: Vec<u64> = acknowledged.lines().map(|line| line.parse().expect("number")).collect();
    let mut got = receiver.lines();
    // In order, but for steps back behind a crash.
    let steps_back = got.windows(2).filter(|pair| seq(&pair[1]) <= seq(&pair[0])).count();
    assert!(steps_back <= 13, "{steps_back}");
    got.sort_by_key(|line| seq(line));
    got.dedup();
    assert_eq!(got, lines(&home.path().join("audit")), "every record, and each number is one record");
    assert!(acknowledged.iter().all(|number| got.binary_search_by_key(number, |line| seq(line)).is_ok()));
    assert!(acknowledged.len() > 50, "{} records", acknowledged.len());
}
