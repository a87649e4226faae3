use futures_util::StreamExt as _;
use sortie_ids::RouteName;

use super::*;
use crate::pins::PinBoard;

fn route_pins() -> Arc<RoutePins> {
    PinBoard::new(None).route(&"docs".parse::<RouteName>().expect("a name"))
}

fn watch(pins: Option<Arc<RoutePins>>, visible: Option<Visible>) -> Watch {
    Watch {
        route: "docs".into(),
        pins: pins.map(|pins| (pins, Pinning::FirstUse)),
        visible,
        caller: Digest::of(b"1"),
        clock: || 1_800_000_000,
        memory: Memory::default(),
        silence: SILENCE,
        strict: true,
        id: None,
        request_id: RequestId::random(),
    }
}

fn answer(kind: &str, pieces: Vec<Bytes>) -> Response<CallBody> {
    let frames = futures_util::stream::iter(pieces.into_iter().map(|piece| Ok::<_, BodyError>(Frame::data(piece))));
    let mut answer = Response::new(http_body_util::BodyExt::boxed(StreamBody::new(frames)));
    answer.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a value"));
    answer
}

async fn seen(watch: Watch, kind: &str, pieces: Vec<Bytes>) -> Result<Vec<u8>, HopError> {
    let answer = watch.look(answer(kind, pieces)).await?;
    Ok(answer.into_body().collect().await.expect("a body").to_bytes().to_vec())
}

/// However an answer is cut into pieces and whatever it says beside its list: with nothing to hide it stays as it is, and
/// with something, what is kept does.
#[tokio::test]
async fn the_pieces_of_an_answer_make_no_difference() {
    let mut state = 0x9e37_79b9_u64;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).expect("small")).expect("small")
    };
    let ends = ["\n", "\r\n", "\r"];
    for round in 0..400 {
        let items: Vec<String> = (0..next(5)).map(|n| format!(r#"{{"name":"t{n}", "description":"é {n}"}}"#)).collect();
        let list =
            |items: &[String]| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{}]}}}}"#, items.join(","));
        let hidden = format!("t{}", next(6));
        let left: Vec<String> = items.iter().filter(|item| !item.contains(&format!("\"{hidden}\""))).cloned().collect();
        let (text, expected, kind) = if next(3) == 0 {
            (list(&items), list(&left), "application/json; charset=utf-8")
        } else {
            let end = ends[next(3)];
            let mut parts = vec![format!(": hi{end}{end}"), format!("id: 1{end}data:{end}{end}")];
            parts.insert(next(3), format!("event: message{end}data: @{end}id: x{end}{end}"));
            let text = parts.concat();
            (text.replace('@', &list(&items)), text.replace('@', &list(&left)), "text/event-stream")
        };
        let mut rest = Bytes::from(text.clone().into_bytes());
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            pieces.push(rest.split_to((1 + next(40)).min(rest.len())));
        }
        let all = seen(watch(Some(route_pins()), None), kind, pieces.clone()).await.expect("read");
        assert_eq!(all, text.as_bytes(), "round {round}");
        let visible: Visible = Arc::new(move |_, name| name != hidden);
        let some = seen(watch(None, Some(visible)), kind, pieces).await.expect("read");
        assert_eq!(String::from_utf8_lossy(&some), expected, "round {round}");
    }
}

/// Events go on as soon as they are whole: a client that waits for one must not wait for the next.
#[tokio::test]
async fn an_event_does_not_wait_for_the_next_one() {
    for end in ["\n", "\r\n", "\r"] {
        let event = Bytes::from(format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"m\"}}{end}{end}"));
        let first = futures_util::stream::iter([Ok::<_, BodyError>(Frame::data(event.clone()))]);
        let mut response = answer("text/event-stream", vec![]);
        *response.body_mut() =
            http_body_util::BodyExt::boxed(StreamBody::new(first.chain(futures_util::stream::pending())));
        let mut body = watch(Some(route_pins()), None).look(response).await.expect("a stream").into_body();
        let frame = tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("at once");
        assert_eq!(frame.expect("a frame").expect("a frame").into_data().expect("data"), event, "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stops_is_not_waited_for_and_gives_its_memory_back() {
    let first = futures_util::stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"{")))]);
    let mut response = answer("application/json", vec![]);
    *response.body_mut() =
        http_body_util::BodyExt::boxed(StreamBody::new(first.chain(futures_util::stream::pending())));
    let error = watch(Some(route_pins()), None).look(response).await.expect_err("refused");
    assert_eq!((error.hop, error.status), (Hop::Upstream, StatusCode::GATEWAY_TIMEOUT));
}

#[tokio::test]
async fn an_event_without_an_end_is_bounded() {
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let pieces = std::iter::once(Bytes::from_static(b"data: ")).chain(std::iter::repeat_n(piece, 20)).collect();
    let body = watch(Some(route_pins()), None).look(answer("text/event-stream", pieces)).await.expect("a stream");
    let error = body.into_body().collect().await.expect_err("too large");
    assert!(error.to_string().contains("larger than"), "{error}");
}
