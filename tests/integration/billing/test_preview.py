# ruff: noqa: SIM300 - expected first, then actual
"""A preview is quick on a connection that nobody has used yet: whatever it asks of Postgres was prepared before."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue, use
from stripe_shop import GRACE, act_on
from tollkeeper_ledger.services.invoices import preview_invoice, warm_preview
from tollkeeper_ledger.services.prepaid import CouponAsked, add_coupon_to
from tollkeeper_ledger.services.subscription_changes import pause_subscription
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.pool import connection, open_pool, transaction

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


async def test_a_preview_knows_what_the_invoice_before_will_charge(bench: BillingBench) -> None:
    """20.00 ahead, half of it off once, paused at half: 10.00 less 5.00 come back, before the opening is billed too."""
    ahead = "name: base, timing: advance, amount"
    await bench.apply(catalogue(bench.start, "code").replace("name: base, amount", ahead))
    tenant_id = await need_tenant(bench.billing, "code")
    await bench.set_now(bench.start + HOUR / 2)
    async with transaction(bench.billing) as conn:
        half = CouponAsked(name="Half", percent=Decimal(50), amount_minor=None, periods=1)
        await add_coupon_to(conn, tenant_id, half, await act_on(conn), new_id=uuid.uuid4)
        await pause_subscription(conn, tenant_id, at="now", act=await act_on(conn))
    before = await preview(bench.billing, "code")
    await bench.run()
    assert [-500, -500] == [before, await preview(bench.billing, "code")]
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("code",))
    await bench.run()
    assert [1_000, -500] == [document["total_minor"] for document in await bench.documents("code")]


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
