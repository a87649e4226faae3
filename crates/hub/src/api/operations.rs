//! Everything that the API's listener answers, in one table. The router, who may ask, and the OpenAPI document are made
//! from it, so that none of them can know an operation that the others do not.

mod resources;
mod sessions;
mod work;

use std::sync::{Arc, LazyLock};

use axum::routing::{MethodRouter, get, post};
use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use sortie_api::{
    Approval, CreateCertificate, CreateKey, CreateTunnel, CreateWorkspace, CreatedKey, DecideApproval, Discovery,
    IdentityRotation, Key, KeyRole, List, OrganizationTunnel, PublishedCheckpoint, RotateIdentity, RotateToken, Route,
    Tunnel, TunnelCertificate, TunnelToken, Workspace,
};
use sortie_audit::{Kind, kinds};

use super::{
    ApiState, approvals, certificates, checkpoints, identity, keys, openapi, organization, routes, tunnels, workspaces,
};

/// Who may ask for an operation. An object outside of what they act on is not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Whoever reaches the listener.
    Anyone,
    /// A key of any kind.
    AnyKey,
    /// A `manage` key; acts on its own workspace.
    Manage,
    /// A `manage` key of the default workspace; acts on the whole organisation.
    Organization,
    /// A key that may call the route.
    Route,
    /// The key of an environment.
    Queue,
    /// The key of an environment, or the token of an item of its work.
    Lease,
    /// A `manage` key, or the key of an environment.
    Environment,
    /// A `manage` key, or for what they work at, the key of an environment or the token of an item of its work.
    Worker,
}

/// Largest body of an operation that says nothing else, in bytes.
const USUAL_BODY: usize = 64 * 1024;
/// Largest body of an operation that takes whole definitions or conversations, in bytes, as the public contract has it.
const LARGE_BODY: usize = 32 * 1024 * 1024;

/// What answers an operation outside of the API's router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    /// That the process serves.
    Health,
    /// That its store answers, too.
    Ready,
    /// Its metrics.
    Metrics,
    /// A call to a route.
    Call,
}

/// The router of one operation, with its handler.
type Handler = fn() -> MethodRouter<Arc<ApiState>>;

/// Where an operation is answered.
#[derive(Clone, Copy)]
pub(super) enum Served {
    Router(Handler),
    Front(Own),
}

/// What an answer holds.
pub(super) enum Answer {
    Json(SchemaOf),
    /// Text of this content type.
    Text(&'static str),
    /// Whatever the MCP server answers.
    Anything,
}

pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One operation.
pub(super) struct Operation {
    /// None stands for every method.
    pub(super) method: Option<Method>,
    pub(super) path: String,
    pub(super) id: String,
    pub(super) summary: &'static str,
    pub(super) access: Access,
    /// How much a `manage` key must be allowed to do, to ask for it.
    pub(super) role: KeyRole,
    pub(super) served: Served,
    pub(super) request: Option<SchemaOf>,
    pub(super) answer: Answer,
    /// Whether it takes an idempotency key.
    pub(super) creates: bool,
    /// Whether its answer is a page, so that it takes what pages are asked for with.
    pub(super) paged: bool,
    /// Further parameters of its query, with their descriptions.
    pub(super) query: Vec<(&'static str, &'static str)>,
    pub(super) deprecated: bool,
    /// Largest body that it takes, in bytes; a larger one is answered with 413.
    pub(super) body: usize,
    /// The events that it may leave in the audit. Whatever changes something or shows a secret leaves some.
    pub(super) leaves: &'static [Kind],
    /// Whether it changes something and leaves no events all the same, as it is asked for every few seconds.
    pub(super) unrecorded: bool,
}

impl Operation {
    fn new(method: Option<Method>, path: &str, id: &str, access: Access, served: Served) -> Self {
        let (path, id) = (path.to_owned(), id.to_owned());
        let (request, answer, query) = (None, Answer::Anything, Vec::new());
        let (creates, paged, deprecated) = (false, false, path.starts_with("/v1/organizations/"));
        let (summary, role) = ("", least_role(method.as_ref(), &path));
        Self {
            method,
            path,
            id,
            summary,
            access,
            role,
            served,
            request,
            answer,
            creates,
            paged,
            query,
            deprecated,
            body: USUAL_BODY,
            leaves: &[],
            unrecorded: false,
        }
    }

    fn get(path: &str, id: &str, access: Access, served: Handler) -> Self {
        Self::new(Some(Method::GET), path, id, access, Served::Router(served))
    }

