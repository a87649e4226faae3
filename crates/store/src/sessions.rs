//! Sessions: what is shown of them, where their turns are, and how they go on, one transition after the other.
//!
//! A transition is one transaction: what it shows, what it leaves in the order of events, what it adds to the transcript,
//! and the item of work that it needs. Who writes on a revision that is not the newest changes nothing.

use jiff::Timestamp;
use sortie_api::{Event, Session, SessionStatus};
use sortie_ids::{AgentId, EventId, KeyId, OrganizationId, SessionId, ThreadId, WorkspaceId};

use crate::db::{Row, Transaction, query};
use crate::error::During as _;
use crate::store::{Change, to_the_end};
use crate::work::{end_work, ensure_work};
use crate::{Object, Store, StoreError};

/// A session with what is not shown of it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRecord {
    /// What is shown of it.
    pub session: Session,
    /// The workspace that it belongs to.
    pub workspace: WorkspaceId,
    /// The workspace's organisation.
    pub organization: OrganizationId,
    /// The key that it was made with.
    pub key: KeyId,
    /// Its one thread.
    pub thread: ThreadId,
    /// Where its turn is: JSON.
    pub state: String,
    /// Grows with every transition; 1 for a new session.
    pub revision: i64,
}

/// A session that is to be made, with its first transition.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The workspace that it belongs to.
    pub workspace: WorkspaceId,
    /// The key that it is made with.
    pub key: KeyId,
    /// Its one thread.
    pub thread: ThreadId,
    /// As [`Transition::shown`].
    pub shown: Session,
    /// As [`Transition::state`].
    pub state: String,
    /// As [`Transition::arrived`].
    pub arrived: Vec<Event>,
    /// As [`Transition::events`].
    pub events: Vec<Event>,
    /// As [`Transition::entries`].
    pub entries: Vec<String>,
    /// As [`Transition::wake`].
    pub wake: bool,
}

/// One step of a session.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The session.
    pub id: SessionId,
    /// The revision that this goes on from; the next one is one more.
    pub revision: i64,
    /// The session as it is afterwards.
    pub shown: Session,
    /// Where its turn is afterwards: JSON.
    pub state: String,
    /// Events of clients that wait from now on (`processed_at` none).
    pub arrived: Vec<Event>,
    /// What took its place, in order; an event that waited is moved, others are new.
    pub events: Vec<Event>,
    /// What is added to the transcript.
    pub entries: Vec<String>,
    /// Whether a worker is needed: there is an item of work for the session afterwards.
    pub wake: bool,
}

/// Which sessions are listed.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Only those of this agent.
    pub agent: Option<AgentId>,
    /// Only those of this version of it.
    pub version: Option<u32>,
    /// Only those that do one of these; empty for all.
    pub statuses: Vec<SessionStatus>,
    /// Only those made at this second or later.
    pub from: Option<i64>,
    /// Only those made at this second or before.
    pub to: Option<i64>,
    /// Whether archived ones are listed, too.
    pub include_archived: bool,
    /// Whether the oldest comes first.
    pub ascending: bool,
    /// Sessions on the page, at least one.
    pub limit: u32,
    /// Where the page begins; none for the first one.
    pub place: Option<SessionPlace>,
}

/// A place in a list of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPlace {
    /// Whether the page lies before this place, not behind it.
    pub back: bool,
    /// The sequence number of the session that is next to the page.
    pub seq: i64,
    /// When that one was made, in seconds.
    pub at: i64,
}

/// A page of sessions in the order that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionPage {
    /// The sessions.
    pub items: Vec<Session>,
    /// What lies before.
    pub previous: Option<SessionPlace>,
    /// What follows.
    pub next: Option<SessionPlace>,
}

impl SessionRecord {
    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            session: row.json("body")?,
            workspace: row.parsed("workspace_id")?,
            organization: row.parsed("organization_id")?,
            key: row.parsed("key_id")?,
            thread: row.parsed("thread_id")?,
            state: row.text("state")?,
            revision: row.integer("revision")?,
        })
    }
}

/// The beginning of a statement that reads [`SessionRecord`]s.
macro_rules! select_session {
    ($rest:literal) => {
        concat!(
            "SELECT s.body, s.workspace_id, w.organization_id, s.key_id, s.thread_id, s.state, s.revision \
             FROM sessions s JOIN workspaces w ON w.id = s.workspace_id ",
            $rest
        )
    };
}

