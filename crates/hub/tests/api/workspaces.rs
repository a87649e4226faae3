//! Further workspaces, and the older surface that spans them.

use axum::http::Method;
use serde_json::{Value, json};
use sortie_api::Limits;

use crate::fixture::{Answer, Hub, pem};

/// Makes a workspace with a `manage` key; its id and the key's secret.
async fn workspace(hub: &Hub, name: &str) -> (String, String) {
    let made = hub.post("/v1/sortie/workspaces", json!({"name": name})).await;
    assert_eq!((made.status.as_u16(), made.text("/type")), (200, "workspace"), "{}", made.body);
    let id = made.text("/id").to_owned();
    let key = json!({"kind": "manage", "name": "first", "workspace_id": id});
    let key = hub.post("/v1/sortie/keys", key).await;
    assert_eq!(key.text("/workspace_id"), id);
    (id, key.text("/secret").to_owned())
}

async fn send(hub: &Hub, key: &str, method: Method, path: &str, body: Value) -> Answer {
    hub.send_with(method, path, body, &[("x-api-key", key)]).await
}

#[tokio::test]
async fn workspaces_share_nothing_but_the_limit() {
    let hub = Hub::with_limits(Limits { tunnels_per_organization: 2, ..Limits::default() }).await;
    let (second, key) = workspace(&hub, "second").await;
    let listed = hub.get("/v1/sortie/workspaces").await.body;
    let named: Vec<_> =
        listed["data"].as_array().expect("data").iter().map(|one| (&one["name"], &one["is_default"])).collect();
    assert_eq!(named, [(&json!("second"), &json!(false)), (&json!("Default"), &json!(true))]);
    let page = hub.get("/v1/sortie/workspaces?limit=1").await.body;
    let next = page["next_page"].as_str().expect("more");
    let rest = hub.get(&format!("/v1/sortie/workspaces?limit=1&page={next}")).await.body;
    assert_eq!((&rest["data"][0], &rest["next_page"]), (&listed["data"][1], &Value::Null));

    let ours = hub.post("/v1/tunnels", json!({})).await;
    let theirs = send(&hub, &key, Method::POST, "/v1/tunnels", json!({})).await;
    assert_eq!(theirs.header("anthropic-workspace-id"), Some(second.as_str()));
    assert_eq!(theirs.header("anthropic-organization-id"), ours.header("anthropic-organization-id"));
    assert_eq!(hub.get("/v1/tunnels").await.body["data"], json!([ours.body]));
    assert_eq!(send(&hub, &key, Method::GET, "/v1/tunnels", Value::Null).await.body["data"], json!([theirs.body]));
    let foreign = format!("/v1/tunnels/{}", theirs.text("/id"));
    assert_eq!(hub.get(&foreign).await.error().1, "not_found_error");
    let full = send(&hub, &key, Method::POST, "/v1/tunnels", json!({})).await;
    assert_eq!(full.error().2, "Organization already has the maximum of 2 non-archived Tunnels");
    assert_eq!(full.header("x-should-retry"), Some("false"));

    let use_key =
        json!({"kind": "use", "name": "x", "workspace_id": second, "grants": [{"tunnel_id": theirs.text("/id")}]});
    let refused = hub.post("/v1/sortie/keys", use_key).await;
    assert_eq!(refused.error().0, 400, "the workspace's own keys make the others");
    let missing =
        hub.post("/v1/sortie/keys", json!({"kind": "manage", "name": "x", "workspace_id": "wrkspc_no"})).await;
    assert_eq!(missing.error(), (404, "not_found_error", "The organization has no workspace with this id."));
    let own = json!({"kind": "manage", "name": "x", "workspace_id": second});
    assert_eq!(send(&hub, &key, Method::POST, "/v1/sortie/keys", own).await.status, 200, "its own may be named");
}

