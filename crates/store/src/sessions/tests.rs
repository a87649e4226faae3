use std::collections::BTreeSet;

use serde_json::json;
use sortie_api::{EventBody, StopReason};
use sortie_ids::{EnvironmentId, KeyId};

use super::*;
use crate::EventQuery;
use crate::testing::{Fixture, on_both};

on_both![
    a_session_is_found_in_its_workspace_as_it_was_made,
    sessions_need_a_live_self_hosted_environment_of_their_workspace,
    steps_follow_one_another_and_events_keep_one_order,
    a_session_has_one_live_item_of_work,
    a_deleted_session_leaves_nothing_and_a_running_one_stays,
    lists_are_walked_in_both_directions,
    lists_are_filtered,
];

/// A store with an agent, environments of both kinds and an archived one.
pub(crate) struct Ground {
    pub(crate) fixture: Fixture,
    pub(crate) agent: AgentId,
    pub(crate) environment: EnvironmentId,
    pub(crate) cloud: EnvironmentId,
    pub(crate) archived: EnvironmentId,
    pub(crate) key: KeyId,
}

impl Ground {
    pub(crate) async fn new(fixture: Fixture) -> Self {
        let new = sortie_api::CreateKey {
            role: None,
            kind: sortie_api::KeyKind::Manage,
            name: "ops".parse().expect("name"),
            expires_at: None,
            grants: Vec::new(),
            agent: None,
            user: None,
            workspace_id: None,
        };
        let key = fixture.store.create_key(&fixture.home, new, &fixture.limits).await.expect("key").key.id;
        let agent = AgentId::random();
        let (environment, cloud, archived) =
            (EnvironmentId::random(), EnvironmentId::random(), EnvironmentId::random());
        let mut transaction = fixture.store.db().begin().await.expect("begin");
        query("INSERT INTO agents (id, workspace_id, version, created_at, updated_at) VALUES ($1, $2, 1, 0, 0)")
            .bind(agent.as_str())
            .bind(fixture.home.as_str())
            .execute(transaction.on())
            .await
            .expect("agent");
        for (id, kind, gone) in
            [(&environment, "self_hosted", None), (&cloud, "cloud", None), (&archived, "self_hosted", Some(7i64))]
        {
            query(
                "INSERT INTO environments (id, workspace_id, name, kind, body, created_at, updated_at, archived_at) \
                 VALUES ($1, $2, $1, $3, '{}', 0, 0, $4)",
            )
            .bind(id.as_str())
            .bind(fixture.home.as_str())
            .bind(kind)
            .bind(gone)
            .execute(transaction.on())
            .await
            .expect("environment");
        }
        transaction.commit().await.expect("commit");
        Self { fixture, agent, environment, cloud, archived, key }
    }

    /// A session that was just made, with nothing in it.
    pub(crate) fn new_session(&self) -> NewSession {
        let now = self.fixture.store.now();
        let agent = json!({
            "type": "agent", "id": self.agent, "version": 1, "name": "a", "description": null, "system": null,
            "model": {"id": "m"}, "tools": [], "mcp_servers": [], "skills": [], "multiagent": null,
        });
        let shown = json!({
            "type": "session", "id": SessionId::random(), "status": "idle", "agent": agent,
            "environment_id": self.environment, "title": null, "metadata": {}, "resources": [], "vault_ids": [],
            "budget": null, "usage": {}, "stats": {}, "outcome_evaluations": [], "deployment_id": null,
            "created_at": now.to_string(), "updated_at": now.to_string(), "archived_at": null,
        });
        NewSession {
            workspace: self.fixture.home.clone(),
            key: self.key.clone(),
            thread: ThreadId::random(),
            shown: serde_json::from_value(shown).expect("session"),
            state: "{}".to_owned(),
            arrived: Vec::new(),
            events: Vec::new(),
            entries: Vec::new(),
            wake: false,
        }
    }

    pub(crate) async fn session(&self) -> SessionRecord {
        self.fixture.store.create_session(self.new_session()).await.expect("session")
    }

    pub(crate) async fn commit(&self, from: &SessionRecord, change: impl FnOnce(&mut Transition)) -> SessionRecord {
        let mut step = step(from);
        change(&mut step);
        self.fixture.store.commit(step).await.expect("committed");
        self.fixture.store.any_session(&from.session.id).await.expect("session")
    }

