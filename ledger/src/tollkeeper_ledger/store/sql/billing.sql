-- Closing periods and finalising invoices.

-- name: subscriptions_to_bill
-- Gives the subscriptions whose periods may be due. $1 only this tenant's wire id, or null.
SELECT s.tenant_id, s.subscription_id, t.wire_id
FROM subscription s JOIN tenant t USING (tenant_id)
WHERE ($1::text IS NULL OR t.wire_id = $1)
ORDER BY t.wire_id, s.started_at, s.subscription_id;

-- name: definitions_by_version
-- Gives plan versions' bytes by id. $1 plan version ids.
SELECT v.plan_version_id, p.name, v.version, v.digest, v.definition
FROM plan_version v JOIN plan p USING (plan_id) WHERE v.plan_version_id = ANY ($1::uuid[]);

-- name: pending_closes
-- Gives closes whose invoices are missing, oldest first. $1 only this tenant's wire id, or null; $2 at most so many.
SELECT c.tenant_id, c.subscription_id, c.period_start, t.wire_id
FROM billing_close c JOIN tenant t USING (tenant_id)
WHERE c.billable AND NOT c.is_draft AND ($1::text IS NULL OR t.wire_id = $1)
  AND NOT EXISTS (SELECT FROM invoice i WHERE i.tenant_id = c.tenant_id AND i.subscription_id = c.subscription_id
                  AND i.period_start = c.period_start)
ORDER BY c.closed_at, c.tenant_id, c.subscription_id, c.period_start LIMIT $2;

-- name: list_version
-- Gives the version of a plan that was the newest when another plan version was made. $1 digest of that, $2 plan.
SELECT v.definition FROM plan_version own, plan p JOIN plan_version v USING (plan_id)
WHERE own.digest = $1 AND p.name = $2 AND v.created_at <= own.created_at ORDER BY v.version DESC LIMIT 1;

-- name: producers
-- Gives the producers that served tenants. $1 tenant ids.
SELECT pt.tenant_id, p.producer_id, p.state, p.watermark,
       greatest(clock_timestamp() - p.seen_at, interval '0') AS silent_for
FROM producer_tenant pt JOIN producer p USING (producer_id)
WHERE pt.tenant_id = ANY ($1::uuid[]) ORDER BY p.producer_id;

-- name: close_segments
-- Closes every segment of periods, late ones as well. Columns $1 tenants, $2 subscriptions, $3 starts, $4 ends; $5
-- time.
UPDATE billing_segment b SET state = 'closed', closed_at = $5
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
  AS asked (tenant_id, subscription_id, first, last)
WHERE b.tenant_id = asked.tenant_id AND b.subscription_id = asked.subscription_id AND b.period_start >= asked.first
  AND b.period_start < asked.last AND b.state = 'open';

-- name: period_segments
-- Gives every segment of periods. Columns as in close_segments.
SELECT b.tenant_id, b.subscription_id, asked.first AS start, b.segment_id, b.late_for, own.period_start AS own_start,
       own.period_end AS own_end, p.name, v.version, v.digest, b.state = 'parted' AS is_parted, b.part
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
  AS asked (tenant_id, subscription_id, first, last)
JOIN billing_segment b ON b.tenant_id = asked.tenant_id AND b.subscription_id = asked.subscription_id
  AND b.period_start >= asked.first AND b.period_start < asked.last
JOIN billing_segment own ON own.tenant_id = b.tenant_id AND own.segment_id = coalesce(b.late_for, b.segment_id)
JOIN plan_version v ON v.plan_version_id = own.plan_version_id JOIN plan p USING (plan_id)
ORDER BY own.period_start, b.part, b.segment_id;

-- name: billed_before
-- Gives the segments that were billed for earlier periods under the same plan version: those periods' own and late ones
-- of closed periods, each with the start of its own stretch. $1 tenant id, $2 segments of those periods, $3 period start
-- of the invoice being made.
SELECT b.segment_id, asked.segment_id AS own, base.period_start AS base_start
FROM billing_segment asked
LEFT JOIN billing_close c ON c.tenant_id = asked.tenant_id AND c.subscription_id = asked.subscription_id
  AND NOT c.is_cut AND c.period_start <= asked.period_start AND asked.period_start < c.period_end