#[tokio::test]
async fn workspaces_have_a_limit_and_names_their_length() {
    let limits = Limits { workspaces_per_organization: 2, name_characters: 5, pem_bytes: 60, ..Limits::default() };
    let hub = Hub::with_limits(limits).await;
    let long = hub.post("/v1/sortie/workspaces", json!({"name": "longer"})).await;
    assert_eq!(long.error(), (400, "invalid_request_error", "name: 6 characters, at most 5"));
    assert_eq!(hub.post("/v1/tunnels", json!({"display_name": "longer"})).await.error().0, 400);
    assert_eq!(hub.post("/v1/sortie/keys", json!({"kind": "manage", "name": "longer"})).await.error().0, 400);
    workspace(&hub, "one").await;
    let full = hub.post("/v1/sortie/workspaces", json!({"name": "two"})).await;
    assert_eq!(full.error(), (400, "invalid_request_error", "Organization already has the maximum of 2 Workspaces"));
    assert_eq!(full.header("x-should-retry"), Some("false"));
    let tunnel = hub.post("/v1/tunnels", json!({})).await;
    let path = format!("/v1/tunnels/{}/certificates", tunnel.text("/id"));
    let large = hub.post(&path, json!({"ca_certificate_pem": pem("a longer certificate")})).await;
    assert!(large.error().2.ends_with("at most 60"), "{}", large.error().2);
}

#[tokio::test]
async fn the_older_surface_spans_the_organisation() {
    const BASE: &str = "/v1/organizations/tunnels";
    let hub = Hub::new().await;
    let beta = [("x-api-key", hub.manage.as_str()), ("anthropic-beta", "mcp-tunnels-2026-05-19")];
    let (second, key) = workspace(&hub, "second").await;
    let ours = hub.post("/v1/tunnels", json!({"display_name": "ours"})).await.body;
    let theirs = send(&hub, &key, Method::POST, "/v1/tunnels", json!({"display_name": "theirs"})).await.body;
    let get = async |path: &str| hub.send_with(Method::GET, path, Value::Null, &beta).await;
    let shown = |tunnel: &Value, workspace: Value| {
        let mut shown = tunnel.clone();
        shown["workspace_id"] = workspace;
        shown
    };
    let (ours, theirs) = (shown(&ours, Value::Null), shown(&theirs, json!(second)));
    assert_eq!(get(BASE).await.body, json!({"data": [theirs, ours], "next_page": null}));
    for (filter, expected) in [
        (second.as_str(), json!([theirs])),
        ("default", json!([ours])),
        (hub.store.default_workspace().as_str(), json!([ours])),
        ("wrkspc_nosuch", json!([])),
    ] {
        assert_eq!(get(&format!("{BASE}?workspace_id={filter}")).await.body["data"], expected, "{filter}");
    }
    assert_eq!(get(&format!("{BASE}?workspace_id=x")).await.error().0, 400);
    let page = get(&format!("{BASE}?limit=1")).await.body;
    let next = page["next_page"].as_str().expect("more");
    assert_eq!(get(&format!("{BASE}?limit=1&page={next}")).await.body["data"], json!([ours]));
    assert_eq!(get(&format!("{BASE}?page={next}&workspace_id=default")).await.error().0, 400, "of another list");
    assert_eq!(hub.get(&format!("/v1/tunnels?page={next}")).await.error().0, 400, "of another list");

    assert_eq!(hub.post(BASE, json!({})).await.error().0, 405, "it makes none");
    let path = format!("{BASE}/{}", theirs["id"].as_str().expect("id"));
    assert_eq!(get(&path).await.body, theirs);
    assert_eq!(get(&format!("{BASE}/tnl_nosuch")).await.error().0, 404);
    let token = hub.post(&format!("{path}/reveal_token"), Value::Null).await;
    assert_eq!((token.text("/type"), token.header("cache-control")), ("tunnel_token", Some("no-store")));
    let rotated = hub.post(&format!("{path}/rotate_token"), json!({"reason": "x"})).await;
    assert_ne!(rotated.text("/id"), token.text("/id"));
    let added = hub.post(&format!("{path}/certificates"), json!({"ca_certificate_pem": pem("a")})).await;
    let certificate = format!("{path}/certificates/{}", added.text("/id"));
    assert_eq!(get(&certificate).await.body, added.body);
    assert_eq!(get(&format!("{path}/certificates")).await.body["data"], json!([added.body]));
    assert!(hub.post(&format!("{certificate}/archive"), Value::Null).await.body["archived_at"].is_string());
    let archived = hub.post(&format!("{path}/archive"), Value::Null).await;
    assert_eq!((archived.text("/workspace_id"), archived.body["archived_at"].is_string()), (second.as_str(), true));
    assert_eq!(get(BASE).await.body["data"], json!([ours]));
}
