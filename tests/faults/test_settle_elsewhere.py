# ruff: noqa: SIM300 - expected first, then actual
"""A gateway reserves beside one sidecar, a worker settles beside another or at the ledger: one record, one refund."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limit_rules import yearly
from platform_support import CALL_TIMEOUT_S, Platform
from tollkeeper.ledger.v1 import limits_pb2, usage_pb2_grpc
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

CATALOGUE = Path(__file__).resolve().parents[1] / "e2e" / "catalogue.yaml"
TENANT = "code"
AMOUNT = 100
USED = 40
WAIT_S = 60.0


def limit() -> limits_pb2.LimitRule:
    """Describe a hard limit on requests per year for each case."""
    return yearly("elsewhere", AMOUNT, key=["case"], case="*")


async def check(channel: grpc.aio.Channel, case: str, units: int, **more: Any) -> quota_pb2.CheckQuotaResponse:
    """Check so many requests of a case."""
    request = quota_pb2.CheckQuotaRequest(
        tenant=TENANT, costs=[quota_pb2.Cost(meter="requests", units=units)], attributes={"case": case}, **more
    )
    return await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=CALL_TIMEOUT_S)


async def until_admitted(channel: grpc.aio.Channel, case: str, units: int) -> None:
    """Wait until so many requests are admitted; a denied call takes nothing."""
    started = time.monotonic()
    while not (await check(channel, case, units)).decision.allowed:
        assert time.monotonic() - started < WAIT_S, f"{units} of {case} never came back"
        await asyncio.sleep(0.02)


async def reserved(channel: grpc.aio.Channel, case: str) -> str:
    """Reserve the whole limit of a case; a sidecar that has just started may have to be asked again."""
    started = time.monotonic()
    while True:
        answer = await check(channel, case, AMOUNT, mode=quota_pb2.CHECK_MODE_RESERVE, request_id=f"r/{case}")
        if answer.decision.allowed:
            return answer.reservation.token
        assert time.monotonic() - started < WAIT_S, f"{case} was never reserved: {answer}"
        await asyncio.sleep(0.02)


def settlement(token: str, units: int) -> quota_pb2.SettleReservationRequest:
    """Give a settlement at so many requests."""
    return quota_pb2.SettleReservationRequest(
        token=token, quantities=[usage_pb2.Quantity(meter="requests", units=units)]
    )


async def settle(channel: grpc.aio.Channel, token: str, units: int = USED) -> quota_pb2.SettleReservationResponse:
    """Settle at a sidecar."""
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    return await stub.SettleReservation(settlement(token, units), timeout=CALL_TIMEOUT_S)


async def until_stored(platform: Platform, record_id: str) -> list[int]:
    """Wait until a record is stored and give the requests of all records of that id."""
    started = time.monotonic()
    while True:
        found = [record.units["requests"] for record in await platform.stored(TENANT) if record.id == record_id]
        if found:
            return found
        assert time.monotonic() - started < WAIT_S, f"{record_id} was never stored"
        await asyncio.sleep(0.05)


async def restart_home(platform: Platform) -> None:
    """Kill the gateway's sidecar and start it again."""
    await asyncio.to_thread(platform.stack.kill_sidecar)
    await asyncio.to_thread(platform.stack.start_sidecar)


async def refunded_once(home: grpc.aio.Channel, worker: grpc.aio.Channel, case: str) -> None:
    """Check that just what was not used can be had again, at either sidecar."""
    await until_admitted(home, case, AMOUNT - USED)
    for channel in (home, worker):
        answer = await check(channel, case, 1)
        assert not answer.decision.allowed, f"{case}: more than {AMOUNT} admitted"


async def test_a_worker_ends_what_the_gateway_reserved(platform: Platform, report: Callable[[str], None]) -> None:
    """Settled elsewhere, repeated, home killed before and after, settled at the ledger: one record, never over."""
    await platform.apply(CATALOGUE.read_text())
    await platform.set_limit(TENANT, limit())
    target = await asyncio.to_thread(platform.add_sidecar, "worker")
    seen: Counter[str] = Counter()
    async with platform.channel() as home, platform.channel(target) as worker, platform.ledger() as ledger:
        token = await reserved(home, "plain")
        first, again = await settle(worker, token), await settle(worker, token, 99)
        assert (False, True) == (first.repeated_call, again.repeated_call)
        assert first.refunded == again.refunded
        await refunded_once(home, worker, "plain")
        assert [USED] == await until_stored(platform, first.record_id)
        late = await settle(home, token, 7)
        assert late.repeated_call, "home has taken the outcome in"
        seen["refunded"] += 1

        token = await reserved(home, "ledger")
        at_ledger = usage_pb2_grpc.UsageServiceStub(ledger)
        answer = await at_ledger.SettleReservation(settlement(token, USED), timeout=CALL_TIMEOUT_S)
        assert not answer.repeated_call
        await refunded_once(home, worker, "ledger")
        assert [USED] == await until_stored(platform, answer.record_id)
        seen["refunded"] += 1

        token = await reserved(home, "killed-before")
        await asyncio.to_thread(platform.stack.kill_sidecar)
        first = await settle(worker, token)
        assert [USED] == await until_stored(platform, first.record_id)
        await asyncio.to_thread(platform.stack.start_sidecar)
    async with platform.channel() as home, platform.channel(target) as worker:
        again = await settle(home, token, 7)
        assert [USED] == await until_stored(platform, again.record_id)
        assert not (await check(worker, "killed-before", AMOUNT)).decision.allowed, "units of a dead process are spent"
        seen["home killed before"] += 1

        token = await reserved(home, "killed-after")
        first = await settle(worker, token)
        await restart_home(platform)
    async with platform.channel() as home, platform.channel(target) as worker:
        assert [USED] == await until_stored(platform, first.record_id)
        await settle(home, token)
        assert [USED] == await until_stored(platform, first.record_id)
        assert not (await check(worker, "killed-after", AMOUNT)).decision.allowed
        seen["home killed after"] += 1
    ends = Counter(record.id for record in await platform.stored(TENANT) if record.id.startswith("r/"))
    assert {1} == set(ends.values())
    report(f"settled elsewhere: {dict(seen)}; {len(ends)} reservations, one record each, {USED} of {AMOUNT} units used")
