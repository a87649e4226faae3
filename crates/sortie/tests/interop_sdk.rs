//! The official SDK `anthropic`, unmodified, and our own commands against a hub's API, with only the base URL changed.

#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failure")]

mod interop;

use std::path::Path;

use serde_json::Value;
use sortie_testkit::{Program, TempHome, tool};
use sortie_tls::Authority;

use interop::{Hub, python, succeeds};

fn ca(home: &TempHome, name: &str) -> std::path::PathBuf {
    let authority = Authority::generate(name, 30).expect("authority");
    home.write(format!("{name}.pem"), authority.cert_pem()).expect("written")
}

#[tokio::test]
async fn the_official_sdk_manages_tunnels_unmodified() {
    let Some(sdk) = tool("SORTIE_TEST_PYTHON_ANTHROPIC") else { return };
    let home = TempHome::new().expect("home");
    let hub = Hub::start(&home).await;
    let tunnel = hub.json(&home, ["tunnels", "create"]);
    let id = text(&tunnel, "id");
    let key = hub.json(&home, ["keys", "create", "calls", "--grant", id]);
    let program = python(&home, &sdk, "tunnels_api.py").args([hub.text("api_url"), hub.text("api_key")]);
    let said = succeeds(program.arg(text(&key, "secret")).args([ca(&home, "first"), ca(&home, "second")])).await;
    assert!(said.contains("all as expected"), "{said}");

    let left = hub.json(&home, ["tunnels", "list"]);
    assert_eq!(ids(&left), [id], "the script leaves only archived tunnels behind");
    let all = hub.json(&home, ["tunnels", "list", "--include-archived"]);
    assert!(ids(&all).len() > 4, "what the SDK archived is kept: {all}");
}

#[tokio::test]
async fn the_official_typescript_sdk_does_the_same() {
    let Some(sdk) = tool("SORTIE_TEST_NODE_ANTHROPIC") else { return };
    let home = TempHome::new().expect("home");
    let hub = Hub::start(&home).await;
    let tunnel = hub.json(&home, ["tunnels", "create"]);
    let id = text(&tunnel, "id");
    let key = hub.json(&home, ["keys", "create", "calls", "--grant", id]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/node/tunnels_api.mjs");
    let program = home.apply(Program::new("node")).arg(script).arg(sdk);
    let program = program.args([hub.text("api_url"), hub.text("api_key"), text(&key, "secret")]);
    let said = succeeds(program.args([ca(&home, "first"), ca(&home, "second")])).await;
    assert!(said.contains("all as expected"), "{said}");
    assert_eq!(ids(&hub.json(&home, ["tunnels", "list"])), [id], "the script leaves only archived tunnels behind");
}

#[tokio::test]
async fn workspaces_are_made_and_handed_over_by_an_administrator() {
    let home = TempHome::new().expect("home");
    let hub = Hub::start_with(&home, ["--max-tunnels", "1", "--page-size", "1"]).await;
    let made = hub.json(&home, ["workspaces", "create", "second"]);
    assert_eq!((text(&made, "type"), text(&made, "name")), ("workspace", "second"));
    let listed = hub.json(&home, ["workspaces", "list"]);
    assert_eq!((ids(&listed)[0], ids(&listed).len()), (text(&made, "id"), 2));
    let key = hub.json(&home, ["keys", "create", "theirs", "--manage", "--workspace", text(&made, "id")]);
    assert_eq!(text(&key, "workspace_id"), text(&made, "id"));
    let refused = hub.operator(&home, ["keys", "create", "x", "--grant", "tnl_1", "--workspace", text(&made, "id")]);
    assert_eq!(refused.status.code(), Some(2), "only a manage key is made in another workspace");

    hub.json(&home, ["tunnels", "create"]);
    let theirs = hub.operator_with(&home, text(&key, "secret"), ["tunnels", "create"]);
    let said = String::from_utf8_lossy(&theirs.stderr);
    assert_eq!(theirs.status.code(), Some(1));
    assert!(said.contains("Organization already has the maximum of 1 non-archived Tunnels"), "{said}");
    let theirs = hub.operator_with(&home, text(&key, "secret"), ["tunnels", "list", "--output", "json"]);
    let theirs: Value = serde_json::from_slice(&theirs.stdout).expect("json");
    assert!(ids(&theirs).is_empty(), "ours are not theirs");
}

#[tokio::test]
async fn our_commands_do_the_same() {
    let home = TempHome::new().expect("home");
    let hub = Hub::start(&home).await;
    let named = hub.json(&home, ["tunnels", "create", "--display-name", "café ☃"]);
    assert_eq!((text(&named, "type"), text(&named, "display_name")), ("tunnel", "café ☃"));
    let id = text(&named, "id").to_owned();
    assert_eq!(hub.json(&home, ["tunnels", "get", &id]), named);
    let plain = hub.json(&home, ["tunnels", "create"]);
    assert_eq!(ids(&hub.json(&home, ["tunnels", "list"])), [text(&plain, "id"), &id], "newest first");

    let token = hub.json(&home, ["tunnels", "reveal-token", &id]);
    assert_eq!(hub.json(&home, ["tunnels", "reveal-token", &id]), token);
    let rotated = hub.json(&home, ["tunnels", "rotate-token", &id, "--reason", "test"]);
    assert_ne!(text(&rotated, "tunnel_token"), text(&token, "tunnel_token"));
    assert_eq!(hub.json(&home, ["tunnels", "reveal-token", &id]), rotated);

    certificates(&home, &hub, &id);
    keys(&home, &hub, &id);

    let archived = hub.json(&home, ["tunnels", "archive", &id]);
    assert!(archived["archived_at"].is_string(), "{archived}");
    assert_eq!(hub.json(&home, ["tunnels", "archive", &id]), archived, "archiving again changes nothing");
    assert_eq!(ids(&hub.json(&home, ["tunnels", "list"])), [text(&plain, "id")]);
    assert_eq!(ids(&hub.json(&home, ["tunnels", "list", "--include-archived"])), [text(&plain, "id"), &id]);
    let refused = hub.operator(&home, ["tunnels", "reveal-token", &id]);
    assert_eq!(refused.status.code(), Some(1), "an archived tunnel has no token");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("archived"), "{said}");
}

