//! Both ends of a link over an in-memory connection.

use std::time::Duration;

use bytes::Bytes;
use sortie_ids::LinkId;
use sortie_link::protos::{EdgeHello, FromEdge, FromGateway, GatewayHello, Kind, Route, RouteMode, VERSION};
use sortie_link::{
    AcceptError, EdgeLink, EstablishError, Event, GatewayLink, LinkStream, MAX_STREAMS, OpenError, Welcome,
};
use sortie_runtime::TaskSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

fn edge_hello() -> EdgeHello {
    EdgeHello { version: VERSION, features: vec![], edge_instance: "edge".into(), link_id: LinkId::random() }
}

fn gateway_hello() -> GatewayHello {
    GatewayHello {
        version: VERSION,
        features: vec![],
        token: "good".into(),
        gateway_instance: "gateway".into(),
        software: "test".into(),
        routes: vec![Route { name: "files".parse().expect("name"), mode: RouteMode::Sealed }],
    }
}

struct Pair {
    edge: EdgeLink,
    said: mpsc::Receiver<FromGateway>,
    gateway: GatewayLink,
    tasks: TaskSet,
}

async fn admit(hello: GatewayHello) -> Result<Welcome, (String, bool)> {
    if hello.token == "good" {
        Ok(Welcome { domain: "abcd.test".into(), identity_keys: vec!["a.b.c".into()] })
    } else {
        Err(("the token was rotated".into(), false))
    }
}

async fn pair_over(near: DuplexStream, far: DuplexStream) -> Pair {
    let tasks = TaskSet::new();
    let (hello, answer) = (edge_hello(), gateway_hello());
    let (edge, gateway) =
        tokio::join!(sortie_link::accept(near, &hello, &tasks, admit), sortie_link::establish(far, &answer, &tasks));
    let (edge, said) = edge.expect("accepted");
    Pair { edge, said, gateway: gateway.expect("established"), tasks }
}

async fn pair() -> Pair {
    let (near, far) = duplex(1 << 20);
    pair_over(near, far).await
}

async fn call(gateway: &mut GatewayLink) -> sortie_link::Call {
    loop {
        match gateway.next().await.expect("the link lives") {
            Event::Call(call) => return call,
            Event::Message(_) => {}
        }
    }
}

async fn both(pair: &mut Pair, host: &str) -> (LinkStream, LinkStream) {
    let near = pair.edge.open(Kind::Hub, host).await.expect("opened");
    let call = call(&mut pair.gateway).await;
    assert_eq!((call.kind, call.host.as_str()), (Kind::Hub, host));
    (near, call.stream)
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways() {
    let mut pair = pair().await;
    assert_eq!(pair.gateway.domain(), "abcd.test");
    assert_eq!(pair.edge.route_mode(&"files".parse().expect("name")), Some(RouteMode::Sealed));
    let (mut near, mut far) = both(&mut pair, "files.abcd.test").await;
    near.write_all(b"ping").await.expect("written");
    near.shutdown().await.expect("ended");
    let mut text = String::new();
    far.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "ping");
    far.write_all(b"pong").await.expect("written");
    far.shutdown().await.expect("ended");
    text.clear();
    near.read_to_string(&mut text).await.expect("read");
    assert_eq!(text, "pong");
}

#[tokio::test]
async fn a_refused_token_is_told_why() {
    let tasks = TaskSet::new();
    let (near, far) = duplex(1 << 16);
    let answer = GatewayHello { token: "stale".into(), ..gateway_hello() };
    let hello = edge_hello();
    let (edge, gateway) =
        tokio::join!(sortie_link::accept(near, &hello, &tasks, admit), sortie_link::establish(far, &answer, &tasks));
    assert!(edge.is_err());
    let Err(EstablishError::Refused { reason, retry }) = gateway else { panic!("refused") };
    assert_eq!((reason.as_str(), retry), ("the token was rotated", false));
}

#[tokio::test]
async fn a_dropped_stream_reaches_the_far_end() {
    let mut pair = pair().await;
    let (near, mut far) = both(&mut pair, "a.abcd.test").await;
    drop(near);
    let error = far.read_u8().await.expect_err("reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_slow_reader_is_held_back_and_holds_up_nobody() {
    let mut pair = pair().await;
    let mut stuck = Vec::new();
    for _ in 0..8 {
        let (mut near, far) = both(&mut pair, "slow.abcd.test").await;
        let writing = async { while near.write_all(&[0; 16384]).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(200), writing).await.is_err(), "the writer waits");
        stuck.push((near, far));
    }
    let (mut near, mut far) = both(&mut pair, "fast.abcd.test").await;
    near.write_all(b"through").await.expect("written");
    let mut bytes = [0; 7];
    tokio::time::timeout(Duration::from_secs(2), far.read_exact(&mut bytes)).await.expect("in time").expect("read");
    assert_eq!(&bytes, b"through");
}

#[tokio::test]
async fn a_crowd_that_comes_in_one_piece_is_taken_to_the_last() {
    const CROWD: usize = 1000;
    let mut pair = pair().await;
    let mut near = Vec::new();
    for number in 0..CROWD {
        let mut stream = pair.edge.open(Kind::Hub, &format!("r{number}.abcd.test")).await.expect("opened");
        stream.write_all(b"x").await.expect("written");
        near.push(stream);
    }
    // Time enough for all to arrive before the first is taken.
    for _ in 0..10 * CROWD {
        tokio::task::yield_now().await;
    }
    let taking = async {
        for number in 0..CROWD {
            let mut taken = call(&mut pair.gateway).await;
            assert_eq!(taken.stream.read_u8().await.unwrap_or_else(|error| panic!("{number}: {error}")), b'x');
        }
    };
    tokio::time::timeout(Duration::from_secs(20), taking).await.expect("in time");
}

