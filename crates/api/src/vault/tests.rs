use serde_json::{Value, json};

use super::*;
use crate::ApiError;

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().expect("time")
}

fn define(body: Value) -> Result<(CredentialDefinition, CredentialSecrets), String> {
    let request: CreateCredential = serde_json::from_value(body).map_err(|error| error.to_string())?;
    request.define(now()).map_err(|error| error.message)
}

fn made(auth: Value) -> (CredentialDefinition, CredentialSecrets) {
    define(json!({"auth": auth})).expect("made")
}

fn update(
    before: &(CredentialDefinition, CredentialSecrets),
    body: Value,
) -> Result<(CredentialDefinition, CredentialSecrets), ApiError> {
    let request: UpdateCredential =
        serde_json::from_value(body).map_err(|error| ApiError::invalid_request(error.to_string()))?;
    request.apply(before.0.clone(), before.1.clone(), now())
}

fn shown(definition: &CredentialDefinition) -> Value {
    serde_json::to_value(definition).expect("json")
}

fn secret(text: &str) -> SecretText {
    SecretText::new(text.to_owned())
}

const URL: &str = "https://mcp.example.com/mcp";

fn bearer() -> Value {
    json!({"type": "static_bearer", "mcp_server_url": URL, "token": "hidden-token"})
}

fn oauth() -> Value {
    json!({
        "type": "mcp_oauth", "mcp_server_url": URL, "access_token": "hidden-access", "expires_at": "2026-11-22T13:00:00.5Z",
        "refresh": {
            "token_endpoint": "https://auth.example.com/token", "client_id": "client", "refresh_token": "hidden-refresh",
            "token_endpoint_auth": {"type": "client_secret_basic", "client_secret": "hidden-client"}, "scope": "read",
            "resource": URL,
        },
    })
}

fn variable() -> Value {
    json!({
        "type": "environment_variable", "secret_name": "API_KEY", "secret_value": "hidden value",
        "networking": {"type": "limited", "allowed_hosts": ["api.example.com", "*.example.com", "192.0.2.1"]},
    })
}

#[test]
fn what_is_shown_holds_no_secret() {
    let (definition, secrets) = made(bearer());
    let auth = json!({"type": "static_bearer", "mcp_server_url": URL});
    assert_eq!(shown(&definition), json!({"display_name": null, "auth": auth, "metadata": {}}));
    assert_eq!(secrets, CredentialSecrets::Bearer { token: secret("hidden-token") });

    let (definition, secrets) = made(oauth());
    let refresh = json!({
        "token_endpoint": "https://auth.example.com/token", "client_id": "client", "scope": "read", "resource": URL,
        "token_endpoint_auth": {"type": "client_secret_basic"},
    });
    let auth = json!({
        "type": "mcp_oauth", "mcp_server_url": URL, "expires_at": "2026-11-22T13:00:00Z", "refresh": refresh,
    });
    assert_eq!(shown(&definition)["auth"], auth);
    let expected = CredentialSecrets::Oauth {
        access_token: secret("hidden-access"),
        refresh_token: Some(secret("hidden-refresh")),
        client_secret: Some(secret("hidden-client")),
    };
    assert_eq!(secrets, expected);

    let (definition, secrets) = made(variable());
    let networking = json!({"type": "limited", "allowed_hosts": ["api.example.com", "*.example.com", "192.0.2.1"]});
    let auth = json!({
        "type": "environment_variable", "secret_name": "API_KEY", "networking": networking,
        "injection_location": {"header": true, "body": true},
    });
    assert_eq!(shown(&definition)["auth"], auth);
    assert_eq!(secrets, CredentialSecrets::Variable { value: secret("hidden value") });

    for sent in [bearer(), oauth(), variable()] {
        let made = made(sent);
        let (text, debug) = (shown(&made.0).to_string(), format!("{made:?}"));
        assert!(!text.contains("hidden") && !debug.contains("hidden"), "{text} {debug}");
        assert_eq!(serde_json::from_str::<CredentialDefinition>(&text).expect("read"), made.0);
    }
}

#[test]
fn a_server_has_one_place() {
    let place = |url: &str| {
        let auth = json!({"type": "static_bearer", "mcp_server_url": url, "token": "t"});
        made(auth).0.auth.place()
    };
    assert_eq!(place("HTTPS://MCP.example.com:443/mcp/"), place(URL));
    assert_eq!(made(oauth()).0.auth.place(), place(URL));
    assert_eq!(made(variable()).0.auth.place(), "API_KEY");
}

