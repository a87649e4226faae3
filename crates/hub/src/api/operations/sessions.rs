//! Sessions, their events and their threads.

use axum::routing::{delete, get, post};
use sortie_api::{
    CreateSession, DeletedSession, Event, List, SendEvents, SentEvents, Session, SessionList, SessionThread,
    UpdateSession,
};
use sortie_audit::kinds;

use super::super::{events, sessions, threads};
use super::{Access, Operation};

pub(super) fn all() -> Vec<Operation> {
    let mut all = of_sessions();
    all.extend(of_events());
    all.extend(of_threads());
    all
}

fn of_sessions() -> Vec<Operation> {
    let access = Access::Manage;
    vec![
        Operation::post("/v1/sessions", "create_session", access, &[kinds::SESSION_CREATED], || post(sessions::create))
            .says("Make a session of an agent. With messages to begin with it works at once.")
            .takes::<CreateSession>()
            .large()
            .answers::<Session>(),
        within(Operation::get("/v1/sessions", "list_sessions", access, || get(sessions::list)))
            .says("List the sessions of the workspace, newest first unless asked otherwise.")
            .asks("limit", "Objects on a page; the installation may allow fewer, or give fewer unasked.")
            .asks("page", "The `next_page` or `prev_page` of another page in the same order, unchanged.")
            .asks("order", "`desc`, newest first, or `asc`.")
            .asks("agent_id", "Only sessions of this agent.")
            .asks("agent_version", "Only sessions of this version of it.")
            .asks("statuses[]", "Only sessions that do this; may be repeated.")
            .asks("include_archived", "Whether archived sessions are listed, too.")
            .answers::<SessionList>(),
        Operation::get("/v1/sessions/{session_id}", "get_session", Access::Worker, || get(sessions::retrieve))
            .says("Show a session.")
            .answers::<Session>(),
        Operation::post("/v1/sessions/{session_id}", "update_session", access, &[kinds::SESSION_UPDATED], || {
            post(sessions::update)
        })
        .says("Change a session's title, its metadata, or, while it does not work, its agent's tools and servers.")
        .takes::<UpdateSession>()
        .large()
        .answers::<Session>(),
        Operation::delete("/v1/sessions/{session_id}", "delete_session", access, &[kinds::SESSION_DELETED], || {
            delete(sessions::delete)
        })
        .says("Remove a session that does not work, with everything that is known of it.")
        .answers::<DeletedSession>(),
        Operation::post(
            "/v1/sessions/{session_id}/archive",
            "archive_session",
            access,
            &[kinds::SESSION_ARCHIVED],
            || post(sessions::archive),
        )
        .says("End a session that does not work, for ever. It can still be read.")
        .answers::<Session>(),
        Operation::get("/v1/sessions/{session_id}/resources", "list_session_resources", access, || {
            get(sessions::resources)
        })
        .says("List the resources of a session: there are none.")
        .answers::<List<serde_json::Value>>(),
        Operation::post(
            "/v1/sessions/{session_id}/resources",
            "add_session_resource",
            access,
            &[kinds::SESSION_UPDATED],
            || post(sessions::add_resource),
        )
        .says("Refused: sessions in self-hosted environments take no resources.")
        .answers::<serde_json::Value>(),
    ]
}

fn of_events() -> Vec<Operation> {
    let access = Access::Worker;
    vec![
        Operation::post(
            "/v1/sessions/{session_id}/events",
            "send_session_events",
            access,
            &[kinds::SESSION_EVENTS_SENT],
            || post(events::send),
        )
        .says("Send events to a session: messages, interrupts, words about tool uses and their results.")
        .takes::<SendEvents>()
        .large()
        .answers::<SentEvents>(),
        listing(Operation::get("/v1/sessions/{session_id}/events", "list_session_events", access, || {
            get(events::list)
        }))
        .says("List what happened in a session, in its order; what waits comes last.")
        .answers::<List<Event>>(),
        streaming(Operation::get("/v1/sessions/{session_id}/events/stream", "stream_session_events", access, || {
            get(events::stream)
        }))
        .says("Stream what happens in a session from now on, as server-sent events."),
    ]
}

fn of_threads() -> Vec<Operation> {
    let access = Access::Manage;
    vec![
        Operation::get("/v1/sessions/{session_id}/threads", "list_session_threads", access, || get(threads::list))
            .says("List the threads of a session: there is one.")
            .asks("limit", "Objects on a page.")
            .asks("statuses[]", "Only threads that do this; may be repeated.")
            .answers::<List<SessionThread>>(),
        Operation::get("/v1/sessions/{session_id}/threads/{thread_id}", "get_session_thread", access, || {
            get(threads::retrieve)
        })
        .says("Show a thread of a session.")
        .answers::<SessionThread>(),
        Operation::post(
            "/v1/sessions/{session_id}/threads/{thread_id}/archive",
            "archive_session_thread",
            access,
            &[kinds::SESSION_ARCHIVED],
            || post(threads::archive),
        )
        .says("Refused: the primary thread is archived with its session.")
        .answers::<SessionThread>(),
        listing(Operation::get(
            "/v1/sessions/{session_id}/threads/{thread_id}/events",
            "list_session_thread_events",
            access,
            || get(events::list_of_thread),
        ))
        .says("List what happened in a thread, in its order; what waits comes last.")
        .answers::<List<Event>>(),
        streaming(Operation::get(
            "/v1/sessions/{session_id}/threads/{thread_id}/stream",
            "stream_session_thread",
            access,
            || get(events::stream_of_thread),
        ))
        .says("Stream what happens in a thread from now on, as server-sent events."),
    ]
}

fn listing(operation: Operation) -> Operation {
    within(operation)
        .asks("limit", "Events on a page, 1000 at most and when left out; large events make shorter pages.")
        .asks("page", "The `next_page` of the previous page in the same order, unchanged.")
        .asks("order", "`asc`, as it happened, or `desc`.")
        .asks("types[]", "Only events of this type; may be repeated.")
}

fn within(operation: Operation) -> Operation {
    operation
        .asks("created_at[gt]", "Only what is later than this RFC 3339 time.")
        .asks("created_at[gte]", "Only what is at this time or later.")
        .asks("created_at[lt]", "Only what is earlier than this time.")
        .asks("created_at[lte]", "Only what is at this time or earlier.")
}

fn streaming(operation: Operation) -> Operation {
    operation
        .asks("event_deltas[]", "`agent.message` or `agent.thinking`: shown while they are written; may be repeated.")
        .text("text/event-stream")
}
