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
-- a weaker lock on the parent than creating the partition in place, so running traffic goes on. `fill`: percent of a
-- page that new rows take; the rest is for their next versions, so that an update touches no index.
CREATE FUNCTION make_partition(parent regclass, partition_name text, bounds text, fill integer DEFAULT 100)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path = tollkeeper, pg_temp AS $$
DECLARE
  policy record;
BEGIN
  IF EXISTS (SELECT FROM pg_class WHERE relname = partition_name AND relnamespace = 'tollkeeper'::regnamespace) THEN
    RETURN;
  END IF;
  -- One maker per parent at a time; whoever waited finds the partition there.
  PERFORM pg_advisory_xact_lock(hashtextextended('make_partition ' || parent::text, 0));
  -- Read from pg_class: to_regclass may answer from a cache that has not yet heard of the other maker's commit.
  IF EXISTS (SELECT FROM pg_class WHERE relname = partition_name AND relnamespace = 'tollkeeper'::regnamespace) THEN
    RETURN;
  END IF;
  EXECUTE format('CREATE TABLE %I (LIKE %s INCLUDING ALL) WITH (fillfactor = %s)', partition_name, parent, fill);
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
  time_zone text NOT NULL,
  -- SVG; empty: none.
  logo text NOT NULL DEFAULT '',
  -- {country, rates: [{name, percent, country, region, meters, mode}], reverse_charge}, for payers without taxes of their own.
  taxes jsonb NOT NULL DEFAULT '{}'
);

-- Every logo that invoices may name, by SHA-256 over its text.
CREATE TABLE seller_logo (
  digest bytea PRIMARY KEY CONSTRAINT seller_logo_digest_length CHECK (octet_length(digest) = 32),
  svg text NOT NULL CONSTRAINT seller_logo_digest CHECK (sha256(convert_to(svg, 'UTF8')) = digest)
);
CREATE TRIGGER seller_logo_append_only BEFORE UPDATE OR DELETE ON seller_logo
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER seller_logo_no_truncate BEFORE TRUNCATE ON seller_logo
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE meter (
  meter_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  seller_id text NOT NULL REFERENCES seller,
  name text NOT NULL,
  unit text NOT NULL,
  aggregation text NOT NULL CONSTRAINT meter_aggregation_known CHECK (aggregation IN
    ('sum', 'count', 'min', 'max', 'avg', 'unique', 'latest', 'time_weighted', 'percentile')),
  scale integer NOT NULL CONSTRAINT meter_scale_range CHECK (scale BETWEEN 0 AND 9),
  attributes text[] NOT NULL,
  pseudonymised text[] NOT NULL,
  -- Aggregation unique: the attribute whose distinct values are counted; empty for all others.
  value_attribute text NOT NULL DEFAULT ''
    CONSTRAINT meter_value_attribute_of_unique CHECK ((aggregation = 'unique') = (value_attribute <> '')),
  -- Attributes that split rollups. Like the aggregation they never change.
  dimensions text[] NOT NULL DEFAULT '{}',
  -- How long before and after its receive time an event may lie. Ids are kept for the longest of all and 14 days more.
  late_max_s integer NOT NULL DEFAULT 3024000
    CONSTRAINT meter_late_max_range CHECK (late_max_s BETWEEN 0 AND 3024000),
  early_max_s integer NOT NULL DEFAULT 300 CONSTRAINT meter_early_max_range CHECK (early_max_s BETWEEN 0 AND 300),
  -- One name space per installation: checks name a meter without its seller.
  CONSTRAINT meter_name_unique UNIQUE (name)
);

-- What usage of a meter costs its seller, from when on; no amount: nobody says it any more.
CREATE TABLE meter_cost_price (
  meter_id integer NOT NULL REFERENCES meter,
  since timestamptz NOT NULL,
  -- Major units of the currency for `per` whole units of the meter.
  amount numeric CONSTRAINT meter_cost_price_amount_range CHECK (amount >= 0),
  per bigint CONSTRAINT meter_cost_price_per_positive CHECK (per > 0),
  currency text,
  PRIMARY KEY (meter_id, since),
  CONSTRAINT meter_cost_price_whole CHECK ((amount IS NULL) = (per IS NULL) AND (amount IS NULL) = (currency IS NULL))
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
  -- Where it is taxed, ISO 3166: `DE`, `US` and `NY`; empty = where its seller is.
  country text NOT NULL DEFAULT '',
  region text NOT NULL DEFAULT '',
  -- Features of its own, {name: true, false, number or text}: instead of its plan's or beside them.
  features jsonb NOT NULL DEFAULT '{}',
  -- Its own rules on use and spend, an array of the shape that plan definitions have.
  alerts jsonb NOT NULL DEFAULT '[]',
  state text NOT NULL CONSTRAINT tenant_state_known CHECK (state IN ('active', 'suspended')),
  created_at timestamptz NOT NULL,
  -- What a catalogue said last of its subscription: {plan, start, anchor, time_zone}, as the file has it; null = nothing.
  declared jsonb,
  CONSTRAINT tenant_wire_id_unique UNIQUE (wire_id),
  CONSTRAINT tenant_not_its_parent CHECK (parent_tenant_id <> tenant_id)
);
CREATE INDEX tenant_by_parent ON tenant (parent_tenant_id) WHERE parent_tenant_id IS NOT NULL;

-- `plan_version_id` gives limits and features, at once after a move; prices follow subscription_phase. `state`,
-- `quantity` and `plan_version_id` follow scheduled phases when their time comes.
CREATE TABLE subscription (
  subscription_id uuid PRIMARY KEY,
  tenant_id uuid NOT NULL REFERENCES tenant,
  plan_version_id uuid NOT NULL REFERENCES plan_version,
  state text NOT NULL
    CONSTRAINT subscription_state_known CHECK (state IN ('trialing', 'active', 'past_due', 'paused', 'cancelled')),
  started_at timestamptz NOT NULL,
  ended_at timestamptz CONSTRAINT subscription_ends_after_start CHECK (ended_at > started_at),
  -- Wall clock time in time_zone that periods are counted from. Anchor, zone and interval follow subscription_phase as
  -- well; period_from is when they came into force.
  anchor timestamp NOT NULL,
  time_zone text NOT NULL,
  interval_unit text NOT NULL
    CONSTRAINT subscription_unit_known CHECK (interval_unit IN ('hour', 'day', 'week', 'month', 'year')),
  interval_count integer NOT NULL CONSTRAINT subscription_count_positive CHECK (interval_count > 0),
  -- Seats.
  quantity bigint NOT NULL DEFAULT 1 CONSTRAINT subscription_quantity_not_negative CHECK (quantity >= 0),
  -- Limits of this subscription alone, an array of the shape that plan definitions have.
  limits jsonb NOT NULL,
  -- End of the last closed period.
  billed_until timestamptz NOT NULL,
  period_from timestamptz NOT NULL,
  -- The end of its trial depends on a payment method.
  trial_asks boolean NOT NULL DEFAULT false,
  -- What phases from there on will be once the payer has one, an array; null = they are so.
  trial_displaced jsonb,
  -- When the trial's end is told of; null = it was, or is not.
  trial_notice_at timestamptz,
  CONSTRAINT subscription_of_tenant_unique UNIQUE (tenant_id, subscription_id)
);
CREATE INDEX subscription_trial_asks ON subscription (tenant_id) WHERE trial_asks;
CREATE INDEX subscription_trial_notice ON subscription (trial_notice_at) WHERE trial_notice_at IS NOT NULL;
CREATE UNIQUE INDEX subscription_one_live_per_tenant ON subscription (tenant_id) WHERE ended_at IS NULL;

-- What rates the time from starts_at on, until the next phase. A phase within a period cuts the period's segments.
-- The time from a cancelled phase on is nobody's; no phase follows it.
CREATE TABLE subscription_phase (
  tenant_id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  starts_at timestamptz NOT NULL,
  plan_version_id uuid NOT NULL REFERENCES plan_version,
  state text NOT NULL DEFAULT 'active'
    CONSTRAINT subscription_phase_state_known CHECK (state IN ('trialing', 'active', 'paused', 'cancelled')),
  quantity bigint NOT NULL DEFAULT 1 CONSTRAINT subscription_phase_quantity_not_negative CHECK (quantity >= 0),
  -- False: limits, features and state follow when its time comes.
  applied boolean NOT NULL DEFAULT true,
  -- What periods are counted by from here on, set as a whole; null = as before. The first phase has it.
  anchor timestamp,
  time_zone text,
  interval_unit text
    CONSTRAINT subscription_phase_unit_known CHECK (interval_unit IN ('hour', 'day', 'week', 'month', 'year')),
  interval_count integer CONSTRAINT subscription_phase_count_positive CHECK (interval_count > 0),
  CONSTRAINT subscription_phase_periods
    CHECK (num_nulls(anchor, time_zone, interval_unit, interval_count) IN (0, 4)),
  PRIMARY KEY (tenant_id, subscription_id, starts_at),
  CONSTRAINT subscription_phase_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id)
);

CREATE INDEX subscription_phase_waiting ON subscription_phase (starts_at) WHERE NOT applied;

-- Something off the next invoices of a subscription: a percentage or an amount.
CREATE TABLE subscription_coupon (
  tenant_id uuid NOT NULL,
  subscription_id uuid NOT NULL,
  coupon_id uuid NOT NULL,
  name text NOT NULL,
  percent numeric CONSTRAINT subscription_coupon_percent_range CHECK (percent > 0 AND percent <= 100),
  amount_minor bigint CONSTRAINT subscription_coupon_amount_positive CHECK (amount_minor > 0),
  -- Invoices that it is still good for; null = every one.
  periods_left integer CONSTRAINT subscription_coupon_periods_not_negative CHECK (periods_left >= 0),
  created_at timestamptz NOT NULL,
  -- Taken back by an operator.
  removed_at timestamptz,
  PRIMARY KEY (tenant_id, coupon_id),
  CONSTRAINT subscription_coupon_one_kind CHECK ((percent IS NULL) <> (amount_minor IS NULL)),
  CONSTRAINT subscription_coupon_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id)
);
CREATE INDEX subscription_coupon_newest ON subscription_coupon (created_at DESC, coupon_id DESC);

-- Units of a meter, or credit in minor units of a currency, that a tenant may use before it pays.
CREATE TABLE prepaid_grant (
  tenant_id uuid NOT NULL REFERENCES tenant,
  grant_id uuid NOT NULL,
  name text NOT NULL,
  -- Empty for credit.
  meter text NOT NULL,
  -- Empty for units.
  currency text NOT NULL,
  amount bigint NOT NULL CONSTRAINT prepaid_grant_amount_positive CHECK (amount > 0),
  -- Lower is used first.
  priority integer NOT NULL,
  expires_at timestamptz,
  -- The amount again with every period; what is left of it before goes over up to rollover_max.
  recurs boolean NOT NULL,
  rollover_max bigint NOT NULL CONSTRAINT prepaid_grant_rollover_not_negative CHECK (rollover_max >= 0),
  created_at timestamptz NOT NULL,
  -- Taken back by an operator: it is used and given no more.
  revoked_at timestamptz,
  PRIMARY KEY (tenant_id, grant_id),
  CONSTRAINT prepaid_grant_one_kind CHECK ((meter = '') <> (currency = ''))
);

