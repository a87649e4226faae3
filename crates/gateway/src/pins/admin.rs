//! Pins by the admin socket: what `sortie tools` asks for.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sortie_api::ApiError;
use sortie_audit::{PinChanged, kinds};
use sortie_ids::RouteName;
use sortie_mcp::list::Greeting;

use super::risks::{self, Risk};
use super::state::{Approved, Choice, Held, Pin, Subject, Why};
use super::{Definition, RoutePins};
use crate::admin::{AdminRequest, Answer, Operation, answering};
use crate::gateway::Shared;
use crate::routes::Route;

/// The rows of the table of operations.
pub(crate) static OPERATIONS: &[Operation] = &[
    Operation {
        method: Method::GET,
        path: "/v1/tools",
        answer: |shared, request| answering(async move { list(&shared, &request) }),
    },
    Operation {
        method: Method::POST,
        path: "/v1/tools/approve",
        answer: |shared, request| answering(approve(shared, request)),
    },
    Operation {
        method: Method::POST,
        path: "/v1/tools/forget",
        answer: |shared, request| answering(forget(shared, request)),
    },
];

/// All that is known of one tool, or of instructions.
#[derive(Serialize)]
struct Entry<'a> {
    route: &'a RouteName,
    /// `tool`, or `instructions`.
    kind: &'static str,
    /// The name of the tool, or the method that instructions come with.
    name: &'a str,
    /// `pinned`; `changed` (pinned, and other definitions are held); `held` (nothing is approved); `unlisted` (called,
    /// and never listed).
    status: &'static str,
    risks: Vec<RiskEntry>,
    approved: Vec<ApprovedEntry<'a>>,
    held: Vec<HeldEntry<'a>>,
}

#[derive(Serialize)]
struct RiskEntry {
    text: String,
    /// Whether it alone holds a first definition back.
    holds: bool,
}

#[derive(Serialize)]
struct ApprovedEntry<'a> {
    digest: String,
    since: String,
    by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct HeldEntry<'a> {
    digest: String,
    why: &'a Why,
    first_seen: String,
    last_seen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct List<'a> {
    data: Vec<Entry<'a>>,
    damaged: Vec<Damage<'a>>,
}

#[derive(Serialize)]
struct Damage<'a> {
    route: &'a RouteName,
    reason: &'a str,
}

/// `route` and `name` choose; with `definitions=true` each comes whole.
fn list(shared: &Shared, request: &AdminRequest) -> Result<Answer, ApiError> {
    let served = shared.served();
    let only = request.query("route");
    if let Some(name) = only {
        pinned(served.routes.by_name(name), name)?;
    }
    let whole = request.query("definitions") == Some("true");
    let routes = served.routes.iter().filter(|route| only.is_none_or(|name| route.name.as_str() == name));
    let all: Vec<_> = routes.filter_map(|route| route.pins.as_ref()).collect();
    let states: Vec<_> = all.iter().map(|pins| (&pins.route, pins.read())).collect();
    let unseen = Pin::default();
    let mut list = List { data: Vec::new(), damaged: Vec::new() };
    for (route, state) in &states {
        if let Some(reason) = &state.damaged {
            list.damaged.push(Damage { route, reason });
        }
        let from = list.data.len();
        for (name, pin) in state.pins.tools() {
            let mut entry = Entry::of(route, "tool", name, pin, whole);
            let alike = state.pins.alike(name).map(|other| Risk::LookAlike(other.to_owned()));
            entry.risks.extend(alike.iter().map(RiskEntry::of));
            list.data.push(entry);
        }
        for (greeting, pin) in state.pins.instructions() {
            let silent = pin.held.is_empty() && pin.approved.iter().all(|one| one.definition.canonical == "null");
            if !silent {
                list.data.push(Entry::of(route, "instructions", method(greeting), pin, whole));
            }
        }
        for name in state.pins.unlisted() {
            list.data.push(Entry::of(route, "tool", name, &unseen, whole));
        }
        if let Some(new) = list.data.get_mut(from..) {
            new.sort_by_key(|entry| (entry.kind, entry.name));
        }
    }
    if let Some(name) = request.query("name") {
        list.data.retain(|entry| entry.name == name);
    }
    Answer::json(&list)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    route: String,
    /// A tool.
    #[serde(default)]
    tool: Option<String>,
    /// Instructions, by the method that they come with.
    #[serde(default)]
    instructions: Option<String>,
    /// Everything: of what is held where it is approved, of what is known where it is forgotten.
    #[serde(default)]
    all: bool,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    also: bool,
}

