//! Keeps one link to an edge: dials, waits between tries, dials again when the link ends or drains.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sortie_ids::Digest;
use sortie_link::protos::{CHECKPOINTS, FromEdge, FromGateway, GatewayHello, Route as Announced, VERSION};
use sortie_link::{EstablishError, Event, GatewayLink};
use sortie_runtime::{Backoff, TaskSet};
use sortie_tls::{ClientConfig, TlsConnector, explain_io};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::gateway::Shared;
use crate::inner;
use crate::link_state::LinkUp;
use crate::probe::printable;
use crate::record::Open;
use crate::setup::{EdgeAddr, LoadError, TokenSource};

/// Longest wait for name resolution and TCP, and again for TLS.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// Waits between tries, with full jitter: short, since agents wait for what is behind a link that came back.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A link that lived this long starts the waits over.
const STABLE: Duration = Duration::from_secs(30);
/// How long after the edge took no message it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// How often the token file is looked at while the token in it is refused.
const TOKEN_TICK: Duration = Duration::from_secs(1);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Token(#[from] LoadError),
    #[error("reading the tunnel token was interrupted")]
    Interrupted,
    #[error("edge {edge}: {cause}")]
    Tcp { edge: String, cause: io::Error },
    #[error("edge {edge}: no connection within {} s", DIAL_DEADLINE.as_secs())]
    Timeout { edge: String },
    #[error("edge {edge}: {reason}")]
    Tls { edge: String, reason: String },
    #[error("edge {edge}: {cause}")]
    Link { edge: String, cause: EstablishError },
    /// Trying again with this token is useless.
    #[error(
        "edge {edge} refused the tunnel token: {reason}; run sortie setup init --token-version N with another N \
         than before, or, if the tunnel was archived, set up a new one, and restart"
    )]
    Refused { edge: String, reason: String, token: Digest },
}

/// Dials one edge after the other.
pub(crate) struct Connector {
    pub(crate) shared: Arc<Shared>,
    pub(crate) edges: Vec<EdgeAddr>,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) token: TokenSource,
    /// Which process this is, for the edge.
    pub(crate) instance: String,
    /// Links run here; stopping it drains them.
    pub(crate) tasks: TaskSet,
}

impl Connector {
    /// Runs until the gateway is asked to stop.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut edges = (0..self.edges.len()).cycle();
        let mut last_trouble = String::new();
        loop {
            let Some(edge) = edges.next().and_then(|index| self.edges.get(index)) else { return };
            let tried = tokio::select! {
                tried = self.dial(edge) => tried,
                () = self.tasks.stopping() => return,
            };
            let (wait, refused) = match tried {
                Ok((link, announced)) => {
                    count_attempt("established");
                    last_trouble.clear();
                    let began = Instant::now();
                    self.serve(edge, link, announced).await;
                    if began.elapsed() >= STABLE {
                        backoff.reset();
                    }
                    (backoff.next(random()), None)
                }
                Err(error) => {
                    let text = error.to_string();
                    let wait = backoff.next(random());
                    let outcome = match &error {
                        DialError::Refused { token, .. } => {
                            count_attempt("refused");
                            if text != last_trouble {
                                tracing::error!("{text}");
                            }
                            (LONGEST_WAIT, Some(*token))
                        }
                        _ => {
                            count_attempt("failed");
                            if text != last_trouble {
                                tracing::warn!("no link: {text}; trying again");
                            }
                            (wait, None)
                        }
                    };
                    self.shared.link.trouble(text.clone());
                    last_trouble = text;
                    outcome
                }
            };
            tokio::select! {
                () = self.wait(wait, refused) => {}
                () = self.tasks.stopping() => return,
            }
        }
    }

    /// Waits; with a refused token, no longer than until another one is in its place.
    async fn wait(&self, wait: Duration, refused: Option<Digest>) {
        let until = Instant::now() + wait;
        let Some(refused) = refused else { return tokio::time::sleep_until(until).await };
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(Instant::now() + TOKEN_TICK)).await;
            if self.read_token().await.is_ok_and(|token| token.digest() != refused) {
                return;
            }
        }
    }

    async fn read_token(&self) -> Result<sortie_ids::TunnelToken, DialError> {
        let source = self.token.clone();
        let read = tokio::task::spawn_blocking(move || source.read()).await;
        Ok(read.map_err(|_| DialError::Interrupted)??)
    }

    async fn dial(&self, edge: &EdgeAddr) -> Result<(GatewayLink, Announcer), DialError> {
        let token = self.read_token().await?;
        let text = || edge.text.clone();
        let timeout = |_| DialError::Timeout { edge: text() };
        // Names are resolved at each dial: an edge may have moved.
        let (announcer, served) = (Announcer::new(&self.shared), self.shared.served());
        let tcp = tokio::time::timeout(DIAL_DEADLINE, served.config.link.connect(edge, &self.tasks));
        let tcp = tcp.await.map_err(timeout)?.map_err(|cause| DialError::Tcp { edge: text(), cause })?;
        let _ = tcp.set_nodelay(true);
        let connector = TlsConnector::from(self.tls.clone());
        let tls =
            tokio::time::timeout(DIAL_DEADLINE, connector.connect(edge.name.clone(), tcp)).await.map_err(timeout)?;
        let tls = tls.map_err(|error| DialError::Tls { edge: text(), reason: explain_io(&error) })?;
        if tls.get_ref().1.alpn_protocol() != Some(sortie_link::ALPN) {
            let reason = "it does not take links; check the address".to_owned();
            return Err(DialError::Tls { edge: text(), reason });
        }
        let hello = GatewayHello {
            version: VERSION,
            features: Vec::new(),
            token: token.expose().to_owned(),
            gateway_instance: self.instance.clone(),
            software: concat!("sortie/", env!("CARGO_PKG_VERSION")).to_owned(),
            routes: announcer.told.clone(),
        };
        let link = sortie_link::establish(tls, &hello, &self.shared.tasks).await;
        link.map(|link| (link, announcer)).map_err(|cause| match cause {
            EstablishError::Refused { reason, retry: false } => {
                DialError::Refused { edge: text(), reason: printable(&reason), token: token.digest() }
            }
            EstablishError::Refused { reason, retry } => {
                let cause = EstablishError::Refused { reason: printable(&reason), retry };
                DialError::Link { edge: text(), cause }
            }
            cause => DialError::Link { edge: text(), cause },
        })
    }

    /// Serves a link in a task of its own; returns when another one is needed: it has ended, or the edge drains.
    async fn serve(&self, edge: &EdgeAddr, link: GatewayLink, announced: Announcer) {
        adopt(&self.shared, link.identity_keys().to_vec()).await;
        let since = (self.shared.clock)();
        let (id, teller) = (link.id().clone(), link.teller());
        tracing::info!(edge = edge.text, link = %id, "link up");
        let takes_checkpoints = link.has_feature(CHECKPOINTS);
        self.shared.link.up(LinkUp { id, edge: edge.text.clone(), since, teller, takes_checkpoints });
        let (another, needed) = oneshot::channel();
        let (shared, tasks) = (self.shared.clone(), self.tasks.clone());
        self.tasks.spawn("link-serve", run_link(shared, tasks, link, announced, another));
        // An error means that the task is gone, and the link with it.
        let _ = needed.await;
    }
}