JOIN billing_segment base ON base.tenant_id = asked.tenant_id AND base.late_for IS NULL
  AND (base.segment_id = asked.segment_id
       OR (base.subscription_id = asked.subscription_id AND base.plan_version_id = asked.plan_version_id
           AND base.period_start >= c.period_start AND base.period_start < c.period_end))
JOIN billing_segment b ON b.tenant_id = base.tenant_id AND coalesce(b.late_for, b.segment_id) = base.segment_id
WHERE asked.tenant_id = $1 AND asked.segment_id = ANY ($2::uuid[]) AND b.period_start < $3
ORDER BY asked.segment_id, base.period_start, b.segment_id;

-- name: segment_totals
-- Sums segments by meter, or counts their records, never below 0: a level that fell by more than it rose bills nothing.
-- Distinct values don't add up: count_values. A late segment may well be below 0: it takes back what was billed and then
-- voided; and so may a part of a segment, whose parts are added up first. Columns $1 tenants, $2 segments, $3 and $4 spans that hold all their usage.
SELECT used.segment_id, m.name AS meter, m.unit, m.scale,
       greatest(CASE WHEN b.late_for IS NULL AND b.part = 0 AND b.state <> 'parted' THEN 0 END,
                CASE m.aggregation WHEN 'count' THEN used.records ELSE used.units END) AS units
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
  AS asked (tenant_id, segment_id, first, last)
CROSS JOIN LATERAL (
  SELECT asked.segment_id, r.meter_id, sum(r.records) AS records, sum(r.units) AS units
  FROM usage_rollup_minute r
  WHERE r.tenant_id = asked.tenant_id AND r.segment_id = asked.segment_id
    AND r.minute > asked.first - interval '1 minute' AND r.minute < asked.last
  GROUP BY r.meter_id
) used
JOIN billing_segment b ON b.tenant_id = asked.tenant_id AND b.segment_id = asked.segment_id
JOIN meter m USING (meter_id)
WHERE m.aggregation <> 'unique' ORDER BY used.segment_id, m.name;

-- name: unique_meters
-- Gives those of these meters that count distinct values. $1 names.
SELECT meter_id, name, unit, scale FROM meter WHERE aggregation = 'unique' AND name = ANY ($1::text[]) ORDER BY name;

-- name: count_values
-- Counts the distinct values of a meter in segments together, voided ones left out. $1 tenant id, $2 segment ids,
-- $3 meter id.
SELECT count(*) FROM (
  SELECT value FROM usage_rollup_value WHERE tenant_id = $1 AND segment_id = ANY ($2::uuid[]) AND meter_id = $3
  GROUP BY value HAVING sum(records) > 0
) AS counted;

-- name: segment_records
-- Counts the records of segments whose events lie in their spans. Columns as in segment_totals.
SELECT asked.segment_id, counted.records
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[])
  AS asked (tenant_id, segment_id, first, last)
CROSS JOIN LATERAL (
  SELECT count(*) AS records FROM usage_record r
  WHERE r.tenant_id = asked.tenant_id AND r.segment_id = asked.segment_id AND r.event_time >= asked.first
    AND r.event_time < asked.last
) counted;

-- name: segment_values
-- Sums segments by values of a meter's dimensions, as segment_totals does. $1 tenant id, $2 segment ids, $3 meter,
-- $4 names of dimensions.
SELECT r.segment_id, m.unit, m.scale,
       greatest(CASE WHEN b.late_for IS NULL AND b.part = 0 AND b.state <> 'parted' THEN 0 END,
                CASE m.aggregation WHEN 'count' THEN sum(r.records) ELSE sum(r.units) END) AS units,
       ARRAY(SELECT coalesce(r.dims::jsonb ->> name, '') FROM unnest($4::text[]) AS name) AS values
FROM usage_rollup_minute r JOIN meter m USING (meter_id) JOIN billing_segment b USING (tenant_id, segment_id)
WHERE r.tenant_id = $1 AND r.segment_id = ANY ($2::uuid[]) AND m.name = $3
GROUP BY r.segment_id, b.late_for, b.part, b.state, m.unit, m.scale, m.aggregation, values ORDER BY r.segment_id, values;

