//! What is known of the definitions of one route, and what follows from it. Pure: the time is an argument.
//!
//! A tool has definitions that are approved (by a person, or by having come first) and some that are held. A caller is
//! shown a tool only by an approved definition. Once another one was seen, the tool may be called only by who has since
//! been shown an approved one: what a server told one caller may by now be true for all.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use sortie_ids::Digest;
use sortie_mcp::list::Greeting;

use super::definition::{Definition, Unpinnable};
use super::risks::{self, Risk};
use super::{MAX_BYTES, MAX_HELD, MAX_TOOLS, MAX_VARIANTS};

/// Most callers that are remembered to have been shown an approved definition while another one is held. Beyond it, the
/// tool is refused to further ones.
const MAX_CLEARED: usize = 4096;
/// Most names that were called without having been listed, and are told of.
const MAX_UNLISTED: usize = 256;

/// Who was trusted with a definition that came first.
pub(crate) const FIRST_USE: &str = "first use";

/// Why a definition is held.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// Nothing is approved before a person has approved it.
    New,
    /// Another one is approved.
    Changed,
    /// It is the first, and looks like an attack.
    Risky,
}

/// A definition that callers are shown.
#[derive(Clone, Debug)]
pub(crate) struct Approved {
    pub(crate) definition: Definition,
    /// Seconds since 1970.
    pub(crate) since: i64,
    /// [`FIRST_USE`], or a person.
    pub(crate) by: String,
}

/// A definition that callers are not shown.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) definition: Definition,
    pub(crate) why: Why,
    /// Seconds since 1970.
    pub(crate) first_seen: i64,
    /// Seconds since 1970, when it was last added to the file.
    pub(crate) last_seen: i64,
}

/// All definitions of one tool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pin {
    pub(crate) approved: Vec<Approved>,
    /// At most [`MAX_HELD`]; the one seen longest ago goes first.
    pub(crate) held: Vec<Held>,
    /// Who was shown an approved one while others are held.
    cleared: HashSet<Digest>,
    /// The last text that was approved, and what it came to, so that a list that stays the same is not put in canonical
    /// form again.
    text: Option<(Digest, Digest)>,
}

/// What is done with one definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Callers are shown it; it was so before.
    Known,
    /// Callers are shown it from now on.
    Pinned(Vec<Risk>),
    /// Callers are not shown it; this was known before.
    StillHeld,
    /// Callers are not shown it from now on.
    Held(Why),
    /// Callers are not shown it, and nothing of it is kept.
    Unkept(&'static str),
}

impl Verdict {
    /// Whether callers are shown it.
    pub(crate) fn shows(&self) -> bool {
        matches!(self, Self::Known | Self::Pinned(_))
    }

    /// Whether there is something to keep.
    pub(crate) fn is_news(&self) -> bool {
        matches!(self, Self::Pinned(_) | Self::Held(_))
    }
}

/// Why a tool may not be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Its definition is not the approved one.
    Changed,
    /// None of its definitions is approved.
    Unapproved,
    /// Its name looks like that of a tool that is known.
    LookAlike,
}

/// Whether a first definition is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    FirstUse,
    Nobody,
}

/// All pins of one route.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pins {
    tools: HashMap<String, Pin>,
    instructions: HashMap<Greeting, Pin>,
    /// What the known names look like, and of each look one name.
    looks: HashMap<String, String>,
    /// Called and never listed.
    unlisted: HashSet<String>,
    /// Of names and definitions.
    bytes: usize,
}

