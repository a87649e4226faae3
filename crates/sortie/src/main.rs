//! `sortie`: private access for AI agents. Parses the command line, sets up logs and the runtime, runs one command.

mod audit;
mod cli;
mod client;
mod config;
mod database;
mod error;
mod local;
mod operate;
mod output;
mod policy;
mod profile;
mod roles;
mod setup;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Parser as _;
use sortie_gateway::GatewayConfig;
use sortie_runtime::{LogFormat, forbid_dumps, init_logs};

use crate::cli::{Cli, Command, LogStyle, Output};
use crate::error::Failure;
use crate::output::Style;

/// Many small pieces of memory are taken and given back per call, most of them on another stack than they were taken on.
#[global_allocator]
static MEMORY: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // It may repeat what a server said.
            eprintln!("sortie: {}", output::printable(&failure.to_string()));
            failure.code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let serving = matches!(cli.command, Command::Up(_) | Command::Hub(_) | Command::Gateway(_));
    if serving {
        forbid_dumps().map_err(|error| Failure::failed(format!("memory cannot be kept from dumps: {error}")))?;
    }
    let quiet = if matches!(cli.command, Command::Up(_)) { "warn" } else { "info" };
    // Read before anything is logged, since it says what is.
    let gateway = match &cli.command {
        Command::Gateway(args) => Some(GatewayConfig::load(&args.config).map_err(Failure::usage)?),
        _ => None,
    };
    let configured = gateway.as_ref().map(|config| config.log.as_str());
    let level = cli.log.as_deref().or(configured).unwrap_or(if serving { quiet } else { "error" });
    let format = if cli.log_format == LogStyle::Json { LogFormat::Json } else { LogFormat::Text };
    // What libraries say about messages is theirs to know: their lines could hold content of calls.
    let filter = format!("{level},rmcp=warn,h2=warn,hyper=warn,sqlx=warn");
    let _logs = init_logs(format, &filter).map_err(Failure::usage)?;
    let mut builder = if serving {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder
        .worker_threads(workers(cli.workers))
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no runtime: {error}")))?;
    let style = match &cli.output {
        None => Ok(Style::Table),
        Some(Output::Table) => Ok(Style::Table),
        Some(Output::Json) => Ok(Style::Json),
        Some(Output::Toml) => Err(Failure::usage("--output toml is for config show; write table or json")),
        Some(Output::Dir(_)) => Err(Failure::usage("--output dir:DIR is for setup; write table or json")),
    };
    runtime.block_on(async {
        match cli.command {
            Command::Up(args) => roles::up(args).await,
            Command::Hub(args) => roles::hub(args).await,
            Command::Gateway(args) => {
                roles::gateway(args, gateway.expect("the settings of this command were read above")).await
            }
            Command::Setup(command) => setup::run(command, &cli.hub, cli.output).await,
            Command::Tunnels(command) => operate::tunnels::run(command, &cli.hub, style?).await,
            Command::Certs(command) => operate::certs::run(command, &cli.hub, style?).await,
            Command::Keys(command) => operate::keys::run(command, &cli.hub, style?).await,
            Command::Sessions(command) => operate::sessions::run(command, &cli.hub, style?).await,
            Command::Agents(command) => operate::agents::run(command, &cli.hub, style?).await,
            Command::Environments(command) => operate::environments::run(command, &cli.hub, style?).await,
            Command::Vaults(command) => operate::vaults::run(command, &cli.hub, style?).await,
            Command::Export => operate::resources::export(&cli.hub).await,
            Command::Workspaces(command) => operate::workspaces::run(command, &cli.hub, style?).await,
            Command::Approvals(command) => operate::approvals::run(command, &cli.hub, style?).await,
            Command::Routes(command) => operate::routes::run(command, &cli.hub, style?).await,
            Command::Tools(command) => operate::tools::run(command, style?).await,
            Command::Mcp(command) => operate::mcp::run(command, &cli.hub, style?).await,
            Command::Config(command) => config::run(command, cli.output).await,
            Command::Policy(command) => policy::run(command, style?),
            Command::Audit(command) => audit::run(command, &cli.hub, style?).await,
            Command::Completions { shell } => {
                cli::completions(shell);
                Ok(())
            }
        }
    })
}

/// How many threads run tasks: one for each core but, where there are only one or two, a single one. Two threads of ours
/// that wake each other for every message leave no core to the kernel's network and to the other end.
fn workers(asked: Option<u16>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    asked.map_or(if cores <= 2 { 1 } else { cores }, usize::from)
}
