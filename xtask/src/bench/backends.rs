//! The programs that are not ours: nginx as upstream and as a reverse proxy, the MCP server, and the MCP bridge.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use sortie_testkit::echo::SMALL_BODY;
use sortie_testkit::{Process, Program, free_port};

/// How long a program may take until it serves; Python under load is slow.
const START: Duration = Duration::from_secs(60);

/// A program that serves at an address.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where.
    pub(crate) addr: SocketAddr,
    /// The running program.
    pub(crate) process: Process,
}

/// nginx with one worker that answers everything with a JSON body of 113 bytes.
pub(crate) async fn nginx_small(nginx: &Path, dir: &Path) -> Result<Server> {
    let location = format!("default_type application/json; return 200 '{SMALL_BODY}';");
    nginx_with(nginx, &dir.join("nginx-small"), "", &location).await
}

/// nginx with one worker as a reverse proxy over kept connections.
pub(crate) async fn nginx_hop(nginx: &Path, dir: &Path, upstream: SocketAddr) -> Result<Server> {
    let pool = format!("upstream backend {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}");
    let location = "proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ''; \
                    proxy_set_header Host $http_host; proxy_buffering off; proxy_read_timeout 600s;";
    nginx_with(nginx, &dir.join("nginx-hop"), &pool, location).await
}

async fn nginx_with(nginx: &Path, dir: &Path, outside: &str, location: &str) -> Result<Server> {
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let addr = free_addr()?;
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};", dir.display()))
        .join(" ");
    let config = format!(
        "daemon off; worker_processes 1; pid {dir}/pid; error_log stderr warn;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; {temp}\n{outside}\n\
         server {{ listen {addr}; location / {{ {location} }} }} }}\n",
        dir = dir.display(),
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).with_context(|| file.display().to_string())?;
    let mut process = Program::new(nginx).arg("-p").arg(dir).arg("-e").arg("stderr").arg("-c").arg(&file).spawn()?;
    process.ready_port(addr, START).await?;
    Ok(Server { addr, process })
}

/// Our small MCP server over HTTP.
pub(crate) async fn mcp_echo(program: &Path, dir: &Path) -> Result<Server> {
    let ready_file = dir.join("mcp-echo.json");
    let mut process = Program::new(program).args(["--http", "127.0.0.1:0", "--ready-file"]).arg(&ready_file).spawn()?;
    let ready = process.ready_file(&ready_file, START).await?;
    let addr = ready.get("addr").and_then(|addr| addr.as_str()).context("mcp-echo says no address")?;
    Ok(Server { addr: addr.parse().context("the address of mcp-echo")?, process })
}

/// The bridge from PyPI, with sessions, in front of our small MCP server on standard input and output.
pub(crate) async fn mcp_proxy(bridge: &Path, program: &Path) -> Result<Server> {
    let addr = free_addr()?;
    let port = addr.port().to_string();
    let command = Program::new(bridge).args(["--host", "127.0.0.1", "--port", &port, "--log-level", "ERROR"]);
    let mut process = command.arg("--").arg(program).arg("--stdio").spawn()?;
    process.ready_port(addr, START).await?;
    Ok(Server { addr, process })
}

/// The bridge from npm, with sessions, in front of our small MCP server on standard input and output.
pub(crate) async fn supergateway(script: &Path, program: &Path) -> Result<Server> {
    let addr = free_addr()?;
    let port = addr.port().to_string();
    let stdio = format!("{} --stdio", program.display());
    let command = Program::new("node").args(["--import", LOOPBACK_ONLY]).arg(script).args(["--stdio", &stdio]);
    let command = command.args(["--outputTransport", "streamableHttp", "--stateful", "--logLevel", "none"]);
    let mut process = command.args(["--port", &port]).spawn()?;
    process.ready_port(addr, START).await?;
    Ok(Server { addr, process })
}

/// Node servers that know no address to bind are kept on loopback. (A data URL: it must hold neither `?` nor `#`.)
const LOOPBACK_ONLY: &str = "data:text/javascript,import net from 'node:net';\
    const listen = net.Server.prototype.listen;\
    net.Server.prototype.listen = function (port, ...rest) {\
      if (typeof port === 'number') { rest.unshift('127.0.0.1') }\
      return listen.call(this, port, ...rest);\
    };";

/// Both ends of an encrypted tunnel (Noise) without HTTP, in front of a server: the address that answers, and its two
/// processes.
pub(crate) async fn rathole(rathole: &Path, dir: &Path, upstream: SocketAddr) -> Result<(SocketAddr, [Process; 2])> {
    let keys = Command::new(rathole).arg("--genkey").output().context("rathole --genkey")?;
    let keys = String::from_utf8_lossy(&keys.stdout).into_owned();
    let key = |name: &str| {
        let mut lines = keys.lines().skip_while(|line| !line.contains(name));
        lines.nth(1).map(|key| key.trim().to_owned()).with_context(|| format!("rathole makes no {name}"))
    };
    let (control, service) = (free_addr()?, free_addr()?);
    let common = "default_token = \"bench\"\n[ROLE.transport]\ntype = \"noise\"\n[ROLE.transport.noise]\n\
         KEY\n[ROLE.services.small]\n";
    let config = |role: &str, first: String, key: String, last: String| {
        format!("[{role}]\n{first}\n{}{last}\n", common.replace("ROLE", role).replace("KEY", &key))
    };
    let server = config(
        "server",
        format!("bind_addr = \"{control}\""),
        format!("local_private_key = \"{}\"", key("Private Key")?),
        format!("bind_addr = \"{service}\""),
    );
    let client = config(
        "client",
        format!("remote_addr = \"{control}\""),
        format!("remote_public_key = \"{}\"", key("Public Key")?),
        format!("local_addr = \"{upstream}\""),
    );
    let run = |name: &str, config: String| -> Result<Process> {
        let file = dir.join(format!("rathole-{name}.toml"));
        fs::write(&file, config).with_context(|| file.display().to_string())?;
        let run = Program::new(rathole).arg(format!("--{name}")).arg(&file).env("RUST_LOG", "error").spawn()?;
        Ok(run)
    };
    let mut server = run("server", server)?;
    server.ready_port(control, START).await?;
    let client = run("client", client)?;
    server.ready_port(service, START).await?;
    Ok((service, [server, client]))
}

/// A binary of this workspace as `cargo build --release` leaves it.
pub(crate) fn release(target: &Path, name: &str) -> PathBuf {
    target.join("release").join(name)
}

fn free_addr() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, free_port().context("no free port")?).into())
}
