//! The public API as values: objects, errors, pagination, and the failures on a call's path.
//!
//! Pure: no I/O. The shapes are a contract with SDKs that we do not own: fields are added, never renamed.

mod hop;

pub use hop::{HEADER_PREFIX, HOP_HEADER, Hop, HopError, IDENTITY_HEADER, REQUEST_ID_HEADER};
