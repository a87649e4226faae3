//! What is said on the control stream: one JSON object a line.
//!
//! Unknown fields are ignored and unknown messages skipped, so that either side may be newer. Lines are at most
//! [`MAX_LINE`] bytes.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sortie_ids::{LinkId, RouteName};

/// The protocol version spoken here.
pub const VERSION: u32 = 1;
/// Longest line on the control stream, in bytes.
pub const MAX_LINE: usize = 64 * 1024;
/// Most routes that a gateway may announce.
pub const MAX_ROUTES: usize = 1024;

/// The feature of an edge that takes [`FromGateway::Checkpoint`].
pub const CHECKPOINTS: &str = "checkpoints";

/// Header of a stream: its number on this link, from 1.
pub(crate) const STREAM_ID: &str = "sortie-stream-id";
/// Header of a stream: how many bytes of it the sender has had already. Always 0 until streams are resumed.
pub(crate) const STREAM_OFFSET: &str = "sortie-stream-offset";
/// Header of a stream: [`Kind`].
pub(crate) const STREAM_KIND: &str = "sortie-stream-kind";
/// Path of the control stream.
pub(crate) const CONTROL_PATH: &str = "https://link.invalid/sortie-link/1/control";

/// Whose TLS connection a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The hub's inner TLS: carries calls with the hub's signed identity.
    Hub,
    /// A client's own TLS, passed on by its SNI.
    Sealed,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::Hub => "hub",
            Kind::Sealed => "sealed",
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"hub" => Some(Kind::Hub),
            b"sealed" => Some(Kind::Sealed),
            _ => None,
        }
    }
}

/// The edge's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeHello {
    /// Protocol version.
    pub version: u32,
    /// Names of optional behaviour that this side supports.
    #[serde(default)]
    pub features: Vec<String>,
    /// Identifies the running edge process: streams can only ever be resumed with the same one.
    pub edge_instance: String,
    /// Identifies this link in logs of both sides.
    pub link_id: LinkId,
}

/// The gateway's first line.
#[derive(Clone, Serialize, Deserialize)]
pub struct GatewayHello {
    /// Protocol version.
    pub version: u32,
    /// Names of optional behaviour that this side supports.
    #[serde(default)]
    pub features: Vec<String>,
    /// The tunnel token.
    pub token: String,
    /// Identifies the running gateway process.
    pub gateway_instance: String,
    /// Version of the gateway's program, for people.
    #[serde(default)]
    pub software: String,
    /// What it serves.
    #[serde(default)]
    pub routes: Vec<Route>,
}

impl std::fmt::Debug for GatewayHello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayHello")
            .field("version", &self.version)
            .field("gateway_instance", &self.gateway_instance)
            .field("software", &self.software)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

/// A route as the edge needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its name.
    pub name: RouteName,
    /// Who ends the client's TLS.
    pub mode: RouteMode,
}

/// Who ends the client's TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMode {
    /// The hub: it authenticates the client by key and speaks inner TLS to the gateway.
    #[default]
    Terminated,
    /// The gateway: the edge passes the client's TLS on unread.
    Sealed,
}

/// Whether these routes can be announced: in one line of the control stream, with room for the rest of a hello.
pub fn fits(routes: &[Route]) -> bool {
    serde_json::to_vec(routes).is_ok_and(|text| text.len() <= MAX_LINE - 4096)
}

/// What the edge says after the hellos.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromEdge {
    /// The token is good: the link serves.
    Welcome {
        /// The tunnel's domain.
        domain: String,
        /// How the keys have changed that the hub signs callers' identities with, oldest first. The gateway believes
        /// only what a key signed that it knows already.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        identity_keys: Vec<String>,
    },
    /// The hub's keys have changed.
    IdentityKeys {
        /// As in [`FromEdge::Welcome`].
        announcements: Vec<String>,
    },
    /// The link is refused and will be closed.
    Refused {
        /// Why.
        reason: String,
        /// Whether trying again with the same token can succeed.
        retry: bool,
    },
    /// How a probe ended.
    ProbeResult {
        /// The probe's number.
        id: u64,
        /// `None` when it came through.
        failure: Option<ProbeFailure>,
    },
    /// What became of a published checkpoint.
    CheckpointResult {
        /// What the hub says.
        verdict: CheckpointVerdict,
    },
    /// No new streams will come; connect elsewhere.
    Draining,
    /// Said by a newer edge.
    #[serde(other)]
    Unknown,
}

/// Where and why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFailure {
    /// The hop.
    pub hop: String,
    /// The reason.
    pub reason: String,
}

/// What the hub says to a published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CheckpointVerdict {
    /// It is kept, or was before.
    Kept,
    /// The hub has one of so many records, and wants the proof that this one continues it.
    Prove {
        /// How many.
        from: u64,
    },
    /// It is not kept, and never will be.
    Refused {
        /// Why, in one sentence.
        reason: String,
    },
    /// It cannot be kept now.
    Later,
    /// Said by a newer hub.
    #[serde(other)]
    Unknown,
}