-- Every movement of a grant with the balance after it.
CREATE TABLE prepaid_entry (
  tenant_id uuid NOT NULL,
  entry_id bigint GENERATED ALWAYS AS IDENTITY,
  grant_id uuid NOT NULL,
  at timestamptz NOT NULL,
  kind text NOT NULL CONSTRAINT prepaid_entry_kind_known
    CHECK (kind IN ('granted', 'used', 'expired', 'revoked', 'returned')),
  amount bigint NOT NULL,
  balance bigint NOT NULL CONSTRAINT prepaid_entry_balance_not_negative CHECK (balance >= 0),
  -- The period whose close moved it, or whose invoice became void; null for what an operator granted or revoked.
  period_start timestamptz,
  PRIMARY KEY (tenant_id, entry_id),
  CONSTRAINT prepaid_entry_grant FOREIGN KEY (tenant_id, grant_id) REFERENCES prepaid_grant (tenant_id, grant_id)
);
CREATE INDEX prepaid_entry_newest ON prepaid_entry (tenant_id, grant_id, entry_id DESC);

-- One row per (subscription, plan version, period) that anything was used in; usage and rollups carry its id, so a
-- close cuts exactly. A change of the subscription within a period ends one segment and begins the next. Usage of a closed period goes to a segment of an open one whose late_for names the closed one.
-- A tenant without a subscription has segments without one: months of UTC that nobody bills.
CREATE TABLE billing_segment (
  tenant_id uuid NOT NULL REFERENCES tenant,
  segment_id uuid NOT NULL,
  subscription_id uuid,
  plan_version_id uuid REFERENCES plan_version,
  period_start timestamptz NOT NULL,
  period_end timestamptz NOT NULL,
  late_for uuid,
  -- `parted`: billed within its period; the open part of the same key has what came after that.
  state text NOT NULL CONSTRAINT billing_segment_state_known CHECK (state IN ('open', 'closed', 'parted')),
  closed_at timestamptz,
  -- Counts the parts that progressive invoices cut a segment into.
  part integer NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, segment_id),
  CONSTRAINT billing_segment_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id),
  CONSTRAINT billing_segment_late_for FOREIGN KEY (tenant_id, late_for)
    REFERENCES billing_segment (tenant_id, segment_id),
  CONSTRAINT billing_segment_span CHECK (period_end > period_start),
  CONSTRAINT billing_segment_closed_at CHECK ((state = 'open') = (closed_at IS NULL)),
  CONSTRAINT billing_segment_plan CHECK ((subscription_id IS NULL) = (plan_version_id IS NULL)),
  CONSTRAINT billing_segment_unique
    UNIQUE NULLS NOT DISTINCT (tenant_id, subscription_id, plan_version_id, period_start, late_for, part)
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
-- exactly when one of them changes. Rows stay when a limit goes, so the version never goes back, and a limit that goes
-- and comes back with another kind or key finds what it was.
CREATE TABLE limit_state (
  tenant_id uuid NOT NULL REFERENCES tenant,
  name text NOT NULL,
  amount bigint NOT NULL,
  enforcement text NOT NULL,
  amount_version bigint NOT NULL CONSTRAINT limit_state_version_positive CHECK (amount_version > 0),
  -- The rule as declared last, and how often kind or key changed, or the time at which such a change is in force.
  rule jsonb,
  shape bigint NOT NULL DEFAULT 0,
  -- The rule before, in force until then because its windows may be open, and its amount.
  held jsonb,
  held_amount bigint,
  held_until_us bigint,
  PRIMARY KEY (tenant_id, name),
  CONSTRAINT limit_state_held CHECK (
    (held IS NULL) = (held_amount IS NULL) AND (held IS NULL) = (held_until_us IS NULL))
);

-- The catalogue itself is no tenant's: every role reads it, billing writes it.
GRANT SELECT ON seller, meter, meter_cost_price, feature, plan, plan_version
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT INSERT, UPDATE ON seller, meter, meter_cost_price TO tollkeeper_billing;
GRANT SELECT, INSERT ON seller_logo TO tollkeeper_billing;
GRANT INSERT ON feature, plan, plan_version TO tollkeeper_billing;

GRANT SELECT ON tenant, subscription, subscription_phase, billing_segment, limit_override, limit_state,
  subscription_coupon, prepaid_grant, prepaid_entry
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT INSERT ON billing_segment TO tollkeeper_ingest;
GRANT INSERT, UPDATE ON tenant, subscription, subscription_phase, billing_segment, limit_state, subscription_coupon
  TO tollkeeper_billing;
GRANT DELETE ON subscription_phase TO tollkeeper_billing;
GRANT INSERT ON prepaid_grant, prepaid_entry TO tollkeeper_billing;
GRANT UPDATE (revoked_at) ON prepaid_grant TO tollkeeper_billing;
GRANT UPDATE (state) ON tenant TO tollkeeper_admin;
GRANT INSERT, UPDATE, DELETE ON limit_override TO tollkeeper_admin;
GRANT INSERT, UPDATE ON limit_state TO tollkeeper_admin;

CALL secure_tenant_table('tenant', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('subscription', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('subscription_phase', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('subscription_coupon', 'tollkeeper_billing');
CALL secure_tenant_table('prepaid_grant', 'tollkeeper_billing');
CALL secure_tenant_table('prepaid_entry', 'tollkeeper_billing');
CALL secure_tenant_table('billing_segment', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('limit_override', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('limit_state', 'tollkeeper_ingest', 'tollkeeper_billing');

-- From schema/035_pseudonyms.sql
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

-- From schema/040_limits.sql
-- How units leave limits: identities, their windows, pools' generations, leases, and what holders consumed.
--
-- Times are microseconds of ledger time (UTC). A window's id is 16 bytes whose first four are its end day (days since
-- 1970-01-01, big-endian), so that an id alone finds its partition. Lock order: cursors in key order, then windows in
-- id order.

-- One row per identity (tenant, limit name, key): locked to open a window, so two first uses make one window.
CREATE TABLE limit_cursor (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  key_hash bytea NOT NULL CONSTRAINT limit_cursor_key_hash_length CHECK (octet_length(key_hash) IN (0, 16)),
  -- The key's values in the rule's order, for reports.
  key_values text[] NOT NULL,
  -- Generations of this identity's pools so far; goes on over windows and resets.
  generation_n bigint NOT NULL DEFAULT 0,
  -- The two newest windows. A holder may lease the next one before the present one has ended.
  older_id bytea,
  older_start_us bigint,
  older_end_us bigint,
  newer_id bytea NOT NULL,
  newer_start_us bigint NOT NULL,
  newer_end_us bigint NOT NULL,
  -- Every window that ends at or before this is over for good; none is opened there again.
  floor_us bigint NOT NULL,
  PRIMARY KEY (tenant_id, limit_name, key_hash),
  CONSTRAINT limit_cursor_window_order CHECK (older_end_us <= newer_start_us)
) WITH (fillfactor = 80);

CREATE TABLE limit_window (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL CONSTRAINT limit_window_id_length CHECK (octet_length(window_id) = 16),
  end_day integer NOT NULL,
  limit_name text NOT NULL,
  key_hash bytea NOT NULL,
  timeline bigint NOT NULL,
  round integer NOT NULL DEFAULT 0,
  start_us bigint NOT NULL,
  end_us bigint NOT NULL,
  amount bigint NOT NULL CONSTRAINT limit_window_amount_range CHECK (amount BETWEEN 0 AND 9007199254740991),
  amount_version bigint NOT NULL,
  allotted bigint NOT NULL CONSTRAINT limit_window_allotted_positive CHECK (allotted >= 0),
  ceiling bigint NOT NULL,
  -- The smallest need that was denied since the last notice; 0 = none.
  wanted bigint NOT NULL DEFAULT 0,
  -- The newest generation of its pool, 0 = none.
  generation bigint NOT NULL DEFAULT 0,
  -- Levels only: what is stored according to the records committed so far. A fall may be committed before its rise.
  stored bigint NOT NULL DEFAULT 0,
  -- Levels only: of these, units that no lease was used for (soft, shadow, open). Falls take from them first.
  stored_over bigint NOT NULL DEFAULT 0 CONSTRAINT limit_window_stored_over_positive CHECK (stored_over >= 0),
  -- Levels only: units that came back before the rises that stand for them were committed: those take so many no more.
  -- A window that ends owes nothing.
  owed bigint NOT NULL DEFAULT 0 CONSTRAINT limit_window_owed CHECK (owed = 0 OR (owed > 0 AND end_day = 2932895)),
  -- When the amount was last lowered below what is out, and when that had come back.
  lowered_at_us bigint,
  settled_at_us bigint,
  -- Its next round has begun: nothing is issued from it any more.
  replaced boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, window_id, end_day),
  CONSTRAINT limit_window_allotted_within_ceiling CHECK (allotted <= ceiling),
  CONSTRAINT limit_window_span CHECK (end_us > start_us)
) PARTITION BY RANGE (end_day);
CREATE INDEX limit_window_by_id ON limit_window (window_id);
CREATE INDEX limit_window_replaced ON limit_window (tenant_id) WHERE replaced;

CREATE TABLE pool_generation (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  -- timeline x 2^32 + n.
  generation bigint NOT NULL,
  allotted_cum bigint NOT NULL,
  -- Units that came back to the limit after the generation had ended.
  credited bigint NOT NULL DEFAULT 0,
  -- A holder has reported it as lost: it gets no more units.
  lost boolean NOT NULL DEFAULT false,
  -- The amount went below what is out: to be closed in Redis, and closed there.
  closing boolean NOT NULL DEFAULT false,
  closed boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, window_id, generation, end_day),
  CONSTRAINT pool_generation_credit CHECK (credited BETWEEN 0 AND allotted_cum)
) PARTITION BY RANGE (end_day);
CREATE INDEX pool_generation_to_close ON pool_generation (end_day) WHERE closing AND NOT closed;

-- What the ledger itself leased, per (holder, window), and its last answer there.
CREATE TABLE holder_lease (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  holder bytea NOT NULL CONSTRAINT holder_lease_holder_length CHECK (octet_length(holder) = 16),
  request_seq bigint NOT NULL,
  granted_cum bigint NOT NULL,
  returned_cum bigint NOT NULL,
  -- Units given by the last answer; null where it was no lease.
  last_give bigint,
  -- Levels only: rises committed that name this holder, those beyond the limit left out.
  recorded bigint NOT NULL DEFAULT 0,
  -- Levels only: its process has ended, and what it held came back.
  ended boolean NOT NULL DEFAULT false,
  -- Concurrency only: raised when the lease is reclaimed; 0 = no lease was ever given.
  lease_epoch bigint NOT NULL DEFAULT 0,
  -- Concurrency only: counts renewals. Who has seen it stand still for 40 s of its own time may reclaim the lease.
  renewals bigint NOT NULL DEFAULT 0,
  -- Concurrency only: units in flight as last reported.
  in_flight bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, window_id, holder, end_day),
  CONSTRAINT holder_lease_return CHECK (returned_cum BETWEEN 0 AND granted_cum)
) PARTITION BY RANGE (end_day);

-- Leases that have to be renewed, few among all: the reclaimer reads them again and again.
CREATE INDEX holder_lease_timed ON holder_lease (holder) WHERE lease_epoch > 0 AND granted_cum > returned_cum;
-- Levels' leases by holder; 2932895 is the end day of windows without end, so this is empty in every other partition.
CREATE INDEX holder_lease_standing ON holder_lease (holder) WHERE end_day = 2932895;

-- Processes that have ended, until what they held of levels came back: once their producer's log is committed up to
-- ended_seq.
CREATE TABLE ended_holder (
  holder bytea PRIMARY KEY CONSTRAINT ended_holder_length CHECK (octet_length(holder) = 16),
  producer_id uuid NOT NULL,
  ended_seq bigint NOT NULL,
  done boolean NOT NULL DEFAULT false
);
CREATE INDEX ended_holder_open ON ended_holder (producer_id) WHERE NOT done;

-- What was given back of generations to the ledger, in the name of which holder.
CREATE TABLE lost_return (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  generation bigint NOT NULL,
  holder bytea NOT NULL,
  returned_cum bigint NOT NULL,
  PRIMARY KEY (tenant_id, window_id, generation, holder, end_day)
) PARTITION BY RANGE (end_day);

-- What holders consumed of a window, from leases of any source, as they reported it.
CREATE TABLE holder_consumption (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  holder bytea NOT NULL,
  consumed_cum bigint NOT NULL,
  over_cum bigint NOT NULL,
  given_back_cum bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, window_id, holder, end_day)
) PARTITION BY RANGE (end_day);

