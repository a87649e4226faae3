//! Calls that wait for a person: what a gateway, and the hub for it, shows of them and is told.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::{ApprovalId, KeyId};

/// A call that policy holds back until somebody approves it. An item of `GET /v1/sortie/tunnels/{tunnel_id}/approvals`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "approval")]
#[schemars(rename = "Approval", transform = crate::schema::typed("approval"))]
pub struct Approval {
    /// Its id.
    pub id: ApprovalId,
    /// How far it is.
    pub status: ApprovalStatus,
    /// Who calls.
    pub caller: ApprovalCaller,
    /// The route's name.
    pub route: String,
    /// The method of MCP, or `http`.
    pub method: String,
    /// The tool, prompt or resource that the call names.
    pub target: Option<String>,
    /// The arguments of the call; none where it has none, or nothing is known of them.
    pub arguments: Option<ApprovalArguments>,
    /// What the policy took from the arguments to judge them by, as text of at most 256 characters each.
    pub facts: BTreeMap<String, String>,
    /// The policies that ask, by their names.
    pub policies: Vec<String>,
    /// What they say that an approver is to know.
    pub reason: String,
    /// The call's id in every log.
    pub request_id: String,
    /// Since when it waits.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub asked_at: Timestamp,
    /// When it counts as not approved.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub expires_at: Timestamp,
    /// How long it has waited, or waited until it was decided, in whole seconds.
    pub waiting_s: u64,
    /// The decision; none while it waits, and where nobody decided.
    pub decision: Option<ApprovalDecision>,
}

/// How far an approval is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalStatus {
    /// The call waits.
    Waiting,
    /// Somebody approved the call, which went on.
    Approved,
    /// Somebody denied it.
    Denied,
    /// Nobody decided in time: not approved.
    Expired,
    /// The caller went away first, or the gateway stopped.
    Withdrawn,
}

impl ApprovalStatus {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// Who calls, as far as the gateway knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalCaller {
    /// Who says so.
    pub issuer: String,
    /// The caller, by its issuer's name for it.
    pub subject: String,
    /// How far it is proven: `asserted` or `attested`.
    pub assurance: String,
    /// Its organisation at the hub.
    pub organization: Option<String>,
    /// Its workspace at the hub.
    pub workspace: Option<String>,
    /// The person it acts for.
    pub user: Option<String>,
    /// The agent, and its version behind a slash.
    pub agent: Option<String>,
    /// The session that the call is part of.
    pub session: Option<String>,
}

/// The arguments of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalArguments {
    /// SHA-256 of their JSON as it was sent, as 64 lower-case hexadecimal digits. An approval is good for these alone.
    pub sha256: String,
    /// How many bytes that JSON has.
    pub bytes: usize,
    /// Whether `members` holds values, as the gateway's settings say; otherwise types and sizes.
    pub shown: bool,
    /// The first 32 members by their names: text of at most 256 characters each.
    pub members: BTreeMap<String, String>,
    /// Whether there is more than `members` says.
    pub cut: bool,
}

/// What was decided, by whom, when, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalDecision {
    /// What.
    pub decision: Choice,
    /// Who.
    pub by: Approver,
    /// When.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub at: Timestamp,
    /// Why, in the approver's words.
    pub reason: Option<String>,
    /// For how many seconds the same caller may repeat the same call with the same arguments without being asked for.
    pub for_s: Option<u32>,
}

/// What a person decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The call goes on.
    Approve,
    /// The call is refused.
    Deny,
}

/// Who decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Approver {
    /// A user of the gateway's own machine, as its kernel says.
    Local {
        /// The user id.
        uid: u32,
        /// The user's name there.
        user: Option<String>,
    },
    /// The holder of a key of the hub, as the hub says.
    Hub {
        /// The key.
        key: KeyId,
    },
}

impl std::fmt::Display for Approver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { user: Some(user), .. } => write!(f, "{user}"),
            Self::Local { uid, user: None } => write!(f, "uid {uid}"),
            Self::Hub { key } => write!(f, "{key}"),
        }
    }
}

/// A decision as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecideApproval {
    /// What is decided.
    pub decision: Choice,
    /// Why; at most 500 characters. The caller of a denied call is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With an approval: for how many seconds, at most 86400, the same caller may repeat the same call with the very same
    /// arguments without being asked for. Default: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_s: Option<u32>,
}

impl DecideApproval {
    /// Most characters of a reason.
    pub const MAX_REASON: usize = 500;
    /// Longest time for repetitions, in seconds.
    pub const MAX_FOR: u32 = 86_400;

    /// Checks what cannot be said by types.
    ///
    /// # Errors
    /// 400 that names what is wrong.
    pub fn check(&self) -> Result<(), crate::ApiError> {
        let wrong = |reason: String| crate::ApiError::invalid_request(reason);
        if self.reason.as_ref().is_some_and(|reason| reason.chars().count() > Self::MAX_REASON) {
            return Err(wrong(format!("reason: it has more than {} characters", Self::MAX_REASON)));
        }
        match (self.decision, self.for_s) {
            (_, None) | (Choice::Approve, Some(1..=Self::MAX_FOR)) => Ok(()),
            (Choice::Approve, Some(_)) => Err(wrong(format!("for_s: write 1 to {} seconds", Self::MAX_FOR))),
            (Choice::Deny, Some(_)) => Err(wrong("for_s: only an approval lasts; remove it, or approve".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_checked() {
        let read = |text: &str| serde_json::from_str::<DecideApproval>(text).expect(text).check().is_ok();
        assert!(read(r#"{"decision": "approve"}"#));
        assert!(read(r#"{"decision": "approve", "for_s": 600, "reason": "ok"}"#));
        assert!(read(r#"{"decision": "deny", "reason": "no"}"#));
        assert!(!read(r#"{"decision": "deny", "for_s": 1}"#));
        assert!(!read(r#"{"decision": "approve", "for_s": 0}"#));
        assert!(!read(r#"{"decision": "approve", "for_s": 86401}"#));
        let long = serde_json::json!({"decision": "deny", "reason": "x".repeat(501)}).to_string();
        assert!(!read(&long));
        for bad in [r#"{"decision": "maybe"}"#, r#"{}"#, r#"{"decision": "approve", "x": 1}"#] {
            assert!(serde_json::from_str::<DecideApproval>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn approvers_are_named() {
        let local = Approver::Local { uid: 1000, user: Some("ada".to_owned()) };
        assert_eq!(serde_json::to_value(&local).expect("json")["from"], "local");
        assert_eq!(local.to_string(), "ada");
        assert_eq!(Approver::Local { uid: 5, user: None }.to_string(), "uid 5");
    }
}
