-- Installation, changes, answers, clock.

-- name: lock_request
-- Locks a request id until the transaction ends. $1 rpc/request_id.
SELECT pg_advisory_xact_lock(hashtextextended($1, 17));

-- name: find_answer
-- Finds the first answer of a request. $1 rpc, $2 request id.
SELECT digest, answer FROM answered_request WHERE rpc = $1 AND request_id = $2;

-- name: keep_answer
-- Keeps the first answer of a request. $1 rpc, $2 request id, $3 digest, $4 answer.
INSERT INTO answered_request (rpc, request_id, digest, answer) VALUES ($1, $2, $3, $4);

-- name: next_change
-- Takes the next change number; the row stays locked until commit.
UPDATE change_counter SET last = last + 1 RETURNING last;

-- name: last_change
-- Reads the number of the last committed change.
SELECT last FROM change_counter;

-- name: insert_tenant_changes
-- Says which tenants a change touched. $1 change, $2 tenant ids.
INSERT INTO tenant_change (tenant_id, change) SELECT unnest($2::uuid[]), $1;

-- name: changes_after
-- Reads which tenants changed. $1 change number already seen, $2 up to this one.
SELECT tenant_id, max(change) AS change FROM tenant_change WHERE change > $1 AND change <= $2 GROUP BY tenant_id;

-- name: notify
-- Announces something to every replica at commit. $1 channel, $2 text up to 7,999 bytes.
SELECT pg_notify($1, $2);

-- name: installation
-- Reads what this installation is.
SELECT installation_id, timeline, witness FROM installation;

-- name: token_keys
-- Reads the keys of reservation tokens, newest first.
SELECT key_id, secret FROM token_key ORDER BY key_id DESC;

-- name: clock
-- Reads ledger time and its setting.
SELECT ledger_now() AS now, speed_milli, version FROM clock_setting;

-- name: ledger_now
-- Reads ledger time.
SELECT ledger_now();

-- name: set_clock
-- Sets the clock, never back, without waiting for the disk. $1 ledger time or null, $2 speed or null.
WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true))
UPDATE clock_setting SET
  origin = greatest(coalesce($1::timestamptz, now.ledger), now.ledger),
  started_at = now.wall,
  speed_milli = coalesce($2::bigint, speed_milli),
  version = version + 1,
  floor = greatest(coalesce($1::timestamptz, now.ledger), now.ledger)
FROM (SELECT ledger_now() AS ledger, clock_timestamp() AS wall) now, relaxed
RETURNING origin AS now, speed_milli, version;

-- name: start_clock
-- Starts a clock that was never set at another time, also a past one. $1 ledger time.
UPDATE clock_setting SET origin = $1, started_at = clock_timestamp(), floor = $1, version = version + 1
WHERE version = 1
RETURNING version;

-- name: raise_floor
-- Keeps ledger time that has been seen, so that a clock that steps back is held. Does not wait for the disk.
WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true))
UPDATE clock_setting SET floor = ledger_now() FROM relaxed;
