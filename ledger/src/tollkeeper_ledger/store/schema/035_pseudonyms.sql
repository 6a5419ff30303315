-- Keys of tenants' pseudonyms: what the catalogue hides of a record is stored as a code under its tenant's key alone.
-- A key that is destroyed is overwritten, so that nobody can say any more who is meant; nothing else changes.
CREATE TABLE pseudonym_key (
  tenant_id uuid PRIMARY KEY REFERENCES tenant,
  -- Stands in each pseudonym; rises when the key is destroyed.
  version integer NOT NULL DEFAULT 1 CONSTRAINT pseudonym_key_version CHECK (version > 0),
  secret bytea NOT NULL CONSTRAINT pseudonym_key_length CHECK (octet_length(secret) = 32),
  made_at timestamptz NOT NULL
);

-- 32 random bytes; made here, so that no statement that somebody logs carries them.
CREATE FUNCTION new_pseudonym_secret() RETURNS bytea
  LANGUAGE sql VOLATILE
  SET search_path = tollkeeper, pg_temp
  AS $$
    SELECT sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
  $$;
GRANT EXECUTE ON FUNCTION new_pseudonym_secret() TO tollkeeper_ingest, tollkeeper_admin;

-- Whoever destroys a key need not read it.
GRANT SELECT, INSERT ON pseudonym_key TO tollkeeper_ingest;
GRANT SELECT (tenant_id, version), UPDATE (version, secret, made_at) ON pseudonym_key TO tollkeeper_admin;
CALL secure_tenant_table('pseudonym_key', 'tollkeeper_ingest');
