# ruff: noqa: S608 - names of tables come from the catalogue
"""What Postgres itself refuses: changing what is append-only, and seeing another tenant's usage."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest
from quarantine_support import discard, keys_of
from rollup_support import KINDS, add_kinds
from usage_bench import superuser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection
    from usage_bench import Bench

pytestmark = pytest.mark.asyncio

RUNTIME = ("tollkeeper_ingest", "tollkeeper_billing", "tollkeeper_admin", "tollkeeper_reader")
ALL_TENANTS = {"tollkeeper_ingest", "tollkeeper_billing"}
USAGE_TABLES = """
    SELECT c.relname AS name, c.relispartition AS part,
           EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'tenant_id') AS of_tenants
    FROM pg_class c
    WHERE c.relnamespace = 'tollkeeper'::regnamespace AND c.relkind IN ('r', 'p')
      AND c.relname ~ '^(producer|usage)' ORDER BY 1"""
APPEND_ONLY = ("usage_record", "usage_id", "usage_chain", "usage_quarantine", "usage_root", "usage_archive")
CHANGES = {
    "usage_record": "seq = seq",
    "usage_id": "seq = seq",
    "usage_chain": "stored = stored",
    "usage_quarantine": "reason = reason",
    "usage_root": "signature = signature",
    "usage_archive": "records = records",
}


@asynccontextmanager
async def acting(bench: Bench, role: str, tenant_id: UUID | None = None) -> AsyncIterator[Connection]:
    """Act as a role in a transaction that leaves nothing."""
    async with superuser(bench.url) as conn:
        transaction = conn.transaction()
        await transaction.start()
        try:
            await conn.execute(f"SET LOCAL ROLE {role}")
            if tenant_id is not None:
                await conn.execute("SELECT set_config('tollkeeper.tenant_id', $1, true)", str(tenant_id))
            yield conn
        finally:
            await transaction.rollback()


async def filled(bench: Bench, name: str) -> None:
    """Have rows of both tenants in every table."""
    await add_kinds(bench)
    log = await bench.new_log()
    for tenant in bench.tenants:
        log.record(
            bench.use(f"{name}-{tenant}", tenant=tenant),
            bench.use(
                f"{name}-{tenant}-kinds",
                tenant=tenant,
                quantities=tuple((meter, 1) for meter in sorted(KINDS)),
                attributes=(("user", "u"),),
            ),
            bench.use("bad", tenant=tenant, quantities=(("requests", -1),)),
        )
    await bench.ingest.append(log.cut())
    await discard(bench, keys_of(log, 3, 6))


@pytest.mark.parametrize("role", RUNTIME)
async def test_no_runtime_role_changes_what_is_append_only(bench: Bench, role: str) -> None:
    """UPDATE, DELETE and TRUNCATE are refused to every runtime role, on tables and on each partition."""
    await filled(bench, role)
    tables = [row["name"] for row in await bench.rows(USAGE_TABLES) if row["name"].startswith(APPEND_ONLY)]
    assert len(tables) > len(APPEND_ONLY)
    tried = 0
    for table in tables:
        change = next(change for name, change in CHANGES.items() if table.startswith(name))
        if table == "usage_chain_head":
            continue
        for statement in (f"UPDATE {table} SET {change}", f"DELETE FROM {table}", f"TRUNCATE {table}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with acting(bench, role) as conn:
                    await conn.execute(statement)
            tried += 1
    assert tried >= 3 * len(APPEND_ONLY)


@pytest.mark.parametrize("verb", ["UPDATE {table} SET {change}", "DELETE FROM {table}", "TRUNCATE {table} CASCADE"])
async def test_not_even_the_owner_changes_records_and_links(bench: Bench, verb: str) -> None:
    """A trigger refuses what grants would allow the owner; only expiry of ids may delete."""
    guarded = ("usage_record", "usage_id", "usage_chain", "usage_quarantine")
    await filled(bench, f"owner {verb}")
    tables = [row["name"] for row in await bench.rows(USAGE_TABLES)]
    for table in tables:
        name = next((name for name in guarded if table.startswith(name)), None)
        if name is None or table == "usage_chain_head" or (name == "usage_id" and verb.startswith("DELETE")):
            continue
        # An empty partition has no row to refuse; TRUNCATE is refused even there.
        if not verb.startswith("TRUNCATE") and not await bench.rows(f"SELECT FROM {table} LIMIT 1"):
            continue
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            async with superuser(bench.url) as conn:
                await conn.execute(verb.format(table=table, change=CHANGES[name]))


@pytest.mark.parametrize("role", RUNTIME)
async def test_one_tenant_is_all_that_a_reader_sees(bench: Bench, role: str) -> None:
    """Per table and role: readers see the tenant that is set and none without one; partitions are closed to all."""
    await filled(bench, f"see {role}")
    acme = bench.tenants["acme"]
    seen = 0
    for row in await bench.rows(USAGE_TABLES):
        table, query = row["name"], f"SELECT DISTINCT tenant_id FROM {row['name']}"
        if not row["of_tenants"]:
            if role not in ALL_TENANTS:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with acting(bench, role, acme) as conn:
                        await conn.fetch(f"SELECT FROM {table}")
            continue
        try:
            async with acting(bench, role, acme) as conn:
                with_tenant = {found["tenant_id"] for found in await conn.fetch(query)}
            async with acting(bench, role) as conn:
                without = {found["tenant_id"] for found in await conn.fetch(query)}
        except asyncpg.InsufficientPrivilegeError:
            continue
        assert not row["part"], f"{role} may read the partition {table} past its parent"
        seen += 1
        if role in ALL_TENANTS:
            assert set(bench.tenants.values()) <= with_tenant
            assert with_tenant == without
        else:
            assert {acme} == with_tenant, table
            assert set() == without, table
    assert seen >= 3


@pytest.mark.parametrize("role", ["tollkeeper_billing", "tollkeeper_admin", "tollkeeper_reader"])
async def test_only_ingest_adds_usage(bench: Bench, role: str) -> None:
    """No other role adds a record, an id, a sum or a link, nor makes a partition."""
    await filled(bench, f"add {role}")
    acme = bench.tenants["acme"]
    for row in await bench.rows(USAGE_TABLES):
        # Roots over the chain are signed by billing.
        if row["part"] or row["name"] == "usage_root":
            continue
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with acting(bench, role, acme) as conn:
                await conn.execute(f"INSERT INTO {row['name']} SELECT * FROM {row['name']}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with acting(bench, role) as conn:
            await conn.execute("SELECT make_usage_month('2027-01-01')")


async def test_every_partition_carries_what_its_parent_does(bench: Bench) -> None:
    """Row-level security is enabled and forced with the same policies on every partition made on demand."""
    await filled(bench, "partitions")
    rows = await bench.rows(
        """
        SELECT c.relname, c.relispartition, c.relrowsecurity AND c.relforcerowsecurity AS forced,
               ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid ORDER BY 1) AS policies,
               coalesce(parent.relname, c.relname) AS family
        FROM pg_class c
        LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent
        WHERE c.relnamespace = 'tollkeeper'::regnamespace AND c.relkind IN ('r', 'p')
          AND c.relname ~ '^usage_(record|id|rollup_)'"""
    )
    policies = {row["relname"]: row["policies"] for row in rows if not row["relispartition"]}
    rollups = {f"usage_rollup_{what}" for what in ("minute", "quarter", "state", "value")}
    assert {"usage_record", "usage_id", *rollups} == set(policies)
    partitions = [row for row in rows if row["relispartition"]]
    assert len(partitions) >= 10
    assert all(row["forced"] for row in rows)
    assert [policies[row["family"]] for row in partitions] == [row["policies"] for row in partitions]


@pytest.mark.parametrize("month", ["2026-11-02", "1969-12-01", "2200-01-01"])
async def test_no_senseless_partition_can_be_made(bench: Bench, month: str) -> None:
    """The maker of partitions takes first days of months in bounds, so a runtime role can't fill the catalogue."""
    with pytest.raises(asyncpg.InvalidParameterValueError):
        async with acting(bench, "tollkeeper_ingest") as conn:
            await conn.execute(f"SELECT make_usage_month('{month}')")