impl Pins {
    /// A tool as a caller is about to be shown it, by its object as it was sent.
    pub(crate) fn see_tool(&mut self, trust: Trust, caller: Digest, name: &str, text: &str, now: i64) -> Verdict {
        let raw = Digest::of(text.as_bytes());
        let known = self.tools.get(name).and_then(|pin| pin.text).filter(|(seen, _)| *seen == raw);
        if let (Some((_, digest)), Some(pin)) = (known, self.tools.get_mut(name))
            && pin.is_approved(digest)
        {
            pin.clear(caller);
            return Verdict::Known;
        }
        let definition = match Definition::of_tool(text) {
            Ok(definition) => definition,
            Err(unpinnable) => return self.unkept(name, unpinnable),
        };
        let digest = definition.digest;
        let (entries, bytes) = (self.tools.len(), self.bytes);
        let alike = self.alike(name).map(ToOwned::to_owned);
        let before = self.tools.get(name);
        let first = before.is_none();
        if first && entries >= MAX_TOOLS {
            return Verdict::Unkept("the route has as many tools as are kept");
        }
        let size = definition.canonical.len() + if first { name.len() } else { 0 };
        let mut pin = self.tools.remove(name).unwrap_or_default();
        let room = MAX_BYTES.saturating_sub(bytes).checked_sub(size).is_some();
        let (verdict, freed) = pin.see(trust, caller, definition, now, room, |definition| {
            let alike = alike.map(Risk::LookAlike);
            alike.into_iter().chain(risks::of(&definition.canonical, Some(name))).collect()
        });
        if pin.is_approved(digest) {
            pin.text = Some((raw, digest));
        }
        if verdict.is_news() {
            self.bytes = (self.bytes + size).saturating_sub(freed);
            self.unlisted.remove(name);
            if first {
                self.looks.entry(risks::look(name)).or_insert_with(|| name.to_owned());
            }
        }
        if !first || verdict.is_news() {
            self.tools.insert(name.to_owned(), pin);
        }
        verdict
    }

    /// A definition that cannot be pinned: of a tool that is known, it counts as a change.
    fn unkept(&mut self, name: &str, why: Unpinnable) -> Verdict {
        if let Some(pin) = self.tools.get_mut(name) {
            pin.cleared.clear();
        }
        Verdict::Unkept(match why {
            Unpinnable::NoForm => "its definition has no canonical form",
            Unpinnable::TooLarge => "its definition is too large",
        })
    }

    /// Instructions as a caller is about to be shown them. Where there are none, there is nothing to hold.
    pub(crate) fn see_instructions(
        &mut self,
        trust: Trust,
        caller: Digest,
        greeting: Greeting,
        text: Option<&str>,
        now: i64,
    ) -> Verdict {
        let silent = text.is_none_or(str::is_empty);
        if silent && (trust == Trust::Nobody || self.instructions.contains_key(&greeting)) {
            return Verdict::Known;
        }
        let Ok(definition) = Definition::of_instructions(text.filter(|_| !silent)) else {
            return Verdict::Unkept("the instructions are too large");
        };
        let size = definition.canonical.len();
        let room = MAX_BYTES.saturating_sub(self.bytes).checked_sub(size).is_some();
        let pin = self.instructions.entry(greeting).or_default();
        let risks = |definition: &Definition| risks::of(&definition.canonical, None);
        let (verdict, freed) = pin.see(trust, caller, definition, now, room, risks);
        if verdict.is_news() {
            self.bytes = (self.bytes + size).saturating_sub(freed);
        }
        verdict
    }

