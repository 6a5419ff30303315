"""Checks that are made again until an authority has answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from platform_support import CALL_TIMEOUT_S
from tollkeeper.quota.v1 import decision_pb2, quota_pb2_grpc
from waiting import wait_until

if TYPE_CHECKING:
    import grpc
    from tollkeeper.quota.v1 import quota_pb2


async def decided(
    channel: grpc.aio.Channel, request: quota_pb2.CheckQuotaRequest, *, pace_s: float = 0.0
) -> decision_pb2.Decision:
    """Make a call, `pace_s` before each try; where no authority answered nothing was decided, and it is made again."""
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    decision = decision_pb2.Decision()

    async def is_decided() -> bool:
        await asyncio.sleep(pace_s)
        decision.CopyFrom((await stub.CheckQuota(request, timeout=CALL_TIMEOUT_S)).decision)
        return decision.reason != decision_pb2.DECISION_REASON_AUTHORITY_UNREACHABLE

    await wait_until(is_decided, "an authority")
    return decision