-- What holders said after a restore that they have of windows of an earlier timeline, for limits that learn.
CREATE TABLE learned_lease (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  key_hash bytea NOT NULL,
  -- The timeline in which it was said.
  timeline bigint NOT NULL,
  -- The window that it was leased from, as the holder knew it.
  window_id bytea NOT NULL CONSTRAINT learned_lease_window_length CHECK (octet_length(window_id) = 16),
  start_us bigint NOT NULL,
  end_us bigint NOT NULL,
  -- Whom it was leased to, and by what: 0 = the ledger, else a pool's generation.
  holder bytea NOT NULL CONSTRAINT learned_lease_holder_length CHECK (octet_length(holder) = 16),
  generation bigint NOT NULL,
  -- Units that did not go back.
  units bigint NOT NULL CONSTRAINT learned_lease_units_positive CHECK (units >= 0),
  -- Units that had gone into the generation, and that had left the limit, as that holder heard last.
  total bigint NOT NULL,
  allotted bigint NOT NULL,
  -- Units that the generation never gave, once it is closed in Redis; 0 where nobody can say.
  unspent bigint,
  PRIMARY KEY (tenant_id, limit_name, key_hash, timeline, window_id, holder, generation)
);
CREATE INDEX learned_lease_to_close ON learned_lease (timeline) WHERE generation > 0 AND unspent IS NULL;

-- One row per shard of a token bucket limit: the generation of its marker in Redis.
CREATE TABLE bucket_shard (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  shard integer NOT NULL CONSTRAINT bucket_shard_range CHECK (shard BETWEEN 0 AND 15),
  generation bigint NOT NULL,
  -- Ledger time at which this generation was opened.
  opened_at_us bigint NOT NULL,
  PRIMARY KEY (tenant_id, limit_name, shard)
);

