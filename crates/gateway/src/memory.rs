//! The memory in which request bodies, and answers with lists, wait to be judged, bounded for the whole gateway.
//!
//! Memory is taken as bytes arrive, not as they are announced: a sender that promises much and sends little holds
//! little. The first [`FREE`] bytes of a body need nobody's leave, so small messages never wait for large ones. Beyond
//! that all bodies share [`BUDGET`]; when it is spent, the next piece of a body waits, and with it, by flow control, its
//! sender. Bodies that each hold a part and wait for more would wait for ever; so one of them at a time may go on beyond
//! the budget, up to the end of its body, and by its end frees what the next one needs. Who gets no memory for
//! [`PATIENCE`] is refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of all bodies together, beyond what is free.
pub(crate) const BUDGET: usize = 64 * 1024 * 1024;
/// Bytes of each body that are not counted: no more than HTTP takes for its connection anyway.
pub(crate) const FREE: usize = 16 * 1024;
/// Longest wait for memory.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing became free in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gateway holds as many large requests as it may")]
pub(crate) struct Spent;

/// What all bodies share; clones share it, too.
#[derive(Clone)]
pub(crate) struct Memory {
    budget: Arc<Semaphore>,
    beyond: Arc<Semaphore>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(BUDGET)
    }
}

impl Memory {
    fn new(budget: usize) -> Self {
        Self { budget: Arc::new(Semaphore::new(budget)), beyond: Arc::new(Semaphore::new(1)) }
    }

    /// Appends to a body. `most` is how long it can become.
    ///
    /// # Errors
    /// There is no memory for it; the body is as it was.
    pub(crate) async fn append(&self, body: &mut Buffer, piece: &[u8], most: u64) -> Result<(), Spent> {
        let length = body.bytes.len() + piece.len();
        if length > body.bytes.capacity() {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let capacity = (body.bytes.capacity() * 2).max(length).min(most.max(length));
            self.reserve(body, capacity).await?;
            body.bytes.reserve_exact(capacity - body.bytes.len());
        }
        body.bytes.extend_from_slice(piece);
        Ok(())
    }

    async fn reserve(&self, body: &mut Buffer, capacity: usize) -> Result<(), Spent> {
        let missing = capacity.saturating_sub(FREE + body.counted);
        if missing == 0 {
            return Ok(());
        }
        if body.beyond.is_none() {
            let budget = self.budget.clone().acquire_many_owned(u32::try_from(missing).unwrap_or(u32::MAX));
            tokio::select! {
                biased;
                permit = budget => match (&mut body.budget, permit.map_err(|_| Spent)?) {
                    (Some(held), permit) => held.merge(permit),
                    (held, permit) => *held = Some(permit),
                },
                permit = self.beyond.clone().acquire_owned() => body.beyond = Some(permit.map_err(|_| Spent)?),
                () = tokio::time::sleep(PATIENCE) => return Err(Spent),
            }
        }
        body.count(missing);
        Ok(())
    }
}

/// A body that is being collected. Its memory is given back when it is dropped.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// How many bytes are told to the gauge.
    counted: usize,
    budget: Option<OwnedSemaphorePermit>,
    beyond: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    fn count(&mut self, more: usize) {
        self.counted += more;
        gauge().increment(precise(more));
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.counted > 0 {
            gauge().decrement(precise(self.counted));
        }
    }
}

fn gauge() -> metrics::Gauge {
    metrics::gauge!("sortie_gateway_buffered_bytes")
}

/// For a gauge: exact up to 4 GiB, which no body here reaches.
fn precise(bytes: usize) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn filled(memory: &Memory, length: usize) -> Buffer {
        let mut body = Buffer::default();
        memory.append(&mut body, &vec![b'x'; length], u64::MAX).await.expect("memory");
        body
    }

    #[tokio::test(start_paused = true)]
    async fn small_bodies_never_wait_and_large_ones_are_refused_in_the_end() {
        let memory = Memory::new(1000);
        let large = filled(&memory, FREE + 1000).await;
        let beyond = filled(&memory, FREE + 5000).await;
        let _small: Vec<Buffer> = {
            let mut small = Vec::new();
            for _ in 0..100 {
                small.push(filled(&memory, FREE).await);
            }
            small
        };
        let mut refused = Buffer::default();
        let began = tokio::time::Instant::now();
        assert_eq!(memory.append(&mut refused, &vec![b'x'; FREE + 1], u64::MAX).await, Err(Spent));
        assert_eq!((began.elapsed(), refused.as_ref().len()), (PATIENCE, 0));
        // What either of them gives back is enough for the next.
        drop(beyond);
        drop(filled(&memory, FREE + 1).await);
        drop(large);
        assert_eq!(memory.budget.available_permits(), 1000);
        drop(filled(&memory, FREE + 1000).await);
        assert_eq!((memory.budget.available_permits(), memory.beyond.available_permits()), (1000, 1));
    }

    /// Each holds half of what it needs, and together they hold everything.
    #[tokio::test(start_paused = true)]
    async fn bodies_that_wait_for_each_other_all_come_to_their_end() {
        let memory = Memory::new(1000);
        let mut bodies = Vec::new();
        for _ in 0..10 {
            bodies.push(filled(&memory, FREE + 100).await);
        }
        assert_eq!(memory.budget.available_permits(), 0);
        let began = tokio::time::Instant::now();
        let ends = bodies.into_iter().map(|mut body| {
            let memory = &memory;
            async move {
                for _ in 0..100 {
                    memory.append(&mut body, b"x", u64::MAX).await.expect("memory");
                }
                body.as_ref().len()
            }
        });
        assert_eq!(futures_util::future::join_all(ends).await, [FREE + 200; 10]);
        assert!(began.elapsed() < PATIENCE);
        assert_eq!(memory.budget.available_permits(), 1000);
    }

    #[tokio::test]
    async fn a_length_that_is_known_is_not_exceeded_by_growing() {
        let memory = Memory::new(100_000);
        let mut body = Buffer::default();
        for _ in 0..100 {
            memory.append(&mut body, &[b'x'; 500], 50_000).await.expect("memory");
        }
        assert_eq!((body.as_ref().len(), body.bytes.capacity()), (50_000, 50_000));
        assert_eq!(memory.budget.available_permits(), 100_000 - (50_000 - FREE));
    }
}
