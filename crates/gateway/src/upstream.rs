//! Upstreams: what calls of a route go to, and the pools of connections to it. What may have run is never sent again.

mod dial;
mod servers;
mod sessions;
mod stream;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioTimer;
use sortie_ids::RouteName;
use sortie_runtime::TaskSet;
use sortie_runtime::http::{MAX_HEAD, MAX_HEADERS};

use crate::body::CallBody;
use crate::config::RouteConfig;

pub(crate) use dial::{DialError, Dialer, judged};
pub(crate) use servers::{SendError, Servers, Spec};

/// How long an idle connection is kept: less than the five seconds after which common servers close theirs.
const IDLE: Duration = Duration::from_secs(3);
/// Most idle connections to one server of a route.
const MAX_IDLE: usize = 64;

/// A server within this process that calls of a route go to instead of being dialled out.
pub trait LocalUpstream: Send + Sync {
    /// Answers one request. Every failure is an answer.
    fn call(&self, request: Request<CallBody>) -> BoxFuture<'static, Response<CallBody>>;
}

/// Opens the built-in upstream that a route's settings name. Called where blocking is allowed, at the start and whenever
/// these settings have changed. An error says what is wrong and the way out.
pub type OpenLocal = Arc<dyn Fn(&RouteName, &RouteConfig) -> Result<Arc<dyn LocalUpstream>, String> + Send + Sync>;

/// The pool of connections to one server of one route.
pub(crate) type UpstreamClient = Client<Dialer, CallBody>;

/// A pool that dials with `dialer` and runs its connections in `tasks`.
fn client(dialer: Dialer, tasks: TaskSet) -> UpstreamClient {
    Client::builder(InTasks::new(tasks, "upstream"))
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        // Concerns only requests that were handed back unsent, because the server had closed a kept connection: they
        // cannot have run. What was written, even in part, is never sent again.
        .retry_canceled_requests(true)
        .set_host(false)
        .http1_max_buf_size(MAX_HEAD)
        .http1_max_headers(MAX_HEADERS)
        .build(dialer)
}

/// The URI of a call for a pool: its path and query, byte for byte, behind an authority that stands for the one server.
fn uri_for(call: &Uri) -> Result<Uri, http::Error> {
    let path = call.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    Uri::builder().scheme("http").authority("upstream").path_and_query(path).build()
}

/// Lets hyper spawn through a task set.
#[derive(Clone)]
pub(crate) struct InTasks {
    tasks: TaskSet,
    name: &'static str,
}

impl InTasks {
    pub(crate) fn new(tasks: TaskSet, name: &'static str) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_stay_as_they_are() {
        for path in ["/", "/mcp", "/a//b/../c;d=e/%2e%2E/%7euser?x=1&x=2&y=%20+", "/?", "*"] {
            let uri = uri_for(&path.parse().expect(path)).expect(path);
            assert_eq!(uri.path_and_query().expect("path").as_str(), path);
        }
    }
}