impl Chosen {
    fn subject(&self) -> Result<Option<Subject>, ApiError> {
        match (&self.tool, self.instructions.as_deref(), self.all) {
            (Some(name), None, false) => Ok(Some(Subject::Tool(name.clone()))),
            (None, Some("initialize"), false) => Ok(Some(Subject::Instructions(Greeting::Initialize))),
            (None, Some("server/discover"), false) => Ok(Some(Subject::Instructions(Greeting::Discover))),
            (None, Some(_), false) => {
                Err(ApiError::invalid_request("instructions come with `initialize` or `server/discover`"))
            }
            (None, None, true) => Ok(None),
            _ => Err(ApiError::invalid_request("choose one: a tool, instructions, or everything")),
        }
    }
}

#[derive(Serialize)]
struct Done {
    done: Vec<String>,
}

async fn approve(shared: Arc<Shared>, request: AdminRequest) -> Result<Answer, ApiError> {
    let chosen: Chosen = request.json()?;
    let subject = chosen.subject()?;
    let pins = pinned(shared.served().routes.by_name(&chosen.route), &chosen.route)?.clone();
    if chosen.all && chosen.digest.is_some() {
        return Err(ApiError::invalid_request("a digest is that of one definition: name its tool"));
    }
    let by = by(&request);
    let choice = Choice { digest: chosen.digest.as_deref(), also: chosen.also, by: &by, now: (shared.clock)() };
    let done = {
        let mut state = pins.write();
        if state.damaged.is_some() {
            return Err(ApiError::conflict(
                "what was pinned is damaged; forget it first, or put the file back and restart",
            ));
        }
        let subjects = subject.map_or_else(|| state.pins.held(), |subject| vec![subject]);
        let mut next = state.pins.clone();
        let mut done = BTreeMap::new();
        for subject in subjects {
            let digest = next.approve(&subject, &choice).map_err(ApiError::conflict)?;
            done.insert(subject.to_string(), Some(digest.to_string()));
        }
        record(&shared, &pins, "approve", &by, done.clone())?;
        state.pins = next;
        for (subject, digest) in &done {
            tracing::info!(route = %pins.route, by, digest, "{subject}: approved");
        }
        done.into_keys().collect()
    };
    keep(&pins).await?;
    Answer::json(&Done { done })
}

async fn forget(shared: Arc<Shared>, request: AdminRequest) -> Result<Answer, ApiError> {
    let chosen: Chosen = request.json()?;
    let subject = chosen.subject()?;
    let pins = pinned(shared.served().routes.by_name(&chosen.route), &chosen.route)?.clone();
    let done = {
        let mut state = pins.write();
        let mut next = state.pins.clone();
        if let Some(subject) = subject.as_ref().filter(|subject| !next.forget(subject)) {
            return Err(ApiError::not_found(format!("{subject} is not known")));
        }
        let subjects = subject.iter().map(|subject| (subject.to_string(), None)).collect();
        record(&shared, &pins, "forget", &by(&request), subjects)?;
        let done = subject.as_ref().map_or_else(|| "everything".to_owned(), ToString::to_string);
        match subject {
            None => *state = super::State::default(),
            Some(_) => state.pins = next,
        }
        done
    };
    tracing::info!(route = %pins.route, uid = request.person.uid, "{done}: forgotten");
    keep(&pins).await?;
    Answer::json(&Done { done: vec![done] })
}

