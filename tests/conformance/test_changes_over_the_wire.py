"""A limit's kind and key change at the next turn of its window, over the wire, whoever changes them and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
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

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
WHOLE = "{name: changing, meter: calls, kind: window, amount: 10, window: {unit: day, count: 1}}"
AFTER = {
    "split": "{name: changing, meter: calls, kind: window, amount: 10, window: {unit: day, count: 1}, key: [user]}",
    "bucket": "{name: changing, meter: calls, kind: token_bucket, amount: 1, refill: {unit: minute}, burst: 6}",
}
EACH = {"split": [10, 10], "bucket": [6, 0]}
"""What two users get once the window has turned."""
CATALOGUE = """
version: 1
seller: {{id: default, name: T, address: ["-"], tax_id: "-", invoice_prefix: T, currency: USD, time_zone: UTC}}
meters:
  - {{name: calls, unit: calls, aggregation: sum, attributes: [user]}}
  - {{name: marks, unit: marks, aggregation: sum}}
plans:
  - {{name: changing-before, currency: USD, billing_interval: {{unit: month, count: 1}}, limits: [{whole}]}}
  - {{name: changing-split, currency: USD, billing_interval: {{unit: month, count: 1}}, limits: [{split}]}}
  - {{name: changing-bucket, currency: USD, billing_interval: {{unit: month, count: 1}}, limits: [{bucket}]}}
tenants:
{tenants}
"""
_TENANT = """
  - {{id: {name}, name: T, plan: changing-before, limits: [{limits}],
     subscription: {{start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}}}}
"""


def catalogue(**limits: str) -> str:
    """Give the catalogue with these limits of single tenants."""
    names = [f"{how}-{what}" for how in ("plan", "apply", "override") for what in AFTER]
    tenants = "".join(_TENANT.format(name=name, limits=limits.get(name.replace("-", "_"), "")) for name in names)
    return CATALOGUE.format(whole=WHOLE, tenants=tenants, **AFTER)


def rule_of(what: str) -> limits_pb2.LimitRule:
    """Give the rule after the change as an override has it."""
    rule = yearly("changing", 10, meter="calls", key=["user"])
    rule.window_unit = limits_pb2.WINDOW_UNIT_DAY
    if what == "bucket":
        rule = limits_pb2.LimitRule(
            name="changing", meter="calls", kind=decision_pb2.LIMIT_KIND_TOKEN_BUCKET, amount=1, burst=6,
            refill_interval_us=60_000_000,
        )  # fmt: skip
    return rule


async def change(platform: Platform, how: str, what: str) -> None:
    """Change the limit of the tenant."""
    if how == "plan":
        await platform.change_plan(f"plan-{what}", f"changing-{what}")
    elif how == "apply":
        await platform.apply(catalogue(**{f"apply_{what}": AFTER[what]}))
    else:
        await platform.set_limit(f"override-{what}", rule_of(what))


async def admitted(channel: grpc.aio.Channel, tenant: str, user: str, *, most: int = 30) -> int:
    """Ask for single units until one is denied, by proof, and return how many there were."""
    got = 0
    while got < most:
        costs = [quota_pb2.Cost(meter="calls", units=1)]
        request = quota_pb2.CheckQuotaRequest(tenant=tenant, costs=costs, attributes={"user": user})
        decision = await decided(channel, request)
        if not decision.allowed:
            assert decision.binding.name == "changing", decision
            break
        got += 1
    return got


async def until_heard(platform: Platform, channel: grpc.aio.Channel, tenant: str) -> None:
    """Wait until the sidecar has heard of all that was changed so far: changes come in their order."""
    await platform.set_limit(tenant, yearly("heard", 1, meter="marks"))

    async def has_heard() -> bool:
        request = quota_pb2.GetQuotaRequest(tenant=tenant)
        answer = await quota_pb2_grpc.QuotaServiceStub(channel).GetQuota(request, timeout=CALL_TIMEOUT_S)
        return "heard" in {limit.name for limit in answer.limits}

    await wait_until(has_heard, "the sidecar to hear of the change")


@pytest.mark.parametrize("what", ["split", "bucket"])
@pytest.mark.parametrize("how", ["plan", "apply", "override"])
async def test_another_kind_or_key_gives_nothing_before_the_turn(platform: Platform, how: str, what: str) -> None:
    """A used limit that is changed by plan, catalogue or override gives its amount once in the window that is open."""
    now_us = await set_clock(platform, None)
    noon_us = (now_us // DAY_US + 2) * DAY_US + 12 * HOUR_US
    await set_clock(platform, noon_us)
    await platform.apply(catalogue())
    tenant = f"{how}-{what}"
    async with platform.channel() as channel:
        assert await admitted(channel, tenant, "ann", most=7) == 7
        await change(platform, how, what)
        await until_heard(platform, channel, tenant)
        assert [await admitted(channel, tenant, user) for user in ("bob", "ann", "eve")] == [3, 0, 0]
        await set_clock(platform, noon_us + 12 * HOUR_US - 1)
        assert await admitted(channel, tenant, "bob") == 0
        await set_clock(platform, noon_us + 12 * HOUR_US)
        assert [await admitted(channel, tenant, user) for user in ("ann", "bob")] == EACH[what]