    /// All events, as one page lists them.
    pub(crate) async fn listed(&self, session: &SessionId) -> Vec<Event> {
        let page = self.fixture.store.list_events(session, &everything()).await.expect("events");
        assert_eq!(page.next, None);
        page.lines.iter().map(|line| serde_json::from_str(line).expect("event")).collect()
    }

    async fn counted(&self, sql: &'static str) -> i64 {
        let row = query(sql).read_optional(&self.fixture.store.db()).await.expect("read").expect("row");
        row.integer("count").expect("count")
    }
}

pub(crate) fn everything() -> EventQuery {
    EventQuery { kinds: Vec::new(), from: None, to: None, descending: false, limit: 1000, bytes: 1 << 20, place: None }
}

pub(crate) fn step(from: &SessionRecord) -> Transition {
    Transition {
        id: from.session.id.clone(),
        revision: from.revision,
        shown: from.session.clone(),
        state: from.state.clone(),
        arrived: Vec::new(),
        events: Vec::new(),
        entries: Vec::new(),
        wake: false,
    }
}

pub(crate) fn message(text: &str) -> Event {
    let body = EventBody::UserMessage { content: vec![json!({"type": "text", "text": text})] };
    Event { id: EventId::random(), processed_at: None, body }
}

/// The event as it is when it took its place at this microsecond.
pub(crate) fn at(micros: i64, event: Event) -> Event {
    Event { processed_at: Some(Timestamp::from_microsecond(micros).expect("time")), ..event }
}

pub(crate) fn idle(micros: i64) -> Event {
    let body = EventBody::SessionStatusIdle { stop_reason: StopReason::EndTurn, stop_details: None };
    at(micros, Event { id: EventId::random(), processed_at: None, body })
}

async fn a_session_is_found_in_its_workspace_as_it_was_made(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let store = &ground.fixture.store;
    let made = ground.session().await;
    assert_eq!(made.revision, 1);
    let id = &made.session.id;
    assert_eq!(store.session(&ground.fixture.home, id).await.expect("found"), made);
    assert_eq!(store.any_session(id).await.expect("found"), made);
    let foreign = store.session(&ground.fixture.foreign, id).await.expect_err("foreign");
    assert!(matches!(foreign, StoreError::NotFound(Object::Session)));
    assert_eq!(made.organization, store.organization_of(&ground.fixture.home).await.expect("organisation"));
}

async fn sessions_need_a_live_self_hosted_environment_of_their_workspace(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let make = async |environment: &EnvironmentId, workspace: &WorkspaceId| {
        let mut new = ground.new_session();
        new.shown.environment_id = environment.clone();
        new.workspace = workspace.clone();
        ground.fixture.store.create_session(new).await.map(drop)
    };
    let (home, foreign) = (&ground.fixture.home, &ground.fixture.foreign);
    assert!(make(&ground.environment, home).await.is_ok());
    let missing = make(&EnvironmentId::random(), home).await.expect_err("missing");
    assert!(matches!(missing, StoreError::NotFound(Object::Environment)));
    let elsewhere = make(&ground.environment, foreign).await.expect_err("another workspace's");
    assert!(matches!(elsewhere, StoreError::NotFound(Object::Environment)));
    let archived = make(&ground.archived, home).await.expect_err("archived");
    assert!(matches!(archived, StoreError::Archived(Object::Environment)));
    let cloud = make(&ground.cloud, home).await.expect_err("cloud");
    assert!(matches!(cloud, StoreError::NotSelfHosted(kind) if kind == "cloud"));
    assert_eq!(ground.counted("SELECT count(*) AS count FROM sessions").await, 1);
}

