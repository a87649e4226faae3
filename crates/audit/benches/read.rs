//! What reading costs, beside plain lines and SQLite in the same run: verifying a log, proving one record, finding some.
//! `cargo xtask bench audit`; `--records N` says how many there are (1,000,000). Other options are for the other benchmark.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use sortie_audit::{Draft, Log, Member, Options, Records, Search, Trusted, kinds, prove, search, verify};
use sortie_testkit::usage::cpu_us;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

/// One call in so many is by the agent that is looked for.
const RARE: u64 = 10_000;
/// Records of one write.
const BATCH: u64 = 1000;
/// How often a quick thing is done.
const TIMES: u32 = 20;

fn main() {
    let records = std::env::args().skip_while(|arg| arg != "--records").nth(1).and_then(|text| text.parse().ok());
    let records: u64 = records.unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let home = tempfile::tempdir().expect("dir");
    let dir = home.path().join("audit");
    let key = runtime.block_on(write(home.path(), &dir, records));
    let (files, bytes) = files(&dir);
    println!(
        "\n{records} records, {:.1} MB in {} files, in the cache of the system\n",
        float(bytes) / 1e6,
        files.len()
    );
    println!("{:<52} {:>11} {:>11} {:>13} {:>9}", "read", "wall ms", "CPU ms", "records/s", "found");

    let trusted = Trusted { keys: vec![key], checkpoints: Vec::new() };
    let size = measure("verify", records, 1, || verify(&dir, &trusted, |_| ()).expect("verified").size);
    assert!(size > records);
    measure("SHA-256 of the same bytes, one core", records, 1, || hash(&files));
    let middle = records / 2;
    let proven = |_| prove(&dir, middle, |_| ()).expect("proof").check(&trusted.keys).map_or(0, |_| 1);
    measure("prove one record and check the proof", records, TIMES, || proven(()));
    std::fs::remove_dir_all(dir.join("tree")).expect("removed");
    measure("the same without the hashes beside the log", records, 1, || proven(()));
    measure("search: one agent, 1 in 10,000", records, 1, || find(&dir, Some("rare"), None));
    measure("search: a text that is nowhere", records, 1, || find(&dir, None, Some("nowhere at all")));
    measure("search: one agent, nearly all", records, 1, || find(&dir, Some("invoices"), None));
    measure("plain scan of the lines for a text, one core", records, 1, || scan(&files, b"\"rare\""));
    measure("read in order, one core", records, 1, || in_order(&dir));
    runtime.block_on(sqlite(home.path(), &dir, records));
}

/// Does it a few times, and says what it took.
fn measure(name: &str, records: u64, times: u32, mut work: impl FnMut() -> u64) -> u64 {
    let (begin, cpu) = (Instant::now(), cpu());
    let mut found = 0;
    for _ in 0..times {
        found = work();
    }
    row(name, records, begin.elapsed() / times, Duration::from_micros(self::cpu() - cpu) / times, found);
    found
}

fn row(name: &str, records: u64, wall: Duration, cpu: Duration, found: u64) {
    let (wall, cpu) = (wall.as_secs_f64(), cpu.as_secs_f64());
    println!("{name:<52} {:>11.2} {:>11.2} {:>13.0} {found:>9}", wall * 1e3, cpu * 1e3, float(records) / wall);
}

async fn write(home: &Path, dir: &Path, records: u64) -> sortie_audit::VerifyingKey {
    let key_file = home.join("audit.key");
    let options = Options { dir: dir.to_owned(), key_file, origin: "bench".to_owned(), ..Options::default() };
    let log = Log::open(options).expect("opens");
    for batch in 0..records.div_ceil(BATCH) {
        let drafts: Vec<Draft> = (0..BATCH).map(|n| draft(batch * BATCH + n)).collect();
        log.append_all(&drafts).await.expect("appended");
    }
    let key = log.verifying_key();
    log.close().expect("closes");
    key
}

/// An ordinary `call_decided`, some 900 bytes.
fn draft(number: u64) -> Draft {
    let agent = if number.is_multiple_of(RARE) { "rare" } else { "invoices" };
    let sha256 = "0123456789abcdef".repeat(4);
    let fields = json!({
        "id": format!("req_{number:020}"), "route": "bank", "method": "tools/call", "tool": "pay",
        "caller": {
            "issuer": "https://hub.example.com", "subject": "key_0123456789", "assurance": "asserted",
            "organization": "org_0123456789", "workspace": "wrkspc_0123456789", "agent": agent, "expires": 1_800_000_000,
        },
        "arguments": { "sha256": sha256, "bytes": 84 }, "outcome": "forwarded",
        "decision": {
            "effect": "allow", "mode": "enforce", "policies": ["small-payments"], "reason": "allowed by small-payments",
            "policy_sha256": sha256, "facts": { "amount": "99.5" }, "now": 1_795_000_000,
        },
        "credential": "bank", "region": "eu-1", "trace": "0123456789abcdef0123456789abcdef",
    });
    Draft::new(kinds::CALL_ALLOWED, &fields).expect("draft")
}

