//! API keys: kept as digests, found by digest, remembered for a moment so that calls do not wait for the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use sortie_api::{CreateKey, CreatedKey, DisplayName, Grant, Key, KeyKind, KeyRole, Limits, PageRequest};
use sortie_ids::{ApiKey, Digest, EnvironmentId, KeyId, OrganizationId, WorkspaceId};

use crate::db::{self, Connection, Row, Transaction};
use crate::error::During as _;
use crate::repeats::{Made, Once};
use crate::store::{Change, Page, to_the_end};
use crate::{Object, Store, StoreError, tunnels};

/// How long a key that was found is believed, in seconds. An archived one is forgotten at once by this process.
const BELIEVED: i64 = 5;
/// Keys remembered at most; when it is full, all are forgotten.
const REMEMBERED: usize = 10_000;
/// Seconds between two notes of a key's use.
const USE_NOTED_EVERY: i64 = 60;

/// What a presented key stands for.
#[derive(Debug)]
pub struct KnownKey {
    /// Its id.
    pub id: KeyId,
    /// The workspace it acts in.
    pub workspace: WorkspaceId,
    /// The organisation of the workspace.
    pub organization: OrganizationId,
    /// What it is for.
    pub kind: KeyKind,
    /// How much a `manage` key may do.
    pub role: KeyRole,
    /// What a `use` key may call.
    pub grants: Arc<[Grant]>,
    /// The agent that calls with it.
    pub agent: Option<DisplayName>,
    /// The person that it is used for.
    pub user: Option<DisplayName>,
    /// The environment that an `environment` key is for.
    pub environment: Option<EnvironmentId>,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// When it was withdrawn.
    pub archived_at: Option<Timestamp>,
    /// Unix seconds; `i64::MIN` for never.
    last_used: AtomicI64,
}

