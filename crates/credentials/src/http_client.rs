//! Asking vaults and token endpoints: HTTP/1.1 without redirects or proxies, in bounded time and memory.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::problem::Problem;

/// How long one exchange may take, from name resolution to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// Largest file of CA certificates, in bytes.
const MAX_CA: u64 = 1024 * 1024;

/// Whom to trust behind `https`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// CA certificates, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted, too.
    pub include_system_cas: bool,
}

impl Trust {
    /// Whether anybody is trusted.
    pub fn is_some(&self) -> bool {
        self.ca_file.is_some() || self.include_system_cas
    }

    /// What is wrong with the file, if anything. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or holds no certificate.
    pub fn check(&self) -> Result<(), String> {
        if self.is_some() { self.config(&self.read()?).map(drop) } else { Ok(()) }
    }

    /// The text of the file, at most 1 MiB of it; empty where there is none. Blocks.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> Result<String, String> {
        use std::io::Read as _;
        let mut pem = String::new();
        if let Some(path) = &self.ca_file {
            let read = std::fs::File::open(path).and_then(|file| file.take(MAX_CA).read_to_string(&mut pem));
            read.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        }
        Ok(pem)
    }

    fn config(&self, pem: &str) -> Result<sortie_tls::ClientConfig, String> {
        let config = sortie_tls::upstream_client_config(pem, self.include_system_cas, &[b"http/1.1"], None);
        config.map(|config| (*config).clone()).map_err(|error| error.to_string())
    }
}

/// Whether what is sent to this URL is private on the way: `https`, or `http` within this machine.
pub fn is_private_url(url: &Url) -> bool {
    match (url.scheme(), url.host()) {
        ("https", Some(_)) => true,
        ("http", Some(Host::Domain(name))) => name == "localhost",
        ("http", Some(Host::Ipv4(address))) => address.is_loopback(),
        ("http", Some(Host::Ipv6(address))) => address.is_loopback(),
        _ => false,
    }
}

pub(crate) struct HttpClient {
    client: reqwest::Client,
    /// The text of the CAs that are trusted.
    pem: String,
}

impl HttpClient {
    /// Blocks: reads the file of CAs.
    ///
    /// # Errors
    /// Nobody can be trusted so.
    pub(crate) fn new(trust: &Trust, url: &Url) -> Result<Self, String> {
        let builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .http1_only()
            .pool_max_idle_per_host(2);
        let pem = trust.read()?;
        let builder = match url.scheme() {
            "https" => builder.tls_backend_preconfigured(trust.config(&pem)?),
            // Never dialled with TLS; it only keeps the client from looking for a trust of its own.
            _ => {
                let none = sortie_tls::api_client_config(None, false).map_err(|error| error.to_string())?;
                builder.tls_backend_preconfigured((*none).clone())
            }
        };
        let client = builder.build().map_err(|error| error.without_url().to_string())?;
        Ok(Self { client, pem })
    }

    /// Whether the file of CAs is what it was. Blocks.
    pub(crate) fn trusts_as(&self, trust: &Trust) -> bool {
        trust.read().is_ok_and(|pem| pem == self.pem)
    }

    pub(crate) fn request(&self, method: reqwest::Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// No answer, or one that is too large. What the server said is no part of it.
    pub(crate) async fn send(&self, request: RequestBuilder, who: &'static str) -> Result<Answer, Problem> {
        let failed = |error: reqwest::Error| Problem::passing(who, told(error));
        let mut response = request.send().await.map_err(failed)?;
        let mut body = Zeroizing::new(Vec::with_capacity(4096));
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(Problem::passing(who, format!("its answer is larger than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer { status: response.status(), body })
    }
}

/// An error of a request with its causes, without the URL: a caller has put the path into its own words.
pub fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The body as JSON of this form. Why it is not is not told: errors of the reader repeat what they read.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}
