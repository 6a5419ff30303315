-- Jobs at payment providers, their requests, events, and who payers are there. Times are real time.

-- name: add_jobs
-- Adds jobs; nothing where one exists. $1 time; columns $2 tenants, $3 jobs, $4 providers, $5 kinds, $6 invoices, $7
-- subjects or null, $8 amounts, $9 first steps.
INSERT INTO provider_job (tenant_id, job_id, provider, kind, invoice_id, subject_id, amount_minor, step, state, next_at)
SELECT tenant_id, job_id, provider, kind, invoice_id, subject_id, amount_minor, step, 'ready', $1
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::bigint[], $9::text[])
  AS added (tenant_id, job_id, provider, kind, invoice_id, subject_id, amount_minor, step)
ON CONFLICT ON CONSTRAINT provider_job_once DO NOTHING;

-- name: claim_job
-- Takes the job that waits longest, for two minutes. $1 time.
UPDATE provider_job SET next_at = $1 + interval '2 minutes'
WHERE (tenant_id, job_id) = (
  SELECT tenant_id, job_id FROM provider_job WHERE state = 'ready' AND next_at <= $1
  ORDER BY next_at, job_id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: lock_job
-- Locks a job until the transaction ends. $1 tenant id, $2 job id.
SELECT * FROM provider_job WHERE tenant_id = $1 AND job_id = $2 FOR UPDATE;

-- name: work
-- Gives what a job's requests are made of. $1 tenant id, $2 job id.
SELECT j.*, i.number, i.issue, i.currency, p.wire_id, p.display_name, coalesce(f.email, '') AS email, r.state AS owed,
       r.due_minor, r.subtotal_minor, r.tax_minor, r.balance_minor, i.document,
       coalesce(a.customer, '') AS customer, coalesce(a.method, '') AS method,
       coalesce(f.dunning_days, '{1,3,5,7}') AS dunning_days, coalesce(f.dunning_policy, 'mark') AS dunning_policy,
       coalesce(f.fallback_plan, '') AS fallback_plan,
       c.facts AS collected, c.step AS collect_step, c.state AS collect_state,
       EXISTS (SELECT FROM provider_job f
               WHERE f.invoice_id = j.invoice_id AND f.kind = 'credit' AND f.state = 'ready') AS is_lowered_first
FROM provider_job j JOIN invoice i USING (invoice_id) JOIN receivable r USING (invoice_id)
JOIN tenant p ON p.tenant_id = j.tenant_id
LEFT JOIN billing_profile f ON f.tenant_id = j.tenant_id
LEFT JOIN provider_account a ON a.tenant_id = j.tenant_id AND a.provider = j.provider
LEFT JOIN provider_job c ON c.invoice_id = j.invoice_id AND c.kind = 'collect'
WHERE j.tenant_id = $1 AND j.job_id = $2;

-- name: save_job
-- Keeps where a job is. $1 tenant id, $2 job id, $3 step, $4 state, $5 next time, $6 tries, $7 failures, $8 first
-- failure, $9 facts, $10 error.
UPDATE provider_job SET step = $3, state = $4, next_at = $5, tries = $6, failures = $7, failed_at = $8, facts = $9,
       error = $10
WHERE tenant_id = $1 AND job_id = $2;

-- name: last_request
-- Gives the newest attempt of a step. $1 tenant id, $2 job id, $3 step.
SELECT * FROM provider_request WHERE tenant_id = $1 AND job_id = $2 AND step = $3 ORDER BY attempt DESC LIMIT 1;

-- name: add_request
-- Freezes an attempt. Columns of provider_request in order, without the answer.
INSERT INTO provider_request (tenant_id, job_id, step, attempt, method, path, body, idempotency_key, frozen_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: answer_request
-- Keeps what an attempt was answered. $1 tenant id, $2 job id, $3 step, $4 attempt, $5 status, $6
-- body.
UPDATE provider_request SET status = $5, answer = $6 WHERE tenant_id = $1 AND job_id = $2 AND step = $3 AND attempt = $4;

-- name: put_customer
-- Keeps who a payer is at a provider; the first one stays. $1 tenant id, $2 provider, $3 customer, $4 time.
INSERT INTO provider_account (tenant_id, provider, customer, changed_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (tenant_id, provider) DO UPDATE SET customer = excluded.customer, changed_at = excluded.changed_at
WHERE provider_account.customer = '';

-- name: put_method
-- Keeps a payer's payment method and wakes its jobs where it is another or a renewed one, also those whose tenant is
-- still to be moved. $1 provider, $2 customer, $3 method, $4 label, $5 last good month or null, $6 time.
WITH before AS (
  SELECT method, method_label, method_expires FROM provider_account WHERE provider = $1 AND customer = $2
), changed AS (
  UPDATE provider_account SET method = $3, method_label = $4, method_expires = $5, changed_at = $6
  WHERE provider = $1 AND customer = $2 RETURNING tenant_id
)
UPDATE provider_job j SET state = 'ready', next_at = $6, facts = j.facts - 'not_moved' FROM changed, before
WHERE $3 <> '' AND ($3, $4, $5) IS DISTINCT FROM (before.method, before.method_label, before.method_expires)
  AND j.tenant_id = changed.tenant_id AND j.kind = 'collect'
  AND (j.state = 'waiting' OR (j.state = 'ready' AND j.facts ? 'not_moved'));

-- name: payer
-- Gives who a customer of a provider is. $1 provider, $2 customer.
SELECT tenant_id FROM provider_account WHERE provider = $1 AND customer = $2;

-- name: lock_customer
-- Locks who a customer of a provider is until the transaction ends. $1 provider, $2 customer.
SELECT tenant_id FROM provider_account WHERE provider = $1 AND customer = $2 FOR UPDATE;

-- name: customer_of_method
-- Gives whose payment method is charged. $1 provider, $2 method.
SELECT customer FROM provider_account WHERE provider = $1 AND method = $2;

-- name: hold_method
-- Gives what a payer is charged by, which stays so until the transaction ends. $1 tenant id, $2 provider.
SELECT method FROM provider_account WHERE tenant_id = $1 AND provider = $2 FOR SHARE;

-- name: account
-- Gives who a payer is at a provider. $1 tenant id, $2 provider.
SELECT * FROM provider_account WHERE tenant_id = $1 AND provider = $2;

-- name: invoice_of_object
-- Gives which invoice one at the provider is. $1 the provider's id.
SELECT invoice_id FROM provider_job WHERE kind = 'collect' AND facts ->> 'invoice' = $1;

-- name: collect_job
-- Gives the job that collects an invoice. $1 invoice id.
SELECT * FROM provider_job WHERE invoice_id = $1 AND kind = 'collect';

-- name: recorded
-- Sums the payments of an invoice at the provider. $1 invoice id, $2 provider.
SELECT coalesce(sum(amount_minor), 0)::bigint FROM payment WHERE invoice_id = $1 AND provider = $2;

-- name: refundable
-- Gives what came in for an invoice through a provider and was not sent back. $1 invoice id, $2 provider.
SELECT (SELECT coalesce(sum(amount_minor), 0) FROM payment WHERE invoice_id = $1 AND provider = $2)::bigint
  - (SELECT coalesce(sum(amount_minor), 0) FROM refund WHERE invoice_id = $1 AND provider = $2 AND state <> 'failed')::bigint;

-- name: wake_collect
-- Has the provider told at once that an invoice was settled elsewhere. $1 invoice id, $2 time.
UPDATE provider_job SET state = 'ready', next_at = $2, facts = facts - 'not_moved'
WHERE invoice_id = $1 AND kind = 'collect' AND step = 'pay' AND state IN ('waiting', 'ready');

-- name: add_event
-- Takes an event in; nothing where it was taken in before. $1 provider, $2 event id, $3 kind, $4 object, $5 time.
INSERT INTO provider_event (provider, event_id, kind, object_id, received_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING RETURNING event_id;

-- name: end_refund
-- Ends a pending refund; nothing where it has ended. $1 refund id, $2 state.
UPDATE refund SET state = $2 WHERE refund_id = $1 AND state = 'pending' RETURNING invoice_id, amount_minor;

-- name: jobs
-- Lists jobs, failed ones first. $1 at most so many.
SELECT j.job_id, t.wire_id, j.kind, i.number, j.step, j.state, j.error, j.next_at
FROM provider_job j JOIN tenant t USING (tenant_id) JOIN invoice i USING (invoice_id)
ORDER BY array_position(ARRAY['failed', 'ready', 'waiting', 'done'], j.state), j.next_at, j.job_id LIMIT $1;

-- name: collected
-- Gives the invoices that are collected at a provider, with what became of them. $1 provider, $2 finalised since, $3 and
-- before.
SELECT i.invoice_id, i.number, j.facts ->> 'invoice' AS object_id, j.amount_minor, j.step, j.state AS job_state,
       r.state, r.due_minor, (SELECT coalesce(sum(p.amount_minor), 0) FROM payment p
                              WHERE p.invoice_id = i.invoice_id AND p.provider = j.provider)::bigint AS paid_minor,
       EXISTS (SELECT FROM dispute d WHERE d.invoice_id = i.invoice_id AND d.stage = 'lost') AS is_lost
FROM provider_job j JOIN invoice i USING (invoice_id) JOIN receivable r USING (invoice_id)
WHERE j.kind = 'collect' AND j.provider = $1 AND i.finalised_at >= $2 AND i.finalised_at < $3 ORDER BY i.number;

-- name: known_invoices
-- Gives which of these are invoices of ours. $1 ids in text.
SELECT invoice_id::text AS invoice_id FROM invoice WHERE invoice_id::text = ANY ($1::text[]);

-- name: begin_reconciliation
-- Lets one nightly comparison at a time go on, until the transaction ends. $1 provider.
SELECT pg_advisory_xact_lock(hashtext('reconciliation/' || $1));

-- name: add_reconciliation
-- Begins a comparison and gives its id; nothing where one was done within 20 hours, or began within one. $1 provider,
-- $2 time, $3 since.
INSERT INTO reconciliation (provider, at, since, compared, differences, problem)
SELECT $1, $2, $3, 0, '[]', 'under way'
WHERE NOT EXISTS (SELECT FROM reconciliation WHERE provider = $1
                  AND at > $2::timestamptz - CASE problem WHEN '' THEN interval '20 hours' WHEN 'under way' THEN interval '1 hour'
                                ELSE interval '0' END)
RETURNING reconciliation_id;

-- name: end_reconciliation
-- Keeps what a comparison found. $1 id, $2 how many, $3 differences, $4 problem.
UPDATE reconciliation SET compared = $2, differences = $3, problem = $4 WHERE reconciliation_id = $1;

-- name: reconciliations
-- Gives what comparisons found, newest first. $1 at most so many.
SELECT provider, at, since, compared, differences, problem FROM reconciliation
ORDER BY reconciliation_id DESC LIMIT $1;

-- name: is_unpaid_elsewhere
-- Says whether a payer was suspended for another invoice too, which is unpaid still. $1 payer's tenant id, $2 but this
-- job.
SELECT EXISTS (SELECT FROM provider_job j JOIN receivable r USING (invoice_id)
               WHERE j.tenant_id = $1 AND j.job_id <> $2 AND j.kind = 'collect' AND j.state <> 'done'
                 AND j.facts ? 'suspended' AND r.state = 'past_due');

-- name: other_failed
-- Locks another job of a tenant's invoices that waits for late money after its last try. $1 tenant id, $2 but this job.
SELECT j.* FROM provider_job j JOIN invoice i USING (invoice_id) JOIN receivable r USING (invoice_id)
WHERE i.tenant_id = $1 AND j.job_id <> $2 AND j.kind = 'collect' AND j.state = 'waiting' AND j.failures > 0
  AND r.state = 'past_due'
ORDER BY j.job_id LIMIT 1 FOR UPDATE OF j;
