//! `sortie audit verify`, `prove` and `key`.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sortie_audit::{Line, Progress, Proof, ProveError, Report, Trust, Trusted, VerifyError, VerifyingKey};

use super::args::{TrustArgs, VerifyArgs, place};
use super::unread;
use crate::cli::HubAccess;
use crate::error::Failure;
use crate::output::{self, Style};

/// Longest proof that is read, in bytes.
const MAX_PROOF: u64 = 4 * 1024 * 1024;

pub(crate) async fn run(args: &VerifyArgs, access: &HubAccess, style: Style) -> Result<(), Failure> {
    let mut trusted = trusted(&args.trust)?;
    if let Some(file) = &args.proof {
        return proof(file, &trusted, style);
    }
    let dir = super::dir(args.dir.as_deref())?;
    if args.published {
        super::published::trust(&dir, args.tunnel.as_ref(), access, &mut trusted).await?;
    }
    let mut shown = Shown::new("verified");
    let verified = sortie_audit::verify(&dir, &trusted, |progress| shown.at(progress));
    drop(shown);
    match verified {
        Ok(report) => print(&report, style),
        Err(error) => {
            if style == Style::Json {
                output::json(&json!({ "ok": false, "error": error.to_string() }))?;
            }
            Err(failed(error))
        }
    }
}

/// Verifies a log by what was kept elsewhere; whether anything was.
///
/// # Errors
/// It is not what was written.
pub(crate) fn check(dir: &Path, args: &TrustArgs) -> Result<bool, Failure> {
    let trusted = trusted(args)?;
    if trusted.keys.is_empty() && trusted.checkpoints.is_empty() {
        return Ok(false);
    }
    let mut shown = Shown::new("verified");
    sortie_audit::verify(dir, &trusted, |progress| shown.at(progress)).map_err(failed)?;
    Ok(true)
}

fn failed(error: VerifyError) -> Failure {
    match error {
        VerifyError::Read(error) => unread(error),
        VerifyError::NoKey { .. } => Failure::usage(error),
        error => Failure::failed(format!("NOT verified: {error}")),
    }
}

/// What was given on the command line.
pub(crate) fn trusted(args: &TrustArgs) -> Result<Trusted, Failure> {
    let keys = args.key.iter().map(|text| read_key(text)).collect::<Result<_, _>>()?;
    let checkpoints = args.checkpoint.iter().map(|path| {
        let note = std::fs::read_to_string(path);
        note.map(|note| (path.display().to_string(), note))
            .map_err(|error| Failure::usage(format!("--checkpoint {}: {error}", path.display())))
    });
    Ok(Trusted { keys, checkpoints: checkpoints.collect::<Result<_, _>>()? })
}

/// A key, or the file that has it.
fn read_key(text: &str) -> Result<VerifyingKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let read = std::fs::read_to_string(text).map_err(|error| {
        Failure::usage(format!("--key `{text}` is neither a key, NAME+HASH+KEY, nor a file that can be read: {error}"))
    })?;
    read.parse().map_err(|error| Failure::usage(format!("--key {text}: {error}")))
}

/// Verifies a proof of one record, with nothing but the key.
fn proof(file: &Path, trusted: &Trusted, style: Style) -> Result<(), Failure> {
    let mut text = Vec::new();
    let read = match file.as_os_str() == "-" {
        true => io::stdin().lock().take(MAX_PROOF).read_to_end(&mut text).map(|_| ()),
        false => std::fs::File::open(file).and_then(|file| file.take(MAX_PROOF).read_to_end(&mut text)).map(|_| ()),
    };
    read.map_err(|error| Failure::usage(format!("--proof {}: {error}", file.display())))?;
    let checked =
        Proof::parse(&text).and_then(|proof| proof.check(&trusted.keys).map(|checkpoint| (proof, checkpoint)));
    let (proof, checkpoint) = match checked {
        Ok(proven) => proven,
        Err(error) => {
            if style == Style::Json {
                output::json(&json!({ "ok": false, "error": error.to_string() }))?;
            }
            return Err(Failure::failed(format!("NOT proven: {error}")));
        }
    };
    let time = Line::exact(proof.record.as_bytes()).map(|line| line.time.to_owned()).unwrap_or_default();
    let proven = json!({
        "ok": true, "index": proof.index, "size": proof.size, "origin": checkpoint.origin,
        "root": checkpoint.root, "time": time, "record": proof.record,
    });
    let rows = [
        ("proven", format!("record {} is one of {} that {} signed", proof.index, proof.size, checkpoint.origin)),
        ("time", time),
        ("record", sortie_gateway::visible(&proof.record)),
    ];
    output::one(style, &proven, &rows)
}

