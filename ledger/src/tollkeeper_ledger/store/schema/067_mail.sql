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
