//! Typed identifiers, names and secrets that every part of Sortie shares, and what remembers things by them.
//!
//! Pure: no I/O, no clock. Each kind of thing has its own type, so that a key can never be passed where a tunnel is
//! meant, and a secret can never be printed by accident. Outside text becomes one of these types once, at the edge.

mod id;
mod name;
mod recent;
mod secret;

pub use id::{
    AgentId, ApprovalId, CertificateId, CredentialId, EnvironmentId, EventId, IdError, KeyId, LinkId, OrganizationId,
    RequestId, SessionId, ThreadId, TokenId, TunnelId, VaultId, WorkId, WorkspaceId,
};
pub use name::{BaseDomain, NameError, RouteHost, RouteName, TunnelDomain, TunnelLabel};
pub use recent::Recent;
pub use secret::{ApiKey, Digest, SecretError, TunnelToken};
