//! The hub: where agents' calls begin. It keeps tunnels and keys, authenticates callers, signs who they are, and
//! reaches gateways through the edge and inner TLS.
//!
//! It must never hold a key that lives with a customer (a CA's, a gateway's), never accept a gateway whose certificate
//! is not from a CA registered on that very tunnel, and never repeat a call that may have run. Nothing of a call is
//! stored, and nothing of its content logged.
//!
//! [`Hub::start`] is the entry; its tasks belong to the set that is passed in and end with it.

pub mod api;
mod audit;
mod body;
mod call;
mod config;
mod front;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gateways;
mod hosts;
mod identity;
mod idle;
mod inner;
mod mcp;
mod published;
mod request;
mod start;
mod tunnels;

pub use audit::{Audit, AuditConfig, AuditError};
pub use config::HubConfig;
pub use gateways::Gateways;
pub use identity::{RotationError, Signer, SignerError};
pub use mcp::{McpConfig, PrivateHost, Validator};
pub use sortie_audit::{Durability, OnFailure};
pub use sortie_orchestrator::models::ModelsConfig;
pub use sortie_sinks::SinkSpec;
pub use sortie_sinks::publish::PlaceSpec;
pub use sortie_store::DatabaseUrl;
pub use start::{Hub, HubError};
