"""Changes of a subscription for a time to come: told, listed, taken back; what meets them is refused or in order."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from billing_bench import catalogue, use
from google.protobuf.timestamp_pb2 import Timestamp
from rpc_support import client_of, refused
from tollkeeper.ledger.v1 import admin_pb2
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.subscription_dates import take_back
from tollkeeper_ledger.services.subscriptions import FIRST, list_subscriptions
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio
PLANS = """
  - {name: team, billing_interval: hour}
  - {name: daily, billing_interval: day}
tenants:
"""


def declared(start: datetime) -> str:
    """Give a catalogue of one tenant on `free`, and plans to move to."""
    return catalogue(start, "code", plan="free").replace("tenants:\n", PLANS)


async def do(bench: BillingBench, what: Callable[[Connection, UUID, Act], Awaitable[None]]) -> None:
    """Say something to the ledger about the one subscription."""
    async with transaction(bench.billing) as conn:
        now = await ledger_now(conn)
        await what(conn, (await find_tenant_ids(conn, ["code"]))["code"], Act(actor="test", request_id="r", now=now))


async def change(bench: BillingBench, **asked: Any) -> None:
    """Change the subscription."""
    await do(
        bench,
        lambda conn, tenant, act: changes.change_subscription(conn, tenant, changes.ChangeAsked(**asked), act=act),
    )


async def back(bench: BillingBench, at: datetime) -> None:
    """Take a change back."""
    await do(bench, lambda conn, tenant, act: take_back(conn, tenant, at, act=act))


async def listed(bench: BillingBench) -> list[tuple[float, str, int, str]]:
    """Give what is to come: minutes from the start, plan, seats, state."""
    async with transaction(bench.billing) as conn:
        (view,) = await list_subscriptions(conn, after=FIRST, count_max=9, only="code", now=await ledger_now(conn))
    return [
        ((one.at - bench.start) / timedelta(minutes=1), one.plan, one.quantity, one.state) for one in view.scheduled
    ]


async def test_changes_to_come_are_listed_and_taken_back(bench: BillingBench) -> None:
    """Each later change knows of the earlier ones; without one of them the others have what was before."""
    await bench.apply(declared(bench.start))
    first, second, third = (bench.start + timedelta(minutes=10 * minutes) for minutes in (1, 2, 3))
    await change(bench, plan="team", at=first)
    await change(bench, quantity=7, at=second)
    await do(bench, lambda conn, tenant, act: changes.pause_subscription(conn, tenant, at=third, act=act))
    assert await listed(bench) == [
        (10, "team", 1, "active"),
        (20, "team", 7, "active"),
        (30, "team", 7, "paused"),
    ]  # fmt: skip
    await back(bench, first)
    assert await listed(bench) == [(20, "free", 7, "active"), (30, "free", 7, "paused")]
    await back(bench, third)
    assert await listed(bench) == [(20, "free", 7, "active")]
    await back(bench, second)
    assert await listed(bench) == []
    rows = await bench.rows("SELECT count(*) FROM subscription_phase")
    assert rows[0]["count"] == 1
    for at in (first, bench.start, bench.start - timedelta(hours=1)):
        with pytest.raises(InvalidFieldError, match="has no change scheduled"):
            await back(bench, at)


async def test_what_meets_a_change_to_come_is_refused_or_in_order(bench: BillingBench) -> None:
    """Before one of the same thing it is refused, beside others it stays; said for now, it takes the place of all."""
    await bench.apply(declared(bench.start))
    early, late = bench.start + timedelta(minutes=10), bench.start + timedelta(minutes=20)
    await change(bench, plan="team", at=late)
    for asked in ({"plan": "daily"}, {"plan": "hourly"}, {"anchor": "start"}, {"time_zone": "Africa/Abidjan"}):
        with pytest.raises(InvalidFieldError, match="has a change of the same thing behind it") as refusal:
            await change(bench, at=early, **asked)
        assert f"unschedule --at {late.isoformat()}" in refusal.value.metadata["remedy"]
    await change(bench, quantity=3, at=early)
    assert await listed(bench) == [(10, "free", 3, "active"), (20, "team", 3, "active")]
    with pytest.raises(InvalidFieldError, match="has a change of the same thing behind it"):
        await change(bench, quantity=4, at=bench.start + timedelta(minutes=5))
    await do(bench, lambda conn, tenant, act: changes.pause_subscription(conn, tenant, at="now", act=act))
    assert await listed(bench) == [(10, "free", 3, "paused"), (20, "team", 3, "paused")]
    await do(bench, lambda conn, tenant, act: changes.resume_subscription(conn, tenant, act=act))
    assert await listed(bench) == [(10, "free", 3, "active"), (20, "team", 3, "active")]
    await change(bench, plan="hourly")
    assert await listed(bench) == [(10, "hourly", 3, "active")]
    await do(bench, lambda conn, tenant, act: changes.cancel_subscription(conn, tenant, at=late, act=act))
    with pytest.raises(InvalidFieldError, match="lies after the subscription's end"):
        await change(bench, quantity=9, at=late)
    with pytest.raises(InvalidFieldError, match="is the subscription's end"):
        await back(bench, late)


async def test_another_count_of_periods_is_taken_back_last_first(bench: BillingBench) -> None:
    """An interval with another anchor behind it is refused; taken back in order, all is as it was."""
    await bench.apply(declared(bench.start))
    before = await bench.rows("SELECT * FROM subscription_phase")
    day, anchor = bench.start + timedelta(minutes=10), bench.start + timedelta(minutes=20)
    await change(bench, plan="daily", at=day)
    await change(bench, anchor="start", at=anchor)
    with pytest.raises(InvalidFieldError, match="has another count of periods behind it"):
        await back(bench, day)
    await back(bench, anchor)
    await back(bench, day)
    assert before == await bench.rows("SELECT * FROM subscription_phase")


async def test_usage_that_came_early_keeps_a_change(bench: BillingBench) -> None:
    """A producer's clock is ahead and its record is priced by what was to be: the change can't be taken back then."""
    await bench.apply(declared(bench.start))
    at = bench.start + timedelta(minutes=1)
    await change(bench, plan="team", at=at)
    log = await bench.new_log()
    await bench.send(log, use("1", bench.start, context_tokens=1), watermark=bench.start)
    early = use("2", at + timedelta(seconds=1), received=bench.start, context_tokens=2)
    await bench.send(log, early, watermark=bench.start)
    with pytest.raises(InvalidFieldError, match="has usage recorded already"):
        await back(bench, at)
    assert await listed(bench) == [(1, "team", 1, "active")]


async def test_a_move_from_a_plan_moves_nobody_else(bench: BillingBench) -> None:
    """Whoever was moved between a listing and the word stays where they are."""
    await bench.apply(declared(bench.start))
    await change(bench, plan="team")
    with pytest.raises(InvalidFieldError, match="is not its plan: it is on team"):
        await change(bench, plan="hourly", from_plan="free")
    later = bench.start + timedelta(minutes=5)
    await change(bench, plan="hourly", from_plan="team", at=later)
    assert await listed(bench) == [(5, "hourly", 1, "active")]


async def test_over_grpc_a_time_stands_instead_of_a_word(ledger_settings: Settings, own_database_url: str) -> None:
    """Change, list, repeat and take back over the wire; beside `at` a time is refused."""
    settings = ledger_settings.model_copy(update={"database_url": own_database_url})
    async with client_of(settings) as client:
        await client.apply(declared(client.start))
        at = Timestamp()
        at.FromMicroseconds(to_us(client.start + timedelta(days=30)))
        asked = admin_pb2.ChangeSubscriptionRequest(request_id="1", tenant="code", plan="team", at_time=at)
        for _ in range(2):
            answer = (await client.admin.ChangeSubscription(asked)).subscription
            assert ("free", [("team", at)]) == (answer.plan, [(one.plan, one.at_time) for one in answer.scheduled])
        found = (await client.admin.ListSubscriptions(admin_pb2.ListSubscriptionsRequest())).subscriptions
        assert [answer] == list(found)
        both = admin_pb2.CancelSubscriptionRequest(request_id="2", tenant="code", at="now", at_time=at)
        _, info = await refused(client.admin.CancelSubscription(both))
        assert (info.reason, info.metadata["field"]) == ("FIELD_INVALID", "at")
        undo = admin_pb2.UnscheduleSubscriptionRequest(request_id="3", tenant="code", at_time=at)
        for _ in range(2):
            assert not (await client.admin.UnscheduleSubscription(undo)).subscription.scheduled