-- name: segment_events
-- Gives the records of a meter in order of event time and id; voids (flag 32) stand beside what they take back. $1 tenant
-- id, $2 segment ids, $3 from, $4 to, $5 meter, $6 names of dimensions, $7 at most so many.
SELECT r.segment_id, m.unit, m.scale, r.units[used.place] AS units, r.flags & 32 <> 0 AS is_void,
       ARRAY(SELECT coalesce(r.attributes ->> name, '') FROM unnest($6::text[]) AS name) AS values
FROM usage_record r
JOIN meter m ON m.name = $5
CROSS JOIN LATERAL unnest(r.meter_ids) WITH ORDINALITY AS used (meter_id, place)
WHERE r.tenant_id = $1 AND r.segment_id = ANY ($2::uuid[]) AND r.event_time >= $3 AND r.event_time < $4
  AND used.meter_id = m.meter_id
ORDER BY r.event_time, r.flags & 32, r.id LIMIT $7;

-- name: inputs_ending
-- Reads the inputs of the closes that end where periods begin, as their newest invoices have them, and whether these are
-- void. Columns $1 tenants, $2 subscriptions, $3 period starts.
SELECT c.subscription_id, c.inputs, c.is_void
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS asked (tenant_id, subscription_id, start)
JOIN close_as_billed c ON c.tenant_id = asked.tenant_id AND c.subscription_id = asked.subscription_id
  AND c.period_end = asked.start AND NOT c.is_cut;

-- name: inputs_around
-- Reads the inputs of the close of the period that has an instant, as its newest invoice has them, and whether that is
-- void. $1 tenant id, $2 subscription id, $3 instant.
SELECT inputs, is_void FROM close_as_billed
WHERE tenant_id = $1 AND subscription_id = $2 AND period_start <= $3 AND period_end > $3 AND NOT is_cut;

-- name: inputs_from
-- Reads the inputs of the close that begins at an instant, as its newest invoice has them, unless that is void. $1
-- tenant id, $2 subscription id, $3 instant.
SELECT inputs FROM close_as_billed
WHERE tenant_id = $1 AND subscription_id = $2 AND period_start = $3 AND NOT is_cut AND NOT is_void;

-- name: inputs_late_for
-- Reads the inputs of closes that bill late usage of a closed period, as their newest invoices have them, but of void
-- ones. $1 tenant id, $2 subscription id, $3 start of the closed period.
SELECT c.inputs
FROM billing_close own
JOIN close_as_billed c ON c.tenant_id = own.tenant_id AND c.period_start > own.period_start AND NOT c.is_cut
WHERE own.tenant_id = $1 AND own.subscription_id = $2 AND own.period_start = $3 AND NOT c.is_void
  AND EXISTS (
    SELECT FROM billing_segment base
    JOIN billing_segment late ON late.tenant_id = base.tenant_id AND late.late_for = base.segment_id
    WHERE base.tenant_id = own.tenant_id AND base.subscription_id = own.subscription_id
      AND base.period_start >= own.period_start AND base.period_start < own.period_end
      AND late.subscription_id = c.subscription_id AND late.period_start >= c.period_start
      AND late.period_start < c.period_end)
ORDER BY c.period_start;

-- name: opened
-- Gives the subscriptions whose first fees in advance are billed. $1 tenant ids.
SELECT c.subscription_id FROM billing_close c JOIN subscription s USING (tenant_id, subscription_id)
WHERE c.tenant_id = ANY ($1::uuid[]) AND c.period_end = s.started_at;

-- name: coupons
-- Gives the coupons that are still good. Columns $1 tenants, $2 subscriptions, $3 the periods' ends.
SELECT c.subscription_id, c.coupon_id, c.name, c.percent, c.amount_minor
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS asked (tenant_id, subscription_id, last)
JOIN subscription_coupon c ON c.tenant_id = asked.tenant_id AND c.subscription_id = asked.subscription_id
  AND coalesce(c.periods_left, 1) > 0 AND c.removed_at IS NULL AND c.created_at < asked.last
ORDER BY c.created_at, c.coupon_id;

