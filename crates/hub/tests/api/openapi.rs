//! The OpenAPI document: the file in the repository is what the hub serves, and it describes what the hub answers.

use std::collections::BTreeSet;
use std::path::Path;

use axum::http::Method;
use serde_json::{Value, json};

use crate::fixture::{Hub, pem};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
/// Set to anything, it lets the test write the file instead.
const UPDATE: &str = "SORTIE_UPDATE_OPENAPI";

#[tokio::test]
async fn the_file_in_the_repository_is_what_the_hub_serves() {
    let hub = Hub::new().await;
    let served = hub.send_with(Method::GET, "/v1/sortie/openapi.json", Value::Null, &[]).await;
    assert_eq!((served.status.as_u16(), served.header("content-type")), (200, Some("application/json")));
    if std::env::var_os(UPDATE).is_some() {
        let text = serde_json::to_string_pretty(&served.body).expect("json");
        std::fs::write(FILE, format!("{text}\n")).expect("written");
    }
    let kept = std::fs::read_to_string(Path::new(FILE)).expect("docs/openapi.json");
    let kept: Value = serde_json::from_str(&kept).expect("json");
    assert!(
        kept == served.body,
        "docs/openapi.json is out of date: run this test with {UPDATE}=1, and look at the diff"
    );
}

#[tokio::test]
async fn every_reference_leads_somewhere_and_every_id_is_used_once() {
    let document = sortie_hub::api::document();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 50);
    for reference in references {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    let ids: Vec<&str> = document["paths"]
        .as_object()
        .expect("paths")
        .values()
        .flat_map(|path| path.as_object().expect("operations").values())
        .map(|operation| operation["operationId"].as_str().expect("id"))
        .collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
}

fn collect<'v>(value: &'v Value, references: &mut Vec<&'v str>) {
    match value {
        Value::Object(members) => {
            references.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| collect(member, references));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
        _ => {}
    }
}

#[tokio::test]
async fn answers_have_exactly_the_members_that_are_described() {
    let hub = Hub::new().await;
    let document = sortie_hub::api::document();
    let tunnel = hub.post("/v1/tunnels", json!({})).await.body;
    let certificates = format!("/v1/tunnels/{}/certificates", tunnel["id"].as_str().expect("id"));
    let certificate = hub.post(&certificates, json!({"ca_certificate_pem": pem("a")})).await.body;
    let token = hub.post(&format!("/v1/tunnels/{}/reveal_token", tunnel["id"].as_str().expect("id")), json!({})).await;
    let organization = hub.get("/v1/organizations/tunnels").await.body;
    let workspace = hub.post("/v1/sortie/workspaces", json!({"name": "second"})).await.body;
    let key = hub.post("/v1/sortie/keys", json!({"kind": "manage", "name": "x"})).await.body;
    for (schema, object) in [
        ("Tunnel", &tunnel),
        ("TunnelCertificate", &certificate),
        ("TunnelToken", &token.body),
        ("OrganizationTunnel", &organization["data"][0]),
        ("OrganizationTunnelList", &organization),
        ("Workspace", &workspace),
        ("CreatedKey", &key),
        ("Discovery", &hub.get("/v1/sortie/discovery").await.body),
        ("Error", &hub.get("/v1/tunnels/none").await.body),
    ] {
        let described = &document["components"]["schemas"][schema];
        let members = described["properties"].as_object().unwrap_or_else(|| panic!("no schema {schema}"));
        let found = object.as_object().expect("object");
        assert_eq!(members.keys().collect::<BTreeSet<_>>(), found.keys().collect::<BTreeSet<_>>(), "{schema}");
        if let Some(kind) = described["properties"]["type"]["const"].as_str() {
            assert_eq!(found["type"], kind, "{schema}");
        }
    }
}
