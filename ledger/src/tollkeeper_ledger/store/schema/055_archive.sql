-- Months of raw records that left Postgres for a file. Rollups, ids, links and invoices stay.

CREATE TABLE usage_archive (
  month date PRIMARY KEY CONSTRAINT usage_archive_month_first CHECK (date_trunc('month', month) = month),
  records bigint NOT NULL CONSTRAINT usage_archive_records_positive CHECK (records > 0),
  -- Hash over the records in order of batch and sequence number, as a link of the chain hashes those of a batch.
  rows_digest bytea NOT NULL CONSTRAINT usage_archive_rows_length CHECK (octet_length(rows_digest) = 32),
  -- Name of the file in the archive's directory, and SHA-256 over its bytes.
  file text NOT NULL,
  file_digest bytea NOT NULL CONSTRAINT usage_archive_file_length CHECK (octet_length(file_digest) = 32)
);

-- How many records of a batch are in an archived month: the audit counts them in the batch's place.
CREATE TABLE usage_archive_batch (
  batch_id bigint NOT NULL,
  month date NOT NULL REFERENCES usage_archive,
  records integer NOT NULL CONSTRAINT usage_archive_batch_positive CHECK (records > 0),
  PRIMARY KEY (batch_id, month)
);

CREATE TRIGGER usage_archive_append_only BEFORE UPDATE OR DELETE ON usage_archive
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_archive_no_truncate BEFORE TRUNCATE ON usage_archive
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_archive_batch_append_only BEFORE UPDATE OR DELETE ON usage_archive_batch
  FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER usage_archive_batch_no_truncate BEFORE TRUNCATE ON usage_archive_batch
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
GRANT SELECT ON usage_archive, usage_archive_batch TO tollkeeper_ingest, tollkeeper_billing;

-- Says whether a month's records are in a file only.
CREATE FUNCTION is_archived(of_month date) RETURNS boolean
  LANGUAGE sql STABLE
  SET search_path = tollkeeper, pg_temp AS $$
  SELECT EXISTS (SELECT FROM usage_archive WHERE month = of_month)
    AND NOT EXISTS (SELECT FROM pg_class WHERE relname = 'usage_record_' || to_char(of_month, 'YYYYMM')
                    AND relnamespace = 'tollkeeper'::regnamespace)
$$;
GRANT EXECUTE ON FUNCTION is_archived(date) TO tollkeeper_ingest, tollkeeper_billing;

-- Gives the months of a span whose records are in files only. Whoever reads one tenant's records may ask, too.
CREATE FUNCTION archived_months(first timestamptz, after timestamptz) RETURNS SETOF date
  LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp AS $$
  SELECT month FROM usage_archive
  WHERE month < after AT TIME ZONE 'UTC' AND month + interval '1 month' > first AT TIME ZONE 'UTC' AND is_archived(month)
  ORDER BY month
$$;
GRANT EXECUTE ON FUNCTION archived_months(timestamptz, timestamptz)
  TO tollkeeper_ingest, tollkeeper_billing, tollkeeper_admin, tollkeeper_reader;

-- Drops a month's records, which are in a file now; gives whether they were there. Refuses a month that records could
-- still come to, another number of records than there are, and, where the month was archived before and brought back,
-- other records or another file than then. `in_batches` records are of `batches`.
CREATE FUNCTION archive_usage_month(
  of_month date, of_records bigint, of_rows_digest bytea, of_file text, of_file_digest bytea,
  batches bigint[], in_batches integer[]
) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = tollkeeper, pg_temp
  SET timezone = 'UTC'
  -- Whoever reads all records for long must not make every append wait behind this.
  SET lock_timeout = '300ms' AS $$
DECLARE
  partition_name text := 'usage_record_' || to_char(of_month, 'YYYYMM');
  counted bigint;
BEGIN
  IF of_month + interval '5 months' > ledger_now() THEN
    RAISE EXCEPTION 'records of % may still come', of_month USING ERRCODE = 'invalid_parameter_value';
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended('archive ' || partition_name, 0));
  IF NOT EXISTS (SELECT FROM pg_class WHERE relname = partition_name AND relnamespace = 'tollkeeper'::regnamespace) THEN
    RETURN false;
  END IF;
  EXECUTE format('ALTER TABLE usage_record DETACH PARTITION %I', partition_name);
  EXECUTE format('SELECT count(*) FROM %I', partition_name) INTO counted;
  IF counted <> of_records THEN
    RAISE EXCEPTION '% has % records, not %', of_month, counted, of_records
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF NOT EXISTS (SELECT FROM usage_archive WHERE month = of_month) THEN
    INSERT INTO usage_archive VALUES (of_month, of_records, of_rows_digest, of_file, of_file_digest);
    INSERT INTO usage_archive_batch SELECT batch, of_month, number FROM unnest(batches, in_batches) AS part (batch, number);
  ELSIF NOT EXISTS (SELECT FROM usage_archive WHERE month = of_month AND rows_digest = of_rows_digest
                    AND (file, file_digest) = (of_file, of_file_digest)) THEN
    RAISE EXCEPTION '% was archived with other records, or in another file', of_month
      USING ERRCODE = 'invalid_parameter_value';
  END IF;
  EXECUTE format('DROP TABLE %I', partition_name);
  RETURN true;
END
$$;
GRANT EXECUTE ON FUNCTION archive_usage_month(date, bigint, bytea, text, bytea, bigint[], integer[]) TO tollkeeper_ingest;
