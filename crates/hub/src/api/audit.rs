//! The records of management: what is asked for is kept before it is done, and what came of it before it is answered.
//! Events have the names that the public contract gives them. Never a secret.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::RequestExt as _;
use axum::extract::{RawPathParams, Request};
use axum::http::header;
use serde_json::{Value, json};
use sortie_api::{
    Agent, ApiError, Approval, Credential, CredentialValidation, Environment, Event, EventBody, Key, Session,
    TunnelCertificate, TunnelToken, Vault, Workspace,
};
use sortie_audit::{Draft, DraftError, Kind, Management, kinds};
use sortie_ids::{CredentialId, EnvironmentId, RequestId, SessionId, TunnelId, VaultId};
use sortie_store::ArchivedVault;

use super::Caller;
use super::frame::{Call, Failure};
use super::operations::Operation;
use crate::audit::{Audit, PeerAddress, visible, visible_values};

/// Longest user agent in a record, in characters.
const MAX_AGENT: usize = 200;
/// Longest id of a path in a record, in characters; one of ours is shorter.
const MAX_ID: usize = 100;
/// Longest reason in a record, in characters.
const MAX_REASON: usize = 1000;

/// What is recorded of one request. Clones are of the same request.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Inner>);

struct Inner {
    audit: Audit,
    request: RequestId,
    operation: &'static Operation,
    actor: Value,
    target: Value,
    /// What was done, to be kept when the handler has ended.
    events: Mutex<Vec<Result<Draft, DraftError>>>,
}

impl Ledger {
    /// Keeps the record that an operation begins which leaves any.
    ///
    /// # Errors
    /// 503 when it is not kept: nothing may be done then.
    pub(super) async fn begin(
        audit: &Audit,
        operation: &'static Operation,
        caller: &Caller,
        request: &mut Request,
    ) -> Result<Self, ApiError> {
        let actor = actor(caller, request);
        let ids = request.extract_parts::<RawPathParams>().await;
        let target = ids.map(|ids| visible_values(ids.iter(), MAX_ID)).unwrap_or_default().into();
        let id = request.extensions().get::<RequestId>().cloned().ok_or_else(ApiError::internal)?;
        let (audit, events) = (audit.clone(), Mutex::default());
        let ledger = Self(Arc::new(Inner { audit, request: id, operation, actor, target, events }));
        if !operation.leaves.is_empty()
            && let Err(behind) = ledger.0.audit.admits()
        {
            metrics::counter!("sortie_hub_audit_sink_refusals_total", "sink" => behind.sink.clone()).increment(1);
            let sentence = format!("The audit sink `{}` is too far behind, so nothing was done.", behind.sink);
            return Err(ApiError::overloaded(sentence));
        }
        if operation.leaves.is_empty()
            || ledger.keep(vec![ledger.draft(kinds::MANAGEMENT_REQUESTED, Value::Null)]).await
        {
            return Ok(ledger);
        }
        let sentence = "The audit log takes no records, so nothing was done; the hub's log and /readyz say why.";
        Err(ApiError::overloaded(sentence))
    }

    /// Keeps the records of what came of it.
    ///
    /// # Errors
    /// 503 when they are not kept: the answer, which may show a secret, must not go out then.
    pub(super) async fn end(&self, outcome: Result<(), (u16, String)>) -> Result<(), ApiError> {
        let mut records = std::mem::take(&mut *self.0.events.lock().unwrap_or_else(PoisonError::into_inner));
        match outcome {
            _ if self.0.operation.leaves.is_empty() => {}
            Err((status, reason)) => {
                let fields = json!({"status": status, "reason": visible(&reason, MAX_REASON)});
                records.push(self.draft(kinds::MANAGEMENT_REFUSED, fields));
            }
            Ok(()) if records.is_empty() => records.push(self.draft(kinds::MANAGEMENT_UNCHANGED, Value::Null)),
            Ok(()) => {}
        }
        if self.keep(records).await {
            return Ok(());
        }
        let sentence = "The audit log took no record of the outcome, so it is not shown. What was asked for may have \
                        been done: look before you ask again.";
        Err(ApiError::overloaded(sentence).with_retry(false))
    }

