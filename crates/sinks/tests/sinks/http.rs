//! Any HTTP endpoint: what is sent, when it is sent again, and what is never said.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use sortie_credentials::{CredentialKind, CredentialSpec, Source};
use sortie_sinks::{Body, Format, OnRefused, SinkKind, SinkState, Tls};
use sortie_testkit::eventually;

use crate::support::{Audit, LONG, Logged, Receiver, Reply, http, seq, status};

#[tokio::test]
async fn every_record_arrives_once_and_in_order_as_it_is_in_the_log() {
    let audit = Audit::new();
    let size = audit.append(1200).await;
    let receiver = Receiver::start(|_| Reply::Status(204)).await;
    let sinks = audit.start(vec![http("siem", &receiver.url())]);
    let more = audit.append(3).await;
    assert_eq!(more, size + 3);
    let now = status(&sinks, |now| now.next == more).await;
    assert_eq!((now.state, now.lag_records, now.delivered), (SinkState::Delivering, 0, more));
    audit.log.close().expect("closes");
    sinks.close(LONG).await;
    assert_eq!(receiver.lines(), audit.lines(), "the record of the end is among them");
    let seen = receiver.seen();
    assert!(seen.len() >= 3 && seen.len() < 20, "{} requests", seen.len());
    assert!(seen.iter().all(|seen| seen.headers["content-type"] == "application/x-ndjson"));
    assert!(seen.iter().all(|seen| seen.headers["sortie-audit-log"] == audit.log.verifying_key().name()));
    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(audit.cursor("siem")).expect("cursor")).expect("json");
    assert_eq!(metrics["next"].as_u64(), Some(audit.lines().len() as u64));
}

#[tokio::test]
async fn events_of_ocsf_are_what_the_log_makes_of_its_records() {
    let audit = Audit::new();
    let size = audit.append(3).await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let mut sink = http("siem", &receiver.url());
    sink.format = Format::Ocsf;
    let sinks = audit.start(vec![sink]);
    status(&sinks, |now| now.next == size).await;
    let expected: Vec<String> =
        audit.lines().iter().map(|line| sortie_audit::ocsf(line.as_bytes()).expect("event").to_string()).collect();
    assert_eq!(receiver.lines(), expected);
    assert!(expected[1].contains("\"class_uid\""), "{}", expected[1]);
}

#[tokio::test]
async fn what_the_settings_name_has_to_be_there() {
    let audit = Audit::new();
    let mut sink = http("siem", "https://127.0.0.1:9/");
    if let SinkKind::Http(http) = &mut sink.kind {
        http.tls.trust.ca_file = Some("/no/such/ca.pem".into());
    }
    let error = audit.try_start(vec![sink.clone()]).expect_err("no CA").to_string();
    assert!(error.contains("audit sink `siem`: cannot read /no/such/ca.pem"), "{error}");
    if let SinkKind::Http(http) = &mut sink.kind {
        http.tls = Tls::default();
    }
    let error = audit.try_start(vec![sink]).expect_err("no trust").to_string();
    assert!(error.contains("audit sink `siem`: "), "{error}");
}

#[tokio::test]
async fn an_array_is_one() {
    let audit = Audit::new();
    let size = audit.append(5).await;
    let receiver = Receiver::start(|_| Reply::Status(200)).await;
    let mut sink = http("siem", &receiver.url());
    if let SinkKind::Http(http) = &mut sink.kind {
        http.body = Body::Array;
    }
    let sinks = audit.start(vec![sink]);
    status(&sinks, |now| now.next == size).await;
    let got: Vec<serde_json::Value> = serde_json::from_slice(&receiver.seen()[0].body).expect("an array");
    assert_eq!(got.len() as u64, size);
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_until_it_is() {
    let audit = Audit::new();
    let size = audit.append(10).await;
    // Each kind of failure in turn, a lost answer among them: the receiver has the records, and gets them again.
    let mut tries = 0;
    let receiver = Receiver::start(move |_| {
        tries += 1;
        match tries {
            1 => Reply::Status(500),
            2 => Reply::Full(429, vec![("retry-after", "1")], String::new()),
            3 => Reply::Gone,
            4 => Reply::Silence,
            _ => Reply::Status(200),
        }
    })
    .await;
    let mut sink = http("siem", &receiver.url());
    sink.timeout = Duration::from_millis(500);
    let sinks = audit.start(vec![sink]);
    let now = status(&sinks, |now| now.next == size).await;
    assert_eq!(now.state, SinkState::Delivering);
    assert!(now.last_error.is_some(), "the last reason is kept");
    let seen = receiver.seen();
    assert!(seen.len() >= 5, "{}", seen.len());
    let first = seen[0].lines();
    assert!(seen.iter().all(|again| again.lines() == first), "a repetition has the same numbers");
}

#[tokio::test]
async fn a_receiver_that_is_down_for_long_gets_everything_when_it_is_up() {
    let audit = Audit::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let addr = listener.local_addr().expect("address");
    drop(listener);
    let sinks = audit.start(vec![http("siem", &format!("http://{addr}/"))]);
    let size = audit.append(700).await;
    let now = status(&sinks, |now| now.state == SinkState::Retrying && now.lag_bytes > 0).await;
    assert_eq!((now.next, now.lag_records), (0, size));
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("refused")), "{now:?}");
    let listener = tokio::net::TcpListener::bind(addr).await.expect("the same port");
    let receiver = Receiver::on(listener, |_| Reply::Status(200));
    status(&sinks, |now| now.next == size).await;
    assert_eq!(receiver.lines(), audit.lines());
}

