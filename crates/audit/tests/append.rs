//! Appending: places, durability, files, checkpoints.

mod common;

use std::collections::HashSet;
use std::fs;
use std::future::Future as _;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use common::{Home, check, draft, events, numbers};
use jiff::Timestamp;
use sortie_audit::{AppendError, Clock, Durability, Faults, Log, Options, Step, kinds};

/// How long a condition is waited for.
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_and_threads_make_one_chain() {
    let home = Home::new();
    let log =
        Log::open(Options { max_file_bytes: 16 * 1024, checkpoint_records: 50, ..home.options() }).expect("opens");
    let mut all = tokio::task::JoinSet::new();
    for task in 0..16 {
        let log = log.clone();
        all.spawn(async move {
            let mut numbers = Vec::new();
            for at in 0..40 {
                numbers.push(log.append(&draft(&format!("task {task} {at}"))).await.expect("kept"));
            }
            numbers
        });
    }
    for thread in 0..4 {
        let log = log.clone();
        all.spawn_blocking(move || {
            (0..40).map(|at| log.append_now(&draft(&format!("thread {thread} {at}"))).expect("kept")).collect()
        });
    }
    let numbers: Vec<u64> = all.join_all().await.into_iter().flatten().collect();
    assert_eq!(numbers.len(), 800);
    assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), 800, "each has a number of its own");
    let both = log.append_all(&[draft("first"), draft("second")]).await.expect("kept");
    log.close().expect("closes");
    let records = home.check();
    assert_eq!(records[usize::try_from(both).expect("small") + 1]["id"], "second");
    assert!(events(&records).iter().filter(|event| **event == "log_opened").count() > 5, "files were begun");
    assert_eq!(records.last().expect("one")["event"], "log_closed");
    assert!(matches!(log.append(&draft("late")).await, Err(AppendError::Closed)));
    assert_eq!(log.status().checkpointed, u64::try_from(records.len()).expect("small"));
}

#[tokio::test]
async fn a_log_goes_on() {
    let home = Home::new();
    for round in 0..3 {
        let log = home.open();
        log.append(&draft(&format!("{round}"))).await.expect("kept");
        log.close().expect("closes");
    }
    let records = home.check();
    let (opened, done, closed) = ("log_opened", "call_done", "log_closed");
    assert_eq!(events(&records), [opened, done, closed].repeat(3));
    assert_eq!(records[3]["reason"], "restarted");
    let log = home.open();
    assert_eq!(log.append_all(&[]).await.expect("nothing"), 10);
    let newest = log.checkpoints().borrow().clone().expect("the one of the last process");
    assert_eq!(sortie_audit::Checkpoint::open(&newest, &log.verifying_key()).expect("signed").size, 9);
    // Dropped without being closed: as if the process had ended.
    drop(log);
    assert_eq!(events(&home.check()).last(), Some(&opened));
}

#[tokio::test]
async fn checkpoints_are_signed_by_number_and_by_time() {
    let home = Home::new();
    let every = Options { checkpoint_records: 10, checkpoint_every: Duration::from_secs(3600), ..home.options() };
    let log = Log::open(every).expect("opens");
    let mut checkpoints = log.checkpoints();
    for at in 0..12 {
        log.append(&draft(&at.to_string())).await.expect("kept");
    }
    tokio::time::timeout(DEADLINE, checkpoints.wait_for(Option::is_some)).await.expect("in time").expect("open");
    assert_eq!(*log.durable().borrow(), 13);
    drop(log);
    let timed = Options { checkpoint_every: Duration::from_millis(20), ..home.options() };
    let log = Log::open(timed).expect("opens");
    let mut checkpoints = log.checkpoints();
    checkpoints.mark_unchanged();
    tokio::time::timeout(DEADLINE, checkpoints.changed()).await.expect("in time").expect("open");
    // Nothing new, no checkpoint: the thread sleeps.
    let before = numbers(&home.dir().join("checkpoints"));
    tokio::time::timeout(Duration::from_millis(200), checkpoints.changed()).await.expect_err("nothing new");
    assert_eq!(numbers(&home.dir().join("checkpoints")), before);
    home.check();
}

