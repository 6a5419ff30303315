"""Known answers of a widely used limiter: every step of every case, over the wire, the clock moved by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from clock_support import set_clock
from deciding import decided
from limit_rules import yearly
from platform_support import CALL_TIMEOUT_S
from tollkeeper.ledger.v1 import limits_pb2
from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc
from waiting import PATIENCE_S, wait_until

if TYPE_CHECKING:
    import grpc
    from platform_support import Platform

TABLES = json.loads((Path(__file__).parents[1] / "data" / "quota_tables.json").read_text())
SECOND_US = 1_000_000
PACE_S = 0.3
"""Real time between calls on a bucket: were use measured, tokens would be lent ahead of it, and lapse."""
CATALOGUE = """
version: 1
seller: {id: default, name: T, address: ["-"], tax_id: "-", invoice_prefix: T, currency: USD, time_zone: UTC}
meters:
  - {name: requests, unit: requests, aggregation: sum, attributes: [case]}
plans:
  - {name: none, currency: USD, billing_interval: {unit: month, count: 1}, limits: []}
tenants:
  - {id: tables, name: Tables, plan: none,
     subscription: {start: "2026-01-01T00:00:00Z", anchor: start, time_zone: UTC}}
"""


def rule_of(name: str, case: str, limit: dict[str, Any]) -> limits_pb2.LimitRule:
    """Describe a case's limit: a window from first use, or a token bucket."""
    rule = yearly(name, limit["amount"], case=case)
    if limit["kind"] == "window":
        rule.alignment = limits_pb2.WINDOW_ALIGNMENT_ROLLING
        return rule
    bucket = limits_pb2.LimitRule(
        kind=decision_pb2.LIMIT_KIND_TOKEN_BUCKET,
        burst=limit.get("burst", limit["amount"]),
        refill_interval_us=limit["refill_seconds"] * SECOND_US,
    )
    for field in ("window_unit", "window_count", "time_zone", "alignment"):
        rule.ClearField(field)  # type: ignore[arg-type]
    rule.MergeFrom(bucket)
    return rule


async def ask(channel: grpc.aio.Channel, case: str, units: int) -> decision_pb2.Decision:
    """Make one call. Where no authority answered in time nothing was decided, and it is made again."""
    request = quota_pb2.CheckQuotaRequest(
        tenant="tables",
        costs=[quota_pb2.Cost(meter="requests", units=units)],
        attributes={"case": case},
        detail=quota_pb2.DETAIL_ALL,
    )
    return await decided(channel, request, pace_s=PACE_S)


async def until_in_force(channel: grpc.aio.Channel, case: str, amounts: dict[str, int]) -> None:
    """Wait until the sidecar has these limits with these amounts."""
    stub = quota_pb2_grpc.QuotaServiceStub(channel)
    request = quota_pb2.GetQuotaRequest(tenant="tables", attributes={"case": case})

    async def are_there() -> bool:
        answer = await stub.GetQuota(request, timeout=CALL_TIMEOUT_S)
        shown = {limit.name: limit.amount for limit in answer.limits}
        return amounts.items() <= shown.items()

    await wait_until(are_there, f"{amounts} to be in force")


async def until_remaining(channel: grpc.aio.Channel, case: str, decision: decision_pb2.Decision, expected: int) -> None:
    """Wait until the least that remains is as expected: units on their way back are counted late."""
    decisions = [decision]

    async def is_there() -> bool:
        if min(limit.remaining for limit in decisions[-1].limits) == expected:
            return True
        decisions.append(await ask(channel, case, 0))
        return False

    await wait_until(is_there, f"{expected} to remain in {case}")


@pytest.mark.parametrize("case", TABLES["cases"], ids=[case["id"] for case in TABLES["cases"]])
async def test_known_answers_over_the_wire(platform: Platform, case: dict[str, Any]) -> None:
    """A running sidecar gives the known answers of a widely used limiter: admitted, and what remains."""
    declared = case.get("limits", [case])
    amounts = {f"{case['id']}-{number}": limit["amount"] for number, limit in enumerate(declared)}
    # A sidecar's clock never goes back: one that ran a little ahead before the clock stopped must be overtaken.
    now_us = await set_clock(platform, await set_clock(platform, None) + SECOND_US)
    await platform.apply(CATALOGUE)
    async with platform.channel() as channel:
        for name, limit in zip(amounts, declared, strict=True):
            await platform.set_limit("tables", rule_of(name, case["id"], limit))
        await until_in_force(channel, case["id"], amounts)
        for step in case["steps"]:
            if isinstance(step, dict):
                amounts[next(iter(amounts))] = step["amount"]
                await platform.set_amount("tables", next(iter(amounts)), step["amount"])
                await until_in_force(channel, case["id"], amounts)
                continue
            pause_s, units, allowed, remaining = step
            give_up_s = time.monotonic() + PATIENCE_S
            if pause_s:
                now_us = await set_clock(platform, now_us + round(pause_s * SECOND_US))
            decision = await ask(channel, case["id"], units)
            while allowed and not decision.allowed and time.monotonic() < give_up_s:
                # Buckets hear of the clock a moment after sidecars.
                decision = await ask(channel, case["id"], units)
            assert allowed == decision.allowed, f"{case['id']} at {step}: {decision}"
            await until_remaining(channel, case["id"], decision, remaining)


async def test_units_near_a_limit_are_counted_over_the_wire(platform: Platform) -> None:
    """A sidecar's metrics tell units within, near and over a limit apart, by its name."""
    await set_clock(platform, await set_clock(platform, None) + SECOND_US)
    await platform.apply(CATALOGUE)
    await platform.set_limit("tables", yearly("near", 10, case="near"))
    async with platform.channel() as channel:
        await until_in_force(channel, "near", {"near": 10})
        for units, allowed in ((7, True), (3, True), (2, False)):
            assert allowed == (await ask(channel, "near", units)).allowed
    async with httpx.AsyncClient(base_url=f"http://{platform.stack.addresses.sidecar_http}") as http:
        lines = (await http.get("/metrics", timeout=CALL_TIMEOUT_S)).text.splitlines()
    counted = {
        state: int(line.split()[-1])
        for state in ("within", "near", "over")
        for line in lines
        if line.startswith(f'tollkeeper_sidecar_limit_units_{state}_total{{limit="near"}}')
    }
    assert counted == {"within": 10, "near": 2, "over": 2}
