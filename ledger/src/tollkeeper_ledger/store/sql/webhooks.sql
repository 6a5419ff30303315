-- Receivers of alerts, and messages to them. Times are real time.

-- name: add
-- Adds a receiver. $1 id, $2 URL, $3 only this tenant or null, $4 secret.
INSERT INTO webhook (webhook_id, url, only_tenant_id, secrets) VALUES ($1, $2, $3, ARRAY[$4::text]);

-- name: rotate
-- Gives a receiver another secret beside the newest one; says whether there is one. $1 id, $2 secret.
UPDATE webhook SET secrets = ARRAY[$2::text, secrets[1]] WHERE webhook_id = $1 AND NOT removed RETURNING webhook_id;

-- name: secrets
-- Gives the secrets of a receiver that is not removed, the newest first. $1 id.
SELECT secrets FROM webhook WHERE webhook_id = $1 AND NOT removed;

-- name: remove
-- Removes a receiver and its secrets once nobody queues messages to it; says whether there was one. $1 id.
UPDATE webhook SET removed = true, secrets = '{}' WHERE webhook_id = $1 AND NOT removed RETURNING webhook_id;

-- name: give_up
-- Gives up what waits for a receiver. $1 id.
UPDATE webhook_message SET state = 'dead', reply = 'the receiver was removed' WHERE webhook_id = $1 AND state = 'queued';

-- name: webhooks
-- Lists receivers, oldest first, with how many messages wait and were given up.
SELECT w.webhook_id, w.url, coalesce(t.wire_id, '') AS tenant, cardinality(w.secrets) AS secrets,
       count(m.*) FILTER (WHERE m.state = 'queued') AS queued, count(m.*) FILTER (WHERE m.state = 'dead') AS dead
FROM webhook w LEFT JOIN tenant t ON t.tenant_id = w.only_tenant_id
LEFT JOIN webhook_message m ON m.webhook_id = w.webhook_id AND m.state <> 'sent'
WHERE NOT w.removed GROUP BY w.webhook_id, t.wire_id ORDER BY w.created_at, w.webhook_id;

-- name: receivers
-- Gives who hears of tenants' alerts. $1 tenant ids.
SELECT t.tenant_id, t.wire_id, w.webhook_id FROM tenant t
JOIN webhook w ON NOT w.removed AND (w.only_tenant_id IS NULL OR w.only_tenant_id = t.tenant_id)
WHERE t.tenant_id = ANY ($1::uuid[]) ORDER BY w.webhook_id;

-- name: queue
-- Queues messages; nothing where one was queued before, or the receiver was removed meanwhile. $1 time; columns $2 tenants, $3 messages, $4 receivers,
-- $5 alerts, $6 bodies.
INSERT INTO webhook_message (tenant_id, message_id, webhook_id, alert_id, body, state, next_at)
SELECT tenant_id, message_id, webhook_id, alert_id, body, 'queued', $1
FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::bytea[])
  AS queued (tenant_id, message_id, webhook_id, alert_id, body)
JOIN webhook w USING (webhook_id) WHERE NOT w.removed FOR SHARE OF w
ON CONFLICT ON CONSTRAINT webhook_message_once DO NOTHING;

-- name: claim
-- Takes the message that waits longest for one of the other receivers, for two minutes. $1 time, $2 receivers.
UPDATE webhook_message m SET next_at = $1 + interval '2 minutes', tries = m.tries + 1, tried_at = $1
FROM webhook w
WHERE w.webhook_id = m.webhook_id AND (m.tenant_id, m.message_id) = (
  SELECT tenant_id, message_id FROM webhook_message
  WHERE state = 'queued' AND next_at <= $1 AND webhook_id <> ALL ($2::uuid[])
    AND webhook_id IN (SELECT webhook_id FROM webhook WHERE NOT removed)
  ORDER BY next_at, message_id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING m.tenant_id, m.message_id, m.webhook_id, m.body, m.tries, w.url, w.secrets;

-- name: end_try
-- Keeps what became of a try, unless somebody gave the message up or sent it again meanwhile. $1 tenant id, $2 message,
-- $3 tries, $4 state, $5 next time, $6 status, $7 what was answered.
UPDATE webhook_message SET state = $4, next_at = $5, status = $6, reply = $7
WHERE tenant_id = $1 AND message_id = $2 AND tries = $3 AND state = 'queued';

-- name: replay
-- Sends messages again that are no longer queued: one, or all of a receiver that were given up; gives how many. $1 time,
-- $2 message or null, $3 receiver or null.
WITH again AS (
  UPDATE webhook_message m SET state = 'queued', next_at = $1, tries = 0
  FROM (SELECT webhook_id FROM webhook WHERE NOT removed FOR SHARE) w
  WHERE w.webhook_id = m.webhook_id AND m.state <> 'queued'
    AND (m.message_id = $2::uuid OR ($2::uuid IS NULL AND m.webhook_id = $3::uuid AND m.state = 'dead'))
  RETURNING 1
)
SELECT count(*) FROM again;

-- name: expire
-- Deletes the oldest messages queued so long ago that no longer wait. $1 age, $2 at most so many.
DELETE FROM webhook_message WHERE state <> 'queued' AND (tenant_id, message_id) IN (
  SELECT tenant_id, message_id FROM webhook_message
  WHERE state <> 'queued' AND queued_at < clock_timestamp() - $1::interval ORDER BY queued_at, message_id LIMIT $2);

-- name: messages
-- Lists messages, newest first. $1 before this time or null, $2 and this id, $3 at most so many, $4 only in this state or
-- null.
SELECT m.message_id, m.webhook_id, m.alert_id, m.state, m.tries, m.status, m.reply, m.queued_at, m.next_at, t.wire_id,
       w.url
FROM webhook_message m JOIN tenant t USING (tenant_id) JOIN webhook w USING (webhook_id)
WHERE ($1::timestamptz IS NULL OR (m.queued_at, m.message_id) < ($1, $2::uuid)) AND ($4::text IS NULL OR m.state = $4)
ORDER BY m.queued_at DESC, m.message_id DESC LIMIT $3;
