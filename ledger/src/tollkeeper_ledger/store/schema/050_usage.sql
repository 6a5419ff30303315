-- What was used: producers, records, idempotency ids, what was refused, sums per minute, and the chain over all of it.
--
-- A record's identity is (tenant_id, id): usage_id holds it, usage_record holds the content. A batch is what one
-- AppendUsage committed; its row in usage_chain names the producer and the sequence numbers.

-- Numbers batches in the order in which their transactions began.
CREATE SEQUENCE usage_batch_number AS bigint;

-- Who sends usage, and how far it is committed. h is the hash over everything up to committed_seq.
CREATE TABLE producer (
  producer_id uuid PRIMARY KEY,
  incarnation bigint NOT NULL CONSTRAINT producer_incarnation_positive CHECK (incarnation > 0),
  -- The process that announced this incarnation.
  holder bytea NOT NULL CONSTRAINT producer_holder_length CHECK (octet_length(holder) BETWEEN 1 AND 64),
  format integer NOT NULL,
  committed_seq bigint NOT NULL CONSTRAINT producer_committed_seq_range CHECK (committed_seq >= 0),
  h bytea NOT NULL CONSTRAINT producer_h_length CHECK (octet_length(h) = 32),
  -- All that it received before this ledger time is committed; null = it has not said.
  watermark timestamptz,
  state text NOT NULL CONSTRAINT producer_state_known CHECK (state IN ('open', 'closed', 'lost')),
  opened_at timestamptz NOT NULL,
  -- Real time, for `silent`: idle times do not scale with ledger time.
  seen_at timestamptz NOT NULL
);

-- How far topics are read, by partition, as their readers say. Any tenant's record may be in one, so every period waits.
CREATE TABLE usage_topic (
  consumer_group text NOT NULL,
  topic text NOT NULL,
  partition integer NOT NULL,
  -- Everything before it is committed; where the partition ended when that was last asked.
  next_offset bigint NOT NULL,
  end_offset bigint NOT NULL,
  -- All that was in it before this ledger time is committed; null = not known.
  watermark timestamptz,
  state text NOT NULL CONSTRAINT usage_topic_state_known CHECK (state IN ('open', 'lost')),
  -- Real time, as a producer's.
  seen_at timestamptz NOT NULL,
  PRIMARY KEY (consumer_group, topic, partition)
);

-- What was committed before this ledger time is in a backup.
CREATE TABLE usage_safe (
  is_only boolean PRIMARY KEY DEFAULT true CONSTRAINT usage_safe_one_row CHECK (is_only),
  safe_before timestamptz NOT NULL
);

-- Which producers served a tenant: a period closes when their watermarks have passed its end.
CREATE TABLE producer_tenant (
  tenant_id uuid NOT NULL REFERENCES tenant,
  producer_id uuid NOT NULL REFERENCES producer,
  PRIMARY KEY (tenant_id, producer_id)
);

-- Stored records, one partition per month of event time (UTC). Units of meter_ids[i] are units[i].
CREATE TABLE usage_record (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  event_time timestamptz NOT NULL,
  received_at timestamptz NOT NULL,
  batch_id bigint NOT NULL,
  seq bigint NOT NULL,
  -- Bits of tollkeeper.ledger.v1.RecordFlag.
  flags smallint NOT NULL,
  id text COLLATE "C" NOT NULL,
  meter_ids integer[] NOT NULL,
  units bigint[] NOT NULL,
  attributes jsonb NOT NULL,
  -- First 8 bytes of the hash over all of this row, so that a row that was changed is found by itself.
  row_check bigint NOT NULL,
  PRIMARY KEY (tenant_id, event_time, id),
  CONSTRAINT usage_record_quantities
    CHECK (cardinality(meter_ids) BETWEEN 1 AND 16 AND cardinality(units) = cardinality(meter_ids))
) PARTITION BY RANGE (event_time);
-- Voids are few; whoever reads raw records asks for those of a span first.
CREATE INDEX usage_record_voids ON usage_record (tenant_id, event_time) WHERE flags & 32 <> 0;
-- Batches lie together on disk, so a few pages of this index find the records of a batch.
CREATE INDEX usage_record_by_batch ON usage_record USING brin (batch_id) WITH (pages_per_range = 16);

