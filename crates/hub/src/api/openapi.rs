//! The OpenAPI document, made from the table of operations and the types that they take and answer.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse as _, Response};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use sortie_api::ErrorKind;
use sortie_ids::{
    AgentId, CertificateId, CredentialId, EnvironmentId, KeyId, RouteName, SessionId, ThreadId, TunnelId, TunnelLabel,
    VaultId, WorkId,
};

use super::API_VERSIONS;
use super::operations::{Access, Answer, OPERATIONS, Operation};

/// Where the definitions of types lie in the document.
const DEFINITIONS: &str = "/components/schemas";
/// Lists of what is never archived.
const NEVER_ARCHIVED: [&str; 4] = [
    "/v1/sortie/workspaces",
    "/v1/sortie/tunnels/{tunnel_id}/checkpoints",
    "/v1/agents/{agent_id}/versions",
    "/v1/environments/{environment_id}/work",
];
/// The methods that an operation without one is listed under.
const EVERY: [Method; 7] =
    [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::OPTIONS, Method::HEAD, Method::PATCH];

static TEXT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], TEXT.clone()).into_response()
}

/// The description of everything that the API's listener answers (OpenAPI 3.1).
pub fn document() -> Value {
    let settings = || SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = DEFINITIONS.into());
    let mut types = Types {
        sent: settings().for_deserialize().into_generator(),
        answered: settings().for_serialize().into_generator(),
    };
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in OPERATIONS.iter() {
        let path = paths.entry(&operation.path).or_default();
        let methods = operation.method.as_ref().map_or(EVERY.as_slice(), std::slice::from_ref);
        for method in methods {
            path.insert(method.as_str().to_ascii_lowercase(), types.describe(operation, method));
        }
    }
    let error = types.error();
    let mut schemas = types.sent.take_definitions(true);
    schemas.append(&mut types.answered.take_definitions(true));
    schemas.insert("Error".to_owned(), error);
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sortie",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The API's listener of a Sortie hub: the public tunnels API, and what Sortie adds.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": parameters(),
            "responses": {"Error": {
                "description": "The request was refused, or failed.",
                "headers": {"request-id": {"schema": {"type": "string"}}, "x-should-retry": {"schema": {"type": "string"}}},
                "content": {"application/json": {"schema": {"$ref": format!("#{DEFINITIONS}/Error")}}},
            }},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    });
    // Whether members keep their order depends on what else is built into the program.
    document.sort_all_objects();
    document
}

struct Types {
    sent: SchemaGenerator,
    answered: SchemaGenerator,
}

impl Types {
    fn describe(&mut self, operation: &Operation, method: &Method) -> Value {
        let id = match operation.method {
            Some(_) => operation.id.clone(),
            None => format!("{}_{}", operation.id, method.as_str().to_ascii_lowercase()),
        };
        let content = match &operation.answer {
            Answer::Json(schema) => json!({"application/json": {"schema": schema(&mut self.answered)}}),
            Answer::Text(kind) => json!({*kind: {"schema": {"type": "string"}}}),
            Answer::Anything => json!({"*/*": {}}),
        };
        let takes_anything =
            matches!(operation.answer, Answer::Anything) && *method != Method::GET && *method != Method::HEAD;
        let taken = match operation.request {
            Some(schema) => Some(json!({"application/json": {"schema": schema(&mut self.sent)}})),
            None => takes_anything.then(|| json!({"*/*": {}})),
        };
        let mut described = json!({
            "operationId": id,
            "summary": operation.summary,
            "description": who(operation.access),
            "security": match operation.access {
                Access::Anyone => json!([]),
                _ => json!([{"key": []}, {"bearer": []}]),
            },
            "parameters": self.parameters(operation),
            "responses": {
                "200": {"description": "Done.", "content": content},
                "default": {"$ref": "#/components/responses/Error"},
            },
            "requestBody": taken.map(|content| json!({"content": content})),
            "deprecated": operation.deprecated.then_some(true),
            "x-sortie-records": (operation.unrecorded || !operation.leaves.is_empty()).then(|| {
                operation.leaves.iter().map(|kind| kind.event).collect::<Vec<_>>()
            }),
        });
        if let Some(members) = described.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
        described
    }

