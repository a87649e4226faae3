//! What appending costs, beside plain lines of JSON and SQLite in the same run: `cargo xtask bench audit`. Each record is
//! made from the fields of an ordinary `call_decided` (some 900 bytes), so that making its text counts for all.
//!
//! `--seconds N` per row and round (1), `--rounds N` (3), `--records N` for how many a large log is made of (1,000,000).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sortie_audit::{CallDecided, Draft, Durability, Log, Options, kinds};
use sortie_identity::{Assurance, Caller};
use sortie_testkit::usage::cpu_us;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

/// Tasks that append at once.
const TASKS: usize = 32;
/// Rows of one transaction where they are batched.
const BATCH: u64 = 100;

/// One way of keeping records.
#[derive(Clone, Copy)]
enum Way {
    Log { tasks: usize, durability: Durability },
    Lines { tasks: usize, sync: bool },
    Sqlite { batch: u64, sync: bool },
}

struct Row {
    name: &'static str,
    way: Way,
    /// What is compared with: the row of this name.
    base: Option<&'static str>,
}

const PROCESS: Durability = Durability::Process;
const POWER: Durability = Durability::Power;

const ROWS: [Row; 12] = [
    Row { name: "process, lines of JSON, one by one", way: Way::Lines { tasks: 1, sync: false }, base: None },
    Row {
        name: "process, log, one by one",
        way: Way::Log { tasks: 1, durability: PROCESS },
        base: Some("process, lines of JSON, one by one"),
    },
    Row {
        name: "process, SQLite, one by one",
        way: Way::Sqlite { batch: 1, sync: false },
        base: Some("process, log, one by one"),
    },
    Row {
        name: "process, SQLite, 100 at once",
        way: Way::Sqlite { batch: BATCH, sync: false },
        base: Some("process, log, one by one"),
    },
    Row { name: "process, lines of JSON, 32 tasks", way: Way::Lines { tasks: TASKS, sync: false }, base: None },
    Row {
        name: "process, log, 32 tasks",
        way: Way::Log { tasks: TASKS, durability: PROCESS },
        base: Some("process, lines of JSON, 32 tasks"),
    },
    Row { name: "power, lines of JSON, one by one", way: Way::Lines { tasks: 1, sync: true }, base: None },
    Row {
        name: "power, log, one by one",
        way: Way::Log { tasks: 1, durability: POWER },
        base: Some("power, lines of JSON, one by one"),
    },
    Row {
        name: "power, SQLite, one by one",
        way: Way::Sqlite { batch: 1, sync: true },
        base: Some("power, log, one by one"),
    },
    Row {
        name: "power, SQLite, 100 at once",
        way: Way::Sqlite { batch: BATCH, sync: true },
        base: Some("power, log, 32 tasks"),
    },
    Row { name: "power, lines of JSON, 32 tasks", way: Way::Lines { tasks: TASKS, sync: true }, base: None },
    Row {
        name: "power, log, 32 tasks",
        way: Way::Log { tasks: TASKS, durability: POWER },
        base: Some("power, lines of JSON, 32 tasks"),
    },
];

/// What one round of a row came to.
#[derive(Clone, Copy, Default)]
struct Measure {
    wall_us: f64,
    cpu_us: f64,
}

fn main() {
    let (seconds, rounds, records) = (number("--seconds", 1.0), number("--rounds", 3.0), number("--records", 1e6));
    let lasting = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let mut measured: BTreeMap<&str, Vec<Measure>> = BTreeMap::new();
    for _ in 0..whole(rounds) {
        for row in &ROWS {
            measured.entry(row.name).or_default().push(runtime.block_on(measure(row.way, lasting)));
        }
    }
    println!("one record, medians of {rounds} rounds of {seconds} s\n");
    println!("{:<36} {:>11} {:>9} {:>12}  of", "append", "records/s", "CPU us", "rate");
    for row in &ROWS {
        let of = |name| median(measured.get(name).expect("measured"));
        let own = of(row.name);
        let rate = row.base.map(|base| (of(base).wall_us / own.wall_us, base));
        let (ratio, base) = rate.map_or((String::new(), ""), |(rate, base)| (format!("{rate:.2}x"), base));
        println!("{:<36} {:>11.0} {:>9.2} {ratio:>12}  {base}", row.name, 1e6 / own.wall_us, own.cpu_us);
    }
    runtime.block_on(large(whole(records)));
}

