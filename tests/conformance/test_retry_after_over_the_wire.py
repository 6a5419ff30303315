"""When a denied call passes, over the wire: denied until the very microsecond, in a zone whose day has 23 hours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from clock_support import set_clock
from deciding import decided
from limit_rules import yearly
from platform_support import CALL_TIMEOUT_S
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc
from waiting import wait_until

if TYPE_CHECKING:
    import grpc
    from platform_support import Platform

ZONE = "Europe/Berlin"
HOUR_US = 3_600_000_000
MICROSECOND = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CATALOGUE = """
version: 1
seller: {id: default, name: T, address: ["-"], tax_id: "-", invoice_prefix: T, currency: USD, time_zone: UTC}
meters:
  - {name: requests, unit: requests, aggregation: sum, attributes: [case]}
plans:
  - {name: empty, currency: USD, billing_interval: {unit: month, count: 1}, limits: []}
tenants:
  - {id: waits, name: Waits, plan: empty,
     subscription: {start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}}
"""


def short_day_after(now_us: int) -> tuple[int, int]:
    """Give start and end of the zone's next day of 23 hours, in microseconds of UTC."""
    day = (EPOCH + timedelta(microseconds=now_us)).date()
    while True:
        day += timedelta(days=1)
        ends = [datetime(one.year, one.month, one.day, tzinfo=ZoneInfo(ZONE)) for one in (day, day + timedelta(days=1))]
        start_us, end_us = [(end - EPOCH) // MICROSECOND for end in ends]
        if end_us - start_us == 23 * HOUR_US:
            return start_us, end_us


async def ask(channel: grpc.aio.Channel) -> decision_pb2.Decision:
    """Make the call. Where no authority answered in time nothing was decided, and it is made again."""
    request = quota_pb2.CheckQuotaRequest(
        tenant="waits", costs=[quota_pb2.Cost(meter="requests", units=1)], attributes={"case": "waits"}
    )
    return await decided(channel, request)


async def in_force(channel: grpc.aio.Channel) -> bool:
    """Tell whether the sidecar has both limits."""
    request = quota_pb2.GetQuotaRequest(tenant="waits", attributes={"case": "waits"})
    answer = await quota_pb2_grpc.QuotaServiceStub(channel).GetQuota(request, timeout=CALL_TIMEOUT_S)
    return {"day", "hours"} <= {limit.name for limit in answer.limits}


async def test_a_call_passes_when_a_short_day_is_over_and_not_before(platform: Platform) -> None:
    """Of a day in a zone with summer time and a rolling window together the later end is named, to the microsecond."""
    day = yearly("day", 1, case="waits")
    day.window_unit, day.time_zone = limits_pb2.WINDOW_UNIT_DAY, ZONE
    hours = yearly("hours", 1, case="waits")
    hours.window_unit, hours.window_count = limits_pb2.WINDOW_UNIT_HOUR, 2
    hours.alignment = limits_pb2.WINDOW_ALIGNMENT_ROLLING
    start_us, end_us = short_day_after(await set_clock(platform, None))
    await platform.apply(CATALOGUE)
    await set_clock(platform, start_us + HOUR_US)
    for rule in (day, hours):
        await platform.set_limit("waits", rule)
    async with platform.channel() as channel:
        await wait_until(lambda: in_force(channel), "both limits to be in force")
        assert (await ask(channel)).allowed
        now_us = start_us + HOUR_US
        for pause_us in (0, 3 * HOUR_US, 23 * HOUR_US - 4 * HOUR_US - 1):
            now_us = await set_clock(platform, now_us + pause_us)
            decision = await ask(channel)
            assert (False, end_us - now_us) == (decision.allowed, decision.retry_after.ToMicroseconds())
        assert end_us - 1 == now_us
        await set_clock(platform, end_us)
        assert (await ask(channel)).allowed
