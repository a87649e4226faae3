//! The command line of `sortie audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::{Timestamp, Zoned};
use sortie_audit::{Member, Search};
use sortie_ids::TunnelId;

use crate::error::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Say whether the log is what was written. Exit code 1 if it is not.
    Verify(VerifyArgs),
    /// Show the last records.
    Tail(TailArgs),
    /// Find records. Of what is asked for, all has to apply.
    Search(SearchArgs),
    /// Write records out for other programs: as they are, as OCSF events, or as rows.
    Export(ExportArgs),
    /// Show one record.
    Show {
        /// The audit directory [default: that of `sortie up`], and the number of the record.
        #[arg(value_names = ["DIR", "SEQ"], num_args = 1..=2, required = true)]
        place: Vec<String>,
    },
    /// Prove that one record is in the log: a document that `sortie audit verify --proof` checks without the log.
    Prove {
        /// The audit directory [default: that of `sortie up`], and the number of the record.
        #[arg(value_names = ["DIR", "SEQ"], num_args = 1..=2, required = true)]
        place: Vec<String>,
    },
    /// List the checkpoints that the gateways of a tunnel have published to the hub.
    Published {
        /// The tunnel.
        tunnel: TunnelId,
    },
    /// Show how far the sinks of a running gateway are, and what the last one that failed said.
    Sinks {
        /// The data directory of the gateway [default: that of `sortie up`].
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Print the log's key, to be kept elsewhere for `sortie audit verify --key`.
    Key {
        /// The audit directory [default: that of `sortie up`].
        dir: Option<PathBuf>,
    },
    /// Make a pair of keys, for payloads that records hold sealed.
    Keygen(super::payload::KeygenArgs),
    /// Open the payloads that records hold, one line of JSON each.
    Decrypt(super::payload::DecryptArgs),
}

/// What was kept elsewhere.
#[derive(Args, Debug)]
pub(crate) struct TrustArgs {
    /// The log's key, as `sortie audit key` prints it, or a file with it; may be repeated, for the keys it had before.
    #[arg(long, value_name = "KEY|FILE")]
    pub(crate) key: Vec<String>,
    /// A file with a signed checkpoint of the log that was kept elsewhere; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoint: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The audit directory [default: that of `sortie up`].
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Hold the log against what its gateway has published to the hub.
    #[arg(long)]
    pub(crate) published: bool,
    /// The tunnel of the gateway, instead of all that the hub's key can see.
    #[arg(long, value_name = "ID", requires = "published")]
    pub(crate) tunnel: Option<TunnelId>,
    /// Verify this proof of one record instead of a log; `-` reads it from standard input. Needs --key.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "checkpoint", "published"], requires = "key")]
    pub(crate) proof: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct TailArgs {
    /// The audit directory [default: that of `sortie up`].
    pub(crate) dir: Option<PathBuf>,
    /// How many.
    #[arg(short = 'n', long = "lines", value_name = "COUNT", default_value_t = 10)]
    pub(crate) lines: u64,
    /// Go on, and show each new one when it comes.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Args, Debug)]
pub(crate) struct SearchArgs {
    /// The audit directory [default: that of `sortie up`].
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asked: AskedArgs,
    /// Stop after so many; 0 means never.
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub(crate) limit: u64,
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The audit directory [default: that of `sortie up`].
    pub(crate) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) asked: AskedArgs,
    /// As what.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The lines of the log, as they are.
    Jsonl,
    /// OCSF events, one object a line.
    Ocsf,
    /// Rows with a head.
    Csv,
}

/// What is looked for.
#[derive(Args, Debug)]
#[command(next_help_heading = "What to find")]
pub(crate) struct AskedArgs {
    /// Written at this time or later: 2026-11-22T10:00:00Z, a day, or how long ago, like 2h or 7d.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Written before this time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// This record or a later one.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from: u64,
    /// The caller, by its issuer's name for it.
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// The agent.
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,
    /// The person that the caller acts for.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// The id of the key with which the hub was called.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// The session that the call is part of.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// The route.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// The tool.
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// The prompt.
    #[arg(long, value_name = "NAME")]
    prompt: Option<String>,
    /// The URI of the resource.
    #[arg(long, value_name = "URI")]
    resource: Option<String>,
    /// The method, such as tools/call.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// What became of a call: forwarded, refused or waits.
    #[arg(long, value_name = "OUTCOME")]
    outcome: Option<String>,
    /// What the policy said: allow, deny or ask.
    #[arg(long, value_name = "EFFECT")]
    effect: Option<String>,
    /// A policy that decided.
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Where a call was refused, or failed.
    #[arg(long, value_name = "HOP")]
    hop: Option<String>,
    /// The event, such as call_decided.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    /// The code, such as G1001W.
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// The id of the request.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The trace.
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// What stands somewhere in the line, as it is written there.
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Read also files that the times of their first records rule out: where a clock was set back by more than an hour.
    #[arg(long)]
    every_file: bool,
}

impl AskedArgs {
    pub(crate) fn search(&self) -> Search {
        let members = [
            (Member::Subject, &self.subject),
            (Member::Agent, &self.agent),
            (Member::User, &self.user),
            (Member::Key, &self.key),
            (Member::Session, &self.session),
            (Member::Route, &self.route),
            (Member::Tool, &self.tool),
            (Member::Prompt, &self.prompt),
            (Member::Resource, &self.resource),
            (Member::Method, &self.method),
            (Member::Outcome, &self.outcome),
            (Member::Effect, &self.effect),
            (Member::Policy, &self.policy),
            (Member::Hop, &self.hop),
            (Member::Event, &self.event),
            (Member::Code, &self.code),
            (Member::Id, &self.id),
            (Member::Trace, &self.trace),
        ];
        Search {
            since: self.since,
            until: self.until,
            from: self.from,
            members: members.into_iter().filter_map(|(member, value)| Some((member, value.clone()?))).collect(),
            text: self.text.clone(),
            every_file: self.every_file,
        }
    }
}

/// Reads a directory that may be left out, and a number.
pub(crate) fn place(words: &[String]) -> Result<(Option<PathBuf>, u64), Failure> {
    let (dir, seq) = match words {
        [seq] => (None, seq),
        [dir, seq] => (Some(PathBuf::from(dir)), seq),
        _ => return Err(Failure::usage("write DIR and SEQ")),
    };
    let number = seq.parse().map_err(|_| Failure::usage(format!("`{seq}` is not the number of a record")))?;
    Ok((dir, number))
}

/// Reads a moment, a day, or a span back from now.
fn time(text: &str) -> Result<Timestamp, String> {
    let bad = || format!("`{text}` is not a time like 2026-11-22T10:00:00Z, 2026-11-22, 30m, 2h or 7d");
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        return day.in_tz("UTC").map(|day: Zoned| day.timestamp()).map_err(|_| bad());
    }
    let span = crate::cli::hours(text).map_err(|_| bad())?;
    Timestamp::now().checked_sub(span).map_err(|_| bad())
}