-- name: use_coupons
-- Counts an invoice for coupons. $1 tenant ids, $2 coupon ids.
UPDATE subscription_coupon SET periods_left = periods_left - 1
WHERE tenant_id = ANY ($1::uuid[]) AND coupon_id = ANY ($2::uuid[]) AND periods_left > 0;

-- name: return_coupons
-- Takes an invoice that became void off coupons' count. $1 tenant id, $2 coupon ids.
UPDATE subscription_coupon SET periods_left = periods_left + 1
WHERE tenant_id = $1 AND coupon_id = ANY ($2::uuid[]);

-- name: grants
-- Gives tenants' grants with their balances in the order in which they are used. $1 tenant ids.
SELECT g.tenant_id, g.grant_id, g.name, g.meter, g.currency, g.amount, g.priority, g.expires_at, g.recurs, g.rollover_max,
       g.created_at, e.balance, g.revoked_at
FROM prepaid_grant g
CROSS JOIN LATERAL (
  SELECT balance FROM prepaid_entry WHERE tenant_id = g.tenant_id AND grant_id = g.grant_id
  ORDER BY entry_id DESC LIMIT 1
) e
WHERE g.tenant_id = ANY ($1::uuid[])
ORDER BY g.priority, g.expires_at NULLS LAST, g.created_at, g.grant_id;

-- name: add_grant
-- Adds a grant. Columns of prepaid_grant in order.
INSERT INTO prepaid_grant (tenant_id, grant_id, name, meter, currency, amount, priority, expires_at, recurs,
                           rollover_max, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: add_grant_entries
-- Adds movements of grants in this order. $1 time; columns $2 tenants, $3 grants, $4 kinds, $5 amounts, $6 balances, $7
-- period starts or null.
INSERT INTO prepaid_entry (tenant_id, grant_id, at, kind, amount, balance, period_start)
SELECT tenant_id, grant_id, $1, kind, amount, balance, period_start
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[]) WITH ORDINALITY
  AS added (tenant_id, grant_id, kind, amount, balance, period_start, place) ORDER BY place;

-- name: grant_entries
-- Gives the movements of a tenant's grants in order. $1 tenant id.
SELECT e.grant_id, g.name, e.at, e.kind, e.amount, e.balance, g.meter, g.currency
FROM prepaid_entry e JOIN prepaid_grant g USING (tenant_id, grant_id)
WHERE e.tenant_id = $1 ORDER BY e.entry_id;

