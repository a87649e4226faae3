//! Sealed routes: the client's certificate is its identity, and the kind of a stream buys nothing.

use std::time::Duration;

use http::Request;
use sortie_link::protos::Kind;
use sortie_runtime::TaskSet;
use sortie_tls::Authority;

use crate::support::*;

const SEALED: &str = "vault.abcd1234.sortie.localhost";

fn get(host: &str) -> Request<TestBody> {
    Request::builder().uri("/mcp").header("host", host).body(full("")).expect("request")
}

#[tokio::test]
async fn each_proof_opens_its_own_routes_only() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let (clients, strangers) = (
        Authority::generate("Clients", 30).expect("authority"),
        Authority::generate("Strangers", 30).expect("authority"),
    );
    let config = format!(
        "{}[routes.vault]\nupstream = \"http://{}\"\nmode = \"sealed\"\nclient_ca_file = \"clients.pem\"\n",
        upstream.config(),
        upstream.addr
    );
    let pem = clients.cert_pem().to_owned();
    let world = World::start_with(&tasks, &config, Default::default(), |dir| {
        let file = dir.path(sortie_tls::SetupFile::TunnelId).with_file_name("clients.pem");
        std::fs::write(file, pem).expect("write");
    })
    .await;
    let (caller, link) = (&world.caller, world.link().await);
    let day = Duration::from_secs(86_400);
    let known = caller.sealed_config(&clients.issue_client("agent-1", day).expect("client"));
    let stranger = caller.sealed_config(&strangers.issue_client("agent-1", day).expect("client"));

    // A client of the route's CA gets through without any word of the hub, and none of its own counts.
    let stream = caller.tls_with(known.clone(), &link, Kind::Sealed, SEALED).await.expect("tls");
    let mut request = get(SEALED);
    request.headers_mut().insert("sortie-request-id", "req_forged".parse().expect("value"));
    let response = soon(caller.send(stream, request)).await.expect("response");
    assert_eq!(text(response).await, "ok");
    assert_ne!(upstream.seen.lock().expect("lock")[0].headers["sortie-request-id"], "req_forged");

    // ... and only to the host of its connection.
    let stream = caller.tls_with(known.clone(), &link, Kind::Sealed, SEALED).await.expect("tls");
    let mut request = get(HOST);
    request.headers_mut().insert("sortie-identity", caller.token(HOST).parse().expect("value"));
    let (status, hop, _) = refusal(soon(caller.send(stream, request)).await.expect("response")).await;
    assert_eq!((status, hop.as_str()), (421, "route"));

    // Without a certificate, or with a stranger's, nothing is served. In TLS 1.3 the refusal follows the handshake.
    for config in [sortie_tls::inner_client_config(std::slice::from_ref(&caller.ca), &[b"http/1.1"]), stranger] {
        if let Ok(stream) = caller.tls_with(config, &link, Kind::Sealed, SEALED).await {
            assert!(soon(caller.send(stream, get(SEALED))).await.is_err());
        }
    }
    // A sealed stream to a terminated route has no TLS to speak.
    assert!(soon(caller.tls_with(known, &link, Kind::Sealed, HOST)).await.is_err());

    // A hub's stream does not reach the sealed route, not even with the hub's word for it.
    for sni in [HOST, SEALED] {
        let stream = caller.tls(&link, Kind::Hub, sni, b"http/1.1").await.expect("tls");
        let mut request = get(SEALED);
        request.headers_mut().insert("sortie-identity", caller.token(SEALED).parse().expect("value"));
        let (status, hop, _) = refusal(soon(caller.send(stream, request)).await.expect("response")).await;
        assert_eq!((status, hop.as_str()), (502, "route"));
    }
    assert_eq!(upstream.count(), 1);
}
