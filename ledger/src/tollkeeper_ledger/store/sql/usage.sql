-- Usage: producers, records, ids, rollups, the chain. Columns of a batch come joined as one text each, because a text
-- costs a twentieth of an array to send: `$n::text::bigint[]` is an array literal, string_to_table splits at $separator.
-- Array literals that rows point into are read once, in a subquery that OFFSET 0 keeps whole, not once a row.

-- name: find_producers
-- Locks producers in the order of their ids; says since when this server runs as well. $1 producer ids.
SELECT producer_id, incarnation, holder, committed_seq, h, pg_postmaster_start_time() AS server_started_at
FROM producer WHERE producer_id = ANY ($1::uuid[]) ORDER BY producer_id FOR UPDATE;

-- name: add_producer
-- Adds a producer that is new. $1 id, $2 incarnation, $3 holder, $4 format, $5 h(0), $6 ledger time.
INSERT INTO producer (producer_id, incarnation, holder, format, committed_seq, h, state, opened_at, seen_at)
VALUES ($1, $2, $3, $4, 0, $5, 'open', $6, clock_timestamp())
ON CONFLICT (producer_id) DO NOTHING;

-- name: open_producer
-- Takes the announcement of a process. $1 id, $2 incarnation, $3 holder, $4 format, $5 ledger time.
UPDATE producer
SET incarnation = $2, holder = $3, format = $4, state = 'open', opened_at = $5, seen_at = clock_timestamp()
WHERE producer_id = $1;

-- name: advance_producers
-- Moves producers, which are locked, to the end of their batches. Columns $1 ids, $2 committed_seq, $3 h, $4 watermarks,
-- null = none, $5 closing. One that an operator gave up stays lost until its watermark moves.
UPDATE producer known
SET committed_seq = moved.committed_seq, h = moved.h, watermark = greatest(known.watermark, moved.watermark),
    state = CASE WHEN moved.closing THEN 'closed'
                 WHEN known.state = 'lost'
                   AND NOT coalesce(moved.watermark > coalesce(known.watermark, '-infinity'), false) THEN 'lost'
                 ELSE 'open' END,
    seen_at = clock_timestamp()
FROM unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::timestamptz[], $5::boolean[])
  AS moved (producer_id, committed_seq, h, watermark, closing)
WHERE known.producer_id = moved.producer_id;

-- name: see_producer
-- Notes that a producer was heard of. $1 id.
UPDATE producer SET seen_at = clock_timestamp() WHERE producer_id = $1;

-- name: safe_seq
-- Gives what was committed up to then, or to what a backup has. $1 producer id, $2 ledger time.
SELECT last_seq FROM usage_chain
WHERE producer_id = $1 AND committed_at <= greatest($2, (SELECT safe_before FROM usage_safe)) ORDER BY committed_at DESC, last_seq DESC LIMIT 1;

-- name: serve_tenants
-- Notes tenants that producers serve. $1 tenant ids, $2 producer ids, of equal length.
INSERT INTO producer_tenant (tenant_id, producer_id)
SELECT tenant_id, producer_id FROM unnest($1::text::uuid[], $2::text::uuid[]) AS served (tenant_id, producer_id)
WHERE NOT EXISTS (SELECT FROM producer_tenant known
                  WHERE known.tenant_id = served.tenant_id AND known.producer_id = served.producer_id)
ORDER BY tenant_id, producer_id
ON CONFLICT (tenant_id, producer_id) DO NOTHING;

-- name: tenant_ids
-- Gives the ids of tenants that exist. $1 wire ids in lines.
SELECT wire_id, tenant_id FROM tenant WHERE wire_id = ANY (string_to_array($1::text, E'\n'));

-- name: meters_named
-- Gives meters that exist. $1 names.
SELECT name, meter_id, aggregation, dimensions, value_attribute, pseudonymised, late_max_s, early_max_s
FROM meter WHERE name = ANY ($1::text[]);

-- name: meters_all
-- Gives every meter.
SELECT name, meter_id, aggregation, dimensions, value_attribute, pseudonymised, late_max_s, early_max_s FROM meter;

-- name: next_batches
-- Takes the numbers of batches. $1 how many.
SELECT nextval('usage_batch_number') AS number FROM generate_series(1, $1::integer) ORDER BY 1;

