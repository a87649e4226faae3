//! One strict look at a request body: the JSON-RPC 2.0 messages of MCP in it, borrowed, or why it is not one.
//!
//! Two programs that read the same bytes differently are a way around whoever judged first. What such differences are
//! made of is therefore refused, in the whole document: text that is not UTF-8, a byte order mark, a key that comes
//! twice (escapes undone), a key that differs from a known one only in its case, more than [`MAX_DEPTH`] levels or
//! [`MAX_MEMBERS`] members, bytes behind the end. Members that are not known are kept. Nothing is ever written anew: a
//! caller forwards the bytes that were judged.
//!
//! Pure; time and memory are linear in the body, whose size is the caller's to bound; no recursion. The keys of an object
//! with many are kept in a hash set with a random seed.

pub(crate) mod keys;
pub(crate) mod tokens;

use std::borrow::Cow;

use serde_json::value::RawValue;

pub use self::keys::MAX_MEMBERS;
use self::keys::{Keys, known};
pub use self::tokens::MAX_DEPTH;
use self::tokens::{Kind, Token, Tokens};

/// Most messages of one batch.
pub const MAX_BATCH: usize = 1000;
/// The member of `_meta` that names the protocol version of one request (MCP 2026-07-28).
pub const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";

/// Why a body is not taken for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not UTF-8 (RFC 8259, section 8.1).
    #[error("it is not UTF-8")]
    NotUtf8,
    /// It begins with a byte order mark (RFC 8259, section 8.1).
    #[error("it begins with a byte order mark")]
    ByteOrderMark,
    /// There is nothing but blanks.
    #[error("it is empty")]
    Empty,
    /// It is not JSON here.
    #[error("it is not JSON: expected {0}")]
    Syntax(&'static str),
    /// It ends in the middle.
    #[error("it is not complete")]
    Truncated,
    /// Something follows the document.
    #[error("something follows the end of the document")]
    Trailing,
    /// Objects and arrays lie in each other beyond [`MAX_DEPTH`].
    #[error("objects and arrays lie in each other more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A key comes twice in one object, escapes undone.
    #[error("a key comes twice in one object")]
    DuplicateKey,
    /// An object with more than [`MAX_MEMBERS`] members.
    #[error("an object has more than {MAX_MEMBERS} members")]
    LongObject,
    /// A key stands for no text: half a surrogate pair.
    #[error("a key is not text: it holds half a surrogate pair")]
    UnreadableKey,
    /// A key is one of MCP's but for its case.
    #[error("a key differs from `{0}` only in its case")]
    KeyCase(&'static str),
    /// It is JSON, but no message.
    #[error("{0}")]
    NotAMessage(&'static str),
    /// An array without messages.
    #[error("the batch is empty")]
    EmptyBatch,
    /// An array with more than [`MAX_BATCH`] messages.
    #[error("the batch has more than {MAX_BATCH} messages")]
    LongBatch,
}

impl Fault {
    /// The code by which servers tell of this fault: -32700 (parse error) or -32600 (invalid request), JSON-RPC 2.0,
    /// section 5.1.
    pub fn code(self) -> i32 {
        match self {
            Self::NotUtf8
            | Self::ByteOrderMark
            | Self::Empty
            | Self::Syntax(_)
            | Self::Truncated
            | Self::Trailing
            | Self::TooDeep => -32700,
            _ => -32600,
        }
    }

    /// Whether nothing more can be read behind this fault.
    pub(crate) fn ends_it(self) -> bool {
        self.code() == -32700
    }
}

/// A body that was not taken, and what could be seen of it.
#[derive(Debug, thiserror::Error)]
#[error("{fault} (byte {at})")]
pub struct Refused {
    /// The first fault.
    pub fault: Fault,
    /// Where it was seen, in bytes from the beginning.
    pub at: usize,
    /// The id to answer with: that of a single message of JSON-RPC 2.0, if it was seen and is clear.
    pub id: Option<Box<RawValue>>,
    /// Whether the document, or an element of it, has a member `jsonrpc` in any case; where the fault hid the rest,
    /// whether it may have one.
    pub speaks_jsonrpc: bool,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// A method and an id.
    Request,
    /// A method without an id.
    Notification,
    /// A result or an error.
    Response,
}

/// A JSON-RPC 2.0 message of MCP. All of it is borrowed from the body, where it needs no change.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    /// What it is.
    pub kind: MessageKind,
    /// The id exactly as sent: a string or a number that has a value. `None` for notifications, and for the answer to
    /// a request whose id was not understood.
    pub id: Option<&'a RawValue>,
    /// The method. `Some` for requests and notifications.
    pub method: Option<Cow<'a, str>>,
    /// `params.name`, if it is a string.
    pub name: Option<Cow<'a, str>>,
    /// `params.uri`, if it is a string.
    pub uri: Option<Cow<'a, str>>,
    /// `params.taskId`, if it is a string.
    pub task_id: Option<Cow<'a, str>>,
    /// The protocol version in `params._meta`: with one, the message is of the modern era (2026-07-28 and later).
    pub protocol_version: Option<Cow<'a, str>>,
    /// `params._meta.progressToken` exactly as sent, if it is a string or a number.
    pub progress_token: Option<&'a RawValue>,
    params: Option<&'a str>,
    arguments: Option<&'a str>,
}

impl<'a> Message<'a> {
    /// `params` exactly as sent: an object. A pass over its bytes.
    pub fn params(&self) -> Option<&'a RawValue> {
        self.params.and_then(raw)
    }

    /// The text of `params.arguments` exactly as sent, whatever it is. Costs nothing.
    pub fn arguments_text(&self) -> Option<&'a str> {
        self.arguments
    }

    /// `params.arguments` exactly as sent, whatever it is. A pass over its bytes.
    pub fn arguments(&self) -> Option<&'a RawValue> {
        self.arguments.and_then(raw)
    }
}

