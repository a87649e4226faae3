//! Requests that must take effect once, although they come twice: by the key that their sender chose, or by the count
//! of attempts that the official SDKs send. What was made and what is remembered of it commit together.

use sortie_ids::{Digest, KeyId, TunnelId, WorkspaceId};
use sqlx::SqliteConnection;
use zeroize::Zeroizing;

use crate::error::During as _;
use crate::store::to_the_end;
use crate::{Store, StoreError, rows};

/// How long an answer is kept under its idempotency key, in seconds.
const KEPT: i64 = 24 * 60 * 60;
/// Answers kept per workspace; when it is full, requests with a new key are refused until the oldest are a day old.
const MOST_KEPT: u32 = 10_000;
/// How long a tunnel that nobody has named waits for the next attempt of its creator, in seconds.
const UNCLAIMED: i64 = 60;

/// A request with an idempotency key.
pub struct Once<T> {
    /// What its sender chose.
    pub idempotency_key: String,
    /// The digest of everything that makes it this request and no other.
    pub request: Digest,
    /// What it is answered with, and every repetition again.
    pub answer: Answer<T>,
}

/// From what was made to the answer that shows it, which may hold a secret.
pub type Answer<T> = Box<dyn FnOnce(&T) -> Zeroizing<Vec<u8>> + Send + Sync>;

/// One attempt of a client that counts its attempts, from 0.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The key that it came with.
    pub key: KeyId,
    /// The digest of everything that makes it this request and no other.
    pub request: Digest,
    /// How many came before it.
    pub number: u32,
}

/// How a request is known again.
pub enum Repeat<T> {
    /// By its idempotency key.
    Once(Once<T>),
    /// As the next attempt.
    Attempt(Attempt),
}

/// What came of a request that must take effect once.
#[derive(Debug)]
pub enum Made<T> {
    /// It was made now.
    Now(T),
    /// An earlier attempt made it.
    Before(T),
    /// It was answered before, with this.
    Answered(Zeroizing<Vec<u8>>),
}

