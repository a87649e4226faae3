//! The admin socket of a gateway on this machine, as commands use it.

use std::path::Path;
use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sortie_gateway::AdminAddress;

use crate::error::Failure;
use crate::profile;

/// Longest a request of a command may take: a little more than the gateway gives it.
const DEADLINE: Duration = Duration::from_secs(35);

/// A gateway on this machine.
pub(crate) struct LocalGateway {
    http: reqwest::Client,
    socket: String,
    /// Keeps a directory with a long path open.
    _address: AdminAddress,
}

impl LocalGateway {
    /// The gateway that serves a data directory, by default that of `sortie up`; `None` when it has no socket.
    pub(crate) fn find(data_dir: Option<&Path>) -> Result<Option<Self>, Failure> {
        let dir = match data_dir {
            Some(dir) => dir.to_owned(),
            None => profile::data_dir()?,
        };
        let dir = std::path::absolute(&dir).map_err(Failure::usage)?;
        let unusable = |error: std::io::Error| Failure::failed(format!("{}: {error}", dir.display()));
        let address = match AdminAddress::of(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            address => address.map_err(unusable)?,
        };
        if !address.path().try_exists().map_err(unusable)? {
            return Ok(None);
        }
        let built = reqwest::Client::builder().unix_socket(address.path()).no_proxy().timeout(DEADLINE).build();
        let http = built.map_err(|error| Failure::failed(format!("no HTTP client: {error}")))?;
        Ok(Some(Self { http, socket: dir.join("admin.sock").display().to_string(), _address: address }))
    }

    /// The same where there has to be one.
    pub(crate) fn open(data_dir: Option<&Path>) -> Result<Self, Failure> {
        let missing = "no gateway serves this data directory: name that of a running `sortie gateway` or `sortie up` \
                       with --data-dir";
        Self::find(data_dir)?.ok_or_else(|| Failure::usage(missing))
    }

    /// Asks for an object.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, None::<&()>).await
    }

    /// Asks for something to be done.
    pub(crate) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Failure> {
        self.send(Method::POST, path, Some(body)).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let mut request = self.http.request(method, format!("http://gateway{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |error: reqwest::Error| {
            let next = if error.is_connect() { ": is the gateway running, and as this user?" } else { "" };
            Failure::failed(format!("{} does not answer{next}", self.socket))
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            let unreadable = |error| Failure::failed(format!("the gateway answered what cannot be read: {error}"));
            return serde_json::from_slice(&body).map_err(unreadable);
        }
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = value.pointer("/error/message").and_then(|message| message.as_str()).unwrap_or("no reason given");
        Err(Failure::failed(format!("the gateway answered {}: {}", status.as_u16(), crate::output::printable(message))))
    }
}
