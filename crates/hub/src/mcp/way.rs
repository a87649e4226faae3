//! How requests reach MCP servers: through a tunnel inside the hub, or to another machine under the address guard.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use sortie_api::{HOP_HEADER, Hop, HopError};
use sortie_identity::Caller;
use sortie_ids::WorkspaceId;
use sortie_mcp::remote::{Answer, Carrier, Failure};
use sortie_runtime::TaskSet;
use sortie_tls::ClientConfig;

use super::credentials::{Bearer, Bearers, Problem};
use super::place::{Place, judge};
use crate::call::{Calls, Target};

/// How long a connection may take to come about, from name resolution on.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a quiet connection is probed, so that a dead one is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long what nobody waits for may still take when the hub stops.
const AT_THE_END: Duration = Duration::from_secs(2);

/// Clients for servers elsewhere. They follow no redirect, use no proxy, repeat nothing, and dial what was judged.
pub(crate) struct Outside {
    public: Result<reqwest::Client, String>,
    private: Result<reqwest::Client, String>,
}

impl Outside {
    /// `ca_pem` is trusted beside the machine's own CAs.
    pub(crate) fn new(ca_pem: &str) -> Self {
        let tls = sortie_tls::upstream_client_config(ca_pem, true, &[b"h2", b"http/1.1"], None);
        // A machine that trusts nobody still reaches what is allowed in plain HTTP.
        let nobody = || sortie_tls::api_client_config(None, false);
        let tls = tls.or_else(|error| nobody().map_err(|_| error)).map_err(|error| error.to_string());
        let client = |private: bool| client(tls.clone()?, private);
        Self { public: client(false), private: client(true) }
    }

    /// The client for addresses of this kind.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub(crate) fn client(&self, private: bool) -> Result<&reqwest::Client, String> {
        let client = if private { &self.private } else { &self.public };
        client.as_ref().map_err(Clone::clone)
    }
}

fn client(tls: Arc<ClientConfig>, private: bool) -> Result<reqwest::Client, String> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .dns_resolver(Arc::new(Judging { private }))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEP_ALIVE)
        .pool_max_idle_per_host(8);
    builder.build().map_err(|error| error.without_url().to_string())
}

/// Resolves names to the addresses that may be dialled.
struct Judging {
    private: bool,
}

impl Resolve for Judging {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (mut good, mut refusal) = (Vec::<SocketAddr>::new(), None);
            for address in found {
                match judge(address.ip(), private) {
                    Ok(()) => good.push(address),
                    Err(reason) => refusal = Some(reason),
                }
            }
            match (good.is_empty(), refusal) {
                (true, Some(reason)) => Err(reason.into()),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

/// The way to one server for one caller.
pub(crate) struct Way {
    pub(crate) calls: Arc<Calls>,
    pub(crate) outside: Arc<Outside>,
    pub(crate) tasks: TaskSet,
    pub(crate) place: Place,
    pub(crate) workspace: WorkspaceId,
    pub(crate) caller: Caller,
    pub(crate) bearers: Bearers,
    /// What was wrong with the credential, where that ended an exchange.
    pub(crate) problem: Mutex<Option<Problem>>,
}

impl Way {
    /// Where a failure lies of which no more is known.
    pub(crate) fn hop(&self, failure: &Failure) -> Hop {
        match failure {
            Failure::Hop { hop, .. } => *hop,
            Failure::Unreachable(_) => Hop::UpstreamConnect,
            _ => Hop::Upstream,
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Answer>, Failure> {
        match &self.place {
            Place::Tunnel(target) => self.through(target, request).await,
            Place::Elsewhere { private } => self.outside(*private, request).await,
        }
    }

    async fn through(&self, target: &Target, mut request: Request<Bytes>) -> Result<Response<Answer>, Failure> {
        // The stream of the transport of two URLs names another path than that of the endpoint.
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| target.path.clone());
        let target = Target { path, label: target.label.clone(), route: target.route.clone(), on_api_origin: false };
        *request.uri_mut() = target.path.clone().into();
        let answer = self.calls.own(request, &target, &self.workspace, &self.caller).await.map_err(of_hop)?;
        Ok(answer.map(|body| body.into_data_stream().boxed()))
    }

    async fn outside(&self, private: bool, request: Request<Bytes>) -> Result<Response<Answer>, Failure> {
        let client = self.outside.client(private).map_err(Failure::Unreachable)?;
        let request = reqwest::Request::try_from(request).map_err(|error| Failure::Unreachable(told(error)))?;
        let answer = client.execute(request).await.map_err(|error| match error.is_connect() {
            true => Failure::Unreachable(told(error)),
            false => {
                tracing::debug!(error = told(error), "an exchange with an MCP server broke");
                Failure::Broken
            }
        })?;
        let mut answer: Response<reqwest::Body> = answer.into();
        // Only Sortie names hops, and there is none of it on this way.
        answer.headers_mut().remove(HOP_HEADER);
        Ok(answer.map(|body| body.into_data_stream().map_err(Into::into).boxed()))
    }

    fn fail(&self, problem: Problem) -> Failure {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
        Failure::Unauthorized { status: 401 }
    }
}

impl Carrier for Way {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Answer>, Failure>> {
        Box::pin(async move {
            let bearer = self.bearers.get().await.map_err(|problem| self.fail(problem))?;
            let Some(bearer) = bearer else { return self.exchange(request).await };
            let answer = self.exchange(with(&request, &bearer)).await?;
            let ours = answer.headers().contains_key(HOP_HEADER);
            if answer.status() != StatusCode::UNAUTHORIZED || ours {
                return Ok(answer);
            }
            // It was refused before anything ran: a new token is worth one more try.
            match self.bearers.renewed(&bearer).await.map_err(|problem| self.fail(problem))? {
                Some(renewed) => self.exchange(with(&request, &renewed)).await,
                None => Ok(answer),
            }
        })
    }

    fn behind(&self, task: BoxFuture<'static, ()>) {
        let tasks = self.tasks.clone();
        self.tasks.spawn("mcp-behind", async move {
            let stopped = async {
                tasks.stopping().await;
                tokio::time::sleep(AT_THE_END).await;
            };
            tokio::select! {
                () = task => {}
                () = stopped => {}
            }
        });
    }
}

/// The request with a credential.
fn with(request: &Request<Bytes>, bearer: &Bearer) -> Request<Bytes> {
    let mut request = request.clone();
    request.headers_mut().insert(AUTHORIZATION, bearer.header.clone());
    request
}

fn of_hop(error: HopError) -> Failure {
    Failure::Hop { hop: error.hop, status: error.status.as_u16(), reason: error.reason }
}

/// An error of a request with its causes, without the URL.
pub(super) fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
