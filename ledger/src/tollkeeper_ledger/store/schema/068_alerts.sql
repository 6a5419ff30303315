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
