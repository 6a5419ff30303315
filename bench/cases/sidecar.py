"""Calls of one sidecar: checks, records, GetQuota; beside its health check, or nghttpd."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc, usage_pb2
from tollkeeper_cli.stack import is_free

from bench.cases.catalogue import METERS, declare
from bench.disk import commit_groups, commit_paced, written_file
from bench.frame import Bench, Goal, Sample
from bench.load import grpc_body, h2load, has_h2load, unary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from bench.frame import Effort
    from bench.stage import Stage

_PLAN = "bench-calls"
_TENANT = "bench-calls"
_HEALTH = "/grpc.health.v1.Health/Check"
_CHECK, _QUOTA = "/tollkeeper.quota.v1.QuotaService/CheckQuota", "/tollkeeper.quota.v1.QuotaService/GetQuota"
_RECORD = "/tollkeeper.quota.v1.QuotaService/RecordUsage"
_AT_ONCE = 32
_TIMEOUT_S = 60.0
_RECORDS_A_CALL = 100
_SINGLE_PER_S = 2_000
_LIMITS = 20
_OF_NGHTTPD = 0.85
_LOGGED_BYTES = 200
"""What one of these records takes in the usage log."""
_STORED = "SELECT coalesce(sum(stored_total), 0)::bigint FROM usage_chain_head"
_HUGE = 9_000_000_000_000


@dataclass(frozen=True, slots=True)
class _Calls:
    """One sidecar, called with bytes by the native client: nothing is encoded while time is taken."""

    stage: Stage

    async def sample(
        self, method: str, message: Message | None, *, calls: int, of_each: int = 1, at_once: int = 0, per_s: int = 0
    ) -> Sample:
        """Make calls, 32 at once where nothing else is said, and measure the sidecar."""
        body = b"" if message is None else message.SerializeToString()
        target = self.stage.stack.addresses.sidecar_target
        with self.stage.spending("sidecar") as spent:
            called = await unary(target, method, body, calls=calls, at_once=at_once, per_s=per_s)
        return Sample(calls * of_each, wall_s=called.wall_s, cpu_s=spent.cpu_s, latencies_ms=called.latencies_ms)


@asynccontextmanager
async def _open(stage: Stage) -> AsyncIterator[_Calls]:
    """Declare a tenant of twenty limits and wait until the sidecar has units of each."""
    limits = [
        f"{{name: l{at}, meter: {METERS[0]}, kind: window, amount: {_HUGE},"
        f" window: {{unit: {('hour', 'day', 'week', 'month')[at % 4]}, count: 1}}}}"
        for at in range(_LIMITS)
    ]
    one = f"{{name: one, meter: {METERS[1]}, kind: window, amount: {_HUGE}, window: {{unit: day, count: 1}}}}"
    await declare(stage, _PLAN, [_TENANT], limits=[*limits, one])
    async with stage.sidecar() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        async with asyncio.timeout(_TIMEOUT_S):
            for meter in METERS:
                while not (await stub.CheckQuota(_check(meter), timeout=_TIMEOUT_S)).decision.allowed:
                    pass
        yield _Calls(stage)


def _check(meter: str) -> quota_pb2.CheckQuotaRequest:
    return quota_pb2.CheckQuotaRequest(tenant=_TENANT, costs=[quota_pb2.Cost(meter=meter, units=1)])


@asynccontextmanager
async def open_check(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have a limit that never runs out, leased; with h2load where it is there."""
    async with _open(stage) as calls:
        message = _check(METERS[1])
        if has_h2load():
            async with _beside_nghttpd(stage, message.SerializeToString(), effort) as bench:
                yield bench
            return
        count = effort.of(40_000, quick=500)

        async def ours() -> Sample:
            return await calls.sample(_CHECK, message, calls=count)

        async def floor() -> Sample:
            return await calls.sample(_HEALTH, None, calls=count)

        yield Bench(
            unit="checks",
            ours=ours,
            floor=floor,
            floor_is="the sidecar's health check, same client; with h2load and nghttpd installed, nghttpd",
            goals=(),
        )


@asynccontextmanager
async def _beside_nghttpd(stage: Stage, message: bytes, effort: Effort) -> AsyncIterator[Bench]:
    """Serve one static answer by nghttpd on the sidecar's core, and send both the same requests."""
    folder = stage.stack.directory / "nghttpd"
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_bytes(bytes(64))
    body = grpc_body(message, folder / "body")
    port = next(port for port in range(18_600, 19_600) if is_free("127.0.0.1", port))
    core = ["taskset", "-c", str(stage.cores[0])] if len(stage.cores) > 1 and shutil.which("taskset") else []
    words = [*core, "nghttpd", "--no-tls", "-d", str(folder), str(port)]
    child = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.DEVNULL)
    count = effort.of(200_000, quick=5_000)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while is_free("127.0.0.1", port):  # noqa: ASYNC110 - another process has no event for it
                await asyncio.sleep(0.01)

        async def send(url: str) -> Sample:
            with stage.spending("sidecar") as spent:
                seconds = await h2load(url, count=count, body=body)
            return Sample(count=count, wall_s=seconds, cpu_s=spent.cpu_s)

        async def ours() -> Sample:
            return await send(f"http://{stage.stack.addresses.sidecar_listen}{_CHECK}")

        async def floor() -> Sample:
            sample = await send(f"http://127.0.0.1:{port}/index.html")
            return Sample(count=sample.count, wall_s=sample.wall_s, cpu_s=0.0)

        yield Bench(
            unit="checks",
            ours=ours,
            floor=floor,
            floor_is="nghttpd, a static answer, same requests by h2load: 8 connections of 16 streams",
            goals=(Goal("ratio.per_s", _OF_NGHTTPD),),
        )
    finally:
        child.terminate()
        await child.wait()


