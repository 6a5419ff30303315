# ruff: noqa: SIM300 - expected first, then actual
"""Which billing segment usage is stamped with, while periods close around it."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.store.tenant_locks import lock_tenant
from usage_bench import superuser

if TYPE_CHECKING:
    from datetime import datetime

    from usage_bench import Bench

pytestmark = pytest.mark.asyncio

HOUR_US = 3_600_000_000


async def subscribe(bench: Bench, tenant: str, start: datetime) -> None:
    """Put a tenant on an hourly plan from `start`."""
    plan, version, subscription = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    async with superuser(bench.url) as conn:
        await conn.execute("INSERT INTO plan VALUES ($1, 'seller', $2)", plan, f"plan-{tenant}")
        await conn.execute("INSERT INTO plan_version VALUES ($1, $2, 1, '{}', $3, $4)", version, plan, bytes(32), start)
        await conn.execute(
            "INSERT INTO subscription (subscription_id, tenant_id, plan_version_id, state, started_at, anchor,"
            " time_zone, interval_unit, interval_count, limits, billed_until, period_from)"
            " VALUES ($1, $2, $3, 'active', $4, $5, 'UTC', 'hour', 1, '[]', $4, $4)",
            subscription,
            bench.tenants[tenant],
            version,
            start,
            start.replace(tzinfo=None),
        )
        await conn.execute(
            "INSERT INTO subscription_phase (tenant_id, subscription_id, starts_at, plan_version_id, anchor, time_zone,"
            " interval_unit, interval_count) VALUES ($1, $2, $3, $4, $5, 'UTC', 'hour', 1)",
            bench.tenants[tenant],
            subscription,
            start,
            version,
            start.replace(tzinfo=None),
        )


async def sums(bench: Bench, tenant: str) -> list[tuple[int, int, bool]]:
    """Give (hours since the first period, units, late) per segment of a tenant, in order."""
    rows = await bench.rows(
        "SELECT period_start, late_for IS NOT NULL AS late, sum(units)::bigint AS units"
        " FROM usage_rollup_minute JOIN billing_segment USING (tenant_id, segment_id)"
        " WHERE tenant_id = $1 GROUP BY segment_id, 1, 2 ORDER BY 1, 2",
        bench.tenants[tenant],
    )
    first = bench.now_us - bench.now_us % HOUR_US - 3 * HOUR_US
    return [((to_us(row["period_start"]) - first) // HOUR_US, row["units"], row["late"]) for row in rows]


async def test_usage_is_cut_at_periods_and_late_usage_goes_to_the_open_one(bench: Bench) -> None:
    """One batch over two periods is cut exactly; after a close the rest of that period is late in the next open one."""
    first = bench.now_us - bench.now_us % HOUR_US - 3 * HOUR_US
    await subscribe(bench, "acme", from_us(first))
    log = await bench.new_log()
    for number, at in enumerate((first, first + HOUR_US - 1, first + HOUR_US, first + 2 * HOUR_US - 1)):
        log.record(bench.use(f"cut-{number}", event_us=at, quantities=(("requests", 10**number),)))
    await bench.ingest.append(log.cut())
    assert [(0, 11, False), (1, 1100, False)] == await sums(bench, "acme")
    async with superuser(bench.url) as conn, conn.transaction():
        await lock_tenant(conn, bench.tenants["acme"])
        # The close has the tenant's lock: an append of the tenant waits for it, and is late afterwards.
        log.record(
            bench.use("late", event_us=first + 5, quantities=(("requests", 7),)),
            bench.use("in-time", event_us=first + HOUR_US + 5, quantities=(("requests", 20_000),)),
        )
        append = asyncio.create_task(bench.ingest.append(log.cut(4)))
        done, _ = await asyncio.wait([append], timeout=0.3)
        assert set() == done
        until = from_us(first) + timedelta(hours=1)
        await conn.execute(
            "UPDATE billing_segment SET state = 'closed', closed_at = now() WHERE tenant_id = $1 AND period_end = $2",
            bench.tenants["acme"],
            until,
        )
        await conn.execute(
            "UPDATE subscription SET billed_until = $2 WHERE tenant_id = $1", bench.tenants["acme"], until
        )
    assert 2 == (await append).stored
    assert [(0, 11, False), (1, 21100, False), (1, 7, True)] == await sums(bench, "acme")


async def test_a_close_of_one_tenant_holds_up_no_other(bench: Bench) -> None:
    """While one tenant's period closes, usage of another is stored."""
    log = await bench.new_log()
    log.record(bench.use("beside", tenant="globex"))
    async with superuser(bench.url) as conn, conn.transaction():
        await lock_tenant(conn, bench.tenants["acme"])
        assert 1 == (await bench.ingest.append(log.cut())).stored