impl Store {
    /// Notes that this key's holder knows a tunnel, so that no later attempt is taken for one of its creation.
    ///
    /// # Errors
    /// Database errors.
    pub async fn claim_tunnel(&self, key: &KeyId, tunnel: &TunnelId) -> Result<(), StoreError> {
        let waiting = sqlx::query("SELECT 1 FROM unclaimed_tunnels WHERE tunnel_id = ? AND key_id = ?")
            .bind(tunnel.as_str())
            .bind(key.as_str())
            .fetch_optional(self.readers())
            .await
            .during("looking for an unclaimed tunnel")?;
        if waiting.is_none() {
            return Ok(());
        }
        let (store, tunnel) = (self.clone(), tunnel.clone());
        to_the_end(async move {
            let mut transaction = store.begin().await?;
            sqlx::query("DELETE FROM unclaimed_tunnels WHERE tunnel_id = ?")
                .bind(tunnel.as_str())
                .execute(&mut *transaction)
                .await
                .during("claiming a tunnel")?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// The answer that this request got before.
    pub(crate) async fn answered<T>(
        &self,
        database: &mut SqliteConnection,
        workspace: &WorkspaceId,
        once: &Once<T>,
    ) -> Result<Option<Made<T>>, StoreError> {
        let row = sqlx::query(
            "SELECT request, answer FROM idempotent_requests \
             WHERE workspace_id = ? AND idempotency_key = ? AND created_at > ?",
        )
        .bind(workspace.as_str())
        .bind(&once.idempotency_key)
        .bind(self.now().as_second().saturating_sub(KEPT))
        .fetch_optional(database)
        .await
        .during("looking for an earlier answer")?;
        let Some(row) = row else { return Ok(None) };
        if rows::digest(&row, "request")? != once.request {
            return Err(StoreError::IdempotencyKeyReused);
        }
        let answer = self.key().open(&place(workspace, &once.idempotency_key), rows::bytes(&row, "answer")?);
        answer.map(|answer| Some(Made::Answered(answer))).ok_or(StoreError::Corrupt("idempotent_requests.answer"))
    }

    /// Keeps the answer to this request, in the transaction that made its object.
    pub(crate) async fn keep_answer<T>(
        &self,
        database: &mut SqliteConnection,
        workspace: &WorkspaceId,
        once: Once<T>,
        made: &T,
    ) -> Result<(), StoreError> {
        let now = self.now().as_second();
        sqlx::query("DELETE FROM idempotent_requests WHERE created_at <= ?")
            .bind(now.saturating_sub(KEPT))
            .execute(&mut *database)
            .await
            .during("forgetting old answers")?;
        let row = sqlx::query("SELECT count(*) AS count FROM idempotent_requests WHERE workspace_id = ?")
            .bind(workspace.as_str())
            .fetch_one(&mut *database)
            .await
            .during("counting answers")?;
        if rows::integer(&row, "count")? >= i64::from(MOST_KEPT) {
            return Err(StoreError::TooManyIdempotencyKeys(MOST_KEPT));
        }
        let answer = (once.answer)(made);
        sqlx::query(
            "INSERT INTO idempotent_requests (workspace_id, idempotency_key, request, answer, created_at) \
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(workspace.as_str())
        .bind(&once.idempotency_key)
        .bind(once.request.as_bytes().as_slice())
        .bind(self.key().seal(&place(workspace, &once.idempotency_key), &answer)?)
        .bind(now)
        .execute(database)
        .await
        .during("keeping an answer")?;
        Ok(())
    }

    /// The newest tunnel that an earlier attempt made and nobody has named; from now on it waits for a later attempt than
    /// this one.
    pub(crate) async fn earlier_attempt(
        &self,
        database: &mut SqliteConnection,
        workspace: &WorkspaceId,
        attempt: &Attempt,
    ) -> Result<Option<TunnelId>, StoreError> {
        let row = sqlx::query(
            "SELECT t.id FROM unclaimed_tunnels u JOIN tunnels t ON t.id = u.tunnel_id \
             WHERE u.key_id = ? AND u.request = ? AND u.attempt < ? AND u.created_at >= ? \
             AND t.workspace_id = ? AND t.archived_at IS NULL ORDER BY t.seq DESC LIMIT 1",
        )
        .bind(attempt.key.as_str())
        .bind(attempt.request.as_bytes().as_slice())
        .bind(i64::from(attempt.number))
        .bind(self.now().as_second().saturating_sub(UNCLAIMED))
        .bind(workspace.as_str())
        .fetch_optional(&mut *database)
        .await
        .during("looking for an earlier attempt")?;
        let Some(row) = row else { return Ok(None) };
        let tunnel: TunnelId = rows::parsed(&row, "id")?;
        sqlx::query("UPDATE unclaimed_tunnels SET attempt = ? WHERE tunnel_id = ?")
            .bind(i64::from(attempt.number))
            .bind(tunnel.as_str())
            .execute(database)
            .await
            .during("noting an attempt")?;
        Ok(Some(tunnel))
    }

    /// Lets a fresh tunnel wait for the next attempt of its creator.
    pub(crate) async fn leave_unclaimed(
        &self,
        database: &mut SqliteConnection,
        tunnel: &TunnelId,
        attempt: &Attempt,
    ) -> Result<(), StoreError> {
        let now = self.now().as_second();
        sqlx::query("DELETE FROM unclaimed_tunnels WHERE created_at < ?")
            .bind(now.saturating_sub(UNCLAIMED))
            .execute(&mut *database)
            .await
            .during("forgetting old attempts")?;
        sqlx::query(
            "INSERT INTO unclaimed_tunnels (tunnel_id, key_id, request, attempt, created_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(tunnel.as_str())
        .bind(attempt.key.as_str())
        .bind(attempt.request.as_bytes().as_slice())
        .bind(i64::from(attempt.number))
        .bind(now)
        .execute(database)
        .await
        .during("noting an attempt")?;
        Ok(())
    }
}

/// The place that an answer is sealed for.
fn place(workspace: &WorkspaceId, idempotency_key: &str) -> String {
    format!("idempotent:{workspace}:{idempotency_key}")
}

#[cfg(test)]
mod tests;
