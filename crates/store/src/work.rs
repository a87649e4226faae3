//! The work of environments: items that wait for a worker, and who has them.
//!
//! What may become of an item is not decided here: each operation is one transaction that reads it, lets the caller's
//! function change it, and writes it, if nobody wrote in between.

use jiff::Timestamp;
use sortie_api::{Metadata, PageRequest, WorkData, WorkState};
use sortie_ids::{Digest, EnvironmentId, KeyId, SessionId, WorkId, WorkspaceId};

use crate::db::{Query, Row, Transaction, query};
use crate::error::During as _;
use crate::store::{Change, Page, to_the_end};
use crate::{Object, Store, StoreError};

/// How often an operation reads again, since others write at the same time, before it gives up.
const ATTEMPTS: u32 = 20;
/// Items whose worker is gone that one look ends at most; the next look ends more.
const ENDED_AT_ONCE: i64 = 100;

/// An item of work with what is not shown of it. Times have microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkItem {
    /// Its id.
    pub id: WorkId,
    /// Whose workers get it.
    pub environment: EnvironmentId,
    /// The session; none for a health check.
    pub session: Option<SessionId>,
    /// Where it is.
    pub state: WorkState,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// Of the token that its worker acts for the session with.
    pub token: Option<Digest>,
    /// What the worker calls itself that it was handed to.
    pub worker: Option<String>,
    /// The key that the worker asked with.
    pub key: Option<KeyId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it waits for a worker.
    pub queued_at: Timestamp,
    /// When it was handed out.
    pub polled_at: Option<Timestamp>,
    /// When its worker took it.
    pub acknowledged_at: Option<Timestamp>,
    /// When its worker began.
    pub started_at: Option<Timestamp>,
    /// When its worker said last that it is at it.
    pub latest_heartbeat_at: Option<Timestamp>,
    /// When it said so before that.
    pub previous_heartbeat_at: Option<Timestamp>,
    /// When its session asked for a worker while it had this one.
    pub woken_at: Option<Timestamp>,
    /// When the lease ends without a further heartbeat, or the wait for what comes next.
    pub lease_ends_at: Option<Timestamp>,
    /// How long the lease lasts, in seconds.
    pub ttl_seconds: Option<u32>,
    /// When somebody asked for its end.
    pub stop_requested_at: Option<Timestamp>,
    /// When it ended.
    pub stopped_at: Option<Timestamp>,
    revision: i64,
}

impl WorkItem {
    /// A new item that waits.
    pub fn new(environment: EnvironmentId, session: Option<SessionId>, now: Timestamp) -> Self {
        Self {
            id: WorkId::random(),
            environment,
            session,
            state: WorkState::Queued,
            metadata: Metadata::new(),
            token: None,
            worker: None,
            key: None,
            created_at: now,
            queued_at: now,
            polled_at: None,
            acknowledged_at: None,
            started_at: None,
            latest_heartbeat_at: None,
            previous_heartbeat_at: None,
            woken_at: None,
            lease_ends_at: None,
            ttl_seconds: None,
            stop_requested_at: None,
            stopped_at: None,
            revision: 0,
        }
    }

    /// What it is about.
    pub fn data(&self) -> WorkData {
        match &self.session {
            Some(id) => WorkData::Session { id: id.clone() },
            None => WorkData::Healthcheck { id: self.id.clone() },
        }
    }

    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parsed("id")?,
            environment: row.parsed("environment_id")?,
            session: row.optional_parsed("session_id")?,
            state: WorkState::from_name(&row.text("state")?).ok_or(StoreError::Corrupt("state"))?,
            metadata: row.json("metadata")?,
            token: match row.optional_bytes("token_digest")? {
                Some(_) => Some(row.digest("token_digest")?),
                None => None,
            },
            worker: row.optional_text("worker")?,
            key: row.optional_parsed("key_id")?,
            created_at: row.exact_time("created_at")?,
            queued_at: row.exact_time("queued_at")?,
            polled_at: row.optional_exact_time("polled_at")?,
            acknowledged_at: row.optional_exact_time("acknowledged_at")?,
            started_at: row.optional_exact_time("started_at")?,
            latest_heartbeat_at: row.optional_exact_time("latest_heartbeat_at")?,
            previous_heartbeat_at: row.optional_exact_time("previous_heartbeat_at")?,
            woken_at: row.optional_exact_time("woken_at")?,
            lease_ends_at: row.optional_exact_time("lease_ends_at")?,
            ttl_seconds: match row.optional_integer("ttl_seconds")? {
                Some(seconds) => Some(u32::try_from(seconds).map_err(|_| StoreError::Corrupt("ttl_seconds"))?),
                None => None,
            },
            stop_requested_at: row.optional_exact_time("stop_requested_at")?,
            stopped_at: row.optional_exact_time("stopped_at")?,
            revision: row.integer("revision")?,
        })
    }
}

