//! The signed checkpoints that gateways publish of their audit logs. What is believed of them is decided before they come
//! here.

use sortie_api::{PageRequest, PublishedCheckpoint};
use sortie_ids::{Digest, TunnelId, WorkspaceId};

use crate::db::{self, Row, Transaction};
use crate::error::During as _;
use crate::store::{Page, to_the_end};
use crate::{Store, StoreError, tunnels};

/// The newest checkpoints of a log that are kept.
const NEWEST: i64 = 24;
/// Beside them, the last one of so many days.
const DAYS: i64 = 90;
/// The newest of a log's checkpoints that were refused and are kept.
const REFUSED: i64 = 4;
const DAY: i64 = 24 * 60 * 60;

/// A checkpoint whose signature was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// The name of the log.
    pub origin: String,
    /// What its signature was checked with.
    pub key: String,
    /// How many records it stands for; at most `i64::MAX`.
    pub size: u64,
    /// The root of their tree.
    pub root: Digest,
    /// The signed note.
    pub note: String,
    /// Whether it was proven to continue the one before it.
    pub proven: bool,
    /// Whether the link that it came over had shown a certificate of the tunnel.
    pub certified: bool,
    /// Why it was refused, if it was.
    pub refused: Option<String>,
}

/// A log whose checkpoints are kept, with the newest that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedLog {
    /// Its name.
    pub origin: String,
    /// The key of its first checkpoint.
    pub key: String,
    /// How many records the newest stands for.
    pub size: u64,
    /// The root of their tree.
    pub root: Digest,
    /// The newest as a signed note.
    pub note: String,
    /// Whether any came over a link that had shown a certificate of the tunnel.
    pub certified: bool,
}

impl Store {
    /// The logs of a tunnel of which there is a checkpoint; the one that was heard of last, last.
    ///
    /// # Errors
    /// Database errors.
    pub async fn published_logs(&self, tunnel: &TunnelId) -> Result<Vec<PublishedLog>, StoreError> {
        let rows = db::query(
            "SELECT origin, key, size, root, note, certified FROM ( \
                 SELECT origin, key, size, root, note, seq, \
                     max(certified) OVER (PARTITION BY origin) AS certified, \
                     row_number() OVER (PARTITION BY origin ORDER BY seq DESC) AS place \
                 FROM checkpoints WHERE tunnel_id = $1 AND refused IS NULL \
             ) AS newest WHERE place = 1 ORDER BY seq",
        )
        .bind(tunnel.as_str())
        .read_all(&self.db())
        .await
        .during("reading checkpoints")?;
        rows.iter().map(log).collect()
    }

    /// The root that a log published for this size; `None` when none is kept.
    ///
    /// # Errors
    /// Database errors.
    pub async fn published_root(
        &self,
        tunnel: &TunnelId,
        origin: &str,
        size: u64,
    ) -> Result<Option<Digest>, StoreError> {
        let row = db::query(
            "SELECT root FROM checkpoints WHERE tunnel_id = $1 AND origin = $2 AND size = $3 AND refused IS NULL",
        )
        .bind(tunnel.as_str())
        .bind(origin)
        .bind(signed(size))
        .read_optional(&self.db())
        .await
        .during("reading a checkpoint")?;
        row.as_ref().map(|row| row.digest("root")).transpose()
    }

