-- Stored usage, read again in order to check it. Whoever changed a row may have left anything there: instants of no year
-- from 1 to 9999 are given as the nearest of one, JSON as text, so that the row is found to be wrong, not unreadable.

-- name: allow_pauses
-- Lets a transaction be idle for an hour.
SET LOCAL idle_in_transaction_session_timeout = '1h';

-- name: hold_months
-- Keeps months of records from leaving for a file. First in a transaction: what it sees later must be what it reads.
LOCK TABLE ONLY usage_record IN ACCESS SHARE MODE;

-- name: streams
-- Gives every stream of the chain with its head and what its links add up to.
SELECT stream, head.position, head.hash, head.stored_total, head.quarantined_total, links.last, links.stored, links.refused
FROM (SELECT stream, position, hash, stored_total, quarantined_total FROM usage_chain_head) AS head
FULL JOIN (SELECT stream, max(position) AS last, sum(stored)::bigint AS stored,
                  sum(conflicts::bigint + quarantined)::bigint AS refused
           FROM usage_chain GROUP BY stream) AS links USING (stream)
ORDER BY stream;

-- name: batch_rows
-- Gives the records of batches with their ids, in sequence order. $1 batches.
SELECT t.wire_id, r.id, r.batch_id, r.seq, r.event_time, r.flags, r.segment_id, r.meter_ids, r.units, r.row_check,
       least(greatest(r.received_at, '0001-01-02Z'), '9999-12-30Z') AS received_at, r.attributes::text AS attributes,
       i.batch_id AS kept_batch, i.seq AS kept_seq, i.content_hash AS kept_hash
FROM usage_record r JOIN tenant t USING (tenant_id) LEFT JOIN usage_id i ON i.tenant_id = r.tenant_id AND i.id = r.id
WHERE r.batch_id = ANY ($1::bigint[]) ORDER BY r.batch_id, r.seq;

-- name: placed_rows
-- Gives the records that stand at places, as batch_rows does. Columns $1 batches, $2 numbers.
SELECT t.wire_id, r.id, r.batch_id, r.seq, r.event_time, r.flags, r.segment_id, r.meter_ids, r.units, r.row_check,
       least(greatest(r.received_at, '0001-01-02Z'), '9999-12-30Z') AS received_at, r.attributes::text AS attributes,
       i.batch_id AS kept_batch, i.seq AS kept_seq, i.content_hash AS kept_hash
FROM usage_record r JOIN tenant t USING (tenant_id) LEFT JOIN usage_id i ON i.tenant_id = r.tenant_id AND i.id = r.id
WHERE r.batch_id = ANY ($1::bigint[]) AND (r.batch_id, r.seq) IN (SELECT * FROM unnest($1::bigint[], $2::bigint[]));

-- name: unchained_records
-- Gives records whose batch no link names. $1 most.
SELECT t.wire_id, r.id FROM usage_record r LEFT JOIN tenant t USING (tenant_id)
WHERE t.tenant_id IS NULL OR NOT EXISTS (SELECT FROM usage_chain c WHERE c.batch_id = r.batch_id)
ORDER BY r.batch_id, r.seq LIMIT $1;

-- name: lone_ids
-- Gives ids without a record. $1 most.
SELECT t.wire_id, i.id FROM usage_id i LEFT JOIN tenant t USING (tenant_id)
WHERE NOT EXISTS (SELECT FROM usage_record r WHERE r.tenant_id = i.tenant_id AND r.id = i.id)
ORDER BY i.batch_id, i.seq LIMIT $1;

-- name: producers
-- Gives producers that stand elsewhere than their last link says. $1 most.
SELECT p.producer_id FROM producer p
LEFT JOIN LATERAL (SELECT last_seq, h FROM usage_chain c WHERE c.producer_id = p.producer_id
                   ORDER BY last_seq DESC LIMIT 1) AS last ON true
WHERE p.committed_seq <> coalesce(last.last_seq, 0) OR p.h <> coalesce(last.h, sha256(uuid_send(p.producer_id)))
ORDER BY p.producer_id LIMIT $1;

-- name: hours
-- Gives the hours of UTC that records or rollups are of, without those of archived months.
SELECT DISTINCT date_trunc('hour', at, 'UTC') AS hour
FROM (SELECT DISTINCT date_trunc('hour', event_time, 'UTC') AS at FROM usage_record
      UNION SELECT minute FROM usage_rollup_minute UNION SELECT quarter FROM usage_rollup_quarter
      UNION SELECT quarter FROM usage_rollup_state UNION SELECT quarter FROM usage_rollup_value) AS found
WHERE date_trunc('month', at AT TIME ZONE 'UTC')::date NOT IN (SELECT month FROM usage_archive WHERE is_archived(month))
ORDER BY 1;

-- name: tenant_names
-- Gives every tenant's name.
SELECT tenant_id, wire_id FROM tenant;

