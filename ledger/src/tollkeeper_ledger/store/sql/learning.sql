-- What holders said after a restore that they have.

-- name: add_told
-- Keeps what holders said, never lowering a figure. All arrays pairwise: $1 tenant ids, $2 limit names, $3 key hashes,
-- $4 the timeline in which it is said, $5 window ids, $6 starts, $7 ends, $8 holders, $9 generations, $10 units,
-- $11 totals, $12 allotted. None stands twice.
INSERT INTO learned_lease AS l (tenant_id, limit_name, key_hash, timeline, window_id, start_us, end_us, holder,
  generation, units, total, allotted)
SELECT tenant_id, limit_name, key_hash, $4, window_id, start_us, end_us, holder, generation, units, total, allotted
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $5::bytea[], $6::bigint[], $7::bigint[], $8::bytea[], $9::bigint[],
  $10::bigint[], $11::bigint[], $12::bigint[])
  AS n (tenant_id, limit_name, key_hash, window_id, start_us, end_us, holder, generation, units, total, allotted)
ON CONFLICT (tenant_id, limit_name, key_hash, timeline, window_id, holder, generation) DO UPDATE
  SET units = greatest(l.units, excluded.units), total = greatest(l.total, excluded.total),
    allotted = greatest(l.allotted, excluded.allotted);

-- name: told
-- Reads what was said of identities. $1 tenant ids, $2 limit names, $3 key hashes pairwise.
SELECT l.tenant_id, l.limit_name, l.key_hash, l.timeline, l.window_id, l.start_us, l.end_us, l.holder, l.generation,
  l.units, l.total, l.allotted, l.unspent
FROM unnest($1::uuid[], $2::text[], $3::bytea[]) AS asked (tenant_id, limit_name, key_hash)
JOIN learned_lease l USING (tenant_id, limit_name, key_hash);

-- name: open_pools
-- Finds pools that were named and are not known to be closed. $1 at most so many.
SELECT DISTINCT tenant_id, limit_name, key_hash, window_id, generation
FROM learned_lease
WHERE generation > 0 AND unspent IS NULL AND timeline = (SELECT timeline FROM installation)
LIMIT $1;

-- name: close_pools
-- Notes what went into pools and what they never gave. All arrays pairwise: $1 tenant ids, $2 limit names, $3 key hashes,
-- $4 window ids, $5 generations, $6 what went in, 0 = unknown, $7 what was never given.
UPDATE learned_lease l SET unspent = n.unspent, total = greatest(l.total, n.total)
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::bigint[], $6::bigint[], $7::bigint[])
  AS n (tenant_id, limit_name, key_hash, window_id, generation, total, unspent)
WHERE l.tenant_id = n.tenant_id AND l.limit_name = n.limit_name AND l.key_hash = n.key_hash
  AND l.window_id = n.window_id AND l.generation = n.generation AND l.unspent IS NULL;

-- name: forget_ended
-- Forgets what was said of windows that are over. $1 ledger time.
DELETE FROM learned_lease WHERE end_us <= $1;