-- name: claim_ids
-- Claims ids that nobody has; in id order, so that two batches with the same ids wait instead of deadlocking.
-- $1 tenant ids, $2 per record its place in $1, $3 ids, $4 separator, $5 seqs, $6 content hashes, $7 batches, $8 the
-- places from 1 where their records begin. Of records with one id the first stands.
INSERT INTO usage_id (tenant_id, id, content_hash, batch_id, seq)
SELECT tenant_ids[tenant] AS tenant_id, id, substr($6::bytea, (place::integer - 1) * 32 + 1, 32),
       ($7::bigint[])[width_bucket(place, $8::bigint[])], seq
FROM (SELECT $1::text::uuid[] AS tenant_ids OFFSET 0) AS named, ROWS FROM (unnest($2::text::integer[]), string_to_table($3::text, $4::text), unnest($5::text::bigint[]))
  WITH ORDINALITY AS record (tenant, id, seq, place)
ORDER BY tenant_id, id COLLATE "C", place
ON CONFLICT (tenant_id, id) DO NOTHING;

-- name: claim_free_ids
-- Claims ids as claim_ids does, or fails where somebody has one: a third less work per id, which is not looked for first
-- and needs no second word. Arguments as claim_ids.
INSERT INTO usage_id (tenant_id, id, content_hash, batch_id, seq)
SELECT tenant_ids[tenant] AS tenant_id, id, substr($6::bytea, (place::integer - 1) * 32 + 1, 32),
       ($7::bigint[])[width_bucket(place, $8::bigint[])], seq
FROM (SELECT $1::text::uuid[] AS tenant_ids OFFSET 0) AS named, ROWS FROM (unnest($2::text::integer[]), string_to_table($3::text, $4::text), unnest($5::text::bigint[]))
  WITH ORDINALITY AS record (tenant, id, seq, place)
ORDER BY tenant_id, id COLLATE "C", place;

-- name: taken_ids
-- Gives the records whose id another record has, and whether that has the same content. Arguments as claim_ids.
SELECT place::integer - 1 AS place,
       known.content_hash = substr($6::bytea, (place::integer - 1) * 32 + 1, 32) AS same
FROM (SELECT $1::text::uuid[] AS tenant_ids OFFSET 0) AS named
CROSS JOIN ROWS FROM (unnest($2::text::integer[]), string_to_table($3::text, $4::text), unnest($5::text::bigint[]))
  WITH ORDINALITY AS record (tenant, id, seq, place)
JOIN usage_id known ON known.tenant_id = tenant_ids[record.tenant] AND known.id = record.id
WHERE known.batch_id <> ($7::bigint[])[width_bucket(place, $8::bigint[])] OR known.seq <> record.seq
ORDER BY place;

-- name: stored_at
-- Gives the attributes and content hashes of stored records by their ids and event times: a look at one key of one
-- month each. Pairwise: $1 tenant ids, $2 ids, $3 event times.
SELECT known.tenant_id, known.id, known.content_hash, record.attributes
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS asked (tenant_id, id, event_time)
JOIN usage_id known ON known.tenant_id = asked.tenant_id AND known.id = asked.id
CROSS JOIN LATERAL (
  SELECT attributes FROM usage_record
  WHERE tenant_id = asked.tenant_id AND event_time = asked.event_time AND id = asked.id AND batch_id = known.batch_id
  OFFSET 0
) AS record;

-- name: stored_of_ids
-- Gives the attributes and content hashes of stored records by their ids alone. Pairwise: $1 tenant ids, $2 ids.
SELECT known.tenant_id, known.id, known.content_hash, record.attributes
FROM unnest($1::uuid[], $2::text[]) AS asked (tenant_id, id)
JOIN usage_id known ON known.tenant_id = asked.tenant_id AND known.id = asked.id
JOIN usage_record record
  ON record.tenant_id = known.tenant_id AND record.id = known.id AND record.batch_id = known.batch_id;

-- name: quarantined
-- Gives why a producer's records were refused. $1 producer id, $2 tenant ids, $3 first and $4 last seq.
SELECT seq, reason, field FROM usage_quarantine
WHERE tenant_id = ANY ($2::uuid[]) AND producer_id = $1 AND seq BETWEEN $3 AND $4;

-- name: taken_elsewhere
-- Gives which of a producer's committed records have an id that is kept for another record. $1 tenant ids, $2 per
-- record its place in $1, $3 ids, $4 separator, $5 seqs, $6 producer id.
SELECT record.seq
FROM (SELECT $1::text::uuid[] AS tenant_ids OFFSET 0) AS named
CROSS JOIN ROWS FROM (unnest($2::text::integer[]), string_to_table($3::text, $4::text), unnest($5::text::bigint[]))
  AS record (tenant, id, seq)
