//! What happened in sessions, in its order, and what their models are told.
//!
//! What took its place comes first, by position; events of clients that wait come last, in the order in which they came.

use sortie_api::Event;
use sortie_ids::{EventId, SessionId};

use crate::db::{Query, Row, query};
use crate::error::During as _;
use crate::{Store, StoreError};

/// Which events are listed.
#[derive(Clone, Debug)]
pub struct EventQuery {
    /// Only events of these types; empty for all.
    pub kinds: Vec<String>,
    /// Only those that took effect at this microsecond or later.
    pub from: Option<i64>,
    /// Only those that took effect at this microsecond or before.
    pub to: Option<i64>,
    /// Whether the newest comes first.
    pub descending: bool,
    /// Events on the page, at least one.
    pub limit: u32,
    /// Bytes of events on the page, at least one: the event that goes beyond is its last.
    pub bytes: u64,
    /// What the page follows; none for the first one.
    pub place: Option<EventPlace>,
}

/// A place in a list of events: behind the one with this position, and of those that wait behind the one with this
/// sequence number. An event that waited when it was listed, and took its place since, is listed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventPlace {
    /// The position.
    pub position: i64,
    /// The sequence number.
    pub seq: i64,
    /// When the last event of the page took effect, in microseconds; 0 when it waits.
    pub at: i64,
}

/// A page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// The events, each as the JSON in which it was stored and streamed.
    pub lines: Vec<String>,
    /// What the next page follows.
    pub next: Option<EventPlace>,
}

/// A statement that lists events of one half, those with a place or those that wait. Bodies for which the page has no room
/// are not read; `total` tells of them.
macro_rules! select_events {
    ($half:literal, $order:literal) => {
        concat!(
            "WITH page AS (SELECT seq, position, octet_length(body) AS size FROM session_events WHERE session_id = $1 \
             AND ($2 = '' OR replace($2, '|' || kind || '|', '') <> $2) AND ",
            $half,
            " ORDER BY ",
            $order,
            " LIMIT $4), sized AS (SELECT seq, count(*) OVER () AS total, sum(size) OVER (ORDER BY ",
            $order,
            ") - size AS before FROM page) SELECT seq, position, processed_at, body, total FROM sized \
             JOIN session_events USING (seq) WHERE before < $5 ORDER BY ",
            $order
        )
    };
}

impl Store {
    /// A page of a session's events.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_events(&self, session: &SessionId, asked: &EventQuery) -> Result<EventPage, StoreError> {
        let end = if asked.descending { i64::MAX } else { 0 };
        let mut page = Filling {
            session,
            asked,
            kinds: asked.kinds.iter().map(|kind| format!("|{kind}|")).collect(),
            place: asked.place.unwrap_or(EventPlace { position: end, seq: end, at: 0 }),
            lines: Vec::new(),
            bytes: asked.bytes,
            full: false,
        };
        // Events that wait have no time to be judged by.
        let timeless = asked.from.is_none() && asked.to.is_none();
        if asked.descending {
            if timeless {
                page.take_waiting(self).await?;
            }
            if !page.full {
                page.place.seq = 0;
                page.take_placed(self).await?;
            }
        } else {
            page.take_placed(self).await?;
            if timeless && !page.full {
                page.take_waiting(self).await?;
            }
        }
        let next = page.full.then_some(page.place);
        Ok(EventPage { lines: page.lines, next })
    }

    /// The events of clients that wait, in the order in which they came.
    ///
    /// # Errors
    /// Database errors.
    pub async fn waiting(&self, session: &SessionId) -> Result<Vec<Event>, StoreError> {
        let rows = query("SELECT body FROM session_events WHERE session_id = $1 AND position IS NULL ORDER BY seq")
            .bind(session.as_str())
            .read_all(&self.db())
            .await
            .during("reading the events that wait")?;
        rows.iter().map(|row| row.json("body")).collect()
    }

    /// What answers a tool use, or says a word about it, in the order in which it came.
    ///
    /// # Errors
    /// Database errors.
    pub async fn answers(&self, session: &SessionId, tool_use: &EventId) -> Result<Vec<Event>, StoreError> {
        let rows = query("SELECT body FROM session_events WHERE session_id = $1 AND answers = $2 ORDER BY seq")
            .bind(session.as_str())
            .bind(tool_use.as_str())
            .read_all(&self.db())
            .await
            .during("reading the answers to a tool use")?;
        rows.iter().map(|row| row.json("body")).collect()
    }

    /// What the session's model is told, entry by entry.
    ///
    /// # Errors
    /// Database errors.
    pub async fn transcript(&self, session: &SessionId) -> Result<Vec<String>, StoreError> {
        let rows = query("SELECT body FROM transcript WHERE session_id = $1 ORDER BY entry")
            .bind(session.as_str())
            .read_all(&self.db())
            .await
            .during("reading a transcript")?;
        rows.iter().map(|row| row.text("body")).collect()
    }
}

