//! Reading a signed token: its signature first, then what it says.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::keys::{Algorithm, KeySet};
use crate::{Caller, KeysError};

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Why a caller is not known. Safe to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// There is none.
    #[error("missing: the call carries no identity of the hub")]
    Missing,
    /// There are several.
    #[error("given more than once")]
    Repeated,
    /// It cannot be read.
    #[error("malformed: it is not a signed token with the claims iss, aud, sub, iat and exp")]
    Malformed,
    /// It names an algorithm that its issuer does not sign with.
    #[error("signed with an algorithm that is not accepted from its issuer")]
    Algorithm,
    /// It brings its own key, or wants to be understood in a way that is not.
    #[error("malformed: its header has `{0}`, which is not accepted")]
    Header(&'static str),
    /// Its key is not known.
    #[error("signed by an unknown key")]
    Key,
    /// The keys of its issuer could not be fetched.
    #[error("from an issuer whose keys are not known at the moment")]
    KeysUnknown,
    /// The signature is wrong.
    #[error("wrongly signed")]
    Signature,
    /// Somebody else issued it.
    #[error("from another issuer")]
    Issuer,
    /// It is for something else.
    #[error("for another route")]
    Audience,
    /// It has ended.
    #[error("expired; check the clocks of its issuer and of the gateway")]
    Expired,
    /// It is good for too long.
    #[error("valid for longer than is accepted from its issuer")]
    TooLong,
    /// It has not begun.
    #[error("not valid yet; check the clocks of its issuer and of the gateway")]
    NotYet,
    /// A claim is missing, or not what the settings ask for.
    #[error("without the claim `{0}` that is required of its issuer")]
    Claim(String),
    /// The subject is none that this issuer may speak for.
    #[error("for a caller that its issuer may not speak for")]
    Caller,
}

/// A caller by a token whose signature was right; when and where it is good is asked at each use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The caller.
    pub caller: Arc<Caller>,
    /// Whom the token is for.
    pub(crate) audiences: Vec<String>,
    /// When it begins, in seconds since 1970.
    pub(crate) begins: i64,
    /// How far the issuer's clock may be ahead, in seconds.
    pub(crate) ahead: i64,
    /// How far it may be behind, in seconds.
    pub(crate) behind: i64,
    /// Longest life that it may have left, in seconds.
    pub(crate) max_life: i64,
}

impl Verified {
    /// What changes between two uses of one token: where and when. `fits` says whether an audience is this place.
    ///
    /// # Errors
    /// [`Unknown::Audience`], [`Unknown::Expired`], [`Unknown::TooLong`] or [`Unknown::NotYet`].
    pub fn check(&self, fits: impl Fn(&str) -> bool, now: i64) -> Result<(), Unknown> {
        if !self.audiences.iter().any(|audience| fits(audience)) {
            return Err(Unknown::Audience);
        }
        if self.caller.expires.saturating_add(self.behind) <= now {
            return Err(Unknown::Expired);
        }
        let latest = now.saturating_add(self.ahead);
        if self.begins > latest {
            return Err(Unknown::NotYet);
        }
        if self.caller.expires > latest.saturating_add(self.max_life) {
            return Err(Unknown::TooLong);
        }
        Ok(())
    }
}

/// What a token has to be, beside rightly signed.
pub(crate) struct Rules<'a> {
    pub(crate) algorithms: &'a [Algorithm],
    /// The values of `typ` that are taken, in lower case; a token without one is taken, too, if the empty text is there.
    pub(crate) types: &'a [&'a str],
    /// Whether it has to name its key.
    pub(crate) named_key: bool,
}

/// The payload of a rightly signed token.
pub(crate) fn open<T: DeserializeOwned>(
    token: &[u8],
    keys: &KeySet,
    rules: &Rules<'_>,
    now: i64,
) -> Result<T, Unknown> {
    if token.len() > MAX_TOKEN {
        return Err(Unknown::Malformed);
    }
    let header = match jsonwebtoken::decode_header(token) {
        Ok(header) => header,
        // `none` and other names that the library does not know.
        Err(error) if matches!(error.kind(), ErrorKind::Json(_)) => return Err(Unknown::Algorithm),
        Err(_) => return Err(Unknown::Malformed),
    };
    let algorithm = Algorithm::of(header.alg).filter(|algorithm| rules.algorithms.contains(algorithm));
    let algorithm = algorithm.ok_or(Unknown::Algorithm)?;
    judge(&header)?;
    let typ = header.typ.as_deref().unwrap_or_default().to_ascii_lowercase();
    if !rules.types.contains(&typ.as_str()) {
        return Err(Unknown::Header("typ"));
    }
    if rules.named_key && header.kid.is_none() {
        return Err(Unknown::Key);
    }
    let key = keys.find(header.kid.as_deref(), algorithm).filter(|key| key.is_live(now)).ok_or(Unknown::Key)?;
    // Only the signature is left to the library: the claims are judged here, by the clock that is given.
    let mut validation = Validation::new(algorithm.library());
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    match jsonwebtoken::decode::<T>(token, &key.key, &validation) {
        Ok(token) => Ok(token.claims),
        Err(error) => Err(match error.kind() {
            ErrorKind::InvalidSignature => Unknown::Signature,
            _ => Unknown::Malformed,
        }),
    }
}

/// A key in the token is worth nothing, whoever put it there (RFC 8725 section 3.10); extensions that must be understood
/// are not (RFC 7515 section 4.1.11).
fn judge(header: &Header) -> Result<(), Unknown> {
    for (there, name) in [
        (header.crit.is_some(), "crit"),
        (header.jwk.is_some(), "jwk"),
        (header.jku.is_some(), "jku"),
        (header.x5u.is_some(), "x5u"),
        (header.x5c.is_some(), "x5c"),
        (header.enc.is_some(), "enc"),
        (header.zip.is_some(), "zip"),
    ] {
        if there {
            return Err(Unknown::Header(name));
        }
    }
    Ok(())
}

/// Who a token says has issued it: to be believed no further than to choose the keys that it is checked against.
pub fn claimed_issuer(token: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    claimed(token).map(|issued: Issued| issued.iss)
}

/// What a token says, before its signature was looked at.
pub(crate) fn claimed<T: DeserializeOwned>(token: &[u8]) -> Option<T> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = token.split(|byte| *byte == b'.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// What a text is that should be a key set with an issuer.
pub(crate) fn with_issuer(reason: impl ToString) -> KeysError {
    KeysError::Malformed { also: " with a member `issuer`", reason: reason.to_string() }
}