/// The messages of one body.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// One message.
    Single(Message<'a>),
    /// An array of 1 to [`MAX_BATCH`] messages.
    Batch(Vec<Message<'a>>),
}

impl<'a> Body<'a> {
    /// All messages, in order.
    pub fn messages(&self) -> &[Message<'a>] {
        match self {
            Self::Single(message) => std::slice::from_ref(message),
            Self::Batch(messages) => messages,
        }
    }

    /// The id to answer with: that of a single request.
    pub fn request_id(&self) -> Option<Box<RawValue>> {
        match self {
            Self::Single(Message { kind: MessageKind::Request, id, .. }) => id.map(ToOwned::to_owned),
            _ => None,
        }
    }
}

/// Reads a body strictly.
///
/// # Errors
/// It is not one message of MCP or a batch of them; see [`Fault`].
pub fn parse(body: &[u8]) -> Result<Body<'_>, Refused> {
    let refused = |fault, at| Err(Refused { fault, at, id: None, speaks_jsonrpc: keys::may_speak_jsonrpc(body) });
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => return refused(Fault::NotUtf8, error.valid_up_to()),
    };
    if text.starts_with('\u{feff}') {
        return refused(Fault::ByteOrderMark, 0);
    }
    Reader::new(text).read()
}

/// The id in the first part of a body whose rest is not there, as [`Refused::id`].
pub fn id_in_part(part: &[u8]) -> Option<Box<RawValue>> {
    let whole = part.utf8_chunks().next()?.valid();
    match Reader::new(whole).read() {
        Ok(body) => body.request_id(),
        Err(refused) => refused.id,
    }
}

/// Whether a body can have a member `jsonrpc` in any case and spelling: a quick look, made for a document that need not
/// be JSON. `false` is certain.
pub fn may_speak_jsonrpc(body: &[u8]) -> bool {
    keys::may_speak_jsonrpc(body)
}

/// Where in a message a member lies whose value is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Jsonrpc,
    Id,
    Method,
    Params,
    Result,
    Error,
    Name,
    Uri,
    TaskId,
    Arguments,
    Meta,
    ProgressToken,
    Version,
}

/// What an object or array is to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Batch,
    Message,
    Params,
    Meta,
    Elsewhere,
}

/// The text and kind of a value.
#[derive(Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    kind: Kind,
}

impl<'a> Part<'a> {
    /// The string that it is. `Err` for a string without a value: half a surrogate pair.
    fn string(self) -> Result<Option<Cow<'a, str>>, Fault> {
        let Kind::String(escaped) = self.kind else { return Ok(None) };
        unquoted(self.text, escaped).map(Some).ok_or(Fault::NotAMessage("a string of the message has no value"))
    }

    /// What can be an id or a token: a string or a number that has a value.
    fn scalar(self) -> Option<&'a RawValue> {
        let has_value = match self.kind {
            Kind::String(escaped) => unquoted(self.text, escaped).is_some(),
            Kind::Number => self.text.parse::<f64>().is_ok_and(f64::is_finite),
            _ => false,
        };
        if has_value { raw(self.text) } else { None }
    }
}

/// A string without its quotes, escapes undone; `None` if that is no text.
pub(crate) fn unquoted(quoted: &str, escaped: bool) -> Option<Cow<'_, str>> {
    if escaped {
        return serde_json::from_str(quoted).ok().map(Cow::Owned);
    }
    quoted.strip_prefix('"')?.strip_suffix('"').map(Cow::Borrowed)
}

