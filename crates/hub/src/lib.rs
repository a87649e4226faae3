//! hub

pub mod api;