/// A statement that lists sessions; `$rest` says where and in what order.
macro_rules! select_sessions {
    ($rest:literal) => {
        concat!(
            "SELECT s.seq, s.created_at, s.body FROM sessions s WHERE s.workspace_id = $1 \
             AND ($2 IS NULL OR s.agent_id = $2) AND ($3 IS NULL OR s.agent_version = $3) \
             AND ($4 = '' OR replace($4, '|' || s.status || '|', '') <> $4) \
             AND s.created_at >= $5 AND s.created_at <= $6 AND ($7 = 1 OR s.archived_at IS NULL) AND ",
            $rest
        )
    };
}

impl Store {
    /// Makes a session, with what it begins with.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and [`StoreError::Archived`] for its environment, [`StoreError::NotSelfHosted`]; database
    /// errors.
    pub async fn create_session(&self, new: NewSession) -> Result<SessionRecord, StoreError> {
        let store = self.clone();
        to_the_end(async move {
            let mut transaction = store.db().begin().await.during("beginning a transaction")?;
            let NewSession { workspace, key, thread, shown, state, arrived, events, entries, wake } = new;
            let environment = query("SELECT kind, archived_at FROM environments WHERE id = $1 AND workspace_id = $2")
                .bind(shown.environment_id.as_str())
                .bind(workspace.as_str())
                .optional(transaction.on())
                .await
                .during("reading an environment")?;
            let environment = environment.ok_or(StoreError::NotFound(Object::Environment))?;
            if environment.optional_integer("archived_at")?.is_some() {
                return Err(StoreError::Archived(Object::Environment));
            }
            let kind = environment.text("kind")?;
            if kind != "self_hosted" {
                return Err(StoreError::NotSelfHosted(kind));
            }
            let organization = query("SELECT organization_id FROM workspaces WHERE id = $1")
                .bind(workspace.as_str())
                .optional(transaction.on())
                .await
                .during("reading a workspace")?;
            let organization =
                organization.ok_or(StoreError::NotFound(Object::Workspace))?.parsed("organization_id")?;
            query(
                "INSERT INTO sessions (id, workspace_id, environment_id, agent_id, agent_version, key_id, thread_id, \
                 status, body, state, revision, next_position, next_entry, created_at, updated_at, archived_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, $11, $12, $13, $14, $15)",
            )
            .bind(shown.id.as_str())
            .bind(workspace.as_str())
            .bind(shown.environment_id.as_str())
            .bind(shown.agent.id.as_str())
            .bind(shown.agent.version)
            .bind(key.as_str())
            .bind(thread.as_str())
            .bind(shown.status.as_str())
            .bind(written(&shown)?)
            .bind(state.as_str())
            .bind(first_free(events.len()))
            .bind(first_free(entries.len()))
            .bind(shown.created_at.as_second())
            .bind(shown.updated_at.as_second())
            .bind(shown.archived_at.map(Timestamp::as_second))
            .execute(transaction.on())
            .await
            .during("storing a session")?;
            let steps = Steps { session: &shown, arrived, events, entries, wake, position: 1, entry: 1 };
            let change = steps.store(&mut transaction, store.exact_now()).await?;
            transaction.commit().await.during("committing")?;
            change.into_iter().for_each(|change| store.announce(change));
            Ok(SessionRecord { session: shown, workspace, organization, key, thread, state, revision: 1 })
        })
        .await
    }

    /// Makes a session go on by one step. Nothing of it may be shown before this returns.
    ///
    /// # Errors
    /// [`StoreError::Outdated`] when the revision is not the newest, [`StoreError::NotFound`]; nothing is stored then.
    /// Database errors.
    pub async fn commit(&self, transition: Transition) -> Result<(), StoreError> {
        let store = self.clone();
        to_the_end(async move {
            let mut transaction = store.db().begin().await.during("beginning a transaction")?;
            let Transition { id, revision, shown, state, arrived, events, entries, wake } = transition;
            let (positions, places) = (count(events.len()), count(entries.len()));
            let row = query(
                "UPDATE sessions SET status = $1, body = $2, state = $3, revision = revision + 1, \
                 next_position = next_position + $4, next_entry = next_entry + $5, updated_at = $6, archived_at = $7 \
                 WHERE id = $8 AND revision = $9 RETURNING next_position, next_entry",
            )
            .bind(shown.status.as_str())
            .bind(written(&shown)?)
            .bind(state)
            .bind(positions)
            .bind(places)
            .bind(shown.updated_at.as_second())
            .bind(shown.archived_at.map(Timestamp::as_second))
            .bind(id.as_str())
            .bind(revision)
            .optional(transaction.on())
            .await
            .during("storing a step of a session")?;
            let Some(row) = row else {
                find(&mut transaction, &id).await?;
                return Err(StoreError::Outdated);
            };
            let position = row.integer("next_position")?.saturating_sub(positions);
            let entry = row.integer("next_entry")?.saturating_sub(places);
            let steps = Steps { session: &shown, arrived, events, entries, wake, position, entry };
            let change = steps.store(&mut transaction, store.exact_now()).await?;
            transaction.commit().await.during("committing")?;
            change.into_iter().for_each(|change| store.announce(change));
            Ok(())
        })
        .await
    }

