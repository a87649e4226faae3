//! One hub for each database. What a hub believes of what it has read (keys for seconds, tunnels until they change) is true
//! only while nobody else writes, so that a second hub is refused: each holds a lock of the server's on a connection of
//! its own, and writes only while that connection lives.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::StoreError;
use crate::error::During as _;
use crate::postgres::PATIENCE;

/// How often the connection is asked whether it lives. The server takes far longer to let go of the lock of a hub that
/// has vanished, so that this end stops writing first.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// How often a lock that another holds is tried again.
const TRIED_EVERY: Duration = Duration::from_millis(200);

/// The lock is on the schema, since two of one database may well belong to two hubs.
macro_rules! lock {
    ($select:literal, $rest:literal) => {
        concat!(
            "WITH sole AS (SELECT 1936683636::bigint AS class, oid FROM pg_namespace WHERE nspname = current_schema()) ",
            $select,
            " FROM sole ",
            $rest
        )
    };
}

const TAKE: &str =
    lock!("SELECT pg_try_advisory_lock(class << 32 | oid::bigint) AS taken, pg_backend_pid() AS pid", "");
const HOLDER: &str = lock!(
    "SELECT coalesce(host(a.client_addr), 'this machine') AS place, a.backend_start::text AS since",
    "JOIN pg_locks l ON l.locktype = 'advisory' AND l.classid::bigint = class AND l.objid = sole.oid AND l.granted \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     JOIN pg_stat_activity a ON a.pid = l.pid"
);
const HOLDS: &str = lock!(
    "SELECT l.pid",
    "JOIN pg_locks l ON l.locktype = 'advisory' AND l.classid::bigint = class AND l.objid = sole.oid AND l.granted \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
     WHERE l.pid = $1"
);

/// The lock, as long as this is.
pub(crate) struct Sole {
    holding: Watch,
    stop: watch::Sender<bool>,
}

/// Whether the lock is held.
#[derive(Clone)]
pub(crate) struct Watch(watch::Receiver<Holding>);

#[derive(Clone, Debug)]
enum Holding {
    /// By the server's process with this number.
    By(i32),
    /// Not, since the connection is lost.
    Lost,
    /// Not, since another hub came first.
    Taken(String),
}

/// Takes the lock. Waits so long where another has it: a hub that was ended a moment ago may not have let go of it yet.
pub(crate) async fn take(connection: &mut PgConnection, patience: Duration) -> Result<i32, StoreError> {
    let doing = "asking to be its only hub";
    let begin = Instant::now();
    loop {
        let row = sqlx::query(TAKE).fetch_one(&mut *connection).await.during(doing)?;
        if row.try_get("taken").during(doing)? {
            return row.try_get("pid").during(doing);
        }
        if begin.elapsed() >= patience {
            let holder = sqlx::query(HOLDER).fetch_optional(&mut *connection).await.during(doing)?;
            let text =
                |column| holder.as_ref().and_then(|row| row.try_get::<String, _>(column).ok()).unwrap_or_default();
            return Err(StoreError::Taken(format!("connected from {} since {}", text("place"), text("since"))));
        }
        sleep(TRIED_EVERY).await;
    }
}

impl Sole {
    /// Keeps the lock that this connection has taken, which is the one of the server's process `pid`.
    #[expect(clippy::disallowed_methods, reason = "the task ends with the store, which waits for it in `close`")]
    pub(crate) fn keep(connection: PgConnection, pid: i32, options: PgConnectOptions) -> Self {
        let (holding, watched) = watch::channel(Holding::By(pid));
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(keep(connection, options, holding, stopped));
        Self { holding: Watch(watched), stop }
    }

    /// Returns when the lock is held; waits a moment for one that was lost.
    pub(crate) async fn held(&self) -> Result<(), StoreError> {
        let mut watched = self.holding.0.clone();
        let known = timeout(PATIENCE, watched.wait_for(|holding| !matches!(holding, Holding::Lost))).await;
        match known.map(|known| known.map(|holding| holding.clone())) {
            Ok(Ok(Holding::By(_))) => Ok(()),
            Ok(Ok(Holding::Taken(by))) => Err(StoreError::Taken(by)),
            _ => Err(StoreError::Lost),
        }
    }

    pub(crate) fn watch(&self) -> Watch {
        self.holding.clone()
    }

    /// Gives the lock back.
    pub(crate) async fn release(&self) {
        self.stop.send_replace(true);
        // The task has ended when its end of the channel is gone.
        let mut watched = self.holding.0.clone();
        while watched.changed().await.is_ok() {}
    }
}

impl Watch {
    /// Refuses a connection for writing to a server that does not know us as the holder, such as one that was started anew.
    pub(crate) async fn check(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Holding::By(pid) = *self.0.borrow() else {
            return Err(sqlx::Error::Protocol("this hub is not the only one of its database at the moment".to_owned()));
        };
        let held = sqlx::query(HOLDS).bind(pid).fetch_optional(connection).await?;
        held.map(drop).ok_or_else(|| sqlx::Error::Protocol("this hub has lost its database to another".to_owned()))
    }
}

async fn keep(
    mut connection: PgConnection,
    options: PgConnectOptions,
    holding: watch::Sender<Holding>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            () = lost(&mut connection) => {}
            _ = stopped.changed() => {
                // A polite end frees the lock at once.
                let _ended = timeout(PATIENCE, connection.close()).await;
                return;
            }
        }
        holding.send_replace(Holding::Lost);
        // Before the next one is asked for: a server that is only slow would see it as another hub's.
        drop(connection);
        tracing::warn!("the connection to the database is lost; nothing is written until it is back");
        connection = tokio::select! {
            again = again(&options, &holding) => again,
            _ = stopped.changed() => return,
        };
        tracing::info!("the connection to the database is back");
    }
}

/// Returns when the connection does not answer any more.
async fn lost(connection: &mut PgConnection) {
    while timeout(PATIENCE, connection.ping()).await.is_ok_and(|answer| answer.is_ok()) {
        sleep(ASKED_EVERY).await;
    }
}

/// Takes the lock on a new connection, whatever time that needs.
async fn again(options: &PgConnectOptions, holding: &watch::Sender<Holding>) -> PgConnection {
    loop {
        if let Ok(Ok(mut connection)) = timeout(PATIENCE, options.connect()).await {
            match timeout(PATIENCE, take(&mut connection, Duration::ZERO)).await {
                Ok(Ok(pid)) => {
                    holding.send_replace(Holding::By(pid));
                    return connection;
                }
                Ok(Err(StoreError::Taken(by))) => {
                    tracing::error!(by, "another hub has taken the database; nothing is written");
                    holding.send_replace(Holding::Taken(by));
                }
                _ => {}
            }
        }
        sleep(ASKED_EVERY).await;
    }
}