/// Whether a record costs more when there are many: the first and the last tenth of a large log.
async fn large(records: u64) {
    let dir = tempfile::tempdir().expect("dir");
    let log = Log::open(options(dir.path(), PROCESS)).expect("opens");
    let tenth = (records / 10).max(1);
    let mut costs = Vec::new();
    for _ in 0..10 {
        let (begin, cpu) = (Instant::now(), cpu());
        let left = Arc::new(AtomicU64::new(tenth));
        run(TASKS, |_| {
            let (log, left) = (log.clone(), left.clone());
            async move {
                let fields = fields();
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    log.append(&Draft::new(kinds::CALL_ALLOWED, &fields).expect("draft")).await.expect("kept");
                }
            }
        })
        .await;
        costs.push(per(tenth, begin, cpu));
    }
    let (first, last) = (costs.first().expect("ten"), costs.last().expect("ten"));
    println!(
        "\na log of {records} records, 32 tasks: CPU us of the first tenth {:.2}, of the last {:.2}",
        first.cpu_us, last.cpu_us
    );
    let begin = Instant::now();
    log.close().expect("closes");
    let closed = begin.elapsed();
    drop(log);
    let begin = Instant::now();
    drop(Log::open(options(dir.path(), PROCESS)).expect("opens"));
    println!("closing it takes {:.1} ms, opening it {:.1} ms", millis(closed), millis(begin.elapsed()));
}