CALL secure_tenant_table('limit_cursor', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('limit_window', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('pool_generation', 'tollkeeper_ingest');
CALL secure_tenant_table('holder_lease', 'tollkeeper_ingest');
CALL secure_tenant_table('lost_return', 'tollkeeper_ingest');
CALL secure_tenant_table('holder_consumption', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('learned_lease', 'tollkeeper_ingest');
CALL secure_tenant_table('bucket_shard', 'tollkeeper_ingest', 'tollkeeper_billing');

GRANT SELECT, INSERT, UPDATE ON limit_cursor, limit_window, pool_generation, holder_lease, lost_return,
  holder_consumption, bucket_shard TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE ON ended_holder TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON learned_lease TO tollkeeper_ingest;
GRANT SELECT ON limit_cursor, limit_window, holder_consumption TO tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT SELECT ON bucket_shard TO tollkeeper_admin, tollkeeper_billing;

-- Makes the partitions of windows that end on this day; those that are there stay.
CREATE FUNCTION ensure_limit_day(day integer) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp AS $$
DECLARE
  parent text;
  suffix text := to_char(date '1970-01-01' + day, 'YYYY_MM_DD');
BEGIN
  FOREACH parent IN ARRAY ARRAY['limit_window', 'pool_generation', 'holder_lease', 'lost_return', 'holder_consumption']
  LOOP
    PERFORM make_partition(parent::regclass, parent || '_' || suffix, format('FROM (%s) TO (%s)', day, day + 1));
  END LOOP;
END
$$;
GRANT EXECUTE ON FUNCTION ensure_limit_day(integer) TO tollkeeper_ingest;

-- From schema/050_usage.sql
-- What was used: producers, records, idempotency ids, what was refused, sums per minute, and the chain over all of it.
--
-- A record's identity is (tenant_id, id): usage_id holds it, usage_record holds the content. A batch is what one
-- AppendUsage committed; its row in usage_chain names the producer and the sequence numbers.

-- Numbers batches in the order in which their transactions began.
CREATE SEQUENCE usage_batch_number AS bigint;

-- Who sends usage, and how far it is committed. h is the hash over everything up to committed_seq.
CREATE TABLE producer (
  producer_id uuid PRIMARY KEY,
  incarnation bigint NOT NULL CONSTRAINT producer_incarnation_positive CHECK (incarnation > 0),
  -- The process that announced this incarnation.
  holder bytea NOT NULL CONSTRAINT producer_holder_length CHECK (octet_length(holder) BETWEEN 1 AND 64),
  format integer NOT NULL,
  committed_seq bigint NOT NULL CONSTRAINT producer_committed_seq_range CHECK (committed_seq >= 0),
  h bytea NOT NULL CONSTRAINT producer_h_length CHECK (octet_length(h) = 32),
  -- All that it received before this ledger time is committed; null = it has not said.
  watermark timestamptz,
  state text NOT NULL CONSTRAINT producer_state_known CHECK (state IN ('open', 'closed', 'lost')),
  opened_at timestamptz NOT NULL,
  -- Real time, for `silent`: idle times do not scale with ledger time.
  seen_at timestamptz NOT NULL
);

-- How far topics are read, by partition, as their readers say. Any tenant's record may be in one, so every period waits.
CREATE TABLE usage_topic (
  consumer_group text NOT NULL,
  topic text NOT NULL,
  partition integer NOT NULL,
  -- Everything before it is committed; where the partition ended when that was last asked.
  next_offset bigint NOT NULL,
  end_offset bigint NOT NULL,
  -- All that was in it before this ledger time is committed; null = not known.
  watermark timestamptz,
  state text NOT NULL CONSTRAINT usage_topic_state_known CHECK (state IN ('open', 'lost')),
  -- Real time, as a producer's.
  seen_at timestamptz NOT NULL,
  PRIMARY KEY (consumer_group, topic, partition)
);

-- What was committed before this ledger time is in a backup.
CREATE TABLE usage_safe (
  is_only boolean PRIMARY KEY DEFAULT true CONSTRAINT usage_safe_one_row CHECK (is_only),
  safe_before timestamptz NOT NULL
);

-- Which producers served a tenant: a period closes when their watermarks have passed its end.
CREATE TABLE producer_tenant (
  tenant_id uuid NOT NULL REFERENCES tenant,
  producer_id uuid NOT NULL REFERENCES producer,
  PRIMARY KEY (tenant_id, producer_id)
);

-- Stored records, one partition per month of event time (UTC). Units of meter_ids[i] are units[i].
CREATE TABLE usage_record (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  event_time timestamptz NOT NULL,
  received_at timestamptz NOT NULL,
  batch_id bigint NOT NULL,
  seq bigint NOT NULL,
  -- Bits of tollkeeper.ledger.v1.RecordFlag.
  flags smallint NOT NULL,
  id text COLLATE "C" NOT NULL,
  meter_ids integer[] NOT NULL,
  units bigint[] NOT NULL,
  attributes jsonb NOT NULL,
  -- First 8 bytes of the hash over all of this row, so that a row that was changed is found by itself.
  row_check bigint NOT NULL,
  PRIMARY KEY (tenant_id, event_time, id),
  CONSTRAINT usage_record_quantities
    CHECK (cardinality(meter_ids) BETWEEN 1 AND 16 AND cardinality(units) = cardinality(meter_ids))
) PARTITION BY RANGE (event_time);
-- Voids are few; whoever reads raw records asks for those of a span first.
CREATE INDEX usage_record_voids ON usage_record (tenant_id, event_time) WHERE flags & 32 <> 0;
-- Batches lie together on disk, so a few pages of this index find the records of a batch.
CREATE INDEX usage_record_by_batch ON usage_record USING brin (batch_id) WITH (pages_per_range = 16);

-- Every (tenant, id) that was stored, whatever its event time.
CREATE TABLE usage_id (
  tenant_id uuid NOT NULL,
  id text COLLATE "C" NOT NULL,
  content_hash bytea NOT NULL CONSTRAINT usage_id_hash_length CHECK (octet_length(content_hash) = 32),
  batch_id bigint NOT NULL,
  seq bigint NOT NULL,
  PRIMARY KEY (tenant_id, id)
) PARTITION BY HASH (tenant_id, id);
CREATE INDEX usage_id_by_batch ON usage_id USING brin (batch_id) WITH (pages_per_range = 16);

-- Records that were not stored, with why. tenant_id is all zeros where the tenant is unknown.
CREATE TABLE usage_quarantine (
  tenant_id uuid NOT NULL,
  producer_id uuid NOT NULL,
  seq bigint NOT NULL,
  batch_id bigint NOT NULL,
  reason text NOT NULL,
  -- Path of the offending field; empty where the record as a whole is refused.
  field text NOT NULL,
  content_hash bytea NOT NULL CONSTRAINT usage_quarantine_hash_length CHECK (octet_length(content_hash) = 32),
  -- The record as canonical JSON in UTF-8: bytes, because a refused record may hold what text can't.
  record bytea NOT NULL,
  quarantined_at timestamptz NOT NULL,
  -- As in usage_record.
  row_check bigint NOT NULL,
  PRIMARY KEY (tenant_id, producer_id, seq)
);
CREATE INDEX usage_quarantine_by_batch ON usage_quarantine USING brin (batch_id) WITH (pages_per_range = 16);
CREATE INDEX usage_quarantine_by_seq ON usage_quarantine (producer_id, seq);

-- What operators did about records in quarantine, numbered from 1. A record that was released, found to be stored, or
-- discarded is done with; `refused` leaves it where it is.
CREATE TABLE usage_quarantine_act (
  tenant_id uuid NOT NULL,
  producer_id uuid NOT NULL,
  seq bigint NOT NULL,
  number integer NOT NULL CONSTRAINT usage_quarantine_act_number_positive CHECK (number > 0),
  outcome text NOT NULL CONSTRAINT usage_quarantine_act_outcome_known
    CHECK (outcome IN ('released', 'duplicate', 'discarded', 'refused')),
  -- Why it was refused again; empty for the other outcomes.
  reason text NOT NULL,
  field text NOT NULL,
  -- Why the operator did it.
  note text NOT NULL,
  actor text NOT NULL,
  at timestamptz NOT NULL,
  -- Batch and number of the stored record, for `released` and `duplicate`; else 0.
  batch_id bigint NOT NULL,
  batch_seq bigint NOT NULL,
  -- As in usage_record.
  row_check bigint NOT NULL,
  PRIMARY KEY (tenant_id, producer_id, seq, number),
  CONSTRAINT usage_quarantine_act_of FOREIGN KEY (tenant_id, producer_id, seq) REFERENCES usage_quarantine
);
-- Nobody can release twice, or release what another has discarded.
CREATE UNIQUE INDEX usage_quarantine_act_end ON usage_quarantine_act (tenant_id, producer_id, seq)
  WHERE outcome <> 'refused';

-- How reservations ended whose records another producer than their home sent, until the home has taken it in. The home
-- alone gives units back; without this it would never hear.
CREATE TABLE settlement (
  tenant_id uuid NOT NULL,
  reservation_id bytea NOT NULL
    CONSTRAINT settlement_reservation_length CHECK (octet_length(reservation_id) = 16),
  -- The producer whose log holds the reservation. It may have sent nothing yet, so no row of `producer` is needed.
  home uuid NOT NULL,
  -- Units of meter_ids[i] are units[i].
  meter_ids integer[] NOT NULL,
  units bigint[] NOT NULL,
  committed_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, reservation_id),
  CONSTRAINT settlement_quantities CHECK (cardinality(units) = cardinality(meter_ids))
);
CREATE INDEX settlement_by_home ON settlement (home);
CREATE INDEX settlement_by_age ON settlement (committed_at);

-- Exact sums per minute of event time, keyed by segment so that a close cuts exactly. Late usage stands in the segment
-- that bills it, under the minute of its event. A void of a closed segment's record counts below 0 in a later segment.
CREATE TABLE usage_rollup_minute (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  meter_id integer NOT NULL,
  -- Values of the meter's dimensions, canonical JSON.
  dims text COLLATE "C" NOT NULL,
  minute timestamptz NOT NULL,
  -- Below 0 where levels fell by more than they rose.
  units numeric(38, 0) NOT NULL,
  -- Records less voids.
  records bigint NOT NULL,
  PRIMARY KEY (tenant_id, segment_id, meter_id, dims, minute)
) PARTITION BY RANGE (minute);

-- The same per quarter of an hour: every time zone's hours, days and months consist of them.
CREATE TABLE usage_rollup_quarter (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  meter_id integer NOT NULL,
  dims text COLLATE "C" NOT NULL,
  quarter timestamptz NOT NULL,
  units numeric(38, 0) NOT NULL,
  records bigint NOT NULL,
  PRIMARY KEY (tenant_id, meter_id, quarter, segment_id, dims)
) PARTITION BY RANGE (quarter);

-- What min, max, latest, time_weighted and percentile meters need beside sums, for reports, so of all segments together.
-- domain/usage_aggregate.py says what a state is. Voided records are not in it.
CREATE TABLE usage_rollup_state (
  tenant_id uuid NOT NULL,
  meter_id integer NOT NULL,
  dims text COLLATE "C" NOT NULL,
  quarter timestamptz NOT NULL,
  state jsonb NOT NULL,
  PRIMARY KEY (tenant_id, meter_id, quarter, dims)
) PARTITION BY RANGE (quarter);

-- Distinct values of unique meters per quarter of an hour: exact, as 128 bits of their SHA-256.
CREATE TABLE usage_rollup_value (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  meter_id integer NOT NULL,
  dims text COLLATE "C" NOT NULL,
  quarter timestamptz NOT NULL,
  value bytea NOT NULL CONSTRAINT usage_rollup_value_length CHECK (octet_length(value) = 16),
  -- Records with the value less voids.
  records bigint NOT NULL,
  PRIMARY KEY (tenant_id, meter_id, quarter, segment_id, dims, value)
) PARTITION BY RANGE (quarter);

-- The last reading of each OTLP counter that only grows, so that the next one adds what is new. Written with the record
-- of what it added, under the lock of that way in. A series is a digest and says nothing of tenants.
CREATE TABLE metric_series (
  series bytea PRIMARY KEY CONSTRAINT metric_series_length CHECK (octet_length(series) = 32),
  start_ns bigint NOT NULL,
  time_ns bigint NOT NULL,
  -- In the metric's own unit.
  total numeric NOT NULL CONSTRAINT metric_series_total CHECK (total >= 0),
  kept_at timestamptz NOT NULL,
  CONSTRAINT metric_series_times CHECK (start_ns > 0 AND time_ns >= start_ns)
);
CREATE INDEX metric_series_by_age ON metric_series (kept_at);

-- One link per batch that took sequence numbers. hash = SHA-256("tollkeeper.link.v1", stream, position, hash of the
-- link before, SHA-256 over all that it says of the batch); domain/usage_chain.py is the definition.
CREATE TABLE usage_chain (
  stream integer NOT NULL,
  position bigint NOT NULL CONSTRAINT usage_chain_position_positive CHECK (position > 0),
  batch_id bigint NOT NULL CONSTRAINT usage_chain_batch_unique UNIQUE,
  producer_id uuid NOT NULL REFERENCES producer,
  incarnation bigint NOT NULL,
  first_seq bigint NOT NULL,
  last_seq bigint NOT NULL,
  -- The producer's h at last_seq.
  h bytea NOT NULL CONSTRAINT usage_chain_h_length CHECK (octet_length(h) = 32),
  -- Merkle root over the content hashes of the stored records, grouped by tenant.
  merkle_root bytea NOT NULL CONSTRAINT usage_chain_merkle_length CHECK (octet_length(merkle_root) = 32),
  -- Hash over the stored rows in sequence order, with what content hashes leave out.
  rows_digest bytea NOT NULL CONSTRAINT usage_chain_rows_length CHECK (octet_length(rows_digest) = 32),
  -- The same over what went to quarantine.
  refused_digest bytea NOT NULL CONSTRAINT usage_chain_refused_length CHECK (octet_length(refused_digest) = 32),
  stored integer NOT NULL,
  duplicates integer NOT NULL,
  conflicts integer NOT NULL,
  quarantined integer NOT NULL,
  -- Sequence numbers that holes took.
  holes bigint NOT NULL,
  hash bytea NOT NULL CONSTRAINT usage_chain_hash_length CHECK (octet_length(hash) = 32),
  committed_at timestamptz NOT NULL,
  PRIMARY KEY (stream, position),
  CONSTRAINT usage_chain_span CHECK (first_seq > 0 AND last_seq >= first_seq)
);
CREATE INDEX usage_chain_by_producer ON usage_chain (producer_id, committed_at);
CREATE INDEX usage_chain_by_time ON usage_chain (committed_at);
CREATE INDEX usage_chain_by_seq ON usage_chain (producer_id, last_seq);

-- Last link of each stream, and totals, so that nobody counts rows.
CREATE TABLE usage_chain_head (
  stream integer PRIMARY KEY CONSTRAINT usage_chain_head_stream_range CHECK (stream >= 0),
  position bigint NOT NULL,
  hash bytea NOT NULL CONSTRAINT usage_chain_head_hash_length CHECK (octet_length(hash) = 32),
  stored_total bigint NOT NULL,
  quarantined_total bigint NOT NULL
);

-- Heads of all streams, signed each minute; the same lines are kept outside of Postgres.
CREATE TABLE usage_root (
  root_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  signed_at timestamptz NOT NULL,
  -- Canonical JSON; domain/usage_proof.py is the definition.
  statement bytea NOT NULL,
  signature bytea NOT NULL CONSTRAINT usage_root_signature_length CHECK (octet_length(signature) = 64),
  public_key bytea NOT NULL CONSTRAINT usage_root_key_length CHECK (octet_length(public_key) = 32)
);

CALL secure_tenant_table('producer_tenant', 'tollkeeper_ingest', 'tollkeeper_billing');
-- The owner too: it counts the records of a month before they leave for a file.
CALL secure_tenant_table('usage_record', 'tollkeeper_ingest', 'tollkeeper_billing', 'tollkeeper_owner');
-- The owner too: it deletes ids that have expired, of all tenants.
CALL secure_tenant_table('usage_id', 'tollkeeper_ingest', 'tollkeeper_billing', 'tollkeeper_owner');
CALL secure_tenant_table('settlement', 'tollkeeper_ingest');
CALL secure_tenant_table('usage_quarantine', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_quarantine_act', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_minute', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_quarter', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_state', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_value', 'tollkeeper_ingest', 'tollkeeper_billing');

GRANT USAGE ON SEQUENCE usage_batch_number TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE ON producer, usage_topic, usage_safe, usage_chain_head TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_rollup_minute, usage_rollup_quarter, usage_rollup_state,
  usage_rollup_value TO tollkeeper_ingest;
GRANT SELECT, INSERT, DELETE ON settlement TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON metric_series TO tollkeeper_ingest;
GRANT SELECT, INSERT ON producer_tenant, usage_record, usage_id, usage_quarantine, usage_quarantine_act, usage_chain
  TO tollkeeper_ingest;
GRANT SELECT ON producer, producer_tenant, usage_record, usage_id, usage_quarantine, usage_quarantine_act,
  usage_rollup_minute, usage_rollup_quarter, usage_rollup_state, usage_rollup_value, usage_chain, usage_chain_head
  TO tollkeeper_billing;
GRANT SELECT, INSERT ON usage_root TO tollkeeper_billing;
GRANT SELECT ON usage_topic TO tollkeeper_billing;
GRANT SELECT ON usage_record, usage_quarantine, usage_quarantine_act, usage_rollup_minute, usage_rollup_quarter,
  usage_rollup_state, usage_rollup_value TO tollkeeper_admin, tollkeeper_reader;

-- Row triggers come to partitions with the attachment; TRUNCATE triggers don't, so the makers below add them.
CREATE TRIGGER usage_record_append_only BEFORE UPDATE OR DELETE ON usage_record
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_record_no_truncate BEFORE TRUNCATE ON usage_record
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
-- Ids expire, so rows may go (no runtime role may delete them); none may change.
CREATE TRIGGER usage_id_no_update BEFORE UPDATE ON usage_id
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_id_no_truncate BEFORE TRUNCATE ON usage_id
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_chain_append_only BEFORE UPDATE OR DELETE ON usage_chain
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_chain_no_truncate BEFORE TRUNCATE ON usage_chain
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_append_only BEFORE UPDATE OR DELETE ON usage_quarantine
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_no_truncate BEFORE TRUNCATE ON usage_quarantine
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_act_append_only BEFORE UPDATE OR DELETE ON usage_quarantine_act
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_act_no_truncate BEFORE TRUNCATE ON usage_quarantine_act
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_root_append_only BEFORE UPDATE OR DELETE ON usage_root
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_root_no_truncate BEFORE TRUNCATE ON usage_root
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Makes the partitions of one month of records and rollups. Safe to repeat and to race. Bounded, so that a runtime
-- role can't fill the catalogue with partitions.
CREATE FUNCTION make_usage_month(month date) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp
  SET timezone = 'UTC' AS $$
DECLARE
  suffix text := to_char(month, 'YYYYMM');
  bounds text := format('FROM (%L) TO (%L)', month::timestamptz, (month + interval '1 month')::timestamptz);
BEGIN
  IF month <> date_trunc('month', month) OR month NOT BETWEEN date '1970-01-01' AND date '2199-12-01' THEN
    RAISE EXCEPTION 'no month of usage starts on %', month USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM make_partition('usage_record', 'usage_record_' || suffix, bounds);
  IF NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                 WHERE c.relname = 'usage_record_' || suffix AND c.relnamespace = 'tollkeeper'::regnamespace
                   AND t.tgname = 'usage_record_no_truncate') THEN
    EXECUTE format('CREATE TRIGGER usage_record_no_truncate BEFORE TRUNCATE ON %I
      FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', 'usage_record_' || suffix);
  END IF;
  -- Each batch updates most of what the one before it touched, so half of every page is left to that.
  PERFORM make_partition('usage_rollup_minute', 'usage_rollup_minute_' || suffix, bounds, 50);
  PERFORM make_partition('usage_rollup_quarter', 'usage_rollup_quarter_' || suffix, bounds, 50);
  PERFORM make_partition('usage_rollup_state', 'usage_rollup_state_' || suffix, bounds);
  PERFORM make_partition('usage_rollup_value', 'usage_rollup_value_' || suffix, bounds);
END
$$;
GRANT EXECUTE ON FUNCTION make_usage_month(date) TO tollkeeper_ingest;

DO $$
BEGIN
  FOR part IN 0..7 LOOP
    PERFORM make_partition('usage_id', format('usage_id_%s', part), format('WITH (MODULUS 8, REMAINDER %s)', part));
    EXECUTE format('CREATE TRIGGER usage_id_no_truncate BEFORE TRUNCATE ON usage_id_%s
      FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', part);
  END LOOP;
END
$$;

-- From schema/055_archive.sql
-- Months of raw records that left Postgres for a file. Rollups, ids, links and invoices stay.

CREATE TABLE usage_archive (
  month date PRIMARY KEY CONSTRAINT usage_archive_month_first CHECK (date_trunc('month', month) = month),
  records bigint NOT NULL CONSTRAINT usage_archive_records_positive CHECK (records > 0),
  -- Hash over the records in order of batch and sequence number, as a link of the chain hashes those of a batch.
  rows_digest bytea NOT NULL CONSTRAINT usage_archive_rows_length CHECK (octet_length(rows_digest) = 32),
  -- Name of the file in the archive's directory, and SHA-256 over its bytes.
  file text NOT NULL,
  file_digest bytea NOT NULL CONSTRAINT usage_archive_file_length CHECK (octet_length(file_digest) = 32)
);

-- How many records of a batch are in an archived month: the audit counts them in the batch's place.
CREATE TABLE usage_archive_batch (
  batch_id bigint NOT NULL,
  month date NOT NULL REFERENCES usage_archive,
  records integer NOT NULL CONSTRAINT usage_archive_batch_positive CHECK (records > 0),
  PRIMARY KEY (batch_id, month)
);

CREATE TRIGGER usage_archive_append_only BEFORE UPDATE OR DELETE ON usage_archive
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_archive_no_truncate BEFORE TRUNCATE ON usage_archive
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_archive_batch_append_only BEFORE UPDATE OR DELETE ON usage_archive_batch
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_archive_batch_no_truncate BEFORE TRUNCATE ON usage_archive_batch
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT ON usage_archive, usage_archive_batch TO tollkeeper_ingest, tollkeeper_billing;

-- Says whether a month's records are in a file only.
CREATE FUNCTION is_archived(of_month date) RETURNS boolean
  LANGUAGE sql STABLE
  SET search_path = tollkeeper, pg_temp AS $$
  SELECT EXISTS (SELECT FROM usage_archive WHERE month = of_month)
    AND NOT EXISTS (SELECT FROM pg_class WHERE relname = 'usage_record_' || to_char(of_month, 'YYYYMM')
                    AND relnamespace = 'tollkeeper'::regnamespace)
$$;
GRANT EXECUTE ON FUNCTION is_archived(date) TO tollkeeper_ingest, tollkeeper_billing;

-- Gives the months of a span whose records are in files only. Whoever reads one tenant's records may ask, too.
CREATE FUNCTION archived_months(first timestamptz, after timestamptz) RETURNS SETOF date
  LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp AS $$
  SELECT month FROM usage_archive
  WHERE month < after AT TIME ZONE 'UTC' AND month + interval '1 month' > first AT TIME ZONE 'UTC' AND is_archived(month)
  ORDER BY month
$$;
GRANT EXECUTE ON FUNCTION archived_months(timestamptz, timestamptz)
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;

-- Drops a month's records, which are in a file now; gives whether they were there. Refuses a month that records could
-- still come to, another number of records than there are, and, where the month was archived before and brought back,
-- other records or another file than then. `in_batches` records are of `batches`.
CREATE FUNCTION archive_usage_month(
  of_month date, of_records bigint, of_rows_digest bytea, of_file text, of_file_digest bytea,
  batches bigint[], in_batches integer[]
) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp
  SET timezone = 'UTC'
  -- Whoever reads all records for long must not make every append wait behind this.
  SET lock_timeout = '300ms' AS $$
DECLARE
  partition_name text := 'usage_record_' || to_char(of_month, 'YYYYMM');
  counted bigint;
BEGIN
  IF of_month + interval '5 months' > ledger_now() THEN
    RAISE EXCEPTION 'records of % may still come', of_month USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('archive ' || partition_name, 0));
  IF NOT EXISTS (SELECT FROM pg_class WHERE relname = partition_name AND relnamespace = 'tollkeeper'::regnamespace) THEN
    RETURN false;
  END IF;
  EXECUTE format('ALTER TABLE usage_record DETACH PARTITION %I', partition_name);
  EXECUTE format('SELECT count(*) FROM %I', partition_name) INTO counted;
  IF counted <> of_records THEN
    RAISE EXCEPTION '% has % records, not %', of_month, counted, of_records
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF NOT EXISTS (SELECT FROM usage_archive WHERE month = of_month) THEN
    INSERT INTO usage_archive VALUES (of_month, of_records, of_rows_digest, of_file, of_file_digest);
    INSERT INTO usage_archive_batch SELECT batch, of_month, number FROM unnest(batches, in_batches) AS part (batch, number);
  ELSIF NOT EXISTS (SELECT FROM usage_archive WHERE month = of_month AND rows_digest = of_rows_digest
                    AND (file, file_digest) = (of_file, of_file_digest)) THEN
    RAISE EXCEPTION '% was archived with other records, or in another file', of_month
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  EXECUTE format('DROP TABLE %I', partition_name);
  RETURN true;
END
$$;
GRANT EXECUTE ON FUNCTION archive_usage_month(date, bigint, bytea, text, bytea, bigint[], integer[]) TO tollkeeper_ingest;

-- From schema/060_billing.sql
-- What was closed, and the invoices made of it. Finalised money never changes: no role may update or delete here.

-- A closed period: the summed inputs as canonical bytes, taken in the transaction that closed its segments. A run adds
-- its invoice in the same one; a close that has none, and is no draft, is picked up by the next run.
CREATE TABLE billing_close (
  tenant_id uuid NOT NULL REFERENCES tenant,
  subscription_id uuid NOT NULL,
  period_start timestamptz NOT NULL,
  period_end timestamptz NOT NULL,
  closed_at timestamptz NOT NULL,
  -- False for plans that can't charge anything: the period is closed, no invoice follows.
  billable boolean NOT NULL,
  -- True where the payer's invoices wait as drafts until somebody finalises them.
  is_draft boolean NOT NULL DEFAULT false,
  -- True where a running period was billed up to `period_end`, its cut: the row stands for the microsecond before it, and
  -- the period's own close takes off what such invoices said.
  is_cut boolean NOT NULL DEFAULT false,
  inputs bytea NOT NULL,
  PRIMARY KEY (tenant_id, subscription_id, period_start),
  CONSTRAINT billing_close_subscription FOREIGN KEY (tenant_id, subscription_id)
    REFERENCES subscription (tenant_id, subscription_id),
  CONSTRAINT billing_close_span CHECK (period_end > period_start)
);

-- The next number per seller; locked from taking a number to commit, so that numbers have no gaps.
CREATE TABLE invoice_number (
  seller_id text PRIMARY KEY REFERENCES seller,
  next bigint NOT NULL CONSTRAINT invoice_number_positive CHECK (next > 0),
  next_credit_note bigint NOT NULL DEFAULT 1 CONSTRAINT credit_note_number_positive CHECK (next_credit_note > 0)
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
  currency text NOT NULL,
  subtotal_minor bigint NOT NULL,
  tax_minor bigint NOT NULL,
  total_minor bigint NOT NULL,
  finalised_at timestamptz NOT NULL,
  record_count bigint NOT NULL,
  -- Canonical JSON of the whole invoice; the PDF is made of it alone.
  document bytea NOT NULL,
  digest bytea NOT NULL CONSTRAINT invoice_digest_is_sha256 CHECK (digest = sha256(document)),
  -- 1, and one more each time that a void invoice was issued again.
  issue integer NOT NULL DEFAULT 1 CONSTRAINT invoice_issue_positive CHECK (issue > 0),
  -- The void invoice that this one replaces, and the inputs it was made of; null: those of the close.
  replaces uuid,
  inputs bytea,
  PRIMARY KEY (tenant_id, invoice_id),
  CONSTRAINT invoice_one_per_period UNIQUE (tenant_id, subscription_id, period_start, issue),
  CONSTRAINT invoice_replaces FOREIGN KEY (tenant_id, replaces) REFERENCES invoice (tenant_id, invoice_id),
  CONSTRAINT invoice_issued_again CHECK ((issue = 1) = (replaces IS NULL) AND (replaces IS NULL) = (inputs IS NULL)),
  CONSTRAINT invoice_number_unique UNIQUE (seller_id, serial),
  CONSTRAINT invoice_close FOREIGN KEY (tenant_id, subscription_id, period_start)
    REFERENCES billing_close (tenant_id, subscription_id, period_start),
  CONSTRAINT invoice_total CHECK (total_minor = subtotal_minor + tax_minor)
);
-- Partial: hardly an invoice replaces another, and each index costs every invoice.
CREATE UNIQUE INDEX invoice_replaced_once ON invoice (tenant_id, replaces) WHERE replaces IS NOT NULL;
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
  -- Lines are added before their invoice has its number, for which others wait.
  CONSTRAINT invoice_line_invoice FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice (tenant_id, invoice_id)
    DEFERRABLE INITIALLY DEFERRED
);

GRANT SELECT, INSERT ON billing_close, invoice, invoice_line TO tollkeeper_billing;
GRANT SELECT (tenant_id, subscription_id, period_start, period_end, is_cut) ON billing_close TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE ON invoice_number TO tollkeeper_billing;
GRANT SELECT ON invoice, invoice_line TO tollkeeper_admin, tollkeeper_reader;
-- Who archives records asks which periods may still get late usage.
CALL secure_tenant_table('billing_close', 'tollkeeper_billing', 'tollkeeper_ingest');
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

-- From schema/065_money.sql
-- Money: who pays how, what is owed, what moved. `tenant_id` is the payer's, except in `receivable`, whose row belongs
-- to its invoice. The journal is the truth; `receivable` and `billing_account` hold its sums, written in the same
-- transaction. Locks in this order: invoice_number, billing_account, receivable.

-- How a payer is billed; no row = the defaults.
CREATE TABLE billing_profile (
  tenant_id uuid PRIMARY KEY REFERENCES tenant,
  email text NOT NULL DEFAULT '',
  locale text NOT NULL DEFAULT 'en' CONSTRAINT billing_profile_locale_known CHECK (locale IN ('en', 'de', 'fr')),
  paper text NOT NULL DEFAULT 'a4' CONSTRAINT billing_profile_paper_known CHECK (paper IN ('a4', 'letter')),
  provider text NOT NULL DEFAULT 'manual'
    CONSTRAINT billing_profile_provider_known CHECK (provider IN ('manual', 'stripe')),
  due_days integer NOT NULL DEFAULT 14 CONSTRAINT billing_profile_due_days_range CHECK (due_days BETWEEN 0 AND 365),
  -- [{name, percent, meters}]: the first that names a line's meter, or names none, applies.
  taxes jsonb NOT NULL DEFAULT '[]',
  tax_mode text NOT NULL DEFAULT 'exclusive'
    CONSTRAINT billing_profile_tax_mode_known CHECK (tax_mode IN ('exclusive', 'inclusive', 'reverse_charge', 'exempt')),
  review boolean NOT NULL DEFAULT false,
  -- Days after a failed payment on which it is tried again; then the policy.
  dunning_days integer[] NOT NULL DEFAULT '{1,3,5,7}',
  dunning_policy text NOT NULL DEFAULT 'mark'
    CONSTRAINT billing_profile_policy_known CHECK (dunning_policy IN ('mark', 'suspend', 'uncollectible', 'fallback')),
  -- The plan that `fallback` moves to.
  fallback_plan text NOT NULL DEFAULT '',
  -- How a payer of provider `manual` pays, as was agreed with it; empty: nothing was.
  pays_by text NOT NULL DEFAULT '',
  CONSTRAINT billing_profile_fallback CHECK (dunning_policy <> 'fallback' OR fallback_plan <> ''),
  set_at timestamptz NOT NULL
);

-- What a payer has with a seller in one currency; its row is the lock of all that moves there.
CREATE TABLE billing_account (
  tenant_id uuid NOT NULL REFERENCES tenant,
  seller_id text NOT NULL REFERENCES seller,
  currency text NOT NULL,
  -- Owed to the payer: from credit notes and overpayments.
  balance_minor bigint NOT NULL DEFAULT 0 CONSTRAINT billing_account_not_negative CHECK (balance_minor >= 0),
  PRIMARY KEY (tenant_id, seller_id, currency)
);

-- What became of an invoice. due = total - balance - paid - credited_due - written_off.
CREATE TABLE receivable (
  tenant_id uuid NOT NULL,
  invoice_id uuid NOT NULL,
  payer_tenant_id uuid NOT NULL REFERENCES tenant,
  state text NOT NULL
    CONSTRAINT receivable_state_known CHECK (state IN ('finalised', 'paid', 'past_due', 'uncollectible', 'void')),
  due_at timestamptz NOT NULL,
  subtotal_minor bigint NOT NULL,
  tax_minor bigint NOT NULL,
  balance_minor bigint NOT NULL DEFAULT 0,
  paid_minor bigint NOT NULL DEFAULT 0,
  credited_minor bigint NOT NULL DEFAULT 0,
  credited_due_minor bigint NOT NULL DEFAULT 0,
  credited_tax_minor bigint NOT NULL DEFAULT 0,
  written_off_minor bigint NOT NULL DEFAULT 0,
  refunded_minor bigint NOT NULL DEFAULT 0,
  due_minor bigint GENERATED ALWAYS AS (
    subtotal_minor + tax_minor - balance_minor - paid_minor - credited_due_minor - written_off_minor) STORED,
  changed_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, invoice_id),
  CONSTRAINT receivable_invoice FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice (tenant_id, invoice_id),
  CONSTRAINT receivable_sums CHECK (paid_minor >= 0 AND credited_due_minor BETWEEN 0 AND credited_minor
    AND written_off_minor >= 0 AND refunded_minor >= 0
    AND credited_minor <= greatest(0, subtotal_minor + tax_minor)),
  CONSTRAINT receivable_due CHECK (state = 'void' OR due_minor >= 0),
  CONSTRAINT receivable_settled CHECK (state NOT IN ('paid', 'uncollectible') OR due_minor = 0)
);
CREATE INDEX receivable_open ON receivable (due_at) WHERE state IN ('finalised', 'past_due');
CREATE INDEX receivable_by_invoice ON receivable (invoice_id);

-- Closes as they are billed: with the inputs of the newest invoice, or their own while there is none.
CREATE VIEW close_as_billed WITH (security_invoker = true) AS
SELECT c.tenant_id, c.subscription_id, c.period_start, c.period_end, c.is_cut, coalesce(i.inputs, c.inputs) AS inputs,
       i.number, coalesce(r.state = 'void', false) AS is_void
FROM billing_close c
LEFT JOIN LATERAL (
  SELECT n.tenant_id, n.invoice_id, n.inputs, n.number FROM invoice n
  WHERE n.tenant_id = c.tenant_id AND n.subscription_id = c.subscription_id AND n.period_start = c.period_start
  ORDER BY n.issue DESC LIMIT 1
) i ON true
LEFT JOIN receivable r ON r.tenant_id = i.tenant_id AND r.invoice_id = i.invoice_id;

-- Every movement: one amount from one account to another, so that all accounts always sum to zero.
CREATE TABLE journal (
  tenant_id uuid NOT NULL REFERENCES tenant,
  transfer_id uuid NOT NULL,
  seller_id text NOT NULL REFERENCES seller,
  at timestamptz NOT NULL,
  kind text NOT NULL,
  debit text NOT NULL
    CONSTRAINT journal_debit_known CHECK (debit IN ('receivable', 'revenue', 'tax', 'cash', 'balance', 'bad_debt', 'disputed', 'fees')),
  credit text NOT NULL
    CONSTRAINT journal_credit_known CHECK (credit IN ('receivable', 'revenue', 'tax', 'cash', 'balance', 'bad_debt', 'disputed', 'fees')),
  amount_minor bigint NOT NULL CONSTRAINT journal_amount_positive CHECK (amount_minor > 0),
  currency text NOT NULL,
  invoice_id uuid,
  -- What it is about: a number of an invoice, credit note, or a payment's reference.
  subject text NOT NULL,
  PRIMARY KEY (tenant_id, transfer_id),
  CONSTRAINT journal_two_accounts CHECK (debit <> credit)
);
CREATE INDEX journal_newest ON journal (at DESC, transfer_id DESC);
CREATE INDEX journal_by_invoice ON journal (invoice_id);

CREATE TABLE payment (
  tenant_id uuid NOT NULL REFERENCES tenant,
  payment_id uuid NOT NULL,
  invoice_id uuid NOT NULL,
  provider text NOT NULL,
  -- The provider's or the bank's name of it: a payment is recorded once.
  reference text NOT NULL,
  amount_minor bigint NOT NULL CONSTRAINT payment_amount_positive CHECK (amount_minor > 0),
  currency text NOT NULL,
  received_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, payment_id),
  CONSTRAINT payment_recorded_once UNIQUE (tenant_id, provider, reference)
);
CREATE INDEX payment_newest ON payment (received_at DESC, payment_id DESC);
CREATE INDEX payment_by_invoice ON payment (invoice_id);

