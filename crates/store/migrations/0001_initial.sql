-- Times are Unix seconds. `seq` is the order of creation, which lists and cursors go by; AUTOINCREMENT never reuses a
-- number.
-- Rows are archived, not deleted, so that hostnames and ids stay taken for ever.

CREATE TABLE organizations (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE workspaces (
    id TEXT NOT NULL PRIMARY KEY,
    organization_id TEXT NOT NULL REFERENCES organizations (id),
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX workspaces_of_organization ON workspaces (organization_id);

CREATE TABLE tunnels (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    label TEXT NOT NULL UNIQUE,
    display_name TEXT,
    created_at INTEGER NOT NULL,
    archived_at INTEGER
) STRICT;

CREATE INDEX tunnels_of_workspace ON tunnels (workspace_id, seq);

-- One row per token value. The value is sealed while it is valid and wiped afterwards; the digest stays.
CREATE TABLE tunnel_tokens (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tunnel_id TEXT NOT NULL REFERENCES tunnels (id),
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    sealed BLOB,
    reason TEXT,
    created_at INTEGER NOT NULL,
    ended_at INTEGER,
    CHECK ((sealed IS NULL) = (ended_at IS NOT NULL))
) STRICT;

CREATE UNIQUE INDEX one_current_token ON tunnel_tokens (tunnel_id) WHERE ended_at IS NULL;

CREATE TABLE certificates (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tunnel_id TEXT NOT NULL REFERENCES tunnels (id),
    pem TEXT NOT NULL,
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    archived_at INTEGER
) STRICT;

CREATE INDEX certificates_of_tunnel ON certificates (tunnel_id, seq);
CREATE UNIQUE INDEX active_certificate_once ON certificates (tunnel_id, fingerprint) WHERE archived_at IS NULL;

CREATE TABLE keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    kind TEXT NOT NULL CHECK (kind IN ('manage', 'use')),
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    archived_at INTEGER,
    last_used_at INTEGER
) STRICT;

CREATE INDEX keys_of_workspace ON keys (workspace_id, seq);

CREATE TABLE key_grants (
    key_id TEXT NOT NULL REFERENCES keys (id),
    position INTEGER NOT NULL,
    tunnel_id TEXT NOT NULL REFERENCES tunnels (id),
    route TEXT,
    PRIMARY KEY (key_id, position)
) STRICT;

CREATE TABLE meta (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE secrets (
    name TEXT NOT NULL PRIMARY KEY,
    sealed BLOB NOT NULL
) STRICT;
