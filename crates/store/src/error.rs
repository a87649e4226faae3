//! Why the store did not do what it was asked.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use sortie_api::ApiError;
use sortie_ids::TunnelId;

/// The kinds of objects that can be missing or archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A workspace.
    Workspace,
    /// A tunnel.
    Tunnel,
    /// A CA certificate of a tunnel.
    Certificate,
    /// A key.
    Key,
    /// A session.
    Session,
    /// An item of work.
    Work,
    /// An agent, or a version of it.
    Agent,
    /// An environment.
    Environment,
    /// A vault.
    Vault,
    /// A credential in a vault.
    Credential,
}

impl Object {
    /// What objects of this kind are looked for in.
    fn owner(self) -> &'static str {
        if self == Object::Workspace { "organization" } else { "workspace" }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Object::Workspace => "workspace",
            Object::Tunnel => "tunnel",
            Object::Certificate => "certificate",
            Object::Key => "key",
            Object::Session => "session",
            Object::Work => "item of work",
            Object::Agent => "agent",
            Object::Environment => "environment",
            Object::Vault => "vault",
            Object::Credential => "credential",
        })
    }
}

/// A failed operation; nothing of it was stored, except where [`StoreError::Database`] names the commit.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such object in the workspace.
    #[error("the {owner} has no {0} with this id", owner = .0.owner())]
    NotFound(Object),
    /// The object is archived, and what was asked needs a live one.
    #[error("the {0} is archived, and that is final")]
    Archived(Object),
    /// The organisation's limit of tunnels is reached. The words are those that clients of the hosted service know.
    #[error("Organization already has the maximum of {0} non-archived Tunnels")]
    TooManyTunnels(u32),
    /// The tunnel's limit of certificates is reached.
    #[error("Tunnel already has the maximum of {0} non-archived certificates; archive one first")]
    TooManyCertificates(u32),
    /// The organisation's limit of workspaces is reached.
    #[error("Organization already has the maximum of {0} Workspaces")]
    TooManyWorkspaces(u32),
    /// The workspace's limit of keys is reached.
    #[error("Workspace already has the maximum of {0} non-archived keys; archive one first")]
    TooManyKeys(u32),
    /// A key that breaks a rule of its kind.
    #[error("{0}")]
    KeyRefused(String),
    /// A grant that names no live tunnel of the workspace.
    #[error("grants: the workspace has no active tunnel {0}")]
    GrantOfNothing(TunnelId),
    /// Another request came under the same idempotency key before.
    #[error("the Idempotency-Key was used for another request within 24 hours; take a new one for each request")]
    IdempotencyKeyReused,
    /// The workspace's answers under idempotency keys fill their place.
    #[error("the workspace used {0} idempotency keys within 24 hours; send the request without one, or later")]
    TooManyIdempotencyKeys(u32),
    /// What is stored does not permit it; the words are for the caller.
    #[error("{0}")]
    Refused(Box<ApiError>),
    /// A file or directory of the store cannot be used.
    #[error("{doing} {path} failed")]
    File {
        /// What was done with it.
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The database server does not let the hub in.
    #[error("{database} cannot be opened: {reason}")]
    Connect {
        /// Which one, without its password.
        database: String,
        /// Why, and what to do.
        reason: String,
        /// What the driver said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The server lacks what statements need.
    #[error("the PostgreSQL server is too old: 13 or newer is needed")]
    OldServer,
    /// Texts would not come back as they were.
    #[error("the database is not in UTF-8; make one with `CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0`")]
    Encoding,
    /// There is no place for tables.
    #[error("the database has no schema that the user may see by `search_path`; make one with `CREATE SCHEMA`")]
    NoSchema,
    /// There are tables, but not ours.
    #[error("the database holds tables of another program; give the hub a database of its own")]
    Foreign,
    /// There are tables that this version does not know.
    #[error("the database was used by a newer version of the hub; run that one, or restore a backup from before")]
    Newer,
    /// Another hub is there.
    #[error("another hub uses this database, {0}; stop it, or give each hub a database of its own")]
    Taken(String),
    /// The server has gone; what is written now might be lost.
    #[error("the connection to the database is lost; it is tried again every second")]
    Lost,
    /// There is a database, but the key to its secrets is gone.
    #[error("{0} is missing, and the secrets in the database cannot be read without it; restore it from a backup")]
    MasterKeyMissing(PathBuf),
    /// The key file holds another key, or something else.
    #[error("{0} is not the key that the database was made with; restore it from a backup")]
    MasterKeyWrong(PathBuf),
    /// Others may read the key file.
    #[error("{0} may be read by others; run `chmod 600` on it, and consider what they may have read")]
    MasterKeyExposed(PathBuf),
    /// A stored value is not of its type.
    #[error("the database holds a value of `{0}` that cannot be read; restore it from a backup")]
    Corrupt(&'static str),
    /// The database did not do its part.
    #[error("the database failed while {doing}")]
    Database {
        /// The step.
        doing: &'static str,
        /// What the database said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The operating system gave no random bytes, or a secret could not be encrypted.
    #[error("a secret could not be encrypted")]
    Seal,
    /// The session has gone on from the revision that was to be built on.
    #[error("the session was changed at the same time; read it again")]
    Outdated,
    /// Sessions run in environments whose tools are run by workers of their owner.
    #[error("environment_id: an environment of the type `{0}` runs no sessions here; name a `self_hosted` one")]
    NotSelfHosted(String),
    /// A session that works is neither archived nor deleted.
    #[error("the session is running; send a `user.interrupt` first")]
    AtWork,
    /// No workers work for an environment of this type.
    #[error("an environment of the type `{0}` has no workers; name a `self_hosted` one")]
    NoWorkers(String),
    /// The environment's limit of health checks is reached.
    #[error("Environment already has {0} health checks that wait for an answer")]
    TooManyHealthchecks(u32),
    /// The task of a write ended before it could answer; whether it was stored is not known.
    #[error("the write was cut off, since the hub is stopping")]
    Interrupted,
}

impl From<ApiError> for StoreError {
    fn from(error: ApiError) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// Names the step at which the database failed.
pub(crate) trait During<T> {
    fn during(self, doing: &'static str) -> Result<T, StoreError>;
}

impl<T, E: Error + Send + Sync + 'static> During<T> for Result<T, E> {
    fn during(self, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| {
            let source: Box<dyn Error + Send + Sync> = Box::new(source);
            // What has a name of its own keeps it.
            match source.downcast::<StoreError>() {
                Ok(named) => *named,
                Err(source) => StoreError::Database { doing, source },
            }
        })
    }
}
