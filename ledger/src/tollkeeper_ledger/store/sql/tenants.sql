-- Tenants as sidecars see them.

-- name: by_wire_id
-- Finds tenants and their ancestors. $1 wire ids.
WITH RECURSIVE chain AS (
  SELECT t.tenant_id, t.parent_tenant_id, 0 AS depth FROM tenant t WHERE t.wire_id = ANY ($1::text[])
  UNION
  SELECT p.tenant_id, p.parent_tenant_id, c.depth + 1 FROM chain c JOIN tenant p ON p.tenant_id = c.parent_tenant_id
  WHERE c.depth < 8
)
SELECT DISTINCT tenant_id FROM chain;

-- name: with_ancestors
-- Finds tenants and their ancestors. $1 tenant ids.
WITH RECURSIVE chain AS (
  SELECT t.tenant_id, t.parent_tenant_id, 0 AS depth FROM tenant t WHERE t.tenant_id = ANY ($1::uuid[])
  UNION
  SELECT p.tenant_id, p.parent_tenant_id, c.depth + 1 FROM chain c JOIN tenant p ON p.tenant_id = c.parent_tenant_id
  WHERE c.depth < 8
)
SELECT DISTINCT tenant_id FROM chain;

-- name: facts
-- Reads what a snapshot is made of, in wire id order. A tenant whose subscription is paused or over is suspended. $1
-- tenant ids.
SELECT t.tenant_id, t.wire_id,
  CASE WHEN s.subscription_id IS NULL AND EXISTS (SELECT FROM subscription o WHERE o.tenant_id = t.tenant_id)
    THEN 'suspended' ELSE t.state END AS state, p.wire_id AS parent, t.features, s.plan_version_id, plan.name AS plan,
  coalesce(s.limits, '[]') AS subscription_limits, s.started_at, s.anchor, s.time_zone, s.interval_unit,
  s.interval_count,
  coalesce((SELECT jsonb_agg(o.rule) FROM limit_override o WHERE o.tenant_id = t.tenant_id), '[]') AS overrides,
  coalesce((SELECT jsonb_object_agg(l.name, jsonb_build_object('version', l.amount_version, 'shape', l.shape) ||
      CASE WHEN l.held_until_us > ledger_now_us()
        THEN jsonb_build_object('held', l.held, 'until_us', l.held_until_us) ELSE '{}' END)
    FROM limit_state l WHERE l.tenant_id = t.tenant_id), '{}') AS states,
  coalesce((SELECT max(c.change) FROM tenant_change c WHERE c.tenant_id = t.tenant_id), 0) AS change
FROM tenant t
LEFT JOIN tenant p ON p.tenant_id = t.parent_tenant_id
LEFT JOIN subscription s ON s.tenant_id = t.tenant_id AND s.ended_at IS NULL
  AND s.state IN ('trialing', 'active', 'past_due')
LEFT JOIN plan_version v ON v.plan_version_id = s.plan_version_id
LEFT JOIN plan ON plan.plan_id = v.plan_id
WHERE t.tenant_id = ANY ($1::uuid[])
ORDER BY t.wire_id;

-- name: plan_definitions
-- Reads plan versions, which never change. $1 ids.
SELECT plan_version_id, definition FROM plan_version WHERE plan_version_id = ANY ($1::uuid[]);

-- name: meters
-- Reads every meter in name order.
SELECT name, unit, scale, attributes, pseudonymised, value_attribute, late_max_s, early_max_s FROM meter ORDER BY name;

-- name: reshaped_limits
-- Finds limits whose kind or key is to change, or waits to, locks their tenants, so that nobody uses one of them for the
-- first time meanwhile, and gives what they were. Pairwise: $1 tenant ids, $2 names, $3 rules as JSON.
SELECT s.tenant_id, s.name, s.rule, s.held, s.held_until_us
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS n (tenant_id, name, rule)
JOIN limit_state s ON s.tenant_id = n.tenant_id AND s.name = n.name
JOIN tenant t ON t.tenant_id = s.tenant_id
WHERE s.rule IS NOT NULL AND (s.held IS NOT NULL OR s.rule ->> 'kind' <> n.rule::jsonb ->> 'kind'
  OR coalesce(s.rule -> 'key', '[]') <> coalesce(n.rule::jsonb -> 'key', '[]'))
ORDER BY s.tenant_id, s.name
FOR UPDATE OF t;

-- name: limit_use
-- Reads whether limits were ever used, and where their last windows end. Pairwise: $1 tenant ids, $2 names.
SELECT n.tenant_id, n.name, coalesce(c.end_us, 0) AS end_us,
  c.end_us IS NOT NULL OR EXISTS (
    SELECT FROM bucket_shard b WHERE b.tenant_id = n.tenant_id AND b.limit_name = n.name) AS is_used
FROM unnest($1::uuid[], $2::text[]) AS n (tenant_id, name)
CROSS JOIN LATERAL (
  SELECT max(newer_end_us) AS end_us FROM limit_cursor c WHERE c.tenant_id = n.tenant_id AND c.limit_name = n.name
) c;

-- name: write_limit_states
-- Writes effective amounts and rules; the version rises where an amount or enforcement changed, the shape where kind or
-- key did, or the time at which they do. Pairwise: $1 tenant ids, $2 names, $3 amounts, $4 enforcements, $5 rules as
-- JSON, $6 rules that are held as JSON, $7 their amounts, $8 their ends.
INSERT INTO limit_state AS s (tenant_id, name, amount, enforcement, rule, held, held_amount, held_until_us,
  amount_version)
SELECT n.tenant_id, n.name, n.amount, n.enforcement, n.rule::jsonb, n.held::jsonb, n.held_amount, n.held_until_us, 1
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[])
  AS n (tenant_id, name, amount, enforcement, rule, held, held_amount, held_until_us)
ORDER BY 1, 2
ON CONFLICT (tenant_id, name) DO UPDATE SET amount = excluded.amount, enforcement = excluded.enforcement,
  rule = excluded.rule, held = excluded.held, held_amount = excluded.held_amount,
  held_until_us = excluded.held_until_us,
  amount_version = s.amount_version + CASE WHEN s.amount <> excluded.amount OR s.enforcement <> excluded.enforcement
    OR s.held_amount IS DISTINCT FROM excluded.held_amount THEN 1 ELSE 0 END,
  shape = s.shape + CASE WHEN s.rule ->> 'kind' <> excluded.rule ->> 'kind'
    OR coalesce(s.rule -> 'key', '[]') <> coalesce(excluded.rule -> 'key', '[]')
    OR s.held_until_us IS DISTINCT FROM excluded.held_until_us THEN 1 ELSE 0 END
WHERE s.amount <> excluded.amount OR s.enforcement <> excluded.enforcement OR s.rule IS DISTINCT FROM excluded.rule
  OR s.held IS DISTINCT FROM excluded.held OR s.held_until_us IS DISTINCT FROM excluded.held_until_us;