    /// Keeps a checkpoint of a tunnel, and lets those go that need not be kept any more: of each log the newest 24 stay,
    /// the last one of each of 90 days, and the newest 4 that were refused.
    ///
    /// # Errors
    /// Database errors.
    pub async fn keep_checkpoint(&self, tunnel: &TunnelId, new: NewCheckpoint) -> Result<(), StoreError> {
        let (store, tunnel) = (self.clone(), tunnel.clone());
        to_the_end(async move {
            let now = store.now().as_second();
            let mut transaction = store.begin().await?;
            db::query(
                "INSERT INTO checkpoints \
                 (tunnel_id, origin, key, size, root, note, proven, certified, refused, received_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            )
            .bind(tunnel.as_str())
            .bind(new.origin.as_str())
            .bind(new.key.as_str())
            .bind(signed(new.size))
            .bind(new.root.as_bytes())
            .bind(new.note.as_str())
            .bind(new.proven)
            .bind(new.certified)
            .bind(new.refused.as_deref())
            .bind(now)
            .execute(transaction.on())
            .await
            .during("storing a checkpoint")?;
            thin(&mut transaction, &tunnel, &new.origin, now).await?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// Forgets the checkpoints of a log.
    ///
    /// # Errors
    /// Database errors.
    pub async fn forget_checkpoints(&self, tunnel: &TunnelId, origin: &str) -> Result<(), StoreError> {
        let (store, tunnel, origin) = (self.clone(), tunnel.clone(), origin.to_owned());
        to_the_end(async move {
            let mut transaction = store.begin().await?;
            db::query("DELETE FROM checkpoints WHERE tunnel_id = $1 AND origin = $2")
                .bind(tunnel.as_str())
                .bind(origin)
                .execute(transaction.on())
                .await
                .during("forgetting checkpoints")?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// The checkpoints of a tunnel, newest first, those that were refused among them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the tunnel; database errors.
    pub async fn list_checkpoints(
        &self,
        workspace: &WorkspaceId,
        tunnel: &TunnelId,
        page: PageRequest,
    ) -> Result<Page<PublishedCheckpoint>, StoreError> {
        tunnels::find(self.db().on(), workspace, tunnel).await?;
        let rows = db::query(
            "SELECT seq, origin, key, size, root, note, proven, refused, received_at FROM checkpoints \
             WHERE tunnel_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3",
        )
        .bind(tunnel.as_str())
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing checkpoints")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, shown(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }
}

async fn thin(transaction: &mut Transaction, tunnel: &TunnelId, origin: &str, now: i64) -> Result<(), StoreError> {
    db::query(
        "DELETE FROM checkpoints WHERE tunnel_id = $1 AND origin = $2 \
         AND seq NOT IN (SELECT seq FROM checkpoints WHERE tunnel_id = $1 AND origin = $2 AND refused IS NULL \
             ORDER BY seq DESC LIMIT $3) \
         AND seq NOT IN (SELECT max(seq) FROM checkpoints WHERE tunnel_id = $1 AND origin = $2 AND refused IS NULL \
             AND received_at >= $4 GROUP BY received_at / $5) \
         AND seq NOT IN (SELECT seq FROM checkpoints WHERE tunnel_id = $1 AND origin = $2 AND refused IS NOT NULL \
             ORDER BY seq DESC LIMIT $6)",
    )
    .bind(tunnel.as_str())
    .bind(origin)
    .bind(NEWEST)
    .bind(now.saturating_sub(DAYS * DAY))
    .bind(DAY)
    .bind(REFUSED)
    .execute(transaction.on())
    .await
    .during("thinning checkpoints")?;
    Ok(())
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

fn size(row: &Row) -> Result<u64, StoreError> {
    u64::try_from(row.integer("size")?).map_err(|_| StoreError::Corrupt("checkpoints.size"))
}

fn log(row: &Row) -> Result<PublishedLog, StoreError> {
    Ok(PublishedLog {
        origin: row.text("origin")?,
        key: row.text("key")?,
        size: size(row)?,
        root: row.digest("root")?,
        note: row.text("note")?,
        certified: row.integer("certified")? != 0,
    })
}

fn shown(row: &Row) -> Result<PublishedCheckpoint, StoreError> {
    Ok(PublishedCheckpoint {
        origin: row.text("origin")?,
        key: row.text("key")?,
        size: size(row)?,
        root: row.digest("root")?.to_string(),
        note: row.text("note")?,
        proven: row.integer("proven")? != 0,
        refused: row.optional_parsed("refused")?,
        received_at: row.time("received_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, all, on_both};

    on_both![of_many_checkpoints_those_stay_that_matter,];

    fn checkpoint(origin: &str, size: u64) -> NewCheckpoint {
        let root = Digest::of(&size.to_be_bytes());
        let (origin, key, note) = (origin.to_owned(), "key".to_owned(), format!("note {size}"));
        NewCheckpoint { origin, key, size, root, note, proven: true, certified: false, refused: None }
    }

    async fn of_many_checkpoints_those_stay_that_matter(f: Fixture) {
        let tunnel = f.store.create_tunnel(&f.home, None, &f.limits).await.expect("tunnel").id;
        let (quarter, last) = (6 * 3600, 4 * 100);
        for size in 1..=last {
            f.pass(quarter);
            f.store.keep_checkpoint(&tunnel, checkpoint("a", size)).await.expect("kept");
        }
        for size in 1..=10 {
            let refused = NewCheckpoint { refused: Some("smaller".to_owned()), ..checkpoint("a", size) };
            f.store.keep_checkpoint(&tunnel, refused).await.expect("kept");
        }
        let page = PageRequest { limit: 1000, ..all() };
        let kept = f.store.list_checkpoints(&f.home, &tunnel, page).await.expect("page").items;
        let refused = kept.iter().filter(|kept| kept.refused.is_some()).count();
        assert_eq!(refused, 4);
        // The newest 24 are of 6 days, which are among the 90.
        assert!((24 + 83..=24 + 86).contains(&(kept.len() - refused)), "{}", kept.len());
        let logs = f.store.published_logs(&tunnel).await.expect("logs");
        assert_eq!(logs.iter().map(|log| (log.origin.as_str(), log.size)).collect::<Vec<_>>(), [("a", last)]);
        let root = f.store.published_root(&tunnel, "a", last).await.expect("root");
        assert_eq!(root, Some(Digest::of(&last.to_be_bytes())));

        f.pass(1);
        f.store.keep_checkpoint(&tunnel, checkpoint("b", 1)).await.expect("kept");
        f.store.forget_checkpoints(&tunnel, "a").await.expect("forgotten");
        let logs = f.store.published_logs(&tunnel).await.expect("logs");
        assert_eq!(logs.iter().map(|log| log.origin.as_str()).collect::<Vec<_>>(), ["b"]);
        assert!(f.store.list_checkpoints(&f.foreign, &tunnel, all()).await.is_err());
    }
}
