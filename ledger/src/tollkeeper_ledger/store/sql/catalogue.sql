-- What operators declare.

-- name: lock_catalogue
-- Lets one catalogue be applied at a time.
SELECT pg_advisory_xact_lock(7205759403792796);

-- name: sellers
-- Reads every seller.
SELECT seller_id, name, address, tax_id, email, website, tax_note, payment_note, invoice_prefix, currency, time_zone,
       logo, taxes
FROM seller ORDER BY seller_id;

-- name: meters
-- Reads meters in name order. $1 after this name, $2 at most so many.
SELECT m.meter_id, m.seller_id, m.name, m.unit, m.aggregation, m.scale, m.attributes, m.pseudonymised,
       m.value_attribute, m.dimensions, m.late_max_s, m.early_max_s, p.amount AS cost_amount, p.per AS cost_per,
       p.currency AS cost_currency
FROM meter m
LEFT JOIN LATERAL (
  SELECT amount, per, currency FROM meter_cost_price WHERE meter_id = m.meter_id ORDER BY since DESC LIMIT 1
) p ON true
WHERE m.name > $1 ORDER BY m.name LIMIT $2;

-- name: features
-- Reads every feature.
SELECT name FROM feature ORDER BY name;

-- name: plans
-- Reads plans with their newest versions in name order. $1 after this name, $2 at most so many.
SELECT p.plan_id, p.seller_id, p.name, v.plan_version_id, v.version, v.definition, v.digest
FROM plan p CROSS JOIN LATERAL (
  SELECT plan_version_id, version, definition, digest FROM plan_version
  WHERE plan_version.plan_id = p.plan_id ORDER BY version DESC LIMIT 1
) v
WHERE p.name > $1 ORDER BY p.name LIMIT $2;

-- name: plans_matching
-- Gives plans with a version that a subscription has, had in a period that is not closed, or will have, and that has
-- prices by values of these attributes, by attribute. $1 attributes.
SELECT attribute, array_agg(DISTINCT p.name || ' v' || v.version) AS plans
FROM plan_version v JOIN plan p USING (plan_id)
CROSS JOIN LATERAL jsonb_array_elements(convert_from(v.definition, 'UTF8')::jsonb -> 'prices') AS price
CROSS JOIN LATERAL jsonb_object_keys(price -> 'match') AS attribute
WHERE attribute = ANY ($1::text[]) AND EXISTS (
  SELECT FROM subscription_phase f JOIN subscription s USING (tenant_id, subscription_id)
  WHERE f.plan_version_id = v.plan_version_id AND (s.ended_at IS NULL OR s.billed_until < s.ended_at)
)
GROUP BY attribute;

-- name: tenants_named
-- Reads tenants with their ancestors and running subscriptions. $1 wire ids.
WITH RECURSIVE line AS (
  SELECT tenant_id, parent_tenant_id, 1 AS depth FROM tenant WHERE wire_id = ANY ($1::text[])
  UNION
  SELECT t.tenant_id, t.parent_tenant_id, line.depth + 1
  FROM tenant t JOIN line ON t.tenant_id = line.parent_tenant_id WHERE line.depth < 8
)
SELECT t.tenant_id, t.wire_id, t.display_name, coalesce(parent.wire_id, '') AS parent,
       coalesce(payer.wire_id, '') AS billing_tenant, t.address, t.tax_id, t.country, t.region, t.features, t.alerts, t.state, s.subscription_id, s.started_at,
       s.anchor, s.time_zone, s.interval_unit, s.interval_count, s.limits, s.billed_until, s.plan_version_id, v.version,
       p.name AS plan, v.definition, t.declared, coalesce(m.has_method, false) AS has_method,
       (SELECT max(ended.ended_at) FROM subscription ended WHERE ended.tenant_id = t.tenant_id) AS ended_at
FROM (SELECT DISTINCT tenant_id FROM line) named
JOIN tenant t USING (tenant_id)
LEFT JOIN tenant parent ON parent.tenant_id = t.parent_tenant_id
LEFT JOIN tenant payer ON payer.tenant_id = t.billing_tenant_id
LEFT JOIN subscription s ON s.tenant_id = t.tenant_id AND s.ended_at IS NULL
LEFT JOIN plan_version v ON v.plan_version_id = s.plan_version_id
LEFT JOIN plan p ON p.plan_id = v.plan_id
LEFT JOIN payer_method m ON m.tenant_id = t.tenant_id
ORDER BY t.wire_id;

