//! Why a secret cannot be had.

/// Why a secret cannot be had: once for the caller, once for the log. Neither holds anything of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// For the caller: names no path, address or variable.
    pub(crate) public: &'static str,
    /// For the log and for operators.
    pub(crate) private: String,
    /// The place has said that there is no such secret for us (any more): an earlier value no longer counts.
    pub(crate) withdrawn: bool,
}

impl Problem {
    /// Something that may pass: an earlier value goes on until its own end.
    pub(crate) fn passing(public: &'static str, private: impl Into<String>) -> Self {
        Self { public, private: private.into(), withdrawn: false }
    }

    /// The secret is withdrawn.
    pub(crate) fn withdrawn(public: &'static str, private: impl Into<String>) -> Self {
        Self { public, private: private.into(), withdrawn: true }
    }
}
