//! `sortie audit tail`, `search`, `export` and `show`: records for people, and for other programs.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use serde_json::Value;
use sortie_audit::{LineError, Record, Records, csv, csv_head, ocsf, search, span};
use sortie_gateway::visible;

use super::args::{ExportArgs, Format, SearchArgs, TailArgs, place};
use super::unread;
use super::verify::Shown;
use crate::error::Failure;
use crate::output::{self, Style};

/// How often `--follow` looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Longest text in a column of a table, in characters.
const WIDEST: usize = 60;

pub(crate) async fn tail(args: &TailArgs, style: Style) -> Result<(), Failure> {
    let dir = super::dir(args.dir.as_deref())?;
    let (first, size) = span(&dir).map_err(unread)?;
    let from = size.saturating_sub(args.lines).max(first);
    let mut records = Records::open(&dir, from).map_err(unread)?;
    let mut out = Printer::new(style);
    loop {
        while let Some(record) = records.read().map_err(unread)? {
            if !out.record(record)? {
                return Ok(());
            }
        }
        if !args.follow {
            return out.end();
        }
        if !out.flush()? {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

pub(crate) fn find(args: &SearchArgs, style: Style) -> Result<(), Failure> {
    let dir = super::dir(args.dir.as_deref())?;
    let mut out = Printer::new(style);
    let (mut found, mut failed) = (0u64, Ok(true));
    let mut shown = Shown::new("searched");
    let take = |record: Record<'_>| {
        failed = out.record(record);
        found += 1;
        matches!(failed, Ok(true)) && found != args.limit
    };
    search(&dir, &args.asked.search(), take, |progress| shown.at(progress)).map_err(unread)?;
    drop(shown);
    failed?;
    out.end()?;
    if found == args.limit {
        eprintln!("sortie: only the first {found}; --limit shows more, and --from goes on");
    }
    Ok(())
}

pub(crate) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let dir = super::dir(args.dir.as_deref())?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.format == Format::Csv {
        write(&mut out, csv_head().as_bytes())?;
    }
    let mut failed = Ok(true);
    let mut shown = Shown::new("exported");
    let take = |record: Record<'_>| {
        failed = exported(record, args.format).and_then(|line| write(&mut out, &line));
        matches!(failed, Ok(true))
    };
    search(&dir, &args.asked.search(), take, |progress| shown.at(progress)).map_err(unread)?;
    drop(shown);
    failed?;
    flushed(out.flush()).map(|_| ())
}

fn exported(record: Record<'_>, format: Format) -> Result<Vec<u8>, Failure> {
    let wrong = |error: LineError| Failure::failed(format!("record {}: {error}", record.seq));
    Ok(match format {
        Format::Jsonl => record.line.to_vec(),
        Format::Ocsf => ocsf(record.line).map_err(wrong)?.to_string().into_bytes(),
        Format::Csv => csv(record.line).map_err(wrong)?.into_bytes(),
    })
}

pub(crate) fn show(words: &[String], style: Style) -> Result<(), Failure> {
    let (dir, seq) = place(words)?;
    let dir = super::dir(dir.as_deref())?;
    let text = sortie_audit::record(&dir, seq).map_err(unread)?;
    let record: Value = serde_json::from_str(&text).map_err(Failure::failed)?;
    if style == Style::Json {
        return output::json(&record);
    }
    let about = said(&record, "/code").and_then(|code| sortie_audit::Kind::by_code(&code)).map(|kind| kind.about);
    about.iter().for_each(|about| println!("{about}"));
    for (name, value) in rows("", &record) {
        println!("{:<24}  {}", visible(&name), visible(&value));
    }
    Ok(())
}

/// The members of a record, those of objects in it with the way to them.
fn rows(way: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| {
                let way = if way.is_empty() { name.clone() } else { format!("{way}.{name}") };
                rows(&way, value)
            })
            .collect(),
        Value::String(text) => vec![(way.to_owned(), text.clone())],
        other => vec![(way.to_owned(), other.to_string())],
    }
}

/// Prints records as they come: a row each, or the line itself. Knows when nobody reads any more.
struct Printer {
    style: Style,
    out: BufWriter<io::StdoutLock<'static>>,
    head: bool,
}

impl Printer {
    fn new(style: Style) -> Self {
        Self { style, out: BufWriter::new(io::stdout().lock()), head: false }
    }

    /// Whether anybody still reads.
    fn record(&mut self, record: Record<'_>) -> Result<bool, Failure> {
        if self.style == Style::Json {
            return write(&mut self.out, record.line);
        }
        if !std::mem::replace(&mut self.head, true) {
            let head = format!("{:<10}  {:<23}  {:<22}  {:<24}  WHAT", "SEQ", "TIME", "EVENT", "WHO");
            write(&mut self.out, head.as_bytes())?;
        }
        let value: Value = serde_json::from_slice(record.line).unwrap_or_default();
        write(&mut self.out, row(record.seq, &value).as_bytes())
    }

    fn flush(&mut self) -> Result<bool, Failure> {
        flushed(self.out.flush())
    }

    fn end(mut self) -> Result<(), Failure> {
        self.flush().map(|_| ())
    }
}

fn row(seq: u64, record: &Value) -> String {
    let time = said(record, "/time").unwrap_or_default();
    let time = time.get(..23).unwrap_or(&time).replace('T', " ");
    let event = said(record, "/event").unwrap_or_default();
    let who = ["/caller/agent", "/caller/subject", "/actor/id", "/actor/subject"];
    let who = who.iter().find_map(|at| said(record, at)).unwrap_or_else(|| "-".to_owned());
    format!("{seq:<10}  {time:<23}  {:<22}  {:<24}  {}", short(&event), short(&who), what(record))
}

/// What it is about, in a few words.
fn what(record: &Value) -> String {
    let mut words = Vec::new();
    let target = ["/tool", "/prompt", "/resource", "/http_path"].iter().find_map(|at| said(record, at));
    for at in ["/route", "/method"] {
        words.extend(said(record, at));
    }
    words.extend(target);
    for at in ["/outcome", "/hop", "/reason", "/status", "/end"] {
        words.extend(said(record, at));
    }
    if let Some(time) = record.get("duration_us").and_then(Value::as_u64) {
        words.push(format!("{}.{} ms", time / 1000, time % 1000 / 100));
    }
    if said(record, "/event").is_some_and(|event| event == "call_done") {
        words.extend(said(record, "/id"));
    }
    words.iter().map(|word| short(word)).collect::<Vec<_>>().join(" ")
}

fn said(record: &Value, at: &str) -> Option<String> {
    match record.pointer(at)? {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

/// A text that can neither steer the terminal nor fill it.
fn short(text: &str) -> String {
    let shown = visible(text);
    match shown.char_indices().nth(WIDEST) {
        None => shown,
        Some((at, _)) => format!("{}…", shown.get(..at).unwrap_or_default()),
    }
}

/// Writes a line; whether anybody still reads.
fn write(out: &mut impl Write, line: &[u8]) -> Result<bool, Failure> {
    flushed(out.write_all(line).and_then(|()| out.write_all(b"\n")))
}

fn flushed(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("standard output: {error}"))),
    }
}