-- Every (tenant, id) that was stored, whatever its event time.
CREATE TABLE usage_id (
  tenant_id uuid NOT NULL,
  id text COLLATE "C" NOT NULL,
  content_hash bytea NOT NULL CONSTRAINT usage_id_hash_length CHECK (octet_length(content_hash) = 32),
  batch_id bigint NOT NULL,
  seq bigint NOT NULL,
  PRIMARY KEY (tenant_id, id)
) PARTITION BY HASH (tenant_id, id);
CREATE INDEX usage_id_by_batch ON usage_id USING brin (batch_id) WITH (pages_per_range = 16);

-- Records that were not stored, with why. tenant_id is all zeros where the tenant is unknown.
CREATE TABLE usage_quarantine (
  tenant_id uuid NOT NULL,
  producer_id uuid NOT NULL,
  seq bigint NOT NULL,
  batch_id bigint NOT NULL,
  reason text NOT NULL,
  -- Path of the offending field; empty where the record as a whole is refused.
  field text NOT NULL,
  content_hash bytea NOT NULL CONSTRAINT usage_quarantine_hash_length CHECK (octet_length(content_hash) = 32),
  -- The record as canonical JSON in UTF-8: bytes, because a refused record may hold what text can't.
  record bytea NOT NULL,
  quarantined_at timestamptz NOT NULL,
  -- As in usage_record.
  row_check bigint NOT NULL,
  PRIMARY KEY (tenant_id, producer_id, seq)
);
CREATE INDEX usage_quarantine_by_batch ON usage_quarantine USING brin (batch_id) WITH (pages_per_range = 16);
CREATE INDEX usage_quarantine_by_seq ON usage_quarantine (producer_id, seq);

-- What operators did about records in quarantine, numbered from 1. A record that was released, found to be stored, or
-- discarded is done with; `refused` leaves it where it is.
CREATE TABLE usage_quarantine_act (
  tenant_id uuid NOT NULL,
  producer_id uuid NOT NULL,
  seq bigint NOT NULL,
  number integer NOT NULL CONSTRAINT usage_quarantine_act_number_positive CHECK (number > 0),
  outcome text NOT NULL CONSTRAINT usage_quarantine_act_outcome_known
    CHECK (outcome IN ('released', 'duplicate', 'discarded', 'refused')),
  -- Why it was refused again; empty for the other outcomes.
  reason text NOT NULL,
  field text NOT NULL,
  -- Why the operator did it.
  note text NOT NULL,
  actor text NOT NULL,
  at timestamptz NOT NULL,
  -- Batch and number of the stored record, for `released` and `duplicate`; else 0.
  batch_id bigint NOT NULL,
  batch_seq bigint NOT NULL,
  -- As in usage_record.
  row_check bigint NOT NULL,
  PRIMARY KEY (tenant_id, producer_id, seq, number),
  CONSTRAINT usage_quarantine_act_of FOREIGN KEY (tenant_id, producer_id, seq) REFERENCES usage_quarantine
);
-- Nobody can release twice, or release what another has discarded.
CREATE UNIQUE INDEX usage_quarantine_act_end ON usage_quarantine_act (tenant_id, producer_id, seq)
  WHERE outcome <> 'refused';

-- How reservations ended whose records another producer than their home sent, until the home has taken it in. The home
-- alone gives units back; without this it would never hear.
CREATE TABLE settlement (
  tenant_id uuid NOT NULL,
  reservation_id bytea NOT NULL
    CONSTRAINT settlement_reservation_length CHECK (octet_length(reservation_id) = 16),
  -- The producer whose log holds the reservation. It may have sent nothing yet, so no row of `producer` is needed.
  home uuid NOT NULL,
  -- Units of meter_ids[i] are units[i].
  meter_ids integer[] NOT NULL,
  units bigint[] NOT NULL,
  committed_at timestamptz NOT NULL,
  PRIMARY KEY (tenant_id, reservation_id),
  CONSTRAINT settlement_quantities CHECK (cardinality(units) = cardinality(meter_ids))
);
CREATE INDEX settlement_by_home ON settlement (home);
CREATE INDEX settlement_by_age ON settlement (committed_at);

