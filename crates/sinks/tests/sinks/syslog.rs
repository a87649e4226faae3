//! Syslog: rsyslog itself over TLS, and receivers that lose what they were sent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use sortie_credentials::Trust;
use sortie_sinks::{Confirm, SinkKind, SinkSpec, SinkState, SyslogSpec, Tls};
use sortie_testkit::{Process, Program, eventually, free_port, tool};
use sortie_tls::Authority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Audit, LONG, seq, spec, status};

const DAY: Duration = Duration::from_secs(86_400);

fn syslog(addr: SocketAddr, tls: Option<Tls>) -> SinkSpec {
    let kind = SyslogSpec {
        host: addr.ip().to_string(),
        port: addr.port(),
        tls,
        server_name: None,
        facility: 13,
        enterprise_id: None,
        confirm: Confirm::Closed,
    };
    spec("siem", SinkKind::Syslog(kind))
}

/// rsyslog as a child, with certificates of its own.
struct Rsyslog {
    dir: PathBuf,
    program: PathBuf,
    addr: SocketAddr,
    process: Process,
}

impl Rsyslog {
    async fn start(dir: &Path, program: &Path) -> Self {
        let ca = Authority::generate("Log CA", 30).expect("authority");
        let server = ca.issue_server(&["127.0.0.1".to_owned()], DAY).expect("certificate");
        let client = ca.issue_client("gateway", DAY).expect("certificate");
        for (file, text) in [
            ("ca.pem", ca.cert_pem()),
            ("server.pem", &server.cert_pem),
            ("server.key", server.key_pem.expose()),
            ("client.pem", &client.cert_pem),
            ("client.key", client.key_pem.expose()),
        ] {
            std::fs::write(dir.join(file), text).expect("written");
        }
        let port = free_port().expect("port");
        let config = include_str!("rsyslog.conf").replace("PORT", &port.to_string());
        std::fs::write(dir.join("rsyslog.conf"), config.replace("DIR", dir.to_str().expect("path"))).expect("written");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let process = Self::run(dir, program, addr).await;
        Self { dir: dir.to_owned(), program: program.to_owned(), addr, process }
    }

    async fn run(dir: &Path, program: &Path, addr: SocketAddr) -> Process {
        let libraries = program.parent().and_then(Path::parent).expect("usr/sbin").join("lib/x86_64-linux-gnu");
        let started = Program::new(program)
            .args(["-n", "-f"])
            .arg(dir.join("rsyslog.conf"))
            .arg("-i")
            .arg(dir.join("pid"))
            .arg("-M")
            .arg(libraries.join("rsyslog"))
            .env("LD_LIBRARY_PATH", &libraries)
            .spawn();
        let mut process = started.expect("rsyslog starts");
        process.ready_port(addr, LONG).await.expect("rsyslog listens");
        process
    }

    async fn kill_and_start_again(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.exit(LONG).await.expect("it ended");
        self.process = Self::run(&self.dir, &self.program, self.addr).await;
    }

    fn tls(&self) -> Tls {
        let trust = Trust { ca_file: Some(self.dir.join("ca.pem")), include_system_cas: false };
        Tls { trust, client: Some((self.dir.join("client.pem"), self.dir.join("client.key"))) }
    }

    /// What it has written: heads and messages.
    fn written(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.dir.join("out")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once('|'));
        lines.map(|(head, message)| (head.to_owned(), message.to_owned())).collect()
    }
}

#[tokio::test]
async fn rsyslog_gets_every_record_over_tls_though_it_is_killed() {
    let Some(program) = tool("SORTIE_TEST_RSYSLOG") else { return };
    let audit = Audit::new();
    let mut rsyslog = Rsyslog::start(audit.home.path(), &program).await;
    let mut sink = syslog(rsyslog.addr, Some(rsyslog.tls()));
    if let SinkKind::Syslog(syslog) = &mut sink.kind {
        syslog.enterprise_id = Some(32473);
    }
    let sinks = audit.start(vec![sink]);
    let first = audit.append(300).await;
    status(&sinks, |now| now.next == first).await;
    assert_eq!(rsyslog.written().len() as u64, first, "what is confirmed is written");
    // While it is killed, records go on being sent to it.
    for _ in 0..3 {
        audit.append(200).await;
        rsyslog.kill_and_start_again().await;
    }
    let all = audit.append(1).await;
    status(&sinks, |now| now.next == all && now.state == SinkState::Delivering).await;
    let mut written = rsyslog.written();
    written.sort_by_key(|(_, message)| seq(message));
    written.dedup();
    let (heads, messages): (Vec<_>, Vec<_>) = written.into_iter().unzip();
    assert_eq!(messages, audit.lines(), "byte for byte");
    let log = audit.log.verifying_key();
    let (app, id) = log.name().split_once('/').expect("a name");
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "110 {app} {id} G1010I [origin software=\"sortie\" swVersion=\"{version}\"]\
         [sortie@32473 seq=\"1\" event=\"call_done\" log=\"{app}/{id}\"] "
    );
    assert_eq!(heads[1], expected);
}