    /// A session of this workspace.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<SessionRecord, StoreError> {
        let row = query(select_session!("WHERE s.id = $1 AND s.workspace_id = $2"))
            .bind(id.as_str())
            .bind(workspace.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a session")?;
        SessionRecord::from_row(&row.ok_or(StoreError::NotFound(Object::Session))?)
    }

    /// A session of any workspace.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn any_session(&self, id: &SessionId) -> Result<SessionRecord, StoreError> {
        let row = query(select_session!("WHERE s.id = $1"))
            .bind(id.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a session")?;
        SessionRecord::from_row(&row.ok_or(StoreError::NotFound(Object::Session))?)
    }

    /// The sessions that work or are to be tried again, the oldest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn sessions_at_work(&self) -> Result<Vec<SessionId>, StoreError> {
        let rows = query("SELECT id FROM sessions WHERE status IN ('running', 'rescheduling') ORDER BY seq")
            .read_all(&self.db())
            .await
            .during("reading the sessions at work")?;
        rows.iter().map(|row| row.parsed("id")).collect()
    }

    /// A page of the workspace's sessions.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_sessions(
        &self,
        workspace: &WorkspaceId,
        filter: &SessionFilter,
    ) -> Result<SessionPage, StoreError> {
        let back = filter.place.is_some_and(|place| place.back);
        // Upwards from the place: towards the newer sessions.
        let upwards = filter.ascending != back;
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let end = if upwards { 0 } else { i64::MAX };
        let statuses: String = filter.statuses.iter().map(|status| format!("|{}|", status.as_str())).collect();
        let rows = query(if upwards {
            select_sessions!("s.seq > $8 ORDER BY s.seq LIMIT $9")
        } else {
            select_sessions!("s.seq < $8 ORDER BY s.seq DESC LIMIT $9")
        })
        .bind(workspace.as_str())
        .bind(filter.agent.as_ref().map(AgentId::as_str))
        .bind(filter.version)
        .bind(statuses)
        .bind(filter.from.unwrap_or(i64::MIN))
        .bind(filter.to.unwrap_or(i64::MAX))
        .bind(filter.include_archived)
        .bind(filter.place.map_or(end, |place| place.seq))
        .bind(i64::from(filter.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing sessions")?;
        let more = rows.len() > limit;
        let mut found: Vec<(SessionPlace, Session)> = Vec::with_capacity(rows.len().min(limit));
        for row in rows.iter().take(limit) {
            let place = SessionPlace { back: false, seq: row.integer("seq")?, at: row.integer("created_at")? };
            found.push((place, row.json("body")?));
        }
        if back {
            found.reverse();
        }
        let before = |place: SessionPlace| SessionPlace { back: true, ..place };
        let first = found.first().map(|(place, _)| before(*place));
        let last = found.last().map(|(place, _)| *place);
        // Towards where this page was come from there is always something: the page that led here.
        let (previous, next) = match filter.place {
            None => (None, last.filter(|_| more)),
            Some(place) if back => (first.filter(|_| more), last.or(Some(beside(place, filter.ascending)))),
            Some(place) => (first.or(Some(beside(place, !filter.ascending))), last.filter(|_| more)),
        };
        Ok(SessionPage { items: found.into_iter().map(|(_, session)| session).collect(), previous, next })
    }

    /// Removes a session with its events and its transcript.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::AtWork`]; database errors.
    pub async fn delete_session(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<(), StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.db().begin().await.during("beginning a transaction")?;
            // What is written to is locked, so that no step of the session comes between.
            let row =
                query("UPDATE sessions SET revision = revision + 1 WHERE id = $1 AND workspace_id = $2 RETURNING body")
                    .bind(id.as_str())
                    .bind(workspace.as_str())
                    .optional(transaction.on())
                    .await
                    .during("reading a session")?;
            let session: Session = row.ok_or(StoreError::NotFound(Object::Session))?.json("body")?;
            if session.status.is_at_work() {
                return Err(StoreError::AtWork);
            }
            for sql in [
                "DELETE FROM work WHERE session_id = $1",
                "DELETE FROM session_events WHERE session_id = $1",
                "DELETE FROM transcript WHERE session_id = $1",
                "DELETE FROM sessions WHERE id = $1",
            ] {
                query(sql).bind(id.as_str()).execute(transaction.on()).await.during("deleting a session")?;
            }
            transaction.commit().await.during("committing")?;
            Ok(())
        })
        .await
    }
}