CREATE TABLE credit_note (
  tenant_id uuid NOT NULL REFERENCES tenant,
  credit_note_id uuid NOT NULL,
  seller_id text NOT NULL REFERENCES seller,
  number text NOT NULL,
  serial bigint NOT NULL,
  invoice_id uuid NOT NULL,
  issued_at timestamptz NOT NULL,
  currency text NOT NULL,
  amount_minor bigint NOT NULL CONSTRAINT credit_note_amount_positive CHECK (amount_minor > 0),
  document bytea NOT NULL,
  digest bytea NOT NULL CONSTRAINT credit_note_digest_is_sha256 CHECK (digest = sha256(document)),
  PRIMARY KEY (tenant_id, credit_note_id),
  CONSTRAINT credit_note_number_unique UNIQUE (seller_id, serial)
);
CREATE INDEX credit_note_by_number ON credit_note (number);
CREATE INDEX credit_note_newest ON credit_note (issued_at DESC, credit_note_id DESC);
CREATE INDEX credit_note_by_invoice ON credit_note (invoice_id);

-- Money sent back out of a payer's balance. A failed one is put back into it.
CREATE TABLE refund (
  tenant_id uuid NOT NULL REFERENCES tenant,
  refund_id uuid NOT NULL,
  invoice_id uuid NOT NULL,
  provider text NOT NULL,
  amount_minor bigint NOT NULL CONSTRAINT refund_amount_positive CHECK (amount_minor > 0),
  currency text NOT NULL,
  state text NOT NULL CONSTRAINT refund_state_known CHECK (state IN ('pending', 'succeeded', 'failed')),
  asked_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, refund_id)
);