-- Exact sums per minute of event time, keyed by segment so that a close cuts exactly. Late usage stands in the segment
-- that bills it, under the minute of its event. A void of a closed segment's record counts below 0 in a later segment.
CREATE TABLE usage_rollup_minute (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  meter_id integer NOT NULL,
  -- Values of the meter's dimensions, canonical JSON.
  dims text COLLATE "C" NOT NULL,
  minute timestamptz NOT NULL,
  -- Below 0 where levels fell by more than they rose.
  units numeric(38, 0) NOT NULL,
  -- Records less voids.
  records bigint NOT NULL,
  PRIMARY KEY (tenant_id, segment_id, meter_id, dims, minute)
) PARTITION BY RANGE (minute);

-- The same per quarter of an hour: every time zone's hours, days and months consist of them.
CREATE TABLE usage_rollup_quarter (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  meter_id integer NOT NULL,
  dims text COLLATE "C" NOT NULL,
  quarter timestamptz NOT NULL,
  units numeric(38, 0) NOT NULL,
  records bigint NOT NULL,
  PRIMARY KEY (tenant_id, meter_id, quarter, segment_id, dims)
) PARTITION BY RANGE (quarter);

-- What min, max, latest, time_weighted and percentile meters need beside sums, for reports, so of all segments together.
-- domain/usage_aggregate.py says what a state is. Voided records are not in it.
CREATE TABLE usage_rollup_state (
  tenant_id uuid NOT NULL,
  meter_id integer NOT NULL,
  dims text COLLATE "C" NOT NULL,
  quarter timestamptz NOT NULL,
  state jsonb NOT NULL,
  PRIMARY KEY (tenant_id, meter_id, quarter, dims)
) PARTITION BY RANGE (quarter);

-- Distinct values of unique meters per quarter of an hour: exact, as 128 bits of their SHA-256.
CREATE TABLE usage_rollup_value (
  tenant_id uuid NOT NULL,
  segment_id uuid NOT NULL,
  meter_id integer NOT NULL,
  dims text COLLATE "C" NOT NULL,
  quarter timestamptz NOT NULL,
  value bytea NOT NULL CONSTRAINT usage_rollup_value_length CHECK (octet_length(value) = 16),
  -- Records with the value less voids.
  records bigint NOT NULL,
  PRIMARY KEY (tenant_id, meter_id, quarter, segment_id, dims, value)
) PARTITION BY RANGE (quarter);

-- The last reading of each OTLP counter that only grows, so that the next one adds what is new. Written with the record
-- of what it added, under the lock of that way in. A series is a digest and says nothing of tenants.
CREATE TABLE metric_series (
  series bytea PRIMARY KEY CONSTRAINT metric_series_length CHECK (octet_length(series) = 32),
  start_ns bigint NOT NULL,
  time_ns bigint NOT NULL,
  -- In the metric's own unit.
  total numeric NOT NULL CONSTRAINT metric_series_total CHECK (total >= 0),
  kept_at timestamptz NOT NULL,
  CONSTRAINT metric_series_times CHECK (start_ns > 0 AND time_ns >= start_ns)
);
CREATE INDEX metric_series_by_age ON metric_series (kept_at);

