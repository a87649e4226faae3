//! The cursor, and what happens when a sink is too far behind.

use std::time::Duration;

use serde_json::Value;
use sortie_sinks::{Begin, OnFull};
use sortie_testkit::eventually;

use crate::support::{Audit, LONG, Receiver, Reply, http, seq, status};

#[tokio::test]
async fn a_sink_goes_on_where_it_was() {
    let audit = Audit::new();
    let first = audit.append(10).await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    status(&sinks, |now| now.next == first).await;
    sinks.close(LONG).await;
    let second = audit.append(10).await;
    // What a crash in the middle of a write leaves is not looked at.
    for half in ["", "{", "{\"next\":0,\"prev\":null}\n"] {
        std::fs::write(audit.cursor("siem").with_extension("new"), half).expect("write");
        let sinks = audit.start(vec![http("siem", &receiver.url())]);
        status(&sinks, |now| now.next == second).await;
        sinks.close(LONG).await;
    }
    assert_eq!(receiver.lines(), audit.lines());
}

#[tokio::test]
async fn a_cursor_that_is_not_of_this_log_is_refused_with_the_way_out() {
    let audit = Audit::new();
    let size = audit.append(10).await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    status(&sinks, |now| now.next == size).await;
    sinks.close(LONG).await;
    let good = std::fs::read_to_string(audit.cursor("siem")).expect("cursor");
    let mut ahead: Value = serde_json::from_str(&good).expect("json");
    ahead["next"] = 12.into();
    let mut other: Value = serde_json::from_str(&good).expect("json");
    other["prev"] = "ab".repeat(32).into();
    for (cursor, said) in [
        ("", "damaged"),
        (&good[..good.len() / 2], "damaged"),
        ("{\"next\":-1}", "damaged"),
        (&ahead.to_string(), "it is at record 12, and the log has only 11"),
        (&other.to_string(), "another log"),
    ] {
        std::fs::write(audit.cursor("siem"), cursor).expect("write");
        let error = audit.try_start(vec![http("siem", &receiver.url())]).expect_err(cursor).to_string();
        assert!(error.contains(said) && error.contains("/sinks/siem") && error.contains("remove it"), "{error}");
    }
    // The way out: everything once more.
    std::fs::remove_file(audit.cursor("siem")).expect("removed");
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    status(&sinks, |now| now.next == size).await;
    assert_eq!(receiver.lines().len() as u64, 2 * size);
}

#[tokio::test]
async fn a_sink_may_begin_with_what_comes() {
    let audit = Audit::new();
    let before = audit.append(10).await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let mut sink = http("siem", &receiver.url());
    sink.from = Begin::Now;
    eventually(LONG, || (*audit.log.durable().borrow() == before).then_some(())).await.expect("durable");
    let sinks = audit.start(vec![sink.clone()]);
    assert_eq!(sinks.status()[0].next, before);
    sinks.close(LONG).await;
    // The place was kept, though nothing was delivered.
    let after = audit.append(2).await;
    let sinks = audit.start(vec![sink]);
    status(&sinks, |now| now.next == after).await;
    assert_eq!(receiver.lines().iter().map(|line| seq(line)).collect::<Vec<_>>(), [before, before + 1]);
}

#[tokio::test]
async fn a_sink_that_is_too_far_behind_denies_until_it_has_caught_up() {
    let audit = Audit::new();
    let receiver = Receiver::start(|_| Reply::Status(503)).await;
    let mut sink = http("siem", &receiver.url());
    sink.spool_bytes = 64 * 1024;
    let sinks = audit.start(vec![sink]);
    assert_eq!(sinks.admits(), Ok(()));
    let size = audit.append(600).await;
    let behind = eventually(LONG, || sinks.admits().err()).await.expect("denies");
    assert_eq!((behind.sink.as_str(), behind.spool_bytes), ("siem", 64 * 1024));
    assert!(behind.behind > 64 * 1024 && behind.to_string().contains("siem"), "{behind}");
    assert!(status(&sinks, |now| now.denies).await.lag_bytes > 64 * 1024);
    receiver.behave(|_| Reply::Status(200));
    eventually(LONG, || sinks.admits().ok()).await.expect("admits again");
    status(&sinks, |now| now.next == size && now.dropped == 0).await;
}

#[tokio::test]
async fn by_choice_the_oldest_records_are_dropped_and_counted() {
    let audit = Audit::new();
    let receiver = Receiver::start(|_| Reply::Status(503)).await;
    let mut sink = http("siem", &receiver.url());
    sink.spool_bytes = 64 * 1024;
    sink.on_full = OnFull::DropAndCount;
    let sinks = audit.start(vec![sink]);
    audit.append(600).await;
    let now = status(&sinks, |now| now.dropped > 0).await;
    assert_eq!(sinks.admits(), Ok(()), "nothing is refused for it");
    assert_eq!(now.next, now.dropped);
    receiver.behave(|_| Reply::Status(200));
    let size = audit.append(1).await;
    let now = status(&sinks, |now| now.next >= size).await;
    let lines = audit.lines();
    let told: Vec<Value> = lines
        .iter()
        .filter(|line| line.contains("\"event\":\"sink_dropped\""))
        .map(|line| serde_json::from_str(line).expect("json"))
        .collect();
    let counted: u64 = told.iter().map(|told| told["records"].as_u64().expect("number")).sum();
    assert_eq!(counted, now.dropped, "{told:?}");
    assert_eq!((told[0]["first"].as_u64(), told[0]["reason"].as_str()), (Some(0), Some("full")));
    // What was not dropped arrived: all behind the last one that is told of.
    let mut arrived: Vec<u64> = receiver.lines().iter().map(|line| seq(line)).collect();
    arrived.sort_unstable();
    arrived.dedup();
    let missing: Vec<u64> = (0..size).filter(|seq| arrived.binary_search(seq).is_err()).collect();
    assert!(missing.iter().all(|seq| *seq < now.dropped), "{missing:?} of {}", now.dropped);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_written_stops_no_delivery() {
    let audit = Audit::new();
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    // A directory in the place of the new file: even root cannot open that.
    std::fs::create_dir(audit.cursor("siem").with_extension("new")).expect("dir");
    let size = audit.append(5).await;
    status(&sinks, |now| now.next == size).await;
    sinks.close(Duration::from_secs(5)).await;
    std::fs::remove_dir(audit.cursor("siem").with_extension("new")).expect("dir");
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    status(&sinks, |now| now.next == size).await;
    let mut lines = receiver.lines();
    assert!(lines.len() as u64 > size, "delivered twice, since the place was not kept");
    lines.sort_by_key(|line| seq(line));
    lines.dedup();
    assert_eq!(lines, audit.lines());
}

#[tokio::test]
async fn a_log_that_was_changed_is_not_delivered() {
    let audit = Audit::new();
    let size = audit.append(10).await;
    let file = audit.log.dir().join("log/00000000000000000000.jsonl");
    let text = std::fs::read_to_string(&file).expect("log").replace("req_5", "req_X");
    std::fs::write(&file, text).expect("changed");
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    let now = status(&sinks, |now| now.last_error.is_some()).await;
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("was changed at record 6")), "{now:?}");
    assert!(now.next < size && receiver.lines().iter().all(|line| !line.contains("req_X")));
}