#[tokio::test]
async fn messages_pass_and_routes_are_kept() {
    let mut pair = pair().await;
    assert!(pair.edge.tell(FromEdge::Draining));
    let Some(Event::Message(FromEdge::Draining)) = pair.gateway.next().await else { panic!("draining") };
    let routes = vec![Route { name: "new".parse().expect("name"), mode: RouteMode::Terminated }];
    assert!(pair.gateway.teller().tell(FromGateway::Routes { routes: routes.clone() }));
    assert_eq!(pair.said.recv().await, Some(FromGateway::Routes { routes: routes.clone() }));
    assert_eq!(*pair.edge.routes(), routes);
}

#[tokio::test]
async fn after_a_drain_streams_go_on_and_none_begin() {
    let mut pair = pair().await;
    let (mut near, mut far) = both(&mut pair, "a.abcd.test").await;
    pair.gateway.drain();
    let refused = async {
        loop {
            match pair.edge.open(Kind::Hub, "b.abcd.test").await {
                Err(OpenError::Ended) => return,
                Err(other) => panic!("{other}"),
                Ok(stream) => {
                    drop(stream);
                    tokio::task::yield_now().await;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("in time");
    near.write_all(b"x").await.expect("written");
    assert_eq!(far.read_u8().await.expect("read"), b'x');
    drop((near, far));
    while pair.gateway.next().await.is_some() {}
    assert!(pair.tasks.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_within_five_seconds_on_both_sides() {
    // Two connections joined by a task that stops copying: the sockets stay open and nothing moves.
    let (near, mut near_far) = duplex(1 << 20);
    let (mut far_near, far) = duplex(1 << 20);
    let frozen = TaskSet::new();
    let copying = frozen.clone();
    frozen.spawn("relay", async move {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near_far, &mut far_near) => {}
            () = copying.stopping() => std::future::pending::<()>().await,
        }
    });
    let mut pair = pair_over(near, far).await;
    let mut stream = pair.edge.open(Kind::Hub, "a.abcd.test").await.expect("opened");
    frozen.stop();
    let began = tokio::time::Instant::now();
    tokio::join!(pair.edge.closed(), async { while pair.gateway.next().await.is_some() {} });
    assert!(began.elapsed() <= Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(stream.read_u8().await.is_err(), "a call in flight fails");
    assert!(matches!(pair.edge.open(Kind::Hub, "a.abcd.test").await, Err(OpenError::Ended)));
}

/// A gateway that says `hello`, whatever it is, and then takes what comes without reading it.
async fn rude_gateway(far: DuplexStream, hello: String) {
    let mut settings = h2::server::Builder::new();
    settings.initial_window_size(1024);
    let mut connection = settings.handshake::<_, Bytes>(far).await.expect("HTTP/2");
    let (request, mut respond) = connection.accept().await.expect("control").expect("stream");
    let mut send = respond.send_response(http::Response::new(()), false).expect("answer");
    send.send_data(format!("{hello}\n").into(), false).expect("hello");
    let mut held = vec![(request, respond)];
    while let Some(Ok(stream)) = connection.accept().await {
        held.push(stream);
    }
}

#[tokio::test]
async fn what_a_stranger_says_is_told_in_one_short_line() {
    let long = "x\\n".repeat(10_000);
    for hello in [
        r#"{"version":1,"token":"t","gateway_instance":"g","routes":[{"name":"a\nINFO link up","mode":"sealed"}]}"#
            .into(),
        format!(r#"{{"version":1,"token":"t","gateway_instance":"g","routes":[{{"name":"a","mode":"{long}"}}]}}"#),
    ] {
        let tasks = TaskSet::new();
        let (near, far) = duplex(1 << 20);
        tasks.spawn("rude", rude_gateway(far, hello));
        let refused = sortie_link::accept(near, &edge_hello(), &tasks, admit).await.expect_err("refused");
        let text = refused.to_string();
        assert!(matches!(refused, AcceptError::Hello(_)), "{text:?}");
        assert!(!text.contains(char::is_control) && text.len() < 400, "{text:?}");
        tasks.abort();
    }
}

#[tokio::test]
async fn a_gateway_that_does_not_read_is_not_written_to_without_end() {
    let tasks = TaskSet::new();
    let (near, far) = duplex(1 << 20);
    let hello = serde_json::to_string(&gateway_hello()).expect("json");
    tasks.spawn("rude", rude_gateway(far, hello));
    let (edge, _said) = sortie_link::accept(near, &edge_hello(), &tasks, admit).await.expect("accepted");
    let mut taken = 0;
    while edge.tell(FromEdge::ProbeResult { id: taken, failure: None }) {
        taken += 1;
        assert!(taken < 1000, "all of it waits in memory");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tasks.abort();
}

#[tokio::test]
async fn a_full_link_says_so_and_takes_more_when_there_is_room() {
    let mut pair = pair().await;
    let mut open = Vec::new();
    // One stream is the control stream.
    for _ in 1..MAX_STREAMS {
        open.push(both(&mut pair, "a.abcd.test").await);
    }
    let full = tokio::time::timeout(Duration::from_secs(5), pair.edge.open(Kind::Hub, "a.abcd.test")).await;
    assert!(matches!(full, Ok(Err(OpenError::Full))), "{full:?}");
    open.pop();
    both(&mut pair, "a.abcd.test").await;
}
