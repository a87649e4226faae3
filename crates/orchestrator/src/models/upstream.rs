//! Asking one upstream.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::Response;
use serde_json::Value;
use sortie_credentials::{Applied, Credential, told};
use sortie_runtime::TaskSet;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::body;
use super::config::{self, Timeouts};
use super::sse::Events;
use super::stream::{Answer, Broken};
use crate::model::{BILLING, Delta, ModelAnswer, ModelError, ModelRequest, OVERLOADED, RATE_LIMITED, REQUEST_FAILED};

/// The version of the Messages API.
const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");
const BETA: HeaderName = HeaderName::from_static("anthropic-beta");
/// Most of an answer that is an error that is read, in bytes.
const MAX_ERROR: usize = 64 * 1024;
/// Most of an upstream's own words that are passed on, in characters.
const MAX_WORDS: usize = 300;
/// The longest pause that an upstream may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How long an upstream that has failed is tried after the others.
const UNWELL: Duration = Duration::from_secs(30);

/// An upstream that can be asked.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) settings: config::Upstream,
    /// The text of the CAs that are trusted.
    pem: String,
    client: reqwest::Client,
    credential: Option<Credential>,
    places: Arc<Semaphore>,
    unwell: Mutex<Option<Instant>>,
}

/// Why an upstream gave no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ModelError,
    /// Whether the same may be asked elsewhere at once: it has provably not been answered here.
    pub(super) elsewhere: bool,
}

impl Upstream {
    /// Reads the files that the settings name, and begins to keep the key. Blocks.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn new(settings: config::Upstream, tasks: &TaskSet) -> Result<Self, String> {
        let pem = settings.trust.read()?;
        let https = |url: &url::Url| url.scheme() == "https";
        let tls = match https(&settings.base_url) || settings.proxy.as_ref().is_some_and(https) {
            true => {
                let system = settings.trust.include_system_cas;
                sortie_tls::upstream_client_config(&pem, system, &[b"http/1.1"], None)
            }
            // Never dialled with TLS; it only keeps the client from looking for a trust of its own.
            false => sortie_tls::api_client_config(None, false),
        };
        let Timeouts { connect, .. } = settings.timeouts;
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(connect)
            .http1_only()
            .tls_backend_preconfigured((*tls.map_err(|error| error.to_string())?).clone());
        if let Some(proxy) = &settings.proxy {
            let proxy = reqwest::Proxy::all(proxy.clone()).map_err(told)?;
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(told)?;
        let start = |spec: &sortie_credentials::CredentialSpec| {
            Credential::start(spec.clone(), &Default::default(), tasks).map_err(|error| format!("its key: {error}"))
        };
        let credential = settings.credential.as_ref().map(start).transpose()?;
        let places = Arc::new(Semaphore::new(settings.max_in_flight));
        Ok(Self { settings, pem, client, credential, places, unwell: Mutex::default() })
    }

    /// Whether one that was made of these settings now would be the same. Blocks.
    pub(super) fn is_as(&self, settings: &config::Upstream) -> bool {
        self.settings == *settings && settings.trust.read().is_ok_and(|pem| pem == self.pem)
    }

    /// Whether it serves a model of this name.
    pub(super) fn serves(&self, model: &str) -> bool {
        self.settings.serves.iter().any(|pattern| fits(pattern, model))
    }

