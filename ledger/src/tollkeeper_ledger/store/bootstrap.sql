-- Roles and schema. Run by the connecting user, who must be allowed to create roles; repeating it changes nothing.
-- Roles are the cluster's, so this stands apart from schema and migrations, which run as tollkeeper_owner.
DO $$
DECLARE
  wanted text;
BEGIN
  -- Two ledgers that start at once on a fresh cluster would both try to create the roles.
  PERFORM pg_advisory_xact_lock(7205759403792794);
  FOREACH wanted IN ARRAY ARRAY[
    'tollkeeper_owner', 'tollkeeper_ingest', 'tollkeeper_billing', 'tollkeeper_admin', 'tollkeeper_reader']
  LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT NOBYPASSRLS', wanted);
    END IF;
    IF NOT pg_has_role(current_user, wanted, 'MEMBER') THEN
      EXECUTE format('GRANT %I TO %I', wanted, current_user);
    END IF;
  END LOOP;
  IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'tollkeeper') THEN
    CREATE SCHEMA tollkeeper AUTHORIZATION tollkeeper_owner;
  END IF;
END
$$;
