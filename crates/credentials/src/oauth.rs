//! Tokens of an authorization server: client credentials (RFC 6749, section 4.4) and token exchange (RFC 8693).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use reqwest::Method;
use serde::Deserialize;
use sortie_ids::{Digest, Recent};
use sortie_tls::Secret;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use crate::echo::Prepared;
use crate::http_client::{HttpClient, Trust};
use crate::problem::Problem;

/// How long a token is used whose life the server does not tell.
const UNTOLD: Duration = Duration::from_secs(60);
/// A token is not used in the last tenth of its life, which is at most this.
const MARGIN: Duration = Duration::from_secs(30);
/// How long a failure stands for the calls that have waited for the same token.
const FAILURE_STANDS: Duration = Duration::from_secs(1);
/// Least time between two refusals of an upstream that have a token dropped.
const DROPPED: Duration = Duration::from_secs(10);
/// Half of the callers whose tokens are kept; beyond twice this the least recently used are forgotten.
const HALF: usize = 5_000;
const UNREACHABLE: &str = "the token endpoint cannot be reached";
const REFUSED: &str = "the token endpoint gives no token";

/// How a client proves itself at a token endpoint (RFC 6749, section 2.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// In the header `Authorization` (`client_secret_basic`).
    #[default]
    Basic,
    /// In the body (`client_secret_post`).
    Post,
}

/// Where tokens come from, and what is asked of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEndpoint {
    /// The token endpoint.
    pub url: Url,
    /// The client's id.
    pub client_id: String,
    /// How the client proves itself.
    pub client_auth: ClientAuth,
    /// `scope`: names with spaces between them.
    pub scope: Option<String>,
    /// `audience` (RFC 8693, section 2.1).
    pub audience: Option<String>,
    /// `resource` (RFC 8707).
    pub resource: Option<String>,
    /// Whom to trust, for `https`.
    pub trust: Trust,
}

/// A token that calls are waiting for, or have.
#[derive(Default)]
pub(crate) struct Slot {
    token: ArcSwapOption<Token>,
    fetching: tokio::sync::Mutex<Option<(Instant, Problem)>>,
    dropped: Mutex<Option<Instant>>,
}

struct Token {
    prepared: Arc<Prepared>,
    renew_at: Instant,
    until: Instant,
}

/// What is exchanged.
#[derive(Clone, Copy)]
pub(crate) struct SubjectToken<'a>(pub(crate) &'a str);

pub(crate) struct Tokens {
    endpoint: TokenEndpoint,
    http: HttpClient,
}

impl Tokens {
    pub(crate) fn new(endpoint: TokenEndpoint) -> Result<Self, String> {
        let http = HttpClient::new(&endpoint.trust, &endpoint.url)?;
        Ok(Self { endpoint, http })
    }

    /// Whether the file of CAs is what it was. Blocks.
    pub(crate) fn are_current(&self) -> bool {
        self.http.trusts_as(&self.endpoint.trust)
    }

    /// The token of a slot; fetched where there is none that lasts, by one call for all that want it.
    pub(crate) async fn get(
        &self,
        slot: &Slot,
        secret: &Secret,
        subject: Option<SubjectToken<'_>>,
    ) -> Result<Arc<Prepared>, Problem> {
        let known = |now: Instant, until: fn(&Token) -> Instant| {
            slot.token.load().as_ref().filter(|token| until(token) > now).map(|token| token.prepared.clone())
        };
        let now = Instant::now();
        if let Some(prepared) = known(now, |token| token.renew_at) {
            return Ok(prepared);
        }
        let mut failed = match (slot.fetching.try_lock(), known(now, |token| token.until)) {
            (Ok(turn), _) => turn,
            // Somebody fetches the next one; this one is still good.
            (Err(_), Some(prepared)) => return Ok(prepared),
            (Err(_), None) => slot.fetching.lock().await,
        };
        if let Some(prepared) = known(Instant::now(), |token| token.renew_at) {
            return Ok(prepared);
        }
        let fetched = match failed.as_ref() {
            Some((at, problem)) if at.elapsed() < FAILURE_STANDS => Err(problem.clone()),
            _ => self.fetch(secret, subject).await,
        };
        match fetched {
            Ok(token) => {
                *failed = None;
                let prepared = token.prepared.clone();
                slot.token.store(Some(Arc::new(token)));
                Ok(prepared)
            }
            Err(problem) => {
                if failed.as_ref().is_none_or(|(at, _)| at.elapsed() >= FAILURE_STANDS) {
                    *failed = Some((Instant::now(), problem.clone()));
                }
                known(Instant::now(), |token| token.until).ok_or(problem)
            }
        }
    }

