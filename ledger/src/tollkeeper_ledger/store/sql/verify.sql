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
-- Gives an invoice's row beside its documents, and what became of it. $1 invoice id.
SELECT i.tenant_id, t.wire_id AS tenant, i.subscription_id, i.billing_tenant_id, i.seller_id, i.number, i.serial,
       i.period_start, i.period_end, i.currency, i.subtotal_minor, i.tax_minor, i.total_minor, i.finalised_at, i.record_count,
       i.replaces IS NULL AND i.issue = 1
         OR (o.issue, o.subscription_id, o.period_start) = (i.issue - 1, i.subscription_id, i.period_start) AS follows,
       o.number AS replaces
FROM invoice i JOIN tenant t USING (tenant_id)
LEFT JOIN invoice o ON o.tenant_id = i.tenant_id AND o.invoice_id = i.replaces
WHERE i.invoice_id = $1;

-- name: receivable
-- Gives what became of an invoice. $1 invoice id.
SELECT * FROM receivable WHERE invoice_id = $1;

-- name: transfers
-- Gives an invoice's transfers. $1 invoice id.
SELECT tenant_id, seller_id, at, kind, debit, credit, amount_minor, currency, subject
FROM journal WHERE invoice_id = $1 ORDER BY at, transfer_id;

-- name: payments
-- Gives an invoice's payments. $1 invoice id.
SELECT tenant_id, currency, provider || '/' || reference AS subject, amount_minor, received_at AS at
FROM payment WHERE invoice_id = $1 ORDER BY at, payment_id;

-- name: refunds
-- Gives an invoice's refunds. $1 payer's tenant id, $2 invoice id.
SELECT tenant_id, currency, 'refund/' || refund_id AS subject, amount_minor, asked_at AS at, state = 'failed' AS failed
FROM refund WHERE tenant_id = $1 AND invoice_id = $2 ORDER BY at, refund_id;

-- name: disputes
-- Gives an invoice's disputes. $1 payer's tenant id, $2 invoice id.
SELECT tenant_id, currency, dispute_id AS subject, amount_minor, stage, fee_minor
FROM dispute WHERE tenant_id = $1 AND invoice_id = $2 ORDER BY opened_at, dispute_id;

-- name: credit_notes
-- Gives an invoice's credit notes in the order of their numbers. $1 invoice id.
SELECT tenant_id, seller_id, number, serial, issued_at AS at, currency, amount_minor, document, digest
FROM credit_note WHERE invoice_id = $1 ORDER BY serial;

-- name: balances
-- Gives what a payer has with a seller, as its account and as the journal say. $1 payer's tenant id, $2 seller, $3 currency.
SELECT coalesce((SELECT balance_minor FROM billing_account WHERE tenant_id = $1 AND seller_id = $2 AND currency = $3), 0)
         AS kept_minor,
       coalesce((SELECT sum(CASE WHEN credit = 'balance' THEN amount_minor ELSE -amount_minor END) FROM journal
                 WHERE tenant_id = $1 AND seller_id = $2 AND currency = $3 AND 'balance' IN (debit, credit)), 0)::bigint
         AS moved_minor;