    pub(super) fn note(&self, kind: Kind, fields: Value) {
        let draft = self.draft(kind, fields);
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner).push(draft);
    }

    fn draft(&self, kind: Kind, fields: Value) -> Result<Draft, DraftError> {
        let Inner { request, operation, actor, target, .. } = &*self.0;
        tracing::info!(
            target: "sortie::audit",
            code = kind.code,
            event = kind.event,
            request_id = %request,
            operation = operation.id,
            actor = %actor,
            fields = %fields,
            "{}", kind.about
        );
        let mut all = BTreeMap::from([
            ("operation".to_owned(), Value::from(operation.id.as_str())),
            ("target".to_owned(), target.clone()),
        ]);
        if let Value::Object(fields) = fields {
            all.extend(fields);
        }
        Draft::new(kind, &Management { id: request.to_string(), actor: actor.clone(), fields: all })
    }

    async fn keep(&self, records: Vec<Result<Draft, DraftError>>) -> bool {
        match records.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(drafts) => self.0.audit.append(&drafts).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, request_id = %self.0.request, "a record could not be written");
                false
            }
        }
    }
}

/// Who asks, as far as the hub knows: the key, for whom it was made, and where the request came from.
fn actor(caller: &Caller, request: &Request) -> Value {
    let key = &caller.key;
    let agent = request.headers().get(header::USER_AGENT);
    let agent = agent.map(|agent| visible(&String::from_utf8_lossy(agent.as_bytes()), MAX_AGENT));
    let mut actor = json!({
        "type": "key",
        "key_id": key.id,
        "key_kind": key.kind.as_str(),
        "agent": key.agent,
        "user": key.user,
        "work_id": caller.work.as_ref().map(|work| &work.work),
        "organization_id": key.organization,
        "workspace_id": key.workspace,
        "ip_address": request.extensions().get::<PeerAddress>().map(|peer| peer.0),
        "user_agent": agent,
    });
    if let Some(members) = actor.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    actor
}

/// The status and the reason of an answer that is a refusal or a failure.
pub(super) fn outcome(response: &axum::response::Response) -> Result<(), (u16, String)> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let reason = response.extensions().get::<Failure>().map(|failure| failure.message().to_owned());
    Err((status.as_u16(), reason.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().to_owned())))
}

pub(super) fn tunnel_created(call: &Call, tunnel: &TunnelId) {
    call.note(kinds::TUNNEL_CREATED, json!({"tunnel_id": tunnel}));
}

pub(super) fn tunnel_archived(call: &Call, tunnel: &TunnelId) {
    call.note(kinds::TUNNEL_ARCHIVED, json!({"tunnel_id": tunnel}));
}

pub(super) fn approval_decided(call: &Call, tunnel: &TunnelId, approval: &Approval) {
    let status = approval.status.as_str();
    let fields = json!({"tunnel_id": tunnel, "approval_id": approval.id, "status": status});
    call.note(kinds::HUB_APPROVAL_DECIDED, fields);
}

pub(super) fn token_revealed(call: &Call, tunnel: &TunnelId, token: &TunnelToken) {
    call.note(kinds::TOKEN_REVEALED, json!({"tunnel_id": tunnel, "tunnel_token_id": token.id}));
}

pub(super) fn token_rotated(call: &Call, tunnel: &TunnelId, token: &TunnelToken, reason: Option<&str>) {
    let fields = json!({"tunnel_id": tunnel, "tunnel_token_id": token.id, "reason": reason});
    call.note(kinds::TOKEN_ROTATED, fields);
}

pub(super) fn certificate_added(call: &Call, certificate: &TunnelCertificate) {
    call.note(kinds::CERTIFICATE_ADDED, of_certificate(certificate));
}