    /// What changes something or shows a secret, with the events that it leaves.
    fn post(path: &str, id: &str, access: Access, leaves: &'static [Kind], served: Handler) -> Self {
        Self { leaves, ..Self::new(Some(Method::POST), path, id, access, Served::Router(served)) }
    }

    /// What takes something away, with the events that it leaves.
    fn delete(path: &str, id: &str, access: Access, leaves: &'static [Kind], served: Handler) -> Self {
        Self { leaves, ..Self::new(Some(Method::DELETE), path, id, access, Served::Router(served)) }
    }

    fn front(path: &str, id: &str, access: Access, own: Own) -> Self {
        let method = (own != Own::Call).then_some(Method::GET);
        Self::new(method, path, id, access, Served::Front(own))
    }

    fn says(self, summary: &'static str) -> Self {
        Self { summary, ..self }
    }

    fn takes<T: JsonSchema>(self) -> Self {
        Self { request: Some(SchemaGenerator::subschema_for::<T>), ..self }
    }

    fn makes<T: JsonSchema>(self) -> Self {
        Self { creates: true, ..self.answers::<T>() }
    }

    fn answers<T: JsonSchema>(self) -> Self {
        Self { answer: Answer::Json(SchemaGenerator::subschema_for::<T>), ..self }
    }

    fn lists<T: JsonSchema>(self) -> Self {
        Self { paged: true, ..self.answers::<List<T>>() }
    }

    fn text(self, kind: &'static str) -> Self {
        Self { answer: Answer::Text(kind), ..self }
    }

    fn large(self) -> Self {
        Self { body: LARGE_BODY, ..self }
    }

    fn asks(mut self, name: &'static str, description: &'static str) -> Self {
        self.query.push((name, description));
        self
    }

    fn unrecorded(self) -> Self {
        Self { unrecorded: true, ..self }
    }
}

/// What those who build agents work on.
const OF_DEVELOPERS: [&str; 4] = ["/v1/agents", "/v1/environments", "/v1/sessions", "/v1/vaults"];

/// Reading is for all; those who build agents change what these are made of; everything else is for administrators.
fn least_role(method: Option<&Method>, path: &str) -> KeyRole {
    let within = |place: &&str| path.strip_prefix(*place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    match method {
        Some(&Method::GET) => KeyRole::Viewer,
        _ if OF_DEVELOPERS.iter().any(within) => KeyRole::Developer,
        _ => KeyRole::Admin,
    }
}

/// What answers this path outside of the router.
pub(crate) fn own(path: &str) -> Option<Own> {
    OPERATIONS.iter().find_map(|operation| match operation.served {
        Served::Front(own) if operation.path == path => Some(own),
        _ => None,
    })
}

/// The table.
pub(super) static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let mut all = tunnels_of("/v1/tunnels", "", Access::Manage);
    all.extend([
        Operation::post("/v1/tunnels", "create_tunnel", Access::Manage, &[kinds::TUNNEL_CREATED], || {
            post(tunnels::create)
        })
        .says("Make a tunnel. It takes calls once a CA certificate is registered on it.")
        .takes::<CreateTunnel>()
        .makes::<Tunnel>(),
        Operation::get("/v1/tunnels", "list_tunnels", Access::Manage, || get(tunnels::list))
            .says("List the tunnels of the workspace, newest first.")
            .lists::<Tunnel>(),
        Operation::get("/v1/tunnels/{tunnel_id}", "get_tunnel", Access::Manage, || get(tunnels::retrieve))
            .says("Show a tunnel.")
            .answers::<Tunnel>(),
        Operation::post(
            "/v1/tunnels/{tunnel_id}/archive",
            "archive_tunnel",
            Access::Manage,
            &[kinds::CERTIFICATE_REVOKED, kinds::TUNNEL_ARCHIVED],
            || post(tunnels::archive),
        )
        .says("Retire a tunnel for ever, with its hostname, token and certificates; its links are cut.")
        .answers::<Tunnel>(),
    ]);
    all.extend(tunnels_of("/v1/organizations/tunnels", "organization_", Access::Organization));
    all.extend(organization_tunnels());
    all.extend(resources::all());
    all.extend(sessions::all());
    all.extend(work::all());
    all.extend(beside());
    all.extend(outside());
    all
});

