//! What records tell of. Codes and names are stable: they are never changed, and never used again for something else.

/// One kind of record.
///
/// The code is a letter for who writes it (`A` the log itself, `G` a gateway, `H` a hub, `W` a worker), four digits, and
/// how it went: `I` as asked, `W` refused or given up, `E` failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The stable code.
    pub code: &'static str,
    /// The stable name of the event.
    pub event: &'static str,
    /// What happened, in one sentence.
    pub about: &'static str,
}

macro_rules! table {
    ($($name:ident = $code:literal, $event:literal, $about:literal;)+) => {
        /// All kinds.
        pub mod kinds {
            use super::Kind;
            $(#[doc = $about] pub const $name: Kind = Kind { code: $code, event: $event, about: $about };)+
        }
        /// Every kind there is.
        pub const ALL: &[Kind] = &[$(kinds::$name),+];
    };
}

table! {
    LOG_OPENED = "A0001I", "log_opened", "A file of the log begins.";
    LOG_CLOSED = "A0002I", "log_closed", "The process that wrote the log has stopped as asked.";
    LOG_RECOVERED = "A0003W", "log_recovered", "After a crash, an unfinished record was taken off the end.";
    CLOCK_STEPPED_BACK = "A0004W", "clock_stepped_back", "The clock of the machine went back.";
    RECORDS_DROPPED = "A0005E", "records_dropped", "Records could not be written and were counted only.";
    SINK_DROPPED = "A0006E", "sink_dropped", "Records were not delivered to a sink, since it was behind for too long.";
    FILES_REMOVED = "A0007I", "files_removed", "The oldest files of the log are removed, as the settings ask for.";
    CALL_ALLOWED = "G1001I", "call_decided", "A call may go on.";
    CALL_REFUSED = "G1001W", "call_decided", "A call is refused.";
    CALL_WAITS = "G1002I", "call_decided", "A call waits for an approval.";
    CALL_DONE = "G1010I", "call_done", "A call was answered to its end.";
    CALL_ABANDONED = "G1010W", "call_done", "The caller went away before the end of the answer.";
    CALL_FAILED = "G1010E", "call_done", "A call failed on its way, or its answer broke off.";
    CALLS_UNIDENTIFIED = "G1020W", "calls_unidentified", "Requests that did not prove who was calling, counted.";
    APPROVAL_DECIDED = "G1101I", "approval_decided", "A call that waited was approved.";
    APPROVAL_DENIED = "G1101W", "approval_decided", "A call that waited was denied, or nobody decided.";
    PIN_CHANGED = "G1201I", "pin_changed", "What is pinned of a server's tools was approved or forgotten.";
    SETTINGS_LOADED = "G1301I", "settings_loaded", "Settings and policy are in force.";
    SETTINGS_REFUSED = "G1301E", "settings_refused", "Changed settings were refused; the earlier ones stay.";
    MANAGEMENT_REQUESTED = "H2000I", "management_requested", "A management operation begins.";
    MANAGEMENT_REFUSED = "H2000W", "management_refused", "A management operation was refused or failed.";
    TUNNEL_CREATED = "H2001I", "tunnel_created", "A tunnel was created.";
    TUNNEL_ARCHIVED = "H2002I", "tunnel_archived", "A tunnel was archived.";
    CERTIFICATE_ADDED = "H2003I", "tunnel_certificate_added", "A CA certificate was registered on a tunnel.";
    CERTIFICATE_REVOKED = "H2004I", "tunnel_certificate_revoked", "A CA certificate of a tunnel was archived.";
    TOKEN_REVEALED = "H2005I", "tunnel_token_revealed", "A tunnel's token was shown.";
    TOKEN_ROTATED = "H2006I", "tunnel_token_rotated", "A tunnel's token was replaced.";
    KEY_MINTED = "H2007I", "tunnel_token_minted", "An API key was made.";
    KEY_REVOKED = "H2008I", "tunnel_token_revoked", "An API key was revoked.";
    WORKSPACE_CREATED = "H2009I", "workspace_created", "A workspace was created.";
    IDENTITY_KEY_ROTATED = "H2010I", "identity_key_rotated", "The key that signs callers' identities was replaced.";
    HUB_APPROVAL_DECIDED = "H2011I", "approval_decided", "Somebody decided by the hub about a call that waited.";
    AUDIT_KEY_CHANGED = "H2012W", "audit_key_changed", "A gateway publishes the checkpoints of another log.";
    CHECKPOINT_REFUSED = "H2013W", "checkpoint_refused", "A gateway published what contradicts an earlier checkpoint.";
    MANAGEMENT_UNCHANGED = "H2014I", "management_unchanged", "A management operation changed nothing: it was done before.";
    REQUESTS_REFUSED = "H2015W", "requests_refused", "Requests that showed no valid key, or one that may not ask for this, counted.";
    WORK_STOPPED = "H2151I", "work_stopped", "An item of work was ended, or is to end.";
    WORK_UPDATED = "H2152I", "work_updated", "What is written beside an item of work was changed.";
    HEALTHCHECK_CREATED = "H2153I", "healthcheck_created", "The workers of an environment are to answer a check.";
    CHECKPOINTS_FORGOTTEN = "H2016W", "checkpoints_forgotten", "The checkpoints of a log gave way to those of another one.";
    AGENT_CREATED = "H2101I", "agent_created", "An agent was made.";
    AGENT_UPDATED = "H2102I", "agent_updated", "An agent was changed, which made its next version.";
    AGENT_ARCHIVED = "H2103I", "agent_archived", "An agent was archived.";
    ENVIRONMENT_CREATED = "H2111I", "environment_created", "An environment was made.";
    ENVIRONMENT_UPDATED = "H2112I", "environment_updated", "An environment was changed.";
    ENVIRONMENT_ARCHIVED = "H2113I", "environment_archived", "An environment was archived.";
    ENVIRONMENT_DELETED = "H2114I", "environment_deleted", "An environment was deleted.";
    VAULT_CREATED = "H2121I", "vault_created", "A vault was made.";
    VAULT_UPDATED = "H2122I", "vault_updated", "A vault was changed.";
    VAULT_ARCHIVED = "H2123I", "vault_archived", "A vault was archived, and the secrets in it were removed.";
    VAULT_DELETED = "H2124I", "vault_deleted", "A vault was deleted with all credentials in it.";
    CREDENTIAL_CREATED = "H2131I", "vault_credential_created", "A credential was put into a vault.";
    CREDENTIAL_UPDATED = "H2132I", "vault_credential_updated", "A credential in a vault was changed.";
    CREDENTIAL_ARCHIVED = "H2133I", "vault_credential_archived", "A credential was archived, and its secrets were removed.";
    CREDENTIAL_DELETED = "H2134I", "vault_credential_deleted", "A credential was deleted.";
    CREDENTIAL_VALIDATED = "H2135I", "vault_credential_validated", "A credential was tried at its server.";
    SESSION_CREATED = "H2141I", "session_created", "A session was made.";
    SESSION_UPDATED = "H2142I", "session_updated", "A session was changed.";
    SESSION_ARCHIVED = "H2143I", "session_archived", "A session was archived, which ends it.";
    SESSION_DELETED = "H2144I", "session_deleted", "A session was deleted with all of its events.";
    SESSION_EVENTS_SENT = "H2145I", "session_events_sent", "Events were sent to a session.";
}

impl Kind {
    /// The kind with this code.
    pub fn by_code(code: &str) -> Option<&'static Self> {
        ALL.iter().find(|kind| kind.code == code)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_told_apart_and_plain() {
        let codes: HashSet<_> = ALL.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), ALL.len());
        for kind in ALL {
            let code = kind.code.as_bytes();
            assert!(code.len() == 6 && b"AGHW".contains(&code[0]) && b"IWE".contains(&code[5]), "{}", kind.code);
            assert!(code[1..5].iter().all(u8::is_ascii_digit), "{}", kind.code);
            assert!(kind.event.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", kind.event);
        }
    }
}