-- What an operator adds to the next invoice: a charge, or a credit below zero.
CREATE TABLE invoice_item (
  tenant_id uuid NOT NULL REFERENCES tenant,
  item_id uuid NOT NULL,
  description text NOT NULL,
  amount_minor bigint NOT NULL CONSTRAINT invoice_item_not_zero CHECK (amount_minor <> 0),
  currency text NOT NULL,
  added_at timestamptz NOT NULL,
  -- The close that took it.
  subscription_id uuid,
  period_start timestamptz,
  PRIMARY KEY (tenant_id, item_id),
  CONSTRAINT invoice_item_close FOREIGN KEY (tenant_id, subscription_id, period_start)
    REFERENCES billing_close (tenant_id, subscription_id, period_start)
);
CREATE INDEX invoice_item_newest ON invoice_item (added_at DESC, item_id DESC);
CREATE INDEX invoice_item_waiting ON invoice_item (tenant_id) WHERE period_start IS NULL;

GRANT SELECT, INSERT, UPDATE ON billing_profile, billing_account, receivable, refund, invoice_item TO tollkeeper_billing;
GRANT DELETE ON invoice_item TO tollkeeper_billing;
GRANT SELECT ON close_as_billed TO tollkeeper_billing;
GRANT SELECT, INSERT ON journal, payment, credit_note TO tollkeeper_billing;
GRANT SELECT ON billing_profile, billing_account, receivable, journal, payment, credit_note, refund, invoice_item
  TO tollkeeper_admin, tollkeeper_reader;
CALL secure_tenant_table('billing_profile', 'tollkeeper_billing');
CALL secure_tenant_table('billing_account', 'tollkeeper_billing');
CALL secure_tenant_table('receivable', 'tollkeeper_billing');
CALL secure_tenant_table('journal', 'tollkeeper_billing');
CALL secure_tenant_table('payment', 'tollkeeper_billing');
CALL secure_tenant_table('credit_note', 'tollkeeper_billing');
CALL secure_tenant_table('refund', 'tollkeeper_billing');
CALL secure_tenant_table('invoice_item', 'tollkeeper_billing');

CREATE TRIGGER journal_append_only BEFORE UPDATE OR DELETE ON journal
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER journal_no_truncate BEFORE TRUNCATE ON journal
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_append_only BEFORE UPDATE OR DELETE ON payment
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_no_truncate BEFORE TRUNCATE ON payment
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER credit_note_append_only BEFORE UPDATE OR DELETE ON credit_note
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER credit_note_no_truncate BEFORE TRUNCATE ON credit_note
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- From schema/066_providers.sql
-- Payment providers: who a payer is there, what is being done, and every request with its exact bytes. `tenant_id` is
-- the payer's.

CREATE TABLE provider_account (
  tenant_id uuid NOT NULL REFERENCES tenant,
  provider text NOT NULL,
  -- The provider's id of the payer; empty until it was made.
  customer text NOT NULL DEFAULT '',
  -- The payment method that is charged; empty = none.
  method text NOT NULL DEFAULT '',
  method_label text NOT NULL DEFAULT '',
  -- Last month in which a card is good.
  method_expires date,
  changed_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, provider)
);

-- Which payers have a payment method: one that is charged, or one that was agreed.
CREATE VIEW payer_method WITH (security_invoker = true) AS
SELECT f.tenant_id, CASE f.provider WHEN 'manual' THEN f.pays_by <> '' ELSE coalesce(a.method, '') <> '' END AS has_method
FROM billing_profile f LEFT JOIN provider_account a ON a.tenant_id = f.tenant_id AND a.provider = f.provider;

-- One thing to carry through at a provider, step by step. Added in the transaction that makes it necessary.
CREATE TABLE provider_job (
  tenant_id uuid NOT NULL REFERENCES tenant,
  job_id uuid NOT NULL,
  provider text NOT NULL,
  kind text NOT NULL CONSTRAINT provider_job_kind_known CHECK (kind IN ('collect', 'void', 'credit', 'refund')),
  invoice_id uuid NOT NULL,
  -- Credit note or refund; null for collect and void.
  subject_id uuid,
  amount_minor bigint NOT NULL,
  step text NOT NULL,
  state text NOT NULL CONSTRAINT provider_job_state_known CHECK (state IN ('ready', 'waiting', 'done', 'failed')),
  -- Not before then; a worker that has it puts this ahead, so that a dead one's job is taken up again.
  next_at timestamptz NOT NULL,
  tries integer NOT NULL DEFAULT 0,
  -- Payments that failed.
  failures integer NOT NULL DEFAULT 0,
  failed_at timestamptz,
  -- The provider's ids as they became known.
  facts jsonb NOT NULL DEFAULT '{}',
  error text NOT NULL DEFAULT '',
  PRIMARY KEY (tenant_id, job_id),
  CONSTRAINT provider_job_once UNIQUE NULLS NOT DISTINCT (tenant_id, kind, invoice_id, subject_id)
);
CREATE INDEX provider_job_ready ON provider_job (next_at) WHERE state = 'ready';
CREATE INDEX provider_job_by_invoice ON provider_job (invoice_id);
CREATE INDEX provider_job_by_object ON provider_job ((facts ->> 'invoice'));

