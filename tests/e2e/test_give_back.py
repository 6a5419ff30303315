"""Giving back over the wire: windows and token buckets, at the sidecar that took the units and at another one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    from platform_support import Platform

CONSUME, GIVE_BACK = quota_pb2.CHECK_MODE_CONSUME, quota_pb2.CHECK_MODE_GIVE_BACK
SHAPES = {
    "window": {
        "kind": decision_pb2.LIMIT_KIND_WINDOW,
        "amount": 10,
        "window_unit": limits_pb2.WINDOW_UNIT_YEAR,
        "window_count": 1,
        "time_zone": "UTC",
        "alignment": limits_pb2.WINDOW_ALIGNMENT_CALENDAR,
    },
    "bucket": {
        "kind": decision_pb2.LIMIT_KIND_TOKEN_BUCKET,
        "amount": 1,
        "burst": 10,
        "refill_interval_us": 86_400_000_000,
    },
}


def rule(case: str, meter: str = "requests", **shape: object) -> limits_pb2.LimitRule:
    """Describe a hard limit for calls whose attribute `case` is its name."""
    return limits_pb2.LimitRule(
        name=case,
        meter=meter,
        enforcement=decision_pb2.ENFORCEMENT_HARD,
        failure_policy=decision_pb2.FAILURE_POLICY_CLOSED,
        match=[limits_pb2.AttributeMatch(attribute="case", exact=case)],
        **shape,  # type: ignore[arg-type]
    )


async def ask(
    channel: grpc.aio.Channel, case: str, mode: quota_pb2.CheckMode.ValueType, units: int, **attributes: str
) -> decision_pb2.Decision:
    """Make one call; one that nobody could decide took nothing and is made again."""
    request = quota_pb2.CheckQuotaRequest(
        tenant="shared",
        costs=[quota_pb2.Cost(meter="active-users" if attributes else "requests", units=units)],
        attributes={"case": case, **attributes},
        mode=mode,
    )
    async with asyncio.timeout(30):
        while True:
            decision = (await quota_pb2_grpc.QuotaServiceStub(channel).CheckQuota(request, timeout=30)).decision
            if decision.reason != decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE:
                return decision


async def declare(platform: Platform, limit: limits_pb2.LimitRule, *channels: grpc.aio.Channel) -> None:
    """Set a limit and wait until it is in force at these sidecars."""
    await platform.set_limit("shared", limit)
    async with asyncio.timeout(30):
        for channel in channels:
            request = quota_pb2.GetQuotaRequest(tenant="shared", attributes={"case": limit.name})
            stub = quota_pb2_grpc.QuotaServiceStub(channel)
            while not any(state.name == limit.name for state in (await stub.GetQuota(request)).limits):
                pass


async def refusal(channel: grpc.aio.Channel, case: str, units: int, **attributes: str) -> str:
    """Give the reason for which nothing is given back."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(channel, case, GIVE_BACK, units, **attributes)
    trailing = dict(caught.value.trailing_metadata() or ())
    details = bytes(trailing["grpc-status-details-bin"])
    return next(word for word in ("NOT_CONSUMED_HERE", "FIELD_INVALID") if word.encode() in details)


@pytest.mark.parametrize("shape", SHAPES)
async def test_units_given_back_are_taken_elsewhere(platform: Platform, more_sidecars: list[str], shape: str) -> None:
    """What the sidecar that took them gives back another one admits, to the unit; nobody gives back another's units."""
    case = f"back-{shape}"
    async with (
        platform.channel() as first,
        platform.channel(more_sidecars[0]) as second,
        platform.channel(more_sidecars[1]) as third,
    ):
        await declare(platform, rule(case, **SHAPES[shape]), first, second, third)
        assert (await ask(first, case, CONSUME, 10)).allowed
        assert not (await ask(second, case, CONSUME, 1)).allowed
        assert await refusal(second, case, 1) == "NOT_CONSUMED_HERE"
        assert await refusal(first, case, 11) == "NOT_CONSUMED_HERE"
        assert (await ask(first, case, GIVE_BACK, 6)).allowed
        assert await refusal(first, case, 5) == "NOT_CONSUMED_HERE"
        async with asyncio.timeout(30):
            while not (await ask(third, case, CONSUME, 6)).allowed:
                pass
        for channel in (first, second, third):
            assert not (await ask(channel, case, CONSUME, 1)).allowed


async def test_counted_values_stay(platform: Platform) -> None:
    """A value that was counted is not given back: another caller may have brought it as well."""
    async with platform.channel() as channel:
        await declare(platform, rule("back-users", "active-users", **SHAPES["window"]), channel)
        assert (await ask(channel, "back-users", CONSUME, 1, user="u")).allowed
        assert await refusal(channel, "back-users", 1, user="u") == "FIELD_INVALID"