@asynccontextmanager
async def open_record(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have calls of 100 records without ids, acknowledged when synced to the log.

    The ledger stands still meanwhile: its work takes the cores and the disk that are measured, where in service it has
    others. It stores all of it afterwards; beside is what comes of it where both share a machine.
    """
    async with _open(stage) as calls:
        message = usage_pb2.RecordUsageRequest(records=[_record() for _ in range(_RECORDS_A_CALL)])
        count = effort.of(4_000, quick=20)

        async def stored_meanwhile() -> Sample:
            async with _shipping(stage, records=count * _RECORDS_A_CALL):
                return await calls.sample(_RECORD, message, calls=count, of_each=_RECORDS_A_CALL)

        async def ours() -> Sample:
            async with _shipping(stage, records=count * _RECORDS_A_CALL):
                with stage.paused("ledger"):
                    return await calls.sample(_RECORD, message, calls=count, of_each=_RECORDS_A_CALL)

        async def health() -> Sample:
            return await calls.sample(_HEALTH, None, calls=count, of_each=_RECORDS_A_CALL)

        with written_file(stage.stack.directory) as file:

            async def disk() -> Sample:
                groups = count // _AT_ONCE + 1
                records = _RECORDS_A_CALL * _AT_ONCE
                with stage.spending("driver") as spent:
                    wall_s = await asyncio.to_thread(
                        commit_groups, file, count=groups, group_bytes=_LOGGED_BYTES * records
                    )
                return Sample(count=groups * records, wall_s=wall_s, cpu_s=spent.cpu_s)

            yield Bench(
                unit="records",
                ours=ours,
                floor=disk,
                floor_is="the disk alone: groups of as many records as are in flight, each written and synced",
                goals=(Goal("ours.per_s", 500_000),),
                beside={
                    "while this machine's ledger stores them": stored_meanwhile,
                    "health check, counted as a hundred": health,
                },
            )


@asynccontextmanager
async def open_record_single(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have calls of one record at 2,000 a second; the ledger stands still as for calls of 100."""
    async with _open(stage) as calls:
        message = usage_pb2.RecordUsageRequest(records=[_record()])
        count = effort.of(6_000, quick=500)

        async def stored_meanwhile() -> Sample:
            async with _shipping(stage, records=count):
                return await calls.sample(_RECORD, message, calls=count, per_s=_SINGLE_PER_S)

        async def ours() -> Sample:
            async with _shipping(stage, records=count):
                with stage.paused("ledger"):
                    return await calls.sample(_RECORD, message, calls=count, per_s=_SINGLE_PER_S)

        async def check() -> Sample:
            return await calls.sample(_CHECK, _check(METERS[1]), calls=count, per_s=_SINGLE_PER_S)

        with written_file(stage.stack.directory) as file:

            async def disk() -> Sample:
                with stage.spending("driver") as spent:
                    taken = await asyncio.to_thread(
                        commit_paced, file, count=count, per_s=_SINGLE_PER_S, record_bytes=_LOGGED_BYTES
                    )
                return Sample(count, wall_s=count / _SINGLE_PER_S, cpu_s=spent.cpu_s, latencies_ms=taken)

            yield Bench(
                unit="records",
                ours=ours,
                floor=disk,
                floor_is="the disk alone: what came due at the same 2,000 a second written and synced",
                goals=(Goal("ours.p99_ms", 3, is_at_least=False),),
                beside={"while this machine's ledger stores them": stored_meanwhile, "CheckQuota": check},
            )


def _record() -> usage_pb2.UsageRecord:
    quantities = [usage_pb2.Quantity(meter=meter, units=7) for meter in METERS]
    return usage_pb2.UsageRecord(tenant=_TENANT, quantities=quantities, attributes={"model": "small"})


@asynccontextmanager
async def _shipping(stage: Stage, *, records: int) -> AsyncIterator[None]:
    """Wait until the ledger has all records of the block, and see that it has no other ones.

    So shipping disturbs nobody else's figures, and what was acknowledged is known to be stored.
    """
    async with stage.owner() as conn:
        before = await conn.fetchval(_STORED)
        yield
        async with asyncio.timeout(_TIMEOUT_S * 5):
            while (stored := await conn.fetchval(_STORED) - before) < records:  # noqa: ASYNC110 - another process has no event for it
                await asyncio.sleep(0.05)
        if stored != records:
            raise RuntimeError(f"of {records} records {stored} were stored")


@asynccontextmanager
async def open_get_quota(stage: Stage, effort: Effort) -> AsyncIterator[Bench]:
    """Have a tenant of 21 limits, all in use."""
    async with AsyncExitStack() as opened:
        calls = await opened.enter_async_context(_open(stage))
        message = quota_pb2.GetQuotaRequest(tenant=_TENANT)
        count = effort.of(2_000, quick=200)

        async def ours() -> Sample:
            return await calls.sample(_QUOTA, message, calls=count, at_once=1)

        async def floor() -> Sample:
            return await calls.sample(_HEALTH, None, calls=count, at_once=1)

        yield Bench(
            unit="calls",
            ours=ours,
            floor=floor,
            floor_is="the sidecar's health check, one call after the other",
            goals=(Goal("ours.p99_ms", 5, is_at_least=False),),
        )
