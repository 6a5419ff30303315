-- Reports on usage. Statements of one tenant run as `reader` with that tenant set.

-- name: tenant_and_meters
-- Gives a tenant's id with meters in name order; one row without a meter where none is found, no row without the tenant.
-- $1 wire id, $2 names, null = all.
SELECT tenant_id, meter_id, name, unit, aggregation, attributes, dimensions, value_attribute, pseudonymised, late_max_s,
       early_max_s
FROM tenant LEFT JOIN meter ON $2::text[] IS NULL OR name = ANY ($2)
WHERE wire_id = $1 ORDER BY name COLLATE "C";

-- name: usage_extent
-- Gives the first and last quarter of an hour with usage, and ledger time. $1 tenant id, $2 meter ids, $3 from, $4 to.
SELECT min(early.quarter) AS first, max(late.quarter) AS last, ledger_now() AS now
FROM unnest($2::integer[]) AS wanted (meter_id),
LATERAL (SELECT quarter FROM usage_rollup_quarter r WHERE r.tenant_id = $1 AND r.meter_id = wanted.meter_id
           AND quarter >= $3 AND quarter < $4 ORDER BY quarter LIMIT 1) early,
LATERAL (SELECT quarter FROM usage_rollup_quarter r WHERE r.tenant_id = $1 AND r.meter_id = wanted.meter_id
           AND quarter >= $3 AND quarter < $4 ORDER BY quarter DESC LIMIT 1) late;

-- name: sums_by_quarter
-- Sums usage in buckets between edges; `place` is the bucket's, from 1. $1 tenant id, $2 meter ids, $3 from, $4 to,
-- $5 edges, ascending, $6 most rows, $7 values that dimensions may have, by name; null = any.
SELECT meter_id, dims, width_bucket(quarter, $5::timestamptz[]) AS place, sum(units)::text AS units,
       sum(records)::bigint AS records
FROM usage_rollup_quarter
WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND quarter >= $3 AND quarter < $4
  AND ($7::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_each($7) AS w (name, allowed)
                                        WHERE NOT coalesce(w.allowed ? (dims::jsonb ->> w.name), false)))
GROUP BY 1, 2, 3 LIMIT $6;

-- name: sums_by_minute
-- The same from minutes, for edges that are no quarters of an hour. Arguments as sums_by_quarter.
SELECT meter_id, dims, width_bucket(minute, $5::timestamptz[]) AS place, sum(units)::text AS units,
       sum(records)::bigint AS records
FROM usage_rollup_minute
WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND minute >= $3 AND minute < $4
  AND ($7::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_each($7) AS w (name, allowed)
                                        WHERE NOT coalesce(w.allowed ? (dims::jsonb ->> w.name), false)))
GROUP BY 1, 2, 3 LIMIT $6;

-- name: totals_by_quarter
-- Sums usage in buckets likewise, of all dimensions together. $1 tenant id, $2 meter ids, $3 from, $4 to, $5 edges,
-- $6 most rows.
SELECT meter_id, width_bucket(quarter, $5::timestamptz[]) AS place, sum(units)::text AS units,
       sum(records)::bigint AS records
FROM usage_rollup_quarter
WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND quarter >= $3 AND quarter < $4
GROUP BY 1, 2 LIMIT $6;

-- name: totals_by_minute
-- The same from minutes. Arguments as totals_by_quarter.
SELECT meter_id, width_bucket(minute, $5::timestamptz[]) AS place, sum(units)::text AS units,
       sum(records)::bigint AS records
FROM usage_rollup_minute
WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND minute >= $3 AND minute < $4
GROUP BY 1, 2 LIMIT $6;

-- name: values_by_quarter
-- Counts distinct values in buckets. $1 tenant id, $2 meter ids, $3 from, $4 to, $5 edges, $6 names to group by,
-- $7 as sums_by_quarter.
SELECT meter_id, chosen, place, count(*) AS distinct_values
FROM (
  SELECT meter_id, width_bucket(quarter, $5::timestamptz[]) AS place, value,
         (SELECT coalesce(jsonb_object_agg(name, dims::jsonb -> name) FILTER (WHERE dims::jsonb ? name), '{}')
          FROM unnest($6::text[]) AS name) AS chosen
  FROM usage_rollup_value
  WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND quarter >= $3 AND quarter < $4
    AND ($7::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_each($7) AS w (name, allowed)
                                          WHERE NOT coalesce(w.allowed ? (dims::jsonb ->> w.name), false)))
  GROUP BY 1, 2, 3, 4 HAVING sum(records) > 0
) AS found
GROUP BY 1, 2, 3;

-- name: states_by_quarter
-- Gives states in order of their quarters. $1 tenant id, $2 meter ids, $3 from, $4 to.
SELECT meter_id, dims, quarter, state FROM usage_rollup_state
WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND quarter >= $3 AND quarter < $4 ORDER BY quarter;

-- name: states_before
-- Gives each meter's and dimensions' last state before a quarter of an hour. $1 tenant id, $2 meter ids, $3 quarter.
SELECT DISTINCT ON (meter_id, dims) meter_id, dims, quarter, state FROM usage_rollup_state
WHERE tenant_id = $1 AND meter_id = ANY ($2::integer[]) AND quarter < $3 ORDER BY meter_id, dims, quarter DESC;

-- name: voids_between
-- Gives ids of voids. $1 tenant id, $2 from, $3 to.
SELECT id FROM usage_record WHERE tenant_id = $1 AND flags & 32 <> 0 AND event_time >= $2 AND event_time < $3;

-- name: records_after
-- Gives stored records in (event time, id) order. $1 tenant id, $2 to, $3 event time and $4 id to begin after, $5 most.
SELECT id, event_time, meter_ids, units, attributes, batch_id, seq, flags FROM usage_record
WHERE tenant_id = $1 AND event_time < $2 AND event_time >= $3 AND (event_time, id) > ($3, $4::text)
ORDER BY event_time, id LIMIT $5;

-- name: meter_names
-- Gives the names of meters. $1 ids.
SELECT meter_id, name FROM meter WHERE meter_id = ANY ($1::integer[]);

-- name: batch_producers
-- Gives who sent batches. $1 batches.
SELECT batch_id, producer_id FROM usage_chain WHERE batch_id = ANY ($1::bigint[]);

-- name: producers
-- Gives producers, last heard of first. $1 most.
SELECT producer_id, state, incarnation, committed_seq, watermark, seen_at, clock_timestamp() - seen_at AS quiet
FROM producer ORDER BY seen_at DESC, producer_id LIMIT $1;

-- name: ingest_totals
-- Gives how many records were stored and how many quarantined, ever.
SELECT coalesce(sum(stored_total), 0)::bigint AS stored, coalesce(sum(quarantined_total), 0)::bigint AS quarantined
FROM usage_chain_head;

-- name: audit_before
-- Gives entries of the audit log, newest first. $1 number to begin before, $2 most.
SELECT audit_id, at, actor, action, coalesce(tenant.wire_id, '') AS tenant, request_id, before, after
FROM audit_log LEFT JOIN tenant USING (tenant_id)
WHERE audit_id < $1 ORDER BY audit_id DESC LIMIT $2;
