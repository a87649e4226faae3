//! Private text: redacted when printed, wiped when dropped.

use std::fmt;

use zeroize::Zeroizing;

/// A private key in PEM, or a token from a set-up directory. `Clone`, since a configuration and its file both hold it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes charge of some private text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself: for the file or the connection that it is meant for, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}