    /// Whether a caller may call a tool.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may_call(&self, trust: Trust, caller: Digest, name: &str) -> Result<Listed, Closed> {
        let Some(pin) = self.tools.get(name) else {
            if trust == Trust::Nobody {
                return Err(Closed::Unapproved);
            }
            if self.looks.contains_key(&risks::look(name)) {
                return Err(Closed::LookAlike);
            }
            return Ok(if self.unlisted.contains(name) { Listed::Yes } else { Listed::Never });
        };
        match (pin.approved.is_empty(), pin.held.is_empty() || pin.cleared.contains(&caller)) {
            (true, _) => Err(Closed::Unapproved),
            (false, true) => Ok(Listed::Yes),
            (false, false) => Err(Closed::Changed),
        }
    }

    /// Notes a call of a tool that was never listed; `true` the first time.
    pub(crate) fn note_unlisted(&mut self, name: &str) -> bool {
        self.unlisted.len() < MAX_UNLISTED && name.len() <= 256 && self.unlisted.insert(name.to_owned())
    }

    /// Approves a held definition, or confirms an approved one: of several, the one whose digest begins so. `also`: what
    /// was approved before stays, for servers that show callers different ones.
    ///
    /// # Errors
    /// Why not, in words for the person.
    pub(crate) fn approve(&mut self, what: &Subject, choice: &Choice<'_>) -> Result<Digest, String> {
        let pin = self.pin_mut(what).ok_or_else(|| format!("{what} was never seen; see sortie tools list"))?;
        let before = pin.size();
        let approved = pin.approve(choice).map_err(|reason| format!("{what}: {reason}"))?;
        let after = pin.size();
        self.bytes = (self.bytes + after).saturating_sub(before);
        Ok(approved)
    }

    /// Forgets a tool or instructions; `false` if there is no such.
    pub(crate) fn forget(&mut self, what: &Subject) -> bool {
        let gone = match what {
            Subject::Tool(name) => {
                let unlisted = self.unlisted.remove(name);
                let gone = self.tools.remove(name).map(|pin| pin.size() + name.len());
                self.looks = self.tools.keys().map(|name| (risks::look(name), name.clone())).collect();
                gone.or(unlisted.then_some(0))
            }
            Subject::Instructions(greeting) => self.instructions.remove(greeting).map(|pin| pin.size()),
        };
        self.bytes = self.bytes.saturating_sub(gone.unwrap_or(0));
        gone.is_some()
    }

    /// What is held, in order.
    pub(crate) fn held(&self) -> Vec<Subject> {
        let tools: BTreeMap<_, _> = self.tools.iter().filter(|(_, pin)| !pin.held.is_empty()).collect();
        let tools = tools.into_keys().map(|name| Subject::Tool(name.clone()));
        let silent = self.instructions.iter().filter(|(_, pin)| !pin.held.is_empty());
        tools.chain(silent.map(|(greeting, _)| Subject::Instructions(*greeting))).collect()
    }

    pub(crate) fn tools(&self) -> impl Iterator<Item = (&str, &Pin)> {
        self.tools.iter().map(|(name, pin)| (name.as_str(), pin))
    }

    pub(crate) fn instructions(&self) -> impl Iterator<Item = (Greeting, &Pin)> {
        self.instructions.iter().map(|(greeting, pin)| (*greeting, pin))
    }

    /// The known tool that a tool looks like, if it is another one.
    pub(crate) fn alike(&self, name: &str) -> Option<&str> {
        self.looks.get(&risks::look(name)).map(String::as_str).filter(|other| *other != name)
    }

    pub(crate) fn unlisted(&self) -> impl Iterator<Item = &str> {
        self.unlisted.iter().map(String::as_str)
    }

    pub(crate) fn insert_tool(&mut self, name: String, pin: Pin) {
        self.bytes += pin.size() + name.len();
        self.looks.entry(risks::look(&name)).or_insert_with(|| name.clone());
        self.tools.insert(name, pin);
    }

    pub(crate) fn insert_instructions(&mut self, greeting: Greeting, pin: Pin) {
        self.bytes += pin.size();
        self.instructions.insert(greeting, pin);
    }

    fn pin_mut(&mut self, what: &Subject) -> Option<&mut Pin> {
        match what {
            Subject::Tool(name) => self.tools.get_mut(name),
            Subject::Instructions(greeting) => self.instructions.get_mut(greeting),
        }
    }
}

/// Whether a tool that may be called has ever been listed, as far as that is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    Yes,
    Never,
}

/// What a person decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Tool(String),
    Instructions(Greeting),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tool(name) => write!(f, "the tool `{}`", crate::probe::printable(name)),
            Self::Instructions(Greeting::Initialize) => f.write_str("the instructions of `initialize`"),
            Self::Instructions(Greeting::Discover) => f.write_str("the instructions of `server/discover`"),
        }
    }
}

/// Which definition a person approves.
#[derive(Clone, Debug)]
pub(crate) struct Choice<'a> {
    /// The beginning of its digest; `None` where there is only one that is held.
    pub(crate) digest: Option<&'a str>,
    /// Whether what was approved before stays.
    pub(crate) also: bool,
    pub(crate) by: &'a str,
    pub(crate) now: i64,
}

impl Pin {
    fn is_approved(&self, digest: Digest) -> bool {
        self.approved.iter().any(|approved| approved.definition.digest == digest)
    }

    fn size(&self) -> usize {
        let approved = self.approved.iter().map(|one| one.definition.canonical.len());
        approved.chain(self.held.iter().map(|one| one.definition.canonical.len())).sum()
    }

