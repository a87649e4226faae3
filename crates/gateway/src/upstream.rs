//! Upstreams: what calls of a route go to, and the pools of connections to it. What may have run is never sent again.

mod dial;
mod pool;
mod servers;
mod sessions;
mod shown;
mod stream;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use sortie_ids::RouteName;

use crate::body::CallBody;
use crate::config::RouteConfig;

pub(crate) use dial::{DialError, Dialer, judged};
pub(crate) use pool::SendError;
pub(crate) use servers::{Servers, Spec};

/// A server within this process that calls of a route go to instead of being dialled out.
pub trait LocalUpstream: Send + Sync {
    /// Answers one request. Every failure is an answer.
    fn call(&self, request: Request<CallBody>) -> BoxFuture<'static, Response<CallBody>>;
}

/// Opens the built-in upstream that a route's settings name. Called where blocking is allowed, at the start and whenever
/// these settings have changed. An error says what is wrong and the way out.
pub type OpenLocal = Arc<dyn Fn(&RouteName, &RouteConfig) -> Result<Arc<dyn LocalUpstream>, String> + Send + Sync>;

/// The target of a call as a server gets it: its path and query, byte for byte.
fn target_of(call: &Uri) -> Uri {
    call.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_stay_as_they_are() {
        for path in ["/", "/mcp", "/a//b/../c;d=e/%2e%2E/%7euser?x=1&x=2&y=%20+", "/?", "*"] {
            assert_eq!(target_of(&path.parse().expect(path)).to_string(), path);
        }
        assert_eq!(target_of(&"https://docs.abcd.test".parse().expect("uri")).to_string(), "/");
    }
}
