-- Receivables, the journal, payments, credit notes, profiles.

-- name: begin_accounts
-- Makes payers' accounts where there are none. Columns $1 tenants, $2 sellers, $3 currencies.
INSERT INTO billing_account (tenant_id, seller_id, currency)
SELECT tenant_id, seller_id, currency
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (tenant_id, seller_id, currency)
ORDER BY tenant_id, seller_id, currency ON CONFLICT DO NOTHING;

-- name: lock_accounts
-- Locks payers' accounts until the transaction ends, in order of their keys. Columns as in begin_accounts.
SELECT a.tenant_id, a.seller_id, a.currency, a.balance_minor
FROM unnest($1::uuid[], $2::text[], $3::text[]) AS wanted (tenant_id, seller_id, currency)
JOIN billing_account a USING (tenant_id, seller_id, currency)
ORDER BY a.tenant_id, a.seller_id, a.currency FOR UPDATE OF a;

-- name: add_to_balances
-- Changes payers' balances. Columns as in begin_accounts; $4 by so much.
UPDATE billing_account a SET balance_minor = a.balance_minor + changed.by_minor
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[])
  AS changed (tenant_id, seller_id, currency, by_minor)
WHERE a.tenant_id = changed.tenant_id AND a.seller_id = changed.seller_id AND a.currency = changed.currency;

-- name: billed
-- Gives whose invoice it is. $1 invoice id.
SELECT tenant_id, invoice_id, billing_tenant_id, seller_id, currency, number, subscription_id, period_start, issue,
       document, digest
FROM invoice WHERE invoice_id = $1;

-- name: add_receivables
-- Adds what invoices owe. $1 time; columns of receivable as far as they are known when it is made, amounts as array
-- literals.
INSERT INTO receivable (tenant_id, invoice_id, payer_tenant_id, state, due_at, subtotal_minor, tax_minor, balance_minor,
                        changed_at)
SELECT tenant_id, invoice_id, payer_tenant_id, state, due_at, subtotal_minor, tax_minor, balance_minor, $1
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::timestamptz[], $7::text::bigint[],
            $8::text::bigint[], $9::text::bigint[])
  AS added (tenant_id, invoice_id, payer_tenant_id, state, due_at, subtotal_minor, tax_minor, balance_minor);

-- name: lock_receivable
-- Locks what an invoice owes and gives it. $1 tenant id, $2 invoice id.
SELECT * FROM receivable WHERE tenant_id = $1 AND invoice_id = $2 FOR UPDATE;

-- name: save_receivable
-- Keeps what an invoice owes now. $1 tenant id, $2 invoice id, $3 state, $4 balance, $5 paid, $6 credited, $7 of that
-- from what was due, $8 of it tax, $9 written off, $10 refunded, $11 time.
UPDATE receivable SET state = $3, balance_minor = $4, paid_minor = $5, credited_minor = $6, credited_due_minor = $7,
       credited_tax_minor = $8, written_off_minor = $9, refunded_minor = $10, changed_at = $11
WHERE tenant_id = $1 AND invoice_id = $2;

-- name: add_transfers
-- Adds transfers to the journal. $1 time; columns $2 tenants, $3 ids, $4 sellers, $5 kinds, $6 debits, $7
-- credits, $8 amounts as an array literal, $9 currencies, $10 invoices, $11 subjects.
INSERT INTO journal (tenant_id, transfer_id, seller_id, at, kind, debit, credit, amount_minor, currency, invoice_id,
                     subject)
SELECT tenant_id, transfer_id, seller_id, $1, kind, debit, credit, amount_minor, currency, invoice_id, subject
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text::bigint[],
            $9::text[], $10::uuid[], $11::text[])
  AS added (tenant_id, transfer_id, seller_id, kind, debit, credit, amount_minor, currency, invoice_id, subject);

-- name: accounts
-- Sums the journal by currency and account: debits less credits. $1 only this payer's tenant id, or null.
SELECT currency, account, sum(amount)::bigint AS sum_minor
FROM journal, LATERAL (VALUES (debit, amount_minor), (credit, -amount_minor)) AS moved (account, amount)
WHERE $1::uuid IS NULL OR tenant_id = $1
GROUP BY currency, account ORDER BY currency, account;

-- name: journal
-- Lists transfers, newest first. $1 before this time and $2 this id, or null; $3 at most so many, $4 only this payer's
-- tenant id, or null.
SELECT j.transfer_id, j.at, t.wire_id, j.kind, j.debit, j.credit, j.amount_minor, j.currency, j.subject
FROM journal j JOIN tenant t USING (tenant_id)
WHERE ($1::timestamptz IS NULL OR (j.at, j.transfer_id) < ($1, $2::uuid)) AND ($4::uuid IS NULL OR j.tenant_id = $4)
ORDER BY j.at DESC, j.transfer_id DESC LIMIT $3;

