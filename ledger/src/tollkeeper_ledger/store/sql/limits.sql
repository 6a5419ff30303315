-- Allot, ReturnUnits, ReportConsumption, changes of amounts.

-- name: ensure_day
-- Makes the partitions of windows that end on a day. $1 day number.
SELECT ensure_limit_day($1);

-- name: amounts
-- Reads amounts and versions in force, of the rule that is held too. $1 tenant ids, $2 limit names, pairwise.
SELECT s.tenant_id, s.name, s.amount, s.amount_version, s.shape, s.held_amount, s.held_until_us
FROM limit_state s
JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::text[])) AS asked (tenant_id, name) USING (tenant_id, name);

-- name: lock_cursors
-- Locks identities in key order and gives them; a new one gets the proposed window. All arrays pairwise.
-- $1 tenant ids, $2 limit names, $3 key hashes, $4 key values as JSON, $5 window ids, $6 starts, $7 ends.
INSERT INTO limit_cursor (tenant_id, limit_name, key_hash, key_values, newer_id, newer_start_us, newer_end_us, floor_us)
SELECT tenant_id, limit_name, key_hash, ARRAY(SELECT jsonb_array_elements_text(key_values::jsonb)), id, start_us, end_us, 0
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::bytea[], $6::bigint[], $7::bigint[])
  AS proposed (tenant_id, limit_name, key_hash, key_values, id, start_us, end_us)
ORDER BY tenant_id, limit_name, key_hash
ON CONFLICT (tenant_id, limit_name, key_hash) DO UPDATE SET generation_n = limit_cursor.generation_n
RETURNING tenant_id, limit_name, key_hash, generation_n, older_id, older_start_us, older_end_us, newer_id,
  newer_start_us, newer_end_us, floor_us;

-- name: find_cursors
-- Reads identities that are there, without a lock. $1 tenant ids, $2 limit names, $3 key hashes pairwise.
SELECT c.tenant_id, c.limit_name, c.key_hash, c.generation_n, c.older_id, c.older_start_us, c.older_end_us, c.newer_id,
  c.newer_start_us, c.newer_end_us, c.floor_us
FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS asked (tenant_id, limit_name, key_hash)
JOIN limit_cursor c USING (tenant_id, limit_name, key_hash);

-- name: update_cursors
-- Writes identities that are locked. All arrays pairwise: $1 tenant ids, $2 limit names, $3 key hashes,
-- $4 generations so far, $5 to $7 the older window, $8 to $10 the newer, $11 floors.
UPDATE limit_cursor c SET generation_n = n.generation_n, older_id = n.older_id, older_start_us = n.older_start_us,
  older_end_us = n.older_end_us, newer_id = n.newer_id, newer_start_us = n.newer_start_us,
  newer_end_us = n.newer_end_us, floor_us = n.floor_us
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[], $8::bytea[],
  $9::bigint[], $10::bigint[], $11::bigint[])
  AS n (tenant_id, limit_name, key_hash, generation_n, older_id, older_start_us, older_end_us, newer_id,
    newer_start_us, newer_end_us, floor_us)
WHERE c.tenant_id = n.tenant_id AND c.limit_name = n.limit_name AND c.key_hash = n.key_hash;

-- name: lock_windows
-- Locks windows in id order and gives them with their newest generation. $1 window ids, $2 their end days.
SELECT w.tenant_id, w.window_id, w.end_day, w.limit_name, w.key_hash, w.timeline, w.round, w.start_us, w.end_us,
  w.amount, w.amount_version, w.allotted, w.ceiling, w.wanted, w.generation, w.stored, w.stored_over, w.owed,
  g.allotted_cum, g.credited, g.lost, g.closing, g.closed
FROM limit_window w
LEFT JOIN pool_generation g ON g.tenant_id = w.tenant_id AND g.window_id = w.window_id AND g.end_day = w.end_day
  AND g.generation = w.generation AND g.end_day = ANY ($2::int[])
WHERE w.window_id = ANY ($1::bytea[]) AND w.end_day = ANY ($2::int[])
ORDER BY w.window_id
FOR UPDATE OF w;

