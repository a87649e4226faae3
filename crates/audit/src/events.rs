//! The fields of what a gateway records beside calls. Fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `calls_unidentified`: requests of one route that did not prove who was calling, over some seconds. They are not
/// recorded one by one, since whoever can send them could fill the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallsUnidentified {
    /// The name of the route; absent where none was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// When the first of them came (RFC 3339, UTC).
    pub since: String,
    /// How many there were.
    pub count: u64,
    /// How many by the hop and the reason of their refusal. At most 64 reasons; more are counted as `other`.
    pub reasons: BTreeMap<String, u64>,
}

/// `approval_decided`: how the wait of a call has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalDecided {
    /// The id of the request that waited.
    pub id: String,
    /// The id of the approval.
    pub approval: String,
    /// The name of the route.
    pub route: String,
    /// The method of MCP, or `http`.
    pub method: String,
    /// The tool, prompt or resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// `approved`, `denied`, `expired` (nobody decided in time) or `withdrawn` (the caller or the gateway went away).
    pub status: String,
    /// Who decided, such as `ada (local)`; absent where nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What they gave as the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For how many seconds the same call may be repeated; absent where the approval is for this one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasts_s: Option<u32>,
    /// How long the call had waited, in seconds.
    pub waited_s: u64,
}

/// `pin_changed`: what is pinned of a server's tools was approved or forgotten by a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinChanged {
    /// The name of the route.
    pub route: String,
    /// `approve` or `forget`.
    pub action: String,
    /// The user at the admin socket, by the kernel's word: the name, or `uid N`.
    pub by: String,
    /// The tools and instructions, each with the SHA-256 of the definition where one was approved; empty where everything
    /// was forgotten.
    pub subjects: BTreeMap<String, Option<String>>,
}

/// `settings_loaded`: settings and policy are in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsLoaded {
    /// The SHA-256 of each file that was read, by its path, 64 hexadecimal digits.
    pub files: BTreeMap<String, String>,
    /// `off`, `shadow` or `enforce`.
    pub policy: String,
    /// Digest of the policy as decisions name it; absent without a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_sha256: Option<String>,
    /// How many policies there are.
    pub policies: u64,
    /// How many routes there are.
    pub routes: u64,
}

/// `settings_refused`: changed settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsRefused {
    /// The SHA-256 of each file that could be read, by its path.
    pub files: BTreeMap<String, String>,
    /// Why.
    pub reason: String,
}