#[test]
fn the_least_of_an_oauth_credential_is_its_token() {
    let (definition, secrets) = made(json!({"type": "mcp_oauth", "mcp_server_url": URL, "access_token": "a"}));
    let auth = json!({"type": "mcp_oauth", "mcp_server_url": URL, "expires_at": null, "refresh": null});
    assert_eq!(shown(&definition)["auth"], auth);
    let expected = CredentialSecrets::Oauth { access_token: secret("a"), refresh_token: None, client_secret: None };
    assert_eq!(secrets, expected);
}

#[test]
fn what_breaks_a_rule_is_named_without_the_secret() {
    let with = |mut auth: Value, pointer: &str, value: Value| {
        *auth.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
        auth
    };
    let injection = |location: Value| {
        let mut auth = variable();
        auth["injection_location"] = location;
        auth
    };
    let many: Vec<String> = (0..17).map(|at| format!("h{at}.example.com")).collect();
    for (auth, member) in [
        (with(bearer(), "/mcp_server_url", json!("mcp.example.com")), "auth.mcp_server_url: "),
        (with(bearer(), "/mcp_server_url", json!("https://me:hidden@mcp.example.com")), "auth.mcp_server_url: "),
        (with(bearer(), "/token", json!("")), "auth.token: 0 bytes"),
        (with(bearer(), "/token", json!("Bearer hidden")), "auth.token: must be visible ASCII"),
        (with(bearer(), "/token", json!("hidden\r\nx: y")), "auth.token: "),
        (with(bearer(), "/token", json!("h".repeat(16_385))), "auth.token: 16385 bytes"),
        (with(oauth(), "/access_token", json!("hidden\u{e9}")), "auth.access_token: "),
        (with(oauth(), "/expires_at", json!("2026-11-22T12:00:00Z")), "auth.expires_at: must be in the future"),
        (with(oauth(), "/refresh/token_endpoint", json!("http://auth.example.com")), "auth.refresh.token_endpoint: "),
        (with(oauth(), "/refresh/client_id", json!("")), "auth.refresh.client_id: "),
        (with(oauth(), "/refresh/scope", json!("a\nb")), "auth.refresh.scope: "),
        (with(oauth(), "/refresh/refresh_token", json!("")), "auth.refresh.refresh_token: "),
        (
            with(oauth(), "/refresh/token_endpoint_auth/client_secret", json!("")),
            "auth.refresh.token_endpoint_auth.client_secret: ",
        ),
        (with(oauth(), "/refresh/token_endpoint_auth", json!({"type": "client_secret_post"})), "`client_secret`"),
        (with(variable(), "/secret_name", json!("1A")), "auth.secret_name: "),
        (with(variable(), "/secret_name", json!("A-B")), "auth.secret_name: "),
        (with(variable(), "/secret_value", json!("")), "auth.secret_value: "),
        (with(variable(), "/networking/allowed_hosts", json!([])), "auth.networking.allowed_hosts: "),
        (with(variable(), "/networking/allowed_hosts", json!(many)), "17 hosts"),
        (
            with(variable(), "/networking/allowed_hosts", json!(["https://a.example"])),
            "auth.networking.allowed_hosts: ",
        ),
        (with(variable(), "/networking/allowed_hosts", json!(["[::1]"])), "auth.networking.allowed_hosts: "),
        (injection(json!(null)), "auth.injection_location: "),
        (injection(json!({})), "auth.injection_location: "),
        (injection(json!({"header": false})), "auth.injection_location: "),
        (json!({"type": "password"}), "unknown variant `password`"),
        (json!({"type": "static_bearer", "mcp_server_url": URL}), "missing field `token`"),
    ] {
        let error = define(json!({"auth": auth})).expect_err(member);
        assert!(error.contains(member) && !error.contains("hidden"), "{auth}: {error}");
    }
    let header = made(injection(json!({"header": true}))).0;
    assert_eq!(shown(&header)["auth"]["injection_location"], json!({"header": true, "body": false}));
}

