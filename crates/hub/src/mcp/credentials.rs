//! The credentials of vaults, at use: found by the server's URL, fresh when they are sent, and never told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use jiff::Timestamp;
use sortie_api::{CredentialAuth, CredentialSecrets, RefreshAttempt, RefreshStatus, SecretText, normalized_mcp_url};
use sortie_ids::{CredentialId, Digest, VaultId, WorkspaceId};
use sortie_runtime::TaskSet;
use sortie_store::{FoundCredential, NewTokens, Store};

use super::oauth::{self, NotGranted, Refresh};
use super::place::{Home, PrivateHost};
use super::way::Outside;
use super::{AUTHENTICATION_FAILED, HOST_UNREACHABLE};
use zeroize::Zeroizing;

/// A token is not used in the last part of its life: what is on its way must arrive with it.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a failure to renew a token stands for others that want the same.
const FAILURE_STANDS: Duration = Duration::from_secs(5);

/// What goes into `Authorization`.
#[derive(Clone)]
pub(crate) struct Bearer {
    /// Marked as sensitive.
    pub(crate) header: HeaderValue,
    token: Digest,
}

/// Why there is no credential although there should be one. Holds no secret.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) vault: Option<VaultId>,
    pub(crate) credential: Option<CredentialId>,
    /// How getting a new token went wrong, where that is what was wrong.
    pub(crate) attempt: Option<Box<RefreshAttempt>>,
}

/// Finds credentials, and renews them: one exchange at a time for each.
#[derive(Clone)]
pub(crate) struct Credentials(Arc<Inner>);

struct Inner {
    store: Store,
    outside: Arc<Outside>,
    home: Home,
    private: Vec<PrivateHost>,
    tasks: TaskSet,
    renewing: Mutex<HashMap<CredentialId, Arc<Turn>>>,
}

/// Whose turn it is to renew, and how it went wrong last.
type Turn = tokio::sync::Mutex<Option<Failed>>;

/// A renewal that came to nothing: when, of which token, and why.
struct Failed {
    at: Instant,
    of: Digest,
    problem: Problem,
}

/// The credential for one server.
pub(crate) enum Bearers {
    /// What the vaults of a session have for it.
    Kept(Wanted),
    /// This one, and no other.
    Fixed(Bearer),
}

/// What is looked for.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) credentials: Credentials,
    pub(crate) workspace: WorkspaceId,
    pub(crate) vaults: Vec<VaultId>,
    /// The server's URL, as agents name it.
    pub(crate) url: String,
}

impl Bearers {
    /// What is to be sent; `None` where no vault has anything for this server.
    pub(crate) async fn get(&self) -> Result<Option<Bearer>, Problem> {
        match self {
            Self::Kept(wanted) => wanted.get().await,
            Self::Fixed(bearer) => Ok(Some(bearer.clone())),
        }
    }

    /// What is to be sent in place of what was refused; `None` where there is nothing else.
    pub(crate) async fn renewed(&self, refused: &Bearer) -> Result<Option<Bearer>, Problem> {
        match self {
            Self::Kept(wanted) => wanted.renewed(refused).await,
            Self::Fixed(_) => Ok(None),
        }
    }
}

impl Wanted {
    async fn get(&self) -> Result<Option<Bearer>, Problem> {
        let Some(found) = self.find().await? else { return Ok(None) };
        let now = self.credentials.0.store.now();
        let end = expires_at(&found);
        let is_over = |margin: Duration| end.is_some_and(|at| now.saturating_add(margin).is_ok_and(|now| at <= now));
        if Refresh::of(&found.auth, &found.secrets).is_none() || !is_over(MARGIN) {
            return bearer(&found).map(Some);
        }
        match self.credentials.renew(self, found.clone()).await {
            Ok(found) => bearer(&found).map(Some),
            // It is still good for a moment.
            Err(problem) if !is_over(Duration::ZERO) => {
                tracing::warn!("{}", problem.message);
                bearer(&found).map(Some)
            }
            Err(problem) => Err(problem),
        }
    }

