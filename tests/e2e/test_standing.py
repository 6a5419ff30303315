"""Seats and units in flight through real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import grpc
import pytest
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    from platform_support import Platform

WAIT_S = 60.0
_DENIED = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED


def standing(name: str, kind: decision_pb2.LimitKind.ValueType, amount: int) -> limits_pb2.LimitRule:
    """Describe a limit for calls whose attribute `case` is its name."""
    return limits_pb2.LimitRule(
        name=name,
        meter="requests",
        kind=kind,
        amount=amount,
        enforcement=decision_pb2.ENFORCEMENT_HARD,
        failure_policy=decision_pb2.FAILURE_POLICY_CLOSED,
        match=[limits_pb2.AttributeMatch(attribute="case", exact=name)],
    )


async def call(
    platform: Platform, target: str, case: str, mode: quota_pb2.CheckMode.ValueType, *, seconds: float = WAIT_S
) -> quota_pb2.CheckQuotaResponse:
    """Make one call of one unit; one that nobody could decide is made again for so long."""
    until = time.monotonic() + seconds
    async with platform.channel(target) as channel:
        while True:
            request = quota_pb2.CheckQuotaRequest(
                tenant="shared",
                costs=[quota_pb2.Cost(meter="requests", units=1)],
                attributes={"case": case},
                mode=mode,
                request_id=platform.request_id() if mode == quota_pb2.CHECK_MODE_RESERVE else "",
            )
            answer = await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=20)
            undecided = answer.decision.reason == decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE
            if not undecided or time.monotonic() > until:
                return answer
            await asyncio.sleep(0.02)


async def declare(platform: Platform, rule: limits_pb2.LimitRule, *targets: str) -> None:
    """Set a limit and wait until it is in force at these sidecars."""
    await platform.set_limit("shared", rule)
    async with asyncio.timeout(WAIT_S):
        for target in targets:
            while True:
                answer = await call(platform, target, rule.name, quota_pb2.CHECK_MODE_PEEK)
                if answer.decision.binding.name == rule.name:
                    break
                await asyncio.sleep(0.02)


async def until_admitted(
    platform: Platform, target: str, case: str, mode: quota_pb2.CheckMode.ValueType
) -> quota_pb2.CheckQuotaResponse:
    """Make calls until one is admitted, at most 90 s; a denied one takes nothing."""
    async with asyncio.timeout(90):
        while True:
            answer = await call(platform, target, case, mode)
            if answer.decision.allowed:
                return answer
            await asyncio.sleep(0.05)


async def test_ten_seats_over_two_sidecars(platform: Platform, more_sidecars: list[str]) -> None:
    """Exactly ten are taken at once; a seat given back at one sidecar is taken at the other within seconds."""
    targets = [platform.target, more_sidecars[0]]
    await declare(platform, standing("seats", decision_pb2.LIMIT_KIND_LEVEL, 10), *targets)
    calls = [call(platform, targets[at % 2], "seats", quota_pb2.CHECK_MODE_CONSUME) for at in range(14)]
    taken = sum(answer.decision.allowed for answer in await asyncio.gather(*calls))
    while taken < 10:
        await until_admitted(platform, targets[0], "seats", quota_pb2.CHECK_MODE_CONSUME)
        taken += 1
    for target in targets:
        answer = await call(platform, target, "seats", quota_pb2.CHECK_MODE_CONSUME)
        assert answer.decision.reason == _DENIED
        assert not answer.decision.HasField("retry_after")
    assert taken == 10
    assert (await call(platform, targets[1], "seats", quota_pb2.CHECK_MODE_GIVE_BACK)).decision.allowed
    await until_admitted(platform, targets[0], "seats", quota_pb2.CHECK_MODE_CONSUME)
    assert (await call(platform, targets[1], "seats", quota_pb2.CHECK_MODE_CONSUME)).decision.reason == _DENIED


async def test_units_in_flight_are_for_reservations_only(platform: Platform) -> None:
    """A call that meets such a limit in mode CONSUME is told which field is wrong, and what to do."""
    await declare(platform, standing("plain", decision_pb2.LIMIT_KIND_CONCURRENCY, 5), platform.target)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(platform, platform.target, "plain", quota_pb2.CHECK_MODE_CONSUME)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stopped_sidecars_units_in_flight_come_back(platform: Platform, more_sidecars: list[str]) -> None:
    """Five fly at most; a freed one is taken elsewhere; a sidecar that stands still loses its own after 40 s.

    When it goes on it has fenced itself: it reserves nothing that others hold.
    """
    first, second = platform.target, more_sidecars[0]
    await declare(platform, standing("flights", decision_pb2.LIMIT_KIND_CONCURRENCY, 5), first, second)
    reserve = quota_pb2.CHECK_MODE_RESERVE
    held = [await call(platform, first, "flights", reserve) for _ in range(2)]
    stuck = [await call(platform, second, "flights", reserve) for _ in range(3)]
    assert all(answer.decision.allowed for answer in [*held, *stuck])
    assert (await call(platform, first, "flights", reserve)).decision.reason == _DENIED
    async with platform.channel(second) as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        await stub.ReleaseReservation(quota_pb2.ReleaseReservationRequest(token=stuck[0].reservation.token))
    held.append(await until_admitted(platform, first, "flights", reserve))
    pid = platform.added[0].pid
    os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        await until_admitted(platform, first, "flights", reserve)
        assert time.monotonic() - stopped > 30
        assert (await call(platform, first, "flights", reserve)).decision.allowed
        assert (await call(platform, first, "flights", reserve)).decision.reason == _DENIED
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not (await call(platform, second, "flights", reserve, seconds=5)).decision.allowed