pub(super) fn certificate_revoked(call: &Call, certificate: &TunnelCertificate) {
    call.note(kinds::CERTIFICATE_REVOKED, of_certificate(certificate));
}

fn of_certificate(certificate: &TunnelCertificate) -> Value {
    json!({
        "tunnel_id": certificate.tunnel_id,
        "certificate_id": certificate.id,
        "certificate_fingerprint": certificate.fingerprint.to_string(),
    })
}

pub(super) fn agent_created(call: &Call, agent: &Agent) {
    call.note(kinds::AGENT_CREATED, of_agent(agent));
}

/// With the members that are different from before.
pub(super) fn agent_updated(call: &Call, agent: &Agent, members: &[&str]) {
    call.note(kinds::AGENT_UPDATED, with(of_agent(agent), "changed", json!(members)));
}

pub(super) fn agent_archived(call: &Call, agent: &Agent) {
    call.note(kinds::AGENT_ARCHIVED, of_agent(agent));
}

/// An object with one member more.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
    object
}

fn of_agent(agent: &Agent) -> Value {
    json!({"agent_id": agent.id, "agent_version": agent.version, "agent_name": agent.definition.name})
}

pub(super) fn session_created(call: &Call, session: &Session) {
    let fields = json!({
        "session_id": session.id,
        "agent_id": session.agent.id,
        "agent_version": session.agent.version,
        "environment_id": session.environment_id,
        "vault_ids": session.vault_ids,
    });
    call.note(kinds::SESSION_CREATED, fields);
}

/// With the members that are different from before.
pub(super) fn session_updated(call: &Call, before: &Session, after: &Session) {
    let changed = [
        ("title", before.title != after.title),
        ("metadata", before.metadata != after.metadata),
        ("tools", before.agent.tools != after.agent.tools),
        ("mcp_servers", before.agent.mcp_servers != after.agent.mcp_servers),
    ];
    let changed: Vec<_> = changed.iter().filter_map(|(member, differs)| differs.then_some(member)).collect();
    call.note(kinds::SESSION_UPDATED, json!({"session_id": after.id, "changed": changed}));
}

pub(super) fn session_archived(call: &Call, session: &SessionId) {
    call.note(kinds::SESSION_ARCHIVED, json!({"session_id": session}));
}

pub(super) fn session_deleted(call: &Call, session: &SessionId) {
    call.note(kinds::SESSION_DELETED, json!({"session_id": session}));
}

/// What was sent, without what was said: types, and what was decided about tool uses.
pub(super) fn session_events_sent(call: &Call, session: &SessionId, events: &[Event]) {
    let events: Vec<_> = events
        .iter()
        .map(|event| {
            let verdict = match &event.body {
                EventBody::UserToolConfirmation { result, .. } => Some(result),
                _ => None,
            };
            let mut shown = json!({"event_id": event.id, "type": event.body.kind()});
            if let Some(tool_use) = event.body.answers() {
                shown = with(shown, "tool_use_id", json!(tool_use));
            }
            match verdict {
                Some(verdict) => with(shown, "result", json!(verdict)),
                None => shown,
            }
        })
        .collect();
    call.note(kinds::SESSION_EVENTS_SENT, json!({"session_id": session, "events": events}));
}

pub(super) fn environment_created(call: &Call, environment: &Environment) {
    call.note(kinds::ENVIRONMENT_CREATED, of_environment(environment));
}

/// With the members that are different from before.
pub(super) fn environment_updated(call: &Call, environment: &Environment, members: &[&str]) {
    call.note(kinds::ENVIRONMENT_UPDATED, with(of_environment(environment), "changed", json!(members)));
}

pub(super) fn environment_archived(call: &Call, environment: &Environment) {
    call.note(kinds::ENVIRONMENT_ARCHIVED, of_environment(environment));
}

pub(super) fn environment_deleted(call: &Call, environment: &EnvironmentId) {
    call.note(kinds::ENVIRONMENT_DELETED, json!({"environment_id": environment}));
}