async fn measure(way: Way, lasting: Duration) -> Measure {
    let dir = tempfile::tempdir().expect("dir");
    match way {
        Way::Log { tasks, durability } => {
            let log = Log::open(options(dir.path(), durability)).expect("opens");
            timed(tasks, lasting, |count, stop| {
                let log = log.clone();
                async move {
                    let fields = fields();
                    while !stop.load(Ordering::Relaxed) {
                        log.append(&Draft::new(kinds::CALL_ALLOWED, &fields).expect("draft")).await.expect("kept");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
            .await
        }
        Way::Lines { tasks, sync } => {
            let file = OpenOptions::new().append(true).create(true).open(dir.path().join("lines")).expect("file");
            let file = Arc::new(Mutex::new((file, 0u64)));
            timed(tasks, lasting, |count, stop| {
                let file = file.clone();
                async move {
                    let fields = fields();
                    while !stop.load(Ordering::Relaxed) {
                        line(&file, &fields, sync);
                        count.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                    }
                }
            })
            .await
        }
        Way::Sqlite { batch, sync } => {
            let mut database = sqlite(dir.path(), sync).await;
            let fields = fields();
            let (begin, cpu, mut count) = (Instant::now(), cpu(), 0);
            while begin.elapsed() < lasting {
                let mut transaction = database.begin().await.expect("begins");
                for _ in 0..batch {
                    let text = serde_json::to_string(&numbered(count, &fields)).expect("JSON");
                    let insert = sqlx::query("INSERT INTO records (line) VALUES (?)").bind(text);
                    insert.execute(&mut *transaction).await.expect("inserted");
                    count += 1;
                }
                transaction.commit().await.expect("committed");
            }
            per(count, begin, cpu)
        }
    }
}

/// The time of one record, when so many tasks keep records until it is over.
async fn timed<F, T>(tasks: usize, lasting: Duration, task: F) -> Measure
where
    F: Fn(Arc<AtomicU64>, Arc<AtomicBool>) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let (count, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (begin, cpu, over) = (Instant::now(), cpu(), stop.clone());
    let timer = std::thread::spawn(move || {
        std::thread::sleep(lasting);
        over.store(true, Ordering::Relaxed);
    });
    run(tasks, |_| task(count.clone(), stop.clone())).await;
    timer.join().expect("sleeps");
    per(count.load(Ordering::Relaxed), begin, cpu)
}

async fn run<T: Future<Output = ()> + Send + 'static>(tasks: usize, task: impl Fn(usize) -> T) {
    let mut all = tokio::task::JoinSet::new();
    (0..tasks).for_each(|at| drop(all.spawn(task(at))));
    all.join_all().await;
}

fn per(count: u64, begin: Instant, before: u64) -> Measure {
    let count = float(count.max(1));
    Measure { wall_us: begin.elapsed().as_secs_f64() * 1e6 / count, cpu_us: float(cpu() - before) / count }
}

/// A plain line: written at once, and nothing else.
fn line(file: &Mutex<(File, u64)>, fields: &CallDecided, sync: bool) {
    let mut file = file.lock().expect("lock");
    let mut line = serde_json::to_vec(&numbered(file.1, fields)).expect("JSON");
    line.push(b'\n');
    file.1 += 1;
    file.0.write_all(&line).expect("written");
    if sync {
        file.0.sync_data().expect("synced");
    }
}

/// What a record would have without chain and tree.
#[derive(serde::Serialize)]
struct Numbered<'a> {
    seq: u64,
    time: String,
    code: &'static str,
    event: &'static str,
    #[serde(flatten)]
    fields: &'a CallDecided,
}

fn numbered(seq: u64, fields: &CallDecided) -> Numbered<'_> {
    let kind = kinds::CALL_ALLOWED;
    Numbered { seq, time: jiff::Timestamp::now().to_string(), code: kind.code, event: kind.event, fields }
}

async fn sqlite(dir: &Path, sync: bool) -> SqliteConnection {
    let synchronous = if sync { SqliteSynchronous::Full } else { SqliteSynchronous::Normal };
    let options = SqliteConnectOptions::new().filename(dir.join("records.db")).create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(synchronous).disable_statement_logging();
    let mut database = options.connect().await.expect("opens");
    let table = "CREATE TABLE records (seq INTEGER PRIMARY KEY, line TEXT NOT NULL) STRICT";
    sqlx::query(table).execute(&mut database).await.expect("made");
    database
}

fn options(dir: &Path, durability: Durability) -> Options {
    Options { dir: dir.join("audit"), key_file: dir.join("audit.key"), durability, ..Options::default() }
}

/// The fields of an ordinary call.
fn fields() -> CallDecided {
    let mut caller = Caller::new("https://hub.example.com", "key_0123456789", Assurance::Asserted, 1_800_000_000);
    caller.organization = Some("org_0123456789".to_owned());
    caller.workspace = Some("wrkspc_0123456789".to_owned());
    caller.agent = Some("invoices".to_owned());
    let fields = json!({
        "id": "req_0123456789abcdefghij", "route": "bank", "caller": {}, "method": "tools/call", "tool": "pay",
        "outcome": "forwarded", "region": "eu-1", "trace": "0123456789abcdef0123456789abcdef", "credential": "bank",
    });
    let Value::Object(mut members) = fields else { unreachable!("it is an object") };
    members.insert("caller".to_owned(), serde_json::to_value(&caller).expect("JSON"));
    let sha256 = "0123456789abcdef".repeat(4);
    let decision = json!({
        "effect": "allow", "mode": "enforce", "policies": ["small-payments"], "reason": "allowed by small-payments",
        "policy_sha256": sha256, "facts": { "amount": "99.5" }, "now": 1_795_000_000,
    });
    members.insert("decision".to_owned(), decision);
    members.insert("arguments".to_owned(), json!({ "sha256": sha256, "bytes": 84 }));
    serde_json::from_value(Value::Object(members)).expect("the fields are right")
}

fn median(rounds: &[Measure]) -> Measure {
    let middle = |pick: fn(&Measure) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    };
    Measure { wall_us: middle(|round| round.wall_us), cpu_us: middle(|round| round.cpu_us) }
}

fn cpu() -> u64 {
    cpu_us(&[std::process::id()])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn float(count: u64) -> f64 {
    count as f64
}

/// The number behind an option of the command line.
fn number(name: &str, default: f64) -> f64 {
    let value = std::env::args().skip_while(|arg| arg != name).nth(1);
    value.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} wants a number")))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small numbers of the command line")]
fn whole(number: f64) -> u64 {
    number as u64
}