-- name: read_leases
-- Reads what holders got of windows that are locked. $1 tenant ids, $2 window ids, $3 holders, $4 end days pairwise,
-- $5 the distinct end days. One look into the primary key for each: a plan made while a day's partition was small would
-- go on reading it whole.
SELECT l.window_id, l.holder, l.request_seq, l.granted_cum, l.returned_cum, l.last_give, l.recorded, l.ended,
  l.lease_epoch
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::int[]) AS asked (tenant_id, window_id, holder, end_day)
CROSS JOIN LATERAL (
  SELECT * FROM holder_lease l
  WHERE l.tenant_id = asked.tenant_id AND l.window_id = asked.window_id AND l.holder = asked.holder
    AND l.end_day = asked.end_day AND l.end_day = ANY ($5::int[])
  OFFSET 0
) l;

-- name: insert_windows
-- Opens windows. All arrays pairwise.
INSERT INTO limit_window (tenant_id, window_id, end_day, limit_name, key_hash, timeline, start_us, end_us, amount,
  amount_version, allotted, ceiling, wanted, generation, round, stored, stored_over, owed)
SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::text[], $5::bytea[], $6::bigint[], $7::bigint[],
  $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
  $15::int[], $16::bigint[], $17::bigint[], $18::bigint[]);

-- name: update_windows
-- Writes windows that are locked. All arrays pairwise: $1 tenant ids, $2 window ids, $3 end days, $4 amounts,
-- $5 versions, $6 allotted, $7 ceilings, $8 wanted, $9 generations, $10 stored, $11 stored_over, $12 owed, $13 the
-- distinct end days. Notes when more came to be out than the amount, and when no longer.
UPDATE limit_window w SET amount = n.amount, amount_version = n.amount_version, allotted = n.allotted,
  ceiling = n.ceiling, wanted = n.wanted, generation = n.generation, stored = n.stored, stored_over = n.stored_over,
  owed = n.owed,
  lowered_at_us = CASE WHEN n.allotted > n.amount AND w.allotted <= w.amount THEN ledger_now_us() ELSE w.lowered_at_us END,
  settled_at_us = CASE WHEN n.allotted > n.amount THEN NULL
    WHEN w.allotted > w.amount THEN ledger_now_us() ELSE w.settled_at_us END
FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
  $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[])
  AS n (tenant_id, window_id, end_day, amount, amount_version, allotted, ceiling, wanted, generation, stored, stored_over,
    owed)
WHERE w.tenant_id = n.tenant_id AND w.window_id = n.window_id AND w.end_day = n.end_day
  AND w.end_day = ANY ($13::int[]);

-- name: write_generations
-- Writes generations of windows that are locked. All arrays pairwise: $1 tenant ids, $2 window ids, $3 end days,
-- $4 generations, $5 allotted_cum, $6 credited, $7 lost, $8 closing, $9 closed.
INSERT INTO pool_generation AS g (tenant_id, window_id, end_day, generation, allotted_cum, credited, lost, closing, closed)
SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bool[],
  $8::bool[], $9::bool[])
ON CONFLICT (tenant_id, window_id, generation, end_day) DO UPDATE SET allotted_cum = excluded.allotted_cum,
  credited = excluded.credited, lost = excluded.lost, closing = excluded.closing, closed = excluded.closed;

-- name: write_leases
-- Writes what holders got of windows that are locked. All arrays pairwise: $1 tenant ids, $2 window ids, $3 end days,
-- $4 holders, $5 request_seq, $6 granted_cum, $7 returned_cum, $8 last_give, $9 recorded, $10 ended, $11 lease_epoch.
-- Whatever is written of units in flight counts as a renewal.
INSERT INTO holder_lease AS l (tenant_id, window_id, end_day, holder, request_seq, granted_cum, returned_cum, last_give,
  recorded, ended, lease_epoch)
SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[],
  $8::bigint[], $9::bigint[], $10::bool[], $11::bigint[])
ON CONFLICT (tenant_id, window_id, holder, end_day) DO UPDATE SET request_seq = excluded.request_seq,
  granted_cum = excluded.granted_cum, returned_cum = excluded.returned_cum, last_give = excluded.last_give,
  recorded = excluded.recorded, ended = excluded.ended, lease_epoch = excluded.lease_epoch, renewals = l.renewals + 1;