-- name: add_coupon
-- Adds a coupon. Columns of subscription_coupon in order.
INSERT INTO subscription_coupon (tenant_id, subscription_id, coupon_id, name, percent, amount_minor, periods_left,
                                 created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: list_coupons
-- Lists coupons, newest first. $1 before this time and $2 this id, or null; $3 at most so many, $4 only this tenant id,
-- or null; $5 whether also those that are used up or removed.
SELECT c.coupon_id, t.wire_id, c.name, c.percent, c.amount_minor, c.periods_left, c.created_at, c.removed_at
FROM subscription_coupon c JOIN tenant t USING (tenant_id)
WHERE ($1::timestamptz IS NULL OR (c.created_at, c.coupon_id) < ($1, $2::uuid)) AND ($4::uuid IS NULL OR c.tenant_id = $4)
  AND ($5 OR (coalesce(c.periods_left, 1) > 0 AND c.removed_at IS NULL))
ORDER BY c.created_at DESC, c.coupon_id DESC LIMIT $3;

-- name: remove_coupon
-- Takes a coupon back; gives what it was, nothing where it is removed already. $1 tenant id, $2 coupon id, $3 time.
UPDATE subscription_coupon SET removed_at = $3 WHERE tenant_id = $1 AND coupon_id = $2 AND removed_at IS NULL
RETURNING name, percent, amount_minor, periods_left;

-- name: has_coupon
-- Whether a tenant ever had a coupon. $1 tenant id, $2 coupon id.
SELECT EXISTS (SELECT FROM subscription_coupon WHERE tenant_id = $1 AND coupon_id = $2);

-- name: revoke_grant
-- Marks a grant as taken back. $1 tenant id, $2 grant id, $3 time.
UPDATE prepaid_grant SET revoked_at = $3 WHERE tenant_id = $1 AND grant_id = $2;

-- name: chain_heads
-- Gives the last link of every stream of the usage chain.
SELECT stream, position, hash FROM usage_chain_head ORDER BY stream;

-- name: parties
-- Gives seller, tenant and payer of tenants. $1 tenant ids.
SELECT t.tenant_id, s.seller_id, s.name AS seller_name, s.address AS seller_address, s.tax_id AS seller_tax_id, s.email, s.website,
       s.tax_note, s.payment_note, s.invoice_prefix, s.logo, t.wire_id, t.display_name, t.address, t.tax_id,
       coalesce(p.tenant_id, t.tenant_id) AS payer_id, coalesce(p.wire_id, t.wire_id) AS payer_wire_id,
       coalesce(p.display_name, t.display_name) AS payer_name, coalesce(p.address, t.address) AS payer_address,
       coalesce(p.tax_id, t.tax_id) AS payer_tax_id, coalesce(p.country, t.country) AS payer_country,
       coalesce(p.region, t.region) AS payer_region
FROM tenant t JOIN seller s USING (seller_id) LEFT JOIN tenant p ON p.tenant_id = t.billing_tenant_id
WHERE t.tenant_id = ANY ($1::uuid[]);

-- name: seller_taxes
-- Gives what sellers say of taxes.
SELECT seller_id, taxes FROM seller;

-- name: add_closes
-- Keeps closes. Columns $1 tenants, $2 subscriptions, $3 starts, $4 ends, $6 billable, $7 draft, $8 inputs, $9 cut; $5
-- time.
INSERT INTO billing_close (tenant_id, subscription_id, period_start, period_end, closed_at, billable, is_draft, inputs,
                           is_cut)
SELECT tenant_id, subscription_id, first, last, $5, billable, is_draft, inputs, is_cut
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $6::boolean[], $7::boolean[],
            $8::bytea[], $9::boolean[])
  AS added (tenant_id, subscription_id, first, last, billable, is_draft, inputs, is_cut);

-- name: advance_billed_until
-- Moves subscriptions' billing on to periods' ends. Columns $1 tenants, $2 subscriptions, $3 ends.
UPDATE subscription s SET billed_until = moved.last
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS moved (tenant_id, subscription_id, last)
WHERE s.tenant_id = moved.tenant_id AND s.subscription_id = moved.subscription_id;

-- name: closes
-- Reads closes. Columns $1 tenants, $2 subscriptions, $3 period starts.
SELECT c.tenant_id, c.subscription_id, c.period_start, c.inputs
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS asked (tenant_id, subscription_id, start)
JOIN billing_close c ON c.tenant_id = asked.tenant_id AND c.subscription_id = asked.subscription_id
  AND c.period_start = asked.start;

-- name: definitions
-- Gives plan versions' bytes by digest. $1 digests.
SELECT DISTINCT ON (digest) digest, definition FROM plan_version WHERE digest = ANY ($1::bytea[]) ORDER BY digest;

-- name: begin_numbers
-- Makes a seller's number row where there is none. $1 seller.
INSERT INTO invoice_number (seller_id, next) VALUES ($1, 1) ON CONFLICT DO NOTHING;

-- name: take_numbers
-- Takes a seller's next numbers; the row stays locked until commit, so a number that is not used is not taken. $1 seller,
-- $2 how many. Gives the first.
UPDATE invoice_number SET next = next + $2 WHERE seller_id = $1 RETURNING next - $2;

-- name: lock_numbers
-- Locks a seller's numbers until the transaction ends. $1 seller.
SELECT next FROM invoice_number WHERE seller_id = $1 FOR UPDATE;

-- name: invoiced
-- Gives those of these closes that have their invoices. Columns as in closes.
SELECT DISTINCT i.tenant_id, i.subscription_id, i.period_start
FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) AS asked (tenant_id, subscription_id, start)
JOIN invoice i ON i.tenant_id = asked.tenant_id AND i.subscription_id = asked.subscription_id
  AND i.period_start = asked.start;

