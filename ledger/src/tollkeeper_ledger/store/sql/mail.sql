-- Mails to payers and every try to send them. Times are real time.

-- name: queue
-- Queues mails; nothing where one was queued before. $1 time; columns $2 tenants, $3 mails, $4 kinds, $5 invoices, $6
-- stages, $7 recipients.
INSERT INTO mail (tenant_id, mail_id, kind, invoice_id, stage, recipient, state, next_at)
SELECT tenant_id, mail_id, kind, invoice_id, stage, recipient, 'queued', $1
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::uuid[], $6::text[], $7::text[])
  AS queued (tenant_id, mail_id, kind, invoice_id, stage, recipient)
ON CONFLICT ON CONSTRAINT mail_once DO NOTHING;

-- name: was_warned
-- Says whether a payer was warned of a card, whatever invoice was its newest then. $1 tenant id, $2 stage.
SELECT EXISTS (SELECT FROM mail WHERE tenant_id = $1 AND kind = 'card_expires' AND stage = $2);

-- name: expiring
-- Gives payers with an address whose card is good for 30 more days at most, each with its newest invoice. $1 time.
SELECT a.tenant_id, a.method_label, to_char(a.method_expires, 'YYYY-MM') AS expires, f.email, newest.invoice_id
FROM provider_account a JOIN billing_profile f ON f.tenant_id = a.tenant_id AND f.provider = a.provider
CROSS JOIN LATERAL (
  SELECT i.invoice_id FROM invoice i WHERE i.billing_tenant_id = a.tenant_id
  ORDER BY i.finalised_at DESC, i.invoice_id DESC LIMIT 1
) newest
WHERE a.method <> '' AND f.email <> '' AND a.method_expires + interval '1 month' - interval '30 days' <= $1::timestamptz AT TIME ZONE 'UTC'
ORDER BY a.tenant_id;

-- name: claim
-- Takes the mail that waits longest, for ten minutes. $1 time.
UPDATE mail SET next_at = $1 + interval '10 minutes'
WHERE (tenant_id, mail_id) = (
  SELECT tenant_id, mail_id FROM mail WHERE state = 'queued' AND next_at <= $1
  ORDER BY next_at, mail_id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: last_attempt
-- Gives the newest try of a mail. $1 mail id.
SELECT attempt, handed_at, ended_at FROM mail_attempt WHERE mail_id = $1 ORDER BY attempt DESC LIMIT 1;

-- name: begin_attempt
-- Begins a try. $1 tenant id, $2 mail id, $3 number, $4 time.
INSERT INTO mail_attempt (tenant_id, mail_id, attempt, begun_at) VALUES ($1, $2, $3, $4);

-- name: hand_over
-- Notes that the server is about to be given the mail. $1 mail id, $2 number, $3 time.
UPDATE mail_attempt SET handed_at = $3 WHERE mail_id = $1 AND attempt = $2;

-- name: end_attempt
-- Ends a try. $1 mail id, $2 number, $3 time, $4 what the server said.
UPDATE mail_attempt SET ended_at = $3, reply = $4 WHERE mail_id = $1 AND attempt = $2;

-- name: set_state
-- Sets a mail's state and when it is tried next. $1 mail id, $2 state, $3 time.
UPDATE mail SET state = $2, next_at = $3 WHERE mail_id = $1;

-- name: content
-- Gives what a mail is made of. $1 invoice id, $2 credit note's number or empty.
SELECT i.number, coalesce(c.document, i.document) AS document, coalesce(c.digest, i.digest) AS digest,
       r.due_at, r.due_minor, coalesce(j.facts ->> 'pay_url', '') AS pay_url
FROM invoice i JOIN receivable r USING (invoice_id)
LEFT JOIN credit_note c ON c.invoice_id = i.invoice_id AND c.number = $2
LEFT JOIN provider_job j ON j.invoice_id = i.invoice_id AND j.kind = 'collect'
WHERE i.invoice_id = $1;

-- name: mails
-- Lists mails, newest first. $1 at most so many.
SELECT m.mail_id, t.wire_id, m.kind, coalesce(i.number, '') AS number, m.recipient, m.state,
       (SELECT count(*) FROM mail_attempt a WHERE a.mail_id = m.mail_id) AS attempts,
       coalesce((SELECT reply FROM mail_attempt a WHERE a.mail_id = m.mail_id ORDER BY attempt DESC LIMIT 1), '') AS reply
FROM mail m JOIN tenant t USING (tenant_id) LEFT JOIN invoice i USING (invoice_id)
ORDER BY m.queued_at DESC, m.mail_id LIMIT $1;
