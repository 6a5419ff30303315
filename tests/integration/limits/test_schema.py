"""The schema files, the migrations, and who may see what."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tollkeeper_ledger.store.migrations import freeze, migrate, migration_files
from tollkeeper_ledger.store.pool import open_pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tollkeeper_cli.embedded import EmbeddedPostgres

# Everything that makes a schema what it is, as text, without object ids.
CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
          pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'tollkeeper'::regnamespace""",
    "relations": """
        SELECT relname, relkind, relrowsecurity, relforcerowsecurity, relowner::regrole, relacl, reloptions,
          pg_get_partkeydef(oid)
        FROM pg_class WHERE relnamespace = 'tollkeeper'::regnamespace""",
    "constraints": """
        SELECT conname, conrelid::regclass, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'tollkeeper'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'tollkeeper'",
    "policies": "SELECT * FROM pg_policies WHERE schemaname = 'tollkeeper'",
    "functions": """
        SELECT proname, pg_get_functiondef(oid), proowner::regrole, proacl, proleakproof FROM pg_proc
        WHERE pronamespace = 'tollkeeper'::regnamespace""",
    "triggers": "SELECT tgname, tgrelid::regclass, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'tollkeeper'",
    "sequences": "SELECT sequencename, data_type FROM pg_sequences WHERE schemaname = 'tollkeeper'",
    "defaults": """
        SELECT defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, defaclacl FROM pg_default_acl""",
}
ROLES = ("tollkeeper_ingest", "tollkeeper_billing", "tollkeeper_admin", "tollkeeper_reader")


async def catalogue_of(url: str) -> dict[str, list[str]]:
    """Read a database's schema."""
    conn = await asyncpg.connect(url)
    try:
        await conn.execute("SET search_path = tollkeeper")
        return {name: sorted(str(tuple(row)) for row in await conn.fetch(query)) for name, query in CATALOGUE.items()}
    finally:
        await conn.close()


def test_schema_files_and_migrations_make_the_same_database(
    new_database: Callable[[], str], postgres: EmbeddedPostgres
) -> None:
    """Whoever migrates has exactly what the schema files say; migrating twice changes nothing."""
    from_schema = asyncio.run(catalogue_of(new_database()))
    name = f"migrated_{secrets.token_hex(4)}"

    async def make() -> dict[str, list[str]]:
        conn = await asyncpg.connect(postgres.url)
        await conn.execute(f"CREATE DATABASE {name}")
        await conn.close()
        url = postgres.url.replace("/tollkeeper?", f"/{name}?")
        assert await migrate(url) == [file for file, _ in migration_files()]
        assert await migrate(url) == []
        return await catalogue_of(url)

    migrated = asyncio.run(make())
    for part, rows in from_schema.items():
        assert [row for row in migrated[part] if "schema_migration" not in row] == rows, part


def test_the_frozen_migration_is_what_the_schema_files_say(tmp_path: Path) -> None:
    """`python -m tollkeeper_ledger.store.migrations freeze` was run after the last edit of the schema."""
    assert freeze(tmp_path).read_text() == dict(migration_files())["0001_initial.sql"]