#[tokio::test]
async fn old_checkpoints_go_but_for_the_last_of_each_file() {
    let home = Home::new();
    let often = Options { checkpoint_records: 1, max_file_bytes: 32 * 1024, ..home.options() };
    let log = Log::open(often).expect("opens");
    let mut checkpoints = log.checkpoints();
    for at in 0..300u64 {
        checkpoints.mark_unchanged();
        log.append(&draft(&format!("{at} {}", "x".repeat(100)))).await.expect("kept");
        tokio::time::timeout(DEADLINE, checkpoints.changed()).await.expect("in time").expect("open");
    }
    log.close().expect("closes");
    let (files, kept) = (numbers(&home.dir().join("log")), numbers(&home.dir().join("checkpoints")));
    assert!(files.len() > 2, "{files:?}");
    assert!(files[1..].iter().all(|first| kept.contains(first)), "{files:?} {kept:?}");
    assert!(kept.len() <= 256 + files.len(), "{}", kept.len());
    home.check();
}

/// A disk whose syncs wait until they may go on.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn faults(self: &Arc<Self>) -> Faults {
        let gate = self.clone();
        Faults::new(move |step, path, bytes| {
            if step == Step::Sync && path.extension().is_some_and(|ext| ext == "jsonl") {
                let open = gate.open.lock().expect("lock");
                drop(gate.changed.wait_while(open, |open| !*open).expect("lock"));
            }
            Ok(bytes)
        })
    }

    fn set(&self, open: bool) {
        *self.open.lock().expect("lock") = open;
        self.changed.notify_all();
    }
}

