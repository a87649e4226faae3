//! The fields of records, by event. Fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sortie_identity::Caller;

use crate::hash::Hash;

/// `log_opened`: the first record of each file, and of each process that goes on with a file. A file can be verified with
/// what its first record says, whatever became of the files before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOpened {
    /// The version of the format: 1.
    pub format: u32,
    /// Why: the log was `begun`, `restarted` by a process (in a new file or in the last one), or the file before was full
    /// (`rotated`).
    pub reason: String,
    /// The key that signs the log's checkpoints, as C2SP signed-note writes it. That it is named here proves nothing.
    pub key: String,
    /// The roots of the perfect subtrees that all records before this one make, largest first.
    pub frontier: Vec<Hash>,
    /// The program and its version.
    pub software: String,
}

/// `log_closed`: the last record of a process that was stopped as asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogClosed {}

/// `sink_dropped`: records that a sink does not get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkDropped {
    /// The name of the sink.
    pub sink: String,
    /// The first and the last record among which they are.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// How many.
    pub records: u64,
    /// `full` (too much was undelivered), `refused` (by the receiver, for good) or `removed` (from the log).
    pub reason: String,
}

/// `log_recovered`: what a crash had left behind the last whole record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecovered {
    /// How many bytes were taken off.
    pub bytes: u64,
    /// Their SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

/// `clock_stepped_back`: the times of records that follow may be before those of records that came before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSteppedBack {
    /// The time of the record before.
    pub from: String,
    /// The time now.
    pub to: String,
}

/// `records_dropped`: records that could not be written and are lost. What they were to tell of was denied therefore, if the
/// settings say so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsDropped {
    /// How many.
    pub count: u64,
    /// When the first was.
    pub first: String,
    /// When the last was.
    pub last: String,
    /// Why they could not be written: of the first.
    pub reason: String,
}

/// `files_removed`: the oldest files are about to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRemoved {
    /// How many.
    pub files: u64,
    /// The number of the first record that is removed.
    pub from: u64,
    /// The number of the first record that stays.
    pub to: u64,
}

/// `call_decided`: one message of a call, or one request that is no message of MCP, before it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallDecided {
    /// The id of the request, shared by all records of it.
    pub id: String,
    /// Which message of a batch it is, from 0. Absent where the request is a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<u32>,
    /// The name of the route.
    pub route: String,
    /// Who calls.
    pub caller: Caller,
    /// What it wants to do.
    #[serde(flatten)]
    pub act: DecidedAct,
    /// Of `params.arguments`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Arguments>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Where it was refused: the hop. Absent unless it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<String>,
    /// Why it was refused, in one sentence. Absent unless it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the policy said. Absent where there is none, or where the call was refused before it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// The approval without which it would not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// The name of the credential with which it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The SHA-256 of the MCP session id, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_session: Option<String>,
    /// Where the gateway is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The trace that the call is part of: the trace-id of W3C `traceparent`, 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// What was sent, sealed for a key of the customer's. Only where the settings ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
}

/// What a caller wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedAct {
    /// The method of MCP; else `answer`, `stream`, `session/delete` or `http`.
    pub method: String,
    /// The tool that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The prompt that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The URI of the resource that it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Of `http`: the method of HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_method: Option<String>,
    /// Of `http`: the path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_path: Option<String>,
}

/// What is recorded of the arguments of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arguments {
    /// The SHA-256 of the text exactly as it was sent, 64 hexadecimal digits.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// What the settings let be shown of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Value>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It goes on to the upstream.
    Forwarded,
    /// It does not.
    Refused,
    /// It waits for an approval.
    Waits,
}

/// What the policy said, and all that it looked at: enough to ask another policy about the same call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// `allow`, `deny` or `ask`.
    pub effect: String,
    /// `shadow` or `enforce`. A shadow refuses nothing.
    pub mode: String,
    /// The policies that decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
    /// Why, in one sentence.
    pub reason: String,
    /// The SHA-256 of the policy's files, 64 hexadecimal digits.
    pub policy_sha256: String,
    /// The facts that were taken from the arguments: by name, as the policy's own type writes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
    /// What each fact is that was looked for, found or not: by name, where it lies in the arguments, its type, and what is
    /// asked of it. Names mean nothing to another policy, forms do.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fact_forms: BTreeMap<String, Value>,
    /// The facts that were needed and could not be taken: by name, with the code of why, such as `absent`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fact_faults: BTreeMap<String, String>,
    /// When it was asked, in seconds since 1970.
    pub now: i64,
    /// How often the caller had done the same in the last minute, hour and day. Absent where the policy does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<[u32; 3]>,
}

/// `call_done`: how a call that went on has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallDone {
    /// The id of the request.
    pub id: String,
    /// The number of its (first) `call_decided` that let it go on.
    pub decided: u64,
    /// The status of the answer's head; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The hop at which it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<String>,
    /// How the answer ended, as the gateway's log says it.
    pub end: String,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// From the request's head to the answer's end, in microseconds.
    pub duration_us: u64,
    /// The SHA-256 of the answer's body as it was passed on, 64 hexadecimal digits. Absent where it broke off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_sha256: Option<String>,
    /// What was answered, sealed for a key of the customer's. Only where the settings ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Value>,
}

/// A management event: who, in which request, and the fields of the event beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Management {
    /// The id of the request.
    pub id: String,
    /// Who did it.
    pub actor: Value,
    /// The fields of the event.
    #[serde(flatten)]
    pub fields: BTreeMap<String, Value>,
}