-- name: read_generations
-- Reads generations of locked windows with what this holder gave back of each. $1 window ids, $2 generations pairwise,
-- $3 holder, $4 end days.
SELECT g.tenant_id, g.window_id, g.generation, g.allotted_cum, g.credited, g.lost, g.closing, g.closed,
  coalesce(r.returned_cum, 0) AS returned_cum
FROM unnest($1::bytea[], $2::bigint[]) AS asked (window_id, generation)
CROSS JOIN LATERAL (
  SELECT * FROM limit_window w WHERE w.window_id = asked.window_id AND w.end_day = ANY ($4::int[]) OFFSET 0
) w
JOIN pool_generation g ON g.tenant_id = w.tenant_id AND g.window_id = w.window_id AND g.end_day = w.end_day
  AND g.generation = asked.generation AND g.end_day = ANY ($4::int[])
LEFT JOIN lost_return r ON r.tenant_id = w.tenant_id AND r.window_id = w.window_id AND r.generation = g.generation
  AND r.holder = $3 AND r.end_day = w.end_day AND r.end_day = ANY ($4::int[]);

-- name: write_lost_returns
-- Writes what a holder gave back of ended generations. $1 tenant ids, $2 window ids, $3 end days, $4 generations,
-- $5 returned_cum pairwise, $6 holder.
INSERT INTO lost_return AS r (tenant_id, window_id, end_day, generation, returned_cum, holder)
SELECT n.*, $6 FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::bigint[], $5::bigint[]) AS n
ON CONFLICT (tenant_id, window_id, generation, holder, end_day)
  DO UPDATE SET returned_cum = greatest(r.returned_cum, excluded.returned_cum);

-- name: write_consumption
-- Stores what a holder consumed and gave back, never lowering a figure, and notes what rose for alerts. $1 window ids,
-- $2 consumed_cum, $3 over_cum, $6 given_back_cum pairwise, $4 holder, $5 end days. Windows that do not exist are left
-- out.
WITH stored AS (
INSERT INTO holder_consumption AS h (tenant_id, window_id, end_day, holder, consumed_cum, over_cum, given_back_cum)
SELECT w.tenant_id, w.window_id, w.end_day, $4, n.consumed_cum, n.over_cum, n.given_back_cum
FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $6::bigint[])
  AS n (window_id, consumed_cum, over_cum, given_back_cum)
CROSS JOIN LATERAL (
  SELECT * FROM limit_window w WHERE w.window_id = n.window_id AND w.end_day = ANY ($5::int[]) OFFSET 0
) w
ORDER BY w.window_id
ON CONFLICT (tenant_id, window_id, holder, end_day)
  DO UPDATE SET consumed_cum = greatest(h.consumed_cum, excluded.consumed_cum),
    over_cum = greatest(h.over_cum, excluded.over_cum),
    given_back_cum = greatest(h.given_back_cum, excluded.given_back_cum)
  WHERE h.consumed_cum < excluded.consumed_cum OR h.over_cum < excluded.over_cum
    OR h.given_back_cum < excluded.given_back_cum
RETURNING h.window_id
)
INSERT INTO alert_window_hint (window_ids) SELECT array_agg(window_id) FROM stored HAVING count(*) > 0;

-- name: read_use
-- Reads what all holders consumed of windows and did not give back. $1 window ids, $2 end days.
SELECT w.window_id, w.allotted, w.amount, used.consumed, used.over
FROM limit_window w
CROSS JOIN LATERAL (
  SELECT greatest(0, coalesce(sum(h.consumed_cum - h.given_back_cum), 0))::bigint AS consumed,
    greatest(0, coalesce(sum(h.over_cum) + least(0, sum(h.consumed_cum - h.given_back_cum)), 0))::bigint AS over
  FROM holder_consumption h
  WHERE h.tenant_id = w.tenant_id AND h.window_id = w.window_id AND h.end_day = w.end_day
    AND h.end_day = ANY ($2::int[])
) used
WHERE w.window_id = ANY ($1::bytea[]) AND w.end_day = ANY ($2::int[]);