-- name: add_invoices
-- Adds finalised invoices. $1 time of finalising; then columns of invoice in order, without that, numbers as array
-- literals.
INSERT INTO invoice (tenant_id, invoice_id, subscription_id, billing_tenant_id, seller_id, number, serial, period_start,
                     period_end, currency, subtotal_minor, tax_minor, total_minor, finalised_at, record_count,
                     document, digest, issue, replaces, inputs)
SELECT tenant_id, invoice_id, subscription_id, billing_tenant_id, seller_id, number, serial, period_start, period_end,
       currency, subtotal_minor, tax_minor, total_minor, $1, record_count, document, digest, issue, replaces, inputs
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[],
            $8::text::bigint[], $9::timestamptz[], $10::timestamptz[], $11::text[], $12::text::bigint[],
            $13::text::bigint[], $14::text::bigint[], $15::text::bigint[], $16::bytea[], $17::bytea[], $18::text::int[],
            $19::uuid[], $20::bytea[])
  AS added (tenant_id, invoice_id, subscription_id, billing_tenant_id, seller_id, number, serial, period_start,
            period_end, currency, subtotal_minor, tax_minor, total_minor, record_count, document, digest, issue,
            replaces, inputs);

-- name: add_lines
-- Adds invoices' lines. $1 tenants and $2 ids of the invoices, $3 starts and $4 ends of the spans that lines are of;
-- columns $5 place of its invoice, $6 number, $7 description, $8 meter, $9 quantity, $10 amount, $11 place of its span,
-- numbers as array literals.
INSERT INTO invoice_line (tenant_id, invoice_id, line, description, meter, quantity, amount_minor, period_start,
                          period_end)
SELECT ($1::uuid[])[invoice], ($2::uuid[])[invoice], line, description, meter, quantity, amount_minor,
       ($3::timestamptz[])[span], ($4::timestamptz[])[span]
FROM unnest($5::text::int[], $6::text::int[], $7::text[], $8::text[], $9::text::bigint[], $10::text::bigint[],
            $11::text::int[])
  AS added (invoice, line, description, meter, quantity, amount_minor, span);

-- name: invoices
-- Lists invoices, newest first. $1 before this time and $2 this invoice id, or null; $3 at most so many, $4 only this
-- tenant's wire id, or null.
SELECT i.invoice_id, i.finalised_at, i.document, i.digest, r.state, r.due_at, r.due_minor, r.balance_minor,
       r.paid_minor, r.credited_minor, r.refunded_minor, v.number AS replaces
FROM invoice i JOIN tenant t USING (tenant_id) JOIN receivable r USING (tenant_id, invoice_id)
LEFT JOIN invoice v ON v.tenant_id = i.tenant_id AND v.invoice_id = i.replaces
WHERE ($1::timestamptz IS NULL OR (i.finalised_at, i.invoice_id) < ($1, $2::uuid))
  AND ($4::text IS NULL OR t.wire_id = $4)
ORDER BY i.finalised_at DESC, i.invoice_id DESC LIMIT $3;

-- name: find_invoice
-- Finds an invoice by number or id. $1 number, $2 id or null.
SELECT i.invoice_id, i.finalised_at, i.document, i.digest, r.state, r.due_at, r.due_minor, r.balance_minor,
       r.paid_minor, r.credited_minor, r.refunded_minor, v.number AS replaces
FROM invoice i JOIN receivable r USING (tenant_id, invoice_id)
LEFT JOIN invoice v ON v.tenant_id = i.tenant_id AND v.invoice_id = i.replaces
WHERE i.number = $1 OR i.invoice_id = $2 ORDER BY (i.invoice_id = $2) DESC NULLS LAST LIMIT 1;

-- name: stored_inputs
-- Gives the inputs that an invoice was made of, nothing where they are gone. $1 invoice id.
SELECT coalesce(i.inputs, c.inputs, '') AS inputs, i.tenant_id, i.number,
       least(greatest(i.finalised_at, '0001-01-02Z'), '9999-12-30Z') AS finalised_at, i.document, i.digest
FROM invoice i LEFT JOIN billing_close c USING (tenant_id, subscription_id, period_start)
WHERE i.invoice_id = $1;