-- name: records_of_hour
-- Gives the records of a span. $1 from, $2 to.
SELECT tenant_id, segment_id, flags, event_time, id, meter_ids, units, attributes::text AS attributes
FROM usage_record WHERE event_time >= $1 AND event_time < $2;

-- name: minutes_of_hour
-- Gives sums per minute of a span. $1 from, $2 to.
SELECT tenant_id, segment_id, meter_id, dims, minute AS start, units::text AS units, records
FROM usage_rollup_minute WHERE minute >= $1 AND minute < $2;

-- name: quarters_of_hour
-- Gives sums per quarter of an hour of a span. $1 from, $2 to.
SELECT tenant_id, segment_id, meter_id, dims, quarter AS start, units::text AS units, records
FROM usage_rollup_quarter WHERE quarter >= $1 AND quarter < $2;

-- name: states_of_hour
-- Gives states of a span. $1 from, $2 to.
SELECT tenant_id, meter_id, dims, quarter AS start, state::text AS state
FROM usage_rollup_state WHERE quarter >= $1 AND quarter < $2;

-- name: values_of_hour
-- Gives distinct values of a span. $1 from, $2 to.
SELECT tenant_id, segment_id, meter_id, dims, quarter AS start, value, records
FROM usage_rollup_value WHERE quarter >= $1 AND quarter < $2;

-- name: heads
-- Gives the last link of every stream.
SELECT stream, position, hash FROM usage_chain_head ORDER BY stream;

-- name: add_root
-- Keeps a signed root. $1 ledger time, $2 statement, $3 signature, $4 public key.
INSERT INTO usage_root (signed_at, statement, signature, public_key) VALUES ($1, $2, $3, $4);

-- name: last_root
-- Gives the newest signed root.
SELECT statement, signature, public_key FROM usage_root ORDER BY root_id DESC LIMIT 1;

-- name: roots
-- Gives signed roots in order. $1 after this number, $2 most.
SELECT root_id, least(greatest(signed_at, '0001-01-02Z'), '9999-12-30Z') AS signed_at, statement, signature, public_key
FROM usage_root WHERE root_id > $1 ORDER BY root_id LIMIT $2;

-- name: roots_since
-- Gives signed roots of a time and later, in order. $1 ledger time, $2 most, $3 how many to leave out at first.
SELECT statement, signature, public_key FROM usage_root WHERE signed_at >= $1 ORDER BY root_id LIMIT $2 OFFSET $3;

-- name: link_hash
-- Gives the hash of a link. $1 stream, $2 position.
SELECT hash FROM usage_chain WHERE stream = $1 AND position = $2;

-- name: batch_of_id
-- Gives the batch of the record that an id is kept for. $1 tenant id, $2 id.
SELECT batch_id FROM usage_id WHERE tenant_id = $1 AND id = $2;

-- name: batch_of_record
-- Gives the batch of a record. $1 tenant id, $2 id, $3 event time.
SELECT batch_id FROM usage_record WHERE tenant_id = $1 AND id = $2 AND event_time = $3;

-- name: link_of
-- Gives the link of a batch, and the hash before it. $1 batch.
SELECT link.stream, link.position, link.batch_id, link.producer_id, link.incarnation, link.first_seq, link.last_seq, link.h,
       link.merkle_root, link.rows_digest, link.refused_digest, link.stored, link.duplicates, link.conflicts, link.quarantined,
       link.holes, link.hash, least(greatest(link.committed_at, '0001-01-02Z'), '9999-12-30Z') AS committed_at,
       before.hash AS previous_hash
FROM usage_chain link
LEFT JOIN usage_chain before ON before.stream = link.stream AND before.position = link.position - 1
WHERE link.batch_id = $1;

-- name: archives_of_batch
-- Gives the files that records of a batch are in alone. $1 batch.
SELECT a.month, a.file FROM usage_archive_batch b JOIN usage_archive a USING (month)
WHERE b.batch_id = $1 AND is_archived(a.month) ORDER BY a.month;

-- name: archive_at
-- Gives the file that records of an instant are in alone. $1 event time.
SELECT month, file FROM usage_archive
WHERE month = date_trunc('month', $1::timestamptz AT TIME ZONE 'UTC')::date AND is_archived(month);

-- name: usage_months
-- Gives the first days of the months that have a partition of records.
SELECT to_date(right(relname, 6), 'YYYYMM') AS month FROM pg_class
WHERE relnamespace = 'tollkeeper'::regnamespace AND relname ~ '^usage_record_[0-9]{6}$';

-- name: archives
-- Gives every month that was archived, in order, and whether its records are in the file only.
SELECT month, records, rows_digest, file, file_digest, is_archived(month) AS away FROM usage_archive ORDER BY month;

-- name: parts_of
-- Gives how many records of each batch are in a month's file. $1 month.
SELECT batch_id, records FROM usage_archive_batch WHERE month = $1;

