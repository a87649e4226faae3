//! A TCP relay on a free loopback port that records what passes and can be cut, frozen and resumed: for tests that
//! look at the wire and for dead links.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that are recorded per direction; what comes after is carried and counted, but not kept.
const RECORD_BYTES: usize = 64 * 1024 * 1024;

/// A running relay. Dropping it ends the listener and all connections.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    flow: watch::Sender<Flow>,
    tape: Arc<Tape>,
    _accept: JoinSet<()>,
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the side that dialled the relay.
    FromDialler,
    /// From the target.
    FromTarget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    Frozen,
    Cut,
}

#[derive(Debug, Default)]
struct Tape {
    from_dialler: Mutex<Track>,
    from_target: Mutex<Track>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

#[derive(Debug, Default)]
struct Track {
    kept: Vec<u8>,
    carried: u64,
}

impl Relay {
    /// Starts a relay to the target on a free loopback port. Nothing is dialled before somebody connects.
    ///
    /// # Errors
    /// Those of binding a socket.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let (flow, watched) = watch::channel(Flow::Open);
        let tape = Arc::new(Tape::default());
        let mut accept = JoinSet::new();
        accept.spawn(accept_all(listener, target, watched, Arc::clone(&tape)));
        Ok(Self { addr, flow, tape, _accept: accept })
    }

    /// Where to dial instead of the target.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Resets all connections, and every new one at once, until [`resume`](Self::resume).
    pub fn cut(&self) {
        self.flow.send_replace(Flow::Cut);
    }

    /// Keeps all sockets open but moves nothing in either direction, neither bytes nor ends, until
    /// [`resume`](Self::resume): what a link looks like when the network in between is gone. New connections are
    /// accepted and frozen, too.
    pub fn freeze(&self) {
        self.flow.send_replace(Flow::Frozen);
    }

    /// Lets bytes flow again. Frozen connections go on where they stopped; cut ones are gone.
    pub fn resume(&self) {
        self.flow.send_replace(Flow::Open);
    }

    /// All bytes that went this way, over all connections in the order of arrival, up to 64 MiB.
    pub fn recorded(&self, direction: Direction) -> Vec<u8> {
        self.tape.track(direction).lock().unwrap_or_else(PoisonError::into_inner).kept.clone()
    }

    /// Whether these bytes went this way next to one another.
    pub fn saw(&self, direction: Direction, needle: &[u8]) -> bool {
        let track = self.tape.track(direction).lock().unwrap_or_else(PoisonError::into_inner);
        !needle.is_empty() && track.kept.windows(needle.len()).any(|window| window == needle)
    }

    /// How many bytes went this way, also those that are not kept.
    pub fn carried(&self, direction: Direction) -> u64 {
        self.tape.track(direction).lock().unwrap_or_else(PoisonError::into_inner).carried
    }

    /// How many connections were accepted so far.
    pub fn accepted(&self) -> usize {
        self.tape.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        self.tape.open.load(Ordering::SeqCst)
    }
}

impl Tape {
    fn track(&self, direction: Direction) -> &Mutex<Track> {
        match direction {
            Direction::FromDialler => &self.from_dialler,
            Direction::FromTarget => &self.from_target,
        }
    }

    fn record(&self, direction: Direction, chunk: &[u8]) {
        let mut track = self.track(direction).lock().unwrap_or_else(PoisonError::into_inner);
        track.carried += u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let room = RECORD_BYTES.saturating_sub(track.kept.len()).min(chunk.len());
        track.kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
}

async fn accept_all(listener: TcpListener, target: SocketAddr, flow: watch::Receiver<Flow>, tape: Arc<Tape>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((dialler, _)) = accepted else { continue };
                tape.accepted.fetch_add(1, Ordering::SeqCst);
                connections.spawn(carry(dialler, target, flow.clone(), Arc::clone(&tape)));
            }
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn carry(mut dialler: TcpStream, target: SocketAddr, mut flow: watch::Receiver<Flow>, tape: Arc<Tape>) {
    tape.open.fetch_add(1, Ordering::SeqCst);
    let _open = OpenCount(Arc::clone(&tape));
    if !flowing(&mut flow).await {
        reset_on_drop(&dialler);
        return;
    }
    let Ok(mut upstream) = TcpStream::connect(target).await else {
        reset_on_drop(&dialler);
        return;
    };
    let _unset = (dialler.set_nodelay(true), upstream.set_nodelay(true));
    let (dialler_read, dialler_write) = dialler.split();
    let (target_read, target_write) = upstream.split();
    let there = one_way(dialler_read, target_write, Direction::FromDialler, flow.clone(), &tape);
    let back = one_way(target_read, dialler_write, Direction::FromTarget, flow, &tape);
    // Each way ends by itself after a polite end, so that half-closed connections go on; a broken one ends both.
    if tokio::try_join!(there, back).is_err() {
        reset_on_drop(&dialler);
        reset_on_drop(&upstream);
    }
}

/// Makes the drop a reset instead of a polite end.
fn reset_on_drop(stream: &TcpStream) {
    // A socket that cannot be told so is broken already.
    let _unset = stream.set_zero_linger();
}

/// Moves bytes until their end, which is passed on. `Err` when the connection broke or was cut.
async fn one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    direction: Direction,
    mut flow: watch::Receiver<Flow>,
    tape: &Tape,
) -> Result<(), ()> {
    let mut chunk = vec![0u8; 64 * 1024];
    loop {
        let count = tokio::select! {
            read = from.read(&mut chunk) => read.map_err(drop)?,
            cut = flow.wait_for(|flow| *flow == Flow::Cut) => {
                let _gone = cut.is_err();
                return Err(());
            }
        };
        if !flowing(&mut flow).await {
            return Err(());
        }
        let read = chunk.get(..count).unwrap_or_default();
        if read.is_empty() {
            return to.shutdown().await.map_err(drop);
        }
        tape.record(direction, read);
        tokio::select! {
            written = to.write_all(read) => written.map_err(drop)?,
            cut = flow.wait_for(|flow| *flow == Flow::Cut) => {
                let _gone = cut.is_err();
                return Err(());
            }
        }
    }
}

