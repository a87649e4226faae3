//! Proof of what happened: an append-only log of records that cannot be changed quietly.
//!
//! A record is one line of JSON that names the hash of the line before it. All lines are the leaves of one Merkle tree
//! (RFC 6962), and its root is signed from time to time (C2SP tlog-checkpoint). Who holds one signed checkpoint can tell
//! whether anything before it was changed, taken out, put in or cut off, without asking who wrote the log.
//!
//! `hash`, `tree`, `note`, `line`, `exact`, `kind`, `call` and `events` are the format, and pure. `log` writes it; `read`,
//! `verify`, `prove` and `search` read it, by `files` and `scan`. `ocsf` and `csv` say it in the words of others.

mod call;
mod consistency;
mod continuity;
mod csv;
mod events;
mod exact;
mod files;
mod hash;
mod kind;
mod line;
mod log;
mod note;
mod ocsf;
mod proof;
mod prove;
mod read;
mod scan;
mod search;
mod tree;
mod tree_cache;
mod verify;

pub use call::{
    Arguments, CallDecided, CallDone, ClockSteppedBack, DecidedAct, Decision, FilesRemoved, LogClosed, LogOpened,
    LogRecovered, Management, Outcome, RecordsDropped, SinkDropped,
};
pub use consistency::{ConsistencyProver, is_consistent};
pub use continuity::Continuity;
pub use csv::{csv, csv_head};
pub use events::{ApprovalDecided, CallsUnidentified, PinChanged, SettingsLoaded, SettingsRefused};
pub use files::ReadError;
pub use hash::Hash;
pub use kind::{ALL as KINDS, Kind, kinds};
pub use line::{Draft, DraftError, Line, LineError, MAX_LINE};
pub use log::{
    AppendError, Appending, Clock, DROPPED, Disk, Durability, Faults, Log, OnFailure, OpenError, Options, Status, Step,
};
pub use note::{Checkpoint, NoteError, SigningKey, VerifyingKey};
pub use ocsf::{OCSF_VERSION, ocsf};
pub use proof::{Proof, ProofError, inclusion_root};
pub use prove::{ProveError, prove};
pub use read::{Record, Records, span};
pub use search::{Member, Search, record, search};
pub use tree::Frontier;
pub use verify::{Fault, Place, Progress, Report, Trust, Trusted, VerifyError, verify};
