//! The body of an upstream's answer on its way to the caller: what is put in, what is watched, and the one event that is
//! changed.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Response, Uri};
use http_body_util::BodyExt as _;
use sortie_api::PATH_PREFIX_HEADER;

use crate::body::CallBody;
use crate::endpoint::{Endpoint, OnEndpoint, Origin};
use crate::quiet::{Quiet, is_plain_event_stream};
use crate::routes::Route;
use crate::upstream::Servers;

/// What about a call decides how its answer is passed on.
pub(crate) struct Shaping<'a> {
    route: &'a Route,
    method: Method,
    uri: Uri,
    prefix: String,
}

impl<'a> Shaping<'a> {
    /// To be made of a request as it came in. `from_hub`: what the hub alone may say counts.
    pub(crate) fn new(route: &'a Route, method: &Method, uri: &Uri, headers: &HeaderMap, from_hub: bool) -> Self {
        let prefix = headers.get(PATH_PREFIX_HEADER).filter(|_| from_hub).and_then(path_prefix).unwrap_or_default();
        Self { route, method: method.clone(), uri: uri.clone(), prefix }
    }

    /// The answer as the caller gets it. `from` is the server that gave it, by its number.
    pub(crate) fn shape(&self, answer: Response<CallBody>, from: Option<(&Servers, usize)>) -> Response<CallBody> {
        let (head, mut body) = answer.into_parts();
        let (keepalive, idle) = (self.route.settings.keepalive, self.route.settings.idle_timeout);
        let events = self.method != Method::HEAD && is_plain_event_stream(&head.headers);
        if events
            && self.method == Method::GET
            && let Some((servers, number)) = from
            && let Some(origin) = self.origin(servers, number)
        {
            let keep: OnEndpoint = match servers.endpoint_keeper(number) {
                Some(keeper) => Box::new(keeper),
                None => Box::new(|_| ()),
            };
            body = Endpoint::new(body, origin, keep).boxed();
        }
        let keepalive: Option<Duration> = keepalive.filter(|_| events);
        if keepalive.is_some() || idle.is_some() {
            body = Quiet::new(body, keepalive, idle).boxed();
        }
        Response::from_parts(head, body)
    }

    fn origin(&self, servers: &Servers, number: usize) -> Option<Origin> {
        let server = servers.server(number)?;
        let scheme = if server.tls() { "https" } else { "http" };
        let path = self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = servers.host(number).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let base = format!("{scheme}://{}{path}", server.authority());
        Origin::new(&base, &[host, &self.route.host], &self.prefix)
    }
}

/// The path that the hub took off, if it is one: `/t/<label>/<route>`.
fn path_prefix(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let good = text.strip_prefix('/').is_some_and(|parts| parts.split('/').all(plain));
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_plain_path() {
        let prefix = |text: &str| path_prefix(&HeaderValue::from_str(text).expect(text));
        assert_eq!(prefix("/t/abcd1234/docs-2").as_deref(), Some("/t/abcd1234/docs-2"));
        for bad in ["", "/", "t/a", "//evil", "/t//x", "/t/../x", "/t/a/", "http://x", "/t/a\"b", "/t/%2e"] {
            assert_eq!(prefix(bad), None, "{bad}");
        }
    }
}