    /// The caller was shown an approved definition.
    fn clear(&mut self, caller: Digest) {
        if !self.held.is_empty() && self.cleared.len() < MAX_CLEARED {
            self.cleared.insert(caller);
        }
    }

    /// What is done with a definition, and how many bytes went for it.
    fn see(
        &mut self,
        trust: Trust,
        caller: Digest,
        definition: Definition,
        now: i64,
        room: bool,
        risks: impl FnOnce(&Definition) -> Vec<Risk>,
    ) -> (Verdict, usize) {
        let digest = definition.digest;
        if self.is_approved(digest) {
            self.clear(caller);
            return (Verdict::Known, 0);
        }
        let waits = self.held.iter().position(|held| held.definition.digest == digest);
        // What waited for a person only because nobody was trusted is trusted when that changes.
        let only = self.approved.is_empty() && self.held.len() == 1;
        let waited = only && self.held.iter().all(|held| held.definition.digest == digest && held.why == Why::New);
        if let Some(held) = waits.and_then(|at| self.held.get_mut(at))
            && !(waited && trust == Trust::FirstUse)
        {
            held.last_seen = now;
            self.cleared.remove(&caller);
            return (Verdict::StillHeld, 0);
        }
        if !room && !waited {
            // Without a trace of it, everybody has to be shown an approved one again.
            self.cleared.clear();
            return (Verdict::Unkept("as many definitions of this route are kept as may be"), 0);
        }
        let risks = risks(&definition);
        let first = self.approved.is_empty() && (self.held.is_empty() || waited);
        let freed = if waited { self.held.drain(..).map(|held| held.definition.canonical.len()).sum() } else { 0 };
        let why = match (first, trust) {
            (true, Trust::FirstUse) if !risks.iter().any(Risk::holds) => {
                self.approved.push(Approved { definition, since: now, by: FIRST_USE.to_owned() });
                return (Verdict::Pinned(risks), freed);
            }
            (true, Trust::FirstUse) => Why::Risky,
            (true, Trust::Nobody) => Why::New,
            (false, _) if self.approved.is_empty() => Why::New,
            (false, _) => Why::Changed,
        };
        let freed = freed + self.make_room();
        self.cleared.clear();
        self.held.push(Held { definition, why: why.clone(), first_seen: now, last_seen: now });
        (Verdict::Held(why), freed)
    }

    /// Drops the definition that was held and not seen for the longest time, if there are too many.
    fn make_room(&mut self) -> usize {
        if self.held.len() < MAX_HELD {
            return 0;
        }
        let oldest = self.held.iter().enumerate().min_by_key(|(_, held)| held.last_seen).map(|(at, _)| at);
        oldest.map_or(0, |at| self.held.remove(at).definition.canonical.len())
    }

    fn approve(&mut self, choice: &Choice<'_>) -> Result<Digest, String> {
        let matches = |definition: &Definition| match choice.digest {
            None => true,
            Some(beginning) => definition.digest.to_string().starts_with(&beginning.to_ascii_lowercase()),
        };
        let mut chosen: Vec<Definition> =
            self.held.iter().map(|held| &held.definition).filter(|one| matches(one)).cloned().collect();
        if choice.digest.is_some() {
            let approved = self.approved.iter().map(|one| &one.definition);
            chosen.extend(approved.filter(|one| matches(one)).cloned());
        }
        let definition = match chosen.as_slice() {
            [] if choice.digest.is_none() => return Err("nothing of it is held".to_owned()),
            [] => return Err("no definition of it has this digest; see sortie tools diff".to_owned()),
            [_] => chosen.remove(0),
            _ => return Err("several definitions are meant; name one by its digest, see sortie tools diff".to_owned()),
        };
        let digest = definition.digest;
        if !choice.also {
            self.approved.clear();
        }
        if !self.is_approved(digest) {
            if self.approved.len() >= MAX_VARIANTS {
                return Err(format!(
                    "{MAX_VARIANTS} definitions of it are approved, which is the most; approve without --also"
                ));
            }
            self.approved.push(Approved { definition, since: choice.now, by: choice.by.to_owned() });
        }
        if choice.also {
            self.held.retain(|held| held.definition.digest != digest);
        } else {
            self.held.clear();
        }
        self.cleared.clear();
        self.text = None;
        Ok(digest)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