impl KnownKey {
    /// Whether it is neither withdrawn nor expired.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.archived_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// The outcome of archiving a key.
#[derive(Clone, Debug)]
pub struct ArchivedKey {
    /// The key.
    pub key: Key,
    /// False when it was archived before, and nothing changed.
    pub fresh: bool,
}

/// The columns that [`Key`] is made of, its grants aside.
macro_rules! select_key {
    ($rest:literal) => {
        concat!(
            "SELECT seq, id, workspace_id, kind, name, agent, \"user\", environment_id, role, created_at, expires_at, archived_at, \
             last_used_at FROM keys ",
            $rest
        )
    };
}

impl Store {
    /// Makes a key. The answer is the only place where its secret is.
    ///
    /// # Errors
    /// [`StoreError::KeyRefused`], [`StoreError::GrantOfNothing`], [`StoreError::TooManyKeys`], or
    /// [`StoreError::NotFound`] for the workspace; database errors.
    pub async fn create_key(
        &self,
        workspace: &WorkspaceId,
        new: CreateKey,
        limits: &Limits,
    ) -> Result<CreatedKey, StoreError> {
        let now = self.now();
        check(&new, now, limits)?;
        self.organization_of(workspace).await?;
        let (store, workspace, limit) = (self.clone(), workspace.clone(), limits.keys_per_workspace);
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let made = insert_new(&mut transaction, workspace, new, limit, now).await?;
            transaction.commit().await.during("committing")?;
            Ok(made)
        })
        .await
    }

    /// The same once for each idempotency key, of which `home` is the workspace that it was sent in.
    ///
    /// # Errors
    /// As [`Store::create_key`], and [`StoreError::IdempotencyKeyReused`] or [`StoreError::TooManyIdempotencyKeys`].
    pub async fn create_key_once(
        &self,
        home: &WorkspaceId,
        workspace: &WorkspaceId,
        new: CreateKey,
        limits: &Limits,
        once: Once<CreatedKey>,
    ) -> Result<Made<CreatedKey>, StoreError> {
        self.organization_of(workspace).await?;
        let (store, home, workspace, limits) = (self.clone(), home.clone(), workspace.clone(), *limits);
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            if let Some(answered) = store.answered(&mut transaction, &home, &once).await? {
                return Ok(answered);
            }
            let now = store.now();
            check(&new, now, &limits)?;
            let made = insert_new(&mut transaction, workspace, new, limits.keys_per_workspace, now).await?;
            store.keep_answer(&mut transaction, &home, once, &made).await?;
            transaction.commit().await.during("committing")?;
            Ok(Made::Now(made))
        })
        .await
    }

    /// The workspace's keys, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_keys(&self, workspace: &WorkspaceId, page: PageRequest) -> Result<Page<Key>, StoreError> {
        let rows = db::query(select_key!(
            "WHERE workspace_id = $1 AND ($2 = 1 OR archived_at IS NULL) AND seq < $3 ORDER BY seq DESC LIMIT $4"
        ))
        .bind(workspace.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing keys")?;
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            items.push((row.integer("seq")?, with_grants(self.db().on(), row).await?));
        }
        Ok(Page::of(items, page.limit))
    }

    /// A key of the workspace, live or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn get_key(&self, workspace: &WorkspaceId, id: &KeyId) -> Result<Key, StoreError> {
        find(self.db().on(), workspace, id).await
    }

    /// Withdraws a key for good. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn archive_key(&self, workspace: &WorkspaceId, id: &KeyId) -> Result<ArchivedKey, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let mut key = find(transaction.on(), &workspace, &id).await?;
            if key.archived_at.is_some() {
                return Ok(ArchivedKey { key, fresh: false });
            }
            let now = store.now();
            db::query("UPDATE keys SET archived_at = $1 WHERE id = $2")
                .bind(now.as_second())
                .bind(id.as_str())
                .execute(transaction.on())
                .await
                .during("archiving a key")?;
            transaction.commit().await.during("committing")?;
            store.known_keys().forget_all();
            store.announce(Change::KeyArchived(id));
            key.archived_at = Some(now);
            Ok(ArchivedKey { key, fresh: true })
        })
        .await
    }

    /// What the key with this digest stands for, of any workspace, also when it is archived or expired: ask
    /// [`KnownKey::is_valid`]. The answer may be 5 seconds old, but never from before this process archived the key.
    ///
    /// # Errors
    /// Database errors.
    pub async fn key_by_digest(&self, digest: &Digest) -> Result<Option<Arc<KnownKey>>, StoreError> {
        let now = self.now();
        let generation = match self.known_keys().get(digest, now) {
            Ok(known) => return Ok(Some(known)),
            Err(generation) => generation,
        };
        let row = db::query(
            "SELECT k.id, k.workspace_id, w.organization_id, k.kind, k.agent, k.\"user\", k.expires_at, k.archived_at, \
             k.last_used_at, k.environment_id, k.role \
             FROM keys k JOIN workspaces w ON w.id = k.workspace_id WHERE k.digest = $1",
        )
        .bind(digest.as_bytes())
        .read_optional(&self.db())
        .await
        .during("looking a key up")?;
        let Some(row) = row else { return Ok(None) };
        let id: KeyId = row.parsed("id")?;
        let known = Arc::new(KnownKey {
            workspace: row.parsed("workspace_id")?,
            organization: row.parsed("organization_id")?,
            kind: kind(&row)?,
            role: role(&row)?.unwrap_or(KeyRole::Admin),
            grants: grants(self.db().on(), &id).await?.into(),
            agent: row.optional_parsed("agent")?,
            user: row.optional_parsed("user")?,
            environment: row.optional_parsed("environment_id")?,
            expires_at: row.optional_time("expires_at")?,
            archived_at: row.optional_time("archived_at")?,
            last_used: AtomicI64::new(row.optional_time("last_used_at")?.map_or(i64::MIN, Timestamp::as_second)),
            id,
        });
        self.known_keys().put(*digest, Arc::clone(&known), now, generation);
        Ok(Some(known))
    }

    /// Notes that a key was accepted: about once a minute, in the background. A note that fails is logged.
    pub fn note_use(&self, key: &KnownKey) {
        let now = self.now().as_second();
        let last = key.last_used.load(Ordering::Relaxed);
        if now.saturating_sub(last) < USE_NOTED_EVERY {
            return;
        }
        if key.last_used.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.write_use(key.id.clone(), now);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "one short write, which the pool's close waits for; no call waits")]
    fn write_use(&self, id: KeyId, now: i64) {
        let store = self.clone();
        tokio::spawn(async move {
            let written = async {
                let mut transaction = store.begin().await?;
                db::query(
                    "UPDATE keys SET last_used_at = $1 \
                     WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)",
                )
                .bind(now)
                .bind(id.as_str())
                .execute(transaction.on())
                .await
                .during("noting the use of a key")?;
                transaction.commit().await.during("committing")
            };
            if let Err(error) = written.await {
                tracing::warn!(key_id = %id, %error, "the use of a key could not be noted");
            }
        });
    }
}

