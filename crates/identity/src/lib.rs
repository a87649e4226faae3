//! Who is calling: what is known of a caller, the signed tokens that say it, and the keys that they are checked against.
//!
//! Pure: no I/O, and no clock; the time is an argument, in seconds since 1970. The random source of the operating system
//! is the one exception, for keys and ids of tokens.

mod caller;

pub use caller::{Assurance, Caller, GATEWAY_ISSUER, TLS_ISSUER};
