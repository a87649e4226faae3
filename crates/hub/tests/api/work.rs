//! The work queue as workers speak to it, request by request, and what their credentials are good for.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use serde_json::{Value, json};
use sortie_api::Limits;
use sortie_ids::{KeyId, ThreadId};
use sortie_store::NewSession;

use crate::fixture::{Answer, Hub};

/// A hub with an environment, and a key of it.
struct Shop {
    hub: Hub,
    environment: String,
    agent: String,
    key: String,
    key_id: String,
}

/// An item that was handed out.
struct Item {
    id: String,
    session: String,
    token: String,
}

impl Shop {
    async fn open(limits: Limits) -> Self {
        let hub = Hub::with_limits(limits).await;
        let made = hub.post("/v1/environments", json!({"name": "shop", "config": {"type": "self_hosted"}})).await;
        let environment = made.text("/id").to_owned();
        let agent = hub.post("/v1/agents", json!({"name": "a", "model": "scripted"})).await.text("/id").to_owned();
        let key = hub.post(&format!("/v1/sortie/environments/{environment}/keys"), json!({"name": "worker"})).await;
        let (key_id, key) = (key.text("/id").to_owned(), key.text("/secret").to_owned());
        Self { hub, environment, agent, key, key_id }
    }

    /// A session that waits for a worker.
    async fn session(&self) -> String {
        let id = sortie_ids::SessionId::random();
        let agent = json!({
            "type": "agent", "id": self.agent, "version": 1, "name": "a", "description": null, "system": null,
            "model": {"id": "scripted"}, "tools": [], "mcp_servers": [], "skills": [], "multiagent": null,
        });
        let shown = json!({
            "type": "session", "id": id, "status": "idle", "agent": agent, "environment_id": self.environment,
            "title": null, "metadata": {}, "resources": [], "vault_ids": [], "budget": null, "usage": {}, "stats": {},
            "outcome_evaluations": [], "deployment_id": null, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z", "archived_at": null,
        });
        let key: KeyId = self.hub.manage_id.clone();
        let new = NewSession {
            workspace: self.hub.store.default_workspace().clone(),
            key,
            thread: ThreadId::random(),
            shown: serde_json::from_value(shown).expect("session"),
            state: "{}".to_owned(),
            arrived: Vec::new(),
            events: Vec::new(),
            entries: Vec::new(),
            wake: true,
        };
        self.hub.store.create_session(new).await.expect("session");
        id.to_string()
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/environments/{}/work{rest}", self.environment)
    }

    /// A request as workers send them.
    async fn ask(&self, method: Method, rest: &str, secret: &str) -> Answer {
        let bearer = format!("Bearer {secret}");
        let headers =
            [("authorization", bearer.as_str()), ("anthropic-worker-id", "test"), ("anthropic-version", "2023-06-01")];
        self.hub.send_with(method, &self.path(rest), Value::Null, &headers).await
    }

    async fn poll(&self, query: &str) -> Value {
        let polled = self.ask(Method::GET, &format!("/poll{query}"), &self.key).await;
        assert_eq!(polled.status, 200, "{}", polled.body);
        assert_eq!(polled.header("content-type"), Some("application/json"));
        polled.body
    }

    async fn item(&self) -> Item {
        let item = self.poll("?block_ms=999").await;
        let text = |place: &str| match item.pointer(place).and_then(Value::as_str) {
            Some(text) => text.to_owned(),
            None => panic!("no {place}: {item}"),
        };
        let secret = URL_SAFE_NO_PAD.decode(text("/secret").trim_end_matches('=')).expect("base64");
        let secret: Value = serde_json::from_slice(&secret).expect("json");
        let token = secret.get("sessions_token").and_then(Value::as_str).expect("token").to_owned();
        Item { id: text("/id"), session: text("/data/id"), token }
    }

    /// An item that a worker has taken.
    async fn taken(&self) -> Item {
        let item = self.item().await;
        let taken = self.ask(Method::POST, &format!("/{}/ack", item.id), &self.key).await;
        assert_eq!((taken.status.as_u16(), taken.text("/state")), (200, "starting"), "{}", taken.body);
        item
    }