    async fn fetch(&self, secret: &Secret, subject: Option<SubjectToken<'_>>) -> Result<Token, Problem> {
        let endpoint = &self.endpoint;
        let mut form = Zeroizing::new(String::with_capacity(4096));
        {
            let mut pairs = Serializer::new(&mut *form);
            match subject {
                None => {
                    pairs.append_pair("grant_type", "client_credentials");
                }
                Some(SubjectToken(token)) => {
                    pairs.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
                    pairs.append_pair("subject_token", token);
                    pairs.append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt");
                    pairs.append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:access_token");
                }
            }
            for (name, value) in
                [("scope", &endpoint.scope), ("audience", &endpoint.audience), ("resource", &endpoint.resource)]
            {
                if let Some(value) = value {
                    pairs.append_pair(name, value);
                }
            }
            if endpoint.client_auth == ClientAuth::Post {
                pairs.append_pair("client_id", &endpoint.client_id).append_pair("client_secret", secret.expose());
            }
        }
        let mut request = self.http.request(Method::POST, endpoint.url.clone());
        if endpoint.client_auth == ClientAuth::Basic {
            let value = basic(&encoded(&endpoint.client_id), &encoded(secret.expose()));
            let malformed = |_| Problem::passing(REFUSED, "the client's secret makes no header");
            let mut value = HeaderValue::from_str(&format!("Basic {}", value.expose())).map_err(malformed)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(form.as_str().to_owned());
        let asked = Instant::now();
        let answer = self.http.send(request, UNREACHABLE).await;
        let answer = answer.map_err(|problem| Problem { private: self.told(&problem.private), ..problem });
        let result = answer.and_then(|answer| {
            if !answer.status.is_success() {
                let code = answer.json::<Refusal>().map(|refusal| refusal.error).filter(|code| is_code(code));
                let code = code.unwrap_or_else(|| "no error code".to_owned());
                return Err(Problem::passing(REFUSED, self.told(&format!("{}, {code}", answer.status.as_u16()))));
            }
            let malformed = || Problem::passing(REFUSED, self.told("its answer is not one of RFC 6749"));
            let granted: Granted = answer.json().ok_or_else(malformed)?;
            self.token(granted, asked)
        });
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!("sortie_credential_fetches_total", "source" => "oauth", "result" => outcome).increment(1);
        result
    }

    fn token(&self, granted: Granted, asked: Instant) -> Result<Token, Problem> {
        if !granted.token_type.eq_ignore_ascii_case("bearer") {
            return Err(Problem::passing(REFUSED, self.told("it gave a token of another type than Bearer")));
        }
        let secret = Secret::new(granted.access_token);
        let prepared = Prepared::new(AUTHORIZATION, "Bearer ", &secret, &[]);
        let prepared = prepared.map_err(|what| Problem::passing(REFUSED, self.told(&format!("its token {what}"))))?;
        let life = granted.expires_in.map_or(UNTOLD, |life| Duration::from_secs(life.min(86_400)));
        let until = asked + life;
        Ok(Token { prepared: Arc::new(prepared), renew_at: until - MARGIN.min(life / 10), until })
    }

    fn told(&self, what: &str) -> String {
        format!("{}: {what}", self.endpoint.url.host_str().unwrap_or_default())
    }
}

impl Slot {
    /// Drops the token, since an upstream has refused it; not if there is another by now, and not again at once.
    pub(crate) fn refused(&self, refused: &Arc<Prepared>) {
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.token.load();
        let same = current.as_ref().is_some_and(|token| Arc::ptr_eq(&token.prepared, refused));
        if same && dropped.is_none_or(|at| at.elapsed() >= DROPPED) {
            *dropped = Some(Instant::now());
            self.token.store(None);
        }
    }
}

/// The slots of callers: at most twice [`HALF`].
pub(crate) struct Slots(Mutex<Recent<Digest, Arc<Slot>>>);

impl Default for Slots {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(2 * HALF, i64::MAX)))
    }
}

impl Slots {
    pub(crate) fn of(&self, caller: &Digest) -> Arc<Slot> {
        // No time passes here.
        let now = 0;
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(caller, now) {
            return slot;
        }
        let slot = Arc::<Slot>::default();
        slots.put(*caller, slot.clone(), now);
        slot
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    token_type: String,
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Whether it is an error code as RFC 6749 has them, so that nothing else gets into the log.
fn is_code(code: &str) -> bool {
    code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn encoded(text: &str) -> Zeroizing<String> {
    Zeroizing::new(byte_serialize(text.as_bytes()).collect())
}

/// What stands behind `Basic` (RFC 7617).
pub(crate) fn basic(user: &str, password: &str) -> Secret {
    let pair = Zeroizing::new(format!("{user}:{password}"));
    Secret::new(STANDARD.encode(pair.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_used_least_are_forgotten() {
        let slots = Slots::default();
        let key = |n: usize| Digest::of(&n.to_be_bytes());
        let first = slots.of(&key(0));
        for n in 1..HALF * 2 {
            slots.of(&key(n));
            if n % 1000 == 0 {
                assert!(Arc::ptr_eq(&first, &slots.of(&key(0))), "{n}: one that is used stays");
            }
        }
        assert!(slots.0.lock().expect("lock").len() <= 2 * HALF);
    }

    #[test]
    fn clients_are_named_as_rfc_6749_says() {
        let value = basic(&encoded("my client"), &encoded("a:b/c%"));
        assert_eq!(STANDARD.decode(value.expose()).expect("base64"), b"my+client:a%3Ab%2Fc%25");
    }

    #[test]
    fn only_error_codes_are_told() {
        assert!(is_code("invalid_client"));
        assert!(!is_code("hush hush") && !is_code(&"a".repeat(41)) && !is_code("Secret1"));
    }
}