JOIN usage_id known ON known.tenant_id = tenant_ids[record.tenant] AND known.id = record.id
JOIN usage_chain link ON link.batch_id = known.batch_id
WHERE known.seq <> record.seq OR link.producer_id <> $6::uuid
ORDER BY record.seq;

-- name: add_records
-- Stores records. $1 tenant ids, $2 segment ids, $3 flags, $4 per record its place in $1 to $3; $5 meter ids of each
-- shape as array literals, $6 per record its place in $5; $7 ids, $8 separator, $9 seqs, $10 event times and
-- $11 receive times in microseconds, $12 units as array literals in lines, $13 attributes as JSON in lines,
-- $14 batches, $15 checks of the rows, $16 the places from 1 where the records of each batch begin.
INSERT INTO usage_record
  (tenant_id, segment_id, event_time, received_at, batch_id, seq, flags, id, meter_ids, units, attributes, row_check)
SELECT tenant_ids[part], segment_ids[part],
       timestamptz 'epoch' + interval '1 microsecond' * event_us,
       timestamptz 'epoch' + interval '1 microsecond' * received_us,
       ($14::bigint[])[width_bucket(place, $16::bigint[])], seq, part_flags[part], id, ($5::text[])[shape]::integer[], units::bigint[], attributes::jsonb,
       row_check
FROM (SELECT $1::text::uuid[] AS tenant_ids, $2::text::uuid[] AS segment_ids, $3::text::smallint[] AS part_flags
      OFFSET 0) AS named,
ROWS FROM (
  unnest($4::text::integer[]), unnest($6::text::integer[]), string_to_table($7::text, $8::text),
  unnest($9::text::bigint[]), unnest($10::text::bigint[]), unnest($11::text::bigint[]),
  string_to_table($12::text, E'\n'), string_to_table($13::text, E'\n'), unnest($15::text::bigint[]))
  WITH ORDINALITY AS record (part, shape, id, seq, event_us, received_us, units, attributes, row_check, place);

-- name: add_record_sums
-- Adds records to sums per quarter of an hour and per minute, either in key order. Pairs, in key order, $1 tenant ids and
-- $2 segment ids; of parts $3 pairs, what $4 units and $5 a record count for; series, in key order, $6 meter ids and
-- $7 dimensions in lines; quantities of labels $8 labels, $9 places from 1, $10 series; of records $11 parts, $12 labels,
-- $13 minutes since 1970, $14 units as array literals in lines. Notes the tenants for alerts.
WITH named AS MATERIALIZED (
  SELECT $1::text::uuid[] AS tenant_ids, $2::text::uuid[] AS segment_ids, $6::text::integer[] AS meter_ids,
         string_to_array($7::text, E'\n') AS dims
), summed AS MATERIALIZED (
  SELECT pair, series, minute, sum(units[place] * units_count) AS units, sum(record_count) AS records
  FROM (
    SELECT pairs[part] AS pair, units_counts[part] AS units_count, record_counts[part] AS record_count, label, minute,
           units::bigint[] AS units
    FROM (SELECT $3::text::integer[] AS pairs, $4::text::bigint[] AS units_counts, $5::text::bigint[] AS record_counts
          OFFSET 0) AS parts,
    ROWS FROM (unnest($11::text::integer[]), unnest($12::text::integer[]), unnest($13::text::integer[]),
               string_to_table($14::text, E'\n')) AS record (part, label, minute, units)
    OFFSET 0) AS record
  JOIN ROWS FROM (unnest($8::text::integer[]), unnest($9::text::integer[]), unnest($10::text::integer[]))
    AS quantity (label, place, series) USING (label)
  GROUP BY pair, series, minute
), minutes AS (
  INSERT INTO usage_rollup_minute AS stored (tenant_id, segment_id, meter_id, dims, minute, units, records)
  SELECT tenant_ids[pair], segment_ids[pair], meter_ids[series], dims[series],
         timestamptz 'epoch' + interval '1 minute' * minute, units, records
  FROM named, (SELECT * FROM summed ORDER BY pair, series, minute) AS added
  ON CONFLICT (tenant_id, segment_id, meter_id, dims, minute)
  DO UPDATE SET units = stored.units + excluded.units, records = stored.records + excluded.records
), noted AS (
  INSERT INTO alert_usage_hint (tenant_ids) SELECT tenant_ids FROM named
)
INSERT INTO usage_rollup_quarter AS stored (tenant_id, segment_id, meter_id, dims, quarter, units, records)
SELECT tenant_ids[pair], segment_ids[pair], meter_ids[series], dims[series],
       timestamptz 'epoch' + interval '15 minutes' * quarter, units, records
