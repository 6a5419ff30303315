"""Limits on distinct values for tests over the wire: a rule, and calls that bring a value."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from limit_rules import yearly
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    import grpc
    from tollkeeper.ledger.v1 import limits_pb2

EXHAUSTED = decision_pb2.DECISION_REASON_QUOTA_EXHAUSTED


def rule(name: str, amount: int) -> limits_pb2.LimitRule:
    """Describe a hard limit on distinct users per year, for calls whose attribute `case` is its name."""
    return yearly(name, amount, meter="active-users", case=name)


async def bring(channel: grpc.aio.Channel, tenant: str, units: int = 1, **attributes: str) -> decision_pb2.Decision:
    """Bring one value; where no authority answered in time nothing was decided, and the value is brought again."""
    request = quota_pb2.CheckQuotaRequest(
        tenant=tenant,
        costs=[quota_pb2.Cost(meter="active-users", units=units)],
        attributes=attributes,
        detail=quota_pb2.DETAIL_ALL,
    )
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        decision = (await stub.CheckQuota(request, timeout=10)).decision
        if decision.reason != decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE:
            return decision
    raise AssertionError("no authority for ten seconds")


async def until_in_force(channel: grpc.aio.Channel, tenant: str, name: str) -> None:
    """Wait until the sidecar has the limit."""
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        answer = await stub.GetQuota(quota_pb2.GetQuotaRequest(tenant=tenant, attributes={"case": name}), timeout=5)
        if any(limit.name == name for limit in answer.limits):
            return
    raise AssertionError(f"{name} is not in force")
