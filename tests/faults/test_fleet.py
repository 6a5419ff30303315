"""Five sidecars, one Redis with a replica, one Postgres, one ledger: no window admits more than its limit, ever.

Callers are native and count what they were told. A bounded set runs with the other tests; `make faults` runs every
fault with larger loads.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from fleet_faults import FAULTS
from fleet_load import CLOCK_SPEED, GRACE_S, catalogue, cells, flows, judge, table
from fleet_support import Fleet
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest import FixtureRequest  # noqa: PT013 - a type

LONG = os.environ.get("FAULTS") == "long"
ALL = LONG or os.environ.get("FAULTS") == "all"
SPAN_S = 20.0 if LONG else 3.0
CHECKS_MAX = 100_000 if LONG else 250
ALWAYS = [
    "nothing",
    "redis killed",
    "redis failed over with loss",
    "redis demoted, resynced, promoted again",
    "redis flushed",
    "two sidecars killed twice",
    "two sidecars paused",
]
CHOSEN = list(FAULTS) if ALL else ALWAYS
RECOVERED_S_MAX = 30.0
RECORD_INTERVAL_S = 0.05
GRID = cells(CHECKS_MAX)


def tenant_of(fault: str) -> str:
    """Name the tenant that a fault's load uses."""
    return f"f{list(FAULTS).index(fault)}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Run the fleet with a tenant for every fault, on a clock that makes minutes short."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        fleet.start()
        asyncio.run(fleet.apply(catalogue([tenant_of(fault) for fault in FAULTS], GRID)))
        asyncio.run(fleet.set_clock_speed(CLOCK_SPEED))
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(params=CHOSEN, ids=[fault.replace(" ", "-") for fault in CHOSEN])
def fault(request: FixtureRequest) -> str:
    """Give the name of each fault."""
    name: str = request.param
    return name


async def record_usage(fleet: Fleet, tenant: str, until_s: float) -> set[str]:
    """Record one usage record after the other at every sidecar; return the ids of those that were acknowledged."""
    acknowledged: set[str] = set()

    async def at(target: str, number: int) -> None:
        count = 0
        async with fleet.channel(target) as channel:
            stub = quota_pb2_grpc.QuotaServiceStub(channel)
            while time.monotonic() < until_s:
                count += 1
                record = usage_pb2.UsageRecord(tenant=tenant, id=f"{number}/{count}", event_time=fleet.now())
                record.quantities.add(meter="tokens", units=1)
                try:
                    answer = await stub.RecordUsage(usage_pb2.RecordUsageRequest(records=[record]), timeout=10)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(RECORD_INTERVAL_S)
                    continue
                if answer.results[0].outcome == usage_pb2.RECORD_OUTCOME_RECORDED:
                    acknowledged.add(record.id)
                await asyncio.sleep(RECORD_INTERVAL_S)

    await asyncio.gather(*(at(target, number) for number, target in enumerate(fleet.targets)))
    return acknowledged


async def stored_at_last(fleet: Fleet, tenant: str, acknowledged: set[str]) -> list[str]:
    """Return the ids of the stored records, once every acknowledged one is there or a minute has passed."""
    give_up_s = time.monotonic() + 60
    while True:
        stored = await fleet.stored_ids(tenant)
        if acknowledged <= set(stored) or time.monotonic() > give_up_s:
            return stored
        await asyncio.sleep(0.1)


async def test_no_window_admits_more_than_its_limit(fleet: Fleet, fault: str, report: Callable[[str], None]) -> None:
    """Whatever happens to Redis, the ledger, and the sidecars: per window, callers are told at most the limit.

    Auditor A: admitted <= limit; where nothing fails, nobody hears that a limit is used up that isn't. B: acknowledged
    usage is stored, once. F: every denial and error has an expected reason. G: every sidecar admits again in time.
    """
    tenant = tenant_of(fault)
    await fleet.do(fleet.heal)
    await fleet.until_admitted(tenant, cell="after-0")
    planned = flows(GRID, fleet.targets, tenant=tenant, span_s=SPAN_S, seed=len(fault))
    loading = asyncio.ensure_future(fleet.load(planned, seconds=SPAN_S + GRACE_S))
    recording = asyncio.ensure_future(record_usage(fleet, tenant, time.monotonic() + SPAN_S))
    await asyncio.sleep(SPAN_S / 4)
    await FAULTS[fault](fleet, SPAN_S / 4)
    recovered_s = await fleet.until_admitted(tenant, cell="after-1")
    told = await loading
    acknowledged = await recording
    verdicts = judge(GRID, planned, told, len(fleet.targets))
    stored = await stored_at_last(fleet, tenant, acknowledged)
    over = sum(verdict.over for verdict in verdicts)
    untyped = sum(verdict.untyped for verdict in verdicts)
    lost, doubled = len(acknowledged - set(stored)), len(stored) - len(set(stored))
    slowest_ms = max(flow["p99_us"] for flow in told) / 1_000
    report(table(fault, verdicts))
    report(
        f"{fault}: A over {over}; B acknowledged {len(acknowledged)}, lost {lost}, doubled {doubled}; "
        f"F untyped {untyped}; G recovered in {recovered_s:.2f} s; slowest cell's p99 {slowest_ms:.1f} ms"
    )
    assert [verdict.cell.name for verdict in verdicts if verdict.over] == []
    assert (lost, doubled, untyped) == (0, 0, 0)
    assert sum(verdict.admitted for verdict in verdicts) > 0
    if fault == "nothing":
        enough = [verdict for verdict in verdicts if verdict.asked <= verdict.cell.amount]
        assert [(verdict.cell.name, verdict.wrongly_denied) for verdict in enough if verdict.wrongly_denied] == []
        assert len(enough) >= len(GRID) // 6
    assert recovered_s <= RECOVERED_S_MAX
