//! The delivering process is killed at each step of a delivery: none is lost, and what comes twice is what came since the
//! cursor moved last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};
use sortie_audit::{Faults, Step};
use sortie_runtime::TaskSet;
use sortie_sinks::{Moment, SinkSpec, Sinks, Watch};
use sortie_testkit::{Process, Program, eventually};

use crate::splunk::{events, splunk};
use crate::support::{LONG, Receiver, Reply, Seen, draft, http, lines, open, seq};

/// Set for the child: where the log is, where its records go, at which step it ends, and at how many of them it does not.
const HOME: &str = "SORTIE_TEST_STEPS_HOME";
const ADDR: &str = "SORTIE_TEST_STEPS_ADDR";
const STEP: &str = "SORTIE_TEST_STEPS_STEP";
const PASSED: &str = "SORTIE_TEST_STEPS_PASSED";

/// The steps, in the order in which a delivery takes them.
const STEPS: [&str; 9] = ["read", "sent", "acknowledged", "create", "half", "sync", "rename", "sync-dir", "moved"];

fn name_of(moment: Moment) -> &'static str {
    match moment {
        Moment::Read => "read",
        Moment::Sent => "sent",
        Moment::Acknowledged => "acknowledged",
        Moment::Moved => "moved",
    }
}

fn name_of_step(step: Step) -> &'static str {
    match step {
        Step::Create => "create",
        Step::Write => "half",
        Step::Sync => "sync",
        Step::Rename => "rename",
        Step::SyncDir => "sync-dir",
        _ => "another",
    }
}