/// A page that is being filled from both halves.
struct Filling<'q> {
    session: &'q SessionId,
    asked: &'q EventQuery,
    /// The types, each between bars.
    kinds: String,
    /// Behind what is taken so far.
    place: EventPlace,
    lines: Vec<String>,
    /// Room that is left.
    bytes: u64,
    /// Whether more follows that there is no room for.
    full: bool,
}

impl Filling<'_> {
    async fn take_placed(&mut self, store: &Store) -> Result<(), StoreError> {
        let sql = if self.asked.descending {
            select_events!("position < $3 AND processed_at >= $6 AND processed_at <= $7", "position DESC")
        } else {
            select_events!("position > $3 AND processed_at >= $6 AND processed_at <= $7", "position")
        };
        let rows = self.select(sql, self.place.position);
        let rows = rows.bind(self.asked.from.unwrap_or(i64::MIN)).bind(self.asked.to.unwrap_or(i64::MAX));
        let rows = rows.read_all(&store.db()).await.during("listing events")?;
        self.take(&rows)
    }

    async fn take_waiting(&mut self, store: &Store) -> Result<(), StoreError> {
        let sql = if self.asked.descending {
            select_events!("position IS NULL AND seq < $3", "seq DESC")
        } else {
            select_events!("position IS NULL AND seq > $3", "seq")
        };
        let rows = self.select(sql, self.place.seq).read_all(&store.db()).await.during("listing events that wait")?;
        self.take(&rows)
    }

    /// One more than there is room for is looked at, to know whether more follows.
    fn select(&self, sql: &'static str, behind: i64) -> Query {
        query(sql)
            .bind(self.session.as_str())
            .bind(self.kinds.as_str())
            .bind(behind)
            .bind(i64::try_from(self.room()).unwrap_or(i64::MAX).saturating_add(1))
            .bind(i64::try_from(self.bytes).unwrap_or(i64::MAX))
    }

    fn room(&self) -> usize {
        usize::try_from(self.asked.limit).unwrap_or(usize::MAX).saturating_sub(self.lines.len())
    }

    fn take(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        let mut left = match rows.first() {
            Some(row) => row.integer("total")?,
            // Where there is no room for a single byte, nothing is known: the next page tells.
            None => i64::from(self.bytes == 0),
        };
        for row in rows.iter().take(self.room()) {
            let body = row.text("body")?;
            match row.optional_integer("position")? {
                Some(position) => self.place.position = position,
                None => self.place.seq = row.integer("seq")?,
            }
            self.place.at = row.optional_integer("processed_at")?.unwrap_or(0);
            self.bytes = self.bytes.saturating_sub(u64::try_from(body.len()).unwrap_or(u64::MAX));
            self.lines.push(body);
            left = left.saturating_sub(1);
        }
        self.full = left > 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