/// The rules that need no database.
fn check(new: &CreateKey, now: Timestamp, limits: &Limits) -> Result<(), StoreError> {
    let refused = |text: String| Err(StoreError::KeyRefused(text));
    let grants_limit = usize::try_from(limits.grants_per_key).unwrap_or(usize::MAX);
    if new.expires_at.is_some_and(|end| end <= now) {
        return refused("expires_at: must be in the future".to_owned());
    }
    if new.grants.len() > grants_limit {
        return refused(format!("grants: at most {grants_limit}; a grant without a route covers a whole tunnel"));
    }
    if new.role.is_some() && new.kind != KeyKind::Manage {
        return refused("role: only a manage key has one".to_owned());
    }
    match new.kind {
        KeyKind::Manage if !new.grants.is_empty() => {
            refused("grants: a manage key has none, since it covers its whole workspace".to_owned())
        }
        KeyKind::Use if new.grants.is_empty() => {
            refused("grants: a use key needs at least one, such as {\"tunnel_id\": \"tnl_...\"}".to_owned())
        }
        KeyKind::Environment => {
            refused("kind: keys of an environment are made at /v1/sortie/environments/{environment_id}/keys".to_owned())
        }
        KeyKind::Manage | KeyKind::Use => Ok(()),
    }
}

async fn insert_new(
    transaction: &mut Transaction,
    workspace: WorkspaceId,
    new: CreateKey,
    limit: u32,
    now: Timestamp,
) -> Result<CreatedKey, StoreError> {
    let row = db::query("SELECT count(*) AS count FROM keys WHERE workspace_id = $1 AND archived_at IS NULL")
        .bind(workspace.as_str())
        .one(transaction.on())
        .await
        .during("counting keys")?;
    if row.integer("count")? >= i64::from(limit) {
        return Err(StoreError::TooManyKeys(limit));
    }
    for grant in &new.grants {
        match tunnels::find(transaction.on(), &workspace, &grant.tunnel_id).await {
            Ok(tunnel) if tunnel.archived_at.is_none() => {}
            Ok(_) | Err(StoreError::NotFound(_)) => return Err(StoreError::GrantOfNothing(grant.tunnel_id.clone())),
            Err(error) => return Err(error),
        }
    }
    let secret = ApiKey::random(new.kind.as_str());
    let key = Key {
        id: KeyId::random(),
        workspace_id: workspace,
        kind: new.kind,
        role: (new.kind == KeyKind::Manage).then_some(new.role.unwrap_or(KeyRole::Admin)),
        name: new.name,
        grants: new.grants,
        agent: new.agent,
        user: new.user,
        environment_id: None,
        created_at: now,
        expires_at: new.expires_at,
        archived_at: None,
        last_used_at: None,
    };
    insert(transaction, &key, &secret.digest()).await?;
    Ok(CreatedKey { key, secret })
}

