-- Payments that payers had their banks take back.

-- name: stage
-- Locks a dispute and gives its stage, amount and fee. $1 provider, $2 the provider's id.
SELECT stage, amount_minor, fee_minor FROM dispute WHERE provider = $1 AND dispute_id = $2 FOR UPDATE;

-- name: put
-- Keeps a dispute as the provider has it now; invoice, amount and beginning stay. $1 payer, $2 provider, $3 its id,
-- $4 invoice id, $5 amount, $6 currency, $7 reason, $8 status, $9 stage, $10 evidence until or null, $11 time,
-- $12 fee.
INSERT INTO dispute (tenant_id, provider, dispute_id, invoice_id, amount_minor, currency, reason, status, stage,
                     evidence_by, opened_at, changed_at, fee_minor)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)
ON CONFLICT (tenant_id, provider, dispute_id) DO UPDATE SET reason = excluded.reason, status = excluded.status,
  stage = excluded.stage, evidence_by = excluded.evidence_by, changed_at = excluded.changed_at,
  fee_minor = excluded.fee_minor;

-- name: disputes
-- Lists disputes, open ones first. $1 at most so many.
SELECT d.*, t.wire_id, i.number FROM dispute d JOIN tenant t USING (tenant_id) JOIN invoice i USING (invoice_id)
ORDER BY array_position(ARRAY['open', 'warned', 'lost', 'won'], d.stage), d.opened_at DESC, d.dispute_id LIMIT $1;