-- name: stray_parts
-- Gives batches that have records in a month that was never archived. $1 most.
SELECT batch_id, month FROM usage_archive_batch WHERE month NOT IN (SELECT month FROM usage_archive)
ORDER BY batch_id, month LIMIT $1;

-- name: rollup_hours
-- Gives the hours of UTC that rollups of a span are of. $1 from, $2 to.
SELECT DISTINCT date_trunc('hour', at, 'UTC') AS hour
FROM (SELECT minute AS at FROM usage_rollup_minute UNION SELECT quarter FROM usage_rollup_quarter
      UNION SELECT quarter FROM usage_rollup_state UNION SELECT quarter FROM usage_rollup_value) AS found
WHERE at >= $1 AND at < $2 ORDER BY 1;

-- name: archived_counts
-- Gives how many records of batches are in files only. $1 batches.
SELECT batch_id, sum(records)::bigint AS records FROM usage_archive_batch
WHERE batch_id = ANY ($1::bigint[]) AND is_archived(month) GROUP BY batch_id;

-- name: batches_of_month
-- Gives the batches that have records of a span. $1 from, $2 to.
SELECT DISTINCT batch_id FROM usage_record WHERE event_time >= $1 AND event_time < $2 ORDER BY batch_id;

-- name: links_of_batches
-- Gives the links of batches. $1 batches.
SELECT position, batch_id, producer_id, incarnation, first_seq, last_seq, h, merkle_root, rows_digest, refused_digest, stored,
       duplicates, conflicts, quarantined, holes, hash,
       least(greatest(committed_at, '0001-01-02Z'), '9999-12-30Z') AS committed_at
FROM usage_chain WHERE batch_id = ANY ($1::bigint[]) ORDER BY batch_id;

-- name: open_periods
-- Gives the end of a billed segment that has records of a span which an invoice still needs: it is open; or what it is of
-- is, or may still get late usage, or has some that is not billed yet, which is priced beside all that was billed. $1
-- from, $2 to, $3 late usage may come of periods that end after it.
SELECT b.period_end FROM billing_segment b
JOIN billing_segment own ON own.tenant_id = b.tenant_id AND own.segment_id = coalesce(b.late_for, b.segment_id)
LEFT JOIN billing_close c ON c.tenant_id = own.tenant_id AND c.subscription_id = own.subscription_id AND NOT c.is_cut
  AND c.period_start <= own.period_start AND own.period_start < c.period_end
WHERE b.subscription_id IS NOT NULL
  AND (b.state = 'open' OR b.state = 'parted' AND c.tenant_id IS NULL OR c.period_end > $3
       OR EXISTS (SELECT FROM billing_segment late
                  JOIN billing_segment was ON was.tenant_id = late.tenant_id AND was.segment_id = late.late_for
                  WHERE late.tenant_id = c.tenant_id AND late.subscription_id = c.subscription_id
                    AND late.state = 'open' AND was.period_start >= c.period_start AND was.period_start < c.period_end))
  AND EXISTS (SELECT FROM usage_record r WHERE r.tenant_id = b.tenant_id AND r.segment_id = b.segment_id
              AND r.event_time >= $1 AND r.event_time < $2)
ORDER BY b.period_end LIMIT 1;

-- name: archive_month
-- Drops a month's records, which are in a file; false where they are gone already. $1 month, $2 records, $3 their
-- digest, $4 file, $5 its digest, $6 batches, $7 records of each.
SELECT archive_usage_month($1, $2, $3, $4, $5, $6::bigint[], $7::integer[]);

-- name: put_record
-- Stores a record of a month that is brought back, as it was. $1 tenant id, $2 segment id, $3 event time, $4 received,
-- $5 batch, $6 sequence number, $7 flags, $8 id, $9 meter ids, $10 units, $11 attributes, $12 check.
INSERT INTO usage_record (tenant_id, segment_id, event_time, received_at, batch_id, seq, flags, id, meter_ids, units,
                          attributes, row_check)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::integer[], $10::bigint[], $11, $12);

-- name: archives_between
-- Gives the months of a span whose records are in files only. $1 from, $2 to.
SELECT archived_months($1, $2) AS month;

-- name: claim_archive
-- Takes a lock until the transaction ends, or says that another has it. $1 what for.
SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0));

-- name: batch_refused
-- Gives what of batches went to quarantine, in sequence order. $1 batches.
SELECT tenant_id, producer_id, seq, batch_id, reason, field, content_hash, record,
       least(greatest(quarantined_at, '0001-01-02Z'), '9999-12-30Z') AS quarantined_at, row_check
FROM usage_quarantine WHERE batch_id = ANY ($1::bigint[]) ORDER BY batch_id, seq, producer_id, tenant_id;

-- name: unchained_refused
-- Gives quarantined records whose batch no link names. $1 most.
SELECT q.producer_id, q.seq FROM usage_quarantine q
WHERE NOT EXISTS (SELECT FROM usage_chain c WHERE c.batch_id = q.batch_id) ORDER BY q.batch_id, q.seq LIMIT $1;
