-- Thresholds on use and spend.

-- name: take_windows
-- Takes notes on windows with more use, oldest first. $1 at most so many.
DELETE FROM alert_window_hint
WHERE hint_id = ANY (ARRAY(SELECT hint_id FROM alert_window_hint ORDER BY hint_id LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING window_ids;

-- name: take_tenants
-- Takes notes on tenants with more usage, oldest first. $1 at most so many.
DELETE FROM alert_usage_hint
WHERE hint_id = ANY (ARRAY(SELECT hint_id FROM alert_usage_hint ORDER BY hint_id LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING tenant_ids;

-- name: windows
-- Reads how far windows are. $1 window ids, $2 their end days.
SELECT w.tenant_id, w.window_id, w.limit_name, c.key_values, w.start_us, w.end_us, w.amount, used.consumed, used.over
FROM limit_window w
JOIN limit_cursor c ON c.tenant_id = w.tenant_id AND c.limit_name = w.limit_name AND c.key_hash = w.key_hash
CROSS JOIN LATERAL (
  SELECT greatest(0, coalesce(sum(h.consumed_cum - h.given_back_cum), 0))::bigint AS consumed,
    greatest(0, coalesce(sum(h.over_cum) + least(0, sum(h.consumed_cum - h.given_back_cum)), 0))::bigint AS over
  FROM holder_consumption h
  WHERE h.tenant_id = w.tenant_id AND h.window_id = w.window_id AND h.end_day = w.end_day
    AND h.end_day = ANY ($2::int[])
) used
WHERE w.window_id = ANY ($1::bytea[]) AND w.end_day = ANY ($2::int[]);

-- name: open_windows
-- Gives a tenant's windows that are not over, in order of limit, key and start. $1 tenant id, $2 ledger time, $3 its day,
-- $4 at most so many.
SELECT w.window_id
FROM limit_cursor c
CROSS JOIN LATERAL (VALUES (c.older_id, c.older_end_us), (c.newer_id, c.newer_end_us)) AS open (window_id, end_us)
JOIN limit_window w ON w.window_id = open.window_id AND w.tenant_id = c.tenant_id AND w.end_day >= $3
WHERE c.tenant_id = $1 AND open.end_us > $2
ORDER BY c.limit_name, c.key_hash, w.start_us LIMIT $4;

-- name: plans_running
-- Gives the plan versions of tenants' running subscriptions, each once. $1 tenant ids.
SELECT plan_version_id, definition FROM plan_version
WHERE plan_version_id IN (SELECT plan_version_id FROM subscription
                          WHERE tenant_id = ANY ($1::uuid[]) AND ended_at IS NULL);

-- name: rules
-- Gives tenants' own rules, and the plan versions of their running subscriptions; of those alone that have rules of
-- their own or one of these plan versions. $1 tenant ids, $2 plan versions.
SELECT t.tenant_id, t.alerts, s.plan_version_id
FROM (SELECT DISTINCT unnest($1::uuid[]) AS tenant_id) AS asked
JOIN tenant t USING (tenant_id)
-- OFFSET 0: tenant by tenant. Of tables that grew since they were analysed all of one was read for each row of the other.
CROSS JOIN LATERAL (
  SELECT plan_version_id FROM subscription WHERE tenant_id = t.tenant_id AND ended_at IS NULL OFFSET 0) AS s
WHERE t.alerts <> '[]' OR s.plan_version_id = ANY ($2::uuid[])
ORDER BY t.tenant_id;

-- name: mark_due
-- Notes tenants whose billing period is to be looked at. $1 tenant ids.
INSERT INTO alert_due AS d (tenant_id) SELECT tenant_id FROM unnest($1::uuid[]) AS named (tenant_id) ORDER BY 1
ON CONFLICT (tenant_id) DO UPDATE SET marks = d.marks + 1, failures = 0;

-- name: take_due
-- Takes a tenant whose billing period is to be looked at.
DELETE FROM alert_due
WHERE tenant_id = (SELECT tenant_id FROM alert_due ORDER BY failures, tenant_id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING tenant_id;

-- name: note_failure
-- Has a tenant wait for all others. $1 tenant id.
UPDATE alert_due SET failures = failures + 1 WHERE tenant_id = $1;

-- name: give_up
-- Forgets a tenant that failed ten times. $1 tenant id.
DELETE FROM alert_due WHERE tenant_id = $1 AND failures >= 10;

-- name: add
-- Adds alerts and gives those that nobody had added. $1 ledger time; columns $2 tenants, $3 alerts, $4 kinds,
-- $5 subjects, $6 spans, $7 thresholds, $8 key values as JSON, $9 starts, $10 ends, $11 bases, $12 values.
INSERT INTO alert (fired_at, tenant_id, alert_id, kind, subject, span, threshold, key_values, starts_at, ends_at, base,
                   value)
SELECT $1, tenant_id, alert_id, kind, subject, span, threshold, key_values::jsonb, starts_at, ends_at, base, value
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::timestamptz[],
            $10::timestamptz[], $11::numeric[], $12::numeric[])
  AS added (tenant_id, alert_id, kind, subject, span, threshold, key_values, starts_at, ends_at, base, value)
ORDER BY tenant_id, kind, subject, span, threshold
ON CONFLICT ON CONSTRAINT alert_once DO NOTHING
RETURNING alert_id;

-- name: fired
-- Gives which thresholds were told of. Columns $1 tenants, $2 kinds, $3 subjects, $4 spans.
SELECT a.tenant_id, a.kind, a.subject, a.span, a.threshold
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS asked (tenant_id, kind, subject, span)
JOIN alert a USING (tenant_id, kind, subject, span);

-- name: alerts
-- Lists alerts, newest first. $1 before this time or null, $2 and this id, $3 at most so many, $4 only this tenant or null.
SELECT a.*, t.wire_id FROM alert a JOIN tenant t USING (tenant_id)
WHERE ($1::timestamptz IS NULL OR (a.fired_at, a.alert_id) < ($1, $2::uuid))
  AND ($4::uuid IS NULL OR a.tenant_id = $4)
ORDER BY a.fired_at DESC, a.alert_id DESC LIMIT $3;

-- name: payers
-- Gives who pays for tenants, with address. $1 tenant ids.
SELECT t.tenant_id, p.tenant_id AS payer_id, f.email
FROM tenant t
JOIN tenant p ON p.tenant_id = coalesce(t.billing_tenant_id, t.tenant_id)
JOIN billing_profile f ON f.tenant_id = p.tenant_id
WHERE t.tenant_id = ANY ($1::uuid[]) AND f.email <> '';

-- name: content
-- Gives what a mail about an alert is made of. $1 alert id.
SELECT a.*, t.wire_id, t.display_name, s.name AS seller, s.email AS seller_email, s.time_zone,
       coalesce(f.locale, 'en') AS locale
FROM alert a JOIN tenant t USING (tenant_id) JOIN seller s USING (seller_id)
LEFT JOIN billing_profile f ON f.tenant_id = coalesce(t.billing_tenant_id, t.tenant_id)
WHERE a.alert_id = $1;

-- name: note_violations
-- Keeps how far windows are beyond their limits; figures only rise. $1 ledger time; columns $2 tenants, $3 windows,
-- $4 limits, $5 enforcements, $6 key values as JSON, $7 starts, $8 ends, $9 amounts, $10 consumed, $11 over.
INSERT INTO violation AS v (tenant_id, window_id, limit_name, enforcement, key_values, starts_at, ends_at, amount,
                            consumed, over, first_at, last_at)
SELECT tenant_id, window_id, limit_name, enforcement, key_values::jsonb, starts_at, ends_at, amount, consumed, over, $1, $1
FROM unnest($2::uuid[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[],
            $9::bigint[], $10::bigint[], $11::bigint[])
  AS seen (tenant_id, window_id, limit_name, enforcement, key_values, starts_at, ends_at, amount, consumed, over)
ORDER BY tenant_id, window_id
ON CONFLICT (tenant_id, window_id) DO UPDATE
SET over = excluded.over, consumed = greatest(v.consumed, excluded.consumed), amount = excluded.amount,
    enforcement = excluded.enforcement, last_at = excluded.last_at
WHERE v.over < excluded.over;

-- name: violations
-- Lists violations, the newest first. $1 before this time or null, $2 and this window, $3 at most so many, $4 only this
-- tenant or null.
SELECT v.*, t.wire_id FROM violation v JOIN tenant t USING (tenant_id)
WHERE ($1::timestamptz IS NULL OR (v.first_at, v.window_id) < ($1, $2::bytea))
  AND ($4::uuid IS NULL OR v.tenant_id = $4)
ORDER BY v.first_at DESC, v.window_id DESC LIMIT $3;
