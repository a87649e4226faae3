//! The HTTP API, request by request.

use crate::fixture::{Hub, pem};
use axum::http::Method;
use serde_json::{Value, json};
use sortie_api::Limits;

async fn tunnel(hub: &Hub) -> String {
    let made = hub.post("/v1/tunnels", json!({})).await;
    assert_eq!(made.status, 200, "{}", made.body);
    made.text("/id").to_owned()
}

#[tokio::test]
async fn a_tunnel_from_creation_to_archive() {
    let hub = Hub::new().await;
    let made = hub.post("/v1/tunnels?beta=true", json!({"display_name": "build farm"})).await;
    assert_eq!(made.status, 200);
    assert_eq!(made.body["type"], "tunnel");
    assert_eq!(made.body["display_name"], "build farm");
    assert_eq!(made.body["archived_at"], Value::Null);
    assert!(made.body["domain"].as_str().expect("domain").ends_with(".sortie.localhost"));
    assert!(made.header("request-id").expect("request id").starts_with("req_"));
    assert!(made.header("anthropic-organization-id").expect("organization").starts_with("org_"));
    let workspace = hub.store.default_workspace().as_str();
    assert_eq!(made.header("anthropic-workspace-id"), Some(workspace));
    let path = format!("/v1/tunnels/{}", made.body["id"].as_str().expect("id"));
    assert_eq!(hub.get(&path).await.body, made.body);

    let shown = hub.post(&format!("{path}/reveal_token"), Value::Null).await;
    assert_eq!(shown.header("cache-control"), Some("no-store"));
    assert_eq!(shown.body["type"], "tunnel_token");
    assert!(shown.body["tunnel_token"].as_str().expect("token").starts_with("eyJ"));
    let rotated = hub.post(&format!("{path}/rotate_token"), json!({"reason": "monthly"})).await;
    assert_eq!(rotated.header("cache-control"), Some("no-store"));
    assert_ne!(rotated.body["id"], shown.body["id"]);
    assert_eq!(hub.post(&format!("{path}/reveal_token"), Value::Null).await.body, rotated.body);
    assert_eq!(hub.post(&format!("{path}/rotate_token"), Value::Null).await.status, 200, "a reason is optional");
    let long = hub.post(&format!("{path}/rotate_token"), json!({"reason": "x".repeat(1001)})).await;
    assert_eq!(long.error().0, 400);

    let archived = hub.post(&format!("{path}/archive"), Value::Null).await;
    assert_eq!(archived.status, 200);
    assert!(archived.body["archived_at"].as_str().expect("time").ends_with('Z'));
    assert_eq!(hub.post(&format!("{path}/archive"), Value::Null).await.body, archived.body);
    let late = hub.post(&format!("{path}/reveal_token"), Value::Null).await;
    assert_eq!(late.error(), (409, "conflict_error", "The tunnel is archived, and that is final."));
    assert_eq!(late.header("x-should-retry"), Some("false"));
}

#[tokio::test]
async fn certificates_of_a_tunnel() {
    let hub = Hub::new().await;
    let path = format!("/v1/tunnels/{}/certificates", tunnel(&hub).await);
    let add = async |name: &str| hub.post(&path, json!({"ca_certificate_pem": pem(name)})).await;
    let first = add("first").await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!(first.body["type"], "tunnel_certificate");
    assert_eq!(first.body["fingerprint"], sortie_ids::Digest::of(b"first").to_string());
    assert_eq!(first.body["expires_at"], "2040-01-01T00:00:00Z");
    assert_eq!(add("first").await.body, first.body, "a repetition answers the same record");
    let second = add("second").await;
    let full = add("third").await;
    assert_eq!(full.error().0, 400);
    assert_eq!(full.header("x-should-retry"), Some("false"));

    let listed = hub.get(&format!("{path}?limit=1")).await.body;
    assert_eq!(listed["data"], json!([second.body]));
    let cursor = listed["next_page"].as_str().expect("more");
    let listed = hub.get(&format!("{path}?limit=1&page={cursor}")).await.body;
    assert_eq!(listed, json!({"data": [first.body], "next_page": null}));
    assert_eq!(hub.get(&format!("/v1/tunnels?page={cursor}")).await.error().0, 400, "a cursor of another list");

    let one = format!("{path}/{}", first.body["id"].as_str().expect("id"));
    assert_eq!(hub.get(&one).await.body, first.body);
    let archived = hub.post(&format!("{one}/archive"), Value::Null).await;
    assert!(archived.body["archived_at"].is_string());
    assert_eq!(hub.get(&path).await.body["data"], json!([second.body]));
    let all = hub.get(&format!("{path}?include_archived=true")).await.body;
    assert_eq!(all["data"], json!([second.body, archived.body]));

    for bad in ["", "no pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"] {
        let refused = hub.post(&path, json!({"ca_certificate_pem": bad})).await;
        let (status, kind, message) = refused.error();
        assert_eq!((status, kind), (400, "invalid_request_error"));
        assert!(message.starts_with("ca_certificate_pem: "), "{message}");
    }
    let large = hub.post(&path, json!({"ca_certificate_pem": "x".repeat(8193)})).await;
    assert_eq!(large.error().2, "ca_certificate_pem: 8193 bytes, at most 8192");
    let missing = hub.post(&path, json!({})).await;
    assert!(missing.error().2.contains("missing field `ca_certificate_pem`"));
}

