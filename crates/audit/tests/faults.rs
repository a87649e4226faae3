//! Ends of the process, and failures of the disk, at every step that a log does to its disk.

mod common;

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Home, check, draft, events};
use serde_json::Value;
use sortie_audit::{AppendError, DROPPED, Durability, Faults, Log, OnFailure, OpenError, Options, Step};

/// Small files and many checkpoints, so that every kind of step is among the first hundreds.
fn busy(dir: &Path, faults: Faults) -> Options {
    Options {
        dir: dir.join("audit"),
        key_file: dir.join("audit.key"),
        max_file_bytes: 4096,
        checkpoint_records: 7,
        checkpoint_every: Duration::from_millis(20),
        keep_bytes: Some(40_000),
        faults,
        ..Options::default()
    }
}

/// Runs this program again, for one of the tests that are only parts of others.
fn again(part: &str, dir: &Path, word: &str) -> Child {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--ignored", "--exact", "--nocapture", part]).env("AUDIT_DIR", dir).env("AUDIT_WORD", word);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts")
}

fn told() -> (PathBuf, String) {
    let var = |name: &str| std::env::var(name).expect("set by the test that runs this part");
    (PathBuf::from(var("AUDIT_DIR")), var("AUDIT_WORD"))
}

/// What a child has acknowledged: ids by number.
fn acknowledged(child: &mut Child) -> HashMap<u64, String> {
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let acks = lines.map_while(Result::ok).filter_map(|line| {
        let (seq, id) = line.strip_prefix("ack ")?.strip_suffix(" end")?.split_once(' ')?;
        Some((seq.parse().ok()?, id.to_owned()))
    });
    acks.collect()
}

/// Says on the standard output that a record is kept. One write, so that it is whole or is not.
fn acknowledge(seq: u64, id: &str) {
    let line = format!("ack {seq} {id} end\n");
    io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush()).expect("the test reads it");
}

fn assert_kept(records: &[Value], acknowledged: &HashMap<u64, String>) {
    let first = records.first().and_then(|record| record["seq"].as_u64()).unwrap_or(0);
    for (seq, id) in acknowledged.iter().filter(|(seq, _)| **seq >= first) {
        let at = usize::try_from(seq - first).expect("small");
        assert_eq!(records.get(at).map(|record| &record["id"]), Some(&Value::from(id.as_str())), "record {seq}");
    }
}

/// Ends this very process at one step; the write before it may have written half.
fn dies_at(step: usize, halves: bool) -> Faults {
    let count = AtomicUsize::new(0);
    Faults::new(move |what, _, bytes| match count.fetch_add(1, Ordering::SeqCst) {
        at if at == step => {
            let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            panic!("the process goes on: {killed:?}");
        }
        at if at + 1 == step && halves && what == Step::Write => Ok(bytes / 2 + 1),
        _ => Ok(bytes),
    })
}

#[test]
#[ignore = "a part of a_killed_process_loses_nothing_that_was_acknowledged"]
fn part_dies_at_a_step() {
    let (dir, word) = told();
    let (step, halves) = word.split_once(' ').expect("two words");
    let faults = dies_at(step.parse().expect("a number"), halves == "true");
    let log = Log::open(busy(&dir, faults)).expect("opens");
    for at in 0..24 {
        let id = format!("{step}-{at}-{}", "z".repeat(200));
        acknowledge(log.append_now(&draft(&id)).expect("kept"), &id);
        // So that the thread's steps are among them in every run.
        if at % 4 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    log.close().expect("closes");
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    for halves in [false, true] {
        // The same directory for all, and a new one for each tenth: beginnings die as well.
        let (mut home, mut kept) = (Home::in_memory(), HashMap::new());
        for step in 0.. {
            if step % 10 == 0 {
                (home, kept) = (Home::in_memory(), HashMap::new());
            }
            let mut child = again("part_dies_at_a_step", home.0.path(), &format!("{step} {halves}"));
            kept.extend(acknowledged(&mut child));
            let ended = child.wait().expect("ends");
            if home.dir().join("log").is_dir() && home.dir().join("key.pub").is_file() {
                assert_kept(&check(&home.dir()), &kept);
            }
            assert!(ended.success() || ended.code().is_none(), "step {step}: it failed before it was killed");
            if ended.success() {
                assert!(step > 60, "{step} steps");
                break;
            }
            assert!(step < 1000, "it never ends by itself");
        }
        // And it goes on.
        let log = Log::open(busy(home.0.path(), Faults::default())).expect("opens");
        log.append_now(&draft("after")).expect("kept");
        log.close().expect("closes");
        assert_kept(&check(&home.dir()), &kept);
    }
}

#[test]
#[ignore = "a part of a_process_killed_at_any_moment_loses_nothing_that_was_acknowledged"]
fn part_appends_for_ever() {
    let (dir, word) = told();
    let durability = if word == "power" { Durability::Power } else { Durability::Process };
    let log = Log::open(Options { durability, ..busy(&dir, Faults::default()) }).expect("opens");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("runtime");
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for task in 0..8 {
            let log = log.clone();
            all.spawn(async move {
                for at in 0u64.. {
                    let id = format!("{task}-{at}-{}", std::process::id());
                    acknowledge(log.append(&draft(&id)).await.expect("kept"), &id);
                }
            });
        }
        all.join_all().await;
    });
}