/// As `kill -9` would at this very place.
fn end() -> ! {
    let _sent = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// Watches for one step, and ends the process when it was passed so many times.
fn watch(wanted: String, passed: u64) -> Watch {
    let wanted: Arc<str> = wanted.into();
    let seen = Arc::new(AtomicU64::new(0));
    let comes = move |name: &str| *wanted == *name && seen.fetch_add(1, Ordering::Relaxed) >= passed;
    let (at_disk, halved) = (comes.clone(), AtomicU64::new(0));
    let disk = Faults::new(move |step, _, bytes| {
        if step != Step::Write {
            if at_disk(name_of_step(step)) {
                end();
            }
            return Ok(bytes);
        }
        // The second half does not come any more.
        if halved.load(Ordering::Relaxed) > 0 {
            end();
        }
        if !at_disk("half") {
            return Ok(bytes);
        }
        halved.store(1, Ordering::Relaxed);
        Ok(bytes / 2)
    });
    Watch::new(disk, move |moment| {
        if comes(name_of(moment)) {
            end();
        }
    })
}

/// The child: delivers what there is and some more, until it comes to its step. Nothing without its variables.
#[tokio::test]
#[ignore = "a part of the tests below, which run it as a process"]
async fn child() {
    let var = |name: &str| std::env::var(name);
    let (Ok(home), Ok(addr), Ok(step), Ok(passed)) = (var(HOME), var(ADDR), var(STEP), var(PASSED)) else { return };
    let home = PathBuf::from(home);
    let log = open(&home, |options| {
        options.max_file_bytes = 16 * 1024;
        options.hold = 0;
    });
    let watch = watch(step, passed.parse().expect("a number"));
    let sinks = Sinks::start_watched(&log, vec![sink(&home, &addr)], &BTreeMap::new(), &TaskSet::new(), &watch);
    let sinks = sinks.expect("the cursor is good");
    loop {
        log.append(&draft(&json!({"id": "x"}))).await.expect("appended");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        assert_eq!(sinks.admits(), Ok(()));
    }
}

/// An address with a path is an HTTP endpoint, one without a collector that acknowledges later.
fn sink(home: &Path, addr: &str) -> SinkSpec {
    let mut sink = if addr.contains('/') { http("siem", &format!("http://{addr}")) } else { splunk(home, addr, true) };
    sink.batch.records = 7;
    sink
}

fn spawn(home: &Path, addr: &str, step: &str, passed: u64) -> Process {
    let program = std::env::current_exe().expect("this program");
    let child = Program::new(&program).args(["--exact", "steps::child", "--nocapture", "--ignored"]).env(HOME, home);
    child.env(ADDR, addr).env(STEP, step).env(PASSED, passed.to_string()).spawn().expect("child")
}

/// The cursor: how many records are known to be delivered.
fn cursor(home: &Path) -> u64 {
    let text = std::fs::read_to_string(home.join("audit/sinks/siem")).unwrap_or_else(|_| "{\"next\":0}".to_owned());
    let kept: Value = serde_json::from_str(&text).expect("the cursor is whole");
    kept.get("next").and_then(Value::as_u64).expect("a number")
}

fn number(record: &Value) -> Option<u64> {
    record.get("seq")?.as_u64()
}

/// Kills a delivering process at every step, and looks each time at what came twice, and in the end at what came.
async fn killed_at_each_step(receiver: &Receiver, addr: &str, steps: &[&str], taken: impl Fn(&[Seen]) -> Vec<Value>) {
    let home = tempfile::tempdir().expect("dir");
    let numbers = |from: usize| -> Vec<u64> {
        let seen = receiver.seen().split_off(from);
        taken(&seen).iter().map(|record| number(record).expect("a number")).collect()
    };
    for step in steps {
        for passed in [0, 2] {
            let (kept, requests) = (cursor(home.path()), receiver.seen().len());
            let mut child = spawn(home.path(), addr, step, passed);
            let ended = child.exit(LONG).await.unwrap_or_else(|_| panic!("it came to {step}: {}", child.output()));
            assert!(!ended.success() && ended.code().is_none(), "killed at {step}: {}", child.output());
            let numbers = numbers(requests);
            // What comes twice is behind the cursor, and nothing is passed over.
            assert!(
                numbers.iter().zip(kept..).all(|(number, expected)| *number == expected),
                "{step}, {passed} passed: {numbers:?} behind {kept}"
            );
            let now = cursor(home.path());
            assert!(now >= kept && now <= numbers.last().map_or(kept, |last| last + 1), "{step}: at {now}");
            if matches!(*step, "rename" | "half" | "sync") {
                assert!(home.path().join("audit/sinks/siem.new").exists(), "{step}: what is left of a new cursor");
            }
        }
    }
    // The last process ends as it should.
    let log = open(home.path(), |options| options.hold = 0);
    let sinks = Sinks::start(&log, vec![sink(home.path(), addr)], &BTreeMap::new(), &TaskSet::new());
    let sinks = sinks.expect("the cursor is good");
    log.close().expect("closes");
    sinks.close(LONG).await;
    let mut got = taken(&receiver.seen());
    got.sort_by_key(number);
    got.dedup();
    let log: Vec<Value> =
        lines(&home.path().join("audit")).iter().map(|line| serde_json::from_str(line).expect("json")).collect();
    assert_eq!(got, log, "every record");
    assert_eq!(cursor(home.path()), u64::try_from(log.len()).expect("small"));
}

#[tokio::test]
async fn whoever_is_killed_at_any_step_loses_nothing_and_repeats_only_what_is_behind_the_cursor() {
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let lines = |seen: &[Seen]| -> Vec<Value> {
        let lines = seen.iter().flat_map(Seen::lines);
        lines.map(|line| serde_json::from_str(&line).expect("json")).collect()
    };
    let steps: Vec<_> = STEPS.into_iter().filter(|step| *step != "sent").collect();
    killed_at_each_step(&receiver, &format!("{}/in", receiver.addr), &steps, lines).await;
}

#[tokio::test]
async fn the_same_where_the_receiver_acknowledges_later() {
    let mut last = 0u64;
    let receiver = Receiver::start(move |seen| {
        let answer = if seen.path.contains("/ack") {
            let asked: Value = serde_json::from_slice(&seen.body).expect("json");
            let ids = asked["acks"].as_array().expect("ids").iter().map(|id| (id.to_string(), json!(true)));
            json!({"acks": ids.collect::<serde_json::Map<_, _>>()})
        } else {
            last += 1;
            json!({"text": "Success", "code": 0, "ackId": last})
        };
        Reply::Full(200, vec![("content-type", "application/json")], answer.to_string())
    })
    .await;
    let records = |seen: &[Seen]| -> Vec<Value> {
        let sent = seen.iter().filter(|seen| !seen.path.contains("/ack"));
        sent.flat_map(events).map(|event| event["event"].clone()).collect()
    };
    killed_at_each_step(&receiver, &receiver.addr.to_string(), &["sent", "acknowledged", "rename"], records).await;
}

#[tokio::test]
async fn whoever_is_killed_before_the_answer_sends_the_same_records_again() {
    let home = tempfile::tempdir().expect("dir");
    let receiver = Receiver::start(|_| Reply::Silence).await;
    let addr = format!("{}/in", receiver.addr);
    let mut child = spawn(home.path(), &addr, "never", 0);
    eventually(LONG, || (!receiver.seen().is_empty()).then_some(())).await.expect("it delivers");
    child.signal(Signal::KILL);
    child.exit(LONG).await.expect("it ended");
    let first = receiver.lines();
    assert_eq!(cursor(home.path()), 0);
    receiver.behave(|_| Reply::Status(200));
    let mut child = spawn(home.path(), &addr, "moved", 1);
    child.exit(LONG).await.expect("it ended");
    let again = receiver.lines().split_off(first.len());
    assert!(again.starts_with(&first), "the same bytes once more");
    assert!(again.windows(2).all(|pair| seq(&pair[1]) == seq(&pair[0]) + 1));
}
