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