-- name: renew_leases
-- Renews leases of units in flight that are still the ones named. $1 window ids, $2 leases, $3 units in flight pairwise,
-- $4 holder, $5 end day of windows without end.
WITH named AS (
  SELECT l.tenant_id, l.window_id, n.in_flight
  FROM unnest($1::bytea[], $2::bigint[], $3::bigint[]) AS n (window_id, lease_epoch, in_flight)
  JOIN limit_window w ON w.window_id = n.window_id AND w.end_day = $5
  JOIN holder_lease l ON l.tenant_id = w.tenant_id AND l.window_id = w.window_id AND l.holder = $4 AND l.end_day = $5
    AND l.lease_epoch = n.lease_epoch
  ORDER BY l.tenant_id, l.window_id
  FOR UPDATE OF l
)
UPDATE holder_lease l SET renewals = l.renewals + 1, in_flight = named.in_flight
FROM named
WHERE l.tenant_id = named.tenant_id AND l.window_id = named.window_id AND l.holder = $4 AND l.end_day = $5;

-- name: lease_epochs
-- Reads a holder's leases of units in flight. $1 window ids, $2 holder, $3 end day of windows without end.
SELECT window_id, lease_epoch FROM holder_lease
WHERE holder = $2 AND end_day = $3 AND window_id = ANY ($1::bytea[]) AND lease_epoch > 0;

-- name: standing_use
-- Reads what is stored or in flight, rises included that were reported and not recorded yet. $1 window ids, $2 end day
-- of windows without end.
SELECT w.window_id, (greatest(0, w.stored + coalesce(sum(greatest(0, h.consumed_cum - coalesce(l.recorded, 0)))
    FILTER (WHERE NOT coalesce(l.ended, false)), 0)) + coalesce(sum(l.in_flight), 0))::bigint AS used
FROM limit_window w
LEFT JOIN holder_consumption h ON h.tenant_id = w.tenant_id AND h.window_id = w.window_id AND h.end_day = $2
LEFT JOIN holder_lease l ON l.tenant_id = w.tenant_id AND l.window_id = w.window_id AND l.holder = h.holder
  AND l.end_day = $2
WHERE w.window_id = ANY ($1::bytea[]) AND w.end_day = $2
GROUP BY w.tenant_id, w.window_id, w.end_day;

-- name: timed_leases
-- Reads leases of units in flight that hold some. $1 end day of windows without end.
SELECT window_id, holder, lease_epoch, renewals FROM holder_lease
WHERE end_day = $1 AND lease_epoch > 0 AND granted_cum > returned_cum;

-- name: reclaim_lease
-- Reclaims a lease of a locked window that stood still. $1 window id, $2 holder, $3 lease, $4 renewals seen, $5 end day.
UPDATE holder_lease l SET returned_cum = l.granted_cum, lease_epoch = l.lease_epoch + 1, in_flight = 0, last_give = NULL
FROM (
  SELECT tenant_id, granted_cum - returned_cum AS units FROM holder_lease
  WHERE window_id = $1 AND holder = $2 AND lease_epoch = $3 AND renewals = $4 AND end_day = $5
  FOR UPDATE
) still
WHERE l.tenant_id = still.tenant_id AND l.window_id = $1 AND l.holder = $2 AND l.end_day = $5
RETURNING still.units;

-- name: standing_windows
-- Finds the windows without end of identities. $1 tenant ids, $2 limit names, $3 key hashes pairwise, $4 their end.
SELECT c.tenant_id, c.limit_name, c.key_hash, c.newer_id AS window_id
FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS n (tenant_id, limit_name, key_hash)
JOIN limit_cursor c USING (tenant_id, limit_name, key_hash)
WHERE c.newer_end_us = $4;

-- name: note_ended
-- Notes processes that have ended. $1 holders, $2 producer, $3 last sequence number that one of them can have written.
INSERT INTO ended_holder (holder, producer_id, ended_seq)
SELECT DISTINCT holder, $2::uuid, $3::bigint FROM unnest($1::bytea[]) AS n (holder)
ON CONFLICT (holder) DO NOTHING;

