//! Bodies of a gibibyte, in both directions.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::SOON;
use crate::frames::{DATA, Http2, Outcome, frame, headers};
use crate::support::Field;

const GIB: usize = 1 << 30;
/// What may have been read of a body that is refused: what is on its way in buffers and windows.
const TAKEN: usize = 64 << 20;

#[tokio::test]
async fn a_gibibyte_of_request_is_refused_before_it_is_read() {
    let field = Field::start().await;
    let filler = vec![b'x'; 64 * 1024];
    for (name, length, chunk) in [
        ("length", format!("content-length: {GIB}"), None),
        ("chunks", "transfer-encoding: chunked".to_owned(), Some("10000\r\n")),
    ] {
        let head = format!(
            "POST /t/{}/up/big HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n{length}\r\n\r\n",
            field.tunnel.label, field.world.api_key
        );
        let (mut read, mut write) = field.api().await.into_split();
        let began = Instant::now();
        let mut poured = 0;
        let pouring = async {
            let _gone = write.write_all(head.as_bytes()).await;
            while poured < GIB {
                let framed = [chunk.unwrap_or("").as_bytes(), &filler, if chunk.is_some() { b"\r\n" } else { b"" }];
                if write.write_all(&framed.concat()).await.is_err() {
                    break;
                }
                poured += filler.len();
            }
            std::future::pending::<()>().await;
        };
        let mut answer = Vec::new();
        let reading = async { while let Ok(1..) = read.read_buf(&mut answer).await {} };
        tokio::time::timeout(SOON, async {
            tokio::select! {
                () = pouring => {}
                () = reading => {}
            }
        })
        .await
        .expect("the connection is closed");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413 "), "{name}: {answer}");
        assert!(answer.contains("sortie-hop: route"), "{name}: {answer}");
        assert!(poured < TAKEN, "{name}: {poured} bytes were taken");
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {:?}", began.elapsed());
        field.bounded(name);
    }
    // Over HTTP/2, with the length said and not.
    for length in [Some(GIB.to_string()), None] {
        let mut http2 = Http2::begin(field.api().await, &[]).await;
        let path = format!("/t/{}/up/big", field.tunnel.label);
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path.as_str()),
            ("x-api-key", field.world.api_key.as_str()),
        ];
        fields.extend(length.as_deref().map(|length| ("content-length", length)));
        http2.send(&headers(1, 0, &fields)).await;
        let mut left: i64 = 65_535;
        let mut poured = 0;
        let status = async {
            loop {
                while left >= 16 * 1024 {
                    if !http2.send(&frame(DATA, 0, 1, &filler[..16 * 1024])).await {
                        return Outcome::Closed;
                    }
                    left -= 16 * 1024;
                    poured += 16 * 1024;
                }
                match http2.outcome_or_window(1).await {
                    Ok(window) => left += i64::from(window),
                    Err(outcome) => return outcome,
                }
            }
        };
        let outcome = tokio::time::timeout(SOON, status).await.expect("refused in time");
        assert!(matches!(outcome, Outcome::Answered(413, _)), "{length:?}: {outcome:?}");
        assert!(poured < TAKEN, "{poured} bytes were taken");
        field.bounded("HTTP/2");
    }
    let whole = field.recorder.requests();
    assert!(whole.iter().all(|request| request.path() != "/big"), "{whole:?}");
    assert!(field.recorder.bytes() < TAKEN, "{} bytes went on", field.recorder.bytes());
    field.others_are_served("large requests").await;
}

#[tokio::test]
async fn a_gibibyte_of_answer_streams_through_flat_memory() {
    let field = Field::start().await;
    let request = field.world.request(reqwest::Method::GET, &field.tunnel, "echo", &format!("/bytes?n={GIB}"));
    let mut response = request.send().await.expect("answer");
    let (mut read, mut checked) = (0, 0);
    while let Some(chunk) = response.chunk().await.expect("chunk") {
        read += chunk.len();
        if read - checked > GIB / 16 {
            checked = read;
            field.bounded("a large answer");
        }
    }
    assert_eq!(read, GIB);
    field.others_are_served("a large answer").await;
}
