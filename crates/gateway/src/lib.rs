//! The gateway: holds one outbound link to an edge and serves the routes of one tunnel over it.
//!
//! On each stream of the link it ends inner TLS, checks who is calling, finds the route by hostname, dials the
//! upstream under an address guard, and streams both ways. It runs inside the customer's network and must trust no
//! byte of the edge: a caller counts only by an identity that the hub signed for this very route, or, on sealed
//! routes, by a client certificate.
//!
//! It must never open a port for callers that nobody has configured (`listener.rs` has the one there is), follow a redirect, replay a call, write a body anew (what is hidden is cut out
//! of lists, and the rest stays), or log a payload, a header's value or a secret. Every task runs in the
//! [`sortie_runtime::TaskSet`] that the caller passes to [`Gateway::start`], and ends with [`Gateway::drain`].

mod admin;
mod answer;
mod approvals;
mod audit;
mod body;
mod client_certificates;
mod config;
mod connector;
mod control;
mod credentials;
mod endpoint;
#[cfg(test)]
mod fixtures;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gateway;
mod guard;
mod headers;
mod health;
mod identity;
mod inner;
mod intake;
mod issuers;
mod limits;
mod link_state;
mod listener;
mod lists;
mod memory;
mod pins;
mod probe;
mod proxy;
mod publish;
mod quiet;
mod record;
mod reload;
mod routes;
mod served;
mod sessions;
mod setup;
mod sse;
mod upstream;
mod upstream_identity;

pub use admin::AdminAddress;
pub use audit::AuditReport;
pub use body::{BodyError, CallBody};
pub use config::{
    ApprovalSource, ApprovalSources, ApprovalsConfig, AssertedCaller, AuditConfig, AuditDestinations, AuditDurability,
    AuditLogConfig, Authorization, CertificateFiles, ConfigError, ControlConfig, GatewayConfig, IdentityConfig,
    IssuerConfig, KeysAt, LimitConfig, ListenerConfig, OnFailure, PayloadConfig, Per, Pinning, PolicyMode, Protocol,
    Rate, Refusals, RouteConfig, RouteCredential, RouteTls, Server, ShownArguments, SubjectToken, TellUpstream, Trust,
    Upstream, UpstreamConfig,
};
pub use gateway::{Gateway, GatewayError, GatewayOptions};
pub use health::{IdentityReport, InnerTlsReport, LinkReport, ListenerReport, Readiness};
pub use pins::visible;
pub use probe::ProbeReport;
pub use proxy::{LinkConfig, ProxyAddr};
pub use reload::ConfigReport;
pub use setup::{LoadError, Setup};
pub use sortie_sinks::{SinkState, SinkStatus};
pub use upstream::{LocalUpstream, OpenLocal};
pub use upstream_identity::{IdentityKeysError, rotate_identity_keys};
