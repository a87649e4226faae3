-- Keys of environments act for one of them; roles say what a `manage` key may do. The table is made anew, since its check
-- of kinds cannot be changed.
PRAGMA defer_foreign_keys = ON;

CREATE TABLE keys_before AS SELECT * FROM keys;
DROP TABLE keys;

CREATE TABLE keys (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    kind TEXT NOT NULL CHECK (kind IN ('manage', 'use', 'environment')),
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    archived_at INTEGER,
    last_used_at INTEGER,
    agent TEXT,
    user TEXT,
    environment_id TEXT REFERENCES environments (id),
    role TEXT,
    CHECK ((kind = 'environment') = (environment_id IS NOT NULL))
) STRICT;

INSERT INTO keys (seq, id, workspace_id, kind, name, digest, created_at, expires_at, archived_at, last_used_at, agent, user)
SELECT seq, id, workspace_id, kind, name, digest, created_at, expires_at, archived_at, last_used_at, agent, user FROM keys_before;
DROP TABLE keys_before;

CREATE INDEX keys_of_workspace ON keys (workspace_id, seq);
CREATE INDEX keys_of_environment ON keys (environment_id, seq) WHERE environment_id IS NOT NULL;