#[test]
fn updates_keep_what_they_leave_out() {
    let before = define(json!({"auth": oauth(), "display_name": "mine", "metadata": {"a": "1"}})).expect("made");
    for nothing in
        [json!({}), json!({"auth": {"type": "mcp_oauth"}}), json!({"auth": {"type": "mcp_oauth", "refresh": {}}})]
    {
        assert_eq!(update(&before, nothing).expect("same"), before);
    }
    let after = update(&before, json!({"display_name": null, "metadata": {"a": null, "b": "2"}})).expect("after");
    assert_eq!(
        (shown(&after.0)["display_name"].clone(), shown(&after.0)["metadata"].clone()),
        (Value::Null, json!({"b": "2"}))
    );
    assert_eq!(after.1, before.1);

    let after = update(
        &before,
        json!({"auth": {"type": "mcp_oauth", "access_token": "new", "expires_at": null, "refresh": {
            "refresh_token": "newer", "scope": "",
            "token_endpoint_auth": {"type": "client_secret_post", "client_secret": "newest"},
        }}}),
    )
    .expect("after");
    let expected = CredentialSecrets::Oauth {
        access_token: secret("new"),
        refresh_token: Some(secret("newer")),
        client_secret: Some(secret("newest")),
    };
    assert_eq!(after.1, expected);
    let auth = &shown(&after.0)["auth"];
    assert_eq!((&auth["expires_at"], &auth["refresh"]["scope"]), (&Value::Null, &Value::Null));
    assert_eq!(auth["refresh"]["token_endpoint_auth"]["type"], "client_secret_basic", "the way to send it stays");

    let later =
        update(&before, json!({"auth": {"type": "mcp_oauth", "expires_at": "2027-01-01T00:00:00Z"}})).expect("later");
    assert_eq!(shown(&later.0)["auth"]["expires_at"], "2027-01-01T00:00:00Z");

    let before = made(variable());
    let change = json!({"auth": {
        "type": "environment_variable", "secret_value": "new", "networking": {"type": "unrestricted"},
        "injection_location": {"body": false},
    }});
    let after = update(&before, change).expect("after");
    let auth = &shown(&after.0)["auth"];
    assert_eq!(auth["networking"], json!({"type": "unrestricted"}));
    assert_eq!(auth["injection_location"], json!({"header": true, "body": false}));
    assert_eq!(after.1, CredentialSecrets::Variable { value: secret("new") });
}

#[test]
fn what_is_fixed_stays() {
    let without = json!({"type": "mcp_oauth", "mcp_server_url": URL, "access_token": "a"});
    let public = json!({
        "type": "mcp_oauth", "mcp_server_url": URL, "access_token": "a", "refresh": {
            "token_endpoint": "https://auth.example.com", "client_id": "c", "refresh_token": "r",
            "token_endpoint_auth": {"type": "none"},
        },
    });
    let basic = json!({"type": "client_secret_basic", "client_secret": "hidden"});
    for (before, auth, reason) in [
        (bearer(), json!({"type": "mcp_oauth", "access_token": "hidden"}), "auth.type: stays static_bearer"),
        (oauth(), json!({"type": "static_bearer", "token": "hidden"}), "auth.type: stays mcp_oauth"),
        (bearer(), json!({"type": "static_bearer", "mcp_server_url": URL}), "auth.mcp_server_url: cannot be changed"),
        (oauth(), json!({"type": "mcp_oauth", "mcp_server_url": URL}), "auth.mcp_server_url: cannot be changed"),
        (oauth(), json!({"type": "mcp_oauth", "refresh": {"client_id": "x"}}), "auth.refresh.client_id: cannot be"),
        (oauth(), json!({"type": "mcp_oauth", "refresh": {"token_endpoint": "x"}}), "auth.refresh.token_endpoint: "),
        (oauth(), json!({"type": "mcp_oauth", "expires_at": "2026-11-22T11:59:59Z"}), "auth.expires_at: must be in"),
        (oauth(), json!({"type": "mcp_oauth", "expires_at": "soon"}), "auth.expires_at: must be an RFC 3339"),
        (
            variable(),
            json!({"type": "environment_variable", "secret_name": "B"}),
            "auth.secret_name: cannot be changed",
        ),
        (
            variable(),
            json!({"type": "environment_variable", "injection_location": {"header": false, "body": false}}),
            "auth.injection_location: ",
        ),
        (without, json!({"type": "mcp_oauth", "refresh": {"refresh_token": "hidden"}}), "auth.refresh: the credential"),
        (public, json!({"type": "mcp_oauth", "refresh": {"token_endpoint_auth": basic}}), "token_endpoint_auth: "),
        (bearer(), json!({"type": "static_bearer", "token": "two words hidden"}), "auth.token: "),
    ] {
        let error = update(&made(before), json!({"auth": auth.clone()})).expect_err(reason).message;
        assert!(error.contains(reason) && !error.contains("hidden"), "{auth}: {error}");
    }
}
