"""Figures of real processes, printed with the run: calls to Redis, showing limits, what an outage costs."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest
from fleet_load import catalogue
from fleet_support import Fleet
from process_finders import TENANT, fresh_limit, until_known
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AMOUNT = 100_000_000
RATES = (100, 500, 2_500)
LOAD_S = 3.0
OUTAGE_S = 10.0
WARM_S = 6.0
OUTAGE_RATE = 100
SHOWN_LIMITS = 20
SHOWN_CALLS = 300


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run a ledger and two sidecars."""
    fleet = Fleet(tmp_path_factory.mktemp("figures"), sidecars=2)
    try:
        fleet.start()
        asyncio.run(fleet.apply(catalogue([TENANT], [])))
        yield fleet
    finally:
        fleet.stop()


async def fresh(fleet: Fleet) -> str:
    """Make a large limit and wait until both sidecars know it."""
    cell = await fresh_limit(fleet, AMOUNT, decision_pb2.FAILURE_POLICY_STANDBY)
    for target in fleet.targets:
        async with fleet.channel(target) as channel:
            await until_known(quota_pb2_grpc.QuotaServiceStub(channel), cell, AMOUNT)
    return cell


def steady(fleet: Fleet, cell: str, *, rate: float, seconds: float) -> list[dict[str, Any]]:
    """Plan one flow to each sidecar at a steady rate."""
    return [
        {
            "target": target,
            "tenant": TENANT,
            "meter": "requests",
            "attributes": {"cell": cell},
            "checks": max(1, round(rate * seconds)),
            "rate": rate,
        }
        for target in fleet.targets
    ]


async def test_calls_to_redis_fall_as_traffic_rises(fleet: Fleet, report: Callable[[str], None]) -> None:
    """The busier a limit is, the fewer calls to Redis each check costs."""
    per_million = []
    for rate in RATES:
        cell = await fresh(fleet)
        before = fleet.redis.first.calls()
        told = await fleet.load(steady(fleet, cell, rate=rate, seconds=LOAD_S), seconds=LOAD_S + 5)
        checks = sum(flow["sent"] for flow in told)
        per_million.append((fleet.redis.first.calls() - before) * 1_000_000 // checks)
    lines = [f"{2 * rate:,} checks/s: {calls:,}" for rate, calls in zip(RATES, per_million, strict=True)]
    report(f"function calls to Redis per million checks, two sidecars: {'; '.join(lines)}")
    assert per_million[0] > per_million[-1]


async def test_a_lost_redis_fails_no_check_of_a_warm_key(fleet: Fleet, report: Callable[[str], None]) -> None:
    """With Redis killed, keys in use are served for 10 s at their present rate: no check is denied or fails."""
    cell = await fresh(fleet)
    await fleet.load(steady(fleet, cell, rate=OUTAGE_RATE, seconds=WARM_S), seconds=WARM_S + 5)
    loading = asyncio.ensure_future(
        fleet.load(steady(fleet, cell, rate=OUTAGE_RATE, seconds=OUTAGE_S), seconds=OUTAGE_S + 5)
    )
    await fleet.do(fleet.redis.first.kill)
    told = await loading
    await fleet.do(fleet.redis.first.start)
    failed = [flow["sent"] - flow["decisions"].get("ALLOWED", 0) for flow in told]
    slowest_ms = max(flow["max_us"] for flow in told) / 1_000
    report(
        f"Redis killed for {OUTAGE_S:g} s: {sum(failed)} of {sum(flow['sent'] for flow in told):,} checks of a warm "
        f"key failed; the slowest answer took {slowest_ms:.1f} ms; "
        f"{[flow['decisions'] for flow in told]}, last without an authority {told[0]['unreachable_last_ms']} ms"
    )
    assert failed == [0, 0]


async def test_twenty_limits_are_shown_quickly(fleet: Fleet, report: Callable[[str], None]) -> None:
    """GetQuota lists twenty limits; its latency is printed, not judged, for the machine is shared."""
    cell = [await fresh_limit(fleet, AMOUNT) for _ in range(SHOWN_LIMITS)][-1]
    request = quota_pb2.GetQuotaRequest(tenant=TENANT, attributes={"cell": cell})
    async with fleet.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        await until_known(stub, cell, AMOUNT)
        taken_ms = []
        for _ in range(SHOWN_CALLS):
            started_s = time.perf_counter()
            answer = await stub.GetQuota(request, timeout=30)
            taken_ms.append((time.perf_counter() - started_s) * 1_000)
    assert len(answer.limits) >= SHOWN_LIMITS
    cuts = statistics.quantiles(taken_ms, n=100)
    report(f"GetQuota of {len(answer.limits)} limits from Python: p50 {cuts[49]:.2f} ms, p99 {cuts[98]:.2f} ms")