/// Makes a proof. It is a document for programs, however results are printed.
pub(crate) fn prove(words: &[String], _style: Style) -> Result<(), Failure> {
    let (dir, seq) = place(words)?;
    let dir = super::dir(dir.as_deref())?;
    let mut shown = Shown::new("read");
    let proof = sortie_audit::prove(&dir, seq, |progress| shown.at(progress));
    drop(shown);
    match proof {
        Ok(proof) => output::json(&proof),
        Err(ProveError::Read(error)) => Err(unread(error)),
        Err(error) => Err(Failure::failed(error)),
    }
}

pub(crate) fn key(dir: Option<&Path>) -> Result<(), Failure> {
    println!("{}", key_of(&super::dir(dir)?)?);
    Ok(())
}

/// The key that an audit directory names as its own.
pub(crate) fn key_of(dir: &Path) -> Result<VerifyingKey, Failure> {
    let path = dir.join("key.pub");
    let text = std::fs::read_to_string(&path);
    let text = text.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    text.parse().map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

fn print(report: &Report, style: Style) -> Result<(), Failure> {
    if style == Style::Json {
        let mut value = serde_json::to_value(report).map_err(Failure::failed)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("ok".to_owned(), true.into());
        }
        return output::json(&value);
    }
    let mut rows = vec![
        ("verified", trust(report)),
        ("records", format!("{} in {}, {} bytes", report.records, plural(report.files, "file"), report.bytes)),
    ];
    if report.first > 0 {
        rows.push(("begins at", format!("record {}: older files were moved away", report.first)));
    }
    if let (Some(begins), Some(ends)) = (&report.begins, &report.ends) {
        rows.push(("time", format!("{begins} to {ends}")));
    }
    rows.push(("checkpoints", checkpoints(report)));
    if report.unsigned > 0 {
        let after = plural(report.unsigned, "record");
        rows.push(("after it", format!("{after}, linked by hashes; not signed yet, and some could be missing")));
    }
    if report.torn > 0 {
        rows.push((
            "torn end",
            format!("{} bytes of a record that was not finished: a crash, not a change", report.torn),
        ));
    }
    rows.push(("root", report.root.to_string()));
    output::one(style, &(), &rows)
}

fn trust(report: &Report) -> String {
    match report.trust {
        Trust::SelfConsistent => "self-consistent only: nothing here contradicts itself; \
            give --key or --checkpoint from elsewhere for a proof"
            .to_owned(),
        Trust::Key => {
            "by the key given; a newer checkpoint from elsewhere would show whether the end was cut off".to_owned()
        }
        Trust::Checkpoint => "by checkpoints from elsewhere".to_owned(),
        Trust::KeyAndCheckpoint => "by the key given and checkpoints from elsewhere".to_owned(),
    }
}

fn checkpoints(report: &Report) -> String {
    let mut text = match (report.signed, &report.origin) {
        (Some(size), Some(origin)) => format!("{} fit, the newest of {size} records by {origin}", report.checkpoints),
        _ => "none".to_owned(),
    };
    if report.uncompared > 0 {
        text.push_str(&format!("; {} of records that are not here", report.uncompared));
    }
    text
}

pub(crate) fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// How far a long work has come: on standard error, where somebody looks, from its second second on.
pub(crate) struct Shown {
    verb: &'static str,
    next: Option<Instant>,
    drawn: bool,
}

impl Shown {
    pub(crate) fn new(verb: &'static str) -> Self {
        let next = std::io::stderr().is_terminal().then(|| Instant::now() + Duration::from_secs(1));
        Self { verb, next, drawn: false }
    }

    pub(crate) fn at(&mut self, progress: Progress) {
        let now = Instant::now();
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        let percent = progress.done.saturating_mul(100).checked_div(progress.total).unwrap_or(100);
        let _closed = write!(std::io::stderr(), "\r{percent:3} % of {} MB {} ", progress.total / 1_000_000, self.verb);
        self.next = Some(now + Duration::from_millis(200));
        self.drawn = true;
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.drawn {
            let _closed = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}
