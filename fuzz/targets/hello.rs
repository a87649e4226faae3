//! ClientHellos: however the bytes arrive, what is read of them is the same, and every one of them is there to be read
//! again.

#![no_main]

use std::pin::Pin;
use std::task::{Context, Poll};

use libfuzzer_sys::fuzz_target;
use sortie_tls::{Hello, HelloError, MAX_HELLO, read_hello};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

fuzz_target!(|input: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let whole = runtime.block_on(read(input, usize::MAX));
    for piece in [1, 7, 500] {
        let pieces = runtime.block_on(read(input, piece));
        // What follows a hello may be wrong; whether it is seen before the hello is whole depends on the pieces.
        if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) {
            assert_eq!(whole, pieces);
        }
    }
    match whole {
        Ok(hello) => {
            if let Some(name) = hello.sni {
                assert!(!name.is_empty() && name.is_ascii() && name.to_ascii_lowercase() == name, "{name}");
            }
        }
        Err(HelloError::NotTls) => assert_ne!(input.first(), Some(&22)),
        Err(HelloError::Io(error)) => panic!("{error}"),
        Err(_) => {}
    }
});

async fn read(input: &[u8], piece: usize) -> Result<Hello, HelloError> {
    let (hello, mut stream) = read_hello(Pieces { input, piece }, MAX_HELLO).await?;
    let mut again = Vec::new();
    stream.read_to_end(&mut again).await.expect("read");
    assert_eq!(again, input);
    Ok(hello)
}

struct Pieces<'a> {
    input: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let (now, later) = self.input.split_at(self.piece.min(buf.remaining()).min(self.input.len()));
        buf.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}