fn files(dir: &Path) -> (Vec<PathBuf>, u64) {
    let entries = std::fs::read_dir(dir.join("log")).expect("log");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let bytes = files.iter().map(|file| std::fs::metadata(file).expect("file").len()).sum();
    (files, bytes)
}

fn find(dir: &Path, agent: Option<&str>, text: Option<&str>) -> u64 {
    let members = agent.map(|agent| (Member::Agent, agent.to_owned())).into_iter().collect();
    let wanted = Search { members, text: text.map(str::to_owned), ..Search::default() };
    let mut found = 0;
    let take = |_: sortie_audit::Record<'_>| {
        found += 1;
        true
    };
    search(dir, &wanted, take, |_| ()).expect("searched");
    found
}

fn in_order(dir: &Path) -> u64 {
    let mut records = Records::open(dir, 0).expect("opens");
    let mut read = 0;
    while records.read().expect("read").is_some() {
        read += 1;
    }
    read
}

/// What `grep -c` does.
fn scan(files: &[PathBuf], text: &[u8]) -> u64 {
    let finder = memchr::memmem::Finder::new(text);
    let found = files.iter().map(|file| finder.find_iter(&std::fs::read(file).expect("file")).count());
    u64::try_from(found.sum::<usize>()).expect("a count")
}

fn hash(files: &[PathBuf]) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    for file in files {
        let mut file = File::open(file).expect("file");
        while let Some(read) = Some(file.read(&mut buffer).expect("read")).filter(|read| *read > 0) {
            std::hint::black_box(sortie_audit::Hash::of_leaf(buffer.get(..read).expect("read")));
        }
    }
    0
}

async fn sqlite(home: &Path, dir: &Path, records: u64) {
    let options = SqliteConnectOptions::new()
        .filename(home.join("records.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Off)
        .disable_statement_logging();
    let mut db = SqliteConnection::connect_with(&options).await.expect("opens");
    let table = "CREATE TABLE records (seq INTEGER PRIMARY KEY, agent TEXT, line TEXT) STRICT";
    sqlx::query(table).execute(&mut db).await.expect("table");
    let mut lines = Records::open(dir, 0).expect("opens");
    let mut more = true;
    while more {
        let mut transaction = db.begin().await.expect("begins");
        for _ in 0..10 * BATCH {
            let Some(record) = lines.read().expect("read") else {
                more = false;
                break;
            };
            let value: serde_json::Value = serde_json::from_slice(record.line).expect("JSON");
            let insert =
                sqlx::query("INSERT INTO records VALUES (?, ?, ?)").bind(i64::try_from(record.seq).expect("small"));
            let agent = value.pointer("/caller/agent").and_then(serde_json::Value::as_str);
            let line = String::from_utf8_lossy(record.line).into_owned();
            insert.bind(agent.map(str::to_owned)).bind(line).execute(&mut *transaction).await.expect("inserted");
        }
        transaction.commit().await.expect("commits");
    }
    sqlx::query("CREATE INDEX by_agent ON records (agent)").execute(&mut db).await.expect("index");
    for (name, query) in [
        ("SQLite: one agent by its index, 1 in 10,000", "SELECT line FROM records WHERE agent = 'rare'"),
        ("SQLite: LIKE over the lines", "SELECT line FROM records WHERE line LIKE '%\"agent\":\"rare\"%'"),
        ("SQLite: the member of JSON", "SELECT line FROM records WHERE line ->> '$.caller.agent' = 'rare'"),
    ] {
        let (begin, cpu) = (Instant::now(), cpu());
        let rows = sqlx::query(query).fetch_all(&mut db).await.expect("rows");
        let bytes: usize = rows.iter().map(|row| row.get::<&str, _>(0).len()).sum();
        std::hint::black_box(bytes);
        let found = u64::try_from(rows.len()).expect("a count");
        row(name, records, begin.elapsed(), Duration::from_micros(self::cpu() - cpu), found);
    }
}

fn cpu() -> u64 {
    cpu_us(&[std::process::id()])
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn float(count: u64) -> f64 {
    count as f64
}
