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
    THEN 'suspended' ELSE t.state END AS state, p.wire_id AS parent, s.plan_version_id, plan.name AS plan,
  coalesce(s.limits, '[]') AS subscription_limits, s.started_at, s.anchor, s.time_zone, s.interval_unit,
  s.interval_count,
  coalesce((SELECT jsonb_agg(o.rule) FROM limit_override o WHERE o.tenant_id = t.tenant_id), '[]') AS overrides,
  coalesce((SELECT jsonb_object_agg(l.name, l.amount_version) FROM limit_state l WHERE l.tenant_id = t.tenant_id), '{}')
    AS versions,
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

-- name: write_limit_states
-- Writes effective amounts; the version rises where one of them changed. Pairwise: $1 tenant ids, $2 names,
-- $3 amounts, $4 enforcements.
INSERT INTO limit_state AS s (tenant_id, name, amount, enforcement, amount_version)
SELECT n.*, 1 FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[]) AS n
ORDER BY 1, 2
ON CONFLICT (tenant_id, name) DO UPDATE SET amount = excluded.amount, enforcement = excluded.enforcement,
  amount_version = s.amount_version + 1
WHERE s.amount <> excluded.amount OR s.enforcement <> excluded.enforcement;