/// What a look for work found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// An item, as it was handed out.
    Item(Box<WorkItem>),
    /// Nothing, and when that may change by itself.
    Nothing(Horizon),
}

/// When something can be handed out of a queue that has nothing now and gets nothing new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon {
    /// Of the items that were handed out and not acknowledged, when the first one was.
    pub handed_out: Option<Timestamp>,
    /// When the first lease ends.
    pub lease_ends: Option<Timestamp>,
}

/// What a session token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkToken {
    /// The item that it was handed out with.
    pub work: WorkId,
    /// The environment of the item.
    pub environment: EnvironmentId,
    /// The session of the item; none for a health check.
    pub session: Option<SessionId>,
    /// When the item ended.
    pub stopped_at: Option<Timestamp>,
}

/// How many items wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// For a worker.
    pub waiting: u64,
    /// For the word of the worker that they were handed to.
    pub handed_out: u64,
    /// Since when the oldest waits.
    pub oldest: Option<Timestamp>,
}

/// A statement about items.
macro_rules! select_work {
    ($rest:literal) => {
        concat!(
            "SELECT w.seq, w.id, w.environment_id, w.session_id, w.state, w.metadata, w.token_digest, w.worker, w.key_id, \
             w.created_at, w.queued_at, w.polled_at, w.acknowledged_at, w.started_at, w.latest_heartbeat_at, \
             w.previous_heartbeat_at, w.woken_at, w.lease_ends_at, w.ttl_seconds, w.stop_requested_at, w.stopped_at, \
             w.revision FROM work w ",
            $rest
        )
    };
}

/// Sees to it that the session has an item of work that is not over: makes one, or notes on the one that it has that it is
/// needed still. True when one was made: [`Change::WorkWaits`] is to be announced after the commit.
///
/// # Errors
/// Database errors.
pub(crate) async fn ensure_work(
    transaction: &mut Transaction,
    environment: &EnvironmentId,
    session: &SessionId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    // A worker that was to end an item and is gone does not stand in the way of the next one.
    query(
        "UPDATE work SET state = 'stopped', stopped_at = $1, lease_ends_at = NULL, revision = revision + 1 \
         WHERE session_id = $2 AND state = 'stopping' AND lease_ends_at <= $1",
    )
    .bind(now.as_microsecond())
    .bind(session.as_str())
    .execute(transaction.on())
    .await
    .during("ending an item of work")?;
    let noted = query(
        "UPDATE work SET woken_at = $1, revision = revision + 1 \
         WHERE session_id = $2 AND state <> 'stopped'",
    )
    .bind(now.as_microsecond())
    .bind(session.as_str())
    .execute(transaction.on())
    .await
    .during("waking an item of work")?;
    if noted > 0 {
        return Ok(false);
    }
    insert(transaction, &WorkItem::new(environment.clone(), Some(session.clone()), now)).await?;
    Ok(true)
}

/// Ends the item of a session that takes nothing more.
///
/// # Errors
/// Database errors.
pub(crate) async fn end_work(
    transaction: &mut Transaction,
    session: &SessionId,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE work SET state = 'stopped', stopped_at = $1, lease_ends_at = NULL, revision = revision + 1, \
         stop_requested_at = coalesce(stop_requested_at, $1) WHERE session_id = $2 AND state <> 'stopped'",
    )
    .bind(now.as_microsecond())
    .bind(session.as_str())
    .execute(transaction.on())
    .await
    .during("ending the work of a session")?;
    Ok(())
}