/// Who is at the other end of the socket.
fn by(request: &AdminRequest) -> String {
    request.person.user.clone().unwrap_or_else(|| format!("uid {}", request.person.uid))
}

/// Records what is about to change.
fn record(
    shared: &Shared,
    pins: &RoutePins,
    action: &str,
    by: &str,
    subjects: BTreeMap<String, Option<String>>,
) -> Result<(), ApiError> {
    let changed = PinChanged { route: pins.route.to_string(), action: action.to_owned(), by: by.to_owned(), subjects };
    shared.audit.before(kinds::PIN_CHANGED, &changed).map_err(|_| {
        ApiError::overloaded("this cannot be recorded, so it is not done; see the gateway's log, and try again")
    })
}

async fn keep(pins: &Arc<RoutePins>) -> Result<(), ApiError> {
    pins.changed.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    pins.keep().await.map_err(|error| {
        tracing::error!(route = %pins.route, "the pinned tools cannot be written: {error}");
        ApiError::overloaded(
            "this is in force, but cannot be written to the disk; see the gateway's log, then repeat it",
        )
    })
}

fn pinned<'a>(route: Option<&'a Arc<Route>>, name: &str) -> Result<&'a Arc<RoutePins>, ApiError> {
    let route = route.ok_or_else(|| ApiError::not_found(format!("there is no route `{name}`")))?;
    let off = "pins no tools: its pinning is off, its protocol is http, or its server is a built-in one";
    route.pins.as_ref().ok_or_else(|| ApiError::conflict(format!("the route `{name}` {off}")))
}

fn method(greeting: Greeting) -> &'static str {
    match greeting {
        Greeting::Initialize => "initialize",
        Greeting::Discover => "server/discover",
    }
}

impl<'a> Entry<'a> {
    fn of(route: &'a RouteName, kind: &'static str, name: &'a str, pin: &'a Pin, whole: bool) -> Self {
        let status = match (pin.approved.is_empty(), pin.held.is_empty()) {
            (false, true) => "pinned",
            (false, false) => "changed",
            (true, false) => "held",
            (true, true) => "unlisted",
        };
        let named = (kind == "tool").then_some(name);
        let definitions =
            pin.approved.iter().map(|one| &one.definition).chain(pin.held.iter().map(|one| &one.definition));
        let mut risks: Vec<Risk> = Vec::new();
        for risk in definitions.flat_map(|definition| risks::of(&definition.canonical, named)) {
            if !risks.contains(&risk) {
                risks.push(risk);
            }
        }
        let risks = risks.iter().map(RiskEntry::of).collect();
        let approved = pin.approved.iter().map(|one| ApprovedEntry::of(one, whole)).collect();
        let held = pin.held.iter().map(|one| HeldEntry::of(one, whole)).collect();
        Self { route, kind, name, status, risks, approved, held }
    }
}

impl RiskEntry {
    fn of(risk: &Risk) -> Self {
        Self { text: risk.text(), holds: risk.holds() }
    }
}

impl<'a> ApprovedEntry<'a> {
    fn of(one: &'a Approved, whole: bool) -> Self {
        let Approved { definition, since, by } = one;
        Self { digest: definition.digest.to_string(), since: time(*since), by, definition: raw(definition, whole) }
    }
}

impl<'a> HeldEntry<'a> {
    fn of(one: &'a Held, whole: bool) -> Self {
        let Held { definition, why, first_seen, last_seen } = one;
        let (digest, definition) = (definition.digest.to_string(), raw(definition, whole));
        Self { digest, why, first_seen: time(*first_seen), last_seen: time(*last_seen), definition }
    }
}

fn raw(definition: &Definition, whole: bool) -> Option<&RawValue> {
    definition.raw().filter(|_| whole)
}

/// RFC 3339.
fn time(unix: i64) -> String {
    jiff::Timestamp::from_second(unix).unwrap_or_default().to_string()
}