-- One link per batch that took sequence numbers. hash = SHA-256("tollkeeper.link.v1", stream, position, hash of the
-- link before, SHA-256 over all that it says of the batch); domain/usage_chain.py is the definition.
CREATE TABLE usage_chain (
  stream integer NOT NULL,
  position bigint NOT NULL CONSTRAINT usage_chain_position_positive CHECK (position > 0),
  batch_id bigint NOT NULL CONSTRAINT usage_chain_batch_unique UNIQUE,
  producer_id uuid NOT NULL REFERENCES producer,
  incarnation bigint NOT NULL,
  first_seq bigint NOT NULL,
  last_seq bigint NOT NULL,
  -- The producer's h at last_seq.
  h bytea NOT NULL CONSTRAINT usage_chain_h_length CHECK (octet_length(h) = 32),
  -- Merkle root over the content hashes of the stored records, grouped by tenant.
  merkle_root bytea NOT NULL CONSTRAINT usage_chain_merkle_length CHECK (octet_length(merkle_root) = 32),
  -- Hash over the stored rows in sequence order, with what content hashes leave out.
  rows_digest bytea NOT NULL CONSTRAINT usage_chain_rows_length CHECK (octet_length(rows_digest) = 32),
  -- The same over what went to quarantine.
  refused_digest bytea NOT NULL CONSTRAINT usage_chain_refused_length CHECK (octet_length(refused_digest) = 32),
  stored integer NOT NULL,
  duplicates integer NOT NULL,
  conflicts integer NOT NULL,
  quarantined integer NOT NULL,
  -- Sequence numbers that holes took.
  holes bigint NOT NULL,
  hash bytea NOT NULL CONSTRAINT usage_chain_hash_length CHECK (octet_length(hash) = 32),
  committed_at timestamptz NOT NULL,
  PRIMARY KEY (stream, position),
  CONSTRAINT usage_chain_span CHECK (first_seq > 0 AND last_seq >= first_seq)
);
CREATE INDEX usage_chain_by_producer ON usage_chain (producer_id, committed_at);
CREATE INDEX usage_chain_by_time ON usage_chain (committed_at);
CREATE INDEX usage_chain_by_seq ON usage_chain (producer_id, last_seq);

-- Last link of each stream, and totals, so that nobody counts rows.
CREATE TABLE usage_chain_head (
  stream integer PRIMARY KEY CONSTRAINT usage_chain_head_stream_range CHECK (stream >= 0),
  position bigint NOT NULL,
  hash bytea NOT NULL CONSTRAINT usage_chain_head_hash_length CHECK (octet_length(hash) = 32),
  stored_total bigint NOT NULL,
  quarantined_total bigint NOT NULL
);

-- Heads of all streams, signed each minute; the same lines are kept outside of Postgres.
CREATE TABLE usage_root (
  root_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  signed_at timestamptz NOT NULL,
  -- Canonical JSON; domain/usage_proof.py is the definition.
  statement bytea NOT NULL,
  signature bytea NOT NULL CONSTRAINT usage_root_signature_length CHECK (octet_length(signature) = 64),
  public_key bytea NOT NULL CONSTRAINT usage_root_key_length CHECK (octet_length(public_key) = 32)
);

CALL secure_tenant_table('producer_tenant', 'tollkeeper_ingest', 'tollkeeper_billing');
-- The owner too: it counts the records of a month before they leave for a file.
CALL secure_tenant_table('usage_record', 'tollkeeper_ingest', 'tollkeeper_billing', 'tollkeeper_owner');
-- The owner too: it deletes ids that have expired, of all tenants.
CALL secure_tenant_table('usage_id', 'tollkeeper_ingest', 'tollkeeper_billing', 'tollkeeper_owner');
CALL secure_tenant_table('settlement', 'tollkeeper_ingest');
CALL secure_tenant_table('usage_quarantine', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_quarantine_act', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_minute', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_quarter', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_state', 'tollkeeper_ingest', 'tollkeeper_billing');
CALL secure_tenant_table('usage_rollup_value', 'tollkeeper_ingest', 'tollkeeper_billing');

GRANT USAGE ON SEQUENCE usage_batch_number TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE ON producer, usage_topic, usage_safe, usage_chain_head TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_rollup_minute, usage_rollup_quarter, usage_rollup_state,
  usage_rollup_value TO tollkeeper_ingest;
GRANT SELECT, INSERT, DELETE ON settlement TO tollkeeper_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON metric_series TO tollkeeper_ingest;
GRANT SELECT, INSERT ON producer_tenant, usage_record, usage_id, usage_quarantine, usage_quarantine_act, usage_chain
  TO tollkeeper_ingest;