-- name: put_seller
-- Adds or replaces a seller. Columns of seller in order.
INSERT INTO seller (seller_id, name, address, tax_id, email, website, tax_note, payment_note, invoice_prefix, currency,
                    time_zone, logo, taxes)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (seller_id) DO UPDATE SET
  name = excluded.name, address = excluded.address, tax_id = excluded.tax_id, email = excluded.email,
  website = excluded.website, tax_note = excluded.tax_note, payment_note = excluded.payment_note,
  invoice_prefix = excluded.invoice_prefix, currency = excluded.currency, time_zone = excluded.time_zone,
  logo = excluded.logo, taxes = excluded.taxes;

-- name: put_meter
-- Adds a meter, or changes what of it may change. $1 seller, $2 name, $3 unit, $4 aggregation, $5 scale, $6 attributes,
-- $7 pseudonymised attributes, $8 attribute whose values are counted, $9 dimensions, $10 and $11 how many seconds late
-- and early its records may be.
INSERT INTO meter (seller_id, name, unit, aggregation, scale, attributes, pseudonymised, value_attribute, dimensions,
                   late_max_s, early_max_s)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT ON CONSTRAINT meter_name_unique
DO UPDATE SET attributes = excluded.attributes, pseudonymised = excluded.pseudonymised,
              late_max_s = excluded.late_max_s, early_max_s = excluded.early_max_s;

-- name: put_cost_price
-- Says from when on usage of a meter costs its seller what, where that is something else than before. $1 meter's name,
-- $2 instant, $3 amount, $4 for so many units, $5 currency; $3 to $5 null: nobody says it any more.
INSERT INTO meter_cost_price (meter_id, since, amount, per, currency)
SELECT m.meter_id, $2::timestamptz, $3::numeric, $4::bigint, $5::text
FROM meter m
LEFT JOIN LATERAL (
  SELECT amount, per, currency FROM meter_cost_price WHERE meter_id = m.meter_id ORDER BY since DESC LIMIT 1
) p ON true
WHERE m.name = $1 AND (p.amount, p.per, p.currency) IS DISTINCT FROM ($3::numeric, $4::bigint, $5::text)
ON CONFLICT (meter_id, since)
DO UPDATE SET amount = excluded.amount, per = excluded.per, currency = excluded.currency;

-- name: add_feature
-- Adds a feature. $1 seller, $2 name.
INSERT INTO feature (seller_id, name) VALUES ($1, $2);

-- name: add_plan
-- Adds a plan without versions. $1 id, $2 seller, $3 name.
INSERT INTO plan (plan_id, seller_id, name) VALUES ($1, $2, $3);

-- name: add_plan_version
-- Adds a plan's version. $1 id, $2 plan name, $3 version, $4 definition, $5 digest, $6 ledger time.
INSERT INTO plan_version (plan_version_id, plan_id, version, definition, digest, created_at)
SELECT $1, plan_id, $3, $4, $5, $6 FROM plan WHERE name = $2;

-- name: put_tenants
-- Adds tenants, or changes their own data; parents and payers follow in relate_tenants. $1 ids for new ones, $2 seller,
-- $3 wire ids, $4 names, $5 tax ids, $6 ledger time.
INSERT INTO tenant (tenant_id, seller_id, wire_id, display_name, address, tax_id, state, created_at)
SELECT tenant_id, $2, wire_id, display_name, '{}', tax_id, 'active', $6
FROM unnest($1::uuid[], $3::text[], $4::text[], $5::text[]) AS put (tenant_id, wire_id, display_name, tax_id)
ON CONFLICT ON CONSTRAINT tenant_wire_id_unique
DO UPDATE SET display_name = excluded.display_name, tax_id = excluded.tax_id;

-- name: declare_subscriptions
-- Keeps what a catalogue says of tenants' subscriptions. $1 wire ids, $2 what it says of each.
UPDATE tenant SET declared = said.declared
FROM unnest($1::text[], $2::jsonb[]) AS said (wire_id, declared) WHERE tenant.wire_id = said.wire_id;

