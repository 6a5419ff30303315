"""Calls that bring a limit to its thresholds are told of: from a sidecar's answer to the ledger's list."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from limit_rules import yearly
from tollkeeper.quota.v1 import quota_pb2, quota_pb2_grpc
from waiting import wait_until

if TYPE_CHECKING:
    from conftest import Run
    from platform_support import Platform


async def test_calls_that_reach_thresholds_are_told_of(platform: Platform, run: Run) -> None:
    """Three of four units: 75 %; the fourth: 90 and 100 %; denied calls after it tell nothing more."""
    stub_of = quota_pb2_grpc.QuotaServiceStub
    await platform.set_limit("tables", yearly("told", 4, case="told"))
    async with platform.channel() as channel:

        async def take() -> bool:
            request = quota_pb2.CheckQuotaRequest(
                tenant="tables", costs=[quota_pb2.Cost(meter="requests", units=1)], attributes={"case": "told"}
            )
            return (await stub_of(channel).CheckQuota(request, timeout=30)).decision.allowed

        async def in_force() -> bool:
            asked = quota_pb2.GetQuotaRequest(tenant="tables", attributes={"case": "told"})
            return any(limit.name == "told" for limit in (await stub_of(channel).GetQuota(asked, timeout=30)).limits)

        async def told(*thresholds: str) -> bool:
            code, out, _ = await asyncio.to_thread(run, "alerts", "list", "--tenant", "tables", "-o", "json")
            assert code == 0
            found = [one["threshold"] for one in json.loads(out) if one["subject"] == "told"]
            return sorted(found) == sorted(thresholds)

        await wait_until(in_force)
        for _ in range(3):
            await wait_until(take)
        await wait_until(lambda: told("75%"))
        await wait_until(take)
        await wait_until(lambda: told("75%", "90%", "100%"))
        assert not [True for _ in range(5) if await take()]
        assert await told("75%", "90%", "100%")
