"""A meter's bounds on event times, from the catalogue through the ledger to a running sidecar, and changed there."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2

if TYPE_CHECKING:
    from platform_support import Platform

WAIT_S = 60.0


async def test_a_meters_lateness_is_in_force_at_sidecars(platform: Platform) -> None:
    """A record ten minutes late is taken by default, refused once its meter allows one, and taken again after that."""
    name = f"late-{uuid.uuid4()}"
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        for bound, outcome in (
            ("", usage_pb2.RECORD_OUTCOME_RECORDED),
            (", late_max_s: 60", usage_pb2.RECORD_OUTCOME_INVALID),
            (", late_max_s: 3600", usage_pb2.RECORD_OUTCOME_RECORDED),
        ):
            await platform.apply(f"version: 1\nmeters: [{{name: {name}, unit: x{bound}}}]\n")
            await until(stub, name, outcome)


async def until(stub: quota_pb2_grpc.QuotaServiceStub, meter: str, outcome: int) -> None:
    """Record, each time anew, until a sidecar that hears of meters by and by answers so."""
    give_up_s = time.monotonic() + WAIT_S
    while True:
        record = usage_pb2.UsageRecord(
            id=str(uuid.uuid4()),
            tenant="code",
            event_time=Timestamp(seconds=int(time.time()) - 600),
            quantities=[usage_pb2.Quantity(meter=meter, units=1)],
        )
        answer = await stub.RecordUsage(usage_pb2.RecordUsageRequest(records=[record]), timeout=WAIT_S)
        (result,) = answer.results
        if result.outcome == outcome and result.reason != "METER_UNKNOWN":
            return
        assert time.monotonic() < give_up_s, result
        await asyncio.sleep(0.05)
