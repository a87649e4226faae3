//! Pins: what a server says of its tools is what was approved, or it is held back.
//!
//! The text of a tool is read by a model as if a person had written it, and a server can change it at any time. So each
//! definition is pinned, per route and tool, by the SHA-256 of its canonical JSON: in what comes first
//! (`pinning = "first-use"`), or by a person (`"approve"`). A definition that is not pinned is hidden from lists, and its
//! tool refused to be called, until a person approves it. The same goes for a server's instructions, which are made
//! empty.
//!
//! What is pinned is on the disk before a caller is shown it. A file that cannot be believed closes its route. Bounded:
//! at most [`MAX_TOOLS`] tools and [`MAX_BYTES`] of definitions per route; what is beyond is held back, and not kept.

mod admin;
mod definition;
mod risks;
mod state;
mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use http::StatusCode;
use sortie_api::{Hop, HopError};
use sortie_ids::{Digest, RouteName};
use sortie_mcp::list::{Document, Introduction, Item, Kind};

pub(crate) use self::admin::OPERATIONS;
use self::definition::Definition;
pub use self::risks::visible;
use self::state::{Closed, Listed, Pins, Subject, Trust, Verdict, Why};
use crate::config::Pinning;
use crate::probe::printable;

/// Most tools of one route.
pub(crate) const MAX_TOOLS: usize = 2048;
/// Most bytes of names and definitions of one route.
pub(crate) const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most definitions of one tool that are held.
pub(crate) const MAX_HELD: usize = 4;
/// Most definitions of one tool that are approved.
pub(crate) const MAX_VARIANTS: usize = 8;

/// The pins of all routes. They outlive the settings: a route that goes and comes back finds its own again.
pub(crate) struct PinBoard {
    data_dir: Option<PathBuf>,
    routes: Mutex<HashMap<RouteName, Arc<RoutePins>>>,
}

impl PinBoard {
    /// `data_dir`: where they are kept; without one they last as long as the process.
    pub(crate) fn new(data_dir: Option<PathBuf>) -> Self {
        Self { data_dir, routes: Mutex::default() }
    }

    /// Those of one route, read from the disk the first time. Blocks.
    pub(crate) fn route(&self, name: &RouteName) -> Arc<RoutePins> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pins) = routes.get(name) {
            return pins.clone();
        }
        if let Some(dir) = self.data_dir.as_deref().filter(|_| routes.is_empty()) {
            store::sweep(dir);
        }
        let pins = Arc::new(RoutePins::load(name, self.data_dir.as_deref()));
        routes.insert(name.clone(), pins.clone());
        pins
    }
}

/// The pins of one route.
pub(crate) struct RoutePins {
    route: RouteName,
    path: Option<PathBuf>,
    state: RwLock<State>,
    /// Counts what is to be kept, and how much of that is on the disk.
    changed: AtomicU64,
    saved: AtomicU64,
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    pins: Pins,
    /// Why the file is not believed; then nothing is shown and nothing may be called.
    damaged: Option<String>,
}

/// One look at an answer.
#[derive(Clone, Copy)]
pub(crate) struct Looking {
    pub(crate) pinning: Pinning,
    pub(crate) caller: Digest,
    /// Seconds since 1970.
    pub(crate) now: i64,
}

impl RoutePins {
    fn load(route: &RouteName, data_dir: Option<&std::path::Path>) -> Self {
        let path = data_dir.map(|dir| store::path(dir, route.as_str()));
        let loaded = path.as_deref().map_or(Ok(None), |path| store::load(path, route.as_str()));
        let state = match loaded {
            Ok(pins) => State { pins: pins.unwrap_or_default(), damaged: None },
            Err(damaged) => {
                let file = path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
                tracing::error!(
                    %route,
                    file,
                    "the pinned tools are not believed: {damaged}; all tools of this route are held back: put back the \
                     file and restart, or forget what was pinned with sortie tools forget {route} --all"
                );
                State { pins: Pins::default(), damaged: Some(damaged.to_string()) }
            }
        };
        Self {
            route: route.clone(),
            path,
            state: RwLock::new(state),
            changed: AtomicU64::new(0),
            saved: AtomicU64::new(0),
            writing: Arc::default(),
        }
    }

    /// Which items and introductions of an answer may be shown, each in its order. What is shown is kept first. What is
    /// hidden for another reason (`visible`, in the order of the items) is not looked at.
    ///
    /// # Errors
    /// What has to be kept cannot be written.
    pub(crate) async fn look(
        self: &Arc<Self>,
        looking: &Looking,
        document: &Document<'_>,
        visible: &[bool],
    ) -> Result<(Vec<bool>, Vec<bool>), HopError> {
        let Some(trust) = looking.pinning.trust() else {
            return Ok((document.items().map(|_| true).collect(), document.introductions().map(|_| true).collect()));
        };
        let shown = {
            let mut state = self.write();
            let visible = document.items().zip(visible);
            let items =
                visible.map(|(item, visible)| *visible && self.look_at(&mut state, trust, looking, item)).collect();
            let introductions = document.introductions();
            (items, introductions.map(|one| self.listen_to(&mut state, trust, looking, one)).collect())
        };
        self.keep().await.map_err(|error| {
            tracing::error!(route = %self.route, "the pinned tools cannot be written: {error}");
            let reason = format!("the pinned tools of route `{}` cannot be written; see the gateway's log", self.route);
            HopError::new(Hop::Policy, reason).with_status(StatusCode::SERVICE_UNAVAILABLE)
        })?;
        Ok(shown)
    }

