//! Decides.
//!
//! What a decision depends on falls into two parts. Who calls what on which route is the same for many calls: which
//! policies apply to it, and what those say that look at nothing else, is worked out once and remembered (a *slice*).
//! Time, counts and arguments are looked at for each call, by those policies of the slice only that ask for them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Entities, Entity, EntityUid, PolicySet, Request, RestrictedExpression,
    Schema,
};
use jiff::tz::TimeZone;

use crate::cache::Cache;
use crate::caller::{Known, Seen};
use crate::case::Case;
use crate::conditions::{self, Uses};
use crate::decision::{Decision, Fact, NOT_ALLOWED, PolicyName};
use crate::error::PolicyError;
use crate::facts::FactFault;
use crate::file::{self, Declared};
use crate::index::Index;
use crate::moment::{self, Moment};
use crate::policy::Loaded;
use crate::query::{Act, Query, Target};
use crate::schema::{self, Action, types, uid};
use crate::slice::{Open, Outcome, Slice};

/// Callers remembered. What no policy looks at makes no difference between two.
const CALLERS: usize = 8192;
/// Slices remembered.
const SLICES: usize = 16_384;
/// Sets of policies remembered, by the list of them.
const SETS: usize = 4096;
/// Stack for reading and checking policies, in bytes: Cedar descends into conditions, which are bounded (`statements.rs`).
/// Only what is used of it is taken.
const STACK: usize = 64 << 20;
/// Names longer than this are worked out each time, so that callers cannot fill the memory with them, in bytes.
const LONG_NAME: usize = 512;

