-- Subscriptions over time, for recurring revenue.

-- name: phases
-- Gives the phases of every subscription that began before a time, a tenant's and a subscription's together, in order.
-- $1 time.
SELECT s.tenant_id, s.subscription_id, p.starts_at, p.plan_version_id, p.state, p.quantity
FROM subscription s JOIN subscription_phase p USING (tenant_id, subscription_id)
WHERE s.started_at < $1
ORDER BY s.tenant_id, s.started_at, s.subscription_id, p.starts_at;