    async fn beat(&self, item: &Item, expected: &str) -> Answer {
        let expected = expected.replace('+', "%2B").replace(':', "%3A");
        self.ask(Method::POST, &format!("/{}/heartbeat?expected_last_heartbeat={expected}", item.id), &item.token).await
    }

    async fn stop(&self, item: &Item, body: Value, secret: &str) -> Answer {
        let headers = [("x-api-key", secret)];
        self.hub.send_with(Method::POST, &self.path(&format!("/{}/stop", item.id)), body, &headers).await
    }

    async fn state(&self, item: &Item) -> String {
        self.hub.get(&self.path(&format!("/{}", item.id))).await.text("/state").to_owned()
    }
}

#[tokio::test]
async fn an_item_goes_its_way() {
    let shop = Shop::open(Limits::default()).await;
    assert_eq!(shop.poll("").await, Value::Null);
    let session = shop.session().await;
    let stats = shop.hub.get(&shop.path("/stats")).await.body;
    assert_eq!(
        (&stats["type"], &stats["depth"], &stats["pending"]),
        (&json!("work_queue_stats"), &json!(1), &json!(0))
    );
    assert!(stats["oldest_queued_at"].is_string() && stats["workers_polling"] == 1, "{stats}");
    let item = shop.taken().await;
    assert_eq!(item.session, session);
    let beat = shop.beat(&item, "NO_HEARTBEAT").await.body;
    assert_eq!(beat["type"], "work_heartbeat");
    assert_eq!(
        (&beat["state"], &beat["lease_extended"], &beat["ttl_seconds"]),
        (&json!("active"), &json!(true), &json!(120))
    );
    let first = beat["last_heartbeat"].as_str().expect("heartbeat").to_owned();
    let lost = shop.beat(&item, "2026-01-01T00:00:00+00:00").await;
    assert_eq!(lost.error().0, 412);
    assert_eq!(lost.error().1, "invalid_request_error");
    let expected = format!("Heartbeat precondition failed: expected 2026-01-01T00:00:00+00:00, actual was {first}");
    assert_eq!(lost.error().2, expected);
    let details = &lost.body["error"]["details"];
    assert_eq!(details["error_code"], "heartbeat_precondition_failed");
    assert_eq!(
        details["current_state"],
        json!({
            "state": "active", "last_heartbeat": first, "lease_updated_at": first, "lease_extended": false, "ttl_seconds": 120,
        })
    );
    let second = shop.beat(&item, &first).await;
    assert_ne!(second.text("/last_heartbeat"), first);

    let asked = shop.stop(&item, json!({}), &shop.hub.manage).await;
    assert_eq!(asked.text("/state"), "stopping");
    let told = shop.beat(&item, "whatever").await;
    assert_eq!((told.status.as_u16(), told.text("/state")), (200, "stopping"));
    let done = shop.stop(&item, json!({"force": true}), &item.token).await;
    assert_eq!(done.text("/state"), "stopped");
    assert!(done.body["secret"].is_null(), "{}", done.body);
    let again = shop.stop(&item, Value::Null, &item.token).await;
    assert_eq!((again.error().0, again.header("x-should-retry")), (409, Some("false")));
    let told = shop.beat(&item, "whatever").await;
    assert_eq!((told.text("/state"), &told.body["lease_extended"]), ("stopped", &json!(false)));
    let listed = shop.ask(Method::GET, "", &shop.key).await;
    assert_eq!(listed.data().len(), 1);
    assert!(!listed.body.to_string().contains(&item.token));
    let records: Vec<String> = shop.hub.records().iter().map(Value::to_string).collect();
    assert!(records.iter().any(|record| record.contains("work_stopped") && record.contains(&item.id)), "{records:?}");
    assert!(records.iter().all(|record| !record.contains(&item.token) && !record.contains(&shop.key)));
}

