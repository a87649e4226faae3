//! A receiver that is away for hours, with hours that pass quickly.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use sortie_sinks::{OnFull, SinkSpec};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{Audit, LONG, Receiver, Reply, draft, http, seq, status};

/// How long the receiver is away.
const AWAY: Duration = Duration::from_secs(3 * 3600);
/// How often something happens meanwhile.
const EVERY: Duration = Duration::from_secs(6);
/// What each record holds, in bytes.
const RECORD: usize = 32 * 1024;

/// What this process holds, in bytes (proc(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

fn on_disk(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("log")).expect("log").map(|file| file.expect("entry"));
    // One that was just removed has no size.
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// Somebody at the receiver's port who ends every connection, and keeps nothing that would count as memory of the sink.
async fn away(listener: TcpListener, asked: Arc<AtomicUsize>, mut back: oneshot::Receiver<()>) -> TcpListener {
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                drop(accepted);
                asked.fetch_add(1, Ordering::Relaxed);
            }
            _ = &mut back => return listener,
        }
    }
}

/// What came of hours of records that nobody took.
struct Hours {
    /// What the process held at most, in bytes beyond what it held before.
    held: u64,
    /// What lay on the disk at most, in bytes.
    kept: u64,
    /// How many times the receiver was asked.
    asked: usize,
}

/// Hours of records while nobody takes them. The clock of the sink stands still while it works, and jumps when it waits.
async fn hours(audit: &Audit, sink: SinkSpec, listener: TcpListener) -> (Hours, TcpListener) {
    let payload = "x".repeat(RECORD);
    let counted = Arc::new(AtomicUsize::new(0));
    let (returns, back) = oneshot::channel();
    let mut port = JoinSet::new();
    port.spawn(away(listener, counted.clone(), back));
    let sinks = audit.start(vec![sink]);
    let (mut held, mut kept) = (0, 0);
    let before = resident();
    let (began, mut refused) = (tokio::time::Instant::now(), 0u64);
    while began.elapsed() < AWAY {
        match sinks.admits() {
            Ok(()) => drop(audit.log.append(&draft(&json!({"id": "x", "payload": payload}))).await.expect("appended")),
            Err(_) => refused += 1,
        }
        tokio::time::sleep(EVERY).await;
        held = held.max(resident().saturating_sub(before));
        kept = kept.max(on_disk(&audit.log.dir()));
    }
    let asked = counted.load(Ordering::Relaxed);
    assert_eq!(refused > 0, sinks.status().iter().any(|sink| sink.denies), "{refused} refused");
    // From now on the hours have their length again.
    tokio::time::resume();
    sinks.close(Duration::ZERO).await;
    returns.send(()).expect("somebody is at the port");
    let listener = port.join_next().await.expect("one").expect("ends");
    (Hours { held, kept, asked }, listener)
}

async fn port() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("port");
    let url = format!("http://{}/in", listener.local_addr().expect("address"));
    (listener, url)
}

/// Pauses of a minute at most, with jitter: neither given up nor pestered.
fn is_asked_gently(asked: usize) {
    let minutes = usize::try_from(AWAY.as_secs() / 60).expect("small");
    assert!((minutes / 2..minutes * 6).contains(&asked), "{asked} times in {minutes} minutes");
}

#[tokio::test(start_paused = true)]
async fn hours_of_records_wait_on_the_disk_and_arrive_in_order() {
    let audit = Audit::with(|options| options.max_file_bytes = 1 << 20);
    let (listener, url) = port().await;
    let sink = http("siem", &url);
    let (Hours { held, kept, asked }, listener) = hours(&audit, sink.clone(), listener).await;
    is_asked_gently(asked);
    assert!(kept > 50 << 20, "{kept} bytes wait");
    assert!(held < 24 << 20, "{held} bytes are held for them");
    let receiver = Receiver::on(listener, |_| Reply::Status(200));
    let sinks = audit.start(vec![sink]);
    let size = audit.append(1).await;
    status(&sinks, |now| now.next == size && now.lag_bytes == 0).await;
    let arrived = receiver.lines();
    assert_eq!(arrived, audit.lines(), "each once, in order");
    sinks.close(LONG).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_bounds_the_disk_as_well() {
    for on_full in [OnFull::Deny, OnFull::DropAndCount] {
        let audit = Audit::with(|options| {
            options.max_file_bytes = 1 << 20;
            options.keep_bytes = Some(2 << 20);
            options.checkpoint_records = 20;
            options.hold = 0;
        });
        let (listener, url) = port().await;
        let mut sink = http("siem", &url);
        (sink.spool_bytes, sink.on_full) = (4 << 20, on_full);
        // The clock jumps again.
        if on_full == OnFull::DropAndCount {
            tokio::time::pause();
        }
        let (Hours { held, kept, asked }, listener) = hours(&audit, sink.clone(), listener).await;
        is_asked_gently(asked);
        // The spool, a file that is not whole yet, and one that is about to go.
        assert!(kept < 8 << 20, "{on_full:?}: {kept} bytes on the disk");
        assert!(held < 24 << 20, "{on_full:?}: {held} bytes in memory");
        let receiver = Receiver::on(listener, |_| Reply::Status(200));
        let sinks = audit.start(vec![sink]);
        let size = audit.append(1).await;
        status(&sinks, |now| now.next >= size && now.lag_records == 0).await;
        let arrived: Vec<u64> = receiver.lines().iter().map(|line| seq(line)).collect();
        assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "{on_full:?}: in order");
        if on_full == OnFull::Deny {
            let expected: Vec<u64> = (0..size).collect();
            assert_eq!(arrived, expected, "nothing was dropped, as nothing more was admitted");
        } else {
            assert_eq!(arrived.last(), Some(&(size - 1)), "the newest arrives");
            assert!(arrived.first() > Some(&0), "the oldest do not");
        }
        sinks.close(LONG).await;
    }
}
