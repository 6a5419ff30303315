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

-- name: expire_answers
-- Deletes the oldest answers given so long ago. $1 age, $2 at most so many.
DELETE FROM answered_request WHERE (rpc, request_id) IN (
  SELECT rpc, request_id FROM answered_request WHERE answered_at < clock_timestamp() - $1::interval
  ORDER BY answered_at LIMIT $2);

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
SELECT installation_id, timeline FROM installation;

-- name: commit_witness
-- Commits a witness with what this transaction issues, and tells what may be issued. $1 16 random bytes; the newest
-- witness that anybody has shown: $2 timeline, $3 number, 0 = none, $4 value. `known` = Postgres has it, or it is too old
-- to tell.
WITH fresh AS (
  INSERT INTO witness (timeline, value) SELECT timeline, $1 FROM installation RETURNING number
)
SELECT fresh.number, i.timeline, i.frozen_before_us, i.learning_until_us, c.held_at_us IS NOT NULL AS is_held,
  $3 = 0 OR $2 < i.timeline OR ($2 = i.timeline AND ($3 <= i.witness_floor
    OR EXISTS (SELECT FROM witness w WHERE w.number = $3 AND w.timeline = $2 AND w.value = $4))) AS known
FROM fresh, installation i, clock_setting c;

-- name: lock_installation
-- Locks the installation until the transaction ends, and gives it.
SELECT timeline, frozen_before_us FROM installation FOR UPDATE;

-- name: next_timeline
-- Begins the timeline after a restore. $1 the new one, $2 ledger time, $3 windows that began before this are frozen,
-- $4 until then limits that learn hear what sidecars have.
UPDATE installation SET timeline = $1, restored_at_us = $2, frozen_before_us = $3, learning_until_us = $4;

-- name: thaw
-- Ends the stop after a restore.
UPDATE installation SET frozen_before_us = 0, learning_until_us = 0;

-- name: forget_witnesses
-- Forgets witnesses older than an hour.
WITH gone AS (DELETE FROM witness WHERE committed_at < clock_timestamp() - interval '1 hour' RETURNING number),
  newest AS (SELECT max(number) AS number FROM gone)
UPDATE installation SET witness_floor = greatest(witness_floor, newest.number) FROM newest WHERE newest.number IS NOT NULL;

-- name: ledger_state
-- Reads where the ledger stands.
SELECT i.installation_id, i.timeline, i.restored_at_us, i.frozen_before_us, i.learning_until_us, c.held_at_us, c.jump_us
FROM installation i, clock_setting c;

-- name: hold_clock
-- Holds window opening after a forward jump of the clock; one that is held stays so. $1 ledger time, $2 how far.
UPDATE clock_setting SET held_at_us = $1, jump_us = $2 WHERE held_at_us IS NULL;

-- name: release_clock
-- Lets windows be opened again; gives whether they were not.
UPDATE clock_setting SET held_at_us = NULL, jump_us = NULL WHERE held_at_us IS NOT NULL RETURNING true;

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
-- Not while a forward jump is unconfirmed: the clock may yet be set right.
WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true))
UPDATE clock_setting SET floor = ledger_now() FROM relaxed WHERE held_at_us IS NULL;
