//! `mcp-echo`: the small MCP server of `sortie_testkit::echo` as a program. It listens on what it is told and nothing
//! else, and ends with its input (`--stdio`) or on `SIGTERM`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

use sortie_testkit::echo::{EchoServer, serve_stdio};
use tokio::io::BufReader;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: mcp-echo --http ADDR [--ready-file FILE] [--log FILE]
       mcp-echo --stdio [--log FILE]

  --http ADDR        serve MCP at http://ADDR/mcp; port 0 picks a free port
  --stdio            serve MCP on standard input and output, one message per line
  --ready-file FILE  write {url, addr, pid} there once it serves
  --log FILE         append what happens to the calls there, one JSON object per line";

enum Wish {
    Http { addr: SocketAddr, ready_file: Option<PathBuf> },
    Stdio,
}

fn main() -> ExitCode {
    let (wish, log) = match wish(env::args().skip(1)) {
        Ok(wish) => wish,
        Err(reason) => {
            eprintln!("mcp-echo: {reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(wish, log.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mcp-echo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wish(mut args: impl Iterator<Item = String>) -> Result<(Wish, Option<PathBuf>), String> {
    let (mut http, mut stdio, mut ready_file, mut log) = (None, false, None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--stdio" => stdio = true,
            "--http" => http = Some(value()?.parse().map_err(|_| "--http needs an address such as 127.0.0.1:0")?),
            "--ready-file" => ready_file = Some(PathBuf::from(value()?)),
            "--log" => log = Some(PathBuf::from(value()?)),
            _ => return Err(format!("`{arg}` is not an option")),
        }
    }
    match (http, stdio) {
        (Some(addr), false) => Ok((Wish::Http { addr, ready_file }, log)),
        (None, true) if ready_file.is_none() => Ok((Wish::Stdio, log)),
        _ => Err("say --http ADDR or --stdio; --ready-file goes with --http".to_owned()),
    }
}

fn run(wish: Wish, log: Option<&Path>) -> io::Result<()> {
    // One thread: a benchmark compares it with one worker of nginx, and tests start many.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        match wish {
            Wish::Stdio => serve_stdio(BufReader::new(tokio::io::stdin()), tokio::io::stdout(), log).await,
            Wish::Http { addr, ready_file } => {
                let server = EchoServer::bind(addr, log).await?;
                let mut stop = signal(SignalKind::terminate())?;
                if let Some(file) = ready_file {
                    // Renamed into place, so that a reader never sees half of it.
                    let partial = file.with_extension("partial");
                    fs::write(&partial, server.ready().to_string())?;
                    fs::rename(&partial, &file)?;
                }
                stop.recv().await;
                Ok(())
            }
        }
    });
    // A read of standard input cannot be interrupted; it must not hold up the end.
    runtime.shutdown_background();
    served
}
