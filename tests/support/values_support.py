"""Limits on distinct values for tests over the wire: a rule, and calls that bring a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deciding import decided
from limit_rules import yearly
from platform_support import CALL_TIMEOUT_S
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc
from waiting import wait_until

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
    return await decided(channel, request)


async def until_admitted(channel: grpc.aio.Channel, tenant: str, **attributes: str) -> None:
    """Bring a value until it is admitted."""

    async def is_admitted() -> bool:
        return (await bring(channel, tenant, **attributes)).allowed

    await wait_until(is_admitted, f"room for {attributes}")


async def until_in_force(channel: grpc.aio.Channel, tenant: str, name: str, **attributes: str) -> None:
    """Wait until the sidecar has the limit; `attributes`: of its calls, where they are not a case of its name."""
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    request = quota_pb2.GetQuotaRequest(tenant=tenant, attributes=attributes or {"case": name})

    async def is_there() -> bool:
        answer = await stub.GetQuota(request, timeout=CALL_TIMEOUT_S)
        return any(limit.name == name for limit in answer.limits)

    await wait_until(is_there, f"{name} to be in force")
