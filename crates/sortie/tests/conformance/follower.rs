//! A relay that stands for whichever server runs now: it reads from a file which port to dial, anew for each connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A running relay. Dropping it ends its connections.
pub(crate) struct Follower {
    /// Where it is reached.
    pub(crate) addr: SocketAddr,
    _accept: JoinSet<()>,
}

impl Follower {
    /// Starts one on a free port of loopback. The file holds a port in decimal by the time that somebody connects.
    pub(crate) async fn start(port_file: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let mut accept = JoinSet::new();
        accept.spawn(accept_all(listener, port_file.into()));
        Ok(Self { addr, _accept: accept })
    }
}

async fn accept_all(listener: TcpListener, port_file: Arc<Path>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("a listener on loopback accepts");
        let port_file = Arc::clone(&port_file);
        connections.spawn(async move {
            // What went wrong is seen by the client, whose connection ends.
            let _ended = connection(client, &port_file).await;
        });
    }
}

async fn connection(mut client: TcpStream, port_file: &Path) -> io::Result<()> {
    let port: u16 = std::fs::read_to_string(port_file)?.parse().map_err(io::Error::other)?;
    let mut server = TcpStream::connect(("localhost", port)).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}
