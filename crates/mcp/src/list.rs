//! One strict look at an answer: the lists of tools, prompts and resources in it, and what a server says of itself.
//!
//! An answer is read by the same rules as a request ([`crate::message`]): what two programs could read differently is
//! refused, in the whole document. Nothing is written anew: [`Document::edited`] cuts items out of the text, and leaves
//! every other byte where it was.
//!
//! A list is told by the member of `result` that holds it, whatever the id of the answer is: clients match ids in more
//! than one way, and some of them over several streams.
//!
//! Pure; time and memory are linear in the text, whose size is the caller's to bound; no recursion.

use std::borrow::Cow;
use std::ops::Range;

use crate::message::keys::{Keys, same_but_for_case};
use crate::message::tokens::{Kind as Type, Token, Tokens};
use crate::message::{Fault, MAX_BATCH, unquoted};

/// What a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `result.tools`, of `tools/list`.
    Tool,
    /// `result.prompts`, of `prompts/list`.
    Prompt,
    /// `result.resources`, of `resources/list`.
    Resource,
    /// `result.resourceTemplates`, of `resources/templates/list`.
    Template,
}

impl Kind {
    /// The kind of list that a method answers with.
    pub fn of_method(method: &str) -> Option<Self> {
        match method {
            "tools/list" => Some(Self::Tool),
            "prompts/list" => Some(Self::Prompt),
            "resources/list" => Some(Self::Resource),
            "resources/templates/list" => Some(Self::Template),
            _ => None,
        }
    }

    /// The word for one item.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tool => "tool",
            Self::Prompt => "prompt",
            Self::Resource => "resource",
            Self::Template => "resource template",
        }
    }

    /// The member by which an item is named in calls.
    fn key(self) -> &'static str {
        match self {
            Self::Tool | Self::Prompt => "name",
            Self::Resource => "uri",
            Self::Template => "uriTemplate",
        }
    }
}

/// One item of a list.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its name, URI or URI template, escapes undone.
    pub name: Cow<'a, str>,
    /// The object exactly as sent.
    pub text: &'a str,
}

/// In which answer a server speaks of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Greeting {
    /// `initialize`, up to MCP 2025-11-25.
    Initialize,
    /// `server/discover`, from MCP 2026-07-28 on.
    Discover,
}

/// What a server says of itself.
#[derive(Clone, Debug)]
pub struct Introduction<'a> {
    /// Where it says so.
    pub greeting: Greeting,
    /// `result.instructions`, escapes undone; `None` without them.
    pub instructions: Option<Cow<'a, str>>,
}

/// An answer, or a batch of them, that was read.
#[derive(Debug)]
pub struct Document<'a> {
    text: &'a str,
    answers: Vec<Answer<'a>>,
}

#[derive(Debug, Default)]
struct Answer<'a> {
    lists: Vec<List<'a>>,
    /// Where the value of `result.cacheScope` stands, if that is not `"private"`.
    shared_scope: Option<Range<usize>>,
    introduction: Option<Introduction<'a>>,
    /// Where the value of `result.instructions` stands.
    instructions: Range<usize>,
}

#[derive(Debug)]
struct List<'a> {
    items: Vec<(Range<usize>, Item<'a>)>,
}

/// What becomes of a document.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// How many items were cut out.
    pub dropped: usize,
    /// Whether instructions were made empty.
    pub silenced: bool,
}

impl<'a> Document<'a> {
    /// Reads the body of an answer, or the data of one event, strictly.
    ///
    /// # Errors
    /// Why it is not one message of JSON-RPC 2.0 or a batch of them, or its lists are not lists; and the byte of it.
    pub fn read(body: &'a [u8]) -> Result<Self, (Fault, usize)> {
        let text = std::str::from_utf8(body).map_err(|error| (Fault::NotUtf8, error.valid_up_to()))?;
        if text.starts_with('\u{feff}') {
            return Err((Fault::ByteOrderMark, 0));
        }
        Reader::new(text).read()
    }

