//! The hub's API, as commands use it.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sortie_api::List;
use sortie_ids::ApiKey;
use url::{Host, Url};

use crate::error::Failure;

/// Longest a request of a command may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest that a stream is read.
const STREAM: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Largest page of a list.
const PAGE: u32 = 1000;

/// A hub, with the key to it.
pub(crate) struct Hub {
    base: String,
    key: ApiKey,
    ca_pem: Option<String>,
    http: reqwest::Client,
}

impl Hub {
    /// `ca` is a file with the CA of the API's certificate; without it the machine's trusted CAs count.
    pub(crate) fn new(base: &str, key: ApiKey, ca: Option<&Path>) -> Result<Self, Failure> {
        let url = Url::parse(base).map_err(|error| Failure::usage(format!("`{base}` is not a URL: {error}")))?;
        let loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        match url.scheme() {
            "https" => {}
            "http" if loopback => {}
            "http" => {
                return Err(Failure::usage(format!("{base}: a key is sent in plain http to loopback only; use https")));
            }
            other => return Err(Failure::usage(format!("{base}: `{other}` is neither http nor https"))),
        }
        let ca_pem =
            match ca {
                Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                    Failure::usage(format!("the CA file {} cannot be read: {error}", path.display()))
                })?),
                None => None,
            };
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .timeout(DEADLINE)
            .user_agent(concat!("sortie/", env!("CARGO_PKG_VERSION")));
        let https = url.scheme() == "https";
        let tls = sortie_tls::api_client_config(ca_pem.as_deref(), https);
        let tls = tls.map_err(|error| Failure::usage(format!("TLS to {base}: {error}")))?;
        builder = builder.tls_backend_preconfigured((*tls).clone());
        if loopback {
            // What goes to this machine must not pass a proxy elsewhere.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| Failure::failed(format!("no HTTP client: {error}")))?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), key, ca_pem, http })
    }

    /// Base URL, without a trailing slash.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The key.
    pub(crate) fn key(&self) -> &ApiKey {
        &self.key
    }

    /// The CA of the API's certificate, if it is not publicly trusted.
    pub(crate) fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Asks for an object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, None::<&()>).await
    }

    /// Asks for an object; `None` when there is none.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        let response = self.request(Method::GET, path, None::<&()>).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        self.read(path, response).await.map(Some)
    }

    /// Asks for something to be done.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Asks for something to be removed.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::DELETE, path, None::<&()>).await
    }

    /// Asks for a stream, which may last.
    pub(crate) async fn stream(&self, path: &str) -> Result<reqwest::Response, Failure> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(self.key.expose()).timeout(STREAM);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        self.read::<serde_json::Value>(path, response).await.and(Err(Failure::failed("the hub refused the stream")))
    }

    /// Every item of a list, page by page. `path` may have a query.
    pub(crate) async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        self.all_by(PAGE, path).await
    }

    /// The same where pages are smaller.
    pub(crate) async fn all_by<T: DeserializeOwned>(&self, limit: u32, path: &str) -> Result<Vec<T>, Failure> {
        let mut items = Vec::new();
        let mut page = String::new();
        let joint = if path.contains('?') { '&' } else { '?' };
        loop {
            let mut list: List<T> = self.get(&format!("{path}{joint}limit={limit}{page}")).await?;
            items.append(&mut list.data);
            match list.next_page {
                Some(next) => page = format!("&page={next}"),
                None => return Ok(items),
            }
        }
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let response = self.request(method, path, body).await?;
        self.read(path, response).await
    }

    async fn request<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<reqwest::Response, Failure> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(self.key.expose())
            .header("anthropic-version", "2023-06-01")
            .header("anthropic-beta", "mcp-tunnels-2026-06-22");
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let cause = root_cause(error);
        let next = if error.is_connect() { ": is the hub running there?" } else { "" };
        Failure::failed(format!("{} cannot be reached ({cause}){next}", self.base))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str, response: reqwest::Response) -> Result<T, Failure> {
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|error| Failure::failed(format!("{}{path}: {}", self.base, root_cause(&error))))?;
        if status.is_success() {
            let unreadable =
                |error| Failure::failed(format!("{}{path} answered what cannot be read: {error}", self.base));
            return serde_json::from_slice(&body).map_err(unreadable);
        }
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = value.pointer("/error/message").and_then(|message| message.as_str()).unwrap_or("no reason given");
        let next = match status {
            StatusCode::UNAUTHORIZED => " (check the key: SORTIE_API_KEY, or API_TOKEN for setup)",
            StatusCode::FORBIDDEN => " (this needs a manage key)",
            _ => "",
        };
        let message = crate::output::printable(message);
        Err(Failure::failed(format!("the hub answered {}: {message}{next}", status.as_u16())))
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
