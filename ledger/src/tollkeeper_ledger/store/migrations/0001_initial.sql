-- Made by `python -m tollkeeper_ledger.store.migrations freeze`.

-- From schema/010_roles.sql
-- Who may see what: helpers for row-level security and partitions. Run as tollkeeper_owner, search path tollkeeper.
--
-- Roles (see bootstrap.sql): tollkeeper_owner owns everything and is used by `migrate` only; tollkeeper_ingest and
-- tollkeeper_billing see every tenant on the tables that name them; tollkeeper_admin and tollkeeper_reader see one
-- tenant per transaction. The runtime roles own nothing and never bypass row-level security.
GRANT USAGE ON SCHEMA tollkeeper TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA tollkeeper REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- The tenant of this transaction; null, and so no rows anywhere, where none is set.
CREATE FUNCTION current_tenant() RETURNS uuid
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = tollkeeper, pg_temp
  AS $$ SELECT nullif(current_setting('tollkeeper.tenant_id', true), '')::uuid $$;
GRANT EXECUTE ON FUNCTION current_tenant() TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;

-- Enables and forces row-level security on a table with a tenant_id column. Everyone sees the transaction's tenant;
-- the roles named see all tenants. Grants are the caller's business: no grant, no access.
CREATE PROCEDURE secure_tenant_table(target regclass, VARIADIC all_tenant_roles text[] DEFAULT '{}')
  LANGUAGE plpgsql AS $$
DECLARE
  allowed text;
BEGIN
  EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
  EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
  EXECUTE format('CREATE POLICY one_tenant ON %s USING (tenant_id = current_tenant())', target);
  FOREACH allowed IN ARRAY all_tenant_roles LOOP
    EXECUTE format('CREATE POLICY all_tenants_%s ON %s TO %I USING (true)', allowed, target, allowed);
  END LOOP;
END
$$;

-- Makes a partition like its parent, with the parent's policies, and attaches it. Attaching a finished table takes
-- a weaker lock on the parent than creating the partition in place, so running traffic goes on.
CREATE FUNCTION make_partition(parent regclass, partition_name text, bounds text) RETURNS void
  LANGUAGE plpgsql
  SET search_path = tollkeeper, pg_temp AS $$
DECLARE
  policy record;
BEGIN
  IF to_regclass('tollkeeper.' || quote_ident(partition_name)) IS NOT NULL THEN
    RETURN;
  END IF;
  -- One maker per parent at a time; whoever waited finds the partition there.
  PERFORM pg_advisory_xact_lock(7205759403792795, parent::oid::int);
  IF to_regclass('tollkeeper.' || quote_ident(partition_name)) IS NOT NULL THEN
    RETURN;
  END IF;
  EXECUTE format('CREATE TABLE %I (LIKE %s INCLUDING ALL)', partition_name, parent);
  EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', partition_name);
  EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', partition_name);
  FOR policy IN
    SELECT p.polname, p.polpermissive, pg_get_expr(p.polqual, p.polrelid) AS used,
           pg_get_expr(p.polwithcheck, p.polrelid) AS checked,
           CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
             ELSE 'ALL' END AS verb,
           coalesce((SELECT string_agg(quote_ident(r.rolname), ', ') FROM pg_roles r WHERE r.oid = ANY (p.polroles)),
             'PUBLIC') AS roles
    FROM pg_policy p WHERE p.polrelid = parent
  LOOP
    EXECUTE format('CREATE POLICY %I ON %I FOR %s TO %s', policy.polname, partition_name, policy.verb, policy.roles)
      || coalesce(' USING (' || policy.used || ')', '') || coalesce(' WITH CHECK (' || policy.checked || ')', '');
  END LOOP;
  EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I FOR VALUES %s', parent, partition_name, bounds);
END
$$;

-- Refuses to change a row of an append-only table, whoever asks: `CREATE TRIGGER ... BEFORE UPDATE OR DELETE`.
CREATE FUNCTION refuse_change() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = tollkeeper, pg_temp AS $$
BEGIN
  RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;

-- From schema/020_installation.sql
-- The installation itself, its clock, its changes, and answers already given.

-- One row: what this installation is.
CREATE TABLE installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  installation_id bytea NOT NULL CHECK (octet_length(installation_id) = 16),
  -- Times that Postgres has been restored, plus 1. Part of every generation.
  timeline bigint NOT NULL DEFAULT 1 CHECK (timeline BETWEEN 1 AND 2097151),
  -- Random bytes that were shown outside after they were committed: unknown to a Postgres that went back.
  witness bytea NOT NULL CHECK (octet_length(witness) = 16)
);
INSERT INTO installation (installation_id, witness)
  SELECT uuid_send(gen_random_uuid()), uuid_send(gen_random_uuid());

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
  floor timestamptz NOT NULL
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
GRANT UPDATE ON change_counter TO tollkeeper_billing, tollkeeper_admin, tollkeeper_ingest;
GRANT INSERT ON tenant_change TO tollkeeper_billing, tollkeeper_admin, tollkeeper_ingest;
GRANT SELECT, INSERT ON answered_request TO tollkeeper_billing, tollkeeper_admin, tollkeeper_ingest;