/// Tells an edge which routes there are, each time they have changed.
struct Announcer {
    changes: watch::Receiver<()>,
    told: Vec<Announced>,
    /// When to try again, after the edge took no message.
    again: Option<Instant>,
}

impl Announcer {
    /// `told` is for the hello. What changes from here on is told later.
    fn new(shared: &Shared) -> Self {
        let changes = shared.changes.subscribe();
        Self { changes, told: announced(shared), again: None }
    }

    /// Completes when the edge is to be told. Cancel-safe.
    async fn outdated(&mut self) {
        if let Some(again) = self.again {
            return tokio::time::sleep_until(again).await;
        }
        if self.changes.changed().await.is_err() {
            // The sender lives as long as the gateway.
            std::future::pending::<()>().await;
        }
    }

    fn tell(&mut self, shared: &Shared, link: &GatewayLink) {
        let routes = announced(shared);
        self.again = None;
        if routes != self.told {
            if link.teller().tell(FromGateway::Routes { routes: routes.clone() }) {
                self.told = routes;
            } else {
                self.again = Some(Instant::now() + TELL_AGAIN);
            }
        }
    }
}

fn announced(shared: &Shared) -> Vec<Announced> {
    let served = shared.served();
    served.routes.iter().map(|route| Announced { name: route.name.clone(), mode: route.mode() }).collect()
}

async fn run_link(
    shared: Arc<Shared>,
    tasks: TaskSet,
    mut link: GatewayLink,
    mut announced: Announcer,
    another: oneshot::Sender<()>,
) {
    let _up = Open::new("sortie_gateway_link_up");
    let mut another = Some(another);
    let mut draining = false;
    loop {
        let event = tokio::select! {
            event = link.next() => event,
            () = announced.outdated() => {
                announced.tell(&shared, &link);
                continue;
            }
            () = tasks.stopping(), if !draining => {
                draining = true;
                link.drain();
                continue;
            }
        };
        match event {
            Some(Event::Call(call)) => shared.tasks.spawn("inner", inner::serve(shared.clone(), call)),
            Some(Event::Message(FromEdge::ProbeResult { id, failure })) => shared.prober.result(id, failure),
            Some(Event::Message(FromEdge::CheckpointResult { verdict })) => {
                shared.publishing.verdict(link.id(), verdict)
            }
            Some(Event::Message(FromEdge::Draining)) => {
                tracing::info!(link = %link.id(), "the edge drains: dialling another link");
                drop(another.take());
                // What runs on it goes on, and the link ends with it: the edge waits for that.
                draining = true;
                link.drain();
            }
            Some(Event::Message(FromEdge::IdentityKeys { announcements })) => adopt(&shared, announcements).await,
            Some(Event::Message(_)) => {}
            None => break,
        }
    }
    shared.link.down(link.id());
    if !draining {
        tracing::warn!(link = %link.id(), "link ended");
    }
}

/// Follows a change of the hub's keys before the next call is looked at.
async fn adopt(shared: &Arc<Shared>, announcements: Vec<String>) {
    if announcements.is_empty() {
        return;
    }
    let shared = shared.clone();
    // An error means that the process ends.
    let _ = tokio::task::spawn_blocking(move || shared.keys.adopt(&announcements, (shared.clock)())).await;
}

fn count_attempt(result: &'static str) {
    metrics::counter!("sortie_gateway_link_attempts_total", "result" => result).increment(1);
}

/// A random number; the highest one when there is no randomness, which only waits longest.
fn random() -> u32 {
    let mut bytes = [0xff; 4];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}