#[test]
fn a_process_killed_at_any_moment_loses_nothing_that_was_acknowledged() {
    for (durability, home) in [("process", Home::in_memory()), ("power", Home::new())] {
        let mut kept = HashMap::new();
        for round in 0..10u64 {
            let mut child = again("part_appends_for_ever", home.0.path(), durability);
            let stdout = child.stdout.take().expect("piped");
            let (tell, told) = std::sync::mpsc::channel();
            let reader = std::thread::spawn(move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                lines
                    .inspect(|line| {
                        // When it is too late, nobody waits for it any more.
                        let _sent = line.starts_with("ack ").then(|| tell.send(()));
                    })
                    .collect::<Vec<_>>()
            });
            // Some records, then the end at some moment.
            told.recv_timeout(Duration::from_secs(60)).expect("it appends");
            std::thread::sleep(Duration::from_millis(37 * round % 90));
            child.kill().expect("killed");
            assert_eq!(child.wait().expect("ended").code(), None, "it failed before it was killed");
            let lines = reader.join().expect("read");
            kept.extend(lines.iter().filter_map(|line| {
                let (seq, id) = line.strip_prefix("ack ")?.strip_suffix(" end")?.split_once(' ')?;
                Some((seq.parse().ok()?, id.to_owned()))
            }));
            assert_kept(&check(&home.dir()), &kept);
        }
        assert!(kept.len() > 100, "{durability}: {}", kept.len());
        Log::open(busy(home.0.path(), Faults::default())).expect("opens").close().expect("closes");
        check(&home.dir());
    }
}

/// Answers one step with an error, and a write before it with a half.
fn fails_at(step: usize, how: io::ErrorKind) -> (Faults, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let faults = Faults::new(move |what, _, bytes| match counted.fetch_add(1, Ordering::SeqCst) {
        at if at == step => Err(how.into()),
        at if at + 1 == step && what == Step::Write => Ok(bytes / 2 + 1),
        _ => Ok(bytes),
    });
    (faults, count)
}

