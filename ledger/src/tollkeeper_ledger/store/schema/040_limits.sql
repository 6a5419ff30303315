-- How units leave limits: identities, their windows, pools' generations, leases, and what holders consumed.
--
-- Times are microseconds of ledger time (UTC). A window's id is 16 bytes whose first four are its end day (days since
-- 1970-01-01, big-endian), so that an id alone finds its partition. Lock order: cursors in key order, then windows in
-- id order.

-- One row per identity (tenant, limit name, key): locked to open a window, so two first uses make one window.
CREATE TABLE limit_cursor (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  key_hash bytea NOT NULL CONSTRAINT limit_cursor_key_hash_length CHECK (octet_length(key_hash) IN (0, 16)),
  -- The key's values in the rule's order, for reports.
  key_values text[] NOT NULL,
  -- Generations of this identity's pools so far; goes on over windows and resets.
  generation_n bigint NOT NULL DEFAULT 0,
  -- The two newest windows. A holder may lease the next one before the present one has ended.
  older_id bytea,
  older_start_us bigint,
  older_end_us bigint,
  newer_id bytea NOT NULL,
  newer_start_us bigint NOT NULL,
  newer_end_us bigint NOT NULL,
  -- Every window that ends at or before this is over for good; none is opened there again.
  floor_us bigint NOT NULL,
  PRIMARY KEY (tenant_id, limit_name, key_hash),
  CONSTRAINT limit_cursor_window_order CHECK (older_end_us <= newer_start_us)
) WITH (fillfactor = 80);

CREATE TABLE limit_window (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL CONSTRAINT limit_window_id_length CHECK (octet_length(window_id) = 16),
  end_day integer NOT NULL,
  limit_name text NOT NULL,
  key_hash bytea NOT NULL,
  timeline bigint NOT NULL,
  round integer NOT NULL DEFAULT 0,
  start_us bigint NOT NULL,
  end_us bigint NOT NULL,
  amount bigint NOT NULL CONSTRAINT limit_window_amount_range CHECK (amount BETWEEN 0 AND 9007199254740991),
  amount_version bigint NOT NULL,
  allotted bigint NOT NULL CONSTRAINT limit_window_allotted_positive CHECK (allotted >= 0),
  ceiling bigint NOT NULL,
  -- The smallest need that was denied since the last notice; 0 = none.
  wanted bigint NOT NULL DEFAULT 0,
  -- The newest generation of its pool, 0 = none.
  generation bigint NOT NULL DEFAULT 0,
  -- Levels only: what is stored according to the records committed so far. A fall may be committed before its rise.
  stored bigint NOT NULL DEFAULT 0,
  -- Levels only: of these, units that no lease was used for (soft, shadow, open). Falls take from them first.
  stored_over bigint NOT NULL DEFAULT 0 CONSTRAINT limit_window_stored_over_positive CHECK (stored_over >= 0),
  -- Levels only: units that came back before the rises that stand for them were committed: those take so many no more.
  -- A window that ends owes nothing.
  owed bigint NOT NULL DEFAULT 0 CONSTRAINT limit_window_owed CHECK (owed = 0 OR (owed > 0 AND end_day = 2932895)),
  -- When the amount was last lowered below what is out, and when that had come back.
  lowered_at_us bigint,
  settled_at_us bigint,
  -- Its next round has begun: nothing is issued from it any more.
  replaced boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, window_id, end_day),
  CONSTRAINT limit_window_allotted_within_ceiling CHECK (allotted <= ceiling),
  CONSTRAINT limit_window_span CHECK (end_us > start_us)
) PARTITION BY RANGE (end_day);
CREATE INDEX limit_window_by_id ON limit_window (window_id);
CREATE INDEX limit_window_replaced ON limit_window (tenant_id) WHERE replaced;

CREATE TABLE pool_generation (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  -- timeline x 2^32 + n.
  generation bigint NOT NULL,
  allotted_cum bigint NOT NULL,
  -- Units that came back to the limit after the generation had ended.
  credited bigint NOT NULL DEFAULT 0,
  -- A holder has reported it as lost: it gets no more units.
  lost boolean NOT NULL DEFAULT false,
  -- The amount went below what is out: to be closed in Redis, and closed there.
  closing boolean NOT NULL DEFAULT false,
  closed boolean NOT NULL DEFAULT false,
  PRIMARY KEY (tenant_id, window_id, generation, end_day),
  CONSTRAINT pool_generation_credit CHECK (credited BETWEEN 0 AND allotted_cum)
) PARTITION BY RANGE (end_day);
CREATE INDEX pool_generation_to_close ON pool_generation (end_day) WHERE closing AND NOT closed;

-- What the ledger itself leased, per (holder, window), and its last answer there.
CREATE TABLE holder_lease (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  holder bytea NOT NULL CONSTRAINT holder_lease_holder_length CHECK (octet_length(holder) = 16),
  request_seq bigint NOT NULL,
  granted_cum bigint NOT NULL,
  returned_cum bigint NOT NULL,
  -- Units given by the last answer; null where it was no lease.
  last_give bigint,
  -- Levels only: rises committed that name this holder, those beyond the limit left out.
  recorded bigint NOT NULL DEFAULT 0,
  -- Levels only: its process has ended, and what it held came back.
  ended boolean NOT NULL DEFAULT false,
  -- Concurrency only: raised when the lease is reclaimed; 0 = no lease was ever given.
  lease_epoch bigint NOT NULL DEFAULT 0,
  -- Concurrency only: counts renewals. Who has seen it stand still for 40 s of its own time may reclaim the lease.
  renewals bigint NOT NULL DEFAULT 0,
  -- Concurrency only: units in flight as last reported.
  in_flight bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, window_id, holder, end_day),
  CONSTRAINT holder_lease_return CHECK (returned_cum BETWEEN 0 AND granted_cum)
) PARTITION BY RANGE (end_day);