fn certificates(home: &TempHome, hub: &Hub, tunnel: &str) {
    let (first, second) = (ca(home, "first"), ca(home, "second"));
    let add = |file: &Path| hub.json(home, ["certs", "add", tunnel, &file.display().to_string()]);
    let (one, two) = (add(&first), add(&second));
    assert_eq!((text(&one, "type"), text(&one, "tunnel_id")), ("tunnel_certificate", tunnel));
    assert_eq!(text(&one, "fingerprint").len(), 64);
    assert_eq!(hub.json(home, ["certs", "get", tunnel, text(&one, "id")]), one);
    assert_eq!(ids(&hub.json(home, ["certs", "list", tunnel])), [text(&two, "id"), text(&one, "id")]);
    let archived = hub.json(home, ["certs", "archive", tunnel, text(&one, "id")]);
    assert!(archived["archived_at"].is_string(), "{archived}");
    assert_eq!(ids(&hub.json(home, ["certs", "list", tunnel])), [text(&two, "id")]);
    let all = hub.json(home, ["certs", "list", tunnel, "--include-archived"]);
    assert_eq!(ids(&all), [text(&two, "id"), text(&one, "id")]);
    let bad = home.write("bad.pem", "not a certificate").expect("written");
    let refused = hub.operator(home, ["certs", "add", tunnel, &bad.display().to_string()]);
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
}

fn keys(home: &TempHome, hub: &Hub, tunnel: &str) {
    let grant = format!("{tunnel}/docs");
    let made = hub.json(home, ["keys", "create", "docs only", "--grant", &grant]);
    assert_eq!((text(&made, "kind"), text(&made, "name")), ("use", "docs only"));
    assert_eq!((text(&made["grants"][0], "tunnel_id"), text(&made["grants"][0], "route")), (tunnel, "docs"));
    let secret = text(&made, "secret");
    let listed = hub.json(home, ["keys", "list"]);
    assert!(ids(&listed).contains(&text(&made, "id")), "{listed}");
    assert!(!listed.to_string().contains(secret), "a secret is shown once");

    let manage = hub.json(home, ["keys", "create", "second operator", "--manage"]);
    let refused = hub.operator(home, ["keys", "create", "nothing"]);
    assert_eq!(refused.status.code(), Some(2), "a key for nothing is a wrong use");
    let archived = hub.json(home, ["keys", "archive", text(&manage, "id")]);
    assert!(archived["archived_at"].is_string(), "{archived}");
}

/// The text of a field.
fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_else(|| panic!("no text {field} in {value}"))
}

/// The ids of a list, in its order.
fn ids(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap_or_else(|| panic!("no list: {list}"));
    data.iter().map(|one| text(one, "id")).collect()
}
