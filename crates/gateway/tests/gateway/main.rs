//! The gateway with a real edge, real TLS inside and outside, and real upstreams on loopback.

#[path = "../../src/fixtures.rs"]
mod fixtures;
mod support;

mod approvals;
mod audit;
mod audit_acts;
mod audit_leaving;
mod calls;
mod credentials;
mod failures;
mod health;
mod identity;
mod issuers;
mod kept;
mod limits;
mod links;
mod listener;
mod lists;
mod mutual_tls;
mod policy;
mod reload;
mod sealed;
mod sessions;
mod sinks;
mod streams;
mod strict;
mod upstreams;
