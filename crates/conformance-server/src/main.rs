//! `mcp-conformance`: the server of this crate as a program, to run the conformance suite against by hand. It listens on
//! loopback only, prints its URL when it serves, and ends on Ctrl-C or `SIGTERM`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::{env, io};

use sortie_conformance_server::ConformanceServer;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: mcp-conformance ADDR
  ADDR  an address of loopback, such as 127.0.0.1:3000; port 0 picks a free port";

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let addr = args.next().and_then(|arg| arg.parse().ok());
    let (Some(addr), None) = (addr, args.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match serve(addr).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mcp-conformance: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(addr: SocketAddr) -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let server = ConformanceServer::bind(addr).await?;
    println!("{}", server.url());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