impl Store {
    /// Looks for an item that can be handed out: one that waits, one that was handed out at `reclaim` or before and is not
    /// acknowledged, or one whose lease is over. Before that, `settle` is let at each item whose time is over; `claim`
    /// hands the item out.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the workspace has no such environment, [`StoreError::NoWorkers`]; database errors.
    pub async fn claim_work(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        reclaim: Timestamp,
        settle: fn(&mut WorkItem, Timestamp),
        claim: impl Fn(&mut WorkItem, Timestamp) + Send + Sync + 'static,
    ) -> Result<Claim, StoreError> {
        let (store, workspace, environment) = (self.clone(), workspace.clone(), environment.clone());
        to_the_end(async move {
            for _ in 0..ATTEMPTS {
                if let Some(claimed) = store.try_claim(&workspace, &environment, reclaim, settle, &claim).await? {
                    return Ok(claimed);
                }
            }
            Err(StoreError::Outdated)
        })
        .await
    }

    /// None when somebody else wrote in between.
    async fn try_claim(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        reclaim: Timestamp,
        settle: fn(&mut WorkItem, Timestamp),
        claim: &(impl Fn(&mut WorkItem, Timestamp) + Send + Sync),
    ) -> Result<Option<Claim>, StoreError> {
        let mut transaction = self.db().begin().await.during("beginning a transaction")?;
        check_self_hosted(&mut transaction, workspace, environment).await?;
        let now = self.exact_now();
        let rows = query(select_work!(
            "WHERE w.environment_id = $1 AND w.lease_ends_at <= $2 AND w.state <> 'stopped' ORDER BY w.seq LIMIT $3"
        ))
        .bind(environment.as_str())
        .bind(now.as_microsecond())
        .bind(ENDED_AT_ONCE)
        .all(transaction.on())
        .await
        .during("looking for work whose time is over")?;
        for row in &rows {
            let before = WorkItem::from_row(row)?;
            let mut item = before.clone();
            settle(&mut item, now);
            if !write(&mut transaction, &before, &mut item, now).await?.written {
                return Ok(None);
            }
        }
        let row = query(select_work!(
            "WHERE w.environment_id = $1 AND w.state = 'queued' AND (w.polled_at IS NULL OR w.polled_at <= $2) \
             ORDER BY w.seq LIMIT 1"
        ))
        .bind(environment.as_str())
        .bind(reclaim.as_microsecond())
        .optional(transaction.on())
        .await
        .during("looking for work")?;
        let claimed = if let Some(row) = row {
            let before = WorkItem::from_row(&row)?;
            let mut item = before.clone();
            claim(&mut item, now);
            if !write(&mut transaction, &before, &mut item, now).await?.written {
                return Ok(None);
            }
            Claim::Item(Box::new(item))
        } else {
            Claim::Nothing(horizon(&mut transaction, environment).await?)
        };
        if !rows.is_empty() || matches!(claimed, Claim::Item(_)) {
            transaction.commit().await.during("committing")?;
        }
        Ok(Some(claimed))
    }