    /// Whether it has failed lately.
    pub(super) fn is_unwell(&self) -> bool {
        let until = *self.unwell.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| until > Instant::now())
    }

    /// A place for one more request, if there is one.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// Waits for a place for one more request.
    pub(super) async fn next_place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// Asks it once.
    pub(super) async fn ask(
        &self,
        request: &ModelRequest,
        deltas: &UnboundedSender<Delta>,
    ) -> Result<ModelAnswer, Failure> {
        let outcome = self.try_asking(request, deltas).await;
        let result = match &outcome {
            Ok(_) => "ok",
            Err(failure) if failure.error.kind == OVERLOADED => "overloaded",
            Err(failure) if failure.error.kind == RATE_LIMITED => "rate_limited",
            Err(_) => "failed",
        };
        let name = self.settings.name.clone();
        metrics::counter!("sortie_model_requests_total", "upstream" => name, "result" => result).increment(1);
        *self.unwell.lock().unwrap_or_else(PoisonError::into_inner) = match &outcome {
            Err(failure) if failure.error.retryable => {
                Some(Instant::now() + failure.error.retry_after.unwrap_or(UNWELL).max(UNWELL))
            }
            _ => None,
        };
        outcome
    }

    async fn try_asking(
        &self,
        request: &ModelRequest,
        deltas: &UnboundedSender<Delta>,
    ) -> Result<ModelAnswer, Failure> {
        let mut headers = self.headers(request);
        let applied = match &self.credential {
            None => None,
            Some(credential) => {
                let applied = credential.apply(&mut headers, None).await;
                Some(applied.map_err(|error| Failure::elsewhere(self.passing(&format!("is not asked: {error}"))))?)
            }
        };
        let response = self.head(request, headers).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(response, applied.as_ref()).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream") {
            let why = "answers with something else than a stream of events: is its base_url that of a Messages API?";
            return Err(Failure::here(ModelError::new(REQUEST_FAILED, self.says(why))));
        }
        self.read(response, applied.as_ref(), deltas).await
    }

    fn headers(&self, request: &ModelRequest) -> HeaderMap {
        let mut headers: HeaderMap = self.settings.headers.iter().cloned().collect();
        headers.entry("anthropic-version").or_insert(VERSION);
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(concat!("sortie/", env!("CARGO_PKG_VERSION"))));
        if body::is_fast(request) && !self.settings.omit.iter().any(|name| name == "speed") {
            headers.append(BETA, HeaderValue::from_static(body::FAST));
        }
        headers
    }

    /// Sends the request; the head of the answer.
    async fn head(&self, request: &ModelRequest, headers: HeaderMap) -> Result<Response, Failure> {
        let body = body::body(request, &self.settings)
            .map_err(|_| Failure::here(ModelError::new(REQUEST_FAILED, self.says("cannot be asked this"))))?;
        let mut url = self.settings.base_url.clone();
        url.set_path(&format!("{}/v1/messages", url.path().trim_end_matches('/')));
        let sent = self.client.post(url).headers(headers).body(body).send();
        match tokio::time::timeout(self.settings.timeouts.first_byte, sent).await {
            Ok(Ok(response)) => Ok(response),
            // Nothing was sent.
            Ok(Err(error)) if error.is_connect() => {
                Err(Failure::elsewhere(self.passing(&format!("cannot be reached: {}", told(error)))))
            }
            // It may be at work on it.
            Ok(Err(error)) => Err(Failure::here(self.passing(&format!("did not answer: {}", told(error))))),
            Err(_) => {
                let waited = self.settings.timeouts.first_byte.as_secs_f32();
                Err(Failure::here(self.passing(&format!("did not begin to answer within {waited} s"))))
            }
        }
    }

    /// Reads an answer.
    async fn read(
        &self,
        mut response: Response,
        applied: Option<&Applied<'_>>,
        deltas: &UnboundedSender<Delta>,
    ) -> Result<ModelAnswer, Failure> {
        let (mut events, mut answer) = (Events::default(), Answer::default());
        while !answer.is_whole() {
            let piece = tokio::time::timeout(self.settings.timeouts.between_bytes, response.chunk()).await;
            let bytes = match piece {
                Ok(Ok(Some(bytes))) => bytes,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    let why = format!("its answer was cut: {}", told(error));
                    return Err(Failure::here(self.passing(&why)));
                }
                Err(_) => {
                    let waited = self.settings.timeouts.between_bytes.as_secs_f32();
                    return Err(Failure::here(self.passing(&format!("its answer stood still for {waited} s"))));
                }
            };
            let taken = events.take(&bytes).map_err(Broken::from);
            let taken = taken.and_then(|events| events.iter().try_for_each(|event| answer.take(event, deltas)));
            taken.map_err(|broken| self.broken(broken, answer.has_begun(), applied))?;
        }
        let begun = answer.has_begun();
        answer.finish().map_err(|broken| self.broken(broken, begun, applied))
    }

    fn broken(&self, broken: Broken, begun: bool, applied: Option<&Applied<'_>>) -> Failure {
        match broken {
            Broken::Failed { kind, message } => {
                let said = self.words(&message, applied);
                let mut failure = self.of_kind(&kind, StatusCode::INTERNAL_SERVER_ERROR, &said);
                failure.elsewhere &= !begun;
                failure
            }
            Broken::Cut => Failure::here(self.passing(&broken.to_string())),
            // Asked again it would most likely answer so again, but a proxy may have had a bad moment.
            Broken::Garbage(_) | Broken::NoEvents(_) | Broken::Large => {
                Failure::here(self.passing(&broken.to_string()))
            }
        }
    }

    /// What an answer means that is no success.
    async fn refusal(&self, mut response: Response, applied: Option<&Applied<'_>>) -> Failure {
        let status = response.status();
        if let (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(applied)) = (status, applied) {
            applied.refused();
        }
        let retry_after = pause(response.headers());
        let final_word = response.headers().get("x-should-retry").is_some_and(|value| value == "false");
        let body = tokio::time::timeout(self.settings.timeouts.between_bytes, beginning(&mut response)).await;
        let error: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let members = error.get("error");
        let member = |name: &str| members.and_then(|members| members.get(name)?.as_str()).unwrap_or_default();
        let said = self.words(member("message"), applied);
        let mut failure = self.of_kind(member("type"), status, &said);
        failure.error.retry_after = retry_after;
        failure.error.details.insert("upstream_status".to_owned(), status.as_u16().into());
        if final_word {
            failure.error.retryable = false;
        }
        failure
    }

    /// A failure by its kind at the Messages API, and by its status where there is none.
    fn of_kind(&self, kind: &str, status: StatusCode, said: &str) -> Failure {
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        let passing =
            |kind, what: &str| Failure::elsewhere(ModelError::passing(kind, self.says(&format!("{what}{said}"))));
        let lasting = |kind, what: &str| Failure::here(ModelError::new(kind, self.says(&format!("{what}{said}"))));
        match (kind, status.as_u16()) {
            ("overloaded_error", _) | (_, 503 | 529) => passing(OVERLOADED, "is overloaded"),
            ("rate_limit_error", _) | (_, 429) => passing(RATE_LIMITED, "has reached its rate limit"),
            ("billing_error", _) | (_, 402) => lasting(BILLING, "wants to be paid"),
            ("request_too_large", _) | (_, 413) => too_long(lasting(REQUEST_FAILED, "finds the request too large")),
            ("invalid_request_error", _) if is_too_long(&said) => {
                too_long(lasting(REQUEST_FAILED, "finds the conversation too long"))
            }
            // Its words are not passed on: some repeat a part of the key.
            ("authentication_error" | "permission_error", _) | (_, 401 | 403) => {
                let why = "does not accept the key that the settings of models name for it";
                Failure::here(ModelError::new(REQUEST_FAILED, self.says(why)))
            }
            ("not_found_error", _) | (_, 404) => lasting(REQUEST_FAILED, "does not know this model or address"),
            ("timeout_error" | "api_error", _) | (_, 408 | 409) => passing(REQUEST_FAILED, "failed"),
            (_, 500..) => passing(REQUEST_FAILED, "failed"),
            (_, 300..=399) => lasting(REQUEST_FAILED, "answers with a redirect, which is not followed"),
            _ => lasting(REQUEST_FAILED, "refuses the request"),
        }
    }

    /// An upstream's own words, as far as they can be shown.
    fn words(&self, message: &str, applied: Option<&Applied<'_>>) -> String {
        if applied.is_some_and(|applied| applied.is_repeated_in(message)) {
            return String::new();
        }
        let shown = message.chars().map(|c| if c.is_control() { ' ' } else { c });
        shown.take(MAX_WORDS).collect::<String>().trim().to_owned()
    }

    fn says(&self, what: &str) -> String {
        format!("model upstream `{}` {what}", self.settings.name)
    }

    fn passing(&self, what: &str) -> ModelError {
        ModelError::passing(REQUEST_FAILED, self.says(what))
    }
}

