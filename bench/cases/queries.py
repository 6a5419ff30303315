"""A month of one of 10,000 tenants by day, asked of the ledger; beside the sum that Postgres has to make for it."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from bench.cases.catalogue import METERS, declare
from bench.frame import Bench, Goal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.frame import Effort
    from bench.stage import Stage

_PLAN = "bench-months"
_FROM, _TO = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)
_DAYS = 31
_ZONE = "Europe/Berlin"
_TIMEOUT_S = 60.0
# Every tenant has a row a day; those that are asked for have each quarter of an hour.
_FILL = """
INSERT INTO usage_rollup_quarter (tenant_id, segment_id, meter_id, dims, quarter, units, records)
SELECT tenant_id, tenant_id, meter_id, '{}', quarter, 100, 10
FROM tenant, meter,
     generate_series($2::timestamptz, $3::timestamptz - interval '1 second', $4::text::interval) AS quarter
WHERE tenant.wire_id = ANY ($1::text[]) AND meter.name = $5
ON CONFLICT DO NOTHING
"""
_FLOOR = """
SELECT date_trunc('day', quarter), sum(units), sum(records) FROM usage_rollup_quarter
WHERE tenant_id = $1 AND meter_id = $2 AND quarter >= $3 AND quarter < $4 GROUP BY 1 ORDER BY 1
"""


@asynccontextmanager
async def open_month(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Fill a month of many tenants' rollups."""
    names = [f"month-{at}" for at in range(effort.of(10_000, quick=100))]
    await declare(stage, _PLAN, names)
    asked = names[:: max(1, len(names) // 20)]
    async with AsyncExitStack() as opened:
        stub = reports_pb2_grpc.ReportServiceStub(await opened.enter_async_context(stage.ledger()))
        owner = await opened.enter_async_context(stage.owner())
        await owner.execute("SELECT make_usage_month($1)", _FROM.date())
        for tenants, step in ((asked, "15 minutes"), (names, "1 day")):
            await owner.execute(_FILL, tenants, _FROM, _TO, step, METERS[0])
        await owner.execute("ANALYZE usage_rollup_quarter")
        meter_id = await owner.fetchval("SELECT meter_id FROM meter WHERE name = $1", METERS[0])
        rows = await owner.fetch("SELECT tenant_id FROM tenant WHERE wire_id = ANY ($1::text[])", asked)
        randoms, count = random.Random(1), effort.of(500, quick=40)

        async def ask(_number: int) -> None:
            request = reports_pb2.QueryUsageRequest(
                tenant=randoms.choice(asked), meters=METERS[:1], bucket=reports_pb2.BUCKET_SIZE_DAY, time_zone=_ZONE
            )
            getattr(request, "from").FromDatetime(_FROM)
            request.to.FromDatetime(_TO)
            answer = await stub.QueryUsage(request, timeout=_TIMEOUT_S)
            if len(answer.buckets) < _DAYS:
                raise RuntimeError(f"{len(answer.buckets)} days of a month")

        async def look(_number: int) -> None:
            await owner.fetch(_FLOOR, randoms.choice(rows)["tenant_id"], meter_id, _FROM, _TO)

        yield Bench(
            unit="queries",
            ours=partial(stage.one_by_one, ("ledger", "postgres"), ask, count),
            floor=partial(stage.one_by_one, ("driver", "postgres"), look, count),
            floor_is="asyncpg, the sums of the same rows by day of UTC",
            goals=(Goal("ours.p99_ms", 10, is_at_least=False),),
        )
