//! The command line of `sortie policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::audit::TrustArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say what is wrong with a policy file, and with the files that it names. Exit code 2 if anything is.
    Check {
        /// TOML, or Cedar (`.cedar`).
        file: PathBuf,
        /// The gateway's settings: warn of routes that it does not have.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print all policies as Cedar, those of the short form written out.
        #[arg(long)]
        show_cedar: bool,
    },
    /// Decide one call, and say which policies were looked at and why it came out so.
    Explain(Box<ExplainArgs>),
    /// Run the cases in a policy file and beside it. Exit code 1 if one fails.
    Test {
        /// TOML, or Cedar (`.cedar`).
        file: PathBuf,
        /// Files of cases [default: NAME.test.toml beside the policy file, if it is there].
        cases: Vec<PathBuf>,
    },
    /// Ask a policy about recorded calls: which of them would it decide otherwise?
    Replay(ReplayArgs),
    /// Propose the smallest policy that allows what was allowed and used.
    Learn(LearnArgs),
    /// Who may call a tool? Answered from the policies alone.
    Who(WhoArgs),
    /// What may an agent do? Answered from the policies alone.
    What(WhatArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// TOML, or Cedar (`.cedar`).
    pub(crate) file: PathBuf,
    /// Who calls: issuer, subject, assurance, organization, workspace, key, user, agent, agent_version, session, tool_use,
    /// region, group, actor or claim.NAME; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) caller: Vec<String>,
    /// The route.
    #[arg(long, value_name = "NAME")]
    pub(crate) route: String,
    /// The tool that is called.
    #[arg(long, value_name = "NAME", group = "target")]
    pub(crate) tool: Option<String>,
    /// The resource that is read.
    #[arg(long, value_name = "URI", group = "target")]
    pub(crate) resource: Option<String>,
    /// The prompt that is got.
    #[arg(long, value_name = "NAME", group = "target")]
    pub(crate) prompt: Option<String>,
    /// The request, of a route that is not MCP: "GET /path".
    #[arg(long, value_name = "REQUEST", group = "target", conflicts_with = "method")]
    pub(crate) http: Option<String>,
    /// The method of MCP [default: the one that goes with the target].
    #[arg(long, value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// The arguments of the call.
    #[arg(long, value_name = "JSON")]
    pub(crate) arguments: Option<String>,
    /// When: 2026-01-05T12:00:00Z [default: now].
    #[arg(long, value_name = "TIME")]
    pub(crate) time: Option<String>,
    /// The region of the gateway.
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    /// How often the caller did this before: minute=N, hour=N or day=N; may be repeated.
    #[arg(long = "count", value_name = "SPAN=N")]
    pub(crate) counts: Vec<String>,
    /// Print all policies as Cedar, too.
    #[arg(long)]
    pub(crate) show_cedar: bool,
}

/// Which recorded calls.
#[derive(Args, Debug)]
pub(crate) struct PastArgs {
    /// The audit directory [default: that of `sortie up`].
    #[arg(long, value_name = "DIR")]
    pub(crate) audit: Option<PathBuf>,
    /// Only calls since then: 2026-01-05, 2026-01-05T12:00:00Z, or 12h or 30d ago.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<Timestamp>,
    /// Only calls before that.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) until: Option<Timestamp>,
    /// Verify the log first, by what was kept elsewhere.
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
}

#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// The policy to ask: TOML, or Cedar (`.cedar`).
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) past: PastArgs,
    /// Only calls of these callers, such as agent=research; may be repeated, and all must fit.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) caller: Vec<String>,
    /// Exit code 1 if a call would be decided otherwise, or that is not known.
    #[arg(long)]
    pub(crate) fail_on_change: bool,
}

#[derive(Args, Debug)]
pub(crate) struct LearnArgs {
    #[command(flatten)]
    pub(crate) past: PastArgs,
    /// Only calls of these callers, such as agent=research; may be repeated, and all must fit.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) caller: Vec<String>,
    /// Also what went on only because the policy was a shadow.
    #[arg(long)]
    pub(crate) include_shadow: bool,
    /// Where the policy is written, a file that is not there yet [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
}

/// Which policies.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct PolicyFileArgs {
    /// The policy file: TOML, or Cedar (`.cedar`).
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// The gateway's settings, which name the policy file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct WhoArgs {
    /// The route.
    #[arg(long, value_name = "NAME")]
    pub(crate) route: String,
    /// The tool.
    #[arg(long, value_name = "NAME")]
    pub(crate) tool: String,
    #[command(flatten)]
    pub(crate) file: PolicyFileArgs,
    /// With --audit: how often each policy let somebody call in that time, and when last.
    #[command(flatten)]
    pub(crate) past: PastArgs,
}

#[derive(Args, Debug)]
pub(crate) struct WhatArgs {
    /// The agent.
    #[arg(long, value_name = "NAME", required_unless_present = "caller")]
    pub(crate) agent: Option<String>,
    /// What else is known of it: issuer, subject (with issuer), organization, workspace, agent or group; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) caller: Vec<String>,
    #[command(flatten)]
    pub(crate) file: PolicyFileArgs,
    /// With --audit: how often each policy let it call in that time, and when last.
    #[command(flatten)]
    pub(crate) past: PastArgs,
}

/// A date, a moment, or how long ago.
fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("`{text}` is not a moment: write 2026-01-05, 2026-01-05T12:00:00Z, 12h or 30d");
    let ago = |count: &str, seconds: i64| {
        let seconds = count.parse::<i64>().ok()?.checked_mul(seconds)?;
        Timestamp::now().as_second().checked_sub(seconds).and_then(|then| Timestamp::from_second(then).ok())
    };
    for (unit, seconds) in [("m", 60), ("h", 3600), ("d", 86_400)] {
        if let Some(count) = text.strip_suffix(unit).filter(|count| count.bytes().all(|b| b.is_ascii_digit())) {
            return ago(count, seconds).ok_or_else(wrong);
        }
    }
    let whole = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    whole.parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates_times_or_ago() {
        let at = |text: &str| moment(text).map(|at| at.to_string());
        assert_eq!(at("2026-01-05").as_deref(), Ok("2026-01-05T00:00:00Z"));
        assert_eq!(at("2026-01-05T12:00:00+01:00").as_deref(), Ok("2026-01-05T11:00:00Z"));
        assert!(moment("30d").is_ok_and(|at| at < Timestamp::now()));
        for wrong in ["", "d", "yesterday", "2026-13-01", "99999999999999d"] {
            moment(wrong).expect_err(wrong);
        }
    }
}