/// The newest signed checkpoint of a gateway's audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedNote {
    /// What it is verified with: NAME+HASH+KEY (C2SP signed-note).
    pub key: String,
    /// The note (C2SP tlog-checkpoint).
    pub note: String,
    /// That it continues an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ContinuityProof>,
}

/// That a log continues an earlier checkpoint of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinuityProof {
    /// How many records the earlier one stands for.
    pub from: u64,
    /// The hashes of the proof (RFC 9162 section 2.1.4), 64 hexadecimal digits each, at most 64. `None` when there can be
    /// no proof any more, since the records behind the earlier one were moved away.
    pub hashes: Option<Vec<String>>,
}

/// What the gateway says after the hellos.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromGateway {
    /// Asks for a call through the whole path to this gateway.
    Probe {
        /// Number to answer with.
        id: u64,
        /// The route that the probe goes by.
        route: RouteName,
    },
    /// The routes have changed.
    Routes {
        /// All of them.
        routes: Vec<Route>,
    },
    /// Publishes a checkpoint of its audit log. Only for an edge with the feature [`CHECKPOINTS`]; at most one that was
    /// not answered yet.
    Checkpoint(PublishedNote),
    /// It is stopping: what runs may end, and nothing more should be begun on this link or on connections in it.
    Draining,
    /// Said by a newer gateway.
    #[serde(other)]
    Unknown,
}

/// Splits the control stream into lines, within bounds, and looks at each byte once: a peer may send them one by one.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    buffer: BytesMut,
    /// How much of the buffer is known to hold no end of a line.
    looked_at: usize,
}

impl Lines {
    /// Takes what arrived; an error when it is more than four lines may have. To be called when [`Lines::pop`] has
    /// nothing more.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.buffer.extend_from_slice(bytes);
        if self.looked_at > MAX_LINE || self.buffer.len() > 4 * MAX_LINE {
            return Err("a control line is too long");
        }
        Ok(())
    }

    /// The next whole line, without its end.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let new = self.buffer.get(self.looked_at..).unwrap_or_default();
        let Some(end) = new.iter().position(|b| *b == b'\n') else {
            self.looked_at = self.buffer.len();
            return None;
        };
        let end = self.looked_at + end;
        self.looked_at = 0;
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        Some(line)
    }
}

/// Longest text of a peer that is repeated, in characters.
const MAX_REPEATED: usize = 200;

/// Why a line of the peer cannot be read. The reason may repeat what the peer wrote, so it is cut, and nothing in it can
/// begin a new line of a log.
pub(crate) fn unreadable(error: &serde_json::Error) -> String {
    error.to_string().chars().take(MAX_REPEATED).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A message as a line.
pub(crate) fn line<T: Serialize>(message: &T) -> Bytes {
    let mut text = serde_json::to_vec(message).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_across_pieces() {
        let mut lines = Lines::default();
        lines.push(b"{\"a\"").expect("short");
        assert_eq!(lines.pop(), None);
        lines.push(b":1}\n{}\n{").expect("short");
        assert_eq!(lines.pop().as_deref(), Some(&b"{\"a\":1}"[..]));
        assert_eq!(lines.pop().as_deref(), Some(&b"{}"[..]));
        assert_eq!(lines.pop(), None);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::default();
        let mut taken = 0;
        while lines.push(&[b'x'; 1000]).is_ok() {
            assert_eq!(lines.pop(), None);
            taken += 1000;
            assert!(taken <= MAX_LINE + 1000, "the bound holds");
        }
    }

    #[test]
    fn bytes_that_come_one_by_one_cost_no_more_than_together() {
        let began = std::time::Instant::now();
        let mut lines = Lines::default();
        for _ in 0..MAX_LINE {
            lines.push(b"x").expect("short");
            assert_eq!(lines.pop(), None);
        }
        lines.push(b"\n").expect("short");
        assert_eq!(lines.pop().map(|line| line.len()), Some(MAX_LINE));
        assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
    }

    #[test]
    fn newer_messages_are_not_errors() {
        let unknown: FromEdge = serde_json::from_str(r#"{"type":"later","x":1}"#).expect("unknown");
        assert_eq!(unknown, FromEdge::Unknown);
        let hello = r#"{"version":1,"edge_instance":"i","link_id":"lnk_1","more":true}"#;
        assert!(serde_json::from_str::<EdgeHello>(hello).is_ok());
    }

    #[test]
    fn the_token_is_not_printed() {
        let hello = GatewayHello {
            version: VERSION,
            features: vec![],
            token: "canary".into(),
            gateway_instance: "i".into(),
            software: String::new(),
            routes: vec![],
        };
        assert!(!format!("{hello:?}").contains("canary"));
    }
}