FROM named, (
  SELECT pair, series, minute / 15 AS quarter, sum(units) AS units, sum(records) AS records
  FROM summed GROUP BY pair, series, quarter ORDER BY pair, series, quarter) AS added
ON CONFLICT (tenant_id, meter_id, quarter, segment_id, dims)
DO UPDATE SET units = stored.units + excluded.units, records = stored.records + excluded.records;

-- name: add_sums
-- Adds to sums per quarter of an hour and per minute, either in the order given. $1 tenant ids, $2 segment ids; of
-- minutes $3 places in $1 and $2, $4 meter ids, $5 dimensions in lines, $6 starts in microseconds, $7 units, $8 records;
-- $9 to $14 the same of quarters. Notes the tenants for alerts.
WITH named AS MATERIALIZED (SELECT $1::text::uuid[] AS tenant_ids, $2::text::uuid[] AS segment_ids),
minutes AS (
  INSERT INTO usage_rollup_minute AS stored (tenant_id, segment_id, meter_id, dims, minute, units, records)
  SELECT tenant_ids[pair], segment_ids[pair], meter_id, dims,
         timestamptz 'epoch' + interval '1 microsecond' * start_us, units, records
  FROM named, ROWS FROM (
    unnest($3::text::integer[]), unnest($4::text::integer[]), string_to_table($5::text, E'\n'),
    unnest($6::text::bigint[]), unnest($7::text::numeric[]), unnest($8::text::bigint[]))
    AS added (pair, meter_id, dims, start_us, units, records)
  ON CONFLICT (tenant_id, segment_id, meter_id, dims, minute)
  DO UPDATE SET units = stored.units + excluded.units, records = stored.records + excluded.records
), noted AS (
  INSERT INTO alert_usage_hint (tenant_ids) SELECT tenant_ids FROM named
)
INSERT INTO usage_rollup_quarter AS stored (tenant_id, segment_id, meter_id, dims, quarter, units, records)
SELECT tenant_ids[pair], segment_ids[pair], meter_id, dims,
       timestamptz 'epoch' + interval '1 microsecond' * start_us, units, records
FROM named, ROWS FROM (
  unnest($9::text::integer[]), unnest($10::text::integer[]), string_to_table($11::text, E'\n'),
  unnest($12::text::bigint[]), unnest($13::text::numeric[]), unnest($14::text::bigint[]))
  AS added (pair, meter_id, dims, start_us, units, records)
ON CONFLICT (tenant_id, meter_id, quarter, segment_id, dims)
DO UPDATE SET units = stored.units + excluded.units, records = stored.records + excluded.records;

-- name: add_values
-- Counts records per distinct value, in the order given. $1 tenant ids, $2 segment ids, $3 meter ids, $4 dimensions,
-- $5 quarters in microseconds, $6 values, $7 records.
INSERT INTO usage_rollup_value AS stored (tenant_id, segment_id, meter_id, dims, quarter, value, records)
SELECT tenant_id, segment_id, meter_id, dims, timestamptz 'epoch' + interval '1 microsecond' * start_us, value, records
FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $4::text[], $5::bigint[], $6::bytea[], $7::bigint[])
  WITH ORDINALITY AS added (tenant_id, segment_id, meter_id, dims, start_us, value, records, place)
ORDER BY place
ON CONFLICT (tenant_id, meter_id, quarter, segment_id, dims, value)
DO UPDATE SET records = stored.records + excluded.records;

-- name: need_states
-- Has rows for states, null where they are new, in the order given. $1 tenant ids, $2 meter ids, $3 dimensions,
-- $4 quarters in microseconds.
INSERT INTO usage_rollup_state (tenant_id, meter_id, dims, quarter, state)
SELECT tenant_id, meter_id, dims, timestamptz 'epoch' + interval '1 microsecond' * start_us, 'null'
FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::bigint[])
  WITH ORDINALITY AS wanted (tenant_id, meter_id, dims, start_us, place)
ORDER BY place
ON CONFLICT (tenant_id, meter_id, quarter, dims) DO NOTHING;

-- name: lock_states
-- Locks states in the order given and gives them in that order. Arguments as need_states.
SELECT stored.state
FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::bigint[])
  WITH ORDINALITY AS wanted (tenant_id, meter_id, dims, start_us, place)