#[tokio::test]
async fn lists_of_tunnels_in_pages() {
    let hub = Hub::new().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, tunnel(&hub).await);
    }
    let (mut seen, mut path, mut pages) = (Vec::new(), "/v1/tunnels?limit=2".to_owned(), 0);
    loop {
        let page = hub.get(&path).await.body;
        seen.extend(page["data"].as_array().expect("data").iter().map(|t| t["id"].as_str().expect("id").to_owned()));
        pages += 1;
        let Some(next) = page["next_page"].as_str() else { break };
        path = format!("/v1/tunnels?limit=2&page={next}");
    }
    assert_eq!((&seen, pages), (&made, 3));
    // What happens between two pages moves nothing over their border.
    let page = hub.get("/v1/tunnels?limit=2").await.body;
    assert_eq!((page["data"][0]["id"].as_str(), page["data"][1]["id"].as_str()), (Some(&*made[0]), Some(&*made[1])));
    hub.post(&format!("/v1/tunnels/{}/archive", made[1]), Value::Null).await;
    hub.post(&format!("/v1/tunnels/{}/archive", tunnel(&hub).await), Value::Null).await;
    tunnel(&hub).await;
    let next = page["next_page"].as_str().expect("more");
    let page = hub.get(&format!("/v1/tunnels?limit=2&page={next}")).await.body;
    assert_eq!((page["data"][0]["id"].as_str(), page["data"][1]["id"].as_str()), (Some(&*made[2]), Some(&*made[3])));
    let all = hub.get("/v1/tunnels?include_archived=true&limit=1000&beta=true").await.body;
    assert_eq!(all["data"].as_array().map(Vec::len), Some(8));
    for bad in ["limit=0", "limit=1001", "limit=-1", "limit=x", "page=page_x", "page=", "include_archived=maybe"] {
        let refused = hub.get(&format!("/v1/tunnels?{bad}")).await;
        assert_eq!(refused.error().0, 400, "{bad}");
    }
}

#[tokio::test]
async fn the_limit_of_tunnels_says_so_in_the_known_words() {
    let hub = Hub::new().await;
    for _ in 0..10 {
        tunnel(&hub).await;
    }
    let full = hub.post("/v1/tunnels", json!({})).await;
    let sentence = "Organization already has the maximum of 10 non-archived Tunnels";
    assert_eq!(full.error(), (400, "invalid_request_error", sentence));
    assert_eq!(full.header("x-should-retry"), Some("false"));
    let hub = Hub::with_limits(Limits { tunnels_per_organization: 1, ..Limits::default() }).await;
    tunnel(&hub).await;
    assert_eq!(hub.post("/v1/tunnels", json!({})).await.error().0, 400);
}

#[tokio::test]
async fn nobody_without_a_manage_key_gets_anywhere() {
    let hub = Hub::new().await;
    let (tunnel, manage) = (tunnel(&hub).await, hub.manage.as_str());
    let certificates = format!("/v1/tunnels/{tunnel}/certificates");
    let added = hub.post(&certificates, json!({"ca_certificate_pem": pem("a")})).await.body;
    let certificate = format!("{certificates}/{}", added["id"].as_str().expect("id"));
    let endpoints = [
        (Method::POST, "/v1/tunnels".to_owned()),
        (Method::GET, "/v1/tunnels".to_owned()),
        (Method::GET, format!("/v1/tunnels/{tunnel}")),
        (Method::POST, format!("/v1/tunnels/{tunnel}/reveal_token")),
        (Method::POST, format!("/v1/tunnels/{tunnel}/rotate_token")),
        (Method::POST, certificates.clone()),
        (Method::GET, certificates),
        (Method::GET, certificate.clone()),
        (Method::POST, format!("{certificate}/archive")),
        (Method::POST, format!("/v1/tunnels/{tunnel}/archive")),
        (Method::POST, "/v1/sortie/keys".to_owned()),
        (Method::GET, "/v1/sortie/keys".to_owned()),
        (Method::GET, format!("/v1/sortie/keys/{}", hub.manage_id)),
        (Method::POST, format!("/v1/sortie/keys/{}/archive", hub.manage_id)),
        (Method::GET, "/v1/sortie/discovery".to_owned()),
    ];
    let bearer = format!("Bearer {manage}");
    for (method, path) in endpoints {
        let send = async |headers: &[(&str, &str)]| hub.send_with(method.clone(), &path, Value::Null, headers).await;
        assert_eq!(send(&[]).await.error().1, "authentication_error", "{method} {path}");
        assert_eq!(send(&[("x-api-key", "guess")]).await.error().0, 401, "{method} {path}");
        let denied = send(&[("x-api-key", &hub.usage)]).await;
        assert_eq!((denied.error().0, denied.error().1), (403, "permission_error"), "{method} {path}");
        let elsewhere = send(&[("x-api-key", manage), ("anthropic-workspace-id", "wrkspc_other")]).await;
        assert_eq!(elsewhere.error().0, 403, "{method} {path}");
        let old = send(&[("authorization", &bearer), ("anthropic-version", "2020-01-01")]).await;
        assert_eq!(old.error().0, 400, "{method} {path}");
        assert!(old.error().2.contains("2023-06-01") && old.error().2.contains("2026-10-21"));
    }
    let state = hub.get(&format!("/v1/tunnels/{tunnel}")).await.body;
    assert_eq!(state["archived_at"], Value::Null, "none of it had an effect");
}

