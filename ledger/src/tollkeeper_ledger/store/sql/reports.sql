-- Reports on usage. Statements of one tenant run as `reader` with that tenant set.

-- name: usage_extent
-- Gives the first and last minute with usage. $1 tenant id, $2 from, $3 to.
SELECT min(minute) AS first, max(minute) AS last FROM usage_rollup_minute
WHERE tenant_id = $1 AND minute >= $2 AND minute < $3;

-- name: usage_by_width
-- Sums usage in buckets of one width, counted from the epoch. $1 tenant id, $2 from, $3 to, $4 meters, null = all,
-- $5 width, $6 most rows.
SELECT meter.name, meter.unit, date_bin($5::interval, minute, timestamptz 'epoch') AS start,
       sum(rollup.units)::text AS total, sum(records)::bigint AS records
FROM usage_rollup_minute rollup JOIN meter USING (meter_id)
WHERE tenant_id = $1 AND minute >= $2 AND minute < $3 AND ($4::text[] IS NULL OR meter.name = ANY ($4))
GROUP BY 1, 2, 3 ORDER BY meter.name COLLATE "C", 3 LIMIT $6;

-- name: usage_by_edges
-- Sums usage in buckets between edges; `place` is the bucket's, from 1. $1 tenant id, $2 from, $3 to, $4 meters,
-- null = all, $5 edges, ascending, $6 most rows.
SELECT meter.name, meter.unit, width_bucket(minute, $5::timestamptz[]) AS place,
       sum(rollup.units)::text AS total, sum(records)::bigint AS records
FROM usage_rollup_minute rollup JOIN meter USING (meter_id)
WHERE tenant_id = $1 AND minute >= $2 AND minute < $3 AND ($4::text[] IS NULL OR meter.name = ANY ($4))
GROUP BY 1, 2, 3 ORDER BY meter.name COLLATE "C", 3 LIMIT $6;

-- name: records_after
-- Gives stored records in (event time, id) order. $1 tenant id, $2 to, $3 event time and $4 id to begin after, $5 most.
SELECT id, event_time, meter_ids, units, attributes, batch_id, seq FROM usage_record
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