#[test]
fn a_disk_that_fails_once_loses_nothing_that_was_acknowledged() {
    for on_failure in [OnFailure::Deny, OnFailure::DropAndCount] {
        for step in 0.. {
            let home = Home::in_memory();
            let (faults, count) = fails_at(step, io::ErrorKind::StorageFull);
            let options = || Options { on_failure, ..busy(home.0.path(), faults.clone()) };
            // Opening fails, or it works: at the second time there is room.
            let log = Log::open(options()).or_else(|_| Log::open(options())).expect("opens");
            let (mut kept, mut failed, mut dropped) = (HashMap::new(), Vec::new(), 0);
            for at in 0..20 {
                let id = format!("{step}-{at}-{}", "z".repeat(300));
                match log.append_now(&draft(&id)) {
                    Ok(DROPPED) => dropped += 1,
                    Ok(seq) => drop(kept.insert(seq, id)),
                    Err(AppendError::Io(_)) => failed.push(id),
                    Err(other) => panic!("{other}"),
                }
            }
            let closed = log.close().is_ok();
            let status = log.status();
            drop(log);
            let mut records = check(&home.dir());
            if !closed {
                // Only a new process may go on.
                Log::open(options()).expect("opens").close().expect("closes");
                records = check(&home.dir());
            }
            assert_kept(&records, &kept);
            let ids: Vec<_> = records.iter().filter_map(|record| record["id"].as_str()).collect();
            if closed {
                assert!(failed.iter().all(|id| !ids.contains(&id.as_str())), "step {step}: denied, and recorded");
                assert!(failed.len() <= 1, "step {step}: one failure denies one");
                let lost = dropped + u64::try_from(failed.len()).expect("small");
                let told: u64 = records.iter().filter_map(|record| record["count"].as_u64()).sum();
                assert_eq!((told, status.dropped), (lost, lost), "step {step}");
            }
            assert!(failed.is_empty() || on_failure == OnFailure::Deny, "step {step}");
            if count.load(Ordering::SeqCst) <= step {
                assert!(step > 60, "{step} steps");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_disk_that_cannot_undo_ends_the_log() {
    let home = Home::in_memory();
    let broken = Arc::new(AtomicUsize::new(0));
    let breaks = broken.clone();
    let faults = Faults::new(move |step, path, bytes| {
        let is_log = path.extension().is_some_and(|ext| ext == "jsonl");
        match (breaks.load(Ordering::SeqCst), step) {
            (1, Step::Write) if is_log && bytes > 20 => Ok(20),
            (1, Step::Write | Step::Cut) if is_log => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(bytes),
        }
    });
    let log = Log::open(busy(home.0.path(), faults)).expect("opens");
    let kept = log.append(&draft("kept")).await.expect("kept");
    broken.store(1, Ordering::SeqCst);
    let error = log.append(&draft("lost, and more than twenty bytes")).await.expect_err("fails").to_string();
    assert!(error.contains("cannot be written"), "{error}");
    broken.store(0, Ordering::SeqCst);
    log.append(&draft("late")).await.expect_err("half a record lies there");
    assert!(log.status().failing.expect("failing").contains("could not be undone"));
    log.close().expect_err("cannot");
    drop(log);
    let log = Log::open(busy(home.0.path(), Faults::default())).expect("opens");
    log.close().expect("closes");
    let records = check(&home.dir());
    assert_eq!(records[usize::try_from(kept).expect("small")]["id"], "kept");
    assert!(events(&records).contains(&"log_recovered"));
}

#[tokio::test]
async fn a_disk_that_does_not_sync_ends_the_log() {
    let both = [Durability::Process, Durability::Power];
    for (durability, on_failure) in
        both.into_iter().flat_map(|it| [(it, OnFailure::Deny), (it, OnFailure::DropAndCount)])
    {
        let home = Home::in_memory();
        let broken = Arc::new(AtomicUsize::new(0));
        let breaks = broken.clone();
        let faults = Faults::new(move |step, path, bytes| {
            let is_log = path.extension().is_some_and(|ext| ext == "jsonl");
            match is_log && step == Step::Sync && breaks.load(Ordering::SeqCst) == 1 {
                true => Err(io::Error::from_raw_os_error(5)),
                false => Ok(bytes),
            }
        });
        // A checkpoint is due before the disk is asked otherwise.
        let options = Options { durability, on_failure, checkpoint_records: 1, ..busy(home.0.path(), faults) };
        let log = Log::open(options).expect("opens");
        broken.store(1, Ordering::SeqCst);
        let first = tokio::time::timeout(Duration::from_secs(20), log.append(&draft("a"))).await.expect("in time");
        match (durability, on_failure) {
            (Durability::Process, _) => assert!(first.is_ok()),
            (Durability::Power, OnFailure::Deny) => assert!(first.is_err()),
            (Durability::Power, OnFailure::DropAndCount) => assert_eq!(first.expect("counted"), DROPPED),
        }
        let begin = std::time::Instant::now();
        while log.append(&draft("b")).await.is_ok_and(|seq| seq != DROPPED) {
            assert!(begin.elapsed() < Duration::from_secs(20), "it takes more");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(log.status().failing.expect("failing").contains("did not take"));
        assert_eq!(log.status().checkpointed, 0, "nothing is signed that the disk may not have");
    }
}

#[test]
fn a_disk_that_fails_for_long_is_waited_for() {
    for on_failure in [OnFailure::Deny, OnFailure::DropAndCount] {
        let home = Home::in_memory();
        let full = Arc::new(AtomicUsize::new(0));
        let fills = full.clone();
        let faults = Faults::new(move |step, _, bytes| match (fills.load(Ordering::SeqCst), step) {
            (1, Step::Write | Step::Create) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(bytes),
        });
        let log = Log::open(Options { on_failure, ..busy(home.0.path(), faults) }).expect("opens");
        log.append_now(&draft("before")).expect("kept");
        full.store(1, Ordering::SeqCst);
        for at in 0..100 {
            let appended = log.append_now(&draft(&at.to_string()));
            match on_failure {
                OnFailure::Deny => drop(appended.expect_err("full")),
                OnFailure::DropAndCount => assert_eq!(appended.expect("counted"), DROPPED),
            }
        }
        assert!(log.status().failing.is_some());
        full.store(0, Ordering::SeqCst);
        // It tells of the losses even if nothing else is appended.
        let begin = std::time::Instant::now();
        while log.status().failing.is_some() {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        log.append_now(&draft("after")).expect("kept");
        log.close().expect("closes");
        let records = check(&home.dir());
        let told: Vec<_> = records.iter().filter(|record| record["event"] == "records_dropped").collect();
        assert_eq!((told.len(), &told[0]["count"]), (1, &Value::from(100)));
        assert_eq!(told[0]["reason"], "no storage space");
        assert_eq!(records.iter().filter(|record| record["event"] == "call_done").count(), 2);
    }
}

/// Runs a part where the directory is a disk of one megabyte that it has for itself.
fn on_a_small_disk(part: &str, options: &str) -> Option<std::process::Output> {
    let home = Home::new();
    let program = std::env::current_exe().expect("this program");
    let script = "mount -t tmpfs -o \"$1\" none \"$AUDIT_DIR\" || exit 77; shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", options]).arg(program);
    command.args(["--ignored", "--exact", "--nocapture", part]).env("AUDIT_DIR", home.0.path()).env("AUDIT_WORD", "");
    let output = command.output().ok();
    let possible = output.filter(|output| output.status.success() || output.status.code() == Some(101));
    if possible.is_none() {
        sortie_testkit::skip_host("no mount namespaces: a small disk cannot be made");
    }
    possible
}

#[test]
#[ignore = "a part of a_full_disk_denies_until_there_is_room"]
fn part_fills_its_disk() {
    let (dir, _) = told();
    let filler = dir.join("filler");
    let fill = || {
        let mut file = std::fs::File::create(&filler).expect("file");
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    // Before: it cannot be opened, and says why; nothing is left that would be in the way later.
    fill();
    let error = Log::open(busy(&dir, Faults::default())).expect_err("full");
    assert!(matches!(&error, OpenError::Io(_, error) if error.kind() == io::ErrorKind::StorageFull), "{error}");
    std::fs::remove_file(&filler).expect("removed");
    let big = Options { max_file_bytes: 1 << 20, ..busy(&dir, Faults::default()) };
    let log = Log::open(big).expect("opens");
    log.append_now(&draft("before")).expect("kept");
    // During: records of which the last does not fit.
    fill();
    let (mut kept, mut denied) = (Vec::new(), 0);
    for at in 0..200 {
        let id = format!("{at} {}", "f".repeat(1000));
        match log.append_now(&draft(&id)) {
            Ok(_) => kept.push(id),
            Err(_) => denied += 1,
        }
    }
    assert!(denied > 100, "{denied}");
    assert!(log.status().failing.is_some());
    // After: by itself.
    std::fs::remove_file(&filler).expect("removed");
    log.append_now(&draft("after")).expect("kept");
    assert_eq!(log.status().failing.filter(|why| !why.contains("space")), None);
    log.close().expect("closes");
    let records = check(&dir.join("audit"));
    assert_eq!(records.iter().filter(|record| record["event"] == "call_done").count(), kept.len() + 2);
}

#[test]
fn a_full_disk_denies_until_there_is_room() {
    if let Some(output) = on_a_small_disk("part_fills_its_disk", "size=1m,mode=0700") {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
#[ignore = "a part of a_disk_that_may_only_be_read_is_told_of"]
fn part_may_only_read() {
    let (dir, _) = told();
    let error = Log::open(busy(&dir, Faults::default())).expect_err("read-only");
    assert!(error.to_string().contains("audit") && error.to_string().contains("Read-only"), "{error}");
}

#[test]
fn a_disk_that_may_only_be_read_is_told_of() {
    if let Some(output) = on_a_small_disk("part_may_only_read", "size=1m,ro") {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn another_process_is_refused() {
    let home = Home::new();
    let mut child = again("part_appends_for_ever", home.0.path(), "process");
    // With its first acknowledgement it has the log.
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.starts_with("ack "))));
    let error = Log::open(busy(home.0.path(), Faults::default())).expect_err("refused");
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    child.kill().expect("killed");
    child.wait().expect("ended");
    drop(Log::open(busy(home.0.path(), Faults::default())).expect("opens"));
}
