//! What a hub remembers: organisations, workspaces, keys, tunnels, their tokens and certificates, in
//! one SQLite file or one PostgreSQL database.
//!
//! Everything that a caller can name is read and written within one workspace; an object of another workspace is not
//! found. Keys are kept as digests only; tunnel tokens and the hub's own secrets are sealed with a master key in a file
//! beside the database. Never here: payloads, private keys of gateways, the audit of calls.
//!
//! A write runs to its end once it has begun, even when its caller goes away, and is announced to
//! [`Store::changes`] after its commit. Its task ends with the write; [`Store::close`] waits for it.

mod agents;
mod certificates;
mod checkpoints;
mod credentials;
mod database;
mod db;
mod environment_keys;
mod environments;
mod error;
mod events;
mod keys;
mod meta;
mod migrations;
mod open;
mod postgres;
mod repeats;
mod seal;
mod sessions;
mod sole;
mod sqlite;
mod store;
#[cfg(test)]
mod testing;
mod tunnels;
mod vaults;
mod work;
mod workspaces;

pub use agents::{Changed, Created};
pub use certificates::{AddedCertificate, ArchivedCertificate, NewCertificate};
pub use checkpoints::{NewCheckpoint, PublishedLog};
pub use credentials::{FoundCredential, NewTokens};
pub use database::{DatabaseUrl, DatabaseUrlError};
pub use error::{Object, StoreError};
pub use events::{EventPage, EventPlace, EventQuery};
pub use keys::{ArchivedKey, KnownKey};
pub use open::{Clock, Options};
pub use repeats::{Answer, Attempt, Made, Once, Repeat};
pub use sessions::{NewSession, SessionFilter, SessionPage, SessionPlace, SessionRecord, Transition};
pub use store::{Change, Page, Store};
pub use tunnels::{ArchivedTunnel, TunnelRecord};
pub use vaults::ArchivedVault;
pub use work::{Claim, Horizon, QueueCounts, WorkItem, WorkToken};
