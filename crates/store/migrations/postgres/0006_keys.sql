-- Keys of environments act for one of them; roles say what a `manage` key may do.
ALTER TABLE keys
    DROP CONSTRAINT keys_kind_check,
    ADD CONSTRAINT keys_kind_check CHECK (kind IN ('manage', 'use', 'environment')),
    ADD COLUMN environment_id TEXT REFERENCES environments (id),
    ADD COLUMN role TEXT,
    ADD CONSTRAINT keys_environment_check CHECK ((kind = 'environment') = (environment_id IS NOT NULL));

CREATE INDEX keys_of_environment ON keys (environment_id, seq) WHERE environment_id IS NOT NULL;