    fn parameters(&mut self, operation: &Operation) -> Vec<Value> {
        let named = operation.path.split('{').skip(1).filter_map(|rest| rest.split_once('}').map(|(name, _)| name));
        let mut all: Vec<Value> = named
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": self.in_path(name)}))
            .collect();
        let reference = |name: &str| json!({"$ref": format!("#/components/parameters/{name}")});
        if operation.path.starts_with("/v1/") && operation.access != Access::Anyone {
            all.extend(["anthropic-version", "anthropic-beta", "anthropic-workspace-id"].map(reference));
        }
        if operation.creates {
            all.push(reference("idempotency-key"));
        }
        if operation.paged {
            all.extend(["limit", "page"].map(reference));
            if !NEVER_ARCHIVED.contains(&operation.path.as_str()) {
                all.push(reference("include_archived"));
            }
        }
        for (name, description) in &operation.query {
            all.push(json!({"name": name, "in": "query", "description": description, "schema": {"type": "string"}}));
        }
        all
    }

    fn in_path(&mut self, name: &str) -> Value {
        let mut schema = |generator: fn(&mut SchemaGenerator) -> schemars::Schema| generator(&mut self.sent).to_value();
        match name {
            "tunnel_id" => schema(TunnelId::json_schema),
            "certificate_id" => schema(CertificateId::json_schema),
            "key_id" => schema(KeyId::json_schema),
            "agent_id" => schema(AgentId::json_schema),
            "session_id" => schema(SessionId::json_schema),
            "thread_id" => schema(ThreadId::json_schema),
            "environment_id" => schema(EnvironmentId::json_schema),
            "vault_id" => schema(VaultId::json_schema),
            "credential_id" => schema(CredentialId::json_schema),
            "work_id" => schema(WorkId::json_schema),
            "label" => schema(TunnelLabel::json_schema),
            "route" => schema(RouteName::json_schema),
            _ => json!({"type": "string"}),
        }
    }

    fn error(&mut self) -> Value {
        json!({
            "type": "object",
            "description": "A refusal or failure. A call that failed on its way carries the hop in `details`.",
            "properties": {
                "type": {"const": "error"},
                "error": {
                    "type": "object",
                    "properties": {
                        "type": self.answered.subschema_for::<ErrorKind>(),
                        "message": {"type": "string"},
                        "details": {"type": "object"},
                    },
                    "required": ["type", "message"],
                },
                "request_id": {"type": "string"},
            },
            "required": ["type", "error", "request_id"],
        })
    }
}

fn who(access: Access) -> &'static str {
    match access {
        Access::Anyone => "Needs no key.",
        Access::AnyKey => "Needs a key of any kind.",
        Access::Manage => "Needs a `manage` key; acts on its workspace.",
        Access::Organization => "Needs a `manage` key of the default workspace; acts on the whole organisation.",
        Access::Route => "Needs a key that may call the route.",
        Access::Queue => "Needs the key of the environment.",
        Access::Lease => "Needs the key of the environment, or the session token of the item.",
        Access::Environment => "Needs a `manage` key, or the key of the environment.",
        Access::Worker => {
            "Needs a `manage` key, or for what its workers work at, the key of the environment or the session token of the item."
        }
    }
}

fn parameters() -> Value {
    let header = |name: &str, description: &str, mut schema: Value| {
        if let Some(members) = schema.as_object_mut() {
            members.insert("type".to_owned(), "string".into());
        }
        json!({"name": name, "in": "header", "description": description, "schema": schema})
    };
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "description": description, "schema": schema});
    let once = "Makes the request take effect once in 24 hours; a repetition gets the first answer.";
    let betas = "Names of features, separated by commas; unknown ones are refused.";
    json!({
        "anthropic-version": header(
            "anthropic-version", "The version of the contract; may be left out.", json!({"enum": API_VERSIONS})),
        "anthropic-beta": header("anthropic-beta", betas, json!({})),
        "anthropic-workspace-id": header(
            "anthropic-workspace-id", "The key's own workspace; may be left out.", json!({})),
        "idempotency-key": header("idempotency-key", once, json!({"minLength": 1, "maxLength": 255})),
        "limit": query("limit", "Objects on a page; the installation may allow fewer, or give fewer unasked.",
            json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 20})),
        "page": query("page", "The `next_page` of the previous page, unchanged.", json!({"type": "string"})),
        "include_archived": query(
            "include_archived", "Archived objects, too.", json!({"type": "boolean", "default": false})),
    })
}
