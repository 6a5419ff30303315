"""A sidecar's start: from the moment it is executed to its first answer, with a GiB of usage that the ledger lacks."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc, usage_pb2
from tollkeeper_cli.stack import CHANNEL_OPTIONS

from bench.cases.catalogue import METERS, declare
from bench.frame import Bench, Goal, Sample
from bench.own_sidecar import POLL_S, OwnSidecar, own_sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from bench.frame import Effort
    from bench.stage import Stage

_PLAN = _TENANT = "bench-start"
_LIMIT = "{name: one, meter: bench_tokens, kind: window, amount: 9000000000000, window: {unit: day, count: 1}}"
_NOBODY = "127.0.0.1:1"
_ROOM_BYTES = 68 << 24
"""Recording ends at 95 % of it, which is more than a GiB."""
_RECORDS_A_CALL = 1_000
_AT_ONCE = 8
_TIMEOUT_S = 60.0
_GOAL_MS = 250


_AWAY = {"TOLLKEEPER_LEDGER_ADDRESS": _NOBODY, "TOLLKEEPER_REDIS_URL": f"redis://{_NOBODY}"}


@contextmanager
def _calls(sidecar: OwnSidecar) -> Iterator[quota_pb2_grpc.QuotaServiceStub]:
    with grpc.insecure_channel(sidecar.target, options=CHANNEL_OPTIONS) as channel:
        yield quota_pb2_grpc.QuotaServiceStub(channel)


def _start(sidecar: OwnSidecar, is_enough: Callable[[quota_pb2_grpc.QuotaServiceStub], bool]) -> tuple[float, float]:
    """Start where neither ledger nor Redis is; give milliseconds and CPU seconds until an answer is enough."""
    began = time.perf_counter()
    with sidecar.serving(**_AWAY) as process, _calls(sidecar) as stub:
        while not is_enough(stub):
            time.sleep(POLL_S)
        return (time.perf_counter() - began) * 1e3, sum(process.cpu_times()[:2])


def _is_answered(stub: quota_pb2_grpc.QuotaServiceStub) -> bool:
    _is_decided(stub)
    return True


def _is_decided(stub: quota_pb2_grpc.QuotaServiceStub) -> bool:
    """Make a check; false where the sidecar says that it can't decide yet. Raises RpcError where it says nothing."""
    request = quota_pb2.CheckQuotaRequest(tenant=_TENANT, costs=[quota_pb2.Cost(meter=METERS[1], units=1)])
    try:
        stub.CheckQuota(request, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        told: Any = error.trailing_metadata() or ()
        if "grpc-status-details-bin" not in dict(told):
            raise
        return False
    return True


def _fill(stub: quota_pb2_grpc.QuotaServiceStub, calls: int) -> None:
    """Record until the log is full, at most so many calls. Raises RpcError where it is refused for another reason."""
    quantities = [usage_pb2.Quantity(meter=meter, units=7) for meter in METERS]
    record = usage_pb2.UsageRecord(tenant=_TENANT, quantities=quantities, attributes={"model": "small"})
    request = usage_pb2.RecordUsageRequest(records=[record] * _RECORDS_A_CALL)
    waiting: deque[Any] = deque()
    for _ in range(calls):
        waiting.append(stub.RecordUsage.future(request, timeout=_TIMEOUT_S))
        if len(waiting) < _AT_ONCE:
            continue
        try:
            waiting.popleft().result()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return


def _prepare(sidecar: OwnSidecar, calls: int) -> None:
    """Let a sidecar learn its tenant of the ledger and die, and the next one, without a ledger, fill the log."""
    snapshot = sidecar.log_folder / "snapshot"
    deadline = time.monotonic() + _TIMEOUT_S
    with sidecar.serving(), _calls(sidecar) as stub:
        while not (_is_decided(stub) and snapshot.exists() and _TENANT.encode() in snapshot.read_bytes()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no snapshot in {snapshot} after {_TIMEOUT_S:g} s")
            time.sleep(POLL_S)
    with sidecar.serving(**_AWAY), _calls(sidecar) as stub:
        while not _is_decided(stub):
            time.sleep(POLL_S)
        _fill(stub, calls)


@asynccontextmanager
async def open_start(stage: Stage, effort: Effort, *, decided: bool) -> AsyncIterator[Bench]:
    """Have a log full of records that the ledger lacks, and nobody there: what a start then reads is its own."""
    room_bytes = effort.of(_ROOM_BYTES, quick=4 << 20)
    sidecar = own_sidecar(stage, "start", log_bytes=room_bytes)
    if not sidecar.log_folder.exists():
        await declare(stage, _PLAN, [_TENANT], limits=[_LIMIT])
        await asyncio.to_thread(_prepare, sidecar, room_bytes // _RECORDS_A_CALL)
    starts, is_enough = effort.of(5, quick=2), _is_decided if decided else _is_answered

    async def ours() -> Sample:
        return _sample([await asyncio.to_thread(_start, sidecar, is_enough) for _ in range(starts)])

    async def floor() -> Sample:
        return _sample([await asyncio.to_thread(_bare_start) for _ in range(starts)])

    yield Bench(
        unit="starts",
        ours=ours,
        floor=floor,
        floor_is="the interpreter alone: `python -c pass` until it has ended",
        goals=(Goal("ours.p50_ms", _GOAL_MS, is_at_least=False),),
    )


def _bare_start() -> tuple[float, float]:
    """Run the interpreter with nothing to do; give milliseconds and CPU seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    taken_ms, after = (time.perf_counter() - began) * 1e3, resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken_ms, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _sample(taken: list[tuple[float, float]]) -> Sample:
    times_ms = [taken_ms for taken_ms, _ in taken]
    return Sample(
        count=len(taken), wall_s=sum(times_ms) / 1e3, cpu_s=sum(cpu_s for _, cpu_s in taken), latencies_ms=times_ms
    )