/// Waits while frozen. `false` when cut, or when the relay is gone.
async fn flowing(flow: &mut watch::Receiver<Flow>) -> bool {
    matches!(flow.wait_for(|flow| *flow != Flow::Frozen).await.map(|flow| *flow), Ok(Flow::Open))
}

/// Counts a connection as open for as long as it lives.
struct OpenCount(Arc<Tape>);

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::eventually;

    const SOON: Duration = Duration::from_secs(10);

    /// A listener that sends back what it gets, in upper case.
    async fn shouting() -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let addr = listener.local_addr().expect("addr");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let mut chunk = [0u8; 1024];
                    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                        if stream.write_all(&chunk[..count].to_ascii_uppercase()).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (addr, tasks)
    }

    async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
        stream.write_all(text.as_bytes()).await?;
        let mut answer = vec![0u8; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    #[tokio::test]
    async fn both_directions_are_recorded() {
        let (target, _tasks) = shouting().await;
        let relay = Relay::start(target).await.expect("relay");
        let mut stream = TcpStream::connect(relay.addr()).await.expect("connect");
        assert_eq!(ask(&mut stream, "secret").await.expect("answer"), "SECRET");
        assert!(relay.saw(Direction::FromDialler, b"secret"));
        assert!(!relay.saw(Direction::FromDialler, b"SECRET"));
        assert_eq!(relay.recorded(Direction::FromTarget), b"SECRET");
        assert_eq!((relay.carried(Direction::FromTarget), relay.accepted(), relay.open()), (6, 1, 1));
        drop(stream);
        eventually(SOON, || (relay.open() == 0).then_some(())).await.expect("closed");
    }

    #[tokio::test]
    async fn a_frozen_relay_keeps_sockets_open_and_moves_nothing() {
        let (target, _tasks) = shouting().await;
        let relay = Relay::start(target).await.expect("relay");
        let mut stream = TcpStream::connect(relay.addr()).await.expect("connect");
        ask(&mut stream, "one").await.expect("answer");
        relay.freeze();
        let waiting = timeout(Duration::from_millis(150), ask(&mut stream, "two")).await;
        assert!(waiting.is_err(), "frozen");
        assert!(!relay.saw(Direction::FromDialler, b"two"));
        relay.resume();
        let mut answer = [0u8; 3];
        timeout(SOON, stream.read_exact(&mut answer)).await.expect("in time").expect("answer");
        assert_eq!(&answer, b"TWO");
    }

    #[tokio::test]
    async fn a_cut_relay_breaks_old_and_new_connections_until_it_resumes() {
        let (target, _tasks) = shouting().await;
        let relay = Relay::start(target).await.expect("relay");
        let mut old = TcpStream::connect(relay.addr()).await.expect("connect");
        ask(&mut old, "one").await.expect("answer");
        relay.cut();
        assert!(timeout(SOON, ask(&mut old, "two")).await.expect("in time").is_err());
        let broken = async { ask(&mut TcpStream::connect(relay.addr()).await?, "three").await };
        assert!(timeout(SOON, broken).await.expect("in time").is_err());
        relay.resume();
        let mut fresh = TcpStream::connect(relay.addr()).await.expect("connect");
        assert_eq!(ask(&mut fresh, "four").await.expect("answer"), "FOUR");
    }

    #[tokio::test]
    async fn a_half_closed_connection_goes_on_the_other_way() {
        let (target, _tasks) = shouting().await;
        let relay = Relay::start(target).await.expect("relay");
        let mut stream = TcpStream::connect(relay.addr()).await.expect("connect");
        stream.write_all(b"last").await.expect("write");
        stream.shutdown().await.expect("shutdown");
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.expect("in time").expect("answer");
        assert_eq!(answer, "LAST");
    }
}
