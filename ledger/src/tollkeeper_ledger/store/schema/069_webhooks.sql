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
