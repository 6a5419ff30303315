-- What an invoice rests on, read again.

-- name: links
-- Gives links of a stream of the chain in order. $1 stream, $2 after this position, $3 up to this one, $4 at most so many.
SELECT position, batch_id, producer_id, incarnation, first_seq, last_seq, h, merkle_root, rows_digest, refused_digest, stored,
       duplicates, conflicts, quarantined, holes, hash,
       least(greatest(committed_at, '0001-01-02Z'), '9999-12-30Z') AS committed_at
FROM usage_chain WHERE stream = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT $4;

-- name: record_sums
-- Sums the raw records of segments, or counts them; voids (flag 32) and falls (flag 16) count below 0. Never below 0 but
-- for late and parted segments, as the sums that are billed. Distinct values have no sum. $1 tenant id, $2 segment ids, $3 from, $4 to.
SELECT b.segment_id, m.name AS meter,
       greatest(CASE WHEN b.late_for IS NULL AND b.part = 0 AND b.state <> 'parted' THEN 0 END,
                sum(CASE WHEN r.flags & 32 <> 0 THEN -1 ELSE 1 END
                    * CASE WHEN m.aggregation = 'count' THEN 1
                           WHEN r.flags & 16 <> 0 THEN -used.units::numeric ELSE used.units END))::text AS units
FROM billing_segment b JOIN usage_record r USING (tenant_id, segment_id)
CROSS JOIN LATERAL unnest(r.meter_ids, r.units) AS used (meter_id, units) JOIN meter m USING (meter_id)
WHERE b.tenant_id = $1 AND b.segment_id = ANY ($2::uuid[]) AND r.event_time >= $3 AND r.event_time < $4
  AND m.aggregation <> 'unique'
GROUP BY b.segment_id, b.late_for, b.part, b.state, m.name ORDER BY b.segment_id, m.name;

-- name: segment_batches
-- Gives the batches that the records of segments came in. $1 tenant id, $2 segment ids, $3 from, $4 to.
SELECT DISTINCT batch_id FROM usage_record
WHERE tenant_id = $1 AND segment_id = ANY ($2::uuid[]) AND event_time >= $3 AND event_time < $4 ORDER BY batch_id;

-- name: batch_records
-- Gives all stored records of batches, in order. $1 batch ids.
SELECT t.wire_id, r.batch_id, r.id, r.event_time, r.flags, r.meter_ids, r.units, r.attributes::text AS attributes
FROM usage_record r JOIN tenant t USING (tenant_id)
WHERE r.batch_id = ANY ($1::bigint[]) ORDER BY r.batch_id, r.seq;

-- name: stored_lines
-- Gives an invoice's lines. $1 invoice id.
SELECT line, description, meter, quantity, amount_minor FROM invoice_line WHERE invoice_id = $1 ORDER BY line;

-- name: stored_sums
-- Gives an invoice's sums, what they are of, what it owes, and how many of its transfers are of something else. $1 invoice
-- id.
SELECT i.subtotal_minor, i.tax_minor, i.total_minor, i.currency, i.record_count, i.seller_id, r.state, r.due_minor,
       (SELECT count(*) FROM journal j
        WHERE j.invoice_id = i.invoice_id AND (j.currency, j.seller_id) <> (i.currency, i.seller_id)) AS strange
FROM invoice i JOIN receivable r USING (tenant_id, invoice_id) WHERE i.invoice_id = $1;