    async fn renewed(&self, refused: &Bearer) -> Result<Option<Bearer>, Problem> {
        let Some(found) = self.find().await? else { return Ok(None) };
        let now = bearer(&found)?;
        if now.token != refused.token {
            return Ok(Some(now));
        }
        if Refresh::of(&found.auth, &found.secrets).is_none() {
            return Err(problem(&found, "the server does not take its token: replace it"));
        }
        bearer(&self.credentials.renew(self, found).await?).map(Some)
    }

    async fn find(&self) -> Result<Option<FoundCredential>, Problem> {
        let Some(place) = normalized_mcp_url(&self.url).filter(|_| !self.vaults.is_empty()) else { return Ok(None) };
        let store = &self.credentials.0.store;
        store.credentials_for(&self.workspace, &self.vaults, &place).await.map_err(|error| {
            tracing::error!(%error, source = ?std::error::Error::source(&error), "a credential could not be looked up");
            let message = "The credentials of the session's vaults cannot be looked up at the moment.".to_owned();
            Problem { kind: AUTHENTICATION_FAILED, message, vault: None, credential: None, attempt: None }
        })
    }
}

impl Credentials {
    pub(crate) fn new(
        store: Store,
        outside: Arc<Outside>,
        home: Home,
        private: Vec<PrivateHost>,
        tasks: TaskSet,
    ) -> Self {
        let renewing = Mutex::default();
        Self(Arc::new(Inner { store, outside, home, private, tasks, renewing }))
    }

    /// A credential with new tokens, asked for by one for all. Who leaves does not stop it: the endpoint may have taken
    /// the old refresh token back already, and the new one must be kept.
    pub(crate) async fn renew(&self, wanted: &Wanted, old: FoundCredential) -> Result<FoundCredential, Problem> {
        let (sender, renewed) = tokio::sync::oneshot::channel();
        let (this, wanted, lost) = (self.clone(), wanted.clone(), problem(&old, "the hub is stopping"));
        self.0.tasks.spawn("credential-renewal", async move {
            drop(sender.send(this.renew_in_turn(&wanted, old).await));
        });
        renewed.await.unwrap_or(Err(lost))
    }

    /// Lets the next renewal of a credential ask again, whatever came of the last one.
    pub(crate) fn forget_failure(&self, id: &CredentialId) {
        let renewing = self.0.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(mut failed)) = renewing.get(id).map(|turn| turn.try_lock()) {
            *failed = None;
        }
    }

    async fn renew_in_turn(&self, wanted: &Wanted, old: FoundCredential) -> Result<FoundCredential, Problem> {
        let turn = {
            let mut renewing = self.0.renewing.lock().unwrap_or_else(PoisonError::into_inner);
            renewing.retain(|_, turn| Arc::strong_count(turn) > 1 || turn.try_lock().is_ok_and(|turn| stands(&turn)));
            renewing.entry(old.id.clone()).or_default().clone()
        };
        let mut turn = turn.lock().await;
        let refused = bearer(&old)?.token;
        match wanted.find().await? {
            // Somebody else was faster.
            Some(found) if bearer(&found)?.token != refused => return Ok(found),
            Some(_) => {}
            None => return Err(problem(&old, "it was archived or deleted just now")),
        }
        if let Some(failed) = turn.as_ref().filter(|failed| stands(&turn) && failed.of == refused) {
            return Err(failed.problem.clone());
        }
        let renewed = self.exchange(wanted, &old).await;
        *turn =
            renewed.as_ref().err().map(|problem| Failed { at: Instant::now(), of: refused, problem: problem.clone() });
        renewed
    }

    async fn exchange(&self, wanted: &Wanted, old: &FoundCredential) -> Result<FoundCredential, Problem> {
        let inner = &self.0;
        let refresh = Refresh::of(&old.auth, &old.secrets).ok_or_else(|| problem(old, "it has no refresh token"))?;
        let granted = oauth::refresh(&inner.outside, &inner.home, &inner.private, &refresh).await;
        let outcome = if granted.is_ok() { "ok" } else { "failed" };
        metrics::counter!("sortie_hub_credential_renewals_total", "result" => outcome).increment(1);
        let granted = granted.map_err(|refused| not_renewed(old, refused))?;
        let now = inner.store.now();
        let ends = |seconds| now.saturating_add(Duration::from_secs(seconds)).ok();
        let expires_at = granted.expires_in.and_then(ends);
        let tokens = NewTokens { access_token: granted.access_token, refresh_token: granted.refresh_token, expires_at };
        let kept = inner.store.replace_tokens(&old.id, old.revision, tokens).await.map_err(|error| {
            tracing::error!(%error, source = ?std::error::Error::source(&error), "new tokens could not be kept");
            problem(old, "its new tokens cannot be kept at the moment")
        })?;
        match kept {
            Some(_) => tracing::info!(vault = %old.vault, credential = %old.id, "a credential has new tokens"),
            // Somebody else has replaced it meanwhile: theirs counts.
            None => tracing::info!(vault = %old.vault, credential = %old.id, "a credential was replaced meanwhile"),
        }
        wanted.find().await?.ok_or_else(|| problem(old, "it was archived or deleted just now"))
    }
}

