//! Checkpoints at places that are real: a witness written from its specification, an HTTP server, a directory.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;
use sortie_audit::{Checkpoint, Draft, Log, Options, kinds};
use sortie_credentials::{CredentialKind, CredentialSpec, Source};
use sortie_runtime::TaskSet;
use sortie_sinks::Tls;
use sortie_sinks::publish::{self, PlaceBoard, PlaceKind, PlaceSpec, WitnessKey};
use sortie_testkit::{Process, Program, free_port, tool};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(40);

struct Stage {
    dir: TempDir,
    log: Option<Log>,
    tasks: TaskSet,
}

impl Stage {
    fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let log = open(dir.path());
        Self { dir, log: Some(log), tasks: TaskSet::new() }
    }

    fn log(&self) -> &Log {
        self.log.as_ref().expect("it is open")
    }

    fn grow(&self, records: u32) {
        for n in 0..records {
            let draft = Draft::new(kinds::CALL_DONE, &json!({"n": n})).expect("draft");
            self.log().append_now(&draft).expect("appended");
        }
    }

    fn start(&self, kind: PlaceKind) -> PlaceBoard {
        let places = vec![PlaceSpec { name: "place".into(), kind }];
        let mut boards = publish::start(self.log(), places, &BTreeMap::new(), &self.tasks).expect("started");
        boards.pop().expect("one")
    }

    /// Ends everything, and begins again with what is there.
    async fn restart(&mut self) {
        assert!(self.tasks.shutdown(SOON).await, "it ends");
        self.log().close().expect("closed");
        // One process has it at a time.
        self.log = None;
        self.log = Some(open(self.dir.path()));
        self.tasks = TaskSet::new();
    }

    async fn size(&self) -> u64 {
        let mut notes = self.log().checkpoints();
        let all = self.log().status().records;
        let fits = |note: &Option<std::sync::Arc<str>>| {
            note.as_deref().and_then(|note| Checkpoint::peek(note).ok()).is_some_and(|note| note.size >= all)
        };
        tokio::time::timeout(SOON, notes.wait_for(fits)).await.expect("in time").expect("log");
        all
    }
}

fn open(dir: &Path) -> Log {
    let (dir, key_file) = (dir.join("audit"), dir.join("key"));
    let every = Duration::from_millis(100);
    let options = Options { dir, key_file, origin: "test".into(), checkpoint_every: every, ..Options::default() };
    Log::open(options).expect("log")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn witness(python: &Path, stage: &Stage, state: &Path, port: u16) -> (Process, WitnessKey) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python/tlog_witness.py");
    let key = stage.log().verifying_key().to_string();
    let program = Program::new(python).arg(script).arg(port.to_string()).arg(key).arg(state);
    let process = program.spawn().expect("python");
    until("the witness tells its key", || process.output().contains('\n')).await;
    let key = process.output().lines().next().expect("a line").parse().expect("key");
    (process, key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_signs_what_continues_and_nothing_else() {
    let Some(python) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let mut stage = Stage::set();
    let (state, port) = (stage.dir.path().join("state"), free_port().expect("port"));
    std::fs::create_dir(&state).expect("dir");
    let (process, key) = witness(&python, &stage, &state, port).await;
    let url: url::Url = format!("http://127.0.0.1:{port}").parse().expect("url");
    let place = || PlaceKind::Witness { url: url.clone(), key: key.clone(), tls: Tls::default() };
    stage.grow(5);
    let board = stage.start(place());
    until("the first is signed", || board.status().size.is_some_and(|size| size >= 6)).await;

    // The proof is made from where the witness is, which a new process has to ask for; what was signed verifies.
    stage.restart().await;
    stage.grow(100);
    let size = stage.size().await;
    let board = stage.start(place());
    until("the next is signed", || board.status().size.is_some_and(|seen| seen >= size)).await;
    assert!(board.status().ok, "{:?}", board.status());
    let size = board.status().size.expect("size");
    let kept = stage.dir.path().join(format!("audit/witnessed/{size:020}"));
    let note = std::fs::read_to_string(kept).expect("kept");
    Checkpoint::open(&note, &stage.log().verifying_key()).expect("signed by the log");
    let (text, lines) = note.split_once("\n\n").expect("a note");
    key.find(&format!("{text}\n"), lines).expect("signed by the witness");

    // Another log under the same key: the witness has seen more than it has.
    stage.restart().await;
    stage.log = None;
    std::fs::remove_dir_all(stage.dir.path().join("audit")).expect("removed");
    stage.log = Some(open(stage.dir.path()));
    stage.grow(1);
    let board = stage.start(place());
    until("the contradiction is seen", || board.status().reason.is_some_and(|why| why.contains("was cut"))).await;
    assert!(!board.status().ok);
    // It grows beyond, and is still another one.
    stage.restart().await;
    stage.grow(u32::try_from(size).expect("small") + 50);
    stage.size().await;
    let board = stage.start(place());
    until("it is no continuation", || board.status().reason.is_some_and(|why| why.contains("does not see"))).await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_published_is_published_later_and_holds_nothing_up() {
    let stage = Stage::set();
    let secret = stage.dir.path().join("secret");
    std::fs::write(&secret, "canary-secret\n").expect("secret");
    std::os::unix::fs::chown(&secret, None, None).expect("own");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, mode).expect("mode");
    let port = free_port().expect("port");
    let header = "authorization".parse().expect("name");
    let kind = CredentialKind::Header { header, prefix: "Bearer ".into(), secret: Source::File(secret) };
    let credential = Some(Box::new(CredentialSpec { name: "store".into(), kind }));
    let template = format!("http://127.0.0.1:{port}/{{origin}}/{{size}}");
    let board = stage.start(PlaceKind::Url { method: http::Method::PUT, template, credential, tls: Tls::default() });
    stage.grow(3);
    until("it is known that nobody is there", || board.status().reason.is_some()).await;
    assert!(board.status().ok && board.status().size.is_none(), "{:?}", board.status());
    let told = format!("{board:?}");
    assert!(!told.contains("canary"), "{told}");

    // A store that refuses once and takes then.
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("listener");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for status in ["503 Service Unavailable", "201 Created"] {
            let (mut stream, _) = listener.accept().expect("accepted");
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.ends_with(b"==\n") && !request.ends_with(b"=\n") {
                let read = stream.read(&mut buffer).expect("read");
                request.extend_from_slice(&buffer[..read]);
                assert!(read > 0, "the whole request");
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).expect("answered");
            tell.send(String::from_utf8(request).expect("text")).expect("told");
        }
    });
    until("it is published at last", || board.status().size.is_some()).await;
    let (_refused, taken) = (told.recv_timeout(SOON).expect("first"), told.recv_timeout(SOON).expect("second"));
    let size = board.status().size.expect("size");
    let name = stage.log().verifying_key().name().replace('/', "-");
    assert!(taken.starts_with(&format!("PUT /{name}/{size:020} HTTP/1.1\r\n")), "{taken}");
    assert!(taken.contains("authorization: Bearer canary-secret\r\n"), "{taken}");
    let note = taken.split("\r\n\r\n").nth(1).expect("body");
    assert_eq!(Checkpoint::open(note, &stage.log().verifying_key()).expect("signed").size, size);
    assert!(board.status().ok && board.status().reason.is_none());
    assert!(stage.tasks.shutdown(SOON).await);
}
