//! Lets hyper spawn through a task set.

use crate::TaskSet;

/// Runs what hyper spawns, the streams of an HTTP/2 connection above all, as tasks of a set under one name.
#[derive(Clone, Debug)]
pub struct InTasks {
    tasks: TaskSet,
    name: &'static str,
}

impl InTasks {
    /// An executor for tasks of this name.
    pub fn new(tasks: TaskSet, name: &'static str) -> Self {
        Self { tasks, name }
    }
}

impl<F> hyper::rt::Executor<F> for InTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(self.name, future);
    }
}