JOIN usage_rollup_state stored
  ON stored.tenant_id = wanted.tenant_id AND stored.meter_id = wanted.meter_id AND stored.dims = wanted.dims
  AND stored.quarter = timestamptz 'epoch' + interval '1 microsecond' * wanted.start_us
ORDER BY place FOR UPDATE OF stored;

-- name: write_states
-- Writes states. Arguments as need_states, $5 states as JSON in lines.
UPDATE usage_rollup_state stored SET state = wanted.state::jsonb
FROM ROWS FROM (unnest($1::uuid[]), unnest($2::integer[]), unnest($3::text[]), unnest($4::bigint[]),
                string_to_table($5::text, E'\n'))
  AS wanted (tenant_id, meter_id, dims, start_us, state)
WHERE stored.tenant_id = wanted.tenant_id AND stored.meter_id = wanted.meter_id AND stored.dims = wanted.dims
  AND stored.quarter = timestamptz 'epoch' + interval '1 microsecond' * wanted.start_us;

-- name: drop_states
-- Drops states of which no record is left. Arguments as need_states.
DELETE FROM usage_rollup_state stored
USING unnest($1::uuid[], $2::integer[], $3::text[], $4::bigint[]) AS wanted (tenant_id, meter_id, dims, start_us)
WHERE stored.tenant_id = wanted.tenant_id AND stored.meter_id = wanted.meter_id AND stored.dims = wanted.dims
  AND stored.quarter = timestamptz 'epoch' + interval '1 microsecond' * wanted.start_us;

-- name: stored_records
-- Gives records whose ids are kept. $1 tenant id, $2 ids.
SELECT record.id, event_time, flags, units, attributes,
       ARRAY(SELECT name FROM unnest(meter_ids) WITH ORDINALITY AS used (meter_id, place) JOIN meter USING (meter_id)
             ORDER BY place) AS meters
FROM usage_id known JOIN usage_record record USING (tenant_id, id, batch_id)
WHERE known.tenant_id = $1 AND known.id = ANY ($2::text[]);

-- name: records_of_quarters
-- Gives the records of quarters of an hour. $1 tenant ids, $2 quarters, of equal length.
SELECT record.tenant_id, segment_id, flags, event_time, id, meter_ids, units, attributes
FROM unnest($1::uuid[], $2::timestamptz[]) AS wanted (tenant_id, quarter)
JOIN usage_record record ON record.tenant_id = wanted.tenant_id
  AND record.event_time >= wanted.quarter AND record.event_time < wanted.quarter + interval '15 minutes';

-- name: drop_empty_minutes
-- Drops sums per minute in which nothing is left. $1 tenant ids, $2 from, $3 to, inclusive.
DELETE FROM usage_rollup_minute WHERE tenant_id = ANY ($1::uuid[]) AND minute BETWEEN $2 AND $3 AND units = 0 AND records = 0;

-- name: drop_empty_quarters
-- Drops sums per quarter of an hour in which nothing is left. $1 tenant ids, $2 from, $3 to, inclusive.
DELETE FROM usage_rollup_quarter WHERE tenant_id = ANY ($1::uuid[]) AND quarter BETWEEN $2 AND $3 AND units = 0 AND records = 0;

-- name: drop_empty_values
-- Drops distinct values in which nothing is left. $1 tenant ids, $2 from, $3 to, inclusive.
DELETE FROM usage_rollup_value WHERE tenant_id = ANY ($1::uuid[]) AND quarter BETWEEN $2 AND $3 AND records = 0;

-- name: add_quarantine
-- Keeps refused records. $1 producer id, $2 batch, $3 ledger time; columns $4 tenant ids, $5 seqs, $6 reasons,
-- $7 fields, $8 content hashes, $9 records, $10 checks.
INSERT INTO usage_quarantine
  (tenant_id, producer_id, seq, batch_id, reason, field, content_hash, record, quarantined_at, row_check)
SELECT tenant_id, $1::uuid, seq, $2::bigint, reason, field, content_hash, record, $3::timestamptz, row_check
FROM unnest($4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::bytea[], $9::bytea[], $10::bigint[])
  AS refused (tenant_id, seq, reason, field, content_hash, record, row_check);

