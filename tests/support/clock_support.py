"""The ledger's clock, stopped and moved by hand: embedded servers alone have one that can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from platform_support import CALL_TIMEOUT_S
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

if TYPE_CHECKING:
    from platform_support import Platform


async def set_clock(platform: Platform, now_us: int | None) -> int:
    """Stop the ledger's clock, at a time if one is given; return what it shows."""
    request = admin_pb2.SetClockRequest(request_id=platform.request_id(), speed_milli=0)
    if now_us is not None:
        request.now.FromMicroseconds(now_us)
    async with platform.ledger() as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        await stub.SetClock(request, timeout=CALL_TIMEOUT_S)
        answer = await stub.GetClock(admin_pb2.GetClockRequest(), timeout=CALL_TIMEOUT_S)
    return answer.now.ToMicroseconds()
