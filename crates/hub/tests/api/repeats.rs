//! Requests that come twice: with an idempotency key, and as further attempts of an SDK.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::http::Method;
use serde_json::{Value, json};
use sortie_api::Limits;
use tokio::task::JoinSet;

use crate::fixture::{Answer, Hub, pem};

async fn post(hub: &Hub, path: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
    let key = [("x-api-key", hub.manage.as_str())];
    let headers: Vec<_> = key.iter().chain(headers).copied().collect();
    hub.send_with(Method::POST, path, body, &headers).await
}

async fn tunnels(hub: &Hub) -> usize {
    hub.get("/v1/tunnels").await.data().len()
}

#[tokio::test]
async fn the_same_key_and_body_get_the_first_answer_again() {
    let hub = Hub::new().await;
    let tunnel = hub.post("/v1/tunnels", json!({})).await;
    let certificates = format!("/v1/tunnels/{}/certificates", tunnel.text("/id"));
    for (path, body, other) in [
        ("/v1/tunnels", json!({"display_name": "a"}), json!({"display_name": "b"})),
        (&certificates, json!({"ca_certificate_pem": pem("a")}), json!({"ca_certificate_pem": pem("b")})),
        ("/v1/sortie/keys", json!({"kind": "manage", "name": "a"}), json!({"kind": "manage", "name": "b"})),
        ("/v1/sortie/workspaces", json!({"name": "a"}), json!({"name": "b"})),
    ] {
        let header = [("idempotency-key", path)];
        let first = post(&hub, path, body.clone(), &header).await;
        assert_eq!((first.status.as_u16(), first.header("idempotent-replayed")), (200, None), "{path}: {}", first.body);
        let again = post(&hub, path, body.clone(), &header).await;
        assert_eq!((again.status.as_u16(), &again.body), (200, &first.body), "{path}");
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        assert_eq!(again.header("cache-control"), Some("no-store"));
        assert_ne!(again.header("request-id"), first.header("request-id"));
        let conflict = post(&hub, path, other.clone(), &header).await;
        assert_eq!((conflict.error().0, conflict.error().1), (409, "conflict_error"), "{path}");
        assert_eq!(conflict.header("x-should-retry"), Some("false"));
        assert_ne!(
            post(&hub, path, other, &[]).await.body["id"],
            first.body["id"],
            "without the key it is a new request"
        );
    }
    assert_eq!(tunnels(&hub).await, 3);
}

#[tokio::test]
async fn an_idempotency_key_is_one_short_visible_text() {
    let hub = Hub::new().await;
    let long = "x".repeat(256);
    let twice = [("idempotency-key", "a"), ("idempotency-key", "a")];
    for headers in
        [&[("idempotency-key", "")][..], &[("idempotency-key", "a b")], &[("idempotency-key", &long)], &twice]
    {
        let refused = post(&hub, "/v1/tunnels", json!({}), headers).await;
        assert_eq!(refused.error().0, 400, "{headers:?}");
        assert!(refused.error().2.starts_with("idempotency-key: "));
    }
    assert_eq!(tunnels(&hub).await, 0);
    let most = "x".repeat(255);
    assert_eq!(post(&hub, "/v1/tunnels", json!({}), &[("idempotency-key", &most)]).await.status, 200);
}

#[tokio::test]
async fn simultaneous_repetitions_make_one_tunnel() {
    let hub = Arc::new(Hub::new().await);
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let hub = Arc::clone(&hub);
        tasks.spawn(async move { post(&hub, "/v1/tunnels", json!({}), &[("idempotency-key", "one")]).await.body });
    }
    let ids: BTreeSet<String> = tasks.join_all().await.iter().map(|body| body["id"].to_string()).collect();
    assert_eq!((ids.len(), tunnels(&hub).await), (1, 1));
}

#[tokio::test]
async fn a_further_attempt_gets_the_tunnel_of_the_first() {
    let hub = Hub::with_limits(Limits { tunnels_per_organization: 2, ..Limits::default() }).await;
    let attempt = async |count: &str| post(&hub, "/v1/tunnels", json!({}), &[("x-stainless-retry-count", count)]).await;
    let first = attempt("0").await;
    let second = attempt("0").await;
    assert_ne!(first.body["id"], second.body["id"], "first attempts are requests of their own");
    let again = attempt("1").await;
    assert_eq!(again.body, second.body, "also at the limit");
    assert_eq!((again.status.as_u16(), again.header("idempotent-replayed")), (200, Some("true")));
    // Whoever names a tunnel got its answer.
    hub.get(&format!("/v1/tunnels/{}", first.text("/id"))).await;
    hub.post(&format!("/v1/tunnels/{}/reveal_token", second.text("/id")), Value::Null).await;
    for count in ["1", "2", "nonsense", "-1"] {
        assert_eq!(attempt(count).await.error().0, 400, "{count}: neither is left, and the limit is reached");
    }
    assert_eq!(tunnels(&hub).await, 2);
}