-- The exact bytes of each attempt of each step, frozen before they are sent.
CREATE TABLE provider_request (
  tenant_id uuid NOT NULL,
  job_id uuid NOT NULL,
  step text NOT NULL,
  attempt integer NOT NULL CONSTRAINT provider_request_attempt_positive CHECK (attempt > 0),
  method text NOT NULL,
  path text NOT NULL,
  body bytea NOT NULL,
  idempotency_key text NOT NULL,
  frozen_at timestamptz NOT NULL,
  status integer,
  answer bytea,
  PRIMARY KEY (tenant_id, job_id, step, attempt),
  CONSTRAINT provider_request_job FOREIGN KEY (tenant_id, job_id) REFERENCES provider_job (tenant_id, job_id)
);

-- Events that were taken in. The provider's ids, of no tenant.
CREATE TABLE provider_event (
  provider text NOT NULL,
  event_id text NOT NULL,
  kind text NOT NULL,
  object_id text NOT NULL,
  received_at timestamptz NOT NULL,
  PRIMARY KEY (provider, event_id)
);

-- Payments that payers had their banks take back.
CREATE TABLE dispute (
  tenant_id uuid NOT NULL REFERENCES tenant,
  provider text NOT NULL,
  -- The provider's id.
  dispute_id text NOT NULL,
  invoice_id uuid NOT NULL,
  amount_minor bigint NOT NULL CONSTRAINT dispute_amount_positive CHECK (amount_minor > 0),
  currency text NOT NULL,
  reason text NOT NULL,
  -- What the provider calls where it is.
  status text NOT NULL,
  -- Only forward: warned (no money moved), open (the bank has it), won or lost.
  stage text NOT NULL CONSTRAINT dispute_stage_known CHECK (stage IN ('warned', 'open', 'won', 'lost')),
  -- What the provider kept for it, booked.
  fee_minor bigint NOT NULL DEFAULT 0,
  -- Until when evidence can be sent.
  evidence_by timestamptz,
  opened_at timestamptz NOT NULL,
  changed_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, provider, dispute_id)
);

GRANT SELECT, INSERT, UPDATE ON dispute TO tollkeeper_billing;
CALL secure_tenant_table('dispute', 'tollkeeper_billing');

-- What nightly comparisons with a provider found. Of no tenant.
CREATE TABLE reconciliation (
  reconciliation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  provider text NOT NULL,
  at timestamptz NOT NULL,
  -- Invoices finalised from then on were compared.
  since timestamptz NOT NULL,
  compared bigint NOT NULL,
  -- [{invoice, problem}]
  differences jsonb NOT NULL,
  -- Why nothing could be compared, or `under way`; empty where it was.
  problem text NOT NULL
);

GRANT SELECT, INSERT, UPDATE ON reconciliation TO tollkeeper_billing;
GRANT SELECT, INSERT, UPDATE ON provider_account, provider_job, provider_request TO tollkeeper_billing;
GRANT SELECT, INSERT ON provider_event TO tollkeeper_billing;
GRANT SELECT ON payer_method TO tollkeeper_billing;
CALL secure_tenant_table('provider_account', 'tollkeeper_billing');
CALL secure_tenant_table('provider_job', 'tollkeeper_billing');
CALL secure_tenant_table('provider_request', 'tollkeeper_billing');

-- From schema/067_mail.sql
-- Mails to payers, and to sellers of disputes. Those about alerts have no invoice. `tenant_id` is the payer's. Times are real time.

CREATE TABLE mail (
  tenant_id uuid NOT NULL REFERENCES tenant,
  mail_id uuid NOT NULL,
  kind text NOT NULL CONSTRAINT mail_kind_known CHECK (kind IN ('invoice', 'credit_note', 'payment_failed', 'card_expires', 'dispute', 'alert')),
  invoice_id uuid,
  -- What distinguishes mails of one kind about one invoice: a credit note's number, how many payments failed, a request, a
  -- card with its last month, a dispute with where it is, an alert.
  stage text NOT NULL,
  recipient text NOT NULL,
  -- Unknown: the server may or may not have taken it; it is not sent again by itself.
  state text NOT NULL CONSTRAINT mail_state_known CHECK (state IN ('queued', 'sent', 'failed', 'unknown')),
  next_at timestamptz NOT NULL,
  queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant_id, mail_id),
  CONSTRAINT mail_once UNIQUE NULLS NOT DISTINCT (tenant_id, kind, invoice_id, stage),
  CONSTRAINT mail_of_invoice CHECK ((kind = 'alert') = (invoice_id IS NULL))
);
CREATE INDEX mail_ready ON mail (next_at) WHERE state = 'queued';

-- One row per try, begun before the server is spoken to. handed_at is committed before the server is given the mail:
-- a try that ended before it has sent nothing.
CREATE TABLE mail_attempt (
  tenant_id uuid NOT NULL,
  mail_id uuid NOT NULL,
  attempt integer NOT NULL CONSTRAINT mail_attempt_positive CHECK (attempt > 0),
  begun_at timestamptz NOT NULL,
  handed_at timestamptz,
  ended_at timestamptz,
  -- What the server said last.
  reply text NOT NULL DEFAULT '',
  PRIMARY KEY (tenant_id, mail_id, attempt),
  CONSTRAINT mail_attempt_mail FOREIGN KEY (tenant_id, mail_id) REFERENCES mail (tenant_id, mail_id)
);

GRANT SELECT, INSERT, UPDATE ON mail, mail_attempt TO tollkeeper_billing;
CALL secure_tenant_table('mail', 'tollkeeper_billing');
CALL secure_tenant_table('mail_attempt', 'tollkeeper_billing');

-- From schema/068_alerts.sql
-- What was told of use and spend, and what is still to be looked at. Times are ledger time.

-- One row per threshold that was reached, once per window or billing period: whoever adds it tells of it.
CREATE TABLE alert (
  tenant_id uuid NOT NULL REFERENCES tenant,
  alert_id uuid NOT NULL,
  kind text NOT NULL CONSTRAINT alert_kind_known CHECK (kind IN ('limit', 'meter', 'spend', 'trial')),
  -- Limit or meter; the currency of spend; the plan of a trial.
  subject text NOT NULL,
  -- The window's id in hex; subscription and start of the billing period, or end of the trial.
  span text NOT NULL,
  -- `90%`, or an amount.
  threshold text NOT NULL,
  -- Of a limit that is split by key, an array of texts; of a trial, what happens at its end.
  key_values jsonb NOT NULL,
  starts_at timestamptz NOT NULL,
  ends_at timestamptz NOT NULL,
  -- What percentages are of, and how far it was then: units, major units of the currency, or days of a trial.
  base numeric NOT NULL,
  value numeric NOT NULL,
  fired_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, alert_id),
  CONSTRAINT alert_once UNIQUE (tenant_id, kind, subject, span, threshold)
);
CREATE INDEX alert_newest ON alert (fired_at, alert_id);
CREATE TRIGGER alert_append_only BEFORE UPDATE OR DELETE ON alert
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER alert_no_truncate BEFORE TRUNCATE ON alert
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Windows and tenants with more use since they were looked at last; written with the use itself, taken by whoever looks.
CREATE TABLE alert_window_hint (
  hint_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  window_ids bytea[] NOT NULL
);
CREATE TABLE alert_usage_hint (
  hint_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_ids uuid[] NOT NULL
);

-- Tenants whose billing period is to be looked at. `marks` rises, so that nobody who began to look before misses one.
CREATE TABLE alert_due (
  tenant_id uuid PRIMARY KEY REFERENCES tenant,
  marks bigint NOT NULL DEFAULT 1,
  -- Looks that ended in an error.
  failures integer NOT NULL DEFAULT 0
);
CREATE INDEX alert_due_next ON alert_due (failures, tenant_id);

-- Windows that were used beyond their limit: soft and shadow limits, and hard ones where a reservation was settled above
-- what it held or no authority could be asked. Figures only rise.
CREATE TABLE violation (
  tenant_id uuid NOT NULL REFERENCES tenant,
  window_id bytea NOT NULL CONSTRAINT violation_window_length CHECK (octet_length(window_id) = 16),
  limit_name text NOT NULL,
  -- `hard`, `soft` or `shadow`, as it was when it was seen last; empty: the limit was gone.
  enforcement text NOT NULL,
  key_values jsonb NOT NULL,
  starts_at timestamptz NOT NULL,
  ends_at timestamptz NOT NULL,
  amount bigint NOT NULL,
  -- Admitted in all, and of that beyond the limit.
  consumed bigint NOT NULL,
  over bigint NOT NULL CONSTRAINT violation_over_positive CHECK (over > 0),
  first_at timestamptz NOT NULL,
  last_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, window_id)
);
CREATE INDEX violation_newest ON violation (first_at, window_id);

GRANT SELECT, INSERT, UPDATE ON violation TO tollkeeper_billing;
GRANT SELECT ON violation TO tollkeeper_admin, tollkeeper_reader;
CALL secure_tenant_table('violation', 'tollkeeper_billing');

GRANT INSERT ON alert_window_hint, alert_usage_hint TO tollkeeper_ingest;
GRANT SELECT, UPDATE, DELETE ON alert_window_hint, alert_usage_hint TO tollkeeper_billing;
GRANT SELECT, INSERT ON alert TO tollkeeper_billing;
GRANT SELECT ON alert TO tollkeeper_admin, tollkeeper_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON alert_due TO tollkeeper_billing;
CALL secure_tenant_table('alert', 'tollkeeper_billing');
CALL secure_tenant_table('alert_due', 'tollkeeper_billing');

-- From schema/068_decisions.sql
-- What limits denied, or admitted beyond themselves, as sidecars told.

-- The last batch of each holder that is stored: one that comes again adds nothing.
CREATE TABLE decision_batch (
  holder bytea PRIMARY KEY CONSTRAINT decision_batch_holder_length CHECK (octet_length(holder) = 16),
  batch_seq bigint NOT NULL CONSTRAINT decision_batch_seq_positive CHECK (batch_seq > 0),
  -- Real time.
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX decision_batch_oldest ON decision_batch (seen_at);

-- Decisions by limit and reason, of each day (UTC, ledger time) on which they were told. Figures only rise.
CREATE TABLE decision_count (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  -- Name of a tollkeeper.quota.v1.DecisionReason without its prefix.
  reason text NOT NULL,
  day date NOT NULL,
  count bigint NOT NULL CONSTRAINT decision_count_positive CHECK (count > 0),
  -- Of these, such that should have been kept one by one and were not, since a sidecar had no room.
  left_out bigint NOT NULL CONSTRAINT decision_count_left_out CHECK (left_out BETWEEN 0 AND count),
  PRIMARY KEY (tenant_id, limit_name, reason, day)
);
CREATE INDEX decision_count_oldest ON decision_count (day);

-- Single decisions.
CREATE TABLE decision_entry (
  tenant_id uuid NOT NULL REFERENCES tenant,
  entry_id bigint GENERATED ALWAYS AS IDENTITY,
  limit_name text NOT NULL,
  reason text NOT NULL,
  -- Ledger time of the sidecar.
  at timestamptz NOT NULL,
  -- Wire id of the tenant that called.
  caller text NOT NULL,
  units bigint NOT NULL,
  -- What the limit allowed, -1 unlimited, and what of it was used before the call, as the sidecar knew it.
  amount bigint NOT NULL,
  used bigint NOT NULL,
  -- Attributes that the limit's meter declares, hidden ones as pseudonyms.
  attributes jsonb NOT NULL,
  -- Real time.
  stored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant_id, entry_id)
);
CREATE INDEX decision_entry_newest ON decision_entry (entry_id);
CREATE INDEX decision_entry_oldest ON decision_entry (stored_at);
CREATE TRIGGER decision_entry_append_only BEFORE UPDATE ON decision_entry
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER decision_entry_no_truncate BEFORE TRUNCATE ON decision_entry
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