async def test_an_edited_migration_is_refused(new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that has a migration with other content is not touched."""
    loop = asyncio.get_running_loop()
    url = await loop.run_in_executor(None, new_database)
    conn = await asyncpg.connect(url)
    await conn.execute(
        "CREATE TABLE tollkeeper.schema_migration (name text PRIMARY KEY, digest bytea NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now());"
        "ALTER TABLE tollkeeper.schema_migration OWNER TO tollkeeper_owner;"
        "INSERT INTO tollkeeper.schema_migration VALUES ('0001_initial.sql', 'other')"
    )
    await conn.close()
    with pytest.raises(RuntimeError, match="must not be edited"):
        await migrate(url)


async def tenant_tables(conn: Any) -> list[str]:
    """Name every table and partition that has a tenant_id."""
    rows = await conn.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'"
        " WHERE c.relnamespace = 'tollkeeper'::regnamespace AND c.relkind IN ('r', 'p') AND NOT a.attisdropped"
    )
    return sorted(row["relname"] for row in rows)


async def test_every_tenant_table_and_partition_is_locked_down(database_url: str) -> None:
    """Row-level security is enabled and forced on all of them, with a policy for one tenant; nobody bypasses it."""
    conn = await asyncpg.connect(database_url)
    await conn.execute("SET search_path = tollkeeper")
    await conn.execute("SELECT ensure_limit_day(20000)")
    tables = await tenant_tables(conn)
    assert "limit_window" in tables
    assert "limit_window_2024_10_04" in tables
    open_tables = [
        name
        for name in tables
        if not await conn.fetchval(
            "SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass", name
        )
        or not await conn.fetchval(
            "SELECT count(*) FROM pg_policies WHERE tablename = $1 AND policyname = 'one_tenant'", name
        )
    ]
    assert open_tables == []
    powers = await conn.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname LIKE 'tollkeeper%' AND (rolsuper OR rolbypassrls OR rolcanlogin)"
    )
    assert powers == []
    owned = await conn.fetch("SELECT relname FROM pg_class WHERE relowner::regrole::text = ANY ($1)", list(ROLES))
    assert owned == []
    await conn.close()


async def test_unset_tenant_sees_no_rows_and_a_set_one_only_its_own(database_url: str) -> None:
    """For every role, table and partition: a row of a stranger is out of sight unless a policy names the role."""
    owner = await asyncpg.connect(database_url)
    await owner.execute("SET search_path = tollkeeper")
    await owner.execute("SELECT ensure_limit_day(20000)")
    tenants = [secrets.token_hex(16), secrets.token_hex(16)]
    for tenant in tenants:
        await owner.execute(
            "INSERT INTO limit_window (tenant_id, window_id, end_day, limit_name, key_hash, timeline, start_us, end_us,"
            " amount, amount_version, allotted, ceiling)"
            " VALUES ($1::text::uuid, $2, 20000, 'l', '', 1, 0, 1, 9, 1, 0, 9)",
            tenant,
            secrets.token_bytes(16),
        )
    tables = await tenant_tables(owner)
    everything = await owner.fetch("SELECT tablename, policyname FROM pg_policies WHERE schemaname = 'tollkeeper'")
    named = {(row["tablename"], row["policyname"]) for row in everything}
    await owner.close()
    for role in ROLES:
        pool = await open_pool(database_url, role=role, size=1)
        async with pool.acquire() as conn:
            for table in tables:
                if (table, f"all_tenants_{role}") in named:
                    continue
                assert await visible(conn, table) in (0, None), (role, table)
        pool.terminate()
    pool = await open_pool(database_url, role="tollkeeper_reader", size=1)
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT set_config('tollkeeper.tenant_id', $1, true)", tenants[0])
        rows = await conn.fetch("SELECT tenant_id FROM limit_window")
        assert [row["tenant_id"].hex for row in rows] == [tenants[0]]
    async with pool.acquire() as conn:
        assert await visible(conn, "limit_window") == 0
        assert await visible(conn, "limit_window_2024_10_04") is None
    pool.terminate()


async def visible(conn: Any, table: str) -> int | None:
    """Count the rows that a role sees; None = it may not look at all."""
    try:
        found: int = await conn.fetchval(f'SELECT count(*) FROM "{table}"')  # noqa: S608 - names from the catalogue
    except asyncpg.InsufficientPrivilegeError:
        return None
    return found


async def test_a_role_cant_write_for_another_tenant_nor_leave_its_role(database_url: str) -> None:
    """An insert for a stranger, a change of role by RESET, and a look at secrets are refused."""
    pool = await open_pool(database_url, role="tollkeeper_admin", size=1)
    async with pool.acquire() as conn:
        await conn.execute("SELECT set_config('tollkeeper.tenant_id', $1, false)", secrets.token_hex(16))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("INSERT INTO tenant_change VALUES (gen_random_uuid(), 1)")
        await conn.execute("RESET ALL")
        assert await conn.fetchval("SELECT current_user::text") == "tollkeeper_admin"
    pool.terminate()
    reader = await open_pool(database_url, role="tollkeeper_reader", size=1)
    async with reader.acquire() as conn:
        for statement in (
            "SELECT * FROM token_key",
            "UPDATE clock_setting SET version = 9",
            "SELECT ensure_limit_day(1)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)
    reader.terminate()


async def test_unique_keys_of_tenant_tables_begin_with_the_tenant(database_url: str) -> None:
    """No key of one tenant can be probed by another; the exceptions are named here."""
    conn = await asyncpg.connect(database_url)
    await conn.execute("SET search_path = tollkeeper")
    rows = await conn.fetch(
        "SELECT c.relname, i.indexrelid::regclass::text AS index, a.attname FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indrelid"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indisunique AND c.relkind IN ('r', 'p') AND c.relname = ANY ($1)",
        await tenant_tables(conn),
    )
    await conn.close()
    odd = {row["index"] for row in rows if row["attname"] != "tenant_id"}
    # Random ids that foreign keys name alone, the wire id (one name space for all), and invoice numbers per seller.
    named = {
        "tenant_wire_id_unique",
        "invoice_number_unique",
        "credit_note_number_unique",
        "subscription_pkey",
        "audit_log_pkey",
    }
    assert odd - named == set()


async def test_many_makers_of_one_partition_make_it_once(database_url: str) -> None:
    """Replicas that meet a fresh day at the same time all find its partitions there; none fails."""
    pool = await open_pool(database_url, role="tollkeeper_ingest", size=6)

    async def make() -> None:
        async with pool.acquire() as conn:
            await conn.execute("SELECT ensure_limit_day(20001)")

    await asyncio.gather(*(make() for _ in range(6)))
    pool.terminate()
