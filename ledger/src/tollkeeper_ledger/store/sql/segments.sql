-- name: share_tenants
-- Takes tenants' locks shared, in the order given. $1 keys, ascending.
SELECT pg_advisory_xact_lock_shared(key) FROM unnest($1::bigint[]) WITH ORDINALITY AS wanted (key, place) ORDER BY place;

-- name: share_stripes
-- Takes stripes of tenants shared, in the order given. $1 stripes, ascending.
SELECT pg_advisory_xact_lock_shared(1953456993, stripe)
FROM unnest($1::integer[]) WITH ORDINALITY AS wanted (stripe, place) ORDER BY place;

-- name: lock_stripes
-- Takes stripes of tenants alone, in the order given. $1 stripes, ascending.
SELECT pg_advisory_xact_lock(1953456993, stripe)
FROM unnest($1::integer[]) WITH ORDINALITY AS wanted (stripe, place) ORDER BY place;

-- name: lock_tenants
-- Takes tenants' locks alone, in the order given. $1 keys, ascending.
SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) WITH ORDINALITY AS wanted (key, place) ORDER BY place;

-- name: segments_between
-- Gives billed segments, but no late ones and of parted ones the last part, that overlap a span. $1 tenant ids as an array literal, $2 from, $3 to, inclusive.
SELECT tenant_id, segment_id, period_start, period_end, state
FROM billing_segment
WHERE tenant_id = ANY ($1::text::uuid[]) AND subscription_id IS NOT NULL AND late_for IS NULL
  AND state <> 'parted' AND period_end > $2 AND period_start <= $3;

-- name: segments_of_span
-- Gives the same, and whether each is open and holds the span. Arguments as segments_between.
SELECT tenant_id, segment_id, state = 'open' AND period_start <= $2 AND period_end > $3 AS holds
FROM billing_segment
WHERE tenant_id = ANY ($1::text::uuid[]) AND subscription_id IS NOT NULL AND late_for IS NULL
  AND state <> 'parted' AND period_end > $2 AND period_start <= $3;

-- name: schedules
-- Gives what periods and their plan versions depend on, one row per subscription and phase. $1 tenant ids.
SELECT s.tenant_id, s.subscription_id, s.ended_at, s.billed_until, p.starts_at, p.plan_version_id, p.state, p.quantity,
       p.anchor, p.time_zone, p.interval_unit, p.interval_count,
       EXISTS (SELECT FROM billing_segment b WHERE b.tenant_id = s.tenant_id AND b.subscription_id = s.subscription_id
               AND b.late_for IS NOT NULL AND b.state = 'open') AS has_late
FROM subscription s JOIN subscription_phase p USING (tenant_id, subscription_id)
WHERE s.tenant_id = ANY ($1::uuid[])
ORDER BY s.tenant_id, s.started_at, s.subscription_id, p.starts_at;

-- name: add_segments
-- Adds segments that are not there; one that is stays as it is. Columns $1 tenant, $2 segment, $3 subscription,
-- $4 plan version, $5 start, $6 end, $7 late_for, $8 closed_at (null = open), each in the same order.
INSERT INTO billing_segment
  (tenant_id, segment_id, subscription_id, plan_version_id, period_start, period_end, late_for, state, closed_at)
SELECT tenant_id, segment_id, subscription_id, plan_version_id, period_start, period_end, late_for,
       CASE WHEN closed_at IS NULL THEN 'open' ELSE 'closed' END, closed_at
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::timestamptz[], $6::timestamptz[], $7::uuid[],
            $8::timestamptz[])
  AS wanted (tenant_id, segment_id, subscription_id, plan_version_id, period_start, period_end, late_for, closed_at)
ORDER BY tenant_id, period_start, segment_id
ON CONFLICT ON CONSTRAINT billing_segment_unique DO NOTHING;

-- name: find_segments
-- Gives the segments with these keys. Columns $1 tenant, $2 subscription, $3 plan version, $4 start, $5 late_for.
SELECT b.tenant_id, b.segment_id, b.subscription_id, b.period_start, b.period_end, b.late_for, b.state
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::uuid[])
  WITH ORDINALITY AS w (tenant_id, subscription_id, plan_version_id, period_start, late_for, place)
JOIN billing_segment b ON b.tenant_id = w.tenant_id AND b.period_start = w.period_start
  AND b.subscription_id IS NOT DISTINCT FROM w.subscription_id
  AND b.plan_version_id IS NOT DISTINCT FROM w.plan_version_id
  AND b.late_for IS NOT DISTINCT FROM w.late_for AND b.state <> 'parted'
ORDER BY w.place;

-- name: cut_segments
-- Ends the open segments of a subscription that hold an instant there. $1 tenant id, $2 subscription id, $3 instant.
UPDATE billing_segment SET period_end = $3
WHERE tenant_id = $1 AND subscription_id = $2 AND late_for IS NULL AND state = 'open'
  AND period_start < $3 AND period_end > $3;

-- name: join_segments
-- Lets open segments go on that end at an instant. $1 tenant id, $2 subscription id, $3 instant, $4 end.
UPDATE billing_segment SET period_end = $4
WHERE tenant_id = $1 AND subscription_id = $2 AND late_for IS NULL AND state = 'open' AND period_end = $3;

-- name: has_segments_from
-- Says whether a subscription has segments that begin at an instant or later. $1 tenant id, $2 subscription id, $3 it.
SELECT EXISTS (SELECT FROM billing_segment WHERE tenant_id = $1 AND subscription_id = $2 AND period_start >= $3);

-- name: part_segments
-- Parts the open segments of a running period and opens the next part of each; gives the parted ones. Late ones stay.
-- $1 tenant id, $2 subscription id, $3 period start, $4 the cut.
WITH parted AS (
  UPDATE billing_segment SET state = 'parted', closed_at = $4
  WHERE tenant_id = $1 AND subscription_id = $2 AND late_for IS NULL AND state = 'open'
    AND period_start >= $3 AND period_start < $4
  RETURNING *
), opened AS (
  INSERT INTO billing_segment
    (tenant_id, segment_id, subscription_id, plan_version_id, period_start, period_end, state, part)
  SELECT tenant_id, gen_random_uuid(), subscription_id, plan_version_id, period_start, period_end, 'open', part + 1
  FROM parted
)
SELECT segment_id FROM parted;