/// Says what is wrong with a credential, and never what it is.
fn problem(found: &FoundCredential, reason: &str) -> Problem {
    let message = format!("The credential `{}` of the vault `{}` cannot be used: {reason}.", found.id, found.vault);
    let (vault, credential) = (Some(found.vault.clone()), Some(found.id.clone()));
    Problem { kind: AUTHENTICATION_FAILED, message, vault, credential, attempt: None }
}

fn not_renewed(found: &FoundCredential, refused: NotGranted) -> Problem {
    match refused {
        NotGranted::Unreachable(reason) => {
            let problem = problem(found, &format!("its token endpoint cannot be reached: {reason}"));
            let attempt = RefreshAttempt { status: RefreshStatus::ConnectError, http_response: None };
            Problem { kind: HOST_UNREACHABLE, attempt: Some(Box::new(attempt)), ..problem }
        }
        NotGranted::Refused { reason, answer } => {
            let reason = format!("its token endpoint gives no new token ({reason}): authorise anew");
            let attempt = RefreshAttempt { status: RefreshStatus::Failed, http_response: Some(answer) };
            Problem { attempt: Some(Box::new(attempt)), ..problem(found, &reason) }
        }
    }
}

fn stands(turn: &Option<Failed>) -> bool {
    turn.as_ref().is_some_and(|failed| failed.at.elapsed() < FAILURE_STANDS)
}

/// What a credential sends.
pub(crate) fn bearer(found: &FoundCredential) -> Result<Bearer, Problem> {
    let unfit = || problem(found, "it is none for an MCP server");
    let token = token(&found.secrets).ok_or_else(unfit)?;
    let text = Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut header =
        HeaderValue::from_str(&text).map_err(|_| problem(found, "its token cannot be sent in a header"))?;
    header.set_sensitive(true);
    Ok(Bearer { header, token: Digest::of(token.expose().as_bytes()) })
}

/// The token of a credential for an MCP server.
pub(crate) fn token(secrets: &CredentialSecrets) -> Option<&SecretText> {
    match secrets {
        CredentialSecrets::Bearer { token } => Some(token),
        CredentialSecrets::Oauth { access_token, .. } => Some(access_token),
        CredentialSecrets::Variable { .. } => None,
    }
}

fn expires_at(found: &FoundCredential) -> Option<Timestamp> {
    match &found.auth {
        CredentialAuth::McpOauth { expires_at, .. } => *expires_at,
        _ => None,
    }
}
