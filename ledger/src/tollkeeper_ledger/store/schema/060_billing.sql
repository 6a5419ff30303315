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
