-- The signed checkpoints of gateways' audit logs, by tunnel and log. Those that contradict an earlier one say why they were
-- refused, and are kept as the proof of it.
CREATE TABLE checkpoints (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tunnel_id TEXT NOT NULL REFERENCES tunnels (id),
    origin TEXT NOT NULL,
    key TEXT NOT NULL,
    size INTEGER NOT NULL CHECK (size >= 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    note TEXT NOT NULL,
    -- Whether it was proven to continue the one before it.
    proven INTEGER NOT NULL,
    -- Whether the link that it came over had shown a certificate of the tunnel.
    certified INTEGER NOT NULL,
    refused TEXT,
    received_at INTEGER NOT NULL
) STRICT;

CREATE INDEX checkpoints_of_log ON checkpoints (tunnel_id, origin, seq);
