-- The installation itself, its clock, its changes, and answers already given.

-- One row: what this installation is.
CREATE TABLE installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  installation_id bytea NOT NULL CHECK (octet_length(installation_id) = 16),
  -- Times that Postgres has been restored, plus 1. Part of every generation.
  timeline bigint NOT NULL DEFAULT 1 CHECK (timeline BETWEEN 1 AND 2097151),
  -- Ledger time at which the last restore was noticed.
  restored_at_us bigint,
  -- Windows that began before this ledger time are not issued from until an operator confirms; 0 = issuing goes on.
  frozen_before_us bigint NOT NULL DEFAULT 0,
  -- Until this ledger time limits that learn after a restore hear what sidecars have, and issue nothing; 0 = none does.
  learning_until_us bigint NOT NULL DEFAULT 0,
  -- Witnesses up to this number have been forgotten.
  witness_floor bigint NOT NULL DEFAULT 0
);
INSERT INTO installation (installation_id) SELECT uuid_send(gen_random_uuid());

-- Random bytes that are shown outside after they were committed: unknown to a Postgres that went back. One each second,
-- and one with everything that is issued; kept for an hour.
CREATE TABLE witness (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  timeline bigint NOT NULL,
  value bytea NOT NULL CONSTRAINT witness_length CHECK (octet_length(value) = 16),
  committed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Keys of reservation tokens, newest = highest id. Rows are added, never changed.
CREATE TABLE token_key (
  key_id integer PRIMARY KEY CHECK (key_id > 0),
  secret bytea NOT NULL CHECK (octet_length(secret) = 32),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO token_key (key_id, secret)
  SELECT 1, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());

-- One row: ledger time = origin + (Postgres' clock - started_at) x speed, never below floor.
CREATE TABLE clock_setting (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  origin timestamptz NOT NULL,
  started_at timestamptz NOT NULL,
  speed_milli bigint NOT NULL DEFAULT 1000 CHECK (speed_milli BETWEEN 0 AND 1000000),
  version bigint NOT NULL DEFAULT 1,
  -- Ledger time that somebody has seen: a clock that steps back is held here.
  floor timestamptz NOT NULL,
  -- Ledger time at which a forward jump was noticed and how far it went: no window is opened until an operator confirms.
  held_at_us bigint,
  jump_us bigint,
  CONSTRAINT clock_setting_jump CHECK ((held_at_us IS NULL) = (jump_us IS NULL))
);
INSERT INTO clock_setting (origin, started_at, floor)
  SELECT t, t, t FROM (SELECT clock_timestamp() AS t) now;

-- Ledger time.
CREATE FUNCTION ledger_now() RETURNS timestamptz
  LANGUAGE sql VOLATILE
  SET search_path = tollkeeper, pg_temp
  AS $$
    SELECT greatest(floor, origin + (clock_timestamp() - started_at) * (speed_milli / 1000.0)) FROM clock_setting
  $$;
-- The same in microseconds since the Unix epoch.
CREATE FUNCTION ledger_now_us() RETURNS bigint
  LANGUAGE sql VOLATILE
  SET search_path = tollkeeper, pg_temp
  AS $$ SELECT (extract(epoch FROM ledger_now()) * 1000000)::bigint $$;
GRANT EXECUTE ON FUNCTION ledger_now_us()
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT EXECUTE ON FUNCTION ledger_now() TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;

-- One row: the number of the last change. Locked as the last statement of a changing transaction, so that numbers
-- are in commit order and a resume skips nothing.
CREATE TABLE change_counter (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  last bigint NOT NULL DEFAULT 0
);
INSERT INTO change_counter DEFAULT VALUES;

-- Which tenants a change touched.
CREATE TABLE tenant_change (
  tenant_id uuid NOT NULL,
  change bigint NOT NULL,
  PRIMARY KEY (tenant_id, change)
);
CREATE INDEX tenant_change_order ON tenant_change (change);
CALL secure_tenant_table('tenant_change', 'tollkeeper_ingest', 'tollkeeper_billing');

-- First answers of mutating requests: a repeat of the same request gets the same answer.
CREATE TABLE answered_request (
  rpc text NOT NULL,
  request_id text NOT NULL CHECK (octet_length(request_id) BETWEEN 1 AND 128),
  -- SHA-256 of the request: the same id with other content is refused.
  digest bytea NOT NULL,
  answer bytea NOT NULL,
  answered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (rpc, request_id)
);
CREATE INDEX answered_request_age ON answered_request (answered_at);

GRANT SELECT ON installation, token_key, clock_setting, change_counter, tenant_change TO tollkeeper_ingest,
  tollkeeper_billing, tollkeeper_admin;
GRANT SELECT ON installation, clock_setting TO tollkeeper_reader;
GRANT UPDATE ON clock_setting TO tollkeeper_ingest;
GRANT UPDATE (timeline, restored_at_us, frozen_before_us, learning_until_us, witness_floor) ON installation TO tollkeeper_ingest;
GRANT SELECT, INSERT, DELETE ON witness TO tollkeeper_ingest;
GRANT UPDATE ON change_counter TO tollkeeper_billing, tollkeeper_admin, tollkeeper_ingest;
GRANT INSERT ON tenant_change TO tollkeeper_billing, tollkeeper_admin, tollkeeper_ingest;
GRANT SELECT, INSERT ON answered_request TO tollkeeper_billing, tollkeeper_admin, tollkeeper_ingest;
GRANT DELETE ON answered_request TO tollkeeper_ingest;