#[tokio::test]
async fn names_without_an_address_and_certificates_of_others_are_failures_that_say_so() {
    let audit = Audit::new();
    audit.append(1).await;
    let sinks = audit.start(vec![http("siem", "http://no-such-host.invalid:9/")]);
    let now = status(&sinks, |now| now.state == SinkState::Retrying).await;
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("dns") || why.contains("lookup")), "{now:?}");
}

#[tokio::test]
async fn one_poisonous_record_stops_the_sink_or_is_skipped_and_told() {
    let poison = |body: &[u8]| String::from_utf8_lossy(body).contains("req_77\"");
    for on_refused in [OnRefused::Stop, OnRefused::Skip] {
        let audit = Audit::new();
        let size = audit.append(200).await;
        let receiver =
            Receiver::start(move |seen| if poison(&seen.body) { Reply::Status(400) } else { Reply::Status(200) }).await;
        let mut sink = http("siem", &receiver.url());
        sink.on_refused = on_refused;
        let sinks = audit.start(vec![sink]);
        if on_refused == OnRefused::Stop {
            let now = status(&sinks, |now| now.state == SinkState::Stopped).await;
            // Everything before it was found and delivered.
            assert_eq!((now.next, now.dropped), (78, 0), "{now:?}");
            assert!(now.last_error.as_deref().is_some_and(|why| why.contains("record 78")), "{now:?}");
            receiver.behave(|_| Reply::Status(200));
            sinks.close(Duration::from_secs(1)).await;
            // What the receiver has been taught meanwhile it gets after the next start.
            let sinks = audit.start(vec![http("siem", &receiver.url())]);
            status(&sinks, |now| now.next == size).await;
            continue;
        }
        let now = status(&sinks, |now| now.next == size + 1).await;
        assert_eq!((now.dropped, now.state), (1, SinkState::Delivering));
        let told = audit.lines().pop().expect("a record");
        assert!(
            told.contains(
                r#""event":"sink_dropped","sink":"siem","first":78,"last":78,"records":1,"reason":"refused""#
            ),
            "{told}"
        );
        let taken: Vec<u64> = receiver
            .seen()
            .iter()
            .filter(|seen| !poison(&seen.body))
            .flat_map(|seen| seen.lines())
            .map(|line| seq(&line))
            .collect();
        let expected: Vec<u64> = (0..=size).filter(|seq| *seq != 78).collect();
        assert_eq!(taken, expected, "in order, each once, but for that one");
    }
}

#[tokio::test]
async fn a_receiver_that_refuses_everything_does_not_make_the_log_grow_for_ever() {
    let audit = Audit::new();
    let size = audit.append(20).await;
    let receiver = Receiver::start(|_| Reply::Status(400)).await;
    let mut sink = http("siem", &receiver.url());
    sink.on_refused = OnRefused::Skip;
    let sinks = audit.start(vec![sink]);
    // A record tells of each record that was refused; none tells of those.
    let now = status(&sinks, |now| now.next == 2 * size).await;
    assert_eq!(now.dropped, 2 * size);
    assert_eq!(audit.lines().len() as u64, 2 * size);
}

#[tokio::test]
async fn the_secret_is_sent_and_never_told() {
    let logged = Logged::start();
    let audit = Audit::new();
    let secret = "canary-5f0c1b7e";
    let file = audit.home.path().join("token");
    std::fs::write(&file, secret).expect("secret");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let size = audit.append(3).await;
    // A receiver that repeats what it got, in everything that it can say.
    let mut tries = 0;
    let receiver = Receiver::start(move |seen| {
        tries += 1;
        let said = seen.headers["authorization"].to_str().expect("text").to_owned();
        match tries {
            1 => Reply::Full(500, vec![], said),
            2 => Reply::Full(401, vec![], said),
            3 => Reply::Full(302, vec![("location", "http://canary-5f0c1b7e.invalid/")], said),
            _ => Reply::Full(200, vec![], said),
        }
    })
    .await;
    let mut sink = http("siem", &receiver.url());
    if let SinkKind::Http(http) = &mut sink.kind {
        let kind = CredentialKind::Bearer { secret: Source::File(file) };
        http.credential = Some(CredentialSpec { name: "siem".to_owned(), kind });
    }
    let sinks = audit.start(vec![sink]);
    status(&sinks, |now| now.next == size).await;
    assert!(receiver.seen().iter().all(|seen| seen.headers["authorization"] == "Bearer canary-5f0c1b7e"));
    let told = format!("{}{sinks:?}{:?}{}", logged.text(), sinks.status(), audit.lines().concat());
    assert!(logged.text().contains("it answers 500"), "the log was looked at: {}", logged.text());
    assert!(!told.contains(secret) && !told.contains("http://canary"), "{told}");
}

#[tokio::test]
async fn a_slow_receiver_holds_up_no_other() {
    let audit = Audit::new();
    let size = audit.append(50).await;
    let slow = Receiver::start(|_| Reply::Silence).await;
    let quick = Receiver::start(|_| Reply::Status(200)).await;
    let sinks = audit.start(vec![http("slow", &slow.url()), http("quick", &quick.url())]);
    let both = eventually(LONG, || {
        let now = sinks.status();
        (now[1].next == size && now[0].last_error.is_some()).then_some(now)
    });
    let both = both.await.expect("delivered");
    assert_eq!(both[0].next, 0);
    assert!(!slow.seen().is_empty());
}
