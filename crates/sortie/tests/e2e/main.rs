//! The program from outside: every test starts the real binary by its documented command line and looks at what comes
//! through, what fails where, and what must never be seen.

mod audit;
mod bounds;
mod canary;
mod canary_hub;
mod capture;
mod cli;
mod common;
mod config;
mod crowd;
mod errors;
mod hub_audit;
mod large;
mod leave;
mod link;
mod lying_edge;
mod operate;
mod policy;
mod policy_past;
mod published;
mod rotation;
mod transparent;
mod trust;
mod verbatim;
