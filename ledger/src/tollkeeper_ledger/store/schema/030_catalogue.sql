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
