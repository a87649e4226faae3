//! Why a call from the command line has no answer: one sentence with the hop and the next step.

use sortie_api::Hop;

/// A listing or call that came to nothing. Text from the other side is cut, and its control characters are escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL is not one.
    #[error("`{url}` is not an http or https URL of an MCP endpoint: {reason}")]
    Url {
        /// As given.
        url: String,
        /// Why.
        reason: String,
    },
    /// The key would travel in the clear to another machine.
    #[error("`{url}` is plain http to another machine: the key would be readable on the way, use https")]
    PlainHttp {
        /// As given.
        url: String,
    },
    /// The certificates to trust cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The port is closed.
    #[error("nothing listens at {url}: is the hub running? (`sortie up`)")]
    NothingListens {
        /// As given.
        url: String,
    },
    /// The certificate does not chain to what is trusted.
    #[error("the certificate of {url} is not trusted: name the hub's CA certificate")]
    Untrusted {
        /// As given.
        url: String,
        /// What the TLS library says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There was no exchange at all.
    #[error("cannot reach {url}: check the name, the port and the network")]
    Unreachable {
        /// As given.
        url: String,
        /// What the HTTP library says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The endpoint takes connections and says nothing.
    #[error("{url} did not answer within {seconds} s: look at the hub's logs")]
    Silent {
        /// As given.
        url: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Sortie ended the call at a hop.
    #[error("the call ended at `{}`: {reason}: {}", hop.as_str(), next_step(*hop, *status))]
    Hop {
        /// Where.
        hop: Hop,
        /// HTTP status; 200 where the error came inside an answer.
        status: u16,
        /// Why, in Sortie's words.
        reason: String,
    },
    /// An answer that is neither MCP nor one of Sortie's errors.
    #[error("{url} answered HTTP {status}: {}", status_step(*status))]
    Status {
        /// As given.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server wants the client to go elsewhere, and the key must not go with it.
    #[error(
        "{url} answered with a redirect (HTTP {status}), which is not followed: use the URL of the endpoint itself"
    )]
    Redirect {
        /// As given.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The MCP server refused the request.
    #[error("the MCP server refused the request: {message} (code {code})")]
    Server {
        /// JSON-RPC code.
        code: i32,
        /// In the server's words.
        message: String,
    },
    /// The tool wants to ask something first.
    #[error(
        "the tool `{tool}` asks for more input or runs as a task, which the command line cannot do: use an MCP client that can"
    )]
    Interactive {
        /// Its name.
        tool: String,
    },
    /// The connection ended in the middle.
    #[error("the connection to {url} broke before the answer was whole: the call may have run, and is not repeated")]
    Broken {
        /// As given.
        url: String,
    },
    /// An answer that no MCP server gives.
    #[error("{url} does not speak MCP as expected: {reason}")]
    Protocol {
        /// As given.
        url: String,
        /// What was wrong.
        reason: String,
    },
}

/// What to do about a failure at a hop.
pub(crate) fn next_step(hop: Hop, status: u16) -> &'static str {
    match (hop, status) {
        (_, 504) => "the deadline passed, raise the route's deadline or ask for less",
        (_, 413) => "the request is too large for the route",
        (Hop::Edge, _) => "is the edge running, and is the host name one of the tunnel's?",
        (Hop::Link, _) => "is the gateway running? (`sortie gateway`, or `sortie up`)",
        (Hop::InnerTls, _) => "is the gateway's CA registered on the tunnel, and its certificate still valid?",
        (Hop::Identity, _) => "check the key (`sortie keys`)",
        (Hop::Route, _) => "check the route's name (`sortie routes`)",
        (Hop::Policy, _) => "the key's grant or the gateway's policy does not allow it",
        (Hop::Audit, _) => "the gateway's audit log does not take records, look at its log and its disk",
        (Hop::UpstreamConnect, _) => "is the MCP server behind the route running?",
        (Hop::Upstream, _) => "look at the logs of the MCP server behind the route",
    }
}

/// What to do about a status without an explanation.
fn status_step(status: u16) -> &'static str {
    match status {
        401 | 403 => "check the key",
        404 | 405 => "there is no MCP endpoint at this path, check the URL",
        421 => "it does not serve this host name, check the URL",
        429 => "too many requests, try again later",
        500..=599 => "it failed, look at its logs",
        _ => "this is no MCP endpoint, check the URL",
    }
}

/// Text from the other side, fit for a terminal: bounded, and without control characters.
pub(crate) fn clean(text: &str) -> String {
    const LONGEST: usize = 1000;
    let mut out = String::new();
    for c in text.chars().take(LONGEST) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}