async fn steps_follow_one_another_and_events_keep_one_order(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let store = &ground.fixture.store;
    let (first, second) = (message("one"), message("two"));
    let mut new = ground.new_session();
    new.arrived = vec![first.clone(), second.clone()];
    new.entries = vec!["0".to_owned()];
    let made = store.create_session(new).await.expect("session");
    let id = made.session.id.clone();
    assert_eq!(store.waiting(&id).await.expect("waiting"), [first.clone(), second.clone()]);
    assert_eq!(ground.listed(&id).await, [first.clone(), second.clone()]);

    let (running, placed) = (idle(10), at(11, first.clone()));
    let expected = [running.clone(), placed.clone()];
    let next = ground
        .commit(&made, |step| {
            step.shown.status = SessionStatus::Running;
            step.shown.title = Some("named".to_owned());
            step.state = "{\"at\":1}".to_owned();
            step.events = expected.to_vec();
            step.entries = vec!["1".to_owned(), "2".to_owned()];
        })
        .await;
    assert_eq!((next.revision, next.state.as_str()), (2, "{\"at\":1}"));
    assert_eq!(next.session.title.as_deref(), Some("named"));
    assert_eq!(store.sessions_at_work().await.expect("at work"), [id.clone()]);
    assert_eq!(store.waiting(&id).await.expect("waiting"), std::slice::from_ref(&second));
    assert_eq!(ground.listed(&id).await, [running.clone(), placed.clone(), second.clone()]);

    // On what is outdated nothing is built, and nothing is left behind.
    let mut late = step(&made);
    late.events = vec![idle(12)];
    late.arrived = vec![message("three")];
    late.entries = vec!["3".to_owned()];
    late.wake = true;
    assert!(matches!(store.commit(late).await.expect_err("outdated"), StoreError::Outdated));
    // An event takes its place once.
    let mut again = step(&next);
    again.events = vec![at(13, first)];
    assert!(matches!(store.commit(again).await.expect_err("twice"), StoreError::Corrupt(_)));
    assert_eq!(ground.listed(&id).await, [running, placed, second.clone()]);

    let last = at(20, second);
    let answer = Event {
        id: EventId::random(),
        processed_at: last.processed_at,
        body: EventBody::UserToolResult { tool_use_id: last.id.clone(), content: None, is_error: Some(false) },
    };
    ground
        .commit(&next, |step| {
            step.events = vec![last.clone(), answer.clone()];
            step.entries = vec!["3".to_owned()];
        })
        .await;
    assert_eq!(ground.listed(&id).await[2..], [last.clone(), answer.clone()]);
    assert_eq!(store.transcript(&id).await.expect("transcript"), ["0", "1", "2", "3"]);
    assert_eq!(store.answers(&id, &last.id).await.expect("answers"), [answer]);
    let missing = Transition { id: SessionId::random(), ..step(&made) };
    assert!(matches!(store.commit(missing).await.expect_err("missing"), StoreError::NotFound(Object::Session)));
}

async fn a_session_has_one_live_item_of_work(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let mut new = ground.new_session();
    new.wake = true;
    let made = ground.fixture.store.create_session(new).await.expect("session");
    let next = ground.commit(&made, |step| step.wake = true).await;
    assert_eq!(ground.counted("SELECT count(*) AS count FROM work WHERE state = 'queued'").await, 1);
    ground.fixture.damage("UPDATE work SET state = 'stopped'").await;
    ground.commit(&next, |step| step.wake = true).await;
    assert_eq!(ground.counted("SELECT count(*) AS count FROM work").await, 2);
}

async fn a_deleted_session_leaves_nothing_and_a_running_one_stays(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (store, home) = (&ground.fixture.store, &ground.fixture.home);
    let mut new = ground.new_session();
    (new.wake, new.events, new.entries) = (true, vec![idle(1)], vec!["0".to_owned()]);
    let made = store.create_session(new).await.expect("session");
    let id = &made.session.id;
    let running = ground.commit(&made, |step| step.shown.status = SessionStatus::Running).await;
    assert!(matches!(store.delete_session(home, id).await.expect_err("running"), StoreError::AtWork));
    ground.commit(&running, |step| step.shown.status = SessionStatus::Idle).await;
    assert!(store.delete_session(&ground.fixture.foreign, id).await.is_err());
    assert_eq!(ground.listed(id).await.len(), 1);
    store.delete_session(home, id).await.expect("deleted");
    assert!(matches!(store.any_session(id).await.expect_err("gone"), StoreError::NotFound(_)));
    for sql in [
        "SELECT count(*) AS count FROM work",
        "SELECT count(*) AS count FROM session_events",
        "SELECT count(*) AS count FROM transcript",
    ] {
        assert_eq!(ground.counted(sql).await, 0, "{sql}");
    }
}

