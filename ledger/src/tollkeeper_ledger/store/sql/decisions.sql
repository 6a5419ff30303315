-- name: take_batch
-- Takes a holder's batch; no row: it is stored already. Its row stays locked until commit. $1 holder, $2 batch_seq.
INSERT INTO decision_batch AS b (holder, batch_seq) VALUES ($1, $2)
ON CONFLICT (holder) DO UPDATE SET batch_seq = excluded.batch_seq, seen_at = clock_timestamp()
WHERE b.batch_seq < excluded.batch_seq
RETURNING true;

-- name: add_counts
-- Adds counts, in one order for everybody. $1 day, $2 tenants' ids, $3 limits, $4 reasons, $5 counts, $6 left out.
INSERT INTO decision_count AS c (tenant_id, limit_name, reason, day, count, left_out)
SELECT tenant_id, limit_name, reason, $1, sum(count), sum(left_out)
FROM unnest($2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
  AS told (tenant_id, limit_name, reason, count, left_out)
GROUP BY tenant_id, limit_name, reason ORDER BY tenant_id, limit_name, reason
ON CONFLICT (tenant_id, limit_name, reason, day) DO UPDATE
SET count = c.count + excluded.count, left_out = c.left_out + excluded.left_out;

-- name: add_entries
-- Keeps decisions, in the order in which they came. $1 tenants' ids, $2 limits, $3 reasons, $4 times, $5 callers,
-- $6 units, $7 amounts, $8 used, $9 attributes as JSON texts.
INSERT INTO decision_entry (tenant_id, limit_name, reason, at, caller, units, amount, used, attributes)
SELECT tenant_id, limit_name, reason, at, caller, units, amount, used, attributes::jsonb
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[],
            $9::text[]) WITH ORDINALITY
  AS told (tenant_id, limit_name, reason, at, caller, units, amount, used, attributes, place)
ORDER BY place;

-- name: entries
-- Lists entries, those that came last first. $1 before this one or null, $2 only this tenant or null, $3 only limits of
-- this name or null, $4 only this reason or null, $5 at most so many.
SELECT e.*, t.wire_id FROM decision_entry e JOIN tenant t USING (tenant_id)
WHERE ($1::bigint IS NULL OR e.entry_id < $1) AND ($2::uuid IS NULL OR e.tenant_id = $2)
  AND ($3::text IS NULL OR e.limit_name = $3) AND ($4::text IS NULL OR e.reason = $4)
ORDER BY e.entry_id DESC LIMIT $5;

-- name: sums
-- Sums counts by tenant, limit and reason, in this order. $1 after this wire id, $2 limit and $3 reason, or all null;
-- $4 only this tenant or null, $5 only limits of this name or null, $6 from this day or null, $7 to this day or null,
-- $8 at most so many.
SELECT t.wire_id, c.limit_name, c.reason, sum(c.count)::bigint AS count, sum(c.left_out)::bigint AS left_out
FROM decision_count c JOIN tenant t USING (tenant_id)
WHERE ($1::text IS NULL OR (t.wire_id, c.limit_name, c.reason) > ($1, $2::text, $3::text))
  AND ($4::uuid IS NULL OR c.tenant_id = $4) AND ($5::text IS NULL OR c.limit_name = $5)
  AND ($6::date IS NULL OR c.day >= $6) AND ($7::date IS NULL OR c.day <= $7)
GROUP BY t.wire_id, c.limit_name, c.reason ORDER BY t.wire_id, c.limit_name, c.reason LIMIT $8;

-- name: expire_entries
-- Deletes the oldest entries stored so long ago. $1 age, $2 at most so many.
DELETE FROM decision_entry WHERE (tenant_id, entry_id) IN (
  SELECT tenant_id, entry_id FROM decision_entry WHERE stored_at < clock_timestamp() - $1::interval
  ORDER BY stored_at LIMIT $2);

-- name: expire_counts
-- Deletes the counts of days before one. $1 the day, $2 at most so many.
DELETE FROM decision_count WHERE (tenant_id, limit_name, reason, day) IN (
  SELECT tenant_id, limit_name, reason, day FROM decision_count WHERE day < $1 ORDER BY day LIMIT $2);

-- name: expire_batches
-- Forgets holders that told nothing for so long. $1 age, $2 at most so many.
DELETE FROM decision_batch WHERE holder IN (
  SELECT holder FROM decision_batch WHERE seen_at < clock_timestamp() - $1::interval ORDER BY seen_at LIMIT $2
  FOR UPDATE);