#[tokio::test]
async fn a_poll_waits_for_what_comes_and_no_longer_than_it_may() {
    let shop = Shop::open(Limits::default()).await;
    for query in ["?block_ms=0", "?block_ms=1000", "?block_ms=x", "?reclaim_older_than_ms=3600001"] {
        assert_eq!(shop.ask(Method::GET, &format!("/poll{query}"), &shop.key).await.error().0, 400, "{query}");
    }
    assert_eq!(shop.poll("?block_ms=20&beta=true").await, Value::Null);
    let (polled, session) = tokio::join!(shop.poll("?block_ms=999"), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        shop.session().await
    });
    assert_eq!(polled["data"], json!({"type": "session", "id": session}), "woken by what came");
    assert_eq!(shop.poll("?block_ms=20").await, Value::Null, "no second time within the time to acknowledge it");
    let started = Instant::now();
    let again = shop.poll("?block_ms=999&reclaim_older_than_ms=300").await;
    assert_eq!(again["id"], polled["id"], "handed out again, since nobody acknowledged it");
    assert!(started.elapsed() < Duration::from_millis(950), "at the moment when it may be");
    assert_ne!(again["secret"], polled["secret"], "with a new token");
}

#[tokio::test]
async fn a_lease_that_lapses_gives_the_item_to_another_worker() {
    let limits = Limits { work_lease_seconds: 1, work_start_seconds: 1, ..Limits::default() };
    let shop = Shop::open(limits).await;
    shop.session().await;
    let lost = shop.taken().await;
    let beat = shop.beat(&lost, "NO_HEARTBEAT").await;
    let heartbeat = beat.text("/last_heartbeat").to_owned();
    let gained = loop {
        let item = shop.poll("?block_ms=999").await;
        if !item.is_null() {
            break item;
        }
    };
    assert_eq!(gained["id"], lost.id, "the same item");
    assert_eq!(gained["state"], "queued");
    assert_eq!(shop.beat(&lost, &heartbeat).await.status, 401, "the token of the worker that was silent is dead");
    let path = format!("/{}/heartbeat?expected_last_heartbeat={heartbeat}", lost.id);
    assert_eq!(shop.ask(Method::POST, &path, &shop.key).await.status, 412, "and its lease is lost");
    // Taken and never begun: not for ever.
    let taken = shop.ask(Method::POST, &format!("/{}/ack", lost.id), &shop.key).await;
    assert_eq!(taken.text("/state"), "starting");
    let again = shop.ask(Method::POST, &format!("/{}/ack", lost.id), &shop.key).await;
    assert_eq!(again.body, taken.body, "said twice");
    loop {
        let item = shop.poll("?block_ms=999").await;
        if !item.is_null() {
            assert_eq!(item["id"], lost.id);
            break;
        }
    }
}

#[tokio::test]
async fn a_token_is_good_for_its_item_and_its_session() {
    let shop = Shop::open(Limits::default()).await;
    shop.session().await;
    shop.session().await;
    let (one, two) = (shop.taken().await, shop.taken().await);
    let get = async |path: String, secret: &str| {
        let bearer = format!("Bearer {secret}");
        shop.hub.send_with(Method::GET, &path, Value::Null, &[("authorization", &bearer)]).await.status.as_u16()
    };
    let of = |session: &str| format!("/v1/sessions/{session}");
    assert_eq!(get(of(&one.session), &one.token).await, 200);
    assert_eq!(get(format!("{}/events", of(&one.session)), &one.token).await, 200);
    assert_eq!(get(of(&two.session), &one.token).await, 404);
    assert_eq!(get(of(&two.session), &shop.key).await, 200, "the environment's key is good for all of them");
    for path in ["/v1/sessions", "/v1/agents", "/v1/environments", "/v1/sortie/routes", "/v1/sortie/keys"] {
        assert_eq!(get(path.to_owned(), &one.token).await, 403, "{path}");
        assert_eq!(get(path.to_owned(), &shop.key).await, 403, "{path}");
    }
    let other = Item { id: two.id.clone(), ..one };
    assert_eq!(shop.beat(&other, "NO_HEARTBEAT").await.status, 404);
    let one = Item { id: shop.hub.get(&shop.path("")).await.data()[1]["id"].as_str().expect("id").to_owned(), ..other };
    assert_eq!(shop.state(&one).await, "starting");
    // A session that is over for its worker.
    shop.stop(&one, json!({"force": true}), &shop.hub.manage).await;
    assert_eq!(get(of(&one.session), &one.token).await, 401);
    assert_eq!(shop.beat(&one, "x").await.text("/state"), "stopped");
    // The key's end is the end of its tokens.
    let path = format!("/v1/sortie/environments/{}/keys/{}/archive", shop.environment, shop.key_id);
    assert_eq!(shop.hub.post(&path, json!({})).await.status, 200);
    assert_eq!(get(of(&two.session), &two.token).await, 401);
    assert_eq!(shop.ask(Method::GET, "/poll", &shop.key).await.status, 401);
}

