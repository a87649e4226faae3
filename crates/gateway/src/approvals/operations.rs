//! What the admin socket answers about approvals.

use http::Method;
use sortie_api::{ApiError, Approver, List};
use sortie_ids::ApprovalId;

use crate::admin::{AdminRequest, Answer, Operation, answering};
use crate::config::ApprovalsConfig;

/// The operations.
pub(crate) static OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::GET,
        path: "/v1/approvals",
        answer: |shared, _| {
            answering(async move { Answer::json(&List { data: shared.approvals.waiting(), next_page: None }) })
        },
    },
    Operation {
        method: Method::GET,
        path: "/v1/approvals/{id}",
        answer: |shared, request| {
            answering(async move {
                let id = id(request.at(0))?;
                let found = shared.approvals.find(&id);
                Answer::json(&found.ok_or_else(|| ApiError::not_found(format!("there is no approval `{id}`")))?)
            })
        },
    },
    Operation {
        method: Method::POST,
        path: "/v1/approvals/{id}",
        answer: |shared, request| {
            answering(async move {
                may_decide(&shared.served().config.approvals)?;
                let by = by(&request);
                Answer::json(&shared.approvals.decide(&id(request.at(0))?, by, request.json()?)?)
            })
        },
    },
];

fn may_decide(rules: &ApprovalsConfig) -> Result<(), ApiError> {
    if rules.from.local() {
        return Ok(());
    }
    Err(ApiError::permission("the gateway's settings let nobody decide here: add \"local\" to approvals.from"))
}

fn by(request: &AdminRequest) -> Approver {
    Approver::Local { uid: request.person.uid, user: request.person.user.clone() }
}

fn id(text: &str) -> Result<ApprovalId, ApiError> {
    text.parse().map_err(|error| ApiError::not_found(format!("{error}")))
}