#[tokio::test]
async fn headers_of_clients_in_use_are_accepted() {
    let hub = Hub::new().await;
    let (workspace, bearer) = (hub.store.default_workspace().as_str(), format!("Bearer {}", hub.manage));
    for headers in [
        vec![],
        vec![("anthropic-version", "2023-06-01"), ("anthropic-beta", "mcp-tunnels-2026-06-22")],
        vec![("anthropic-version", "2026-10-21"), ("anthropic-beta", "oauth-2025-04-20,mcp-tunnels-2026-06-22")],
        vec![("anthropic-beta", "skills-2025-10-02, mcp-tunnels-2026-05-19"), ("anthropic-workspace-id", workspace)],
        vec![("anthropic-beta", "oauth-2025-04-20"), ("anthropic-beta", "mcp-tunnels-2026-06-22")],
    ] {
        let headers: Vec<_> = headers.into_iter().chain([("authorization", bearer.as_str())]).collect();
        let answer = hub.send_with(Method::GET, "/v1/tunnels", Value::Null, &headers).await;
        assert_eq!(answer.status, 200, "{headers:?}");
    }
    for beta in ["", "mcp-tunnels-2026-06-22,,", "mcp-tunnels-2026-06-22 x", "mcp-tunnels-2099-01-01"] {
        let headers = [("x-api-key", hub.manage.as_str()), ("anthropic-beta", beta)];
        let answer = hub.send_with(Method::GET, "/v1/tunnels", Value::Null, &headers).await;
        assert_eq!((answer.error().0, answer.error().1), (400, "invalid_request_error"), "{beta:?}");
        assert!(answer.error().2.contains("`anthropic-beta`"), "{}", answer.error().2);
    }
}