async fn insert(transaction: &mut Transaction, key: &Key, digest: &Digest) -> Result<(), StoreError> {
    db::query(
        "INSERT INTO keys (id, workspace_id, kind, name, digest, agent, \"user\", created_at, expires_at, role) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(key.id.as_str())
    .bind(key.workspace_id.as_str())
    .bind(key.kind.as_str())
    .bind(key.name.as_str())
    .bind(digest.as_bytes())
    .bind(key.agent.as_ref().map(DisplayName::as_str))
    .bind(key.user.as_ref().map(DisplayName::as_str))
    .bind(key.created_at.as_second())
    .bind(key.expires_at.map(Timestamp::as_second))
    .bind(key.role.map(KeyRole::as_str))
    .execute(transaction.on())
    .await
    .during("storing a key")?;
    for (position, grant) in (0_i64..).zip(&key.grants) {
        db::query("INSERT INTO key_grants (key_id, position, tunnel_id, route) VALUES ($1, $2, $3, $4)")
            .bind(key.id.as_str())
            .bind(position)
            .bind(grant.tunnel_id.as_str())
            .bind(grant.route.as_ref().map(|route| route.as_str()))
            .execute(transaction.on())
            .await
            .during("storing a grant")?;
    }
    Ok(())
}

async fn find(mut on: Connection<'_>, workspace: &WorkspaceId, id: &KeyId) -> Result<Key, StoreError> {
    let row = db::query(select_key!("WHERE id = $1 AND workspace_id = $2"))
        .bind(id.as_str())
        .bind(workspace.as_str())
        .optional(on.again())
        .await
        .during("reading a key")?;
    with_grants(on, &row.ok_or(StoreError::NotFound(Object::Key))?).await
}

async fn with_grants(on: Connection<'_>, row: &Row) -> Result<Key, StoreError> {
    let id: KeyId = row.parsed("id")?;
    Ok(Key {
        workspace_id: row.parsed("workspace_id")?,
        kind: kind(row)?,
        // Those from before there were roles may everything.
        role: role(row)?.or((kind(row)? == KeyKind::Manage).then_some(KeyRole::Admin)),
        name: row.parsed::<DisplayName>("name")?,
        grants: grants(on, &id).await?,
        agent: row.optional_parsed("agent")?,
        user: row.optional_parsed("user")?,
        environment_id: row.optional_parsed("environment_id")?,
        created_at: row.time("created_at")?,
        expires_at: row.optional_time("expires_at")?,
        archived_at: row.optional_time("archived_at")?,
        last_used_at: row.optional_time("last_used_at")?,
        id,
    })
}

fn role(row: &Row) -> Result<Option<KeyRole>, StoreError> {
    let name = row.optional_text("role")?;
    name.map(|name| KeyRole::from_name(&name).ok_or(StoreError::Corrupt("keys.role"))).transpose()
}

fn kind(row: &Row) -> Result<KeyKind, StoreError> {
    KeyKind::from_name(&row.text("kind")?).ok_or(StoreError::Corrupt("kind"))
}

async fn grants(on: Connection<'_>, id: &KeyId) -> Result<Vec<Grant>, StoreError> {
    let rows = db::query("SELECT tunnel_id, route FROM key_grants WHERE key_id = $1 ORDER BY position")
        .bind(id.as_str())
        .all(on)
        .await
        .during("reading grants")?;
    let grant = |row: &Row| Ok(Grant { tunnel_id: row.parsed("tunnel_id")?, route: row.optional_parsed("route")? });
    rows.iter().map(grant).collect()
}

/// Keys that were looked up within the last seconds.
#[derive(Default)]
pub(crate) struct KeyCache(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    keys: HashMap<Digest, (Timestamp, Arc<KnownKey>)>,
    /// Counts how often everything was forgotten, so that a look-up which began before does not bring an old row back.
    generation: u64,
}

impl KeyCache {
    /// The key, or the generation to put it back with.
    fn get(&self, digest: &Digest, now: Timestamp) -> Result<Arc<KnownKey>, u64> {
        let remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match remembered.keys.get(digest) {
            // A clock that was set back makes the age negative: not believed either.
            Some((at, key)) if (0..BELIEVED).contains(&now.as_second().saturating_sub(at.as_second())) => {
                Ok(Arc::clone(key))
            }
            _ => Err(remembered.generation),
        }
    }

    fn put(&self, digest: Digest, key: Arc<KnownKey>, now: Timestamp, generation: u64) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.generation == generation {
            if remembered.keys.len() >= REMEMBERED {
                remembered.keys.clear();
            }
            remembered.keys.insert(digest, (now, key));
        }
    }

    pub(crate) fn forget_all(&self) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.keys.clear();
        remembered.generation = remembered.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests;
