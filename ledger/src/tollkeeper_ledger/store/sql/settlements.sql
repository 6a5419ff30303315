-- Outcomes of reservations that ended elsewhere than at their home.

-- name: add
-- Keeps outcomes. Columns $1 tenant ids, $2 reservation ids, $3 homes, $4 meter ids and $5 units as array literals;
-- $6 ledger time.
INSERT INTO settlement (tenant_id, reservation_id, home, meter_ids, units, committed_at)
SELECT tenant_id, reservation_id, home, meter_ids::integer[], units::bigint[], $6::timestamptz
FROM unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::text[], $5::text[])
  AS outcome (tenant_id, reservation_id, home, meter_ids, units)
ON CONFLICT (tenant_id, reservation_id) DO NOTHING;

-- name: of_home
-- Gives what a home has not taken in yet, in order. $1 home, $2 reservation id after which to go on, $3 how many.
SELECT reservation_id, units,
       ARRAY (SELECT meter.name FROM unnest(settlement.meter_ids) WITH ORDINALITY AS used (meter_id, place)
              JOIN meter USING (meter_id) ORDER BY place) AS meters
FROM settlement WHERE home = $1 AND reservation_id > $2
ORDER BY reservation_id LIMIT $3;

-- name: forget
-- Forgets outcomes that their home has taken in. $1 home, $2 reservation ids.
DELETE FROM settlement WHERE home = $1 AND reservation_id = ANY ($2::bytea[]);

-- name: expire
-- Forgets the oldest outcomes that were committed before a time; gives how many. $1 time, $2 how many at most.
WITH gone AS (
  DELETE FROM settlement
  WHERE (tenant_id, reservation_id) IN (
    SELECT tenant_id, reservation_id FROM settlement WHERE committed_at < $1 ORDER BY committed_at LIMIT $2)
  RETURNING 1)
SELECT count(*) FROM gone;

-- name: end_of
-- Gives the record that ended a reservation. $1 tenant id, $2 record id.
SELECT record.flags, record.units,
       ARRAY (SELECT meter.name FROM unnest(record.meter_ids) WITH ORDINALITY AS used (meter_id, place)
              JOIN meter USING (meter_id) ORDER BY place) AS meters
FROM usage_id known
JOIN usage_record record
  ON record.tenant_id = known.tenant_id AND record.id = known.id AND record.batch_id = known.batch_id
WHERE known.tenant_id = $1 AND known.id = $2;