-- name: ended_holders
-- Finds processes that have ended and whose logs are committed to the end. $1 at most so many.
SELECT e.holder FROM ended_holder e JOIN producer p ON p.producer_id = e.producer_id
WHERE NOT e.done AND p.committed_seq >= e.ended_seq
LIMIT $1;

-- name: levels_of
-- Finds windows of levels that a process leased from. $1 holder, $2 end day of windows without end.
SELECT window_id FROM holder_lease WHERE holder = $1 AND end_day = $2 AND lease_epoch = 0 AND NOT ended;

-- name: end_holder
-- Marks a process as done with. $1 holder.
UPDATE ended_holder SET done = true WHERE holder = $1;

-- name: outdated_windows
-- Finds windows, not over yet, whose amount is no longer the one in force. $1 tenant ids, $2 ledger time,
-- $3 at most so many, $4 only above this window id.
SELECT open.window_id
FROM limit_state s
JOIN limit_cursor c ON c.tenant_id = s.tenant_id AND c.limit_name = s.name
CROSS JOIN LATERAL (VALUES (c.older_id, c.older_end_us), (c.newer_id, c.newer_end_us)) AS open (window_id, end_us)
JOIN limit_window w ON w.window_id = open.window_id AND w.tenant_id = s.tenant_id
WHERE s.tenant_id = ANY ($1::uuid[]) AND open.end_us > $2 AND w.amount_version < s.amount_version
  AND CASE WHEN w.start_us < s.held_until_us THEN s.held_amount ELSE s.amount END >= 0
  AND open.window_id > $4
ORDER BY open.window_id
LIMIT $3;

-- name: unfinal_windows
-- Finds windows with a pool and units left, whose pool may not know of them. $1 ledger time, $2 its day, $3 most.
SELECT window_id FROM limit_window
WHERE end_day >= $2 AND end_us > $1 AND generation > 0 AND allotted < amount
LIMIT $3;

-- name: closing_generations
-- Finds generations that wait to be closed in Redis. $1 first end day, $2 at most so many.
SELECT g.tenant_id, g.window_id, w.limit_name, w.key_hash, g.generation
FROM pool_generation g
JOIN limit_window w ON w.tenant_id = g.tenant_id AND w.window_id = g.window_id AND w.end_day = g.end_day
  AND w.end_day >= $1
WHERE g.closing AND NOT g.closed AND g.end_day >= $1
LIMIT $2;

-- name: close_generation
-- Marks a generation as closed and credits its rest, once. $1 tenant id, $2 window id, $3 end day, $4 generation,
-- $5 units that were never granted.
UPDATE pool_generation g SET closed = true, credited = g.credited + open.credit
FROM (
  SELECT least($5::bigint, allotted_cum - credited) AS credit FROM pool_generation
  WHERE tenant_id = $1 AND window_id = $2 AND end_day = $3 AND generation = $4 AND NOT closed
  FOR UPDATE
) open
WHERE g.tenant_id = $1 AND g.window_id = $2 AND g.end_day = $3 AND g.generation = $4
RETURNING open.credit;

-- name: lock_shards
-- Locks token buckets' shards in key order and gives them; a new one gets generation 0. $1 tenant ids, $2 limit names,
-- $3 shards pairwise.
INSERT INTO bucket_shard AS b (tenant_id, limit_name, shard, generation, opened_at_us)
SELECT tenant_id, limit_name, shard, 0, 0
FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS n (tenant_id, limit_name, shard)
ORDER BY tenant_id, limit_name, shard
ON CONFLICT (tenant_id, limit_name, shard) DO UPDATE SET generation = b.generation
RETURNING tenant_id, limit_name, shard, generation;

-- name: update_shards
-- Writes shards that are locked. $1 tenant ids, $2 limit names, $3 shards, $4 generations pairwise, $5 ledger time.
UPDATE bucket_shard b SET generation = n.generation, opened_at_us = $5
FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::bigint[]) AS n (tenant_id, limit_name, shard, generation)
WHERE b.tenant_id = n.tenant_id AND b.limit_name = n.limit_name AND b.shard = n.shard;

-- name: open_shards
-- Reads every shard of token buckets.
SELECT tenant_id, limit_name, shard, generation FROM bucket_shard WHERE generation > 0;
