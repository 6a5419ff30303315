# ruff: noqa: SIM300 - expected first, then actual
"""A preview is quick on a connection that nobody has used yet: whatever it asks of Postgres was prepared before."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue, use
from tollkeeper_ledger.services.invoices import preview_invoice, warm_preview
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.pool import connection, open_pool

if TYPE_CHECKING:
    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection, Pool

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
_PREPARED = "SELECT statement FROM pg_prepared_statements"


async def prepared(conn: Connection) -> set[str]:
    """Give what this session has prepared, without this question."""
    return {row["statement"] for row in await conn.fetch(_PREPARED)} - {_PREPARED}


async def preview(pool: Pool, tenant: str) -> int:
    """Preview a tenant as the service does; give the total."""
    tenant_id = await need_tenant(pool, tenant)
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        document = await preview_invoice(conn, tenant_id, wire_id=tenant)
    total: int = document["total_minor"]
    return total


async def test_a_warm_connection_prepares_nothing_for_a_preview(bench: BillingBench) -> None:
    """All connections are there from the start and have every statement of a preview; also what replaces one.

    A cold one prepares all of them in its first preview: what the warm one has is what is asked, no less.
    """
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.send(log, use("used", bench.start, context_tokens=3_000_000), watermark=bench.start + HOUR)
    cold = await open_pool(bench.url, role="tollkeeper_billing", size=1)
    warm = await open_pool(bench.url, role="tollkeeper_billing", size=2, warm=warm_preview)
    try:
        assert (1, 2) == (cold.get_size(), warm.get_size())
        assert 2500 == await preview(cold, "code")
        async with connection(cold) as conn:
            asked = await prepared(conn)
        async with connection(warm) as first, connection(warm) as second:
            for conn in (first, second):
                assert not asked - await prepared(conn)
        assert 2500 == await preview(warm, "code")
        async with connection(warm) as conn:
            conn.terminate()
        async with connection(warm) as first, connection(warm) as second:
            for conn in (first, second):
                assert not asked - await prepared(conn)
    finally:
        cold.terminate()
        warm.terminate()


async def test_a_pool_opens_although_it_can_not_warm(bench: BillingBench) -> None:
    """What Postgres refuses of the warming is left out: its caller hears of it when he asks himself."""

    async def refused(conn: Connection) -> None:
        async with conn.transaction():
            await conn.execute("SELECT no_such_function()")

    pool = await open_pool(bench.url, role="tollkeeper_billing", size=1, warm=refused)
    try:
        async with connection(pool) as conn:
            assert 1 == await conn.fetchval("SELECT 1")
    finally:
        pool.terminate()
