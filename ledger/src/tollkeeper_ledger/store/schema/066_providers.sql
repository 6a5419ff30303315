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