fn raw(text: &str) -> Option<&RawValue> {
    serde_json::from_str(text).ok()
}

/// The members of one message that are looked at.
#[derive(Clone, Copy, Default)]
struct Draft<'a> {
    jsonrpc: Option<Part<'a>>,
    id: Option<Part<'a>>,
    method: Option<Part<'a>>,
    params: Option<Part<'a>>,
    result: Option<Part<'a>>,
    error: Option<Part<'a>>,
    name: Option<Part<'a>>,
    uri: Option<Part<'a>>,
    task_id: Option<Part<'a>>,
    arguments: Option<Part<'a>>,
    meta: Option<Part<'a>>,
    progress_token: Option<Part<'a>>,
    version: Option<Part<'a>>,
    /// The id came twice.
    two_ids: bool,
}

impl<'a> Draft<'a> {
    fn set(&mut self, field: Field, part: Part<'a>) {
        let slot = match field {
            Field::Jsonrpc => &mut self.jsonrpc,
            Field::Id => {
                self.two_ids = self.id.is_some();
                &mut self.id
            }
            Field::Method => &mut self.method,
            Field::Params => &mut self.params,
            Field::Result => &mut self.result,
            Field::Error => &mut self.error,
            Field::Name => &mut self.name,
            Field::Uri => &mut self.uri,
            Field::TaskId => &mut self.task_id,
            Field::Arguments => &mut self.arguments,
            Field::Meta => &mut self.meta,
            Field::ProgressToken => &mut self.progress_token,
            Field::Version => &mut self.version,
        };
        *slot = Some(part);
    }

    fn speaks_2_0(&self) -> bool {
        self.jsonrpc.is_some_and(|part| part.string().is_ok_and(|version| version.as_deref() == Some("2.0")))
    }

    /// The id to answer with, of a message that need not be whole.
    fn answer_id(&self) -> Option<Box<RawValue>> {
        let clear = self.speaks_2_0() && !self.two_ids && self.result.is_none() && self.error.is_none();
        if clear { self.id?.scalar().map(ToOwned::to_owned) } else { None }
    }

    fn message(self) -> Result<Message<'a>, Fault> {
        let wrong = |reason| Err(Fault::NotAMessage(reason));
        if !self.speaks_2_0() {
            return wrong("a message has the member `jsonrpc` with the value \"2.0\"");
        }
        let kind = match (self.method, self.id, self.result, self.error) {
            (Some(_), Some(_), None, None) => MessageKind::Request,
            (Some(_), None, None, None) => MessageKind::Notification,
            (None, _, Some(_), None) | (None, _, None, Some(_)) => MessageKind::Response,
            _ => return wrong("a message has either a method, or a result, or an error"),
        };
        let id = match self.id {
            None => None,
            // The answer to what was not understood (JSON-RPC 2.0, section 5).
            Some(Part { kind: Kind::Null, .. }) if self.error.is_some() => None,
            Some(part) => match part.scalar() {
                None => return wrong("an id is a string or a number that has a value"),
                id => id,
            },
        };
        if id.is_none() && self.result.is_some() {
            return wrong("a result has an id");
        }
        let string = |part: Option<Part<'a>>| part.map_or(Ok(None), Part::string);
        let method = string(self.method)?;
        if method.is_none() && self.method.is_some() {
            return wrong("a method is a string");
        }
        if !matches!(self.params.map(|part| part.kind), None | Some(Kind::Object | Kind::Null)) {
            return wrong("params are an object");
        }
        let protocol_version = string(self.version)?;
        if protocol_version.is_none() && self.version.is_some() {
            return wrong("the protocol version in `_meta` is a string");
        }
        Ok(Message {
            kind,
            id,
            method,
            name: string(self.name)?,
            uri: string(self.uri)?,
            task_id: string(self.task_id)?,
            protocol_version,
            progress_token: self.progress_token.and_then(Part::scalar),
            params: self.params.filter(|part| part.kind == Kind::Object).map(|part| part.text),
            arguments: self.arguments.map(|part| part.text),
        })
    }
}

/// An object or array that is open.
struct Level {
    place: Place,
    kind: Kind,
    /// What it is to the message around it.
    field: Option<Field>,
    /// Its first byte.
    start: usize,
}