/// A set of policies, ready to decide.
pub struct Engine {
    pub(crate) policies: Vec<Loaded>,
    pub(crate) facts: Vec<Declared>,
    pub(crate) cases: Vec<Case>,
    pub(crate) schema: Schema,
    pub(crate) schema_text: String,
    /// All policies as one set, made when it is asked for.
    plain: OnceLock<PolicySet>,
    index: Index,
    files: Vec<PathBuf>,
    zone: TimeZone,
    actions: Vec<Entity>,
    seen: Seen,
    looks_at_region: bool,
    looks_at_counts: bool,
    hasher: RandomState,
    next: AtomicU64,
    callers: Cache<Known>,
    slices: Cache<Slice>,
    sets: Cache<(Vec<usize>, PolicySet)>,
    nothing: Arc<Slice>,
    authorizer: Authorizer,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("files", &self.files)
            .field("policies", &self.policies.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Loads a policy file (`.cedar`, or else TOML) and the files that it names. `read` gives the text of a file; of
    /// those that a file names the path is that of the file's directory joined with the name.
    ///
    /// # Errors
    /// A file cannot be read, is not what it should be, or speaks of what there is not; up to 20 problems at once.
    pub fn load(file: &Path, read: impl Fn(&Path) -> std::io::Result<String>) -> Result<Self, PolicyError> {
        stacker::grow(STACK, || Self::build(file, &read))
    }

    fn build(file: &Path, read: &impl Fn(&Path) -> std::io::Result<String>) -> Result<Self, PolicyError> {
        let loaded = file::load(file, read)?;
        let schema_text = schema::with_facts(&loaded.facts.iter().map(Declared::kind).collect::<BTreeMap<_, _>>());
        let (schema, _) = Schema::from_cedarschema_str(&schema_text).map_err(|error| {
            PolicyError::one(format!("{}: the facts do not go with the schema: {error}", file.display()))
        })?;
        let mut policies = parse(&loaded.sources)?;
        file::check(&schema, &loaded.sources, &mut policies, &loaded.facts)?;
        let uses = policies.iter().map(Loaded::uses).fold(Uses::default(), |mut all, uses| {
            all.add(uses);
            all
        });
        let actions = schema.action_entities().map_err(|error| PolicyError::one(error.to_string()))?;
        Ok(Self {
            index: Index::of(&policies),
            files: loaded.files,
            zone: loaded.zone,
            actions: actions.iter().cloned().collect(),
            seen: Seen::of(&uses.attributes, uses.tags),
            looks_at_region: policies.iter().any(Loaded::looks_at_region),
            looks_at_counts: uses.context & conditions::COUNTS != 0,
            hasher: RandomState::new(),
            next: AtomicU64::new(0),
            callers: Cache::new(CALLERS),
            slices: Cache::new(SLICES),
            sets: Cache::new(SETS),
            nothing: Arc::new(Slice::nothing()),
            authorizer: Authorizer::new(),
            cases: loaded.cases,
            facts: loaded.facts,
            policies,
            schema,
            schema_text,
            plain: OnceLock::new(),
        })
    }

    /// Decides. An error of any kind denies.
    pub fn decide(&self, query: &Query<'_>) -> Decision {
        match self.slice(query) {
            Ok(slice) => Decision { hidden: hides(&slice, query), ..self.decide_by(&slice, query).0 },
            Err(reason) => Decision::deny(Vec::new(), reason),
        }
    }

    /// Whether what is asked for could be allowed, or asked for, with some arguments, at some time, at some count: what a
    /// list may show. Arguments, time and counts of the query are not looked at. The act is that of using what is listed:
    /// for a list of tools, `tools/call` of each.
    pub fn may_see(&self, query: &Query<'_>) -> bool {
        self.slice(query).is_ok_and(|slice| slice.visible)
    }

    /// Whether a policy asks for [`Counts`](crate::Counts).
    pub fn counts(&self) -> bool {
        self.looks_at_counts
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether there are no policies, so that all is denied.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The files that it was read from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The policies whose scope fits, of all there are, by index.
    pub(crate) fn candidates(&self, query: &Query<'_>) -> Result<Vec<usize>, String> {
        let caller = self.caller(query)?;
        let place = Place::of(query);
        Ok(self.find(&caller, &place))
    }

    pub(crate) fn caller_and_place<'a>(&self, query: &Query<'a>) -> Result<(Arc<Known>, Place<'a>), String> {
        Ok((self.caller(query)?, Place::of(query)))
    }

    pub(crate) fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    pub(crate) fn plain_set(&self) -> &PolicySet {
        self.plain.get_or_init(|| {
            let all = self.policies.iter().map(|policy| policy.whole.clone());
            PolicySet::from_policies(all).expect("the ids of policies are their indexes")
        })
    }

    /// The slice for a query, remembered or new.
    pub(crate) fn slice(&self, query: &Query<'_>) -> Result<Arc<Slice>, String> {
        let caller = self.caller(query)?;
        let action = Action::of(&query.act);
        let target = target(query);
        let region = if self.looks_at_region { query.region } else { None };
        let hash = self.hasher.hash_one((caller.id, action, query.route, target, region));
        if let Some(slice) = self.slices.get(hash, |slice| slice.is(caller.id, action, query.route, target, region)) {
            return Ok(slice);
        }
        let place = Place::of(query);
        let found = self.find(&caller, &place);
        if found.is_empty() {
            return Ok(Arc::clone(&self.nothing));
        }
        let mut slice = self.make(&caller, &place, found, region)?;
        slice.name(caller.id, action, query.route, target, region);
        let slice = Arc::new(slice);
        if place.name.len() <= LONG_NAME && query.route.len() <= LONG_NAME {
            self.slices.put(hash, Arc::clone(&slice));
        }
        Ok(slice)
    }

    fn caller(&self, query: &Query<'_>) -> Result<Arc<Known>, String> {
        let part = self.seen.part(query.caller);
        let hash = part.hash(&self.hasher);
        if let Some(known) = self.callers.get(hash, |known| known.is(&self.seen, &part)) {
            return Ok(known);
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let known = Arc::new(Known::new(id, &part, query.caller)?);
        self.callers.put(hash, Arc::clone(&known));
        Ok(known)
    }

    fn find(&self, caller: &Known, place: &Place<'_>) -> Vec<usize> {
        let resources = [place.resource.clone(), place.route.clone()];
        let kind = place.resource.type_name();
        self.index.find(&self.policies, &caller.keys, place.action, &resources, kind, place.name)
    }

    /// Works out which of the policies in scope apply, and what those say that look at nothing that varies.
    fn make(
        &self,
        caller: &Known,
        place: &Place<'_>,
        mut found: Vec<usize>,
        region: Option<&str>,
    ) -> Result<Slice, String> {
        // A policy speaks of the tools that its facts are declared for.
        found.retain(|at| {
            self.policy(*at).facts.iter().all(|fact| self.facts.get(*fact).is_some_and(|fact| fact.is_for(place.tool)))
        });
        let entities = self.entities(caller, place)?;
        let context = region.map(|region| ("region".to_owned(), RestrictedExpression::new_string(region.to_owned())));
        let request = Request::new(
            caller.uid.clone(),
            place.action.uid(),
            place.resource.clone(),
            Context::from_pairs(context).map_err(|error| error.to_string())?,
            None,
        );
        let request = request.map_err(|error| error.to_string())?;
        let mut broken = None;
        found.retain(|at| {
            let Some(fixed) = &self.policy(*at).fixed else { return true };
            match self.holds(fixed.clone(), &request, &entities) {
                Ok(holds) => holds,
                Err(()) => {
                    broken.get_or_insert(*at);
                    true
                }
            }
        });
        if let Some(broken) = broken {
            return Ok(Slice::decided(found, false, self.broken(broken)));
        }
        let (varying, fixed): (Vec<usize>, Vec<usize>) =
            found.iter().partition(|at| self.policy(**at).varying.is_some());
        let forbidding: Vec<usize> = fixed.iter().copied().filter(|at| !self.policy(*at).permits).collect();
        if !forbidding.is_empty() {
            return Ok(Slice::decided(found, false, self.forbidden(&forbidding)));
        }
        let visible = found.iter().any(|at| self.policy(*at).permits);
        if varying.is_empty() {
            return Ok(Slice::decided(found, visible, self.permitted(&fixed)));
        }
        let uses =
            varying.iter().map(|at| self.policy(*at).varying_uses.clone()).fold(Uses::default(), |mut all, one| {
                all.add(one);
                all
            });
        let facts: BTreeSet<usize> = varying.iter().flat_map(|at| self.policy(*at).facts.iter().copied()).collect();
        let entities = if uses.entities { entities } else { Entities::empty() };
        let set = self.set(&varying)?;
        let facts = facts.into_iter().collect();
        Ok(Slice::open(found, visible, Open { fixed, set, context: uses.context, facts, request, entities }))
    }

    fn decide_by(&self, slice: &Slice, query: &Query<'_>) -> (Decision, Vec<PolicyName>) {
        let open = match &slice.outcome {
            Outcome::Decided(decision) => return (decision.clone(), Vec::new()),
            Outcome::Open(open) => open,
        };
        let mut taken = Taken { facts: Vec::with_capacity(open.facts.len()), faults: Vec::new() };
        for at in &open.facts {
            let Some(declared) = self.facts.get(*at) else { continue };
            taken.add(*at, declared, declared.matcher.fact(query.arguments));
        }
        self.decide_on(slice, open, query, taken)
    }

    /// Decides on facts that were taken before.
    pub(crate) fn decide_on(
        &self,
        slice: &Slice,
        open: &Open,
        query: &Query<'_>,
        taken: Taken,
    ) -> (Decision, Vec<PolicyName>) {
        let Taken { facts, faults } = taken;
        let forms = self.declared(&open.facts).map(|declared| (declared.name.clone(), declared.form.clone())).collect();
        if let Some((first, fault)) = faults.first() {
            let decision = self.missing(slice, *first, fault);
            let name = |(at, fault): &(usize, FactFault)| Some((self.facts.get(*at)?.name.clone(), fault.clone()));
            return (
                Decision { facts, forms, faults: faults.iter().filter_map(name).collect(), ..decision },
                Vec::new(),
            );
        }
        let broken = |_| Decision::deny(Vec::new(), "the policies cannot be evaluated".to_owned());
        let request = match self.request(open.context, &open.request, query, &facts) {
            Ok(request) => request,
            Err(error) => return (broken(error), Vec::new()),
        };
        let response = self.authorizer.is_authorized(&request, &open.set.1, &open.entities);
        let at = |id: &cedar_policy::PolicyId| -> Option<usize> { id.to_string().parse().ok() };
        if let Some(error) = response.diagnostics().errors().next() {
            let AuthorizationError::PolicyEvaluationError(error) = error;
            let decision = at(error.policy_id()).map_or_else(|| broken(String::new()), |at| self.broken(at));
            return (Decision { facts, forms, ..decision }, Vec::new());
        }
        let mut deciding: Vec<usize> = response.diagnostics().reason().filter_map(at).collect();
        deciding.sort_unstable();
        let held = deciding.iter().map(|at| self.policy(*at).name.clone()).collect();
        let decision = if deciding.first().is_some_and(|at| !self.policy(*at).permits) {
            self.forbidden(&deciding)
        } else {
            deciding.extend(&open.fixed);
            deciding.sort_unstable();
            self.permitted(&deciding)
        };
        (Decision { facts, forms, ..decision }, held)
    }

    pub(crate) fn request(
        &self,
        context: u16,
        request: &Request,
        query: &Query<'_>,
        facts: &[(String, Fact)],
    ) -> Result<Request, String> {
        let mut pairs: Vec<(String, RestrictedExpression)> = Vec::new();
        let mut add = |name: &str, value| pairs.push((name.to_owned(), value));
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        if context & conditions::TIME != 0 {
            let millis = query.now.checked_mul(1000).ok_or("the time is out of range")?;
            add("time", RestrictedExpression::new_datetime(moment::text(millis)));
        }
        if context & (conditions::HOUR | conditions::MINUTE_OF_DAY | conditions::WEEKDAY) != 0 {
            let moment = Moment::of(query.now, &self.zone).ok_or("the time is out of range")?;
            add("hour", RestrictedExpression::new_long(moment.hour));
            add("minute_of_day", RestrictedExpression::new_long(moment.minute_of_day));
            add("weekday", text(moment.weekday));
        }
        if let Some(region) = query.region.filter(|_| context & conditions::REGION != 0) {
            add("region", text(region));
        }
        let (method, path) = match query.act {
            Act::Mcp { method, .. } => (method, None),
            Act::Http { method, path } => (method, Some(path)),
            Act::Answer | Act::Stream | Act::EndSession => (Action::of(&query.act).name(), None),
        };
        if context & conditions::METHOD != 0 {
            add("method", text(method));
        }
        if let Some(path) = path.filter(|_| context & conditions::PATH != 0) {
            add("path", text(path));
        }
        if context & conditions::COUNTS != 0 {
            let counts = [("minute", query.counts.minute), ("hour", query.counts.hour), ("day", query.counts.day)];
            let counts = counts.map(|(name, count)| (name.to_owned(), RestrictedExpression::new_long(count.into())));
            add("counts", RestrictedExpression::new_record(counts).map_err(|error| error.to_string())?);
        }
        if Action::of(&query.act).name() == Action::TOOLS_CALL {
            let facts = facts.iter().map(|(name, fact)| (name.clone(), expression(fact)));
            add("facts", RestrictedExpression::new_record(facts).map_err(|error| error.to_string())?);
        }
        let context = Context::from_pairs(pairs).map_err(|error| error.to_string())?;
        let (Some(principal), Some(action), Some(resource)) =
            (request.principal(), request.action(), request.resource())
        else {
            return Err("a request names a principal, an action and a resource".to_owned());
        };
        Request::new(principal.clone(), action.clone(), resource.clone(), context, None)
            .map_err(|error| error.to_string())
    }

    pub(crate) fn entities(&self, caller: &Known, place: &Place<'_>) -> Result<Entities, String> {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let route = Entity::new(
            place.route.clone(),
            [("name".to_owned(), text(place.route.id().unescaped()))].into(),
            HashSet::new(),
        );
        let mut all = vec![caller.entity.clone(), route.map_err(|error| error.to_string())?];
        if let Some(attribute) = place.attribute {
            let attributes =
                [(attribute.to_owned(), text(place.name)), ("route".to_owned(), text(place.route.id().unescaped()))];
            let above = HashSet::from([place.route.clone()]);
            let entity = Entity::new(place.resource.clone(), attributes.into(), above);
            all.push(entity.map_err(|error| error.to_string())?);
        }
        let action = place.action.uid();
        all.extend(self.actions.iter().filter(|entity| entity.uid() == action).cloned());
        Entities::from_entities(all, None).map_err(|error| error.to_string())
    }

    /// Whether the conditions of one policy hold.
    pub(crate) fn holds(
        &self,
        policy: cedar_policy::Policy,
        request: &Request,
        entities: &Entities,
    ) -> Result<bool, ()> {
        let set = PolicySet::from_policies([policy]).map_err(|_| ())?;
        let response = self.authorizer.is_authorized(request, &set, entities);
        let holds = response.diagnostics().reason().next().is_some();
        if response.diagnostics().errors().next().is_some() { Err(()) } else { Ok(holds) }
    }

    /// The varying parts of some policies as one set.
    fn set(&self, list: &[usize]) -> Result<Arc<(Vec<usize>, PolicySet)>, String> {
        let hash = self.hasher.hash_one(list);
        if let Some(set) = self.sets.get(hash, |set| set.0 == list) {
            return Ok(set);
        }
        let parts = list.iter().filter_map(|at| self.policy(*at).varying.clone());
        let set = PolicySet::from_policies(parts).map_err(|error| error.to_string())?;
        let set = Arc::new((list.to_vec(), set));
        self.sets.put(hash, Arc::clone(&set));
        Ok(set)
    }

    pub(crate) fn declared(&self, list: &[usize]) -> impl Iterator<Item = &Declared> {
        list.iter().filter_map(|at| self.facts.get(*at))
    }

    pub(crate) fn policy(&self, at: usize) -> &Loaded {
        self.policies.get(at).expect("indexes are those of the policies")
    }

    fn names(&self, list: &[usize]) -> Vec<PolicyName> {
        list.iter().map(|at| self.policy(*at).name.clone()).collect()
    }

    pub(crate) fn forbidden(&self, by: &[usize]) -> Decision {
        Decision::deny(self.names(by), self.sentence(by, "forbids it", "forbid it"))
    }

    pub(crate) fn permitted(&self, by: &[usize]) -> Decision {
        let asking: Vec<usize> = by.iter().copied().filter(|at| self.policy(*at).ask.is_some()).collect();
        if by.is_empty() {
            Decision::deny(Vec::new(), NOT_ALLOWED.to_owned())
        } else if asking.is_empty() {
            Decision::allow(self.names(by), self.sentence(by, "allows it", "allow it"))
        } else {
            let ask: Vec<String> = asking.iter().filter_map(|at| self.policy(*at).ask.clone()).collect();
            let sentence = format!("{}: {}", self.sentence(&asking, "asks first", "ask first"), ask.join("; "));
            Decision::ask(self.names(&asking), sentence, ask)
        }
    }

    pub(crate) fn broken(&self, at: usize) -> Decision {
        let name = &self.policy(at).name;
        Decision::deny(vec![name.clone()], format!("policy `{name}` cannot be evaluated for this call"))
    }

    fn missing(&self, slice: &Slice, fact: usize, fault: &FactFault) -> Decision {
        let users: Vec<usize> =
            slice.applying.iter().copied().filter(|at| self.policy(*at).facts.contains(&fact)).collect();
        let what = self.facts.get(fact).map_or_else(String::new, Declared::phrase);
        let sentence = format!("{} {what}: {fault}", self.sentence(&users, "needs", "need"));
        Decision::deny(self.names(&users), sentence)
    }

    /// Policies and what they do, with what they say for themselves.
    fn sentence(&self, by: &[usize], one: &str, many: &str) -> String {
        let names: Vec<String> = by.iter().map(|at| format!("`{}`", self.policy(*at).name)).collect();
        let reason = by.iter().find_map(|at| self.policy(*at).reason.as_deref());
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        match names.as_slice() {
            [name] => format!("policy {name} {one}{reason}"),
            names if names.len() > 3 => {
                let rest = names.len() - 1;
                format!("policies {} and {rest} others {many}{reason}", names.first().map_or("", String::as_str))
            }
            names => format!("policies {} {many}{reason}", names.join(", ")),
        }
    }
}

/// The facts of one call.
pub(crate) struct Taken {
    pub(crate) facts: Vec<(String, Fact)>,
    /// Those that are needed and are none, by index.
    pub(crate) faults: Vec<(usize, FactFault)>,
}

impl Taken {
    pub(crate) fn add(&mut self, at: usize, declared: &Declared, found: Result<Option<Fact>, FactFault>) {
        match found {
            Ok(fact) => self.facts.extend(fact.map(|fact| (declared.name.clone(), fact))),
            Err(fault) => self.faults.push((at, fault)),
        }
    }
}

/// What is done, and to what.
pub(crate) struct Place<'a> {
    pub(crate) action: Action,
    route: EntityUid,
    /// The target, else the route.
    pub(crate) resource: EntityUid,
    /// The attribute with the target's name, if there is a target.
    attribute: Option<&'static str>,
    /// The target's name, else the route's.
    name: &'a str,
    /// Route and tool, of a call of a tool.
    tool: Option<(&'a str, &'a str)>,
}

