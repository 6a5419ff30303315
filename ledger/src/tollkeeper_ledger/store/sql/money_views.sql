-- Money over time: what is owed, and what was earned.

-- name: receivables
-- Sums what payers owe by age, who owes most first. $1 ledger time, $2 only this payer's tenant id, or null.
SELECT t.wire_id, i.currency,
       coalesce(sum(r.due_minor) FILTER (WHERE r.due_at > $1), 0)::bigint AS current_minor,
       coalesce(sum(r.due_minor) FILTER (WHERE r.due_at <= $1 AND r.due_at > $1 - interval '30 days'), 0)::bigint
         AS days_30_minor,
       coalesce(sum(r.due_minor) FILTER (WHERE r.due_at <= $1 - interval '30 days'
                                         AND r.due_at > $1 - interval '60 days'), 0)::bigint AS days_60_minor,
       coalesce(sum(r.due_minor) FILTER (WHERE r.due_at <= $1 - interval '60 days'
                                         AND r.due_at > $1 - interval '90 days'), 0)::bigint AS days_90_minor,
       coalesce(sum(r.due_minor) FILTER (WHERE r.due_at <= $1 - interval '90 days'), 0)::bigint AS older_minor,
       sum(r.due_minor)::bigint AS total_minor
FROM receivable r JOIN invoice i USING (invoice_id) JOIN tenant t ON t.tenant_id = r.payer_tenant_id
WHERE r.state IN ('finalised', 'past_due') AND r.due_minor > 0 AND ($2::uuid IS NULL OR r.payer_tenant_id = $2)
GROUP BY t.wire_id, i.currency ORDER BY total_minor DESC, t.wire_id, i.currency;

-- name: revenue
-- Sums invoices after coupons without tax, credits taken off, by month and group. $1 `month`, `plan` or `tenant`, $2
-- ends after, $3 ends by, or null.
SELECT to_char(i.period_end - interval '1 microsecond', 'YYYY-MM') AS month,
       CASE $1 WHEN 'plan' THEN convert_from(i.document, 'UTF8')::jsonb #>> '{plan,name}' WHEN 'tenant' THEN t.wire_id
         ELSE '' END AS name,
       i.currency, sum(r.subtotal_minor - (r.credited_minor - r.credited_tax_minor))::bigint AS revenue_minor
FROM invoice i JOIN receivable r USING (tenant_id, invoice_id) JOIN tenant t USING (tenant_id)
WHERE r.state <> 'void' AND ($2::timestamptz IS NULL OR i.period_end > $2)
  AND ($3::timestamptz IS NULL OR i.period_end <= $3)
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- name: revenue_by_meter
-- Sums lines after coupons without tax, by month and meter; what is credited comes off an invoice's lines above zero in
-- proportion, so that all meters add up to what `revenue` gives. $1 ends after, $2 ends by, or null.
WITH read AS (
  SELECT i.tenant_id, i.invoice_id, i.currency,
         to_char(i.period_end - interval '1 microsecond', 'YYYY-MM') AS month,
         r.credited_minor - r.credited_tax_minor AS credited_minor, convert_from(i.document, 'UTF8')::jsonb AS document
  FROM invoice i JOIN receivable r USING (tenant_id, invoice_id)
  WHERE r.state <> 'void' AND ($1::timestamptz IS NULL OR i.period_end > $1)
    AND ($2::timestamptz IS NULL OR i.period_end <= $2)
), line AS (
  SELECT read.*, place, said.line ->> 'meter' AS name,
         (said.line ->> 'amount_minor')::numeric - (said.line ->> 'discount_minor')::numeric
           - CASE document #>> '{billing,tax_mode}' WHEN 'inclusive' THEN (said.line #>> '{tax,tax_minor}')::numeric
             ELSE 0 END AS net_minor
  FROM read, jsonb_array_elements(document -> 'lines') WITH ORDINALITY AS said (line, place)
), weighed AS (
  SELECT *, sum(greatest(net_minor, 0)) OVER invoiced AS upto, sum(greatest(net_minor, 0)) OVER whole AS weight
  FROM line WINDOW whole AS (PARTITION BY tenant_id, invoice_id), invoiced AS (whole ORDER BY place)
)
SELECT month, name, currency,
       sum(net_minor - CASE WHEN weight > 0
             THEN div(credited_minor * upto, weight) - div(credited_minor * (upto - greatest(net_minor, 0)), weight)
             WHEN place = 1 THEN credited_minor ELSE 0 END)::bigint AS revenue_minor
FROM weighed GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- name: usage_at_cost
-- Sums the usage of closed periods, trials and plans without invoices too, of meters that have a cost price, by month of
-- the period's end, group and cost price: the one in force then, else the first. $1 `month`, `meter` or `tenant`, $2
-- ends after, $3 ends by, or null.
WITH closed AS (
  SELECT t.wire_id, c.period_end, to_char(c.period_end - interval '1 microsecond', 'YYYY-MM') AS month,
         convert_from(c.inputs, 'UTF8')::jsonb AS inputs
  FROM billing_close c JOIN tenant t USING (tenant_id)
  WHERE NOT c.is_cut AND ($2::timestamptz IS NULL OR c.period_end > $2)
    AND ($3::timestamptz IS NULL OR c.period_end <= $3)
), used AS (
  SELECT closed.wire_id, period_end, month, total ->> 'meter' AS meter, (total ->> 'units')::numeric AS units
  FROM closed, LATERAL (
    SELECT jsonb_path_query(inputs, '$.segments[*].totals[*]') AS total
    UNION ALL SELECT jsonb_path_query(inputs, '$.late[*].segment.totals[*]')
  ) said
)
SELECT month, CASE $1 WHEN 'tenant' THEN wire_id WHEN 'meter' THEN used.meter ELSE '' END AS name, m.scale, p.amount,
       p.per, p.currency, sum(used.units) AS units
FROM used JOIN meter m ON m.name = used.meter
CROSS JOIN LATERAL (
  SELECT amount, per, currency FROM meter_cost_price WHERE meter_id = m.meter_id
  ORDER BY since <= used.period_end DESC, abs(extract(epoch FROM used.period_end - since)) LIMIT 1
) p
WHERE p.amount IS NOT NULL
GROUP BY 1, 2, 3, 4, 5, 6;

-- name: credit_notes_of
-- Gives the credit notes of invoices. Columns $1 payers' tenants and $2 invoices.
SELECT c.invoice_id, c.document
FROM unnest($1::uuid[], $2::uuid[]) AS asked (tenant_id, invoice_id) JOIN credit_note c USING (tenant_id, invoice_id)
ORDER BY c.issued_at, c.credit_note_id;
