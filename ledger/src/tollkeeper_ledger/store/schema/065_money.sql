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
