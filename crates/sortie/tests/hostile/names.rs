//! One connection, one name: what TLS was opened for is all that HTTP on it may ask for.

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::HOST;
use http::{Request, StatusCode};

use crate::common::{SOON, World, routes};
use crate::recorder::Recorder;
use crate::support::{Field, say};

/// A well-behaved HTTP/2 client on a TLS connection for this name.
async fn http2(field: &Field, sni: &str, tasks: &mut tokio::task::JoinSet<()>) -> SendRequest<Bytes> {
    let stream = field.edge(sni, b"h2").await;
    let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tasks.spawn(async move { drop(connection.await) });
    requests
}

async fn ask(requests: &mut SendRequest<Bytes>, uri: &str, key: &str) -> (StatusCode, String) {
    let request = Request::get(uri).header("x-api-key", key).body(()).expect("request");
    let ready = requests.clone().ready().await.expect("ready");
    *requests = ready;
    let (response, _) = requests.send_request(request, true).expect("sent");
    let asked = async {
        let response = response.await.expect("answer");
        let hop = response.headers().get("sortie-hop").map(|hop| hop.to_str().expect("hop").to_owned());
        let status = response.status();
        let mut body = response.into_body();
        while let Some(Ok(chunk)) = body.data().await {
            let _ = body.flow_control().release_capacity(chunk.len());
        }
        (status, hop.unwrap_or_default())
    };
    tokio::time::timeout(SOON, asked).await.expect("in time")
}

/// A second tunnel of the same hub, with a strict upstream of its own.
async fn second(world: &World) -> (crate::common::Tunnel, crate::common::GatewayProcess, Recorder) {
    let recorder = Recorder::start().await;
    let tunnel = world.tunnel("second").await;
    let config = routes(&[("up", &format!("http://{}", recorder.addr))]);
    let gateway = world.gateway(&tunnel.dir, &config, &[]).await;
    (tunnel, gateway, recorder)
}

#[tokio::test]
async fn a_connection_for_one_tunnel_carries_nothing_for_another() {
    let field = Field::start().await;
    let (other, _gateway, others) = second(&field.world).await;
    let (own, foreign) = (field.host("up"), format!("up.{}", other.domain));
    let mut tasks = tokio::task::JoinSet::new();
    let mut requests = http2(&field, &own, &mut tasks).await;
    let key = field.world.api_key.clone();
    assert_eq!(ask(&mut requests, &format!("https://{own}/mine"), &key).await.0, 200);
    for host in [
        foreign.clone(),
        format!("{foreign}."),
        foreign.to_uppercase(),
        format!("{foreign}:443"),
        field.host("echo"),
        format!("up--{}.sortie.localhost", field.tunnel.label),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "[::1]".to_owned(),
    ] {
        let (status, hop) = ask(&mut requests, &format!("https://{host}/theirs"), &key).await;
        assert_eq!((status.as_u16(), hop.as_str()), (421, "edge"), "{host}");
    }
    // The same name in other clothes, and the connection is still good.
    for host in [own.to_uppercase(), format!("{own}."), format!("{own}:{}", field.edge_addr().port())] {
        assert_eq!(ask(&mut requests, &format!("https://{host}/mine"), &key).await.0, 200, "{host}");
    }
    // :authority is right and Host is not, so that whoever looks at the other one is led astray.
    let request = Request::get(format!("https://{own}/x")).header("x-api-key", &key).header(HOST, &foreign);
    let (response, _) = requests.send_request(request.body(()).expect("request"), true).expect("sent");
    assert_eq!(response.await.expect("answer").status(), 400);
    assert_eq!(others.bytes(), 0, "nothing reached the other tunnel");
    assert_eq!(field.recorder.requests().len(), 4);

    // The hyphen form is covered by one certificate for every tunnel: a name for coalescing if there ever was one.
    let [own, foreign] = [&field.tunnel, &other].map(|tunnel| format!("up--{}.sortie.localhost", tunnel.label));
    let mut requests = http2(&field, &own, &mut tasks).await;
    assert_eq!(ask(&mut requests, &format!("https://{own}/mine"), &key).await.0, 200);
    let (status, hop) = ask(&mut requests, &format!("https://{foreign}/theirs"), &key).await;
    assert_eq!((status.as_u16(), hop.as_str()), (421, "edge"));
    assert_eq!(others.bytes(), 0);
}

#[tokio::test]
async fn no_name_or_an_odd_one_opens_no_route() {
    let field = Field::start().await;
    let key = &field.world.api_key;
    // Without SNI: an address cannot be one.
    for host in [field.host("up"), "127.0.0.1".to_owned(), "localhost".to_owned()] {
        let mut wire = field.edge("127.0.0.1", b"http/1.1").await;
        let request = format!("GET /x HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n");
        let said = say(&mut wire, request.as_bytes()).await;
        assert_eq!(said.statuses(), [421], "{host}: {}", said.text());
    }
    let mut wire = field.edge("127.0.0.1", b"http/1.1").await;
    let said = say(&mut wire, b"GET /x HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n").await;
    assert_eq!(said.statuses(), [502], "no name at all is no route: {}", said.text());
    // Names under the base domain that are no route, and one far away: TLS may be refused, a route is never found.
    for sni in ["sortie.localhost", "a.b.c.sortie.localhost", "xn--up-9ja.abcd1234.sortie.localhost", "evil.example"] {
        let tcp = tokio::net::TcpStream::connect(field.edge_addr()).await.expect("edge");
        let Ok(mut wire) = field.tls(tcp, sni, b"http/1.1").await else { continue };
        let request = format!("GET /x HTTP/1.1\r\nhost: {sni}\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n");
        let said = say(&mut wire, request.as_bytes()).await;
        assert_eq!(said.statuses(), [502], "{sni}: {}", said.text());
        assert!(said.text().contains("No route configured for host"), "{sni}: {}", said.text());
    }
    assert_eq!(field.recorder.bytes(), 0);
    field.others_are_served("names").await;
}