-- name: relate_tenant
-- Sets a tenant's address, parent, payer, alerts and place and features. $1 wire id, $2 address lines, $3 parent or '',
-- $4 payer or '', $5 rules, $6 country, $7 region, $8 features.
UPDATE tenant SET
  address = $2,
  alerts = $5,
  country = $6,
  region = $7,
  features = $8,
  parent_tenant_id = (SELECT tenant_id FROM tenant WHERE wire_id = $3),
  billing_tenant_id = (SELECT tenant_id FROM tenant WHERE wire_id = $4)
WHERE wire_id = $1;

-- name: add_subscription
-- Subscribes a tenant to a plan's newest version. $1 id, $2 wire id, $3 plan, $4 start, $5 anchor, $6 time zone,
-- $7 interval unit, $8 interval count, $9 own limits, $10 quantity, $11 end of the trial or null,
-- $12 when that is told of or null.
WITH added AS (
  INSERT INTO subscription (subscription_id, tenant_id, plan_version_id, state, started_at, anchor, time_zone,
                            interval_unit, interval_count, limits, billed_until, quantity, period_from,
                            trial_notice_at)
  SELECT $1, t.tenant_id, v.plan_version_id, CASE WHEN $11::timestamptz IS NULL THEN 'active' ELSE 'trialing' END,
         $4, $5, $6, $7, $8, $9, $4, $10, $4, $12
  FROM tenant t, plan p JOIN plan_version v USING (plan_id)
  WHERE t.wire_id = $2 AND p.name = $3
  ORDER BY v.version DESC LIMIT 1
  RETURNING tenant_id, subscription_id, started_at, plan_version_id, state, quantity
)
INSERT INTO subscription_phase (tenant_id, subscription_id, starts_at, plan_version_id, state, quantity, applied,
                                anchor, time_zone, interval_unit, interval_count)
SELECT tenant_id, subscription_id, started_at, plan_version_id, state, quantity, true, $5, $6, $7, $8 FROM added
UNION ALL
SELECT tenant_id, subscription_id, $11, plan_version_id, 'active', quantity, false, null, null, null, null FROM added
WHERE $11::timestamptz IS NOT NULL;

-- name: set_subscription_limits
-- Sets a subscription's own limits. $1 id, $2 limits.
UPDATE subscription SET limits = $2 WHERE subscription_id = $1;

-- name: last_segment_end
-- Gives the latest end of a subscription's segments, null where it has none. $1 tenant id, $2 subscription id.
SELECT max(period_end) FROM billing_segment WHERE tenant_id = $1 AND subscription_id = $2;

-- name: move_subscription
-- Moves a subscription to a plan's newest version: limits now, prices of what is used from $4 on; later phases keep
-- state and seats, and those of other plans than $5 keep theirs. $1 id, $2 tenant id, $3 plan, $4 instant, $5 plans, or
-- null where every later phase follows.
WITH target AS (
  SELECT v.plan_version_id FROM plan p JOIN plan_version v USING (plan_id)
  WHERE p.name = $3 ORDER BY v.version DESC LIMIT 1
), moved AS (
  UPDATE subscription SET plan_version_id = target.plan_version_id FROM target
  WHERE subscription_id = $1 AND tenant_id = $2
), followed AS (
  SELECT v.plan_version_id FROM plan p JOIN plan_version v USING (plan_id) WHERE $5::text[] IS NULL OR p.name = ANY ($5)
), later AS (
  UPDATE subscription_phase SET plan_version_id = target.plan_version_id FROM target
  WHERE subscription_id = $1 AND tenant_id = $2 AND starts_at > $4
    AND subscription_phase.plan_version_id IN (SELECT plan_version_id FROM followed)
), before AS (
  SELECT state, quantity, plan_version_id FROM subscription_phase
  WHERE subscription_id = $1 AND tenant_id = $2 AND starts_at <= $4 ORDER BY starts_at DESC LIMIT 1
)
INSERT INTO subscription_phase (tenant_id, subscription_id, starts_at, plan_version_id, state, quantity)
SELECT $2, $1, $4, target.plan_version_id, before.state, before.quantity FROM target, before
WHERE before.plan_version_id IN (SELECT plan_version_id FROM followed)
ON CONFLICT (tenant_id, subscription_id, starts_at) DO UPDATE SET plan_version_id = excluded.plan_version_id;

-- name: tenant_ids
-- Gives tenants' ids. $1 wire ids.
SELECT wire_id, tenant_id FROM tenant WHERE wire_id = ANY ($1::text[]);