async fn lists_are_walked_in_both_directions(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (store, home) = (&ground.fixture.store, &ground.fixture.home);
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(ground.session().await.session.id);
        ground.fixture.pass(10);
    }
    for ascending in [false, true] {
        let mut expected = made.clone();
        if !ascending {
            expected.reverse();
        }
        let page = async |place| {
            let filter = SessionFilter { ascending, limit: 3, place, ..SessionFilter::default() };
            let page = store.list_sessions(home, &filter).await.expect("page");
            (page.items.into_iter().map(|session| session.id).collect::<Vec<_>>(), page.previous, page.next)
        };
        let (first, before, behind) = page(None).await;
        assert_eq!((first.as_slice(), before), (&expected[..3], None));
        let (second, before_second, behind_second) = page(behind).await;
        assert_eq!(second, expected[3..6]);
        let (third, before_third, end) = page(behind_second).await;
        assert_eq!((third.as_slice(), end), (&expected[6..], None));
        let (again, _, forward) = page(before_third).await;
        assert_eq!(again, second);
        assert_eq!(page(forward).await.0, third);
        let (begin, none, forward) = page(before_second).await;
        assert_eq!((begin.as_slice(), none), (&expected[..3], None));
        assert_eq!(page(forward).await.0, second);
    }
    assert!(
        store
            .list_sessions(&ground.fixture.foreign, &SessionFilter { limit: 9, ..Default::default() })
            .await
            .expect("page")
            .items
            .is_empty()
    );

    // What was deleted meanwhile makes an empty page from which the way back leads to the rest.
    let filter = SessionFilter { limit: 6, ..SessionFilter::default() };
    let page = store.list_sessions(home, &filter).await.expect("page");
    store.delete_session(home, &made[0]).await.expect("deleted");
    let filter = SessionFilter { place: page.next, ..filter };
    let empty = store.list_sessions(home, &filter).await.expect("page");
    assert!(empty.items.is_empty() && empty.next.is_none());
    let filter = SessionFilter { place: empty.previous, ..filter };
    assert_eq!(store.list_sessions(home, &filter).await.expect("page").items, page.items);
}

async fn lists_are_filtered(fixture: Fixture) {
    let ground = Ground::new(fixture).await;
    let (store, home) = (&ground.fixture.store, &ground.fixture.home);
    let begin = store.now().as_second();
    let mut ids = Vec::new();
    for status in [SessionStatus::Idle, SessionStatus::Running, SessionStatus::Terminated] {
        let mut new = ground.new_session();
        new.shown.status = status;
        if status == SessionStatus::Terminated {
            new.shown.archived_at = Some(store.now());
        }
        ids.push(store.create_session(new).await.expect("session").session.id);
        ground.fixture.pass(10);
    }
    let found = async |filter: SessionFilter| {
        let filter = SessionFilter { limit: 10, ascending: true, ..filter };
        let page = store.list_sessions(home, &filter).await.expect("page");
        page.items.iter().filter_map(|session| ids.iter().position(|id| *id == session.id)).collect::<BTreeSet<_>>()
    };
    let all = SessionFilter { include_archived: true, ..SessionFilter::default() };
    assert_eq!(found(SessionFilter::default()).await, [0, 1].into());
    assert_eq!(found(all.clone()).await, [0, 1, 2].into());
    for (statuses, expected) in [
        (vec![SessionStatus::Idle], vec![0]),
        (vec![SessionStatus::Terminated, SessionStatus::Running], vec![1, 2]),
        (vec![SessionStatus::Rescheduling], vec![]),
    ] {
        let expected: BTreeSet<usize> = expected.into_iter().collect();
        assert_eq!(found(SessionFilter { statuses, ..all.clone() }).await, expected);
    }
    assert_eq!(found(SessionFilter { from: Some(begin + 10), ..all.clone() }).await, [1, 2].into());
    assert_eq!(found(SessionFilter { to: Some(begin + 10), ..all.clone() }).await, [0, 1].into());
    let agent = Some(ground.agent.clone());
    assert_eq!(found(SessionFilter { agent: agent.clone(), version: Some(1), ..all.clone() }).await, [0, 1, 2].into());
    assert!(found(SessionFilter { agent, version: Some(2), ..all.clone() }).await.is_empty());
    assert!(found(SessionFilter { agent: Some(AgentId::random()), ..all }).await.is_empty());
}