/// One pass over a document. Faults that do not hide the rest are noted, the first one counts.
struct Reader<'a> {
    text: &'a str,
    tokens: Tokens<'a>,
    levels: Vec<Level>,
    keys: Keys<'a>,
    /// The member that the next value belongs to.
    field: Option<Field>,
    draft: Draft<'a>,
    batch: bool,
    done: Vec<Message<'a>>,
    fault: Option<(Fault, usize)>,
    speaks_jsonrpc: bool,
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
            batch: false,
            done: Vec::new(),
            fault: None,
            speaks_jsonrpc: false,
        }
    }

    fn read(mut self) -> Result<Body<'a>, Refused> {
        loop {
            match self.tokens.next() {
                Ok(Some(token)) => self.take(token),
                Ok(None) => break,
                Err(fault) => {
                    self.note(fault, self.tokens.at());
                    self.speaks_jsonrpc |= keys::may_speak_jsonrpc(self.text.as_bytes());
                    break;
                }
            }
        }
        if self.batch && self.done.is_empty() && self.fault.is_none() {
            self.note(Fault::EmptyBatch, 0);
        }
        if let Some((fault, at)) = self.fault {
            let id = if self.batch { None } else { self.draft.answer_id() };
            return Err(Refused { fault, at, id, speaks_jsonrpc: self.speaks_jsonrpc });
        }
        if self.batch {
            return Ok(Body::Batch(self.done));
        }
        let message = self.done.pop();
        Ok(Body::Single(message.expect("a document without a fault that is no batch is one message")))
    }

    fn take(&mut self, token: Token) {
        let span = self.tokens.span();
        match token {
            Token::Open(kind) => self.open(kind, span.start),
            Token::Close => self.close(span.end),
            Token::Key(escaped) => self.key(self.slice(span.start, span.end), escaped, span.start),
            Token::Scalar(kind) => {
                let text = self.slice(span.start, span.end);
                match self.levels.last().map(|level| level.place) {
                    None => self.note(Fault::NotAMessage("a message is an object"), span.start),
                    Some(Place::Batch) => {
                        self.note(Fault::NotAMessage("each element of a batch is an object"), span.start);
                    }
                    Some(_) => self.set(Part { text, kind }),
                }
            }
        }
    }

    fn open(&mut self, kind: Kind, start: usize) {
        let field = self.field.take();
        let place = match (self.levels.last().map(|level| level.place), kind, field) {
            (None, Kind::Array, _) => {
                self.batch = true;
                Place::Batch
            }
            (None | Some(Place::Batch), Kind::Object, _) => {
                self.draft = Draft::default();
                Place::Message
            }
            (Some(Place::Batch), ..) => {
                self.note(Fault::NotAMessage("each element of a batch is an object"), start);
                Place::Elsewhere
            }
            (Some(Place::Message), Kind::Object, Some(Field::Params)) => Place::Params,
            (Some(Place::Params), Kind::Object, Some(Field::Meta)) => Place::Meta,
            _ => Place::Elsewhere,
        };
        if kind == Kind::Object {
            self.keys.open();
        }
        self.levels.push(Level { place, kind, field, start });
    }

    fn close(&mut self, end: usize) {
        let Some(level) = self.levels.pop() else { return };
        if level.kind == Kind::Object {
            self.keys.close();
        }
        self.field = level.field;
        let text = self.slice(level.start, end);
        self.set(Part { text, kind: level.kind });
        if level.place != Place::Message {
            return;
        }
        if self.done.len() == MAX_BATCH {
            self.note(Fault::LongBatch, level.start);
        } else if self.fault.is_none() {
            match self.draft.message() {
                Ok(message) => self.done.push(message),
                Err(fault) => self.note(fault, level.start),
            }
        }
    }

    fn key(&mut self, quoted: &'a str, escaped: bool, at: usize) {
        let Some(key) = unquoted(quoted, escaped) else {
            return self.note(Fault::UnreadableKey, at);
        };
        let place = self.levels.last().map_or(Place::Elsewhere, |level| level.place);
        if let Some((name, field)) = known(place, &key) {
            self.speaks_jsonrpc |= field == Field::Jsonrpc;
            self.field = Some(field);
            if key != name {
                self.field = None;
                self.note(Fault::KeyCase(name), at);
            }
        }
        if let Err(fault) = self.keys.add(key) {
            self.note(fault, at);
        }
    }

    fn set(&mut self, part: Part<'a>) {
        if let Some(field) = self.field.take() {
            self.draft.set(field, part);
        }
    }

    fn note(&mut self, fault: Fault, at: usize) {
        // What ends the reading says more than what was wrong before: it is not JSON at all.
        match self.fault {
            Some((known, _)) if known.ends_it() || !fault.ends_it() => {}
            _ => self.fault = Some((fault, at)),
        }
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        self.text.get(start..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