-- name: audit_holes
-- Notes holes in the audit log. $1 ledger time, $2 actor; columns $3 subjects, $4 what they say, as JSON.
INSERT INTO audit_log (at, actor, action, subject, request_id, after)
SELECT $1::timestamptz, $2::text, 'UsageHole', subject, '', said::jsonb
FROM unnest($3::text[], $4::text[]) AS hole (subject, said);

-- name: claim_stream
-- Takes a stream of the chain for as long as this session lives; false where another session has it. $1 stream.
SELECT pg_try_advisory_lock(hashtextextended('usage_chain stream ' || $1::integer, 0));

-- name: add_stream
-- Begins a stream of the chain. $1 stream, $2 hash before its first link.
INSERT INTO usage_chain_head (stream, position, hash, stored_total, quarantined_total)
VALUES ($1, 0, $2, 0, 0)
ON CONFLICT (stream) DO NOTHING;

-- name: chain_head
-- Locks a stream's last link. $1 stream.
SELECT position, hash FROM usage_chain_head WHERE stream = $1 FOR UPDATE;

-- name: move_head
-- Moves a stream's head, which is locked, to its last link. $1 stream, $2 position, $3 hash, $4 stored, $5 quarantined.
UPDATE usage_chain_head
SET position = $2, hash = $3, stored_total = stored_total + $4, quarantined_total = quarantined_total + $5
WHERE stream = $1;

-- name: add_link
-- Adds a link. $1 stream, $2 position, $3 batch, $4 producer id, $5 incarnation, $6 first_seq, $7 last_seq, $8 h,
-- $9 Merkle root, $10 stored, $11 duplicates, $12 conflicts, $13 quarantined, $14 holes, $15 hash, $16 ledger time,
-- $17 digest of the rows, $18 digest of what was refused.
INSERT INTO usage_chain
  (stream, position, batch_id, producer_id, incarnation, first_seq, last_seq, h, merkle_root, stored, duplicates,
   conflicts, quarantined, holes, hash, committed_at, rows_digest, refused_digest)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18);

-- name: make_month
-- Makes the partitions of a month. $1 its first day.
SELECT make_usage_month($1);

-- name: drop_minutes_of
-- Drops tenants' rows of a span. $1 tenant ids, $2 from, $3 to.
DELETE FROM usage_rollup_minute WHERE tenant_id = ANY ($1::uuid[]) AND minute >= $2 AND minute < $3;

-- name: drop_quarters_of
-- Drops tenants' rows of a span. $1 tenant ids, $2 from, $3 to.
DELETE FROM usage_rollup_quarter WHERE tenant_id = ANY ($1::uuid[]) AND quarter >= $2 AND quarter < $3;

-- name: drop_states_of
-- Drops tenants' rows of a span. $1 tenant ids, $2 from, $3 to.
DELETE FROM usage_rollup_state WHERE tenant_id = ANY ($1::uuid[]) AND quarter >= $2 AND quarter < $3;

-- name: drop_values_of
-- Drops tenants' rows of a span. $1 tenant ids, $2 from, $3 to.
DELETE FROM usage_rollup_value WHERE tenant_id = ANY ($1::uuid[]) AND quarter >= $2 AND quarter < $3;

-- name: expire_ids
-- Deletes ids that nobody can send again and gives how many. $1 at most so many.
SELECT expire_usage_ids($1::integer);

-- name: last_readings
-- Gives the last readings of series. $1 series.
SELECT series, start_ns, time_ns, total FROM metric_series WHERE series = ANY ($1::bytea[]);

-- name: keep_readings
-- Keeps readings as the last ones of their series. Columns $1 series, $2 starts and $3 times in nanoseconds, $4 totals;
-- $5 ledger time.
INSERT INTO metric_series AS known (series, start_ns, time_ns, total, kept_at)
SELECT series, start_ns, time_ns, total, $5::timestamptz
FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::numeric[]) AS read (series, start_ns, time_ns, total)
ORDER BY series
ON CONFLICT (series) DO UPDATE
SET start_ns = excluded.start_ns, time_ns = excluded.time_ns, total = excluded.total, kept_at = excluded.kept_at;

-- name: drop_readings
-- Drops readings of series that nobody has sent for long. $1 kept before, $2 at most so many.
DELETE FROM metric_series WHERE series IN (SELECT series FROM metric_series WHERE kept_at < $1 LIMIT $2);

-- name: ids_taken
-- Gives which ids are taken. Columns $1 tenant ids, $2 ids.
SELECT tenant_id, id FROM usage_id
JOIN unnest($1::uuid[], $2::text[]) AS asked (tenant_id, id) USING (tenant_id, id);
