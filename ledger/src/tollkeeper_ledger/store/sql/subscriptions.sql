-- Subscriptions over time.

-- name: put_phase
-- Adds a phase, or changes the one that begins then; what periods are counted by stays where it is null. $1 tenant id,
-- $2 subscription id, $3 start, $4 plan version, $5 state, $6 quantity, $7 whether limits and state follow it already,
-- $8 anchor, $9 time zone, $10 interval unit, $11 interval count, or nulls.
INSERT INTO subscription_phase AS p (tenant_id, subscription_id, starts_at, plan_version_id, state, quantity, applied,
                                     anchor, time_zone, interval_unit, interval_count)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (tenant_id, subscription_id, starts_at) DO UPDATE SET
  plan_version_id = excluded.plan_version_id, state = excluded.state, quantity = excluded.quantity,
  applied = excluded.applied, anchor = coalesce(excluded.anchor, p.anchor),
  time_zone = coalesce(excluded.time_zone, p.time_zone),
  interval_unit = coalesce(excluded.interval_unit, p.interval_unit),
  interval_count = coalesce(excluded.interval_count, p.interval_count);

-- name: drop_eras
-- Lets periods go on as before where another count of them was to begin. $1 tenant id, $2 subscription id, $3 starts of
-- phases.
UPDATE subscription_phase SET anchor = null, time_zone = null, interval_unit = null, interval_count = null
WHERE tenant_id = $1 AND subscription_id = $2 AND starts_at = ANY ($3::timestamptz[]);

-- name: drop_phase
-- Removes a phase that was to come. $1 tenant id, $2 subscription id, $3 its start.
DELETE FROM subscription_phase WHERE tenant_id = $1 AND subscription_id = $2 AND starts_at = $3;

-- name: scheduled
-- Gives phases that are to come. $1 subscription ids.
SELECT s.subscription_id, s.starts_at, s.state, s.quantity, s.anchor, s.time_zone, s.interval_unit, s.interval_count,
       p.name AS plan, v.version
FROM subscription_phase s JOIN plan_version v USING (plan_version_id) JOIN plan p USING (plan_id)
WHERE s.subscription_id = ANY ($1::uuid[]) AND NOT s.applied ORDER BY s.starts_at;

-- name: change_later_phases
-- Changes phases after one; nulls leave as it is, and an end stays an end unless the state is `cancelled`. $1 tenant id,
-- $2 subscription id, $3 after this, $4 plan version, $5 state, $6 quantity.
UPDATE subscription_phase SET
  plan_version_id = coalesce($4, plan_version_id), quantity = coalesce($6, quantity),
  state = CASE WHEN state = 'cancelled' THEN state ELSE coalesce($5, state) END
WHERE tenant_id = $1 AND subscription_id = $2 AND starts_at > $3;

-- name: revoke_end
-- Lets a subscription go on where it was to end: the phases from an end on are as the one before, but the last of them
-- ends a trial. $1 tenant id, $2 subscription id, $3 plan version, $4 state, $5 quantity.
UPDATE subscription_phase p SET plan_version_id = $3, quantity = $5,
  state = CASE WHEN $4 = 'trialing' AND p.starts_at = last.starts_at THEN 'active' ELSE $4 END
FROM (
  SELECT max(starts_at) AS starts_at FROM subscription_phase
  WHERE tenant_id = $1 AND subscription_id = $2 AND state = 'cancelled'
) last
WHERE p.tenant_id = $1 AND p.subscription_id = $2 AND p.state = 'cancelled';

-- name: follow_phase
-- Lets a subscription's limits, features and state follow a phase; what is overdue stays overdue. $1 tenant id,
-- $2 subscription id, $3 plan version, $4 state, $5 quantity, $6 end or null, $7 anchor, $8 time zone, $9 interval unit,
-- $10 interval count, $11 since when.
UPDATE subscription SET plan_version_id = $3, quantity = $5, ended_at = $6, anchor = $7, time_zone = $8,
  interval_unit = $9, interval_count = $10, period_from = $11,
  state = CASE WHEN state = 'past_due' AND $4 = 'active' THEN state ELSE $4 END
WHERE tenant_id = $1 AND subscription_id = $2;

-- name: mark_applied
-- Notes that limits and state follow every phase up to a time. $1 tenant id, $2 subscription id, $3 time.
UPDATE subscription_phase SET applied = true
WHERE tenant_id = $1 AND subscription_id = $2 AND NOT applied AND starts_at <= $3;

-- name: due_phases
-- Gives the tenants with phases whose time has come. $1 ledger time, $2 at most so many.
SELECT DISTINCT tenant_id FROM subscription_phase WHERE NOT applied AND starts_at <= $1 ORDER BY tenant_id LIMIT $2;

-- name: newest_plan
-- Gives a plan's newest version. $1 name.
SELECT v.plan_version_id, v.version, v.definition FROM plan p JOIN plan_version v USING (plan_id)
WHERE p.name = $1 ORDER BY v.version DESC LIMIT 1;

-- name: declared
-- Gives the plan that a catalogue named last for a tenant, empty where none did. $1 tenant id.
SELECT wire_id, coalesce(declared->>'plan', '') AS plan FROM tenant WHERE tenant_id = $1;

-- name: last_end
-- Gives the latest end of a tenant's subscriptions, infinity for one without end; null without any. $1 tenant id.
SELECT max(coalesce(s.ended_at, p.starts_at, 'infinity')) FROM subscription s
LEFT JOIN LATERAL (
  SELECT min(starts_at) AS starts_at FROM subscription_phase
  WHERE tenant_id = s.tenant_id AND subscription_id = s.subscription_id AND state = 'cancelled'
) p ON true
WHERE s.tenant_id = $1;

-- name: tenant_time_zone
-- Gives the time zone of a tenant's subscription, else of its payer's; living ones first. Null where there is none, no
-- row without the tenant. $1 wire id.
SELECT s.time_zone FROM tenant t LEFT JOIN subscription s ON s.tenant_id IN (t.tenant_id, t.billing_tenant_id)
WHERE t.wire_id = $1
ORDER BY s.ended_at IS NULL DESC, s.tenant_id = t.tenant_id DESC, s.started_at DESC LIMIT 1;

-- name: seller_time_zone
-- Gives the time zone of a tenant's seller. $1 tenant id.
SELECT s.time_zone FROM tenant t JOIN seller s USING (seller_id) WHERE t.tenant_id = $1;
