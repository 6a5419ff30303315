"""How long usage takes from the call to where everybody can ask for it; beside the same commits without a way there."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2

from bench.cases.catalogue import METERS, declare
from bench.frame import Bench, Goal, Sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from bench.frame import Effort
    from bench.stage import Stage

_PLAN = "bench-visible"
_TENANT = "bench-visible"
_PER_S = 200
_LOOK_AFTER_S = 0.02
_VISIBLE_MS = 2_000
_TIMEOUT_S = 60.0
_FLOOR_TABLE = "CREATE TABLE IF NOT EXISTS bench_visible (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)"


@asynccontextmanager
async def open_visible(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have a tenant that nobody else uses, and look at its sum of today over and over."""
    await declare(stage, _PLAN, [_TENANT])
    count = effort.of(2_000, quick=100)
    record = usage_pb2.UsageRecord(tenant=_TENANT, quantities=[usage_pb2.Quantity(meter=METERS[0], units=1)])
    async with AsyncExitStack() as opened:
        quota = quota_pb2_grpc.QuotaServiceStub(await opened.enter_async_context(stage.sidecar()))
        reports = reports_pb2_grpc.ReportServiceStub(await opened.enter_async_context(stage.ledger()))
        writer, reader = [await opened.enter_async_context(stage.owner()) for _ in range(2)]
        await writer.execute(_FLOOR_TABLE)

        async def call(_number: int) -> None:
            answer = await quota.RecordUsage(usage_pb2.RecordUsageRequest(records=[record]), timeout=_TIMEOUT_S)
            if answer.results[0].outcome != usage_pb2.RECORD_OUTCOME_RECORDED:
                raise RuntimeError(f"a record was not taken: {answer}")

        async def shown() -> int:
            today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            request = reports_pb2.QueryUsageRequest(
                tenant=_TENANT, meters=METERS[:1], bucket=reports_pb2.BUCKET_SIZE_DAY
            )
            getattr(request, "from").FromDatetime(today - timedelta(days=1))
            request.to.FromDatetime(today + timedelta(days=2))
            answer = await reports.QueryUsage(request, timeout=_TIMEOUT_S)
            return sum(bucket.records for bucket in answer.buckets)

        async def insert(_number: int) -> None:
            await writer.execute("INSERT INTO bench_visible DEFAULT VALUES")

        async def counted() -> int:
            found: int = await reader.fetchval("SELECT count(*) FROM bench_visible")
            return found

        async def ours() -> Sample:
            with stage.spending("sidecar", "ledger", "postgres") as spent:
                taken = await seen_after(call, shown, count=count)
            return Sample(count, wall_s=spent.wall_s, cpu_s=spent.cpu_s, latencies_ms=taken)

        async def floor() -> Sample:
            with stage.spending("driver", "postgres") as spent:
                taken = await seen_after(insert, counted, count=count)
            return Sample(count, wall_s=spent.wall_s, cpu_s=spent.cpu_s, latencies_ms=taken)

        yield Bench(
            unit="records",
            ours=ours,
            floor=floor,
            floor_is="asyncpg: one row a transaction at the same 200 a second, counted by another session",
            goals=(Goal("ours.p99_ms", _VISIBLE_MS, is_at_least=False),),
        )


async def seen_after(
    call: Callable[[int], Awaitable[None]], shown: Callable[[], Awaitable[int]], *, count: int
) -> list[float]:
    """Make calls at a pace, each after the one before it, and look all the time how many there are to see.

    Gives per call the milliseconds from its begin until the first look that counts it was answered; what is seen is in
    order of the calls, as one log is. Raises RuntimeError where more are seen than were made.
    """
    before = await shown()
    made: list[float] = []
    taken: list[float] = []

    async def make() -> None:
        began = time.perf_counter()
        for number in range(count):
            at = began + number / _PER_S
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            made.append(time.perf_counter())
            await call(number)

    async def look() -> None:
        while len(taken) < count:
            found, at = await shown() - before, time.perf_counter()
            if found > len(made):
                raise RuntimeError(f"{found} are seen of {len(made)} that were made")
            taken.extend((at - made[number]) * 1e3 for number in range(len(taken), found))
            await asyncio.sleep(_LOOK_AFTER_S)

    async with asyncio.timeout(_TIMEOUT_S * 5), asyncio.TaskGroup() as tasks:
        tasks.create_task(make())
        tasks.create_task(look())
    return taken
