-- Records in quarantine, and what operators did about them. A record's last act says whether it waits still.

-- name: lock
-- Lets one transaction at a time act on records in quarantine.
SELECT pg_advisory_xact_lock(hashtextextended('usage_quarantine', 0));

-- name: page
-- Gives records with their last acts, in the order of producers and numbers. $1 and $2 after this producer id and number,
-- $3 only of these tenant ids and $4 whose bytes end so, or null; $5 with those that no longer wait, $6 only with this
-- last reason, or null, $7 at most so many.
SELECT q.*, coalesce(last.number, 0) AS number, coalesce(last.outcome, '') AS outcome,
       coalesce(last.reason, '') AS last_reason, coalesce(last.field, '') AS last_field
FROM usage_quarantine q
LEFT JOIN LATERAL (SELECT number, outcome, reason, field FROM usage_quarantine_act a
                   WHERE a.tenant_id = q.tenant_id AND a.producer_id = q.producer_id AND a.seq = q.seq
                   ORDER BY number DESC LIMIT 1) AS last ON true
WHERE (q.producer_id, q.seq) > ($1::uuid, $2::bigint)
  AND ($3::uuid[] IS NULL OR q.tenant_id = ANY ($3::uuid[])
       AND substr(q.record, octet_length(q.record) - octet_length($4::bytea) + 1) = $4::bytea)
  AND ($5::boolean OR coalesce(last.outcome, 'refused') = 'refused')
  AND ($6::text IS NULL OR coalesce(nullif(last.reason, ''), q.reason) = $6::text)
ORDER BY q.producer_id, q.seq LIMIT $7;

-- name: records
-- Gives records with their last acts. Columns $1 producer ids, $2 numbers.
SELECT q.*, coalesce(last.number, 0) AS number, coalesce(last.outcome, '') AS outcome,
       coalesce(last.reason, '') AS last_reason, coalesce(last.field, '') AS last_field
FROM usage_quarantine q JOIN unnest($1::uuid[], $2::bigint[]) AS asked (producer_id, seq) USING (producer_id, seq)
LEFT JOIN LATERAL (SELECT number, outcome, reason, field FROM usage_quarantine_act a
                   WHERE a.tenant_id = q.tenant_id AND a.producer_id = q.producer_id AND a.seq = q.seq
                   ORDER BY number DESC LIMIT 1) AS last ON true;

-- name: acts
-- Gives what was done about a record, oldest first. $1 tenant id, $2 producer id, $3 number.
SELECT * FROM usage_quarantine_act WHERE tenant_id = $1 AND producer_id = $2 AND seq = $3 ORDER BY number;

-- name: add_acts
-- Adds acts. Columns $1 tenant ids, $2 producer ids, $3 seqs, $4 numbers, $5 outcomes, $6 reasons, $7 fields, $8 notes,
-- $9 actors, $10 ledger times, $11 batches, $12 numbers in them, $13 checks.
INSERT INTO usage_quarantine_act (tenant_id, producer_id, seq, number, outcome, reason, field, note, actor, at, batch_id,
                                  batch_seq, row_check)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::text[], $10::timestamptz[], $11::bigint[], $12::bigint[], $13::bigint[]);

-- name: places
-- Gives batches and numbers of stored records. Columns $1 tenant ids, $2 ids.
SELECT known.tenant_id, known.id, known.batch_id, known.seq
FROM usage_id known JOIN unnest($1::uuid[], $2::text[]) AS asked (tenant_id, id) USING (tenant_id, id);

-- name: all_acts
-- Gives acts in order of their records, with what the record says and its hash. $1 to $4 after this tenant id, producer
-- id, number and act, $5 at most so many.
SELECT a.tenant_id, a.producer_id, a.seq, a.number, a.outcome, a.reason, a.field, a.note, a.actor, a.batch_id, a.batch_seq,
       a.row_check, least(greatest(a.at, '0001-01-02Z'), '9999-12-30Z') AS at, q.content_hash, q.record,
       l.subject IS NOT NULL AS noted
FROM usage_quarantine_act a
LEFT JOIN usage_quarantine q USING (tenant_id, producer_id, seq)
LEFT JOIN (SELECT subject, after->>'outcome' AS outcome FROM audit_log WHERE subject LIKE 'quarantine/%') AS l
  ON l.subject = 'quarantine/' || replace(a.producer_id::text, '-', '') || '/' || a.seq || '/' || a.number
  AND l.outcome = a.outcome
WHERE (a.tenant_id, a.producer_id, a.seq, a.number) > ($1, $2, $3, $4)
ORDER BY a.tenant_id, a.producer_id, a.seq, a.number LIMIT $5;

-- name: lost_acts
-- Gives what the audit log tells of acts that are not there. $1 most.
SELECT l.subject FROM audit_log l
WHERE l.subject LIKE 'quarantine/%' AND NOT EXISTS (
  SELECT FROM usage_quarantine_act a
  WHERE l.subject = 'quarantine/' || replace(a.producer_id::text, '-', '') || '/' || a.seq || '/' || a.number)
ORDER BY l.audit_id LIMIT $1;
