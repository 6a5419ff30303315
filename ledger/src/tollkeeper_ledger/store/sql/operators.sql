-- What operators see of limits, and what they do to windows.

-- name: states
-- Lists windows that are not over, in order of tenant, limit, key, start. $1 ledger time, $2 its day, $3 tenant's wire id
-- or null, $4 limit or null, after $5 wire id, $6 limit, $7 key hash, $8 start; $9 at most so many.
SELECT t.wire_id, c.limit_name, c.key_hash, c.key_values, w.window_id, w.start_us, w.end_us, w.round, w.amount,
  w.allotted, w.timeline, w.lowered_at_us, w.settled_at_us, coalesce(used.consumed, 0)::bigint AS consumed,
  coalesce(used.over, 0)::bigint AS over
FROM limit_cursor c
JOIN tenant t ON t.tenant_id = c.tenant_id
CROSS JOIN LATERAL (VALUES (c.older_id, c.older_end_us), (c.newer_id, c.newer_end_us)) AS open (window_id, end_us)
JOIN limit_window w ON w.window_id = open.window_id AND w.tenant_id = c.tenant_id AND w.end_day >= $2
LEFT JOIN LATERAL (
  SELECT greatest(0, sum(h.consumed_cum - h.given_back_cum)) AS consumed,
    greatest(0, sum(h.over_cum) + least(0, sum(h.consumed_cum - h.given_back_cum))) AS over
  FROM holder_consumption h
  WHERE h.tenant_id = w.tenant_id AND h.window_id = w.window_id AND h.end_day = w.end_day
) used ON true
WHERE open.end_us > $1 AND ($3::text IS NULL OR t.wire_id = $3) AND ($4::text IS NULL OR c.limit_name = $4)
  AND (t.wire_id, c.limit_name, c.key_hash, w.start_us) > ($5, $6, $7, $8)
ORDER BY t.wire_id, c.limit_name, c.key_hash, w.start_us
LIMIT $9;

-- name: lock_limit
-- Locks the identities of one limit in key order and gives them. $1 tenant id, $2 limit, $3 key values or null = all.
SELECT tenant_id, limit_name, key_hash, key_values, generation_n, older_id, older_start_us, older_end_us, newer_id,
  newer_start_us, newer_end_us, floor_us
FROM limit_cursor
WHERE tenant_id = $1 AND limit_name = $2 AND ($3::text[] IS NULL OR key_values = $3)
ORDER BY key_hash
FOR UPDATE;

-- name: replace
-- Notes that the next round of windows has begun. $1 window ids, $2 their end days.
UPDATE limit_window SET replaced = true WHERE window_id = ANY ($1::bytea[]) AND end_day = ANY ($2::int[]);

-- name: replaced
-- Reads rounds that have ended, of windows that are not over. $1 tenant ids, $2 ledger time, $3 its day.
SELECT tenant_id, limit_name, key_hash, window_id FROM limit_window
WHERE replaced AND tenant_id = ANY ($1::uuid[]) AND end_day >= $3 AND end_us > $2;

-- name: lock_expired
-- Locks identities whose newest window is over, in key order, and gives them. $1 ledger time, $2 tenant id or null,
-- after $3 tenant id, $4 limit, $5 key hash; $6 at most so many.
SELECT tenant_id, limit_name, key_hash, key_values, generation_n, older_id, older_start_us, older_end_us, newer_id,
  newer_start_us, newer_end_us, floor_us
FROM limit_cursor
WHERE newer_end_us <= $1 AND ($2::uuid IS NULL OR tenant_id = $2)
  AND (tenant_id, limit_name, key_hash) > ($3, $4, $5)
ORDER BY tenant_id, limit_name, key_hash
LIMIT $6
FOR UPDATE;

-- name: history
-- Reads what was done to a tenant's limits, newest first. $1 tenant id, $2 limit or null, $3 before this id, $4 most.
SELECT audit_id, at, actor, action, subject, request_id, before, after
FROM audit_log
WHERE tenant_id = $1 AND audit_id < $3
  AND CASE WHEN $2::text IS NULL THEN starts_with(subject, 'limit/') ELSE subject = 'limit/' || $2 END
ORDER BY audit_id DESC
LIMIT $4;

-- name: features
-- Lists features in name order. $1 after this name, $2 at most so many.
SELECT name FROM feature WHERE name > $1 ORDER BY name LIMIT $2;
