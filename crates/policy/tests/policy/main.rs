//! The policy engine through its public face.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod common;
mod cookbook;
mod decide;
mod files;
mod learn;
mod plain;
mod recorded;
mod review;