#[tokio::test]
async fn wrong_requests_are_named() {
    let hub = Hub::new().await;
    for body in
        ["{", "[]", "[\"name\"]", "\"text\"", "null", "{\"display_name\": 1}", "{\"displayname\": \"x\"}", "\u{0}"]
    {
        let refused = hub.post("/v1/tunnels", Value::String(body.to_owned())).await;
        assert_eq!(refused.error().1, "invalid_request_error", "{body}");
        assert_eq!(refused.status, 400, "{body}");
    }
    let twice = Value::String(r#"{"display_name": "a", "display_name": "b"}"#.to_owned());
    assert!(hub.post("/v1/tunnels", twice).await.error().2.contains("duplicate field"));
    let empty = hub.post("/v1/tunnels", json!({"display_name": ""})).await;
    assert!(empty.error().2.contains("1 to 255 characters"), "{}", empty.body);
    let unknown = hub.post("/v1/tunnels", json!({"x".repeat(5000): 1})).await;
    assert!(unknown.error().2.len() < 400);
    let large = hub.post("/v1/tunnels", json!({"display_name": "x".repeat(64 * 1024)})).await;
    assert_eq!((large.error().0, large.error().1), (413, "request_too_large"));

    for path in ["/", "/v1", "/v1/tunnel", "/v1/tunnels/", "/v1/tunnels/x/y", "/v2/tunnels"] {
        let missing = hub.get(path).await;
        assert_eq!((missing.error().0, missing.error().1), (404, "not_found_error"), "{path}");
    }
    for id in ["tnl_nosuch", "tcrt_x", "nonsense", "%00", "%ff", "tnl_..%2f.."] {
        let missing = hub.get(&format!("/v1/tunnels/{id}")).await;
        assert_eq!(missing.error().0, 404, "{id}");
    }
    for method in [Method::DELETE, Method::PUT, Method::PATCH] {
        let refused = hub.send(method, "/v1/tunnels", Value::Null).await;
        assert_eq!((refused.error().0, refused.error().1), (405, "invalid_request_error"));
        assert_eq!(refused.header("allow").map(|list| list.contains("POST")), Some(true));
    }
    let id = tunnel(&hub).await;
    assert_eq!(hub.get(&format!("/v1/tunnels/{id}/reveal_token")).await.error().0, 405, "a token is not in a GET");
}

#[tokio::test]
async fn keys_of_a_workspace() {
    let hub = Hub::new().await;
    let tunnel = tunnel(&hub).await;
    let grants = json!([{"tunnel_id": tunnel, "route": "files"}]);
    let request = json!({"kind": "use", "name": "agent", "grants": grants, "expires_at": "2099-01-01T00:00:00Z"});
    let made = hub.post("/v1/sortie/keys", request).await;
    assert_eq!(made.status, 200, "{}", made.body);
    assert_eq!(made.header("cache-control"), Some("no-store"));
    assert_eq!(made.body["grants"], grants);
    assert_eq!(made.body["expires_at"], "2099-01-01T00:00:00Z");
    let secret = made.body["secret"].as_str().expect("secret");
    assert!(secret.starts_with("sortie-use-"));
    let path = format!("/v1/sortie/keys/{}", made.body["id"].as_str().expect("id"));
    let shown = hub.get(&path).await.body;
    assert_eq!((&shown["type"], &shown["name"], &shown["secret"]), (&json!("key"), &json!("agent"), &Value::Null));
    let listed = hub.get("/v1/sortie/keys").await.body;
    assert!(!listed.to_string().contains(secret));
    assert_eq!(listed["data"][0], shown);
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(3));

    let archived = hub.post(&format!("{path}/archive"), Value::Null).await;
    assert!(archived.body["archived_at"].is_string());
    assert_eq!(hub.post(&format!("{path}/archive"), Value::Null).await.body, archived.body);
    assert_eq!(hub.get("/v1/sortie/keys").await.body["data"].as_array().map(Vec::len), Some(2));
    let own = hub.post(&format!("/v1/sortie/keys/{}/archive", hub.manage_id), Value::Null).await;
    assert_eq!(own.error().1, "conflict_error");

    for bad in [
        json!({"name": "x"}),
        json!({"kind": "admin", "name": "x"}),
        json!({"kind": "use", "name": "x"}),
        json!({"kind": "use", "name": "x", "grants": [{"tunnel_id": "tnl_nosuch"}]}),
        json!({"kind": "use", "name": "x", "grants": [{"tunnel_id": hub.first_tunnel}]}),
        json!({"kind": "use", "name": "x", "grants": [{"tunnel_id": tunnel, "route": "A/../b"}]}),
        json!({"kind": "manage", "name": "x", "grants": [{"tunnel_id": tunnel}]}),
        json!({"kind": "manage", "name": "x", "expires_at": "2001-01-01T00:00:00Z"}),
        json!({"kind": "manage", "name": ""}),
    ] {
        let refused = hub.post("/v1/sortie/keys", bad.clone()).await;
        assert_eq!(refused.error().0, 400, "{bad}");
    }

    let second = hub.post("/v1/sortie/keys", json!({"kind": "manage", "name": "second"})).await.body;
    let secret = second["secret"].as_str().expect("secret");
    let headers = [("x-api-key", secret)];
    assert_eq!(hub.send_with(Method::GET, "/v1/tunnels", Value::Null, &headers).await.status, 200);
    hub.post(&format!("/v1/sortie/keys/{}/archive", second["id"].as_str().expect("id")), Value::Null).await;
    let refused = hub.send_with(Method::GET, "/v1/tunnels", Value::Null, &headers).await;
    assert_eq!(refused.error().0, 401, "at once, although it was accepted a moment ago");
}

#[tokio::test]
async fn discovery_tells_where_the_rest_is() {
    let hub = Hub::new().await;
    let found = hub.get("/v1/sortie/discovery").await.body;
    assert_eq!(found["base_domain"], "sortie.localhost");
    assert_eq!(found["edge_addr"], "127.0.0.1:4443");
    assert_eq!(found["identity_jwks"]["keys"].as_array().map(Vec::len), Some(1));
    assert_eq!(found["api_version"], "2026-10-21");
}

#[tokio::test]
async fn a_failure_inside_shows_no_cause() {
    let hub = Hub::new().await;
    let made = hub.get("/v1/tunnels").await;
    assert_eq!(made.status, 200);
    hub.store.close().await;
    let broken = hub.get("/v1/tunnels").await;
    assert_eq!((broken.error().0, broken.error().1), (500, "api_error"));
    assert!(!broken.body.to_string().contains("pool"));
}