-- From schema/030_catalogue.sql
-- What operators declare: sellers, meters, plans, tenants, subscriptions, overrides; and the billing segments
-- that usage is stamped with. Times are ledger time.

CREATE TABLE seller (
  seller_id text PRIMARY KEY CONSTRAINT seller_id_form CHECK (seller_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  name text NOT NULL,
  address text[] NOT NULL,
  tax_id text NOT NULL,
  email text NOT NULL,
  website text NOT NULL,
  tax_note text NOT NULL,
  payment_note text NOT NULL,
  invoice_prefix text NOT NULL,
  currency text NOT NULL,
  time_zone text NOT NULL
);

CREATE TABLE meter (
  meter_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  seller_id text NOT NULL REFERENCES seller,
  name text NOT NULL,
  unit text NOT NULL,
  aggregation text NOT NULL CONSTRAINT meter_aggregation_known CHECK (aggregation IN ('sum')),
  scale integer NOT NULL CONSTRAINT meter_scale_range CHECK (scale BETWEEN 0 AND 9),
  attributes text[] NOT NULL,
  pseudonymised text[] NOT NULL,
  -- One name space per installation: checks name a meter without its seller.
  CONSTRAINT meter_name_unique UNIQUE (name)
);

CREATE TABLE feature (
  feature_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  seller_id text NOT NULL REFERENCES seller,
  name text NOT NULL,
  CONSTRAINT feature_name_unique UNIQUE (name)
);

CREATE TABLE plan (
  plan_id uuid PRIMARY KEY,
  seller_id text NOT NULL REFERENCES seller,
  name text NOT NULL,
  CONSTRAINT plan_name_unique UNIQUE (name)
);

-- Immutable: a change makes the next version. `definition` is canonical JSON (domain/catalogue/canonical.py).
CREATE TABLE plan_version (
  plan_version_id uuid PRIMARY KEY,
  plan_id uuid NOT NULL REFERENCES plan,
  version integer NOT NULL CONSTRAINT plan_version_positive CHECK (version > 0),
  definition bytea NOT NULL,
  digest bytea NOT NULL CONSTRAINT plan_version_digest_length CHECK (length(digest) = 32),
  created_at timestamptz NOT NULL,
  CONSTRAINT plan_version_unique UNIQUE (plan_id, version)
);

CREATE TABLE tenant (
  tenant_id uuid PRIMARY KEY,
  seller_id text NOT NULL REFERENCES seller,
  wire_id text NOT NULL CONSTRAINT tenant_wire_id_form CHECK (wire_id ~ '^[A-Za-z0-9._:-]{1,128}$'),
  display_name text NOT NULL,
  parent_tenant_id uuid REFERENCES tenant,
  billing_tenant_id uuid REFERENCES tenant,
  address text[] NOT NULL,
  tax_id text NOT NULL,
  state text NOT NULL CONSTRAINT tenant_state_known CHECK (state IN ('active', 'suspended')),
  created_at timestamptz NOT NULL,
  CONSTRAINT tenant_wire_id_unique UNIQUE (wire_id),
  CONSTRAINT tenant_not_its_parent CHECK (parent_tenant_id <> tenant_id)
);
CREATE INDEX tenant_by_parent ON tenant (parent_tenant_id) WHERE parent_tenant_id IS NOT NULL;

-- `plan_version_id` gives limits and features, at once after a move; prices follow subscription_phase.
CREATE TABLE subscription (
  subscription_id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenant,
  plan_version_id uuid NOT NULL REFERENCES plan_version,
  state text NOT NULL
    CONSTRAINT subscription_state_known CHECK (state IN ('trialing', 'active', 'past_due', 'paused', 'cancelled')),
  started_at timestamptz NOT NULL,
  ended_at timestamptz CONSTRAINT subscription_ends_after_start CHECK (ended_at > started_at),
  -- Wall clock time in time_zone that periods are counted from.
  anchor timestamp NOT NULL,
  time_zone text NOT NULL,
  interval_unit text NOT NULL
    CONSTRAINT subscription_unit_known CHECK (interval_unit IN ('hour', 'day', 'week', 'month', 'year')),
  interval_count integer NOT NULL CONSTRAINT subscription_count_positive CHECK (interval_count > 0),
  -- Limits of this subscription alone, an array of the shape that plan definitions have.
  limits jsonb NOT NULL,
  -- End of the last closed period.
  billed_until timestamptz NOT NULL,
  CONSTRAINT subscription_of_tenant_unique UNIQUE (tenant_id, subscription_id)
);
CREATE UNIQUE INDEX subscription_one_live_per_tenant ON subscription (tenant_id) WHERE ended_at IS NULL;

-- The plan version that rates periods starting at or after starts_at, until the next phase.
CREATE TABLE subscription_phase (
  tenant_id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  starts_at timestamptz NOT NULL,
  plan_version_id uuid NOT NULL REFERENCES plan_version,
  PRIMARY KEY (tenant_id, subscription_id, starts_at),
  CONSTRAINT subscription_phase_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id)
);

