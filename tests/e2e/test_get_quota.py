"""`GetQuota`: every figure that users ask for, per minute, hour, day and month, and what the call costs."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

from tollkeeper.quota.v1 import decision_pb2, quota_pb2, quota_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from platform_support import Platform

LENGTHS_S = {"minute": 60, "hour": 3_600, "day": 86_400, "month": 2_592_000}
EACH = 5
PAIRS = 200
TENANT = "twenty"


def catalogue() -> str:
    """Declare a tenant whose plan has five limits each per minute, hour, day and month."""
    limits = "".join(
        f"\n      - {{name: {unit}-{number}, meter: op-tokens, kind: window, amount: {1_000 * (number + 1)},"
        f" window: {{unit: {unit}, count: 1}}}}"
        for unit in LENGTHS_S
        for number in range(EACH)
    )
    return (
        "version: 1\n"
        'seller: {id: default, name: "Example GmbH", address: ["Hauptstraße 1", "10115 Berlin"], tax_id: DE123456789,'
        " invoice_prefix: TK, currency: USD, time_zone: UTC}\n"
        "meters: [{name: op-tokens, unit: tokens, aggregation: sum, attributes: [model]}]\n"
        "plans:\n  - name: twenty\n    currency: USD\n    billing_interval: {unit: month, count: 1}\n"
        f"    limits:{limits}\n"
        f'tenants: [{{id: {TENANT}, plan: twenty, subscription: {{start: "2026-01-01T00:00:00Z", anchor: start}}}}]\n'
    )


def check(mode: quota_pb2.CheckMode.ValueType, units: int) -> quota_pb2.CheckQuotaRequest:
    """Give a call that meets all twenty limits and is told of each."""
    costs = [quota_pb2.Cost(meter="op-tokens", units=units)]
    return quota_pb2.CheckQuotaRequest(tenant=TENANT, costs=costs, mode=mode, detail=quota_pb2.DETAIL_ALL)


async def consumed(stub: quota_pb2_grpc.QuotaServiceStub, units: int) -> dict[str, int]:
    """Take units once the sidecar knows the tenant and has leases; gives each limit's window by its start."""
    async with asyncio.timeout(30):
        while True:
            answer = await stub.CheckQuota(check(quota_pb2.CHECK_MODE_CONSUME, units), timeout=20)
            if answer.decision.allowed and len(answer.decision.limits) == len(LENGTHS_S) * EACH:
                return {state.name: state.window_start.seconds for state in answer.decision.limits}
            assert not answer.decision.allowed or not answer.decision.limits


async def test_quota_has_every_figure_of_twenty_limits(
    platform: Platform, record_property: Callable[[str, object], None]
) -> None:
    """Plan, amount, used, percent, remaining, reset and as of when, per minute, hour, day and month.

    What it costs is printed beside a check that is told of the same twenty limits, call by call in turns: the promise
    is p99 of 5 ms, and times on a busy machine prove nothing.
    """
    await platform.apply(catalogue())
    async with platform.channel() as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        starts = await consumed(stub, 300)
        peek, quota = check(quota_pb2.CHECK_MODE_PEEK, 1), quota_pb2.GetQuotaRequest(tenant=TENANT)
        spans: dict[str, list[float]] = {"check": [], "quota": []}
        for _ in range(PAIRS):
            began = time.perf_counter()
            told = await stub.CheckQuota(peek, timeout=20)
            between = time.perf_counter()
            answer = await stub.GetQuota(quota, timeout=20)
            spans["check"].append((between - began) * 1e3)
            spans["quota"].append((time.perf_counter() - between) * 1e3)
    for name, taken in spans.items():
        p50, p99 = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
        record_property(f"{name}_ms", (round(p50, 2), round(p99, 2)))
        print(f"{name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")  # noqa: T201
    print(f"bytes: {told.decision.ByteSize()} and {answer.ByteSize()}")  # noqa: T201
    assert (answer.plan, len(answer.limits)) == ("twenty", len(LENGTHS_S) * EACH)
    for unit, length_s in LENGTHS_S.items():
        for number in range(EACH):
            (state,) = [state for state in answer.limits if state.name == f"{unit}-{number}"]
            assert (state.length.seconds, state.kind) == (length_s, decision_pb2.LIMIT_KIND_WINDOW)
            assert (state.amount, state.plan, state.source) == (1_000 * (number + 1), "twenty", "plan")
            # Windows may have turned since.
            is_same = state.window_start.seconds == starts[state.name]
            assert state.used == (300 if is_same else 0)
            assert state.used_percent == 100 * state.used // state.amount
            assert state.remaining == state.amount - state.used
            assert state.HasField("as_of")
            assert state.used == 0 or state.HasField("reset_after")
