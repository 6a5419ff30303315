-- Who may see what: helpers for row-level security and partitions. Run as tollkeeper_owner, search path tollkeeper.
--
-- Roles (see bootstrap.sql): tollkeeper_owner owns everything and is used by `migrate` only; tollkeeper_ingest and
-- tollkeeper_billing see every tenant on the tables that name them; tollkeeper_admin and tollkeeper_reader see one
-- tenant per transaction. The runtime roles own nothing and never bypass row-level security.
GRANT USAGE ON SCHEMA tollkeeper TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA tollkeeper REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- The tenant of this transaction; null, and so no rows anywhere, where none is set.
CREATE FUNCTION current_tenant() RETURNS uuid
  LANGUAGE sql STABLE PARALLEL SAFE
  SET search_path = tollkeeper, pg_temp
  AS $$ SELECT nullif(current_setting('tollkeeper.tenant_id', true), '')::uuid $$;
GRANT EXECUTE ON FUNCTION current_tenant() TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;

-- Enables and forces row-level security on a table with a tenant_id column. Everyone sees the transaction's tenant;
-- the roles named see all tenants. Grants are the caller's business: no grant, no access.
CREATE PROCEDURE secure_tenant_table(target regclass, VARIADIC all_tenant_roles text[] DEFAULT '{}')
  LANGUAGE plpgsql AS $$
DECLARE
  allowed text;
BEGIN
  EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
  EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
  EXECUTE format('CREATE POLICY one_tenant ON %s USING (tenant_id = current_tenant())', target);
  FOREACH allowed IN ARRAY all_tenant_roles LOOP
    EXECUTE format('CREATE POLICY all_tenants_%s ON %s TO %I USING (true)', allowed, target, allowed);
  END LOOP;
END
$$;

-- Makes a partition like its parent, with the parent's policies, and attaches it. Attaching a finished table takes
-- a weaker lock on the parent than creating the partition in place, so running traffic goes on. `fill`: percent of a
-- page that new rows take; the rest is for their next versions, so that an update touches no index.
CREATE FUNCTION make_partition(parent regclass, partition_name text, bounds text, fill integer DEFAULT 100)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path = tollkeeper, pg_temp AS $$
DECLARE
  policy record;
BEGIN
  IF EXISTS (SELECT FROM pg_class WHERE relname = partition_name AND relnamespace = 'tollkeeper'::regnamespace) THEN
    RETURN;
  END IF;
  -- One maker per parent at a time; whoever waited finds the partition there.
  PERFORM pg_advisory_xact_lock(hashtextextended('make_partition ' || parent::text, 0));
  -- Read from pg_class: to_regclass may answer from a cache that has not yet heard of the other maker's commit.
  IF EXISTS (SELECT FROM pg_class WHERE relname = partition_name AND relnamespace = 'tollkeeper'::regnamespace) THEN
    RETURN;
  END IF;
  EXECUTE format('CREATE TABLE %I (LIKE %s INCLUDING ALL) WITH (fillfactor = %s)', partition_name, parent, fill);
  EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', partition_name);
  EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', partition_name);
  FOR policy IN
    SELECT p.polname, p.polpermissive, pg_get_expr(p.polqual, p.polrelid) AS used,
           pg_get_expr(p.polwithcheck, p.polrelid) AS checked,
           CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
             ELSE 'ALL' END AS verb,
           coalesce((SELECT string_agg(quote_ident(r.rolname), ', ') FROM pg_roles r WHERE r.oid = ANY (p.polroles)),
             'PUBLIC') AS roles
    FROM pg_policy p WHERE p.polrelid = parent
  LOOP
    EXECUTE format('CREATE POLICY %I ON %I FOR %s TO %s', policy.polname, partition_name, policy.verb, policy.roles)
      || coalesce(' USING (' || policy.used || ')', '') || coalesce(' WITH CHECK (' || policy.checked || ')', '');
  END LOOP;
  EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I FOR VALUES %s', parent, partition_name, bounds);
END
$$;

-- Refuses to change a row of an append-only table, whoever asks: `CREATE TRIGGER ... BEFORE UPDATE OR DELETE`.
CREATE FUNCTION refuse_change() RETURNS trigger
  LANGUAGE plpgsql
  SET search_path = tollkeeper, pg_temp AS $$
BEGIN
  RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