impl<'a> Place<'a> {
    fn of(query: &Query<'a>) -> Self {
        let route = uid(&types().route, query.route);
        let target = target(query);
        let (resource, attribute, name) = match &target {
            None => (route.clone(), None, query.route),
            Some(target) => {
                let (kind, attribute) = schema::target(target);
                let (Target::Tool(name) | Target::Resource(name) | Target::Prompt(name)) = *target;
                (uid(kind, &format!("{}/{name}", query.route)), Some(attribute), name)
            }
        };
        let tool = match target {
            Some(Target::Tool(name)) => Some((query.route, name)),
            _ => None,
        };
        Self { action: Action::of(&query.act), route, resource, attribute, name, tool }
    }
}

/// Whether the caller may not see what it asks for, so that a refusal must not say that it is there.
pub(crate) fn hides(slice: &Slice, query: &Query<'_>) -> bool {
    !slice.visible && target(query).is_some()
}

fn target<'a>(query: &Query<'a>) -> Option<Target<'a>> {
    match query.act {
        Act::Mcp { target, .. } => target,
        _ => None,
    }
}

fn expression(fact: &Fact) -> RestrictedExpression {
    match fact {
        Fact::String(text) => RestrictedExpression::new_string(text.clone()),
        Fact::Long(value) => RestrictedExpression::new_long(*value),
        Fact::Decimal(text) => RestrictedExpression::new_decimal(text),
        Fact::Bool(value) => RestrictedExpression::new_bool(*value),
        Fact::Set(texts) => RestrictedExpression::new_set(texts.iter().cloned().map(RestrictedExpression::new_string)),
        Fact::Ip(ip) => RestrictedExpression::new_ip(ip.to_string()),
        Fact::Datetime(millis) => RestrictedExpression::new_datetime(moment::text(*millis)),
    }
}

fn parse(sources: &[crate::policy::Source]) -> Result<Vec<Loaded>, PolicyError> {
    let mut problems = Vec::new();
    let mut policies = Vec::with_capacity(sources.len());
    for (at, source) in sources.iter().enumerate() {
        match Loaded::parse(at, source) {
            Ok(policy) => policies.push(policy),
            Err(problem) => problems.push(problem),
        }
        if problems.len() == PolicyError::MOST {
            break;
        }
    }
    if problems.is_empty() { Ok(policies) } else { Err(PolicyError { problems }) }
}
