-- Keys of tenants' pseudonyms.

-- name: make_keys
-- Makes the keys of tenants that have none. $1 tenant ids.
INSERT INTO pseudonym_key (tenant_id, secret, made_at)
SELECT tenant_id, new_pseudonym_secret(), ledger_now() FROM unnest($1::uuid[]) AS asked (tenant_id) ORDER BY tenant_id
ON CONFLICT (tenant_id) DO NOTHING;

-- name: keys
-- Reads the keys of tenants. $1 tenant ids.
SELECT tenant_id, version, secret FROM pseudonym_key WHERE tenant_id = ANY ($1::uuid[]);

-- name: turn_key
-- Overwrites the key of a tenant by one of a later version; gives the version before and its own. $1 tenant id. By a
-- random step: who restores a backup from before and destroys the key again has no other secret under the version that
-- was lost.
WITH before AS (SELECT tenant_id, version FROM pseudonym_key WHERE tenant_id = $1 FOR UPDATE)
UPDATE pseudonym_key k
SET version = k.version + 1 + floor(random() * 1000)::integer, secret = new_pseudonym_secret(), made_at = ledger_now()
FROM before WHERE k.tenant_id = before.tenant_id
RETURNING before.version AS before, k.version AS after;
