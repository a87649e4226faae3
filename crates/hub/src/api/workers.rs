//! What workers may ask for: with the key of their environment whatever concerns it, with the token of an item of work
//! whatever concerns the item and its session. Everything else is refused before a handler sees it.

use axum::RequestExt as _;
use axum::extract::{RawPathParams, Request};
use sortie_api::{ApiError, EventBody, KeyKind};
use sortie_ids::SessionId;
use sortie_store::{Object, StoreError, WorkToken};

use super::frame::Failure;
use super::operations::Access;
use super::{ApiState, Caller};

/// Judges a caller by its kind, and a worker by what the path names.
///
/// # Errors
/// 403 where no caller of this kind may ask for the operation; 404 where the object is not the worker's; 401 where the
/// item of its token is over.
pub(super) async fn permit(
    api: &ApiState,
    caller: &Caller,
    access: Access,
    request: &mut Request,
) -> Result<(), Failure> {
    match (&caller.work, caller.key.kind) {
        (None, KeyKind::Manage | KeyKind::Use) => Ok(by_key(caller, access)?),
        _ if !is_for_workers(access, caller.work.is_some()) => Err(refused(caller).into()),
        (work, _) => {
            let ids = request.extract_parts::<RawPathParams>().await;
            let ids: Vec<_> = ids.iter().flat_map(|ids| ids.iter()).collect();
            let id = |name: &str| ids.iter().find_map(|(known, id)| (*known == name).then_some(*id));
            let (environment, work_id, session) = (id("environment_id"), id("work_id"), id("session_id"));
            if environment.is_none() && session.is_none() {
                return Err(refused(caller).into());
            }
            let own = caller.key.environment.as_ref().map(|environment| environment.as_str());
            if environment.is_some() && environment != own {
                return Err(StoreError::NotFound(Object::Environment).into());
            }
            if let Some(work) = work {
                return of_item(work, work_id, session);
            }
            if let Some(session) = session {
                let unknown = || StoreError::NotFound(Object::Session);
                let session: SessionId = session.parse().map_err(|_| unknown())?;
                let found = api.store.environment_of_session(&caller.key.workspace, &session).await?;
                if own != Some(found.as_str()) {
                    return Err(unknown().into());
                }
            }
            Ok(())
        }
    }
}

/// A worker answers tool uses. It speaks for nobody else: not for the person who was asked whether a tool may be used, since
/// the model's commands run beside it and may read its token.
///
/// # Errors
/// 403 for any other event of a worker.
pub(super) fn check_events(caller: &Caller, events: &[EventBody]) -> Result<(), ApiError> {
    let answers =
        |event: &EventBody| matches!(event, EventBody::UserToolResult { .. } | EventBody::UserCustomToolResult { .. });
    if caller.key.kind != KeyKind::Environment || events.iter().all(answers) {
        return Ok(());
    }
    Err(ApiError::permission("A worker sends results of tools only; other events need a manage key."))
}

fn is_for_workers(access: Access, token: bool) -> bool {
    match access {
        Access::Queue | Access::Environment => !token,
        Access::Lease | Access::Worker => true,
        Access::Anyone | Access::AnyKey | Access::Manage | Access::Organization | Access::Route => false,
    }
}

fn by_key(caller: &Caller, access: Access) -> Result<(), ApiError> {
    let manages = caller.key.kind == KeyKind::Manage;
    match access {
        Access::Environment | Access::Worker if manages => Ok(()),
        Access::Environment | Access::Worker => Err(ApiError::permission(
            "A use key calls routes only; this needs a manage key, or the key of the environment.",
        )),
        Access::Queue | Access::Lease => {
            Err(ApiError::permission("This is for workers; it needs the key of the environment."))
        }
        _ => Ok(()),
    }
}

/// A token is good for its item, also when that is over, so that its worker can learn it; and for its session until then.
fn of_item(token: &WorkToken, work: Option<&str>, session: Option<&str>) -> Result<(), Failure> {
    if work.is_some_and(|work| work != token.work.as_str()) {
        return Err(StoreError::NotFound(Object::Work).into());
    }
    let own = token.session.as_ref().map(SessionId::as_str);
    match session {
        Some(_) if token.stopped_at.is_some() => {
            Err(ApiError::authentication("The session token has ended with its item of work.").into())
        }
        Some(session) if Some(session) != own => Err(StoreError::NotFound(Object::Session).into()),
        _ => Ok(()),
    }
}

fn refused(caller: &Caller) -> ApiError {
    ApiError::permission(match caller.work {
        Some(_) => "A session token serves its session and nothing else; this needs a manage key.",
        None => "The key of an environment serves its workers and nothing else; this needs a manage key.",
    })
}
