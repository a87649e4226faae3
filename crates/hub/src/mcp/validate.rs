//! Whether a credential works, found out at its server: what is told holds nothing secret.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use serde_json::Value;
use sortie_api::{
    ApiError, CredentialAuth, CredentialValidation, McpProbe, ProbedResponse, RefreshAttempt, RefreshStatus,
    SecretText, ValidationStatus,
};
use sortie_identity::{Assurance, Caller};
use sortie_mcp::remote::{Answer, Carrier, Failure, Remote};
use sortie_store::{FoundCredential, KnownKey};

use super::credentials::{Bearers, Wanted, bearer, token};
use super::oauth::{Refresh, shown_of};
use super::way::Way;
use super::{Servers, endpoint};

/// How long a server may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// How much of a refusal is read, in bytes.
const MAX_REFUSAL: usize = 16 * 1024;

/// Tries credentials. The default one reaches no server.
#[derive(Clone, Default)]
pub struct Validator(Option<Servers>);

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").finish_non_exhaustive()
    }
}

impl Validator {
    pub(crate) fn new(servers: Servers) -> Self {
        Self(Some(servers))
    }

    /// Uses a credential of OAuth at its server, as the holder of this key.
    pub(crate) async fn validate(
        &self,
        key: &KnownKey,
        found: FoundCredential,
    ) -> Result<CredentialValidation, ApiError> {
        let CredentialAuth::McpOauth { mcp_server_url, .. } = &found.auth else {
            let kind = found.auth.kind();
            let reason = format!("Only credentials of the type `mcp_oauth` can be validated, and this is `{kind}`.");
            return Err(ApiError::invalid_request(reason));
        };
        let url = mcp_server_url.clone();
        let Some(servers) = &self.0 else {
            return Err(ApiError::invalid_request("This hub reaches no MCP servers.".to_owned()));
        };
        Ok(servers.validate(key, &url, found).await)
    }
}

impl Servers {
    /// Uses a credential at its server, as the holder of this key; where its token is refused, gets a new one first.
    async fn validate(&self, key: &KnownKey, url: &str, found: FoundCredential) -> CredentialValidation {
        let has_refresh_token = Refresh::of(&found.auth, &found.secrets).is_some();
        let (credential_id, vault_id) = (found.id.clone(), found.vault.clone());
        let mut probed = self.probe(key, url, &found).await;
        let mut refresh = None;
        if let Err(Probed { failure: Failure::Unauthorized { status: 401 }, .. }) = &probed {
            let (attempt, renewed) = self.attempt(key, url, &found).await;
            refresh = Some(attempt);
            if let Some(renewed) = renewed {
                probed = self.probe(key, url, &renewed).await;
            }
        }
        let status = match &probed {
            Ok(()) => ValidationStatus::Valid,
            Err(Probed { failure: Failure::Unauthorized { .. }, .. }) => ValidationStatus::Invalid,
            Err(_) => ValidationStatus::Unknown,
        };
        let mcp_probe = probed.err().map(|probed| McpProbe { method: probed.method, http_response: probed.answer });
        let validated_at = self.0.calls.store.now();
        CredentialValidation { credential_id, vault_id, status, has_refresh_token, validated_at, mcp_probe, refresh }
    }

    async fn probe(&self, key: &KnownKey, url: &str, found: &FoundCredential) -> Result<(), Probed> {
        let nowhere = |failure| Probed { method: "initialize".to_owned(), failure, answer: None };
        let unreachable = |reason| nowhere(Failure::Unreachable(reason));
        let place = self.place(url).map_err(|error| unreachable(error.reason))?;
        let endpoint = endpoint(&self.0.home, &place, url).ok_or_else(|| unreachable("its URL is none".to_owned()))?;
        let bearers = Bearers::Fixed(bearer(found).map_err(|problem| unreachable(problem.message))?);
        let way = self.way(place, key.workspace.clone(), holder(key), bearers);
        let watched = Arc::new(Watched { way, secret: token(&found.secrets).cloned(), last: Mutex::default() });
        let carrier: Arc<dyn Carrier> = watched.clone();
        let probing = async {
            let remote = Remote::open(&carrier, endpoint).await?;
            let listed = remote.tools(&carrier).await.map(drop);
            remote.close(&carrier).await;
            listed
        };
        let silent = |_| Err(Failure::Silent { seconds: DEADLINE.as_secs() });
        let Err(failure) = tokio::time::timeout(DEADLINE, probing).await.unwrap_or_else(silent) else { return Ok(()) };
        let (method, answer) = watched.last.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Err(Probed { method, failure, answer })
    }

    /// Gets a new token, and says how that went.
    async fn attempt(
        &self,
        key: &KnownKey,
        url: &str,
        found: &FoundCredential,
    ) -> (RefreshAttempt, Option<FoundCredential>) {
        let said = |status| RefreshAttempt { status, http_response: None };
        if Refresh::of(&found.auth, &found.secrets).is_none() {
            return (said(RefreshStatus::NoRefreshToken), None);
        }
        let credentials = self.0.credentials.clone();
        credentials.forget_failure(&found.id);
        let (workspace, vaults) = (key.workspace.clone(), vec![found.vault.clone()]);
        let wanted = Wanted { credentials, workspace, vaults, url: url.to_owned() };
        match self.0.credentials.renew(&wanted, found.clone()).await {
            Ok(renewed) => (said(RefreshStatus::Succeeded), Some(renewed)),
            Err(problem) => {
                (problem.attempt.map_or_else(|| said(RefreshStatus::ConnectError), |attempt| *attempt), None)
            }
        }
    }
}

/// The step that failed.
struct Probed {
    method: String,
    failure: Failure,
    answer: Option<ProbedResponse>,
}

/// A way on which the last step is remembered, with its answer where that was a refusal.
struct Watched {
    way: Arc<Way>,
    secret: Option<SecretText>,
    last: Mutex<Option<(String, Option<ProbedResponse>)>>,
}

impl Watched {
    fn keep(&self, method: String, answer: Option<ProbedResponse>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((method, answer));
    }
}

impl Carrier for Watched {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Answer>, Failure>> {
        Box::pin(async move {
            let message = serde_json::from_slice::<Value>(request.body()).unwrap_or_default();
            let method = message.get("method").and_then(Value::as_str).unwrap_or_default().to_owned();
            self.keep(method.clone(), None);
            let answer = self.way.send(request).await?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let (head, mut body) = answer.into_parts();
            let mut read = Vec::new();
            while let Some(Ok(piece)) = body.next().await {
                read.extend_from_slice(&piece);
                if read.len() > MAX_REFUSAL {
                    break;
                }
            }
            let kind = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let secrets: Vec<_> = self.secret.iter().collect();
            let shown = shown_of(head.status, kind.chars().take(200).collect(), &read, &secrets);
            self.keep(method, Some(shown));
            Ok(Response::from_parts(head, stream::iter([Ok(Bytes::from(read))]).boxed()))
        })
    }

    fn behind(&self, task: BoxFuture<'static, ()>) {
        self.way.behind(task);
    }
}

/// The caller that a key stands for.
fn holder(key: &KnownKey) -> Caller {
    Caller {
        organization: Some(key.organization.to_string()),
        workspace: Some(key.workspace.to_string()),
        key: Some(key.id.to_string()),
        ..Caller::new("", format!("key:{}", key.id), Assurance::Asserted, i64::MAX)
    }
}
