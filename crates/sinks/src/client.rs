//! Asking over HTTP/1.1, without redirects or proxies, in bounded time and memory; and whom to trust.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use sortie_credentials::{Credential, CredentialSpec, Vault, told};
use sortie_runtime::TaskSet;
use sortie_tls::{ClientConfig, ReloadingIdentity};
use url::Url;

use crate::spec::Tls;
use crate::transport::Failure;

/// Most of an answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// The longest pause that a receiver may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A configuration of TLS, and what it shows.
pub(crate) struct TlsParts {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) identity: Option<Arc<ReloadingIdentity>>,
}

/// Reads the files that the settings name.
pub(crate) fn tls_parts(tls: &Tls, alpn: &[&[u8]]) -> Result<TlsParts, String> {
    let pem = tls.trust.read()?;
    let identity = match &tls.client {
        None => None,
        Some((cert, key)) => {
            let identity = ReloadingIdentity::client_from_files(cert, key).map_err(|error| error.to_string())?;
            Some(Arc::new(identity))
        }
    };
    let config = sortie_tls::upstream_client_config(&pem, tls.trust.include_system_cas, alpn, identity.clone());
    Ok(TlsParts { config: config.map_err(|error| error.to_string())?, identity })
}

/// A client of one receiver.
pub(crate) struct Client {
    client: reqwest::Client,
    identity: Option<Arc<ReloadingIdentity>>,
    credential: Option<Credential>,
}

/// What a receiver has answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
    retry_after: Option<Duration>,
}

impl Client {
    /// Reads the files that the settings name, and begins to keep the credential.
    pub(crate) fn new(
        url: &Url,
        tls: &Tls,
        credential: Option<&CredentialSpec>,
        step: Duration,
        vaults: &BTreeMap<String, Arc<Vault>>,
        tasks: &TaskSet,
    ) -> Result<Self, String> {
        let parts = match url.scheme() {
            "https" => tls_parts(tls, &[b"http/1.1"])?,
            // Never dialled with TLS; it only keeps the client from looking for a trust of its own.
            _ => {
                let config = sortie_tls::api_client_config(None, false).map_err(|error| error.to_string())?;
                TlsParts { config, identity: None }
            }
        };
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(step)
            .http1_only()
            .pool_max_idle_per_host(1)
            .tls_backend_preconfigured((*parts.config).clone())
            .build()
            .map_err(|error| error.without_url().to_string())?;
        let started = credential.map(|spec| Credential::start(spec.clone(), vaults, tasks)).transpose();
        Ok(Self { client, identity: parts.identity, credential: started.map_err(|error| error.to_string())? })
    }

    pub(crate) fn identity(&self) -> Option<&Arc<ReloadingIdentity>> {
        self.identity.as_ref()
    }

    pub(crate) async fn close(&self) {
        if let Some(credential) = &self.credential {
            credential.close().await;
        }
    }

    /// Sends a body, and reads the answer.
    pub(crate) async fn ask(
        &self,
        method: Method,
        url: Url,
        content_type: &'static str,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sortie/", env!("CARGO_PKG_VERSION"))));
        let applied = match &self.credential {
            None => None,
            Some(credential) => {
                let applied = credential.apply(&mut headers, None).await;
                Some(applied.map_err(|error| Failure::again(error.to_string()))?)
            }
        };
        let failed = |error| Failure::again(told(error));
        let request = self.client.request(method, url).headers(headers).body(body);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if let (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(applied)) = (status, &applied) {
            applied.refused();
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(pause);
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(Failure::again(format!("its answer is larger than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer { status, body, retry_after })
    }
}

impl Answer {
    /// What an answer that is no success means, as far as its status tells.
    pub(crate) fn failure(&self) -> Failure {
        let why = format!("it answers {}", self.status);
        match self.status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Failure::Refused(why)
            }
            _ => self.again(why),
        }
    }

    /// To be tried again, not before the receiver wants it.
    pub(crate) fn again(&self, why: String) -> Failure {
        Failure::Again { why, after: self.retry_after }
    }
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
fn pause(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            until.duration_since(jiff::Timestamp::now()).try_into().ok()?
        }
    };
    Some(pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_seconds_or_a_date_and_not_for_ever() {
        let pause = |text: &str| super::pause(&HeaderValue::from_str(text).expect("value"));
        assert_eq!(pause("7"), Some(Duration::from_secs(7)));
        assert_eq!(pause("99999999"), Some(LONGEST_PAUSE));
        assert_eq!(pause("soon"), None);
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT"), None);
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(120);
        let soon = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&soon).expect("date");
        let found = pause(&soon).expect("a date");
        assert!((Duration::from_secs(110)..=Duration::from_secs(120)).contains(&found), "{found:?}");
    }
}
