"""Keys that nobody has used yet: first leases from the ledger, and openings of their pools by a second holder."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import limits_pb2, limits_pb2_grpc

from bench.cases.catalogue import declare
from bench.frame import Bench, Goal, Sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.frame import Effort
    from bench.stage import Stage

_TENANT, _PLAN = "bench-cold", "bench-cold"
_LIMIT = (
    "{name: per-user, meter: bench_requests, kind: window, amount: 16000, window: {unit: day, count: 1}, key: [user]}"
)
_ENTRIES = 500
_CALLERS = 4
_TIMEOUT_S = 120.0
_PER_S = 5_000
_FLOOR_TABLE = """
CREATE TABLE IF NOT EXISTS bench_window (
  tenant_id uuid NOT NULL, key_hash bytea NOT NULL, window_id bytea NOT NULL, holder bytea NOT NULL,
  allotted bigint NOT NULL, PRIMARY KEY (tenant_id, key_hash))
"""
_FLOOR_WINDOWS = """
INSERT INTO bench_window
SELECT '00000000-0000-0000-0000-000000000001', key_hash, window_id, $3, 10 FROM unnest($1::bytea[], $2::bytea[])
  AS new (key_hash, window_id)
"""


@asynccontextmanager
async def open_cold(stage: Stage, effort: Effort, *, second: bool) -> AsyncIterator[Bench]:
    """Have a limit per user; `second`: each key has a first holder already, and another one asks."""
    await declare(stage, _PLAN, [_TENANT], limits=[_LIMIT])
    calls = effort.of(16, quick=2)
    async with AsyncExitStack() as opened:
        stub: Any = limits_pb2_grpc.LimitServiceStub(await opened.enter_async_context(stage.ledger()))
        connections = [await opened.enter_async_context(stage.owner()) for _ in range(_CALLERS)]
        await connections[0].execute(_FLOOR_TABLE)

        async def ours() -> Sample:
            keys = [[secrets.token_bytes(16) for _ in range(_ENTRIES)] for _ in range(calls)]
            if second:
                await _ask(stub, keys, "lease")
            with stage.spending("ledger", "postgres", "valkey") as spent:
                count = await _ask(stub, keys, "pool" if second else "lease")
            return Sample(count=count, wall_s=spent.wall_s, cpu_s=spent.cpu_s)

        async def floor() -> Sample:
            waiting = [[secrets.token_bytes(16) for _ in range(_ENTRIES)] for _ in range(calls)]

            async def work(place: int) -> None:
                while waiting:
                    keys = waiting.pop()
                    await connections[place].execute(_FLOOR_WINDOWS, keys, keys, keys[0])

            with stage.spending("driver", "postgres") as spent:
                async with asyncio.TaskGroup() as tasks:
                    for place in range(_CALLERS):
                        tasks.create_task(work(place))
            return Sample(count=_ENTRIES * calls, wall_s=spent.wall_s, cpu_s=spent.cpu_s)

        yield Bench(
            unit="keys",
            ours=ours,
            floor=floor,
            floor_is=f"asyncpg, one INSERT of {_ENTRIES} windows a transaction; {_CALLERS} connections",
            goals=(Goal("ours.per_s", _PER_S),),
        )


async def _ask(stub: limits_pb2_grpc.LimitServiceAsyncStub, keys: Sequence[Sequence[bytes]], kind: str) -> int:
    """Ask once for each key, as a holder that is new, and give how many answers are of this kind.

    Where Redis is slow for a moment the ledger leases instead of opening a pool.
    """
    holder, waiting, right = secrets.token_bytes(16), list(keys), 0

    async def work() -> None:
        nonlocal right
        while waiting:
            at_us = time.time_ns() // 1_000
            entries = [
                limits_pb2.AllotEntry(
                    tenant=_TENANT, limit="per-user", key_hash=key, key_values=["somebody"], at_us=at_us,
                    request_seq=1, need=1, want=10,
                )
                for key in waiting.pop()
            ]  # fmt: skip
            answer = await stub.Allot(limits_pb2.AllotRequest(holder=holder, entries=entries), timeout=_TIMEOUT_S)
            right += sum(found.WhichOneof("result") == kind for found in answer.answers)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_CALLERS):
            tasks.create_task(work())
    if not right:
        raise RuntimeError(f"no answer is a {kind}")
    return right