    /// All items of all lists, in order.
    pub fn items(&self) -> impl Iterator<Item = &Item<'a>> {
        self.answers.iter().flat_map(|answer| &answer.lists).flat_map(|list| &list.items).map(|(_, item)| item)
    }

    /// What the server says of itself, in each answer where it does.
    pub fn introductions(&self) -> impl Iterator<Item = &Introduction<'a>> {
        self.answers.iter().filter_map(|answer| answer.introduction.as_ref())
    }

    /// The text with the items for which `keep` is true, and with instructions made empty where `speak` is false. An
    /// answer that lost something, and with `private` every one with a list, is marked as good for its caller only
    /// (`cacheScope`, MCP 2026-07-28). `None` where the text stays as it is.
    pub fn edited(
        &self,
        private: bool,
        mut keep: impl FnMut(&Item<'a>) -> bool,
        mut speak: impl FnMut(&Introduction<'a>) -> bool,
    ) -> (Option<String>, Changes) {
        let mut cuts: Vec<(Range<usize>, &str)> = Vec::new();
        let mut changes = Changes::default();
        for answer in &self.answers {
            let before = cuts.len();
            for list in &answer.lists {
                changes.dropped += list.cut(&mut keep, &mut cuts);
            }
            if let Some(introduction) = &answer.introduction
                && introduction.instructions.is_some()
                && !speak(introduction)
            {
                cuts.push((answer.instructions.clone(), "\"\""));
                changes.silenced = true;
            }
            let narrowed = cuts.len() > before || private && !answer.lists.is_empty();
            if let Some(scope) = answer.shared_scope.clone().filter(|_| narrowed) {
                cuts.push((scope, "\"private\""));
            }
        }
        if cuts.is_empty() {
            return (None, changes);
        }
        cuts.sort_by_key(|(range, _)| range.start);
        let mut edited = String::with_capacity(self.text.len());
        let mut at = 0;
        for (range, instead) in cuts {
            edited.push_str(self.text.get(at..range.start).unwrap_or_default());
            edited.push_str(instead);
            at = range.end;
        }
        edited.push_str(self.text.get(at..).unwrap_or_default());
        (Some(edited), changes)
    }
}

impl<'a> List<'a> {
    /// Where to cut, so that each dropped item goes with one comma; how many were dropped.
    fn cut(&self, keep: &mut impl FnMut(&Item<'a>) -> bool, cuts: &mut Vec<(Range<usize>, &str)>) -> usize {
        let (mut dropped, mut kept_before, mut last_end) = (0, false, None);
        for (index, (place, item)) in self.items.iter().enumerate() {
            if keep(item) {
                kept_before = true;
            } else {
                dropped += 1;
                let range = match (kept_before, last_end, self.items.get(index + 1)) {
                    (true, Some(end), _) => end..place.end,
                    (_, _, Some((next, _))) => place.start..next.start,
                    _ => place.clone(),
                };
                cuts.push((range, ""));
            }
            last_end = Some(place.end);
        }
        dropped
    }
}

/// A member whose value is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Jsonrpc,
    Id,
    Method,
    Result,
    Error,
    List(Kind),
    CacheScope,
    Instructions,
    Greeting(Greeting),
    /// What an item is named by.
    Name,
    /// A member whose name must not be written otherwise, and whose value is not needed.
    Known,
}

/// What an object or array is to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Batch,
    Message,
    Result,
    List(Kind),
    Item(Kind),
    Elsewhere,
}

const MESSAGE: [(&str, Field); 5] = [
    ("jsonrpc", Field::Jsonrpc),
    ("id", Field::Id),
    ("method", Field::Method),
    ("result", Field::Result),
    ("error", Field::Error),
];
const RESULT: [(&str, Field); 8] = [
    ("tools", Field::List(Kind::Tool)),
    ("prompts", Field::List(Kind::Prompt)),
    ("resources", Field::List(Kind::Resource)),
    ("resourceTemplates", Field::List(Kind::Template)),
    ("cacheScope", Field::CacheScope),
    ("instructions", Field::Instructions),
    ("protocolVersion", Field::Greeting(Greeting::Initialize)),
    ("supportedVersions", Field::Greeting(Greeting::Discover)),
];
/// Of items, beside what they are named by: what an agent is told of them.
const ITEM: [&str; 6] = ["title", "description", "inputSchema", "outputSchema", "annotations", "icons"];

