-- Readers of topics, and what operators say of producers.

-- name: put_topics
-- Notes how far a group has read. $1 group; columns $2 topics, $3 partitions, $4 next offsets, $5 end offsets,
-- $6 watermarks, null = not known. One that an operator gave up stays lost until its watermark moves.
INSERT INTO usage_topic AS known
  (consumer_group, topic, partition, next_offset, end_offset, watermark, state, seen_at)
SELECT $1::text, topic, partition, next_offset, end_offset, watermark, 'open', clock_timestamp()
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::timestamptz[])
  AS told (topic, partition, next_offset, end_offset, watermark)
ORDER BY topic, partition
ON CONFLICT (consumer_group, topic, partition) DO UPDATE
SET next_offset = excluded.next_offset, end_offset = excluded.end_offset,
    watermark = greatest(known.watermark, excluded.watermark), seen_at = excluded.seen_at,
    state = CASE WHEN coalesce(excluded.watermark > coalesce(known.watermark, '-infinity'), false) THEN 'open'
                 ELSE known.state END;

-- name: topics
-- Gives every partition that readers told of, in order.
SELECT consumer_group, topic, partition, next_offset, end_offset, watermark, state, seen_at,
       greatest(clock_timestamp() - seen_at, interval '0') AS quiet
FROM usage_topic ORDER BY consumer_group, topic, partition;

-- name: lose_producer
-- Gives a producer up and gives its state before. $1 id.
WITH before AS (SELECT producer_id, state FROM producer WHERE producer_id = $1 FOR UPDATE)
UPDATE producer SET state = 'lost' FROM before WHERE producer.producer_id = before.producer_id
RETURNING before.state;

-- name: lose_topic
-- Gives a partition up and gives its state before. $1 group, $2 topic, $3 partition.
WITH before AS (
  SELECT state FROM usage_topic WHERE consumer_group = $1 AND topic = $2 AND partition = $3 FOR UPDATE)
UPDATE usage_topic SET state = 'lost' FROM before WHERE consumer_group = $1 AND topic = $2 AND partition = $3
RETURNING before.state;

-- name: mark_safe
-- Notes what a backup has and gives what it is then; it never goes back. $1 ledger time.
INSERT INTO usage_safe AS known (safe_before) VALUES ($1)
ON CONFLICT (is_only) DO UPDATE SET safe_before = greatest(known.safe_before, excluded.safe_before)
RETURNING safe_before;
