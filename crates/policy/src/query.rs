//! What is asked.

use sortie_identity::Caller;

/// One thing that a caller wants to do.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// The name of the route.
    pub route: &'a str,
    /// What.
    pub act: Act<'a>,
    /// `params.arguments` exactly as sent, JSON without duplicate keys. Looked at for tools only, and only where a policy
    /// needs facts of them.
    pub arguments: Option<&'a str>,
    /// Seconds since 1970.
    pub now: i64,
    /// The region of this gateway.
    pub region: Option<&'a str>,
    /// How often this caller did this lately; filled only if [`Engine::counts`](crate::Engine::counts).
    pub counts: Counts,
}

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act<'a> {
    /// A request or notification of MCP.
    Mcp {
        /// Its method, as decoded.
        method: &'a str,
        /// What it names: of `tools/call`, `prompts/get`, `resources/read` and subscriptions to resources.
        target: Option<Target<'a>>,
    },
    /// A message of MCP without a method: the answer to a request of the server.
    Answer,
    /// The stream of what the server sends by itself (GET).
    Stream,
    /// The end of a session (DELETE).
    EndSession,
    /// A request to a route that is not MCP.
    Http {
        /// Its method.
        method: &'a str,
        /// Its path, without the query.
        path: &'a str,
    },
}

/// What a message of MCP names. Names are compared exactly as decoded, without Unicode normalisation: a look-alike is
/// another name, and as such denied unless it is permitted itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target<'a> {
    /// A tool, by its name.
    Tool(&'a str),
    /// A resource, by its URI.
    Resource(&'a str),
    /// A prompt, by its name.
    Prompt(&'a str),
}

/// How often this caller did this to this target, this time not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In the last 60 seconds.
    pub minute: u32,
    /// In the last 3600 seconds.
    pub hour: u32,
    /// In the last 86400 seconds.
    pub day: u32,
}