-- name: tenants
-- Lists tenants in wire id order. $1 after this wire id, $2 at most so many, $3 only this wire id or null.
SELECT t.tenant_id, t.wire_id, t.display_name, t.state, coalesce(parent.wire_id, '') AS parent,
       coalesce(payer.wire_id, t.wire_id) AS billing_tenant, coalesce(p.name, '') AS plan
FROM tenant t
LEFT JOIN tenant parent ON parent.tenant_id = t.parent_tenant_id
LEFT JOIN tenant payer ON payer.tenant_id = t.billing_tenant_id
LEFT JOIN subscription s ON s.tenant_id = t.tenant_id AND s.ended_at IS NULL
LEFT JOIN plan_version v ON v.plan_version_id = s.plan_version_id
LEFT JOIN plan p ON p.plan_id = v.plan_id
WHERE t.wire_id > $1 AND ($3::text IS NULL OR t.wire_id = $3)
ORDER BY t.wire_id LIMIT $2;

-- name: set_tenant_state
-- Sets a tenant's state; gives the state before. $1 tenant id, $2 state.
UPDATE tenant SET state = $2 FROM (SELECT state FROM tenant WHERE tenant_id = $1 FOR UPDATE) AS before
WHERE tenant_id = $1 RETURNING before.state;

-- name: subscriptions
-- Lists subscriptions in order of wire id and start; an active one with an invoice that is past due is past due.
-- $1 after this wire id, $2 and this subscription id, $3 at most so many, $4 only this wire id or null, $5 only in this
-- state or null.
SELECT t.wire_id, s.tenant_id, s.subscription_id, shown.state, s.started_at, s.period_from, s.anchor, s.time_zone, s.interval_unit,
       s.interval_count, p.name AS plan, v.version, v.definition, t.features, s.quantity,
       coalesce(s.ended_at, (SELECT min(e.starts_at) FROM subscription_phase e WHERE e.tenant_id = s.tenant_id
                             AND e.subscription_id = s.subscription_id AND e.state = 'cancelled')) AS ends_at
FROM subscription s JOIN tenant t USING (tenant_id)
JOIN plan_version v ON v.plan_version_id = s.plan_version_id JOIN plan p ON p.plan_id = v.plan_id
CROSS JOIN LATERAL (
  SELECT CASE WHEN s.state = 'active' AND EXISTS (
    SELECT FROM receivable r JOIN invoice i USING (tenant_id, invoice_id)
    WHERE r.tenant_id = s.tenant_id AND r.state = 'past_due' AND i.subscription_id = s.subscription_id
  ) THEN 'past_due' ELSE s.state END AS state
) shown
WHERE (t.wire_id, s.subscription_id) > ($1, $2::uuid) AND ($4::text IS NULL OR t.wire_id = $4)
  AND ($5::text IS NULL OR shown.state = $5)
ORDER BY t.wire_id, s.subscription_id LIMIT $3;

-- name: put_override
-- Sets an override; gives nothing. $1 tenant id, $2 limit name, $3 rule, $4 note, $5 ledger time.
INSERT INTO limit_override (tenant_id, name, rule, note, set_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant_id, name) DO UPDATE SET rule = excluded.rule, note = excluded.note, set_at = excluded.set_at;

-- name: delete_override
-- Removes an override and gives its rule. $1 tenant id, $2 limit name.
DELETE FROM limit_override WHERE tenant_id = $1 AND name = $2 RETURNING rule;

-- name: add_audit
-- Adds entries to the audit log. $1 ledger time, $2 actor, $3 action, $4 request id; columns $5 tenant ids, $6 subjects,
-- $7 before, $8 after.
INSERT INTO audit_log (at, actor, action, request_id, tenant_id, subject, before, after)
SELECT $1, $2, $3, $4, tenant_id, subject, before, after
FROM unnest($5::uuid[], $6::text[], $7::jsonb[], $8::jsonb[]) AS added (tenant_id, subject, before, after);

-- name: override
-- Reads an override. $1 tenant id, $2 limit name.
SELECT rule FROM limit_override WHERE tenant_id = $1 AND name = $2;

-- name: keep_logo
-- Keeps a logo. $1 digest, $2 SVG.
INSERT INTO seller_logo (digest, svg) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: logo
-- Gives a logo. $1 digest.
SELECT svg FROM seller_logo WHERE digest = $1;