-- Leases that have to be renewed, few among all: the reclaimer reads them again and again.
CREATE INDEX holder_lease_timed ON holder_lease (holder) WHERE lease_epoch > 0 AND granted_cum > returned_cum;
-- Levels' leases by holder; 2932895 is the end day of windows without end, so this is empty in every other partition.
CREATE INDEX holder_lease_standing ON holder_lease (holder) WHERE end_day = 2932895;

-- Processes that have ended, until what they held of levels came back: once their producer's log is committed up to
-- ended_seq.
CREATE TABLE ended_holder (
  holder bytea PRIMARY KEY CONSTRAINT ended_holder_length CHECK (octet_length(holder) = 16),
  producer_id uuid NOT NULL,
  ended_seq bigint NOT NULL,
  done boolean NOT NULL DEFAULT false
);
CREATE INDEX ended_holder_open ON ended_holder (producer_id) WHERE NOT done;

-- What was given back of generations to the ledger, in the name of which holder.
CREATE TABLE lost_return (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  generation bigint NOT NULL,
  holder bytea NOT NULL,
  returned_cum bigint NOT NULL,
  PRIMARY KEY (tenant_id, window_id, generation, holder, end_day)
) PARTITION BY RANGE (end_day);

-- What holders consumed of a window, from leases of any source, as they reported it.
CREATE TABLE holder_consumption (
  tenant_id uuid NOT NULL,
  window_id bytea NOT NULL,
  end_day integer NOT NULL,
  holder bytea NOT NULL,
  consumed_cum bigint NOT NULL,
  over_cum bigint NOT NULL,
  given_back_cum bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant_id, window_id, holder, end_day)
) PARTITION BY RANGE (end_day);

-- What holders said after a restore that they have of windows of an earlier timeline, for limits that learn.
CREATE TABLE learned_lease (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  key_hash bytea NOT NULL,
  -- The timeline in which it was said.
  timeline bigint NOT NULL,
  -- The window that it was leased from, as the holder knew it.
  window_id bytea NOT NULL CONSTRAINT learned_lease_window_length CHECK (octet_length(window_id) = 16),
  start_us bigint NOT NULL,
  end_us bigint NOT NULL,
  -- Whom it was leased to, and by what: 0 = the ledger, else a pool's generation.
  holder bytea NOT NULL CONSTRAINT learned_lease_holder_length CHECK (octet_length(holder) = 16),
  generation bigint NOT NULL,
  -- Units that did not go back.
  units bigint NOT NULL CONSTRAINT learned_lease_units_positive CHECK (units >= 0),
  -- Units that had gone into the generation, and that had left the limit, as that holder heard last.
  total bigint NOT NULL,
  allotted bigint NOT NULL,
  -- Units that the generation never gave, once it is closed in Redis; 0 where nobody can say.
  unspent bigint,
  PRIMARY KEY (tenant_id, limit_name, key_hash, timeline, window_id, holder, generation)
);
CREATE INDEX learned_lease_to_close ON learned_lease (timeline) WHERE generation > 0 AND unspent IS NULL;

-- One row per shard of a token bucket limit: the generation of its marker in Redis.
CREATE TABLE bucket_shard (
  tenant_id uuid NOT NULL REFERENCES tenant,
  limit_name text NOT NULL,
  shard integer NOT NULL CONSTRAINT bucket_shard_range CHECK (shard BETWEEN 0 AND 15),
  generation bigint NOT NULL,
  -- Ledger time at which this generation was opened.
  opened_at_us bigint NOT NULL,
  PRIMARY KEY (tenant_id, limit_name, shard)
);

CALL secure_tenant_table('limit_cursor', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('limit_window', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('pool_generation', 'tollkeeper_ingest');
CALL secure_tenant_table('holder_lease', 'tollkeeper_ingest');
CALL secure_tenant_table('lost_return', 'tollkeeper_ingest');
CALL secure_tenant_table('holder_consumption', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('learned_lease', 'tollkeeper_ingest');
CALL secure_tenant_table('bucket_shard', 'tollkeeper_ingest', 'tollkeeper_billing');

GRANT SELECT, INSERT, UPDATE ON limit_cursor, limit_window, pool_generation, holder_lease, lost_return,
  holder_consumption, bucket_shard TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE ON ended_holder TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON learned_lease TO tollkeeper_ingest;
GRANT SELECT ON limit_cursor, limit_window, holder_consumption TO tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT SELECT ON bucket_shard TO tollkeeper_admin, tollkeeper_billing;

-- Makes the partitions of windows that end on this day; those that are there stay.
CREATE FUNCTION ensure_limit_day(day integer) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp AS $$
DECLARE
  parent text;
  suffix text := to_char(date '1970-01-01' + day, 'YYYY_MM_DD');
BEGIN
  FOREACH parent IN ARRAY ARRAY['limit_window', 'pool_generation', 'holder_lease', 'lost_return', 'holder_consumption']
  LOOP
    PERFORM make_partition(parent::regclass, parent || '_' || suffix, format('FROM (%s) TO (%s)', day, day + 1));
  END LOOP;
END
$$;
GRANT EXECUTE ON FUNCTION ensure_limit_day(integer) TO tollkeeper_ingest;
