//! The work of environments in the table of operations.

use axum::routing::{get, post};
use sortie_api::{
    CreateEnvironmentKey, CreatedKey, Healthcheck, Key, StopWork, UpdateWork, Work, WorkHeartbeat, WorkQueueStats,
};
use sortie_audit::kinds;

use super::{Access, Operation};
use crate::api::work;

pub(super) fn all() -> Vec<Operation> {
    let mut all = queue();
    all.extend(beside());
    all
}

fn queue() -> Vec<Operation> {
    let one = "/v1/environments/{environment_id}/work/{work_id}";
    vec![
        Operation::get("/v1/environments/{environment_id}/work/poll", "poll_work", Access::Queue, || get(work::poll))
            .says("Ask for an item of work, and wait for one up to `block_ms`; `null` when there is none.")
            .asks("block_ms", "How long to wait, 1 to 999 milliseconds; not at all, when absent.")
            .answers::<Option<Work>>(),
        Operation::get("/v1/environments/{environment_id}/work/stats", "get_work_stats", Access::Environment, || {
            get(work::stats)
        })
        .says("Count the items that wait, and the workers that ask for them.")
        .answers::<WorkQueueStats>(),
        Operation::get("/v1/environments/{environment_id}/work", "list_work", Access::Environment, || get(work::list))
            .says("List the items of an environment, newest first, also those that are over.")
            .lists::<Work>(),
        Operation::get(one, "get_work", Access::Manage, || get(work::retrieve)).says("Show an item.").answers::<Work>(),
        Operation::post(one, "update_work", Access::Manage, &[kinds::WORK_UPDATED], || post(work::update))
            .says("Change what is written beside an item; a member without a value is removed.")
            .takes::<UpdateWork>()
            .answers::<Work>(),
        Operation::post(
            "/v1/environments/{environment_id}/work/{work_id}/ack",
            "acknowledge_work",
            Access::Lease,
            &[],
            || post(work::acknowledge),
        )
        .unrecorded()
        .says("Take an item that was handed out.")
        .answers::<Work>(),
        Operation::post(
            "/v1/environments/{environment_id}/work/{work_id}/heartbeat",
            "heartbeat_work",
            Access::Lease,
            &[],
            || post(work::heartbeat),
        )
        .unrecorded()
        .says("Keep an item. The first heartbeat expects `NO_HEARTBEAT`, each further one the last one before; 412 when that is not so: another worker has the item, or will get it.")
        .asks("expected_last_heartbeat", "The `last_heartbeat` of the answer before, unchanged, or `NO_HEARTBEAT`.")
        .answers::<WorkHeartbeat>(),
        Operation::post(
            "/v1/environments/{environment_id}/work/{work_id}/stop",
            "stop_work",
            Access::Worker,
            &[kinds::WORK_STOPPED],
            || post(work::stop),
        )
        .says("End an item, at its worker's next heartbeat or, with `force`, at once; 409 when it is over.")
        .takes::<StopWork>()
        .answers::<Work>(),
    ]
}

/// What Sortie adds.
fn beside() -> Vec<Operation> {
    let keys = "/v1/sortie/environments/{environment_id}/keys";
    let checks = "/v1/sortie/environments/{environment_id}/healthcheck";
    vec![
        Operation::post(keys, "create_environment_key", Access::Manage, &[kinds::KEY_MINTED], || {
            post(work::create_key)
        })
        .says("Make a key for the workers of an environment; its secret is shown this once.")
        .takes::<CreateEnvironmentKey>()
        .answers::<CreatedKey>(),
        Operation::get(keys, "list_environment_keys", Access::Manage, || get(work::list_keys))
            .says("List the keys of an environment, newest first.")
            .lists::<Key>(),
        Operation::post(
            "/v1/sortie/environments/{environment_id}/keys/{key_id}/archive",
            "archive_environment_key",
            Access::Manage,
            &[kinds::KEY_REVOKED],
            || post(work::archive_key),
        )
        .says("Withdraw a key of an environment at once, with the tokens of the sessions that its workers serve.")
        .answers::<Key>(),
        Operation::post(checks, "create_healthcheck", Access::Manage, &[kinds::HEALTHCHECK_CREATED], || {
            post(work::check_workers)
        })
        .says("Put an item into the queue that a worker only has to stop; it fails when none does within a minute.")
        .answers::<Healthcheck>(),
        Operation::get(
            "/v1/sortie/environments/{environment_id}/healthcheck/{work_id}",
            "get_healthcheck",
            Access::Manage,
            || get(work::healthcheck),
        )
        .says("Show how a check of an environment's workers went.")
        .answers::<Healthcheck>(),
    ]
}