#[tokio::test]
async fn several_keys_live_at_one_time_and_are_shown_once() {
    let shop = Shop::open(Limits::default()).await;
    let keys = format!("/v1/sortie/environments/{}/keys", shop.environment);
    let second = shop.hub.post(&keys, json!({"name": "second", "expires_at": "2040-01-01T00:00:00Z"})).await;
    assert_eq!((second.text("/kind"), second.text("/environment_id")), ("environment", shop.environment.as_str()));
    assert_eq!(second.header("cache-control"), Some("no-store"));
    for secret in [&shop.key, second.text("/secret")] {
        assert_eq!(shop.ask(Method::GET, "/poll", secret).await.status, 200);
    }
    let listed = shop.hub.get(&keys).await;
    assert_eq!(listed.data().len(), 2);
    assert!(!listed.body.to_string().contains(second.text("/secret")));
    let past = shop.hub.post(&keys, json!({"name": "past", "expires_at": "2020-01-01T00:00:00Z"})).await;
    assert_eq!(past.error().0, 400);
    let made = shop.hub.post("/v1/sortie/keys", json!({"kind": "environment", "name": "x"})).await;
    assert_eq!(made.error().0, 400, "not without its environment");
}

#[tokio::test]
async fn metadata_is_merged_within_bounds() {
    let shop = Shop::open(Limits::default()).await;
    shop.session().await;
    let item = shop.item().await;
    let path = shop.path(&format!("/{}", item.id));
    let set = shop.hub.post(&path, json!({"metadata": {"a": "1", "b": "2"}})).await;
    assert_eq!(set.body["metadata"], json!({"a": "1", "b": "2"}));
    let set = shop.hub.post(&path, json!({"metadata": {"a": null, "c": "3"}})).await;
    assert_eq!(set.body["metadata"], json!({"b": "2", "c": "3"}));
    let bad = shop.hub.post(&path, json!({"metadata": {"d": "x".repeat(513)}})).await;
    assert_eq!((bad.error().0, &bad.body["error"]["details"]["error_code"]), (400, &json!("invalid_metadata")));
    assert_eq!(shop.hub.get(&path).await.body["metadata"], json!({"b": "2", "c": "3"}));
}

#[tokio::test]
async fn a_health_check_is_answered_by_a_worker_that_stops_it() {
    let shop = Shop::open(Limits::default()).await;
    let path = format!("/v1/sortie/environments/{}/healthcheck", shop.environment);
    let made = shop.hub.post(&path, json!({})).await;
    assert_eq!(made.text("/outcome"), "waiting");
    let item = shop.taken().await;
    assert_eq!(item.id, made.text("/id"));
    shop.stop(&item, json!({"force": true}), &item.token).await;
    let checked = shop.hub.get(&format!("{path}/{}", item.id)).await;
    assert_eq!((checked.text("/outcome"), checked.text("/worker_id")), ("passed", "test"));
    for _ in 0..16 {
        assert_eq!(shop.hub.post(&path, json!({})).await.status, 200);
    }
    assert_eq!(shop.hub.post(&path, json!({})).await.error().0, 400, "only so many wait");
}
