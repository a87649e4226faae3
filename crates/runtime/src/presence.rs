//! Noticing a peer that vanished without a word: a cable that was cut, a machine that lost its power, a NAT that forgot.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Silence after which the peer's machine is asked whether it is still there, and how long until it is asked again.
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long what was sent, a question included, may stay unacknowledged (RFC 5482). With comments on quiet streams every
/// 20 s this bounds how long a stream outlives its reader: 50 s.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Lets a connection fail within a minute after its peer's machine vanished, whether it was silent or being written to.
/// A peer that is there but says nothing is left alone. Small messages are sent at once.
///
/// Where the system refuses an option, the connection works without it.
pub fn notice_absence(stream: &TcpStream) {
    // It fails where the peer has gone already, which the first read tells, too.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_AGAIN));
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
}

/// How long a peer may take to close its end of a connection that has ended here.
const LINGER: Duration = Duration::from_secs(1);

/// Says that this is the end of a stream, and waits at most a second for the peer's. Dropping a stream with unread bytes
/// resets it, and a reset overtakes what is still on its way: the beginning of an answer that broke off, or the refusal
/// of a request that was too large.
pub async fn close_gently<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let closing = async {
        let _gone = stream.shutdown().await;
        let mut rest = [0; 4096];
        while let Ok(1..) = stream.read(&mut rest).await {}
    };
    // On the heap, since it is the last moment of a connection that had no use for its room.
    let _late = Box::pin(tokio::time::timeout(LINGER, closing)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ways_of_noticing_are_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        notice_absence(&stream);
        let socket = SockRef::from(&stream);
        assert!(stream.nodelay().expect("nodelay"));
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(socket.tcp_keepalive_time().expect("time"), ASK_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().expect("interval"), ASK_AGAIN);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().expect("timeout"), Some(UNACKNOWLEDGED));
    }
}
