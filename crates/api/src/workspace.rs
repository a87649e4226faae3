//! Workspaces: what tunnels and keys belong to.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::WorkspaceId;

use crate::DisplayName;

/// A workspace. Its tunnels and keys are seen by its own keys only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "workspace")]
#[schemars(rename = "Workspace", transform = crate::schema::typed("workspace"))]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// What its owner calls it.
    pub name: DisplayName,
    /// Whether it is the one that was there first; its `manage` keys are the organisation's administrators.
    pub is_default: bool,
    /// When it was created, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
}

/// The body of `POST /v1/sortie/workspaces`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWorkspace {
    /// What to call it.
    pub name: DisplayName,
}
