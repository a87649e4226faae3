//! Facts: typed values taken from the arguments of a call by declared matchers.
//!
//! What policy decides on must be what the server acts on. A value that two programs could read differently is no fact:
//! it is a fault, and a fault denies. See [`FactFault`] for what that is.

mod form;
mod matcher;
mod pointer;
mod read;

pub(crate) use self::form::Recalled;
pub use self::form::{FactForm, Found};
pub(crate) use self::matcher::{Kind, Matcher, Spec};

/// A decimal in units of 10^-4; `None` for what is none.
pub(crate) fn ten_thousandths(text: &str) -> Option<i64> {
    read::ten_thousandths(text)
}

/// A moment as facts are read (RFC 3339), in milliseconds since 1970.
pub(crate) fn moment_of(text: &str) -> Option<i64> {
    read::moment(text)
}

/// Why a fact is not there. It repeats nothing of the arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactFault {
    /// The arguments have no such member.
    #[error("it is not in the arguments")]
    Absent,
    /// It has another type.
    #[error("it is not {0}")]
    Type(&'static str),
    /// It is a number that has no exact value of the type, or that JSON readers differ about.
    #[error("it is a number that is not written as {0}")]
    Inexact(&'static str),
    /// It is longer than a fact may be.
    #[error("it is longer than {0}")]
    Long(&'static str),
    /// It can be read in more than one way.
    #[error("{0}")]
    Ambiguous(&'static str),
    /// A key on the way to it comes twice.
    #[error("a key on the way to it comes twice")]
    Twice,
    /// The arguments are not JSON.
    #[error("the arguments are not JSON")]
    NotJson,
}

impl FactFault {
    /// The stable name by which records call it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Type(_) => "type",
            Self::Inexact(_) => "inexact",
            Self::Long(_) => "long",
            Self::Ambiguous(_) => "ambiguous",
            Self::Twice => "twice",
            Self::NotJson => "not_json",
        }
    }
}