/// The member that a key is, or would be to a reader that ignores case.
fn known(place: Place, key: &str) -> Option<(&'static str, Field)> {
    let find = |all: &[(&'static str, Field)]| {
        let exact = all.iter().find(|(name, _)| *name == key);
        exact.or_else(|| all.iter().find(|(name, _)| same_but_for_case(name, key))).copied()
    };
    match place {
        Place::Message => find(&MESSAGE),
        Place::Result => find(&RESULT),
        Place::Item(kind) => {
            let name = kind.key();
            let mut others = ITEM.iter().map(|name| (*name, Field::Known));
            let named = (key == name || same_but_for_case(name, key)).then_some((name, Field::Name));
            named.or_else(|| others.find(|(name, _)| *name == key || same_but_for_case(name, key)))
        }
        _ => None,
    }
}

/// An object or array that is open.
struct Level {
    place: Place,
    object: bool,
    field: Option<Field>,
    start: usize,
}

/// The members of one message that are looked at.
#[derive(Default)]
struct Draft<'a> {
    answer: Answer<'a>,
    speaks_2_0: bool,
    /// How many of method, result and error there are.
    says: u8,
    greeting: Option<Greeting>,
    instructions: Option<Cow<'a, str>>,
    /// Of the item that is open.
    name: Option<Cow<'a, str>>,
}

