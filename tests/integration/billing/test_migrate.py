"""`subscription migrate` against a ledger: who is moved, who is left, and what a stop in the middle leaves."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from billing_bench import catalogue
from rpc_support import Client
from tollkeeper.ledger.v1 import admin_pb2
from tollkeeper_cli.main import main
from tollkeeper_ledger.app import running
from tollkeeper_ledger.store.clock import ledger_now

if TYPE_CHECKING:
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio
NAMES = tuple(f"t{number}" for number in range(5))


async def test_all_subscribers_of_a_plan_are_moved_once(
    ledger_settings: Settings, own_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run moves nobody; one who was moved before, one with own prices and one who left stay; again is nothing."""
    settings = ledger_settings.model_copy(update={"database_url": own_database_url})
    async with running(settings) as ledger, grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
        async with ledger.resources.pools.billing.acquire() as conn:
            client = Client(channel, (await ledger_now(conn)).replace(microsecond=0))
        file = catalogue(client.start, *NAMES)
        own = ", fees: [{name: base, amount: '1.00'}]}"
        head, tail = file.rsplit("}", 1)
        await client.apply(head + own + tail)
        await client.apply((head + own + tail).replace('"20.00"', '"25.00"'), "again")
        free = admin_pb2.ChangeSubscriptionRequest(request_id="1", tenant="t3", plan="free")
        await client.admin.ChangeSubscription(free)
        await client.admin.CancelSubscription(admin_pb2.CancelSubscriptionRequest(request_id="2", tenant="t2"))

        async def migrate(*words: str) -> list[tuple[str, str, int, str]]:
            command = ["--ledger", f"127.0.0.1:{ledger.port}", "subscription", "migrate", *words, "-o", "json"]
            assert await asyncio.to_thread(main, command) == 0
            rows = json.loads(capsys.readouterr().out)
            return [(row["tenant"], row["to_plan"], row["to_version"], row["outcome"]) for row in rows]

        async def plans() -> dict[str, tuple[str, int]]:
            found = await client.admin.ListSubscriptions(admin_pb2.ListSubscriptionsRequest())
            return {one.tenant: (one.plan, one.plan_version) for one in found.subscriptions if one.state == "active"}

        before = await plans()
        dry = await migrate("hourly", "--dry-run")
        assert dry == [("t0", "hourly", 2, "would move"), ("t1", "hourly", 2, "would move")]
        assert before == await plans()
        # As if the first run had been stopped after one of them.
        first = admin_pb2.ChangeSubscriptionRequest(request_id="3", tenant="t0", plan="hourly")
        await client.admin.ChangeSubscription(first)
        assert await migrate("hourly") == [("t1", "hourly", 2, "moved")]
        assert {**before, "t0": ("hourly", 2), "t1": ("hourly", 2)} == await plans()
        assert await migrate("hourly") == []
        assert await migrate("hourly", "--to", "free", "--from-version", "1") == []
        coming = [("t0", "free", 1, "moved"), ("t1", "free", 1, "moved")]
        assert coming == await migrate("hourly", "--to", "free", "--at", "period_end")
        assert await migrate("hourly", "--to", "free", "--at", "period_end") == []
        assert (await plans())["t0"] == ("hourly", 2)
