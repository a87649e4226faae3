//! Requests that must take effect once, although they come twice: by the key that their sender chose, or by the count
//! of attempts that the official SDKs send. What was made and what is remembered of it commit together.

use sortie_ids::{Digest, KeyId, TunnelId, WorkspaceId};
use zeroize::Zeroizing;

use crate::db::{self, Transaction};
use crate::error::During as _;
use crate::store::to_the_end;
use crate::{Store, StoreError};

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
        let waiting = db::query("SELECT tunnel_id FROM unclaimed_tunnels WHERE tunnel_id = $1 AND key_id = $2")
            .bind(tunnel.as_str())
            .bind(key.as_str())
            .read_optional(&self.db())
            .await
            .during("looking for an unclaimed tunnel")?;
        if waiting.is_none() {
            return Ok(());
        }
        let (store, tunnel) = (self.clone(), tunnel.clone());
        to_the_end(async move {
            let mut transaction = store.begin().await?;
            db::query("DELETE FROM unclaimed_tunnels WHERE tunnel_id = $1")
                .bind(tunnel.as_str())
                .execute(transaction.on())
                .await
                .during("claiming a tunnel")?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// The answer that this request got before.
    pub(crate) async fn answered<T>(
        &self,
        transaction: &mut Transaction,
        workspace: &WorkspaceId,
        once: &Once<T>,
    ) -> Result<Option<Made<T>>, StoreError> {
        let row = db::query(
            "SELECT request, answer FROM idempotent_requests \
             WHERE workspace_id = $1 AND idempotency_key = $2 AND created_at > $3",
        )
        .bind(workspace.as_str())
        .bind(once.idempotency_key.as_str())
        .bind(self.now().as_second().saturating_sub(KEPT))
        .optional(transaction.on())
        .await
        .during("looking for an earlier answer")?;
        let Some(row) = row else { return Ok(None) };
        if row.digest("request")? != once.request {
            return Err(StoreError::IdempotencyKeyReused);
        }
        let answer = self.key().open(&place(workspace, &once.idempotency_key), &row.bytes("answer")?);
        answer.map(|answer| Some(Made::Answered(answer))).ok_or(StoreError::Corrupt("idempotent_requests.answer"))
    }

    /// Keeps the answer to this request, in the transaction that made its object.
    pub(crate) async fn keep_answer<T>(
        &self,
        transaction: &mut Transaction,
        workspace: &WorkspaceId,
        once: Once<T>,
        made: &T,
    ) -> Result<(), StoreError> {
        let now = self.now().as_second();
        db::query("DELETE FROM idempotent_requests WHERE created_at <= $1")
            .bind(now.saturating_sub(KEPT))
            .execute(transaction.on())
            .await
            .during("forgetting old answers")?;
        let row = db::query("SELECT count(*) AS count FROM idempotent_requests WHERE workspace_id = $1")
            .bind(workspace.as_str())
            .one(transaction.on())
            .await
            .during("counting answers")?;
        if row.integer("count")? >= i64::from(MOST_KEPT) {
            return Err(StoreError::TooManyIdempotencyKeys(MOST_KEPT));
        }
        let answer = (once.answer)(made);
        db::query(
            "INSERT INTO idempotent_requests (workspace_id, idempotency_key, request, answer, created_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(workspace.as_str())
        .bind(once.idempotency_key.as_str())
        .bind(once.request.as_bytes())
        .bind(self.key().seal(&place(workspace, &once.idempotency_key), &answer)?)
        .bind(now)
        .execute(transaction.on())
        .await
        .during("keeping an answer")?;
        Ok(())
    }

    /// The newest tunnel that an earlier attempt made and nobody has named; from now on it waits for a later attempt than
    /// this one.
    pub(crate) async fn earlier_attempt(
        &self,
        transaction: &mut Transaction,
        workspace: &WorkspaceId,
        attempt: &Attempt,
    ) -> Result<Option<TunnelId>, StoreError> {
        let row = db::query(
            "SELECT t.id FROM unclaimed_tunnels u JOIN tunnels t ON t.id = u.tunnel_id \
             WHERE u.key_id = $1 AND u.request = $2 AND u.attempt < $3 AND u.created_at >= $4 \
             AND t.workspace_id = $5 AND t.archived_at IS NULL ORDER BY t.seq DESC LIMIT 1",
        )
        .bind(attempt.key.as_str())
        .bind(attempt.request.as_bytes())
        .bind(i64::from(attempt.number))
        .bind(self.now().as_second().saturating_sub(UNCLAIMED))
        .bind(workspace.as_str())
        .optional(transaction.on())
        .await
        .during("looking for an earlier attempt")?;
        let Some(row) = row else { return Ok(None) };
        let tunnel: TunnelId = row.parsed("id")?;
        db::query("UPDATE unclaimed_tunnels SET attempt = $1 WHERE tunnel_id = $2")
            .bind(i64::from(attempt.number))
            .bind(tunnel.as_str())
            .execute(transaction.on())
            .await
            .during("noting an attempt")?;
        Ok(Some(tunnel))
    }

    /// Lets a fresh tunnel wait for the next attempt of its creator.
    pub(crate) async fn leave_unclaimed(
        &self,
        transaction: &mut Transaction,
        tunnel: &TunnelId,
        attempt: &Attempt,
    ) -> Result<(), StoreError> {
        let now = self.now().as_second();
        db::query("DELETE FROM unclaimed_tunnels WHERE created_at < $1")
            .bind(now.saturating_sub(UNCLAIMED))
            .execute(transaction.on())
            .await
            .during("forgetting old attempts")?;
        db::query(
            "INSERT INTO unclaimed_tunnels (tunnel_id, key_id, request, attempt, created_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(tunnel.as_str())
        .bind(attempt.key.as_str())
        .bind(attempt.request.as_bytes())
        .bind(i64::from(attempt.number))
        .bind(now)
        .execute(transaction.on())
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
