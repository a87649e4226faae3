//! A hub's API over a store of its own, with rules for certificates that a test can meet by hand.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde_json::Value;
use sortie_api::{CreateKey, Discovery, Grant, KeyKind, Limits};
use sortie_edge::Links;
use sortie_hub::api::{ApiState, CheckedCa, router};
use sortie_hub::{Audit, AuditConfig, Gateways, Signer, Validator};
use sortie_ids::{Digest, KeyId, TunnelId};
use sortie_orchestrator::live::Live;
use sortie_orchestrator::mcp::NoServers;
use sortie_orchestrator::models::Catalog;
use sortie_orchestrator::queue::Terms;
use sortie_orchestrator::sessions::{Sessions, Settings};
use sortie_orchestrator::work::Queues;
use sortie_runtime::TaskSet;
use sortie_store::Store;
use tempfile::TempDir;
use tower::ServiceExt as _;

/// The service with one key of each kind.
pub(crate) struct Hub {
    pub(crate) router: Router,
    pub(crate) store: Store,
    pub(crate) manage: String,
    pub(crate) manage_id: KeyId,
    pub(crate) usage: String,
    /// Made for the grant of the `use` key, and archived again.
    pub(crate) first_tunnel: TunnelId,
    dir: TempDir,
    _tasks: TaskSet,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Status, kind and message of an error, whose form is checked.
    pub(crate) fn error(&self) -> (u16, &str, &str) {
        assert_eq!(self.text("/type"), "error", "{}", self.body);
        assert_eq!(Some(self.text("/request_id")), self.header("request-id"));
        assert_eq!(self.header("content-type"), Some("application/json"));
        (self.status.as_u16(), self.text("/error/type"), self.text("/error/message"))
    }

    /// The objects of a list.
    pub(crate) fn data(&self) -> &[Value] {
        let data = self.body.get("data").and_then(Value::as_array);
        data.unwrap_or_else(|| panic!("no list: {}", self.body))
    }

    /// The text at this place (RFC 6901) of the body.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        let found = self.body.pointer(pointer).and_then(Value::as_str);
        found.unwrap_or_else(|| panic!("no text at {pointer} of {}", self.body))
    }
}

impl Hub {
    pub(crate) async fn new() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub(crate) async fn with_limits(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let home = store.default_workspace().clone();
        let new = |kind, grants| CreateKey {
            role: None,
            kind,
            name: "test".parse().expect("name"),
            expires_at: None,
            grants,
            agent: None,
            user: None,
            workspace_id: None,
        };
        let manage = store.create_key(&home, new(KeyKind::Manage, Vec::new()), &limits).await.expect("key");
        let tunnel = store.create_tunnel(&home, None, &limits).await.expect("tunnel");
        let grants = vec![Grant { tunnel_id: tunnel.id.clone(), route: None }];
        let usage = store.create_key(&home, new(KeyKind::Use, grants), &limits).await.expect("key");
        store.archive_tunnel(&home, &tunnel.id).await.expect("archived");
        let discovery = Discovery {
            base_domain: "sortie.localhost".to_owned(),
            edge_addr: "127.0.0.1:4443".to_owned(),
            edge_ca_pem: "-----BEGIN CERTIFICATE-----".to_owned(),
            identity_jwks: serde_json::Value::Null,
            api_version: "2026-10-21".to_owned(),
        };
        let audit_dir = dir.path().join("audit");
        let audit = Audit::open(audit_dir, dir.path().join("audit.key"), &AuditConfig::default()).expect("audit");
        let base_domain = "sortie.localhost".parse().expect("base domain");
        let (links, edge_port) = (Links::default(), 4443);
        let signer = Signer::open(&store, None, None).await.expect("signer");
        let api_url = "http://127.0.0.1:4180".to_owned();
        let tasks = TaskSet::new();
        let (lease_seconds, start_seconds) = (limits.work_lease_seconds, limits.work_start_seconds);
        let work = Queues::start(store.clone(), Terms { lease_seconds, start_seconds }, &tasks).await.expect("queues");
        let live = Live::start(&tasks);
        let (models, servers) = (Arc::new(Catalog::default()), Arc::new(NoServers));
        let sessions =
            Sessions::start(store.clone(), models.clone(), servers, live.clone(), Settings::default(), tasks.clone());
        let state = ApiState {
            sessions,
            models,
            live,
            store: store.clone(),
            base_domain,
            limits,
            check_ca,
            signer,
            api_url,
            discovery,
            links,
            gateways: Gateways::default(),
            validator: Validator::default(),
            audit,
            work,
            edge_port,
        };
        Self {
            router: router(state),
            store,
            manage: manage.secret.expose().to_owned(),
            manage_id: manage.key.id,
            usage: usage.secret.expose().to_owned(),
            first_tunnel: tunnel.id,
            dir,
            _tasks: tasks,
        }
    }

    /// The records so far, in their order.
    pub(crate) fn records(&self) -> Vec<Value> {
        let mut files: Vec<_> = std::fs::read_dir(self.dir.path().join("audit/log"))
            .expect("log")
            .map(|entry| entry.expect("entry").path())
            .collect();
        files.sort();
        let text: String = files.iter().map(|file| std::fs::read_to_string(file).expect("file")).collect();
        text.lines().map(|line| serde_json::from_str(line).expect("json")).collect()
    }

    /// Whether a file below the data directory holds this text.
    pub(crate) fn holds(&self, text: &str) -> bool {
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("folder") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if std::fs::read(&path).expect("file").windows(text.len()).any(|part| part == text.as_bytes()) {
                    return true;
                }
            }
        }
        false
    }

    /// Sends a request with the `manage` key; `body` is sent as it is when it is a JSON string.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Value) -> Answer {
        self.send_with(method, path, body, &[("x-api-key", &self.manage)]).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn send_with(&self, method: Method, path: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Value::Null => Body::empty(),
            Value::String(text) => Body::from(text),
            value => Body::from(value.to_string()),
        };
        let response = self.router.clone().oneshot(request.body(body).expect("request")).await.expect("response");
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.expect("body").to_bytes();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).expect("json") };
        Answer { status: head.status, headers: head.headers, body }
    }
}

/// A PEM text that [`check_ca`] accepts.
pub(crate) fn pem(name: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(name))
}

/// Takes any bytes in one PEM block for a certificate that is valid until 2040.
fn check_ca(pem: &str) -> Result<CheckedCa, String> {
    let inner = pem.trim().strip_prefix("-----BEGIN CERTIFICATE-----");
    let inner = inner.and_then(|rest| rest.strip_suffix("-----END CERTIFICATE-----"));
    let text: String = inner.ok_or("not one PEM block")?.split_whitespace().collect();
    let der = STANDARD.decode(text).map_err(|_| "not base64")?;
    let expires_at: Timestamp = "2040-01-01T00:00:00Z".parse().map_err(|_| "no time")?;
    Ok(CheckedCa { fingerprint: Digest::of(&der), expires_at })
}
