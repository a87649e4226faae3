//! What is held when nothing goes on: by the hub and the gateway alone, and for every open stream that says nothing,
//! beside nginx as a reverse proxy for the same streams.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sortie_testkit::usage::rss_kb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::backends::{self, release};
use super::ours::Ours;
use super::report::Format;
use super::targets::{float, open_session};
use crate::repo::Repo;
use crate::tools::Peers;

/// Streams that are open at once.
const STREAMS: usize = 1000;
/// Streams that are opened together.
const TOGETHER: usize = 50;
/// How long memory may settle before it is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures and prints.
pub(crate) async fn measure(repo: &Repo, peers: &Peers, format: Format) -> Result<()> {
    let dir = tempfile::tempdir().context("a temporary folder")?;
    let nginx = peers.path("SORTIE_TEST_NGINX").context("nginx is missing; install nginx-light")?;
    let echo = backends::mcp_echo(&release(&repo.target, "mcp-echo"), dir.path()).await?;
    let hop = backends::nginx_hop(nginx, dir.path(), echo.addr).await?;
    let ours = Ours::start(&release(&repo.target, "sortie"), dir.path(), (echo.addr, echo.addr), 0).await?;
    tokio::time::sleep(SETTLE).await;

    let mib = |pids: &[u32]| float(rss_kb(pids)) / 1024.0;
    let (hub, gateway, proxy) = (ours.hub.pids(), ours.gateway.pids(), hop.process.pids());
    let idle = (mib(&hub), mib(&gateway));
    let url = format!("{}/echo/mcp", ours.routes_url);
    let through_us = streams(&url, Some(&ours.api_key)).await?;
    tokio::time::sleep(SETTLE).await;
    let open = (mib(&hub), mib(&gateway));
    let before = mib(&proxy);
    let through_nginx = streams(&format!("http://{}/mcp", hop.addr), None).await?;
    tokio::time::sleep(SETTLE).await;
    let count = u32::try_from(STREAMS).map_or(f64::from(u32::MAX), f64::from);
    let per_stream = |before: f64, after: f64| (after - before) * 1024.0 / count;
    let rows = [
        ("hub", Some(idle.0), per_stream(idle.0, open.0)),
        ("gateway", Some(idle.1), per_stream(idle.1, open.1)),
        ("nginx", None, per_stream(before, mib(&proxy))),
    ];
    drop((through_us, through_nginx));

    match format {
        Format::Json => {
            let rows: Vec<_> = rows
                .iter()
                .map(|(name, idle, stream)| json!({ "process": name, "idle_mib": idle, "kib_per_idle_stream": stream }))
                .collect();
            println!("{}", serde_json::to_string_pretty(&json!({ "streams": STREAMS, "rows": rows }))?);
        }
        Format::Table => {
            println!("\n{:<9}{:>10}{:>22}", "", "idle MiB", "KiB per idle stream");
            for (name, idle, stream) in rows {
                let idle = idle.map_or_else(|| "-".to_owned(), |mib| format!("{mib:.1}"));
                println!("{name:<9}{idle:>10}{stream:>22.1}");
            }
            println!("resident memory; {STREAMS} GET streams, each in a session and on a connection of its own");
        }
    }
    Ok(())
}

/// Opens all streams, each in a session of its own; they last as long as what is returned.
async fn streams(url: &str, key: Option<&str>) -> Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(STREAMS);
    while open.len() < STREAMS {
        let some = (0..TOGETHER).map(|_| stream(url, key));
        open.extend(futures_util::future::try_join_all(some).await?);
    }
    Ok(open)
}

async fn stream(url: &str, key: Option<&str>) -> Result<TcpStream> {
    let headers = key.map(|key| ("x-api-key", key.to_owned())).into_iter().collect();
    let session = open_session(url, &headers).await?;
    let (host, path) = url.trim_start_matches("http://").split_once('/').context("a URL with a path")?;
    let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
    let mut stream = TcpStream::connect(host.parse::<SocketAddr>()?).await?;
    let head = format!(
        "GET /{path} HTTP/1.1\r\nhost: {host}\r\naccept: text/event-stream\r\nmcp-session-id: {session}\r\n\
         mcp-protocol-version: 2025-11-25\r\n{key}\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 512];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            bail!("the stream ended in its head");
        }
        answer.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        bail!("no stream: {}", String::from_utf8_lossy(&answer));
    }
    Ok(stream)
}