#[tokio::test]
async fn rsyslog_without_our_certificate_or_with_anothers_gets_nothing() {
    let Some(program) = tool("SORTIE_TEST_RSYSLOG") else { return };
    let audit = Audit::new();
    let rsyslog = Rsyslog::start(audit.home.path(), &program).await;
    audit.append(3).await;
    let stranger = Authority::generate("Other CA", 30).expect("authority");
    let other = audit.home.path().join("other.pem");
    std::fs::write(&other, stranger.cert_pem()).expect("written");
    let good = rsyslog.tls();
    let anonymous = Tls { client: None, ..good.clone() };
    let suspicious = Tls { trust: Trust { ca_file: Some(other), include_system_cas: false }, ..good };
    for (name, tls, said) in [("anonymous", anonymous, ""), ("suspicious", suspicious, "certificate")] {
        let mut sink = syslog(rsyslog.addr, Some(tls));
        sink.name = name.to_owned();
        let sinks = audit.start(vec![sink]);
        let now = status(&sinks, |now| now.state == SinkState::Retrying).await;
        assert!(now.next == 0 && now.last_error.as_deref().is_some_and(|why| why.contains(said)), "{now:?}");
        sinks.close(Duration::ZERO).await;
    }
    let mut sink = syslog(rsyslog.addr, Some(rsyslog.tls()));
    if let SinkKind::Syslog(syslog) = &mut sink.kind {
        syslog.server_name = Some("wiki.corp".to_owned());
    }
    let sinks = audit.start(vec![sink]);
    let now = status(&sinks, |now| now.state == SinkState::Retrying).await;
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("certificate")), "{now:?}");
    assert_eq!(rsyslog.written(), []);
}

/// What a receiver of the test does with a connection, by its number.
type Treatment = fn(usize) -> Treat;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Treat {
    /// Reads to the end.
    Well,
    /// Reads some bytes, and closes the connection.
    Some,
    /// Takes the connection, waits, and closes it without having read.
    Nothing,
    /// Reads everything, and never closes.
    Deaf,
    /// Closes its direction at once, and reads on.
    Half,
}

struct Raw {
    addr: SocketAddr,
    got: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Raw {
    async fn start(treatment: Treatment) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let addr = listener.local_addr().expect("address");
        let got: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let mut tasks = JoinSet::new();
        let kept = got.clone();
        tasks.spawn(async move {
            let mut all = JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.expect("accepted");
                all.spawn(take(stream, treatment(number), kept.clone()));
            }
        });
        Self { addr, got, _tasks: tasks }
    }

    /// The messages of connections that were read to the end, by the frames.
    fn messages(&self) -> Vec<String> {
        let got = self.got.lock().expect("lock").clone();
        got.iter().flat_map(|bytes| frames(bytes)).collect()
    }
}

async fn take(mut stream: TcpStream, treat: Treat, got: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut bytes = Vec::new();
    match treat {
        Treat::Well => {
            stream.read_to_end(&mut bytes).await.expect("read");
            // Kept before the connection is closed, as a receiver does that writes what it reads.
            got.lock().expect("lock").push(bytes);
        }
        Treat::Some => {
            let mut some = [0; 100];
            stream.read_exact(&mut some).await.expect("read");
        }
        Treat::Nothing => stream.readable().await.expect("readable"),
        Treat::Deaf => {
            let _read = stream.read_to_end(&mut bytes).await;
            std::future::pending::<()>().await;
        }
        Treat::Half => {
            stream.shutdown().await.expect("closed");
            let _read = stream.read_to_end(&mut bytes).await;
        }
    }
}

/// What octet counting frames, without the heads.
fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let blank = bytes.iter().position(|byte| *byte == b' ').expect("a blank behind the length");
        let (length, rest) = bytes.split_at(blank);
        let length: usize = std::str::from_utf8(length).expect("text").parse().expect("a length");
        let (message, rest) = rest.split_at(1).1.split_at(length);
        bytes = rest;
        let text = std::str::from_utf8(message).expect("text");
        let at = text.find("] {").expect("structured data and a message");
        messages.push(text[at + 2..].to_owned());
    }
    messages
}

#[tokio::test]
async fn what_a_receiver_had_not_read_is_sent_again() {
    for (name, treatment) in [
        ("some", (|number| if number < 2 { Treat::Some } else { Treat::Well }) as Treatment),
        ("nothing", |number| if number < 2 { Treat::Nothing } else { Treat::Well }),
        ("half-closed", |number| if number < 2 { Treat::Half } else { Treat::Well }),
    ] {
        let audit = Audit::new();
        let receiver = Raw::start(treatment).await;
        let size = audit.append(100).await;
        let sinks = audit.start(vec![syslog(receiver.addr, None)]);
        status(&sinks, |now| now.next == size).await;
        assert_eq!(receiver.messages(), audit.lines(), "{name}");
    }
}

#[tokio::test]
async fn a_receiver_that_never_closes_confirms_nothing_and_may_be_believed_by_choice() {
    let audit = Audit::new();
    let receiver = Raw::start(|_| Treat::Deaf).await;
    let size = audit.append(10).await;
    let mut sink = syslog(receiver.addr, None);
    sink.timeout = Duration::from_millis(300);
    let sinks = audit.start(vec![sink.clone()]);
    let now = status(&sinks, |now| now.state == SinkState::Retrying).await;
    assert_eq!(now.next, 0);
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("confirm = \"written\"")), "{now:?}");
    sinks.close(Duration::ZERO).await;
    if let SinkKind::Syslog(syslog) = &mut sink.kind {
        syslog.confirm = Confirm::Written;
    }
    let sinks = audit.start(vec![sink]);
    status(&sinks, |now| now.next == size).await;
}

#[tokio::test]
async fn what_is_in_a_record_is_no_frame_of_its_own() {
    let audit = Audit::new();
    let receiver = Raw::start(|_| Treat::Well).await;
    let nasty = serde_json::json!({"id": "x\n<110>1 - - - - - - forged\r\n12 <1>1\u{0}\u{7f}\u{2028}] {"});
    audit.log.append(&crate::support::draft(&nasty)).await.expect("appended");
    let sinks = audit.start(vec![syslog(receiver.addr, None)]);
    status(&sinks, |now| now.next == 2).await;
    assert_eq!(receiver.messages(), audit.lines());
    let many = eventually(LONG, || Some(receiver.got.lock().expect("lock").len())).await;
    assert_eq!(many, Some(1), "one connection for both");
}