/// Lets the disk go on when a test ends, since a log waits for it when it is dropped.
struct AtEnd(Arc<Gate>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[tokio::test]
async fn power_waits_for_the_disk_and_process_does_not() {
    for durability in [Durability::Process, Durability::Power] {
        let (home, gate) = (Home::new(), Arc::new(Gate::default()));
        gate.set(true);
        let log = Log::open(Options { durability, faults: gate.faults(), ..home.options() }).expect("opens");
        gate.set(false);
        let _at_end = AtEnd(gate.clone());
        let record = draft("a");
        let mut waits = Box::pin(log.append(&record));
        let polled = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match durability {
            Durability::Process => assert!(matches!(polled, Poll::Ready(Ok(1)))),
            Durability::Power => {
                assert!(polled.is_pending());
                let early = tokio::time::timeout(Duration::from_millis(100), waits.as_mut()).await;
                early.expect_err("the disk does not have it");
                assert!(log.status().durable < 2);
                // From a drop it is enough that the kernel has it.
                assert_eq!(log.append_now(&draft("b")).expect("kept"), 2);
                gate.set(true);
                let kept = tokio::time::timeout(DEADLINE, waits).await.expect("in time").expect("kept");
                assert_eq!((kept, log.status().durable >= 2), (1, true));
            }
        }
        gate.set(true);
        log.close().expect("closes");
        home.check();
    }
}

#[tokio::test]
async fn the_disk_has_a_record_soon() {
    let home = Home::new();
    let log = home.open();
    let mut durable = log.durable();
    let kept = log.append(&draft("a")).await.expect("kept");
    tokio::time::timeout(DEADLINE, durable.wait_for(|size| *size > kept)).await.expect("in time").expect("open");
}

#[tokio::test]
async fn whoever_stops_waiting_disturbs_nobody() {
    let (home, gate) = (Home::new(), Arc::new(Gate::default()));
    gate.set(true);
    let options = Options { durability: Durability::Power, faults: gate.faults(), ..home.options() };
    let log = Log::open(options).expect("opens");
    gate.set(false);
    let _at_end = AtEnd(gate.clone());
    for at in 0..20 {
        let record = draft(&format!("left {at}"));
        let mut waits = Box::pin(log.append(&record));
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let record = draft("stays");
    let stays = log.append(&record);
    gate.set(true);
    assert_eq!(tokio::time::timeout(DEADLINE, stays).await.expect("in time").expect("kept"), 21);
    log.close().expect("closes");
    assert_eq!(home.check().len(), 23);
}

#[tokio::test]
async fn a_clock_that_goes_back_is_told_of() {
    let home = Home::new();
    let now = Arc::new(AtomicI64::new(1_800_000_000_000));
    let tells = now.clone();
    let clock = Clock::new(move || Timestamp::from_millisecond(tells.load(Ordering::Relaxed)).expect("in range"));
    let log = Log::open(Options { clock: clock.clone(), ..home.options() }).expect("opens");
    for step in [1000, -900, -1000, -1001, 5000] {
        now.fetch_add(step, Ordering::Relaxed);
        log.append(&draft(&step.to_string())).await.expect("kept");
    }
    log.close().expect("closes");
    drop(log);
    now.fetch_sub(3_600_000, Ordering::Relaxed);
    drop(Log::open(Options { clock, ..home.options() }).expect("opens"));
    let records = home.check();
    let told: Vec<_> = records.iter().filter(|record| record["event"] == "clock_stepped_back").collect();
    assert_eq!(told.len(), 2, "{records:?}");
    assert_eq!(told[0]["from"], "2027-01-15T07:59:59.100000Z");
    assert_eq!(told[0]["to"], "2027-01-15T07:59:58.099000Z");
    assert_eq!(told[1]["seq"], records.len() - 1);
}

#[tokio::test]
async fn old_files_go_when_nobody_needs_them() {
    let home = Home::new();
    let small = Options {
        max_file_bytes: 4096,
        keep_bytes: Some(20_000),
        checkpoint_every: Duration::from_millis(5),
        hold: 0,
        ..home.options()
    };
    let log = Log::open(small).expect("opens");
    let fill = async |from: u32| {
        for at in from..from + 100 {
            log.append(&draft(&format!("{at} {}", "x".repeat(200)))).await.expect("kept");
        }
    };
    fill(0).await;
    let files = || numbers(&home.dir().join("log"));
    assert_eq!(files()[0], 0, "somebody needs all");
    let held = files()[3] + 1;
    log.hold(held);
    let until = async |what: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < DEADLINE, "{:?}", files());
            log.append(&draft("more")).await.expect("kept");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    until(&|| files()[0] > 0).await;
    assert!(files()[0] <= held);
    assert!(home.dir().join(format!("log/{:020}.jsonl", files()[0])).exists());
    log.hold(u64::MAX);
    until(&|| files().len() <= 6).await;
    log.close().expect("closes");
    let first = files()[0];
    home.check();
    let text =
        fs::read_to_string(home.dir().join(format!("log/{:020}.jsonl", files().last().expect("one")))).expect("file");
    assert!(text.contains("log_closed"));
    // What is left goes on.
    drop(log);
    let log = home.open();
    log.append(&draft("after")).await.expect("kept");
    log.close().expect("closes");
    assert_eq!(files()[0], first);
    let told = files().iter().any(|first| {
        fs::read_to_string(home.dir().join(format!("log/{first:020}.jsonl"))).expect("file").contains("files_removed")
    });
    assert!(told, "the log tells of what was removed lately");
}

#[tokio::test]
async fn deleted_and_broken_hashes_are_made_again() {
    let home = Home::new();
    let small = || Options { max_file_bytes: 32 * 1024, checkpoint_records: 100, ..home.options() };
    let log = Log::open(small()).expect("opens");
    for at in 0..1000 {
        log.append(&draft(&at.to_string())).await.expect("kept");
    }
    log.close().expect("closes");
    drop(log);
    let all = fs::metadata(home.dir().join("tree/0")).expect("level").len();
    assert_eq!(all, 32 * u64::try_from(home.check().len()).expect("small"));
    type Harm = fn(&std::path::Path);
    let harms: [Harm; 4] = [
        |tree| fs::remove_dir_all(tree).expect("removed"),
        |tree| fs::OpenOptions::new().write(true).open(tree.join("0")).expect("open").set_len(777).expect("cut"),
        |tree| fs::OpenOptions::new().write(true).open(tree.join("0")).expect("open").set_len(1 << 20).expect("grown"),
        |tree| fs::remove_file(tree.join("1")).expect("removed"),
    ];
    for harm in harms {
        harm(&home.dir().join("tree"));
        let log = Log::open(Options { checkpoint_every: Duration::from_millis(10), ..small() }).expect("opens");
        let begin = Instant::now();
        // Older files are read in the background; each checkpoint looks whether that is done.
        loop {
            log.append(&draft("more")).await.expect("kept");
            tokio::time::sleep(Duration::from_millis(15)).await;
            if fs::metadata(home.dir().join("tree/0")).is_ok_and(|level| level.len() >= all && level.len() < 1 << 20) {
                break;
            }
            assert!(begin.elapsed() < DEADLINE);
        }
        log.close().expect("closes");
        let records = home.check();
        assert_eq!(fs::metadata(home.dir().join("tree/0")).expect("level").len(), 32 * records.len() as u64);
        assert_eq!(fs::metadata(home.dir().join("tree/1")).expect("level").len(), 32 * (records.len() as u64 / 256));
    }
}

#[test]
fn a_thread_that_only_appends_needs_no_runtime() {
    let home = Home::new();
    let log = home.open();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..4)
        .map(|at| {
            let (log, stop) = (log.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    log.append_now(&draft(&at.to_string())).expect("kept");
                    count += 1;
                }
                count
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    stop.store(true, Ordering::Relaxed);
    let count: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
    log.close().expect("closes");
    assert_eq!(check(&log.dir()).len(), count + 2);
    assert_eq!(kinds::LOG_CLOSED.event, "log_closed");
}