/// What both surfaces of tunnels have in common; their operations differ by the beginnings of path and id.
fn tunnels_of(base: &str, prefix: &str, access: Access) -> Vec<Operation> {
    let id = |name: &str| name.replacen('_', &format!("_{prefix}"), 1);
    let post_to = |rest: &str, name: &str, leaves: &'static [Kind], served: Handler| {
        Operation::post(&format!("{base}/{{tunnel_id}}{rest}"), &id(name), access, leaves, served)
    };
    let get_of = |rest: &str, name: &str, served: Handler| {
        Operation::get(&format!("{base}/{{tunnel_id}}{rest}"), &id(name), access, served)
    };
    vec![
        post_to("/reveal_token", "reveal_tunnel_token", &[kinds::TOKEN_REVEALED], || post(tunnels::reveal_token))
            .says("Show the token that gateways connect with.")
            .answers::<TunnelToken>(),
        post_to("/rotate_token", "rotate_tunnel_token", &[kinds::TOKEN_ROTATED], || post(tunnels::rotate_token))
            .says("Make a new token; the old one opens no new links from now on, links that are open stay.")
            .takes::<RotateToken>()
            .answers::<TunnelToken>(),
        post_to("/certificates", "create_tunnel_certificate", &[kinds::CERTIFICATE_ADDED], || {
            post(certificates::create)
        })
        .says("Register a CA certificate. One that is registered already is answered as it is.")
        .takes::<CreateCertificate>()
        .makes::<TunnelCertificate>(),
        get_of("/certificates", "list_tunnel_certificates", || get(certificates::list))
            .says("List the CA certificates of a tunnel, newest first.")
            .lists::<TunnelCertificate>(),
        get_of("/certificates/{certificate_id}", "get_tunnel_certificate", || get(certificates::retrieve))
            .says("Show a CA certificate.")
            .answers::<TunnelCertificate>(),
        post_to(
            "/certificates/{certificate_id}/archive",
            "archive_tunnel_certificate",
            &[kinds::CERTIFICATE_REVOKED],
            || post(certificates::archive),
        )
        .says("Trust a CA certificate no more; what it vouches for is cut.")
        .answers::<TunnelCertificate>(),
    ]
}

fn organization_tunnels() -> Vec<Operation> {
    let (base, access) = ("/v1/organizations/tunnels", Access::Organization);
    vec![
        Operation::get(base, "list_organization_tunnels", access, || get(organization::list))
            .says("List the tunnels of all workspaces, newest first.")
            .asks("workspace_id", "Only those of this workspace; `default` names the default one.")
            .lists::<OrganizationTunnel>(),
        Operation::get("/v1/organizations/tunnels/{tunnel_id}", "get_organization_tunnel", access, || {
            get(organization::retrieve)
        })
        .says("Show a tunnel of any workspace.")
        .answers::<OrganizationTunnel>(),
        Operation::post(
            "/v1/organizations/tunnels/{tunnel_id}/archive",
            "archive_organization_tunnel",
            access,
            &[kinds::CERTIFICATE_REVOKED, kinds::TUNNEL_ARCHIVED],
            || post(organization::archive),
        )
        .says("Retire a tunnel of any workspace for ever.")
        .answers::<OrganizationTunnel>(),
    ]
}