    /// Lets `change` at an item of the workspace, and stores what it made of it, also where it refuses. The item and what
    /// `change` answered.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn change_work<T: Send + 'static>(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        id: &WorkId,
        change: impl Fn(&mut WorkItem, Timestamp) -> T + Send + Sync + 'static,
    ) -> Result<(WorkItem, T), StoreError> {
        let (store, workspace, environment, id) = (self.clone(), workspace.clone(), environment.clone(), id.clone());
        to_the_end(async move {
            for _ in 0..ATTEMPTS {
                let mut transaction = store.db().begin().await.during("beginning a transaction")?;
                let row = one(&workspace, &environment, &id).optional(transaction.on()).await;
                let row = row.during("reading an item of work")?.ok_or(StoreError::NotFound(Object::Work))?;
                let before = WorkItem::from_row(&row)?;
                let (mut item, now) = (before.clone(), store.exact_now());
                let answer = change(&mut item, now);
                if item == before {
                    return Ok((item, answer));
                }
                let outcome = write(&mut transaction, &before, &mut item, now).await?;
                if !outcome.written {
                    continue;
                }
                transaction.commit().await.during("committing")?;
                if outcome.waits {
                    store.announce(Change::WorkWaits(environment.clone()));
                }
                return Ok((item, answer));
            }
            Err(StoreError::Outdated)
        })
        .await
    }

    /// An item of the workspace, as it was stored last.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn work(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        id: &WorkId,
    ) -> Result<WorkItem, StoreError> {
        let row = one(workspace, environment, id).read_optional(&self.db()).await.during("reading an item of work")?;
        WorkItem::from_row(&row.ok_or(StoreError::NotFound(Object::Work))?)
    }

    /// The items of an environment, newest first; those that are over, too.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the workspace has no such environment; database errors.
    pub async fn list_work(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        page: PageRequest,
    ) -> Result<Page<WorkItem>, StoreError> {
        self.check_environment(workspace, environment).await?;
        let rows = query(select_work!("WHERE w.environment_id = $1 AND w.seq < $2 ORDER BY w.seq DESC LIMIT $3"))
            .bind(environment.as_str())
            .bind(page.before.unwrap_or(i64::MAX))
            .bind(i64::from(page.limit).saturating_add(1))
            .read_all(&self.db())
            .await
            .during("listing work")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, WorkItem::from_row(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// How many items of an environment wait; those handed out after `reclaim` count as handed out.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the workspace has no such environment; database errors.
    pub async fn count_work(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        reclaim: Timestamp,
    ) -> Result<QueueCounts, StoreError> {
        self.check_environment(workspace, environment).await?;
        let row = query(
            "SELECT count(*) AS queued, count(CASE WHEN polled_at > $2 THEN 1 END) AS handed_out, \
             min(queued_at) AS oldest FROM work WHERE environment_id = $1 AND (state = 'queued' \
             OR (state IN ('starting', 'active') AND lease_ends_at <= $3))",
        )
        .bind(environment.as_str())
        .bind(reclaim.as_microsecond())
        .bind(self.exact_now().as_microsecond())
        .read_optional(&self.db())
        .await
        .during("counting work")?;
        let Some(row) = row else { return Ok(QueueCounts::default()) };
        let count = |column| u64::try_from(row.integer(column)?).map_err(|_| StoreError::Corrupt(column));
        let handed_out = count("handed_out")?;
        let waiting = count("queued")?.saturating_sub(handed_out);
        Ok(QueueCounts { waiting, handed_out, oldest: row.optional_exact_time("oldest")? })
    }

    /// Makes a check of the environment's workers, which has to be answered until `end`; there are at most `limit` at one
    /// time.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the workspace has no such environment, [`StoreError::NoWorkers`],
    /// [`StoreError::TooManyHealthchecks`]; database errors.
    pub async fn create_healthcheck(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        end: Timestamp,
        limit: u32,
    ) -> Result<WorkItem, StoreError> {
        let (store, workspace, environment) = (self.clone(), workspace.clone(), environment.clone());
        to_the_end(async move {
            let mut transaction = store.db().begin().await.during("beginning a transaction")?;
            transaction.alone().await.during("beginning a transaction")?;
            check_self_hosted(&mut transaction, &workspace, &environment).await?;
            let now = store.exact_now();
            let row = query(
                "SELECT count(*) AS count FROM work WHERE environment_id = $1 AND session_id IS NULL \
                 AND state <> 'stopped' AND lease_ends_at > $2",
            )
            .bind(environment.as_str())
            .bind(now.as_microsecond())
            .optional(transaction.on())
            .await
            .during("counting health checks")?;
            if row.ok_or(StoreError::Corrupt("count"))?.integer("count")? >= i64::from(limit) {
                return Err(StoreError::TooManyHealthchecks(limit));
            }
            let item = WorkItem { lease_ends_at: Some(end), ..WorkItem::new(environment.clone(), None, now) };
            insert(&mut transaction, &item).await?;
            transaction.commit().await.during("committing")?;
            store.announce(Change::WorkWaits(environment));
            Ok(item)
        })
        .await
    }

    /// What a session token stands for, with the digest of the key that its worker asked with.
    ///
    /// # Errors
    /// Database errors.
    pub async fn work_by_token(&self, token: &Digest) -> Result<Option<(WorkToken, Digest)>, StoreError> {
        let row = query(
            "SELECT w.id, w.environment_id, w.session_id, w.stopped_at, k.digest FROM work w \
             JOIN keys k ON k.id = w.key_id WHERE w.token_digest = $1",
        )
        .bind(token.as_bytes())
        .read_optional(&self.db())
        .await
        .during("looking a session token up")?;
        let Some(row) = row else { return Ok(None) };
        let token = WorkToken {
            work: row.parsed("id")?,
            environment: row.parsed("environment_id")?,
            session: row.optional_parsed("session_id")?,
            stopped_at: row.optional_exact_time("stopped_at")?,
        };
        Ok(Some((token, row.digest("digest")?)))
    }

    /// The environment of a session of the workspace.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn environment_of_session(
        &self,
        workspace: &WorkspaceId,
        session: &SessionId,
    ) -> Result<EnvironmentId, StoreError> {
        let row = query("SELECT environment_id FROM sessions WHERE id = $1 AND workspace_id = $2")
            .bind(session.as_str())
            .bind(workspace.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a session")?;
        row.ok_or(StoreError::NotFound(Object::Session))?.parsed("environment_id")
    }

    /// Lets every lease last until `end` at least: while the hub was away, nobody could renew one.
    ///
    /// # Errors
    /// Database errors.
    pub async fn extend_leases(&self, end: Timestamp) -> Result<(), StoreError> {
        let store = self.clone();
        to_the_end(async move {
            let mut transaction = store.db().begin().await.during("beginning a transaction")?;
            query(
                "UPDATE work SET lease_ends_at = $1, revision = revision + 1 WHERE lease_ends_at < $1 \
                 AND session_id IS NOT NULL AND state IN ('starting', 'active', 'stopping')",
            )
            .bind(end.as_microsecond())
            .execute(transaction.on())
            .await
            .during("extending leases")?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// Checks that the workspace has this environment, archived or not.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub(crate) async fn check_environment(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
    ) -> Result<(), StoreError> {
        let row = of_environment(workspace, environment).read_optional(&self.db()).await;
        row.during("reading an environment")?.map(drop).ok_or(StoreError::NotFound(Object::Environment))
    }
}

fn one(workspace: &WorkspaceId, environment: &EnvironmentId, id: &WorkId) -> Query {
    query(select_work!(
        "JOIN environments e ON e.id = w.environment_id \
         WHERE w.id = $1 AND w.environment_id = $2 AND e.workspace_id = $3"
    ))
    .bind(id.as_str())
    .bind(environment.as_str())
    .bind(workspace.as_str())
}

fn of_environment(workspace: &WorkspaceId, environment: &EnvironmentId) -> Query {
    query("SELECT kind FROM environments WHERE id = $1 AND workspace_id = $2")
        .bind(environment.as_str())
        .bind(workspace.as_str())
}

/// Checks that the workspace has this environment, and that its tools are run by workers.
pub(crate) async fn check_self_hosted(
    transaction: &mut Transaction,
    workspace: &WorkspaceId,
    environment: &EnvironmentId,
) -> Result<(), StoreError> {
    let row = of_environment(workspace, environment).optional(transaction.on()).await;
    let kind = row.during("reading an environment")?.ok_or(StoreError::NotFound(Object::Environment))?.text("kind")?;
    if kind == "self_hosted" { Ok(()) } else { Err(StoreError::NoWorkers(kind)) }
}

async fn horizon(transaction: &mut Transaction, environment: &EnvironmentId) -> Result<Horizon, StoreError> {
    let row = query(
        "SELECT min(CASE WHEN state = 'queued' THEN polled_at END) AS handed_out, min(lease_ends_at) AS lease_ends \
         FROM work WHERE environment_id = $1 AND state <> 'stopped'",
    )
    .bind(environment.as_str())
    .optional(transaction.on())
    .await
    .during("looking when there will be work")?;
    let Some(row) = row else { return Ok(Horizon::default()) };
    Ok(Horizon {
        handed_out: row.optional_exact_time("handed_out")?,
        lease_ends: row.optional_exact_time("lease_ends")?,
    })
}

async fn insert(transaction: &mut Transaction, item: &WorkItem) -> Result<(), StoreError> {
    query(
        "INSERT INTO work (id, environment_id, kind, session_id, state, metadata, created_at, queued_at, lease_ends_at, \
         revision) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0)",
    )
    .bind(item.id.as_str())
    .bind(item.environment.as_str())
    .bind(if item.session.is_some() { "session" } else { "healthcheck" })
    .bind(item.session.as_ref().map(SessionId::as_str))
    .bind(item.state.as_str())
    .bind(metadata(item)?)
    .bind(item.created_at.as_microsecond())
    .bind(item.queued_at.as_microsecond())
    .bind(item.lease_ends_at.map(Timestamp::as_microsecond))
    .execute(transaction.on())
    .await
    .during("storing an item of work")?;
    Ok(())
}

fn metadata(item: &WorkItem) -> Result<String, StoreError> {
    serde_json::to_string(&item.metadata).map_err(|_| StoreError::Corrupt("metadata"))
}

/// What came of writing an item.
struct Written {
    /// False when somebody else wrote it meanwhile.
    written: bool,
    /// Whether there is something in the queue that was not there before.
    waits: bool,
}

/// Writes an item over what it was. Where its worker ended it, and its session needs a worker and asked for one meanwhile,
/// the session gets another item; one that somebody else ended is not followed by another.
async fn write(
    transaction: &mut Transaction,
    before: &WorkItem,
    item: &mut WorkItem,
    now: Timestamp,
) -> Result<Written, StoreError> {
    let done = query(
        "UPDATE work SET state = $1, metadata = $2, token_digest = $3, worker = $4, key_id = $5, queued_at = $6, \
         polled_at = $7, acknowledged_at = $8, started_at = $9, latest_heartbeat_at = $10, previous_heartbeat_at = $11, \
         lease_ends_at = $12, ttl_seconds = $13, stop_requested_at = $14, stopped_at = $15, revision = revision + 1 \
         WHERE id = $16 AND revision = $17",
    )
    .bind(item.state.as_str())
    .bind(metadata(item)?)
    .bind(item.token.as_ref().map(|token| token.as_bytes().to_vec()))
    .bind(item.worker.as_deref())
    .bind(item.key.as_ref().map(KeyId::as_str))
    .bind(item.queued_at.as_microsecond())
    .bind(item.polled_at.map(Timestamp::as_microsecond))
    .bind(item.acknowledged_at.map(Timestamp::as_microsecond))
    .bind(item.started_at.map(Timestamp::as_microsecond))
    .bind(item.latest_heartbeat_at.map(Timestamp::as_microsecond))
    .bind(item.previous_heartbeat_at.map(Timestamp::as_microsecond))
    .bind(item.lease_ends_at.map(Timestamp::as_microsecond))
    .bind(item.ttl_seconds)
    .bind(item.stop_requested_at.map(Timestamp::as_microsecond))
    .bind(item.stopped_at.map(Timestamp::as_microsecond))
    .bind(item.id.as_str())
    .bind(before.revision)
    .execute(transaction.on())
    .await
    .during("storing an item of work")?;
    if done == 0 {
        return Ok(Written { written: false, waits: false });
    }
    item.revision = before.revision.saturating_add(1);
    let mut waits = before.state != WorkState::Queued && item.state == WorkState::Queued;
    if before.state != WorkState::Stopped
        && item.state == WorkState::Stopped
        && item.woken_at.is_some()
        && item.stop_requested_at.is_none()
        && let Some(session) = &item.session
        && needs_worker(transaction, session).await?
    {
        waits |= ensure_work(transaction, &item.environment, session, now).await?;
    }
    Ok(Written { written: true, waits })
}

/// Whether a session works, or waits for the result of a tool that a worker runs.
async fn needs_worker(transaction: &mut Transaction, session: &SessionId) -> Result<bool, StoreError> {
    let row = query(
        "SELECT s.id FROM sessions s WHERE s.id = $1 AND s.status <> 'terminated' \
         AND (s.status <> 'idle' OR EXISTS (SELECT 1 FROM session_events e WHERE e.session_id = s.id \
         AND e.kind = 'agent.tool_use' AND NOT EXISTS (SELECT 1 FROM session_events a WHERE a.session_id = s.id \
         AND a.answers = e.id AND a.kind = 'user.tool_result')))",
    )
    .bind(session.as_str())
    .optional(transaction.on())
    .await
    .during("looking whether a session needs a worker")?;
    Ok(row.is_some())
}

#[cfg(test)]
mod tests;
