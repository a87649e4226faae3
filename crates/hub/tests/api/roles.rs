//! What keys for managing may do by their roles, operation by operation.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::Hub;

/// Who needs which role, said apart from the table of operations.
fn least(method: &Method, path: &str) -> &'static str {
    let of_developers = ["/v1/agents", "/v1/environments", "/v1/sessions", "/v1/vaults"];
    match (method, of_developers.iter().any(|place| path.starts_with(place))) {
        (&Method::GET, _) => "viewer",
        (_, true) => "developer",
        _ => "admin",
    }
}

#[tokio::test]
async fn each_role_may_what_it_is_for_and_nothing_more() {
    let hub = Hub::new().await;
    let roles = ["viewer", "developer", "admin"];
    let mut keys = Vec::new();
    for role in roles {
        let made = hub.post("/v1/sortie/keys", json!({"kind": "manage", "role": role, "name": role})).await;
        assert_eq!((made.status.as_u16(), &made.body["role"]), (200, &json!(role)), "{}", made.body);
        let shown = hub.get(&format!("/v1/sortie/keys/{}", made.body["id"].as_str().expect("id"))).await;
        assert_eq!(shown.body["role"], role);
        keys.push(made.body["secret"].as_str().expect("secret").to_owned());
    }
    let document = sortie_hub::api::document();
    let mut refused = [0; 3];
    for (path, methods) in document["paths"].as_object().expect("paths") {
        if !path.starts_with("/v1/") {
            continue;
        }
        let place =
            path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/");
        for name in methods.as_object().expect("methods").keys() {
            let method: Method = name.to_ascii_uppercase().parse().expect("method");
            let needed = roles.iter().position(|role| *role == least(&method, path)).expect("role");
            for (number, key) in keys.iter().enumerate() {
                let body = if method == Method::GET { Value::Null } else { json!({"nothing": 1}) };
                let answer = hub.send_with(method.clone(), &place, body, &[("x-api-key", key)]).await;
                let said = answer.body["error"]["message"].as_str().unwrap_or_default();
                let by_role = answer.status.as_u16() == 403 && said.starts_with("The key has the role ");
                // What is for workers only is refused before.
                let for_workers = answer.status.as_u16() == 403 && said.contains("key of the environment");
                assert!(
                    by_role == (number < needed) || for_workers,
                    "{method} {path} as {}: {}",
                    roles[number],
                    answer.body
                );
                refused[number] += usize::from(by_role);
            }
        }
    }
    assert!(refused[0] > refused[1] && refused[1] > 5 && refused[2] == 0, "{refused:?}");
}

#[tokio::test]
async fn roles_are_for_keys_that_manage() {
    let hub = Hub::new().await;
    let plain = hub.post("/v1/sortie/keys", json!({"kind": "manage", "name": "a"})).await;
    assert_eq!(plain.body["role"], "admin");
    let odd = hub.post("/v1/sortie/keys", json!({"kind": "manage", "role": "owner", "name": "a"})).await;
    assert_eq!(odd.status.as_u16(), 400);
    let grants = json!([{"tunnel_id": "tnl_1"}]);
    let used =
        hub.post("/v1/sortie/keys", json!({"kind": "use", "role": "viewer", "name": "a", "grants": grants})).await;
    assert_eq!(used.status.as_u16(), 400);
    assert!(used.body["error"]["message"].as_str().expect("message").contains("role: "), "{}", used.body);
}