/// The page beyond a place that begins with the session at the place itself.
fn beside(place: SessionPlace, ascending: bool) -> SessionPlace {
    let seq = if ascending { place.seq.saturating_sub(1) } else { place.seq.saturating_add(1) };
    SessionPlace { back: !place.back, seq, ..place }
}

/// What a step adds, and where.
struct Steps<'s> {
    session: &'s Session,
    arrived: Vec<Event>,
    events: Vec<Event>,
    entries: Vec<String>,
    wake: bool,
    position: i64,
    entry: i64,
}

impl Steps<'_> {
    /// What is to be announced after the commit.
    async fn store(self, transaction: &mut Transaction, now: Timestamp) -> Result<Option<Change>, StoreError> {
        let session = &self.session.id;
        for event in &self.arrived {
            query("INSERT INTO session_events (session_id, id, kind, answers, body) VALUES ($1, $2, $3, $4, $5)")
                .bind(session.as_str())
                .bind(event.id.as_str())
                .bind(event.body.kind())
                .bind(event.body.answers().map(EventId::as_str))
                .bind(written(event)?)
                .execute(transaction.on())
                .await
                .during("storing an event that waits")?;
        }
        for (event, position) in self.events.iter().zip(self.position..) {
            let at = event.processed_at.ok_or(StoreError::Corrupt("processed_at"))?;
            let stored = query(
                "INSERT INTO session_events (session_id, id, kind, position, processed_at, answers, body) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET position = excluded.position, \
                 processed_at = excluded.processed_at, body = excluded.body \
                 WHERE session_events.session_id = excluded.session_id AND session_events.position IS NULL",
            )
            .bind(session.as_str())
            .bind(event.id.as_str())
            .bind(event.body.kind())
            .bind(position)
            .bind(at.as_microsecond())
            .bind(event.body.answers().map(EventId::as_str))
            .bind(written(event)?)
            .execute(transaction.on())
            .await
            .during("storing an event")?;
            if stored != 1 {
                // An event takes its place once.
                return Err(StoreError::Corrupt("session_events.id"));
            }
        }
        for (body, entry) in self.entries.iter().zip(self.entry..) {
            query("INSERT INTO transcript (session_id, entry, body) VALUES ($1, $2, $3)")
                .bind(session.as_str())
                .bind(entry)
                .bind(body.as_str())
                .execute(transaction.on())
                .await
                .during("storing an entry of a transcript")?;
        }
        if self.session.status == SessionStatus::Terminated {
            end_work(transaction, session, now).await?;
            return Ok(None);
        }
        let environment = &self.session.environment_id;
        let made = self.wake && ensure_work(transaction, environment, session, now).await?;
        Ok(made.then(|| Change::WorkWaits(environment.clone())))
    }
}

/// The session, of any workspace, within a transaction.
async fn find(transaction: &mut Transaction, id: &SessionId) -> Result<SessionRecord, StoreError> {
    let row = query(select_session!("WHERE s.id = $1"))
        .bind(id.as_str())
        .optional(transaction.on())
        .await
        .during("reading a session")?;
    SessionRecord::from_row(&row.ok_or(StoreError::NotFound(Object::Session))?)
}

fn written<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).during("writing JSON")
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// Places are counted from 1.
fn first_free(taken: usize) -> i64 {
    count(taken).saturating_add(1)
}

#[cfg(test)]
pub(crate) mod tests;
