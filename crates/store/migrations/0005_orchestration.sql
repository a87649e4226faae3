-- Agents, environments, vaults, sessions and the work that waits for workers. Times of events and of work are Unix microseconds,
-- all others Unix seconds. Bodies are JSON, written and read whole.

CREATE TABLE agents (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    -- The newest version.
    version INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX agents_of_workspace ON agents (workspace_id, seq);

CREATE TABLE agent_versions (
    agent_id TEXT NOT NULL REFERENCES agents (id),
    version INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (agent_id, version)
) STRICT;

CREATE TABLE environments (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX environments_of_workspace ON environments (workspace_id, seq);
CREATE UNIQUE INDEX live_environment_by_name ON environments (workspace_id, name) WHERE archived_at IS NULL;

CREATE TABLE vaults (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX vaults_of_workspace ON vaults (workspace_id, seq);

CREATE TABLE vault_credentials (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    vault_id TEXT NOT NULL REFERENCES vaults (id),
    -- What it is found by: the normalised URL of an MCP server, or the name of a variable.
    place TEXT NOT NULL,
    -- What is shown of it.
    body TEXT NOT NULL,
    -- Its secrets; none once it is archived.
    sealed BLOB,
    -- Grows with every change: who replaces tokens on an older one is refused.
    revision INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX credentials_of_vault ON vault_credentials (vault_id, seq);
CREATE UNIQUE INDEX live_credential_by_place ON vault_credentials (vault_id, place) WHERE archived_at IS NULL;

CREATE TABLE sessions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    environment_id TEXT NOT NULL REFERENCES environments (id),
    agent_id TEXT NOT NULL REFERENCES agents (id),
    agent_version INTEGER NOT NULL,
    -- The key that it was made with, and its one thread.
    key_id TEXT NOT NULL REFERENCES keys (id),
    thread_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('idle', 'running', 'rescheduling', 'terminated')),
    -- What is shown of it.
    body TEXT NOT NULL,
    -- Where its turn is.
    state TEXT NOT NULL,
    -- Grows with every transition: who writes on an older one is refused.
    revision INTEGER NOT NULL,
    -- The next place in the order of its events, and in its transcript.
    next_position INTEGER NOT NULL,
    next_entry INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX sessions_of_workspace ON sessions (workspace_id, seq);
CREATE INDEX sessions_of_agent ON sessions (agent_id, seq);
CREATE INDEX sessions_of_environment ON sessions (environment_id, seq);
CREATE INDEX sessions_at_work ON sessions (status, seq) WHERE status IN ('running', 'rescheduling');

-- What happened in sessions. An event of a client waits without a place until it is processed.
CREATE TABLE session_events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id TEXT NOT NULL REFERENCES sessions (id),
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    position INTEGER,
    processed_at INTEGER,
    -- The tool use that it answers.
    answers TEXT,
    body TEXT NOT NULL,
    CHECK ((position IS NULL) = (processed_at IS NULL))
) STRICT;

CREATE UNIQUE INDEX events_in_order ON session_events (session_id, position) WHERE position IS NOT NULL;
CREATE INDEX events_that_wait ON session_events (session_id, seq) WHERE position IS NULL;
CREATE INDEX events_that_answer ON session_events (session_id, answers) WHERE answers IS NOT NULL;

-- What the model is told of a session, entry by entry.
CREATE TABLE transcript (
    session_id TEXT NOT NULL REFERENCES sessions (id),
    entry INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (session_id, entry)
) STRICT;

CREATE TABLE work (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    environment_id TEXT NOT NULL REFERENCES environments (id),
    kind TEXT NOT NULL CHECK (kind IN ('session', 'healthcheck')),
    session_id TEXT REFERENCES sessions (id),
    state TEXT NOT NULL CHECK (state IN ('queued', 'starting', 'active', 'stopping', 'stopped')),
    metadata TEXT NOT NULL,
    -- Of the token that its worker acts for the session with; a new one each time that it is handed out.
    token_digest BLOB UNIQUE CHECK (token_digest IS NULL OR length(token_digest) = 32),
    -- The worker that it was handed to, and the key of the environment that it asked with.
    worker TEXT,
    key_id TEXT REFERENCES keys (id),
    created_at INTEGER NOT NULL,
    -- Since when it waits for a worker.
    queued_at INTEGER NOT NULL,
    -- When it was handed out last; none before that, and once it is given back.
    polled_at INTEGER,
    acknowledged_at INTEGER,
    started_at INTEGER,
    latest_heartbeat_at INTEGER,
    previous_heartbeat_at INTEGER,
    -- When its session asked for a worker while it had this one.
    woken_at INTEGER,
    -- When the lease ends without a further heartbeat, or the wait for the first one.
    lease_ends_at INTEGER,
    ttl_seconds INTEGER,
    stop_requested_at INTEGER,
    stopped_at INTEGER,
    -- Grows with every change: who writes on an older one reads again.
    revision INTEGER NOT NULL
) STRICT;

CREATE INDEX work_of_environment ON work (environment_id, seq);
CREATE INDEX work_that_waits ON work (environment_id, seq) WHERE state = 'queued';
CREATE INDEX work_under_lease ON work (lease_ends_at) WHERE lease_ends_at IS NOT NULL;
CREATE UNIQUE INDEX live_work_of_session ON work (session_id) WHERE state <> 'stopped' AND session_id IS NOT NULL;