-- name: add_payment
-- Adds a payment; nothing where one of that reference exists. Columns of payment in order.
INSERT INTO payment (tenant_id, payment_id, invoice_id, provider, reference, amount_minor, currency, received_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT ON CONSTRAINT payment_recorded_once DO NOTHING
RETURNING payment_id;

-- name: payments
-- Lists payments, newest first. $1 before this time and $2 this id, or null; $3 at most so many, $4 only this payer's
-- tenant id, or null.
SELECT p.payment_id, p.received_at, t.wire_id, i.number, p.amount_minor, p.currency, p.provider, p.reference
FROM payment p JOIN tenant t USING (tenant_id) JOIN invoice i USING (invoice_id)
WHERE ($1::timestamptz IS NULL OR (p.received_at, p.payment_id) < ($1, $2::uuid)) AND ($4::uuid IS NULL OR p.tenant_id = $4)
ORDER BY p.received_at DESC, p.payment_id DESC LIMIT $3;

-- name: lock_credit_notes
-- Locks a seller's numbers until the transaction ends and gives the next credit note's. $1 seller.
SELECT next_credit_note FROM invoice_number WHERE seller_id = $1 FOR UPDATE;

-- name: take_credit_note
-- Takes the next credit note's number; in force at commit, so a number that is not used is not taken. $1 seller.
UPDATE invoice_number SET next_credit_note = next_credit_note + 1 WHERE seller_id = $1;

-- name: add_credit_note
-- Adds a credit note. Columns of credit_note in order, without digest.
INSERT INTO credit_note (tenant_id, credit_note_id, seller_id, number, serial, invoice_id, issued_at, currency,
                         amount_minor, document, digest)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, sha256($10));

-- name: find_credit_note
-- Finds a credit note by its number. $1 number.
SELECT tenant_id, invoice_id, document, digest FROM credit_note WHERE number = $1;

-- name: credit_notes
-- Lists credit notes, newest first. $1 before this time and $2 this id, or null; $3 at most so many, $4 only this payer's
-- tenant id, $5 only this invoice's id, or null.
SELECT credit_note_id, issued_at, document, digest FROM credit_note
WHERE ($1::timestamptz IS NULL OR (issued_at, credit_note_id) < ($1, $2::uuid)) AND ($4::uuid IS NULL OR tenant_id = $4)
  AND ($5::uuid IS NULL OR invoice_id = $5)
ORDER BY issued_at DESC, credit_note_id DESC LIMIT $3;

-- name: add_refund
-- Adds a refund. Columns of refund in order.
INSERT INTO refund (tenant_id, refund_id, invoice_id, provider, amount_minor, currency, state, asked_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: past_due
-- Gives open invoices whose day has come, oldest first. $1 ledger time, $2 at most so many.
SELECT invoice_id FROM receivable WHERE state = 'finalised' AND due_at <= $1 ORDER BY due_at, invoice_id LIMIT $2;

-- name: profiles
-- Gives profiles of payers. $1 tenant ids.
SELECT * FROM billing_profile WHERE tenant_id = ANY ($1::uuid[]);

-- name: put_profile
-- Sets a profile as a whole. Columns of billing_profile in order.
INSERT INTO billing_profile (tenant_id, email, locale, paper, provider, due_days, taxes, tax_mode, review, dunning_days,
                             dunning_policy, fallback_plan, pays_by, set_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT (tenant_id) DO UPDATE SET email = excluded.email, locale = excluded.locale, paper = excluded.paper,
  provider = excluded.provider, due_days = excluded.due_days, taxes = excluded.taxes, tax_mode = excluded.tax_mode,
  review = excluded.review, dunning_days = excluded.dunning_days, dunning_policy = excluded.dunning_policy,
  fallback_plan = excluded.fallback_plan, pays_by = excluded.pays_by,
  set_at = excluded.set_at;

-- name: add_item
-- Adds an item to a tenant's next invoice. $1 tenant id, $2 item id, $3 description, $4 amount, $5 currency, $6 time.
INSERT INTO invoice_item (tenant_id, item_id, description, amount_minor, currency, added_at)
VALUES ($1, $2, $3, $4, $5, $6);

-- name: items
-- Lists items, newest first. $1 before this time and $2 this id, or null; $3 at most so many, $4 only this tenant id, or
-- null; $5 whether also those that a close took.
SELECT i.item_id, t.wire_id, i.description, i.amount_minor, i.currency, i.added_at,
       CASE WHEN i.period_start IS NULL THEN 'waiting' WHEN billed.number IS NULL THEN 'drafted' ELSE 'billed' END AS state,
       coalesce(billed.number, '') AS number
FROM invoice_item i JOIN tenant t USING (tenant_id)
LEFT JOIN LATERAL (
  SELECT number FROM invoice
  WHERE tenant_id = i.tenant_id AND subscription_id = i.subscription_id AND period_start = i.period_start
  ORDER BY issue DESC LIMIT 1
) billed ON true
WHERE ($1::timestamptz IS NULL OR (i.added_at, i.item_id) < ($1, $2::uuid)) AND ($4::uuid IS NULL OR i.tenant_id = $4)
  AND ($5 OR i.period_start IS NULL)
ORDER BY i.added_at DESC, i.item_id DESC LIMIT $3;

-- name: remove_item
-- Removes an item that no close has taken; gives what it was, nothing where there is none. $1 tenant id, $2 item id.
DELETE FROM invoice_item WHERE tenant_id = $1 AND item_id = $2 AND period_start IS NULL
RETURNING description, amount_minor, currency;

-- name: waiting_items
-- Gives items that no close has taken. $1 tenant ids.
SELECT tenant_id, currency, item_id, description, amount_minor FROM invoice_item
WHERE tenant_id = ANY ($1::uuid[]) AND period_start IS NULL ORDER BY added_at, item_id;

-- name: take_items
-- Marks items as taken by closes. Columns $1 items, $2 tenants, $3 subscriptions, $4 period starts.
UPDATE invoice_item i SET subscription_id = taken.subscription_id, period_start = taken.start
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[])
  AS taken (item_id, tenant_id, subscription_id, start)
WHERE i.tenant_id = taken.tenant_id AND i.item_id = taken.item_id;

-- name: return_items
-- Lets items that a close took wait again: its invoice is void. $1 tenant id, $2 subscription id, $3 period start.
UPDATE invoice_item SET subscription_id = NULL, period_start = NULL
WHERE tenant_id = $1 AND subscription_id = $2 AND period_start = $3;