fn of_environment(environment: &Environment) -> Value {
    let definition = &environment.definition;
    json!({
        "environment_id": environment.id,
        "environment_name": definition.name,
        "environment_type": definition.config.kind(),
    })
}

pub(super) fn vault_created(call: &Call, vault: &Vault) {
    call.note(kinds::VAULT_CREATED, of_vault(vault));
}

/// With the members that are different from before.
pub(super) fn vault_updated(call: &Call, vault: &Vault, members: &[&str]) {
    call.note(kinds::VAULT_UPDATED, with(of_vault(vault), "changed", json!(members)));
}

/// With the credentials that went with it.
pub(super) fn vault_archived(call: &Call, archived: &ArchivedVault) {
    call.note(kinds::VAULT_ARCHIVED, with(of_vault(&archived.vault), "credential_ids", json!(archived.credentials)));
}

pub(super) fn vault_deleted(call: &Call, vault: &VaultId) {
    call.note(kinds::VAULT_DELETED, json!({"vault_id": vault}));
}

fn of_vault(vault: &Vault) -> Value {
    json!({"vault_id": vault.id, "vault_name": vault.display_name})
}

pub(super) fn credential_created(call: &Call, credential: &Credential) {
    call.note(kinds::CREDENTIAL_CREATED, of_credential(credential));
}

/// With the members that are different from before; of secrets only that they are.
pub(super) fn credential_updated(call: &Call, credential: &Credential, members: &[&str]) {
    call.note(kinds::CREDENTIAL_UPDATED, with(of_credential(credential), "changed", json!(members)));
}

pub(super) fn credential_archived(call: &Call, credential: &Credential) {
    call.note(kinds::CREDENTIAL_ARCHIVED, of_credential(credential));
}

pub(super) fn credential_deleted(call: &Call, vault: &VaultId, credential: &CredentialId) {
    call.note(kinds::CREDENTIAL_DELETED, json!({"vault_id": vault, "credential_id": credential}));
}

pub(super) fn credential_validated(call: &Call, validation: &CredentialValidation) {
    let CredentialValidation { vault_id, credential_id, status, .. } = validation;
    let fields = json!({"vault_id": vault_id, "credential_id": credential_id, "status": status});
    call.note(kinds::CREDENTIAL_VALIDATED, fields);
}

/// What is recorded of a credential: what it is for, never its secrets.
fn of_credential(credential: &Credential) -> Value {
    let auth = &credential.definition.auth;
    json!({
        "vault_id": credential.vault_id,
        "credential_id": credential.id,
        "credential_type": auth.kind(),
        "credential_place": auth.place(),
    })
}

pub(super) fn workspace_created(call: &Call, workspace: &Workspace) {
    let fields = json!({"created_workspace_id": workspace.id, "created_workspace_name": workspace.name});
    call.note(kinds::WORKSPACE_CREATED, fields);
}

pub(super) fn key_minted(call: &Call, key: &Key) {
    call.note(kinds::KEY_MINTED, of_key(key));
}

pub(super) fn key_revoked(call: &Call, key: &Key) {
    call.note(kinds::KEY_REVOKED, of_key(key));
}

/// What is recorded of a key: what it allows, never its secret.
pub(crate) fn of_key(key: &Key) -> Value {
    json!({
        "token_id": key.id,
        "token_name": key.name,
        "token_kind": key.kind.as_str(),
        "token_workspace_id": key.workspace_id,
        "token_grants": key.grants,
        "token_agent": key.agent,
        "token_user": key.user,
        "token_environment_id": key.environment_id,
        "token_expires_at": key.expires_at.map(|time| time.to_string()),
    })
}

pub(super) fn identity_rotated(call: &Call, kid: &str, old_kid: &str) {
    call.note(kinds::IDENTITY_KEY_ROTATED, json!({"kid": kid, "old_kid": old_kid}));
}