GRANT SELECT ON producer, producer_tenant, usage_record, usage_id, usage_quarantine, usage_quarantine_act,
  usage_rollup_minute, usage_rollup_quarter, usage_rollup_state, usage_rollup_value, usage_chain, usage_chain_head
  TO tollkeeper_billing;
GRANT SELECT, INSERT ON usage_root TO tollkeeper_billing;
GRANT SELECT ON usage_topic TO tollkeeper_billing;
GRANT SELECT ON usage_record, usage_quarantine, usage_quarantine_act, usage_rollup_minute, usage_rollup_quarter,
  usage_rollup_state, usage_rollup_value TO tollkeeper_admin, tollkeeper_reader;

-- Row triggers come to partitions with the attachment; TRUNCATE triggers don't, so the makers below add them.
CREATE TRIGGER usage_record_append_only BEFORE UPDATE OR DELETE ON usage_record
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_record_no_truncate BEFORE TRUNCATE ON usage_record
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
-- Ids expire, so rows may go (no runtime role may delete them); none may change.
CREATE TRIGGER usage_id_no_update BEFORE UPDATE ON usage_id
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_id_no_truncate BEFORE TRUNCATE ON usage_id
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_chain_append_only BEFORE UPDATE OR DELETE ON usage_chain
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_chain_no_truncate BEFORE TRUNCATE ON usage_chain
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_append_only BEFORE UPDATE OR DELETE ON usage_quarantine
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_no_truncate BEFORE TRUNCATE ON usage_quarantine
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_act_append_only BEFORE UPDATE OR DELETE ON usage_quarantine_act
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_quarantine_act_no_truncate BEFORE TRUNCATE ON usage_quarantine_act
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_root_append_only BEFORE UPDATE OR DELETE ON usage_root
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_root_no_truncate BEFORE TRUNCATE ON usage_root
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Makes the partitions of one month of records and rollups. Safe to repeat and to race. Bounded, so that a runtime
-- role can't fill the catalogue with partitions.
CREATE FUNCTION make_usage_month(month date) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp
  SET timezone = 'UTC' AS $$
DECLARE
  suffix text := to_char(month, 'YYYYMM');
  bounds text := format('FROM (%L) TO (%L)', month::timestamptz, (month + interval '1 month')::timestamptz);
BEGIN
  IF month <> date_trunc('month', month) OR month NOT BETWEEN date '1970-01-01' AND date '2199-12-01' THEN
    RAISE EXCEPTION 'no month of usage starts on %', month USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM make_partition('usage_record', 'usage_record_' || suffix, bounds);
  IF NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                 WHERE c.relname = 'usage_record_' || suffix AND c.relnamespace = 'tollkeeper'::regnamespace
                   AND t.tgname = 'usage_record_no_truncate') THEN
    EXECUTE format('CREATE TRIGGER usage_record_no_truncate BEFORE TRUNCATE ON %I
      FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', 'usage_record_' || suffix);
  END IF;
  -- Each batch updates most of what the one before it touched, so half of every page is left to that.
  PERFORM make_partition('usage_rollup_minute', 'usage_rollup_minute_' || suffix, bounds, 50);
  PERFORM make_partition('usage_rollup_quarter', 'usage_rollup_quarter_' || suffix, bounds, 50);
  PERFORM make_partition('usage_rollup_state', 'usage_rollup_state_' || suffix, bounds);
  PERFORM make_partition('usage_rollup_value', 'usage_rollup_value_' || suffix, bounds);
END
$$;
GRANT EXECUTE ON FUNCTION make_usage_month(date) TO tollkeeper_ingest;

DO $$
BEGIN
  FOR part IN 0..7 LOOP
    PERFORM make_partition('usage_id', format('usage_id_%s', part), format('WITH (MODULUS 8, REMAINDER %s)', part));
    EXECUTE format('CREATE TRIGGER usage_id_no_truncate BEFORE TRUNCATE ON usage_id_%s
      FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', part);
  END LOOP;
END
$$;