-- name: drafts
-- Gives drafts, oldest first. $1 only this tenant's wire id, or null; $2 at most so many.
SELECT c.tenant_id, c.subscription_id, c.period_start, c.inputs
FROM billing_close c JOIN tenant t USING (tenant_id)
WHERE c.billable AND c.is_draft AND ($1::text IS NULL OR t.wire_id = $1)
  AND NOT EXISTS (SELECT FROM invoice i WHERE i.tenant_id = c.tenant_id AND i.subscription_id = c.subscription_id
                  AND i.period_start = c.period_start)
ORDER BY c.closed_at, c.tenant_id, c.period_start LIMIT $2;

-- name: closes_after
-- Gives a page of all closes that begin in the years 1 to 9999. $1 tenant, $2 subscription and $3 period to begin after,
-- nulls at first; $4 most.
SELECT c.tenant_id, c.subscription_id, c.period_start, c.inputs, t.wire_id
FROM billing_close c LEFT JOIN tenant t USING (tenant_id)
WHERE ($1::uuid IS NULL OR (c.tenant_id, c.subscription_id, c.period_start) > ($1, $2::uuid, $3::timestamptz))
  AND c.period_start BETWEEN '0001-01-02Z' AND '9999-12-30Z'
ORDER BY c.tenant_id, c.subscription_id, c.period_start LIMIT $4;

-- name: closes_beyond
-- Gives closes that begin in no year from 1 to 9999. $1 most.
SELECT coalesce(t.wire_id, c.tenant_id::text) AS wire_id, c.period_start::text AS period_start
FROM billing_close c LEFT JOIN tenant t USING (tenant_id)
WHERE NOT c.period_start BETWEEN '0001-01-02Z' AND '9999-12-30Z' ORDER BY c.tenant_id, c.subscription_id LIMIT $1;

-- name: closes_between
-- Gives closes of periods, but no cuts, that begin in a span, of tenants in order of wire id. $1 from, $2 to.
SELECT c.tenant_id, c.subscription_id, c.period_start, c.inputs, t.wire_id
FROM billing_close c JOIN tenant t USING (tenant_id)
WHERE c.period_start >= $1 AND c.period_start < $2 AND NOT c.is_cut
ORDER BY t.wire_id, c.period_start, c.subscription_id;

-- name: progressive_subscriptions
-- Gives subscriptions that have a plan with a threshold now. $1 ledger time, $2 only this tenant's wire id, or null.
SELECT s.tenant_id, s.subscription_id, t.wire_id
FROM subscription s JOIN tenant t USING (tenant_id)
CROSS JOIN LATERAL (
  SELECT plan_version_id FROM subscription_phase p
  WHERE p.tenant_id = s.tenant_id AND p.subscription_id = s.subscription_id AND p.starts_at <= $1
  ORDER BY p.starts_at DESC LIMIT 1
) phase
WHERE ($2::text IS NULL OR t.wire_id = $2) AND (s.ended_at IS NULL OR s.ended_at > $1)
  AND phase.plan_version_id IN (
    SELECT plan_version_id FROM plan_version
    WHERE convert_from(definition, 'UTF8')::jsonb ? 'progressive_threshold')
ORDER BY t.wire_id, s.started_at, s.subscription_id;

-- name: cuts
-- Gives the cuts of a period whose invoices stand, or are still to come: inputs, and number or null. $1 tenant id,
-- $2 subscription id, $3 period start, $4 end.
SELECT period_end AS cut_at, inputs, number FROM close_as_billed
WHERE tenant_id = $1 AND subscription_id = $2 AND is_cut AND period_start > $3 AND period_start < $4 AND NOT is_void
ORDER BY period_end;

-- name: is_counted
-- Says whether a cut's period is closed, so that its invoice counts on the cut's. $1 tenant id, $2 subscription id,
-- $3 start of the cut's row.
SELECT EXISTS (SELECT FROM billing_close
               WHERE tenant_id = $1 AND subscription_id = $2 AND NOT is_cut AND period_start < $3 AND period_end > $3);

-- name: was_cut
-- Says whether a cut was made at an instant or later. $1 tenant id, $2 subscription id, $3 instant.
SELECT EXISTS (SELECT FROM billing_close
               WHERE tenant_id = $1 AND subscription_id = $2 AND is_cut AND period_end >= $3::timestamptz);