    fn look_at(&self, state: &mut State, trust: Trust, looking: &Looking, item: &Item<'_>) -> bool {
        if item.kind != Kind::Tool {
            return true;
        }
        if state.damaged.is_some() {
            return false;
        }
        let verdict = state.pins.see_tool(trust, looking.caller, &item.name, item.text, looking.now);
        self.tell(&verdict, &Subject::Tool(item.name.as_ref().to_owned()));
        verdict.shows()
    }

    fn listen_to(&self, state: &mut State, trust: Trust, looking: &Looking, said: &Introduction<'_>) -> bool {
        if state.damaged.is_some() {
            return false;
        }
        let text = said.instructions.as_deref();
        let verdict = state.pins.see_instructions(trust, looking.caller, said.greeting, text, looking.now);
        self.tell(&verdict, &Subject::Instructions(said.greeting));
        verdict.shows()
    }

    /// Whether a caller may call a tool.
    ///
    /// # Errors
    /// What it is told.
    pub(crate) fn admit(&self, pinning: Pinning, caller: Digest, tool: Option<&str>) -> Result<(), HopError> {
        let Some(trust) = pinning.trust() else { return Ok(()) };
        let state = self.read();
        let route = &self.route;
        if state.damaged.is_some() {
            let reason = format!(
                "what was pinned of route `{route}` is damaged, so its tools are held back; see the gateway's log"
            );
            return Err(HopError::new(Hop::Policy, reason));
        }
        let Some(tool) = tool else {
            return match trust {
                Trust::FirstUse => Ok(()),
                Trust::Nobody => Err(HopError::new(Hop::Policy, "the call names no tool, so none is approved")),
            };
        };
        let closed = match state.pins.may_call(trust, caller, tool) {
            Ok(Listed::Yes) => return Ok(()),
            Ok(Listed::Never) => {
                drop(state);
                if self.write().pins.note_unlisted(tool) {
                    tracing::warn!(%route, tool = printable(tool), "a tool is called that was never listed, so nothing is pinned");
                }
                return Ok(());
            }
            Err(closed) => closed,
        };
        drop(state);
        metrics::counter!("sortie_gateway_tools_refused_total", "route" => route.to_string()).increment(1);
        let tool = printable(tool);
        let reason = match closed {
            Closed::Changed => format!(
                "the definition of the tool `{tool}` has changed and is held back; whoever runs the gateway sees it with \
                 `sortie tools diff {route}`, and approves it with `sortie tools approve {route}`"
            ),
            Closed::Unapproved => format!(
                "the tool `{tool}` is not approved; whoever runs the gateway sees it with `sortie tools list`, and approves \
                 it with `sortie tools approve {route}`"
            ),
            Closed::LookAlike => {
                format!("the tool `{tool}` was never listed, and its name looks like that of another one")
            }
        };
        Err(HopError::new(Hop::Policy, reason))
    }

    /// One line and one count for each thing that is new.
    fn tell(&self, verdict: &Verdict, what: &Subject) {
        let route = &self.route;
        let (count, why) = match verdict {
            Verdict::Known | Verdict::StillHeld => return,
            Verdict::Pinned(risks) => {
                let risks: Vec<String> = risks.iter().map(risks::Risk::text).collect();
                match risks.is_empty() {
                    true => tracing::info!(%route, "{what}: pinned as it came first"),
                    false => tracing::warn!(%route, "{what}: pinned as it came first, though {}", risks.join("; ")),
                }
                ("pinned", None)
            }
            Verdict::Held(Why::New) => ("held", Some("nobody has approved it yet")),
            Verdict::Held(Why::Changed) => ("held", Some("it is not the one that was approved")),
            Verdict::Held(Why::Risky) => ("held", Some("it looks like an attack")),
            Verdict::Unkept(why) => ("unkept", Some(*why)),
        };
        if let Some(why) = why {
            tracing::warn!(%route, "{what}: its definition is held back: {why}; see sortie tools diff {route}");
        }
        metrics::counter!("sortie_gateway_tool_definitions_total", "route" => route.to_string(), "result" => count)
            .increment(1);
        if verdict.is_news() {
            self.changed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Waits until everything that is known is on the disk.
    async fn keep(self: &Arc<Self>) -> std::io::Result<()> {
        let Some(path) = self.path.clone() else { return Ok(()) };
        let wanted = self.changed.load(Ordering::Acquire);
        if self.saved.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        // Owned: a caller that goes away must not let an older state overtake a newer one.
        let one = self.writing.clone().lock_owned().await;
        if self.saved.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        let this = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let _one = one;
            let now = this.changed.load(Ordering::Acquire);
            let text = store::text(&this.read().pins, this.route.as_str())?;
            store::save(&path, &text)?;
            this.saved.store(now, Ordering::Release);
            Ok(())
        });
        written.await.map_err(std::io::Error::other)?
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pinning {
    /// Whose word counts for a definition that comes first; `None` where nothing is pinned.
    fn trust(self) -> Option<Trust> {
        match self {
            Self::Off => None,
            Self::FirstUse => Some(Trust::FirstUse),
            Self::Approve => Some(Trust::Nobody),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