-- One row per (subscription, plan version, period) that anything was used in; usage and rollups carry its id, so a
-- close cuts exactly. Usage of a closed period goes to a segment of an open one whose late_for names the closed one.
-- A tenant without a subscription has segments without one: months of UTC that nobody bills.
CREATE TABLE billing_segment (
  tenant_id uuid NOT NULL REFERENCES tenant,
  segment_id uuid NOT NULL,
  subscription_id uuid,
  plan_version_id uuid REFERENCES plan_version,
  period_start timestamptz NOT NULL,
  period_end timestamptz NOT NULL,
  late_for uuid,
  state text NOT NULL CONSTRAINT billing_segment_state_known CHECK (state IN ('open', 'closed')),
  closed_at timestamptz,
  PRIMARY KEY (tenant_id, segment_id),
  CONSTRAINT billing_segment_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id),
  CONSTRAINT billing_segment_late_for FOREIGN KEY (tenant_id, late_for)
    REFERENCES billing_segment (tenant_id, segment_id),
  CONSTRAINT billing_segment_span CHECK (period_end > period_start),
  CONSTRAINT billing_segment_closed_at CHECK ((state = 'closed') = (closed_at IS NOT NULL)),
  CONSTRAINT billing_segment_plan CHECK ((subscription_id IS NULL) = (plan_version_id IS NULL)),
  CONSTRAINT billing_segment_unique
    UNIQUE NULLS NOT DISTINCT (tenant_id, subscription_id, plan_version_id, period_start, late_for)
);
CREATE INDEX billing_segment_by_period ON billing_segment (tenant_id, period_end, period_start);

-- A whole rule that replaces the plan's and the subscription's of the same name.
CREATE TABLE limit_override (
  tenant_id uuid NOT NULL REFERENCES tenant,
  name text NOT NULL,
  rule jsonb NOT NULL,
  note text NOT NULL,
  set_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, name)
);

-- The last effective amount and enforcement of every limit name that a tenant ever had, so that amount_version rises
-- exactly when one of them changes. Rows stay when a limit goes, so the version never goes back.
CREATE TABLE limit_state (
  tenant_id uuid NOT NULL REFERENCES tenant,
  name text NOT NULL,
  amount bigint NOT NULL,
  enforcement text NOT NULL,
  amount_version bigint NOT NULL CONSTRAINT limit_state_version_positive CHECK (amount_version > 0),
  PRIMARY KEY (tenant_id, name)
);

-- The catalogue itself is no tenant's: every role reads it, billing writes it.
GRANT SELECT ON seller, meter, feature, plan, plan_version
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT INSERT, UPDATE ON seller, meter TO tollkeeper_billing;
GRANT INSERT ON feature, plan, plan_version TO tollkeeper_billing;

GRANT SELECT ON tenant, subscription, subscription_phase, billing_segment, limit_override, limit_state
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT INSERT ON billing_segment TO tollkeeper_ingest;
GRANT INSERT, UPDATE ON tenant, subscription, billing_segment, limit_state TO tollkeeper_billing;
GRANT INSERT ON subscription_phase TO tollkeeper_billing;
GRANT UPDATE (state) ON tenant TO tollkeeper_admin;
GRANT INSERT, UPDATE, DELETE ON limit_override TO tollkeeper_admin;
GRANT INSERT, UPDATE ON limit_state TO tollkeeper_admin;