GRANT SELECT, INSERT, UPDATE, DELETE ON decision_batch TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON decision_count TO tollkeeper_ingest;
GRANT SELECT, INSERT, DELETE ON decision_entry TO tollkeeper_ingest;
GRANT SELECT ON decision_count, decision_entry TO tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
CALL secure_tenant_table('decision_count', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('decision_entry', 'tollkeeper_ingest', 'tollkeeper_billing');
-- Whoever may delete may delete only what is no longer to be kept.
CREATE POLICY kept ON decision_entry AS RESTRICTIVE FOR DELETE
  USING (stored_at < clock_timestamp() - interval '35 days');

-- From schema/069_webhooks.sql
-- Receivers of alerts, and every message to them. Times are real time.

CREATE TABLE webhook (
  webhook_id uuid PRIMARY KEY,
  url text NOT NULL,
  -- Only this tenant's alerts; null = all.
  only_tenant_id uuid REFERENCES tenant,
  -- The newest first; messages are signed with each. Encrypted where the ledger has a key for it; none once removed.
  secrets text[] NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  removed boolean NOT NULL DEFAULT false,
  CONSTRAINT webhook_secrets CHECK (CASE WHEN removed THEN cardinality(secrets) = 0 ELSE cardinality(secrets) BETWEEN 1 AND 2 END)
);

-- One row per receiver and alert, with the bytes that every try sends.
CREATE TABLE webhook_message (
  tenant_id uuid NOT NULL REFERENCES tenant,
  message_id uuid NOT NULL,
  webhook_id uuid NOT NULL REFERENCES webhook,
  alert_id uuid NOT NULL,
  body bytea NOT NULL,
  -- Dead: given up after three days, or its receiver was removed; it can be sent again by hand.
  state text NOT NULL CONSTRAINT webhook_message_state_known CHECK (state IN ('queued', 'sent', 'dead')),
  next_at timestamptz NOT NULL,
  -- Tries since it was queued, or sent again by hand.
  tries integer NOT NULL DEFAULT 0,
  queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- Of the last try; status 0: no answer.
  tried_at timestamptz,
  status integer NOT NULL DEFAULT 0,
  reply text NOT NULL DEFAULT '',
  PRIMARY KEY (tenant_id, message_id),
  CONSTRAINT webhook_message_once UNIQUE (tenant_id, webhook_id, alert_id),
  CONSTRAINT webhook_message_alert FOREIGN KEY (tenant_id, alert_id) REFERENCES alert (tenant_id, alert_id)
);
CREATE INDEX webhook_message_ready ON webhook_message (next_at) WHERE state = 'queued';
CREATE INDEX webhook_message_newest ON webhook_message (queued_at, message_id);

GRANT SELECT, INSERT, UPDATE ON webhook, webhook_message TO tollkeeper_billing;
GRANT DELETE ON webhook_message TO tollkeeper_billing;
CALL secure_tenant_table('webhook_message', 'tollkeeper_billing');

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

-- From schema/080_jobs.sql
-- What the job runner keeps: the tables of pgqueuer 1.6 as its `pgq install` makes them. They hold no tenant's data.
CREATE TYPE pgqueuer_status AS ENUM ('queued', 'picked', 'successful', 'exception', 'canceled', 'deleted', 'failed');

CREATE TABLE pgqueuer (
    id bigserial NOT NULL PRIMARY KEY,
    priority integer NOT NULL,
    queue_manager_id uuid,
    created timestamp with time zone NOT NULL DEFAULT now(),
    updated timestamp with time zone NOT NULL DEFAULT now(),
    heartbeat timestamp with time zone NOT NULL DEFAULT now(),
    execute_after timestamp with time zone NOT NULL DEFAULT now(),
    status pgqueuer_status NOT NULL,
    entrypoint text NOT NULL,
    dedupe_key text,
    payload bytea,
    headers jsonb,
    attempts integer NOT NULL DEFAULT 0,
    slot bigint
);

CREATE TABLE pgqueuer_log (
    id bigint GENERATED BY DEFAULT AS IDENTITY NOT NULL PRIMARY KEY,
    created timestamp with time zone NOT NULL DEFAULT now(),
    job_id bigint NOT NULL,
    status pgqueuer_status NOT NULL,
    priority integer NOT NULL,
    entrypoint text NOT NULL,
    traceback jsonb,
    aggregated boolean DEFAULT false
);

CREATE TABLE pgqueuer_schedules (
    id bigserial NOT NULL PRIMARY KEY,
    expression text NOT NULL,
    entrypoint text NOT NULL,
    heartbeat timestamp with time zone NOT NULL DEFAULT now(),
    created timestamp with time zone NOT NULL DEFAULT now(),
    updated timestamp with time zone NOT NULL DEFAULT now(),
    next_run timestamp with time zone NOT NULL DEFAULT now(),
    last_run timestamp with time zone,
    status pgqueuer_status DEFAULT 'queued'::pgqueuer_status,
    UNIQUE (expression, entrypoint)
);

CREATE TABLE pgqueuer_statistics (
    id bigserial NOT NULL PRIMARY KEY,
    created timestamp with time zone NOT NULL DEFAULT date_trunc('sec'::text, now()),
    count bigint NOT NULL,
    priority integer NOT NULL,
    status pgqueuer_status NOT NULL,
    entrypoint text NOT NULL
);

CREATE INDEX pgqueuer_ep_ea_idx ON pgqueuer USING btree (entrypoint, execute_after) WHERE (status = 'queued'::pgqueuer_status);

CREATE INDEX pgqueuer_ep_prio_id_idx ON pgqueuer USING btree (entrypoint, priority DESC, id) WHERE (status = 'queued'::pgqueuer_status);

CREATE INDEX pgqueuer_log_created ON pgqueuer_log USING btree (created);

CREATE INDEX pgqueuer_log_job_id_status ON pgqueuer_log USING btree (job_id, created DESC);

CREATE INDEX pgqueuer_log_not_aggregated ON pgqueuer_log USING btree ((1)) WHERE (NOT aggregated);

CREATE INDEX pgqueuer_log_status ON pgqueuer_log USING btree (status);

CREATE INDEX pgqueuer_picked_heartbeat_idx ON pgqueuer USING btree (heartbeat) WHERE (status = 'picked'::pgqueuer_status);

CREATE UNIQUE INDEX pgqueuer_picked_slot_idx ON pgqueuer USING btree (entrypoint, slot) WHERE ((status = 'picked'::pgqueuer_status) AND (slot IS NOT NULL));

CREATE INDEX pgqueuer_priority_id_id1_idx ON pgqueuer USING btree (priority, id DESC) INCLUDE (id) WHERE (status = 'queued'::pgqueuer_status);

CREATE INDEX pgqueuer_queue_manager_id_idx ON pgqueuer USING btree (queue_manager_id) WHERE (queue_manager_id IS NOT NULL);

CREATE UNIQUE INDEX pgqueuer_statistics_unique_count ON pgqueuer_statistics USING btree (priority, date_trunc('sec'::text, timezone('UTC'::text, created)), status, entrypoint);

CREATE UNIQUE INDEX pgqueuer_unique_dedupe_key ON pgqueuer USING btree (dedupe_key) WHERE ((status = ANY (ARRAY['queued'::pgqueuer_status, 'picked'::pgqueuer_status])) AND (dedupe_key IS NOT NULL));

CREATE INDEX pgqueuer_updated_id_id1_idx ON pgqueuer USING btree (updated, id DESC) INCLUDE (id) WHERE (status = 'picked'::pgqueuer_status);

CREATE FUNCTION fn_pgqueuer_changed() RETURNS TRIGGER AS $$
DECLARE
    to_emit BOOLEAN := false;  -- Flag to decide whether to emit a notification
BEGIN
    -- Check operation type and set the emit flag accordingly
    IF TG_OP = 'UPDATE' AND OLD IS DISTINCT FROM NEW THEN
        to_emit := true;
    ELSIF TG_OP = 'DELETE' THEN
        to_emit := true;
    ELSIF TG_OP = 'INSERT' THEN
        to_emit := true;
    ELSIF TG_OP = 'TRUNCATE' THEN
        to_emit := true;
    END IF;

    -- Perform notification if the emit flag is set
    IF to_emit THEN
        PERFORM pg_notify(
            'ch_pgqueuer',
            json_build_object(
                'channel', 'ch_pgqueuer',
                'operation', lower(TG_OP),
                'sent_at', NOW(),
                'table', TG_TABLE_NAME,
                'type', 'table_changed_event'
            )::text
        );
    END IF;

    -- Return appropriate value based on the operation
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' THEN
        RETURN OLD;
    ELSE
        RETURN NULL; -- For TRUNCATE and other non-row-specific contexts
    END IF;

END;
$$ LANGUAGE plpgsql SET search_path = tollkeeper, pg_temp;

CREATE TRIGGER tg_pgqueuer_changed
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pgqueuer
EXECUTE FUNCTION fn_pgqueuer_changed();

GRANT SELECT, INSERT, UPDATE, DELETE ON pgqueuer, pgqueuer_log, pgqueuer_schedules, pgqueuer_statistics
  TO tollkeeper_ingest;
GRANT USAGE ON SEQUENCE pgqueuer_id_seq, pgqueuer_log_id_seq, pgqueuer_schedules_id_seq, pgqueuer_statistics_id_seq
  TO tollkeeper_ingest;

-- Gives the first batch whose ids are still needed at a time: committed within 49 days, looked for among the 10,000 oldest
-- of those, because numbers and times of batches differ by little. Null where there is none.
CREATE FUNCTION first_needed_batch(at timestamptz) RETURNS bigint
  LANGUAGE sql STABLE
  SET search_path = tollkeeper, pg_temp AS $$
  SELECT min(batch_id) FROM (
    SELECT batch_id FROM usage_chain WHERE committed_at > at - interval '49 days' ORDER BY committed_at LIMIT 10000
  ) AS oldest
$$;

-- Deletes ids that nobody can send again, at most so many; gives how many. Only the owner may delete ids, and nobody by
-- another way than this.
CREATE FUNCTION expire_usage_ids(count_max integer) RETURNS bigint
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp AS $$
DECLARE
  needed bigint := coalesce(first_needed_batch(ledger_now()), 9223372036854775807);
  gone bigint;
BEGIN
  WITH expired AS (SELECT tableoid, ctid FROM usage_id WHERE batch_id < needed LIMIT count_max)
  DELETE FROM usage_id i USING expired e WHERE i.tableoid = e.tableoid AND i.ctid = e.ctid;
  GET DIAGNOSTICS gone = ROW_COUNT;
  RETURN gone;
END
$$;
GRANT EXECUTE ON FUNCTION expire_usage_ids(integer) TO tollkeeper_ingest;
