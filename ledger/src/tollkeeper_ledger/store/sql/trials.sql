-- Trials whose end depends on a payment method, or is to be told of.

-- name: has_method
-- Says whether who pays for a tenant has a payment method. $1 tenant id.
SELECT EXISTS (
  SELECT FROM tenant t JOIN payer_method m ON m.tenant_id = coalesce(t.billing_tenant_id, t.tenant_id) AND m.has_method
  WHERE t.tenant_id = $1
);

-- name: displaced
-- Gives what phases of a tenant's subscriptions will be once its payer has a payment method. $1 tenant id.
SELECT subscription_id, trial_displaced FROM subscription WHERE tenant_id = $1 AND trial_displaced IS NOT NULL;

-- name: keep
-- Keeps what is known of a trial. $1 tenant id, $2 subscription id, $3 whether it asks for a payment method, $4 phases or
-- null, $5 when its end is told of or null.
UPDATE subscription SET trial_asks = $3, trial_displaced = $4, trial_notice_at = $5
WHERE tenant_id = $1 AND subscription_id = $2
  AND (trial_asks <> $3 OR trial_displaced IS DISTINCT FROM $4 OR trial_notice_at IS DISTINCT FROM $5);

-- name: of_payer
-- Gives tenants that a payer pays for, itself as well, with trials that ask for a payment method. $1 tenant id.
SELECT DISTINCT s.tenant_id FROM subscription s JOIN tenant t USING (tenant_id)
WHERE s.trial_asks AND coalesce(t.billing_tenant_id, t.tenant_id) = $1 ORDER BY s.tenant_id;

-- name: astray
-- Gives tenants whose trials say something else than what their payers have, in order. $1 at most so many, $2 after
-- this tenant.
SELECT DISTINCT s.tenant_id FROM subscription s JOIN tenant t USING (tenant_id)
LEFT JOIN payer_method m ON m.tenant_id = coalesce(t.billing_tenant_id, t.tenant_id)
WHERE s.trial_asks AND (s.trial_displaced IS NULL) <> coalesce(m.has_method, false) AND s.tenant_id > $2
ORDER BY s.tenant_id LIMIT $1;

-- name: due_notices
-- Takes trials whose end is to be told of now and was not. $1 ledger time, $2 at most so many.
WITH due AS (
  SELECT tenant_id, subscription_id FROM subscription WHERE trial_notice_at <= $1
  ORDER BY trial_notice_at, subscription_id LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE subscription s SET trial_notice_at = null FROM due
WHERE s.tenant_id = due.tenant_id AND s.subscription_id = due.subscription_id
RETURNING s.tenant_id, s.subscription_id;

-- name: is_told
-- Says whether an end was told of before. $1 tenant id, $2 span.
SELECT EXISTS (SELECT FROM alert WHERE tenant_id = $1 AND kind = 'trial' AND span = $2);
