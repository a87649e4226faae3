//! The one place that spawns.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// A set of tasks with one owner. Clones share the set; [`TaskSet::child`] makes a part that can be stopped alone.
///
/// Two levels of ending: *stopping* asks (a task finishes what it has begun), *aborting* drops the task at its next
/// await. Aborting a set aborts its children.
#[derive(Clone, Debug)]
pub struct TaskSet {
    tracker: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Default for TaskSet {
    fn default() -> Self {
        Self::new()
    }
}

impl TaskSet {
    /// An empty set.
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), stop: CancellationToken::new(), abort: CancellationToken::new() }
    }

    /// A part that is stopped and aborted with this set, and can be stopped and aborted alone; its tasks are waited for
    /// with the whole.
    pub fn child(&self) -> Self {
        Self { tracker: self.tracker.clone(), stop: self.stop.child_token(), abort: self.abort.child_token() }
    }

    /// Runs a task in a span of this name, until it ends or the set is aborted.
    #[expect(clippy::disallowed_methods, reason = "this is the home of spawning")]
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let abort = self.abort.clone();
        let span = tracing::debug_span!("task", name);
        let counted = Counted::new(name);
        // On the heap once: as a part of the futures around it, each of them would have room for it a second time.
        let task = Box::pin(task);
        let task = self.tracker.track_future(async move {
            let _counted = counted;
            abort.run_until_cancelled(task).await;
        });
        drop(tokio::spawn(task.instrument(span)));
    }

    /// Completes when the set is asked to stop.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Whether the set was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Completes when the set is aborted: later than [`TaskSet::stopping`] for a set that may finish what it has begun.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Whether the set was aborted.
    pub fn is_aborted(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Asks every task to finish, without waiting.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Drops every task at its next await, without waiting.
    pub fn abort(&self) {
        self.stop.cancel();
        self.abort.cancel();
    }

    /// Stops, waits at most `deadline`, and aborts what is left. True when every task ended by itself. For the whole
    /// set, not for a child.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let drained = tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok();
        self.abort.cancel();
        self.tracker.wait().await;
        drained
    }
}

/// Counts a running task, and tells a panic from an end.
struct Counted(&'static str);

impl Counted {
    fn new(name: &'static str) -> Self {
        metrics::gauge!("sortie_tasks", "task" => name).increment(1.0);
        Self(name)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("sortie_tasks", "task" => self.0).decrement(1.0);
        if std::thread::panicking() {
            metrics::counter!("sortie_task_panics_total", "task" => self.0).increment(1);
            tracing::error!(task = self.0, "task panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_finish_within_the_deadline() {
        let tasks = TaskSet::new();
        let inside = tasks.clone();
        tasks.spawn("polite", async move { inside.stopping().await });
        assert!(tasks.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_task_is_dropped_after_the_deadline() {
        let tasks = TaskSet::new();
        tasks.spawn("deaf", std::future::pending());
        assert!(!tasks.shutdown(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_stop_is_no_abort() {
        let tasks = TaskSet::new();
        let child = tasks.child();
        tasks.stop();
        assert!(child.is_stopping() && !child.is_aborted());
        tasks.abort();
        child.aborted().await;
        assert!(child.is_aborted());
    }

    #[tokio::test]
    async fn a_child_stops_alone_and_with_its_parent() {
        let tasks = TaskSet::new();
        let (left, right) = (tasks.child(), tasks.child());
        left.stop();
        assert!(left.is_stopping() && !right.is_stopping() && !tasks.is_stopping());
        tasks.stop();
        assert!(right.is_stopping());
    }
}
