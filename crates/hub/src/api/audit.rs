//! Management events for the log, under the names that the public contract gives them. Never a secret.

use sortie_api::{Approval, Key, TunnelCertificate, TunnelToken, Workspace};
use sortie_ids::TunnelId;

use super::frame::Call;

/// Writes one event with who did it and in which request.
macro_rules! event {
    ($call:expr, $name:literal, $($fields:tt)+) => {
        tracing::info!(
            target: "sortie::audit",
            event = $name,
            actor_key_id = %$call.caller.key.id,
            workspace_id = %$call.caller.key.workspace,
            organization_id = %$call.caller.key.organization,
            request_id = %$call.request_id,
            $($fields)+
        )
    };
}

pub(super) fn tunnel_created(call: &Call, tunnel: &TunnelId) {
    event!(call, "tunnel_created", tunnel_id = %tunnel);
}

pub(super) fn tunnel_archived(call: &Call, tunnel: &TunnelId) {
    event!(call, "tunnel_archived", tunnel_id = %tunnel);
}

pub(super) fn approval_decided(call: &Call, tunnel: &TunnelId, approval: &Approval) {
    let status = approval.status.as_str();
    event!(call, "approval_decided", tunnel_id = %tunnel, approval_id = %approval.id, status = status);
}

pub(super) fn token_revealed(call: &Call, tunnel: &TunnelId, token: &TunnelToken) {
    event!(call, "tunnel_token_revealed", tunnel_id = %tunnel, tunnel_token_id = %token.id);
}

pub(super) fn token_rotated(call: &Call, tunnel: &TunnelId, token: &TunnelToken, reason: Option<&str>) {
    event!(call, "tunnel_token_rotated", tunnel_id = %tunnel, tunnel_token_id = %token.id, reason = reason);
}

pub(super) fn certificate_added(call: &Call, certificate: &TunnelCertificate) {
    event!(
        call,
        "tunnel_certificate_added",
        tunnel_id = %certificate.tunnel_id,
        certificate_id = %certificate.id,
        certificate_fingerprint = %certificate.fingerprint,
    );
}

pub(super) fn certificate_revoked(call: &Call, certificate: &TunnelCertificate) {
    event!(
        call,
        "tunnel_certificate_revoked",
        tunnel_id = %certificate.tunnel_id,
        certificate_id = %certificate.id,
        certificate_fingerprint = %certificate.fingerprint,
    );
}

pub(super) fn workspace_created(call: &Call, workspace: &Workspace) {
    let name = workspace.name.as_str();
    event!(call, "workspace_created", created_workspace_id = %workspace.id, created_workspace_name = name);
}

pub(super) fn key_minted(call: &Call, key: &Key) {
    let (name, kind) = (key.name.as_str(), key.kind.as_str());
    event!(call, "tunnel_token_minted", token_id = %key.id, token_name = name, token_kind = kind,
        token_workspace_id = %key.workspace_id);
}

pub(super) fn identity_rotated(call: &Call, kid: &str, old_kid: &str) {
    event!(call, "identity_key_rotated", kid = kid, old_kid = old_kid);
}

pub(super) fn key_revoked(call: &Call, key: &Key) {
    let (name, kind) = (key.name.as_str(), key.kind.as_str());
    event!(call, "tunnel_token_revoked", token_id = %key.id, token_name = name, token_kind = kind);
}
