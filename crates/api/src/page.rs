//! Lists in pages, newest first, and the limits that an installation sets.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::Digest;

use crate::{ApiError, CreateCertificate, DisplayName};

/// The bounds of what a caller may create or ask for. The defaults are those of the hosted service where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Tunnels that an organisation has at one time, archived ones not counted.
    pub tunnels_per_organization: u32,
    /// CA certificates that a tunnel has at one time, archived ones not counted; two are needed to replace one.
    pub certificates_per_tunnel: u32,
    /// Keys that a workspace has at one time, archived ones not counted.
    pub keys_per_workspace: u32,
    /// Grants of one key.
    pub grants_per_key: u32,
    /// Workspaces of an organisation, the default one counted.
    pub workspaces_per_organization: u32,
    /// Bytes of the PEM text of a CA certificate, at most [`CreateCertificate::MAX_PEM_BYTES`].
    pub pem_bytes: u32,
    /// Characters of the name of a tunnel, key or workspace, at most [`DisplayName::MAX_CHARACTERS`].
    pub name_characters: u32,
    /// How long the lease on an item of work lasts without a heartbeat, in seconds, when the worker does not say.
    pub work_lease_seconds: u32,
    /// How long a worker that took an item may be without its first heartbeat, in seconds.
    pub work_start_seconds: u32,
    /// Objects on a page when the caller does not say.
    pub default_page: u32,
    /// Objects on a page at most.
    pub largest_page: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels_per_organization: 10,
            certificates_per_tunnel: 2,
            keys_per_workspace: 1000,
            grants_per_key: 100,
            workspaces_per_organization: 100,
            pem_bytes: CreateCertificate::MAX_PEM_BYTES,
            name_characters: DisplayName::MAX_CHARACTERS,
            work_lease_seconds: 120,
            work_start_seconds: 300,
            default_page: 20,
            largest_page: 1000,
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "{T}List")]
pub struct List<T> {
    /// The objects, newest first.
    pub data: Vec<T>,
    /// What to send as `page` for the next page; none on the last one.
    pub next_page: Option<String>,
}

/// The query of a list as it was sent; parameters that are not ours are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ListQuery {
    /// Objects on a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// The cursor that the previous page ended with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
    /// Whether archived objects are listed, too.
    pub include_archived: bool,
}

/// A checked request for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Objects on the page, at least one.
    pub limit: u32,
    /// Only objects created before the one with this sequence number.
    pub before: Option<i64>,
    /// Whether archived objects are listed, too.
    pub include_archived: bool,
}

impl Limits {
    /// Refuses a name that is longer than this installation allows; `member` is where it was sent.
    ///
    /// # Errors
    /// 400.
    pub fn check_name(&self, member: &str, name: &DisplayName) -> Result<(), ApiError> {
        let (length, most) = (name.as_str().chars().count(), self.name_characters);
        if length <= usize::try_from(most).unwrap_or(usize::MAX) {
            return Ok(());
        }
        Err(ApiError::invalid_request(format!("{member}: {length} characters, at most {most}")))
    }
}

impl ListQuery {
    /// Checks the query of the list with this name, which cursors of other lists do not fit.
    ///
    /// # Errors
    /// 400 for a limit out of bounds, or a cursor that this list did not hand out.
    pub fn check(&self, list: &str, limits: &Limits) -> Result<PageRequest, ApiError> {
        self.check_up_to(u32::MAX, list, limits)
    }

    /// The same for a list whose pages have at most so many objects, whatever the installation allows.
    ///
    /// # Errors
    /// As [`ListQuery::check`].
    pub fn check_up_to(&self, most: u32, list: &str, limits: &Limits) -> Result<PageRequest, ApiError> {
        let most = most.min(limits.largest_page);
        let limit = self.limit.unwrap_or(limits.default_page.min(most));
        if limit == 0 || limit > most {
            return Err(ApiError::invalid_request(format!("limit: must be between 1 and {most}, not {limit}")));
        }
        let before = match &self.page {
            Some(text) => Some(Cursor::parse(list, text).ok_or_else(bad_cursor)?.sequence()),
            None => None,
        };
        Ok(PageRequest { limit, before, include_archived: self.include_archived })
    }
}

fn bad_cursor() -> ApiError {
    ApiError::invalid_request("page: not a cursor of this list; send the next_page of the previous page unchanged")
}

/// A place in a list: opaque to callers, and worth nothing to them, since every list is read within one workspace.
/// A check sum tells altered cursors, and those of other lists, from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(i64);

const PREFIX: &str = "page_";
/// Eight bytes of sequence number, big-endian, and eight of check sum.
const LENGTH: usize = 16;

impl Cursor {
    /// The place after the object with this sequence number.
    pub fn after(sequence: i64) -> Self {
        Self(sequence)
    }

    /// The sequence number.
    pub fn sequence(self) -> i64 {
        self.0
    }

    /// The text for `next_page` of the list with this name.
    pub fn encode(self, list: &str) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.bytes(list)))
    }

    /// The cursor in a text that [`Cursor::encode`] made for the same list; nothing else is one.
    pub fn parse(list: &str, text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(PREFIX)?;
        let mut bytes = [0; LENGTH];
        let length = URL_SAFE_NO_PAD.decode_slice(encoded, &mut bytes).ok()?;
        let sequence = i64::from_be_bytes(*bytes.first_chunk()?);
        let cursor = Self(sequence);
        (length == LENGTH && sequence > 0 && cursor.bytes(list) == bytes).then_some(cursor)
    }

    fn bytes(self, list: &str) -> [u8; LENGTH] {
        let sequence = self.0.to_be_bytes();
        let sum = Digest::of(format!("sortie page {list} {}", self.0).as_bytes());
        let mut bytes = [0; LENGTH];
        for (to, from) in bytes.iter_mut().zip(sequence.iter().chain(sum.as_bytes())) {
            *to = *from;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_round_trip_in_their_own_list_only() {
        for sequence in [1, 42, i64::MAX] {
            let text = Cursor::after(sequence).encode("tunnels");
            assert_eq!(Cursor::parse("tunnels", &text), Some(Cursor(sequence)));
            assert_eq!(Cursor::parse("keys", &text), None);
        }
    }

    #[test]
    fn altered_cursors_are_refused() {
        let text = Cursor::after(7).encode("tunnels");
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(bytes).expect("ascii");
            assert_eq!(Cursor::parse("tunnels", &altered), None, "{altered}");
        }
        for bad in ["", "page_", "page_AAAA", "7", &format!("{text}A"), &format!("{text}="), &"page_A".repeat(5000)] {
            assert_eq!(Cursor::parse("tunnels", bad), None);
        }
    }

    #[test]
    fn queries_are_checked() {
        let limits = Limits::default();
        let page = ListQuery::default().check("tunnels", &limits).expect("defaults");
        assert_eq!(page, PageRequest { limit: 20, before: None, include_archived: false });
        for limit in [0, 1001, u32::MAX] {
            let query = ListQuery { limit: Some(limit), ..ListQuery::default() };
            let error = query.check("tunnels", &limits).expect_err("out of bounds");
            assert_eq!(error.status, http::StatusCode::BAD_REQUEST);
        }
        let query = ListQuery { page: Some("page_x".to_owned()), ..ListQuery::default() };
        assert!(query.check("tunnels", &limits).expect_err("bad cursor").message.starts_with("page: "));
    }
}
