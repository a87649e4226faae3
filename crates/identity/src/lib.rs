//! Who is calling: what is known of a caller, the signed tokens that say it, and the keys that they are checked against.
//!
//! Pure: no I/O, and no clock; the time is an argument, in seconds since 1970. The random source of the operating system
//! is the one exception, for keys and ids of tokens.
//!
//! Tokens are JSON Web Tokens (RFC 7519) with the asymmetric algorithms of [`Algorithm`] and no other; key sets have the
//! form of RFC 7517.

mod announcement;
mod caller;
mod claims;
mod issuer;
mod keys;
mod remembered;
mod ring;
mod token;

pub use announcement::{AnnouncementError, Pinned};
pub use caller::{Assurance, Caller, GATEWAY_ISSUER, TLS_ISSUER};
pub use claims::{Agent, Claims, MAX_ACTORS};
pub use issuer::{Field, IssuerRules, Template, TemplateError};
pub use keys::{Algorithm, KeySet, KeysError, MAX_KEYS, discovery};
pub use remembered::{MAX_REMEMBERED, Remembered};
pub use ring::{KeyRing, RingError, RotateError, Rotation};
pub use token::{MAX_TOKEN, Unknown, Verified, claimed_issuer};