/// What Sortie adds.
fn beside() -> Vec<Operation> {
    vec![
        Operation::post("/v1/sortie/keys", "create_key", Access::Manage, &[kinds::KEY_MINTED], || post(keys::create))
            .says("Make a key; its secret is shown this once.")
            .takes::<CreateKey>()
            .makes::<CreatedKey>(),
        Operation::get("/v1/sortie/keys", "list_keys", Access::Manage, || get(keys::list))
            .says("List the keys of the workspace, newest first.")
            .lists::<Key>(),
        Operation::get("/v1/sortie/keys/{key_id}", "get_key", Access::Manage, || get(keys::retrieve))
            .says("Show a key.")
            .answers::<Key>(),
        Operation::post("/v1/sortie/keys/{key_id}/archive", "archive_key", Access::Manage, &[kinds::KEY_REVOKED], || post(keys::archive))
            .says("Withdraw a key at once. A key cannot withdraw itself.")
            .answers::<Key>(),
        Operation::post("/v1/sortie/workspaces", "create_workspace", Access::Organization, &[kinds::WORKSPACE_CREATED], || post(workspaces::create))
            .says("Make a workspace.")
            .takes::<CreateWorkspace>()
            .makes::<Workspace>(),
        Operation::get("/v1/sortie/workspaces", "list_workspaces", Access::Organization, || get(workspaces::list))
            .says("List the workspaces of the organisation, newest first.")
            .lists::<Workspace>(),
        Operation::get("/v1/sortie/routes", "list_routes", Access::AnyKey, || get(routes::list))
            .says("List the routes of connected gateways that the key may call, in one page.")
            .answers::<List<Route>>(),
        Operation::get("/v1/sortie/tunnels/{tunnel_id}/checkpoints", "list_checkpoints", Access::Manage, || {
            get(checkpoints::list)
        })
        .says("List the checkpoints that the gateways of a tunnel published of their audit logs, newest first.")
        .lists::<PublishedCheckpoint>(),
        Operation::get("/v1/sortie/tunnels/{tunnel_id}/approvals", "list_approvals", Access::Manage, || {
            get(approvals::list)
        })
        .says("List the calls that wait for a person at the connected gateways of a tunnel, the oldest first, in one page.")
        .answers::<List<Approval>>(),
        Operation::post("/v1/sortie/tunnels/{tunnel_id}/approvals/{approval_id}", "decide_approval", Access::Manage, &[kinds::HUB_APPROVAL_DECIDED], || {
            post(approvals::decide)
        })
        .says("Approve or deny a call that waits, where its gateway takes decisions from here. The first decision counts.")
        .takes::<DecideApproval>()
        .answers::<Approval>(),
        Operation::get("/v1/sortie/discovery", "get_discovery", Access::Manage, || get(super::discovery))
            .says("Tell where the rest of the installation is.")
            .answers::<Discovery>(),
        Operation::post("/v1/sortie/identity/rotate", "rotate_identity", Access::Organization, &[kinds::IDENTITY_KEY_ROTATED], || {
            post(identity::rotate)
        })
        .says("Change the key that callers' identities are signed with. Gateways follow by themselves; 409 while an old one is in use.")
        .takes::<RotateIdentity>()
        .answers::<IdentityRotation>(),
        Operation::get("/.well-known/openid-configuration", "get_openid_configuration", Access::Anyone, || {
            get(identity::configuration)
        })
        .says("Tell who signs callers' identities, and where the keys are.")
        .answers::<serde_json::Map<String, serde_json::Value>>(),
        Operation::get("/.well-known/jwks.json", "get_jwks", Access::Anyone, || get(identity::jwks))
            .says("Show the keys that callers' identities are signed with.")
            .answers::<serde_json::Map<String, serde_json::Value>>(),
        Operation::get("/v1/sortie/openapi.json", "get_openapi", Access::Anyone, || get(openapi::serve))
            .says("Show this document.")
            .answers::<serde_json::Map<String, serde_json::Value>>(),
    ]
}

/// What other parts of the hub answer on the same listener.
fn outside() -> Vec<Operation> {
    vec![
        Operation::front("/healthz", "get_health", Access::Anyone, Own::Health)
            .says("Tell that the process serves.")
            .text("text/plain"),
        Operation::front("/readyz", "get_readiness", Access::Anyone, Own::Ready)
            .says("Tell whether the store answers; 503 when it does not.")
            .answers::<serde_json::Map<String, serde_json::Value>>(),
        Operation::front("/metrics", "get_metrics", Access::Manage, Own::Metrics)
            .says("Show the metrics in Prometheus' text format.")
            .text("text/plain"),
        Operation::front("/t/{label}/{route}/{path}", "call_route", Access::Route, Own::Call)
            .says("Call a route: any method, any number of path segments behind the route, both bodies streamed."),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viewers_change_nothing_and_see_no_secret() {
        for operation in OPERATIONS.iter().filter(|operation| operation.role == KeyRole::Viewer) {
            // Whatever shows a secret leaves a record.
            assert!(operation.method == Some(Method::GET) && operation.leaves.is_empty(), "{}", operation.id);
        }
        let role = |id: &str| OPERATIONS.iter().find(|operation| operation.id == id).map(|operation| operation.role);
        for id in
            ["create_key", "archive_key", "create_tunnel", "reveal_tunnel_token", "create_workspace", "rotate_identity"]
        {
            assert_eq!(role(id), Some(KeyRole::Admin), "{id}");
        }
        for id in ["create_agent", "create_environment", "create_session"] {
            assert_eq!(role(id), Some(KeyRole::Developer), "{id}");
        }
        assert_eq!(least_role(Some(&Method::POST), "/v1/agentsx"), KeyRole::Admin);
    }

    #[test]
    fn what_changes_something_leaves_records() {
        for operation in OPERATIONS.iter() {
            let read = operation.method.as_ref().is_none_or(|method| *method == Method::GET);
            assert_eq!(operation.leaves.is_empty(), read || operation.unrecorded, "{}", operation.id);
        }
    }
}
