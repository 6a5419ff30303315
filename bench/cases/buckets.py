"""Memory of a sidecar: idle, and for each of many keys that it has leased units of; and checks over all of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc
from tollkeeper_cli.stack import CHANNEL_OPTIONS

from bench.cases.catalogue import declare
from bench.frame import Bench, Goal, Sample
from bench.load import in_flight
from bench.own_sidecar import own_sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from bench.frame import Effort
    from bench.stage import Stage

_PLAN = _TENANT = "bench-buckets"
_LIMIT = (
    "{name: per-user, meter: bench_requests, kind: window, amount: 16000, window: {unit: day, count: 1}, key: [user]}"
)
_HEALTH = "/grpc.health.v1.Health/Check"
_IN_FLIGHT = 64
_AT_ONCE = 32
_TIMEOUT_S = 3_600.0
_QUIET_S = 3.0
"""Units of a key that nobody uses go back after two seconds."""
_BUCKETS = 100_000
_BYTES_A_BUCKET = 128
_IDLE_MIB = 100


async def _admit(channel: grpc.aio.Channel, users: Iterable[int]) -> None:
    """Take a unit of each user's own limit, on one stream, asking again where no authority answered in time."""
    call: Any = quota_pb2_grpc.QuotaServiceStub(channel).StreamQuota()
    left, out = deque(users), 0
    async with asyncio.timeout(_TIMEOUT_S):
        while left or out:
            while left and out < _IN_FLIGHT:
                user, out = left.popleft(), out + 1
                check = quota_pb2.CheckQuotaRequest(
                    tenant=_TENANT,
                    costs=[quota_pb2.Cost(meter="bench_requests", units=1)],
                    attributes={"user": f"user-{user}"},
                )
                await call.write(quota_pb2.StreamQuotaRequest(tag=user, check=check))
            answer = await call.read()
            out -= 1
            if not answer.answer.decision.allowed:
                left.append(answer.tag)
    await call.done_writing()


@asynccontextmanager
async def open_buckets(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have a sidecar that has leased units of a hundred thousand keys from the ledger."""
    await declare(stage, _PLAN, [_TENANT], limits=[_LIMIT])
    sidecar = own_sidecar(stage, "buckets", log_bytes=64 << 20)
    count, checks = effort.of(_BUCKETS, quick=300), effort.of(5_000, quick=100)
    async with AsyncExitStack() as opened:
        process = opened.enter_context(sidecar.serving())
        channel = await opened.enter_async_context(grpc.aio.insecure_channel(sidecar.target, options=CHANNEL_OPTIONS))
        await _admit(channel, [0])
        await asyncio.sleep(_QUIET_S)
        idle_bytes = process.memory_info().rss
        await _admit(channel, range(count))
        await asyncio.sleep(_QUIET_S)
        grown_bytes = max(1, process.memory_info().rss - idle_bytes)
        memory = {"buckets": count, "bytes_per_bucket": grown_bytes / count, "idle_mib": idle_bytes / (1 << 20)}
        health: Any = channel.unary_unary(_HEALTH)

        async def ours() -> Sample:
            users = random.sample(range(count), checks)
            cpu_before, began = sum(process.cpu_times()[:2]), time.perf_counter()
            await _admit(channel, users)
            wall_s = time.perf_counter() - began
            return Sample(count=checks, wall_s=wall_s, cpu_s=sum(process.cpu_times()[:2]) - cpu_before, more=memory)

        async def floor() -> Sample:
            cpu_before, began = sum(process.cpu_times()[:2]), time.perf_counter()
            await in_flight(lambda _: health(b"", timeout=_TIMEOUT_S), count=checks, at_once=_AT_ONCE)
            wall_s = time.perf_counter() - began
            return Sample(count=checks, wall_s=wall_s, cpu_s=sum(process.cpu_times()[:2]) - cpu_before)

        yield Bench(
            unit="checks",
            ours=ours,
            floor=floor,
            floor_is="the sidecar's health check, unary",
            goals=(
                Goal("ours.bytes_per_bucket", _BYTES_A_BUCKET, is_at_least=False),
                Goal("ours.idle_mib", _IDLE_MIB, is_at_least=False),
            ),
        )