struct Reader<'a> {
    text: &'a str,
    tokens: Tokens<'a>,
    levels: Vec<Level>,
    keys: Keys<'a>,
    field: Option<Field>,
    draft: Draft<'a>,
    answers: Vec<Answer<'a>>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            tokens: Tokens::new(text),
            levels: Vec::with_capacity(8),
            keys: Keys::default(),
            field: None,
            draft: Draft::default(),
            answers: Vec::new(),
        }
    }

    fn read(mut self) -> Result<Document<'a>, (Fault, usize)> {
        loop {
            let token = self.tokens.next().map_err(|fault| (fault, self.tokens.at()))?;
            let Some(token) = token else { break };
            let at = self.tokens.span().start;
            self.take(token).map_err(|fault| (fault, at))?;
        }
        if self.answers.is_empty() {
            return Err((Fault::EmptyBatch, 0));
        }
        Ok(Document { text: self.text, answers: self.answers })
    }

    fn take(&mut self, token: Token) -> Result<(), Fault> {
        let span = self.tokens.span();
        match token {
            Token::Open(kind) => self.open(kind == Type::Object, span.start),
            Token::Close => self.close(span.end),
            Token::Key(escaped) => self.key(span, escaped),
            Token::Scalar(kind) => self.scalar(kind, span),
        }
    }

    fn place(&self) -> Option<Place> {
        self.levels.last().map(|level| level.place)
    }

    fn open(&mut self, object: bool, start: usize) -> Result<(), Fault> {
        let field = self.field.take();
        let place = match (self.place(), object, field) {
            (None, false, _) => Place::Batch,
            (None | Some(Place::Batch), true, _) => {
                self.draft = Draft::default();
                Place::Message
            }
            (Some(Place::Batch), false, _) => {
                return Err(Fault::NotAMessage("each element of a batch is an object"));
            }
            (Some(Place::Message), true, Some(Field::Result)) => Place::Result,
            (Some(Place::Message), _, Some(Field::Jsonrpc | Field::Method)) => {
                return Err(Fault::NotAMessage("a message has a version and a method that are strings"));
            }
            (Some(Place::Result), false, Some(Field::List(kind))) => {
                self.draft.answer.lists.push(List { items: Vec::new() });
                Place::List(kind)
            }
            (Some(Place::Result), _, Some(Field::Instructions)) => return Err(NO_TEXT),
            (Some(Place::List(kind)), true, _) => {
                self.draft.name = None;
                Place::Item(kind)
            }
            (Some(Place::List(_)), false, _) => return Err(NO_ITEM),
            (Some(Place::Item(_)), _, Some(Field::Name)) => return Err(NO_NAME),
            _ => Place::Elsewhere,
        };
        if object {
            self.keys.open();
        }
        self.levels.push(Level { place, object, field, start });
        Ok(())
    }

    fn close(&mut self, end: usize) -> Result<(), Fault> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        if level.object {
            self.keys.close();
        }
        match (level.place, level.field) {
            (Place::Item(kind), _) => {
                let name = self.draft.name.take().ok_or(NO_NAME)?;
                let text = self.text.get(level.start..end).unwrap_or_default();
                if let Some(list) = self.draft.answer.lists.last_mut() {
                    list.items.push((level.start..end, Item { kind, name, text }));
                }
            }
            (Place::Message, _) => self.message()?,
            (_, Some(Field::Result | Field::Error)) => self.draft.says += 1,
            (_, Some(Field::Greeting(greeting))) => self.draft.greeting = Some(greeting),
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self) -> Result<(), Fault> {
        let draft = std::mem::take(&mut self.draft);
        if !draft.speaks_2_0 {
            return Err(Fault::NotAMessage("a message has the member `jsonrpc` with the value \"2.0\""));
        }
        if draft.says != 1 {
            return Err(Fault::NotAMessage("a message has either a method, or a result, or an error"));
        }
        if self.answers.len() == MAX_BATCH {
            return Err(Fault::LongBatch);
        }
        let mut answer = draft.answer;
        let greeting = draft.greeting.or(draft.instructions.as_ref().map(|_| Greeting::Initialize));
        answer.introduction = greeting.map(|greeting| Introduction { greeting, instructions: draft.instructions });
        self.answers.push(answer);
        Ok(())
    }

    fn key(&mut self, span: Range<usize>, escaped: bool) -> Result<(), Fault> {
        let quoted = self.text.get(span).unwrap_or_default();
        let key = unquoted(quoted, escaped).ok_or(Fault::UnreadableKey)?;
        let found = self.place().and_then(|place| known(place, &key));
        self.field = found.map(|(_, field)| field);
        if let Some((name, _)) = found.filter(|(name, _)| *name != key) {
            return Err(Fault::KeyCase(name));
        }
        self.keys.add(key)
    }

    fn scalar(&mut self, kind: Type, span: Range<usize>) -> Result<(), Fault> {
        let field = self.field.take();
        let text = self.text.get(span.clone()).unwrap_or_default();
        let string = || match kind {
            Type::String(escaped) => unquoted(text, escaped),
            _ => None,
        };
        match (self.place(), field) {
            (None, _) => return Err(Fault::NotAMessage("a message is an object")),
            (Some(Place::Batch), _) => return Err(Fault::NotAMessage("each element of a batch is an object")),
            (Some(Place::List(_)), _) => return Err(NO_ITEM),
            (_, Some(Field::Jsonrpc)) => self.draft.speaks_2_0 = string().is_some_and(|version| version == "2.0"),
            (_, Some(Field::Method)) if string().is_none() => return Err(Fault::NotAMessage("a method is a string")),
            (_, Some(Field::Method | Field::Result | Field::Error)) => self.draft.says += 1,
            (_, Some(Field::Name)) => self.draft.name = Some(string().ok_or(NO_NAME)?),
            (_, Some(Field::Greeting(greeting))) => self.draft.greeting = Some(greeting),
            (_, Some(Field::CacheScope)) if string().is_none_or(|scope| scope != "private") => {
                self.draft.answer.shared_scope = Some(span);
            }
            (_, Some(Field::Instructions)) if kind != Type::Null => {
                self.draft.instructions = Some(string().ok_or(NO_TEXT)?);
                self.draft.answer.instructions = span;
            }
            _ => {}
        }
        Ok(())
    }
}

const NO_ITEM: Fault = Fault::NotAMessage("each element of a list is an object");
const NO_NAME: Fault = Fault::NotAMessage("each item of a list has a name that is a string");
const NO_TEXT: Fault = Fault::NotAMessage("instructions are a string");

#[cfg(test)]
#[path = "list/tests.rs"]
mod tests;
