-- The answers to requests that carried an idempotency key, for a day. Sealed, since an answer may show a secret.
CREATE TABLE idempotent_requests (
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    idempotency_key TEXT NOT NULL,
    request BLOB NOT NULL CHECK (length(request) = 32),
    answer BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (workspace_id, idempotency_key)
) STRICT;

CREATE INDEX idempotent_requests_by_age ON idempotent_requests (created_at);

-- Fresh tunnels that their creator has not named yet: its answer may have been lost on the way.
CREATE TABLE unclaimed_tunnels (
    tunnel_id TEXT NOT NULL PRIMARY KEY REFERENCES tunnels (id),
    key_id TEXT NOT NULL REFERENCES keys (id),
    request BLOB NOT NULL CHECK (length(request) = 32),
    attempt INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
