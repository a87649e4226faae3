//! Who calls: from the headers of a request to what its key stands for. Shared by the API and by calls to routes.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::{SignedDuration, Timestamp};
use sortie_api::{ApiError, KeyKind, KeyRole};
use sortie_ids::{ApiKey, RouteName};
use sortie_store::{KnownKey, Store, StoreError, TunnelRecord, WorkToken};

/// The header that carries a key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The authenticated sender of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What its key stands for: id, workspace, organisation, kind, grants.
    pub key: Arc<KnownKey>,
    /// The item of work whose token it sent: it acts for that item and its session only, and `key` is the one that the item
    /// was asked for with.
    pub work: Option<Arc<WorkToken>>,
    /// The header that the key came in, which is never forwarded.
    pub carried_by: HeaderName,
}

impl Caller {
    /// Whether the key may call this route: one of its own workspace, and for a `use` key one that is granted. Of
    /// `manage` keys those of administrators may.
    pub fn may_call(&self, tunnel: &TunnelRecord, route: &RouteName) -> bool {
        tunnel.workspace == self.key.workspace
            && match self.key.kind {
                KeyKind::Manage => self.key.role == KeyRole::Admin,
                KeyKind::Use => self.key.grants.iter().any(|grant| grant.covers(&tunnel.id, route)),
                KeyKind::Environment => false,
            }
    }
}

/// Finds out who sent a request: by `x-api-key` where that header is, else by `Authorization: Bearer` (RFC 6750,
/// section 2.1). A key that was looked up within the last 5 seconds costs no database access.
///
/// # Errors
/// 401 when there is no key, more than one in the same header, or it is unknown, expired or archived; the answer does
/// not say which. 503 when the database cannot be asked.
pub async fn authenticate(store: &Store, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let (text, carried_by) = presented(headers)?;
    let refused = || ApiError::authentication("The API key is unknown, expired or archived.");
    let failed = |error: StoreError| {
        tracing::error!(%error, source = ?std::error::Error::source(&error), "a key could not be looked up");
        ApiError::overloaded("The API key cannot be checked at the moment.")
    };
    let key = ApiKey::parse(text).map_err(|_| refused())?;
    let (digest, work) = if text.starts_with(SESSION_TOKEN) {
        let found = store.work_by_token(&key.digest()).await.map_err(failed)?;
        let found = found.filter(|(work, _)| is_remembered(work, store.now()));
        let (work, key) =
            found.ok_or_else(|| ApiError::authentication("The session token is unknown, or has ended."))?;
        (key, Some(Arc::new(work)))
    } else {
        (key.digest(), None)
    };
    let known = store.key_by_digest(&digest).await.map_err(failed)?;
    let known = known.filter(|known| known.is_valid(store.now())).ok_or_else(refused)?;
    store.note_use(&known);
    Ok(Caller { key: known, work, carried_by })
}

/// What every session token begins with.
const SESSION_TOKEN: &str = "sortie-session-";
/// How long after its end a worker is told of an item that it is over.
const TOLD_OF_THE_END: SignedDuration = SignedDuration::from_hours(1);

fn is_remembered(work: &WorkToken, now: Timestamp) -> bool {
    work.stopped_at.is_none_or(|end| now.duration_since(end) < TOLD_OF_THE_END)
}

fn presented(headers: &HeaderMap) -> Result<(&str, HeaderName), ApiError> {
    if let Some(value) = only(headers, &API_KEY)? {
        return Ok((value.to_str().unwrap_or(""), API_KEY));
    }
    let bearer = only(headers, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim_ascii())
    });
    let missing = "No API key was sent; put one into the x-api-key header, or into authorization after `Bearer`.";
    bearer.map(|token| (token, header::AUTHORIZATION)).ok_or_else(|| ApiError::authentication(missing))
}

fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(ApiError::authentication(format!("The {name} header was sent more than once."))),
        (first, None) => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use sortie_api::{CreateKey, Grant, Limits};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).expect("value");
        pairs.iter().map(|(name, text)| (HeaderName::from_static(name), value(text))).collect()
    }

    #[tokio::test]
    async fn keys_come_in_either_header() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let new = CreateKey {
            role: None,
            kind: KeyKind::Manage,
            name: "ops".parse().expect("name"),
            expires_at: None,
            grants: Vec::new(),
            agent: None,
            user: None,
            workspace_id: None,
        };
        let home = store.default_workspace().clone();
        let made = store.create_key(&home, new, &Limits::default()).await.expect("key");
        let secret = made.secret.expose();
        let bearer = format!("Bearer {secret}");
        for (pairs, carrier) in [
            (vec![("x-api-key", secret)], API_KEY),
            (vec![("authorization", bearer.as_str())], header::AUTHORIZATION),
            (vec![("x-api-key", secret), ("authorization", "Bearer for-the-upstream")], API_KEY),
        ] {
            let caller = authenticate(&store, &headers(&pairs)).await.expect("known");
            assert_eq!((&caller.key.id, caller.carried_by), (&made.key.id, carrier));
        }
        let lower = format!("bearer {secret}");
        assert!(authenticate(&store, &headers(&[("authorization", &lower)])).await.is_ok());
        for pairs in [
            vec![],
            vec![("x-api-key", "")],
            vec![("x-api-key", "sortie-manage-guess")],
            vec![("x-api-key", "sortie-manage-guess"), ("authorization", bearer.as_str())],
            vec![("authorization", secret)],
            vec![("authorization", "Basic YTpi")],
            vec![("authorization", "Bearer ")],
        ] {
            let error = authenticate(&store, &headers(&pairs)).await.expect_err("refused");
            assert_eq!(error.status.as_u16(), 401, "{pairs:?}");
            assert!(!error.message.contains("guess"));
        }
        let mut twice = headers(&[("x-api-key", secret)]);
        twice.append(API_KEY, HeaderValue::from_str(secret).expect("value"));
        assert!(authenticate(&store, &twice).await.is_err());

        store.archive_key(&home, &made.key.id).await.expect("archived");
        assert!(authenticate(&store, &headers(&[("x-api-key", secret)])).await.is_err());
    }

    #[tokio::test]
    async fn a_use_key_calls_what_it_was_given() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let (home, limits) = (store.default_workspace().clone(), Limits::default());
        let tunnel = store.create_tunnel(&home, None, &limits).await.expect("tunnel");
        let other = store.create_tunnel(&home, None, &limits).await.expect("tunnel");
        let files: RouteName = "files".parse().expect("route");
        let tickets: RouteName = "tickets".parse().expect("route");
        let grants = vec![Grant { tunnel_id: tunnel.id.clone(), route: Some(files.clone()) }];
        let name: sortie_api::DisplayName = "agent".parse().expect("name");
        let new = CreateKey {
            role: None,
            kind: KeyKind::Use,
            name: name.clone(),
            expires_at: None,
            grants,
            agent: None,
            user: None,
            workspace_id: None,
        };
        let made = store.create_key(&home, new, &limits).await.expect("key");
        let caller = authenticate(&store, &headers(&[("x-api-key", made.secret.expose())])).await.expect("known");
        assert!(caller.may_call(&tunnel, &files));
        assert!(!caller.may_call(&tunnel, &tickets));
        assert!(!caller.may_call(&other, &files));

        let new = CreateKey {
            role: None,
            kind: KeyKind::Manage,
            name,
            expires_at: None,
            grants: Vec::new(),
            agent: None,
            user: None,
            workspace_id: None,
        };
        let made = store.create_key(&home, new, &limits).await.expect("key");
        let caller = authenticate(&store, &headers(&[("x-api-key", made.secret.expose())])).await.expect("known");
        assert!(caller.may_call(&other, &tickets));
        let foreign = TunnelRecord { workspace: sortie_ids::WorkspaceId::random(), ..other };
        assert!(!caller.may_call(&foreign, &tickets));
    }
}
