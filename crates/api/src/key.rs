//! API keys and what they grant.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use sortie_ids::{ApiKey, EnvironmentId, KeyId, RouteName, TunnelId, WorkspaceId};

use crate::DisplayName;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Everything in its workspace: the management API and calls. In the default workspace, what concerns the whole
    /// organisation, too.
    Manage,
    /// Calls to the routes that its grants name, nothing else.
    Use,
    /// What the workers of one environment need, nothing else.
    Environment,
}

impl KeyKind {
    /// The name in the API and in the key's own text.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyKind::Manage => "manage",
            KeyKind::Use => "use",
            KeyKind::Environment => "environment",
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [KeyKind::Manage, KeyKind::Use, KeyKind::Environment].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// How much of its workspace a `manage` key may do. Each may all that the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// Reading whatever shows no secret.
    Viewer,
    /// Agents, environments, sessions and vaults.
    Developer,
    /// Everything: keys, tunnels, workspaces, identities, and calls to every route.
    Admin,
}

impl KeyRole {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            KeyRole::Viewer => "viewer",
            KeyRole::Developer => "developer",
            KeyRole::Admin => "admin",
        }
    }

    /// The role with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [KeyRole::Viewer, KeyRole::Developer, KeyRole::Admin].into_iter().find(|role| role.as_str() == name)
    }
}

/// Permission to call one route of a tunnel, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Grant {
    /// The tunnel.
    pub tunnel_id: TunnelId,
    /// The route; none means any route of the tunnel, also one that is added later.
    #[serde(default)]
    pub route: Option<RouteName>,
}

impl Grant {
    /// Whether a call to this route is granted.
    pub fn covers(&self, tunnel: &TunnelId, route: &RouteName) -> bool {
        self.tunnel_id == *tunnel && self.route.as_ref().is_none_or(|granted| granted == route)
    }
}

/// An API key without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "key")]
#[schemars(rename = "Key", transform = crate::schema::typed("key"))]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// The workspace it acts in.
    pub workspace_id: WorkspaceId,
    /// What it is for.
    pub kind: KeyKind,
    /// How much a `manage` key may do; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<KeyRole>,
    /// What its owner calls it.
    pub name: DisplayName,
    /// What a `use` key may call; empty for a `manage` key.
    pub grants: Vec<Grant>,
    /// The agent that calls with it, which gateways are told of.
    #[serde(default)]
    pub agent: Option<DisplayName>,
    /// The person that it is used for, whom gateways are told of.
    #[serde(default)]
    pub user: Option<DisplayName>,
    /// The environment that an `environment` key is for.
    #[serde(default)]
    pub environment_id: Option<EnvironmentId>,
    /// When it was created, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// From when on it is refused.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub expires_at: Option<Timestamp>,
    /// When it was withdrawn.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
    /// When it was last accepted, to about a minute.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub last_used_at: Option<Timestamp>,
}

/// The answer to the creation of a key: the only time that its secret is shown.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CreatedKey {
    /// The key.
    #[serde(flatten)]
    pub key: Key,
    /// What a caller sends in `x-api-key`, or in `authorization` after `Bearer`.
    #[serde(serialize_with = "expose", deserialize_with = "take")]
    #[schemars(with = "String")]
    pub secret: ApiKey,
}

fn expose<S: Serializer>(secret: &ApiKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

fn take<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ApiKey, D::Error> {
    let text = String::deserialize(deserializer)?;
    ApiKey::parse(&text).map_err(serde::de::Error::custom)
}

/// The body of `POST /v1/sortie/keys`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// What it is for.
    pub kind: KeyKind,
    /// How much a `manage` key may do; `admin`, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<KeyRole>,
    /// What its owner calls it.
    pub name: DisplayName,
    /// From when on it is refused; never, when absent.
    #[serde(default, with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub expires_at: Option<Timestamp>,
    /// At least one for a `use` key, none for a `manage` key.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// The agent that calls with it, which gateways are told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<DisplayName>,
    /// The person that it is used for, whom gateways are told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<DisplayName>,
    /// The workspace it acts in; the caller's own, when absent. Another one may be named by a `manage` key of the default
    /// workspace, for a `manage` key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<WorkspaceId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_its_route_or_all() {
        let tunnel: TunnelId = "tnl_1".parse().expect("id");
        let other: TunnelId = "tnl_2".parse().expect("id");
        let files: RouteName = "files".parse().expect("route");
        let tickets: RouteName = "tickets".parse().expect("route");
        let one = Grant { tunnel_id: tunnel.clone(), route: Some(files.clone()) };
        let any = Grant { tunnel_id: tunnel.clone(), route: None };
        assert!(one.covers(&tunnel, &files) && !one.covers(&tunnel, &tickets) && !one.covers(&other, &files));
        assert!(any.covers(&tunnel, &tickets) && !any.covers(&other, &tickets));
    }

    #[test]
    fn the_secret_is_beside_the_key_once() {
        let key: Key = serde_json::from_value(serde_json::json!({
            "type": "key", "id": "key_1", "workspace_id": "wrkspc_1", "kind": "use", "name": "ci", "created_at": "2026-01-01T00:00:00Z",
            "expires_at": null, "archived_at": null, "last_used_at": null, "grants": [{"tunnel_id": "tnl_1"}],
        }))
        .expect("key");
        let created = CreatedKey { key: key.clone(), secret: ApiKey::random("use") };
        let json = serde_json::to_value(&created).expect("json");
        assert_eq!(json["type"], "key");
        assert_eq!(json["secret"], created.secret.expose());
        assert_eq!(json["grants"][0]["route"], serde_json::Value::Null);
        assert_eq!(serde_json::from_value::<CreatedKey>(json).expect("read back").key, key);
        assert!(!serde_json::to_string(&key).expect("json").contains("secret"));
    }

    #[test]
    fn kinds_have_one_name_everywhere() {
        for kind in [KeyKind::Manage, KeyKind::Use, KeyKind::Environment] {
            assert_eq!(KeyKind::from_name(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).expect("json"), kind.as_str());
        }
        assert_eq!(KeyKind::from_name("admin"), None);
    }
}
