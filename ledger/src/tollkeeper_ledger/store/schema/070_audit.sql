-- Every administrative act: who, what, before, after. Append-only.

CREATE TABLE audit_log (
  audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  tenant_id uuid REFERENCES tenant,
  subject text NOT NULL,
  request_id text NOT NULL,
  before jsonb,
  after jsonb
);
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, audit_id);

GRANT SELECT ON audit_log TO tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;
GRANT INSERT ON audit_log TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin;

CALL secure_tenant_table('audit_log', 'tollkeeper_ingest', 'tollkeeper_billing');

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
