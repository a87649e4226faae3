//! Everything that the admin socket answers, in one table.

use http::Method;

use super::{Answer, Operation, answering};

/// The tables of all parts.
pub(super) fn all() -> impl Iterator<Item = &'static Operation> {
    OWN.iter().chain(crate::approvals::OPERATIONS).chain(crate::pins::OPERATIONS).chain(crate::audit::OPERATIONS)
}

static OWN: &[Operation] = &[Operation {
    method: Method::GET,
    path: "/v1/readiness",
    answer: |shared, _| answering(async move { Answer::json(&shared.readiness()) }),
}];