impl Failure {
    fn here(error: ModelError) -> Self {
        Self { error, elsewhere: false }
    }

    fn elsewhere(error: ModelError) -> Self {
        Self { error, elsewhere: true }
    }
}

fn too_long(failure: Failure) -> Failure {
    Failure { error: ModelError { too_long: true, ..failure.error }, ..failure }
}

/// The Messages API has no kind of its own for this.
fn is_too_long(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    ["prompt is too long", "exceed context limit", "context window", "context length"]
        .iter()
        .any(|text| said.contains(text))
}

/// The beginning of a body, as far as it comes.
async fn beginning(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        let room = MAX_ERROR - body.len();
        body.extend(piece.iter().take(room));
        if piece.len() >= room {
            break;
        }
    }
    body
}

/// How long the upstream asks to wait: `retry-after-ms`, or `Retry-After` (RFC 9110 section 10.2.3) as seconds or a date.
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let millis = text(HeaderName::from_static("retry-after-ms")).and_then(|text| text.parse().ok());
    if let Some(millis) = millis.map(Duration::from_millis) {
        return Some(millis.min(LONGEST_PAUSE));
    }
    let after = text(RETRY_AFTER)?;
    let pause = match after.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => {
            let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(after).ok()?;
            until.duration_since(jiff::Timestamp::now()).try_into().ok()?
        }
    };
    Some(pause.min(LONGEST_PAUSE))
}

/// Whether a pattern, in which `*` stands for any text, fits a name.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((before, behind)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| fits(behind, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, fitting) in [
            ("claude-x", "claude-x", true),
            ("claude-x", "claude-xy", false),
            ("claude-*", "claude-", true),
            ("claude-*", "claude", false),
            ("*", "", true),
            ("*-fast", "a-fast-fast", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
        ] {
            assert_eq!(fits(pattern, name), fitting, "{pattern} {name}");
        }
    }

    #[test]
    fn pauses_are_milliseconds_seconds_or_a_date_and_not_for_ever() {
        let pause = |name: &'static str, text: &str| {
            pause(&HeaderMap::from_iter([(HeaderName::from_static(name), text.parse().expect("value"))]))
        };
        assert_eq!(pause("retry-after-ms", "1500"), Some(Duration::from_millis(1500)));
        assert_eq!(pause("retry-after", "1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(pause("retry-after", "99999999"), Some(LONGEST_PAUSE));
        assert_eq!(pause("retry-after", "-1"), None);
        assert_eq!(pause("retry-after", "soon"), None);
        assert_eq!(pause("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), None);
    }
}
