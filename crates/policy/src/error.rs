//! Why policies cannot be loaded.

/// A policy file that cannot be used. The text names file and line, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct PolicyError {
    /// One sentence each, `file:line: ...`.
    pub problems: Vec<String>,
}

impl PolicyError {
    /// Most problems that are told at once.
    pub(crate) const MOST: usize = 20;

    pub(crate) fn one(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()] }
    }
}