CALL secure_tenant_table('tenant', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('subscription', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('subscription_phase', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('billing_segment', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('limit_override', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('limit_state', 'tollkeeper_ingest', 'tollkeeper_billing');

-- From schema/060_billing.sql
-- What was closed, and the invoices made of it. Finalised money never changes: no role may update or delete here.

-- A closed period: the summed inputs as canonical bytes, taken in the transaction that closed its segments. Its
-- invoice follows in a second transaction; a close without one is picked up by the next run.
CREATE TABLE billing_close (
  tenant_id uuid NOT NULL REFERENCES tenant,
  subscription_id uuid NOT NULL,
  period_start timestamptz NOT NULL,
  period_end timestamptz NOT NULL,
  closed_at timestamptz NOT NULL,
  -- False for plans that can't charge anything: the period is closed, no invoice follows.
  billable boolean NOT NULL,
  inputs bytea NOT NULL,
  PRIMARY KEY (tenant_id, subscription_id, period_start),
  CONSTRAINT billing_close_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id),
  CONSTRAINT billing_close_span CHECK (period_end > period_start)
);

-- The next number per seller; locked from taking a number to commit, so that numbers have no gaps.
CREATE TABLE invoice_number (
  seller_id text PRIMARY KEY REFERENCES seller,
  next bigint NOT NULL CONSTRAINT invoice_number_positive CHECK (next > 0)
);

CREATE TABLE invoice (
  tenant_id uuid NOT NULL REFERENCES tenant,
  invoice_id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  billing_tenant_id uuid NOT NULL REFERENCES tenant,
  seller_id text NOT NULL REFERENCES seller,
  number text NOT NULL,
  serial bigint NOT NULL,
  period_start timestamptz NOT NULL,
  period_end timestamptz NOT NULL,
  state text NOT NULL CONSTRAINT invoice_state_known CHECK (state IN ('finalised')),
  currency text NOT NULL,
  subtotal_minor bigint NOT NULL,
  tax_minor bigint NOT NULL,
  total_minor bigint NOT NULL,
  finalised_at timestamptz NOT NULL,
  record_count bigint NOT NULL,
  -- Canonical JSON of the whole invoice; the PDF is made of it alone.
  document bytea NOT NULL,
  digest bytea NOT NULL CONSTRAINT invoice_digest_is_sha256 CHECK (digest = sha256(document)),
  PRIMARY KEY (tenant_id, invoice_id),
  CONSTRAINT invoice_one_per_period UNIQUE (tenant_id, subscription_id, period_start),
  CONSTRAINT invoice_number_unique UNIQUE (seller_id, serial),
  CONSTRAINT invoice_close FOREIGN KEY (tenant_id, subscription_id, period_start)
    REFERENCES billing_close (tenant_id, subscription_id, period_start),
  CONSTRAINT invoice_total CHECK (total_minor = subtotal_minor + tax_minor)
);
CREATE INDEX invoice_newest ON invoice (finalised_at DESC, seller_id, serial DESC);
CREATE INDEX invoice_by_number ON invoice (number);
CREATE INDEX invoice_by_id ON invoice (invoice_id);

CREATE TABLE invoice_line (
  tenant_id uuid NOT NULL,
  invoice_id uuid NOT NULL,
  line integer NOT NULL CONSTRAINT invoice_line_positive CHECK (line > 0),
  description text NOT NULL,
  meter text NOT NULL,
  quantity bigint NOT NULL,
  amount_minor bigint NOT NULL,
  period_start timestamptz NOT NULL,
  period_end timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, invoice_id, line),
  CONSTRAINT invoice_line_invoice FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice (tenant_id, invoice_id)
);

GRANT SELECT, INSERT ON billing_close, invoice, invoice_line TO tollkeeper_billing;
GRANT SELECT, INSERT, UPDATE ON invoice_number TO tollkeeper_billing;
GRANT SELECT ON invoice, invoice_line TO tollkeeper_admin, tollkeeper_reader;
CALL secure_tenant_table('billing_close', 'tollkeeper_billing');
CALL secure_tenant_table('invoice', 'tollkeeper_billing');
CALL secure_tenant_table('invoice_line', 'tollkeeper_billing');

CREATE TRIGGER billing_close_append_only BEFORE UPDATE OR DELETE ON billing_close
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER billing_close_no_truncate BEFORE TRUNCATE ON billing_close
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER invoice_append_only BEFORE UPDATE OR DELETE ON invoice
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER invoice_no_truncate BEFORE TRUNCATE ON invoice
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER invoice_line_append_only BEFORE UPDATE OR DELETE ON invoice_line
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER invoice_line_no_truncate BEFORE TRUNCATE ON invoice_line
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- From schema/070_audit.sql
-- Every administrative act: who, what, before, after. Append-only.

CREATE TABLE audit_log (
  audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  tenant_id uuid REFERENCES tenant,
  subject text NOT NULL,
  request_id text NOT NULL,
  before jsonb,
  after jsonb
);
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, audit_id);

GRANT SELECT ON audit_log TO tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT INSERT ON audit_log TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin;

CALL secure_tenant_table('audit_log', 'tollkeeper_ingest', 'tollkeeper_billing');

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
