"""Subscriptions over gRPC: what operators do with them, once each, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

import pytest
from billing_bench import catalogue, use
from google.protobuf.timestamp_pb2 import Timestamp
from rpc_support import client_of, refused
from tollkeeper.ledger.v1 import admin_pb2
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.subscription_changes import follow_due_phases
from tollkeeper_ledger.services.subscription_dates import take_back
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenants import load_tenants

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio

PAST, FAR = Timestamp(seconds=1_000_000_000), Timestamp(seconds=4_000_000_000)
PLANS = """
  - {name: team, billing_interval: hour, fees: [{name: Seat, amount: "5.00", per_seat: true}]}
  - {name: daily, billing_interval: day}
tenants:
  - {id: bare}
"""


@pytest.fixture
def settings(ledger_settings: Settings, own_database_url: str) -> Settings:
    """Configure a ledger on a database of this test's own."""
    return ledger_settings.model_copy(update={"database_url": own_database_url})


async def test_a_subscription_is_lived_through(settings: Settings) -> None:
    """Created, changed, paused, resumed, cancelled at the end and not after all, cancelled now; each repeat is one."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code").replace("tenants:\n", PLANS))
        admin = client.admin
        create = admin_pb2.CreateSubscriptionRequest(request_id="1", tenant="bare", plan="team", quantity=3)
        created = (await admin.CreateSubscription(create)).subscription
        assert (
            created.plan, created.state, created.quantity, created.HasField("ends_at"),
        ) == ("team", "active", 3, False)  # fmt: skip
        assert created == (await admin.CreateSubscription(create)).subscription
        change = admin_pb2.ChangeSubscriptionRequest(request_id="2", tenant="bare", quantity=7)
        assert (await admin.ChangeSubscription(change)).subscription.quantity == 7
        later = admin_pb2.ChangeSubscriptionRequest(request_id="3", tenant="bare", plan="hourly", at="period_end")
        assert (await admin.ChangeSubscription(later)).subscription.plan == "team"
        pause = admin_pb2.PauseSubscriptionRequest(request_id="4", tenant="bare")
        assert (await admin.PauseSubscription(pause)).subscription.state == "paused"
        resume = admin_pb2.ResumeSubscriptionRequest(request_id="5", tenant="bare")
        assert (await admin.ResumeSubscription(resume)).subscription.state == "active"
        cancel = admin_pb2.CancelSubscriptionRequest(request_id="6", tenant="bare", at="period_end")
        ending = (await admin.CancelSubscription(cancel)).subscription
        assert (ending.state, ending.ends_at) == ("active", created.period_end)
        keep = admin_pb2.ResumeSubscriptionRequest(request_id="7", tenant="bare")
        assert not (await admin.ResumeSubscription(keep)).subscription.HasField("ends_at")
        stop = admin_pb2.CancelSubscriptionRequest(request_id="8", tenant="bare")
        assert (await admin.CancelSubscription(stop)).subscription.state == "cancelled"
        zone = admin_pb2.ChangeSubscriptionRequest(
            request_id="10", tenant="code", plan="daily", anchor="2031-01-31", time_zone="Africa/Abidjan"
        )
        counted = (await admin.ChangeSubscription(zone)).subscription
        assert (counted.time_zone, counted.anchor, counted.interval) == (
            "Africa/Abidjan", "2031-01-31T00:00:00", "1 day",
        )  # fmt: skip
        again = admin_pb2.CreateSubscriptionRequest(request_id="9", tenant="bare", plan="team", trial_days=7)
        assert (await admin.CreateSubscription(again)).subscription.state == "trialing"
        trying = await admin.ListSubscriptions(admin_pb2.ListSubscriptionsRequest(state="trialing"))
        assert [one.tenant for one in trying.subscriptions] == ["bare"]
        begin = admin_pb2.ActivateSubscriptionRequest(request_id="11", tenant="bare")
        for _ in range(2):
            begun = (await admin.ActivateSubscription(begin)).subscription
            assert (begun.state, len(begun.scheduled)) == ("active", 0)


async def test_grants_have_a_history(settings: Settings) -> None:
    """Grants are listed in the order of their use, each with its balance and its movements."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code"))
        admin = client.admin
        second = admin_pb2.CreateGrantRequest(request_id="1", tenant="code", currency="USD", amount=500, priority=2)
        first = admin_pb2.CreateGrantRequest(
            request_id="2", tenant="code", meter="context_tokens", amount=10, priority=1, name="Welcome", recurs=True
        )
        ids = [(await admin.CreateGrant(request)).grant_id for request in (second, first, second)]
        assert ids[0] == ids[2]
        listed = await admin.ListGrants(admin_pb2.ListGrantsRequest(tenant="code"))
        assert [(grant.name, grant.amount, grant.balance) for grant in listed.grants] == [
            ("Welcome", 10, 10),
            ("Prepaid credit", 500, 500),
        ]
        assert [(ids[0], "granted", 500, 500), (ids[1], "granted", 10, 10)] == [
            (entry.grant_id, entry.kind, entry.amount, entry.balance) for entry in listed.entries
        ]


async def test_limits_follow_when_the_time_comes(bench: BillingBench) -> None:
    """A trial that ends, a plan that changes with the period, an end: each is followed then, once, and not before."""
    await bench.apply(
        catalogue(bench.start, "code").replace("name: free,", "name: free, trial_days: 1,")
        + f"  - {{id: try, plan: free, subscription: {{start: '{bench.start.isoformat()}'}}}}\n"
    )

    async def state() -> str:
        (row,) = await bench.rows(
            "SELECT subscription.state FROM subscription JOIN tenant USING (tenant_id) WHERE wire_id = 'try'"
        )
        found: str = row["state"]
        return found

    assert (await follow_due_phases(bench.billing), await state()) == (0, "trialing")
    await bench.set_now(bench.start + timedelta(days=1) - timedelta(microseconds=1))
    assert (await follow_due_phases(bench.billing), await state()) == (0, "trialing")
    await bench.set_now(bench.start + timedelta(days=1))
    assert (await follow_due_phases(bench.billing), await state()) == (1, "active")
    assert await follow_due_phases(bench.billing) == 0
    async with transaction(bench.billing) as conn:
        (view,) = await load_tenants(conn, wire_ids=["try"])
    assert (view.state, view.plan) == ("active", "free")


TWO = """
version: 1
seller: {{id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters: [{{name: messages, unit: messages}}]
plans:
  - name: one
    billing_interval: day
    fees: [{{name: One, amount: "1.00"}}]
    prices: [{{meter: messages, unit_price: "0.01"}}]
  - name: two
    billing_interval: day
    fees: [{{name: Two, amount: "1.00"}}]
    prices: [{{meter: messages, unit_price: "0.01"}}]
  - name: three
    billing_interval: {{unit: hour, count: 7}}
    fees: [{{name: Three, amount: "1.00"}}]
    prices: [{{meter: messages, unit_price: "0.01"}}]
tenants: [{{id: code, plan: one, subscription: {{start: "{start}"}}}}]
"""


def plan_and_seats(random: Random, now: datetime) -> changes.ChangeAsked:
    """Change the plan and the seats."""
    return changes.ChangeAsked(plan=random.choice(["one", "two"]), quantity=random.randint(1, 9))


def periods_too(random: Random, now: datetime) -> changes.ChangeAsked:
    """Change the plan and with it the interval, the anchor or the time zone, now or with the next period."""
    return random.choice([
        changes.ChangeAsked(plan=random.choice(["one", "two", "three"]), at=random.choice(["now", "period_end"])),
        changes.ChangeAsked(plan=random.choice(["one", "three"]), anchor=random.choice(["start", "calendar"])),
        changes.ChangeAsked(plan="two", time_zone=random.choice(["America/New_York", "Asia/Tokyo", "UTC"])),
    ])  # fmt: skip


def on_dates(random: Random, now: datetime) -> changes.ChangeAsked:
    """Change plan, seats, interval or anchor within the next hours."""
    at = now + timedelta(minutes=random.randint(1, 400))
    return random.choice([
        changes.ChangeAsked(plan=random.choice(["one", "two", "three"]), at=at),
        changes.ChangeAsked(quantity=random.randint(1, 9), at=at),
        changes.ChangeAsked(plan=random.choice(["one", "three"]), anchor="start", at=at),
    ])  # fmt: skip


async def unschedule_first(conn: Connection, tenant_id: UUID, act: Act) -> None:
    """Take back the next thing that is to change, where there is one."""
    schedule = await changes.live_subscription(conn, tenant_id, now=act.now)
    for phase in schedule.phases:
        if phase.starts_at > act.now:
            await take_back(conn, tenant_id, phase.starts_at, act=act)
            return


@pytest.mark.parametrize("asked", [plan_and_seats, periods_too, on_dates])
async def test_changes_beside_appends_lose_nothing(
    bench: BillingBench, asked: Callable[[Random, datetime], changes.ChangeAsked]
) -> None:
    """Plan, seats, pauses, or interval, anchor and zone as well change while usage is appended, late and early.

    Now, with the next period, or on dates to come, some of which are taken back.

    Every unit is billed once, and where periods stay as they are, on one invoice.
    """
    await bench.apply(TWO.format(start=bench.start.isoformat()))
    log = await bench.new_log()
    random = Random(7)
    sent = 0

    async def act(number: int, now: datetime) -> None:
        async with transaction(bench.billing) as conn:
            tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
            doing = Act(actor="test", request_id=f"r{number}", now=now)
            if asked is on_dates:
                with contextlib.suppress(InvalidFieldError):
                    # Some meet one that is to come of the same thing: refused, nothing is changed.
                    async with conn.transaction():
                        if number % 3 == 2:
                            await unschedule_first(conn, tenant_id, doing)
                        else:
                            await changes.change_subscription(conn, tenant_id, asked(random, now), act=doing)
            elif number % 4 == 1:
                await changes.pause_subscription(conn, tenant_id, at="now", act=doing)
            elif number % 4 == 2:
                await changes.resume_subscription(conn, tenant_id, act=doing)
            else:
                await changes.change_subscription(conn, tenant_id, asked(random, now), act=doing)

    for number in range(24):
        now = bench.start + timedelta(minutes=50 * number)
        await bench.set_now(now)
        earliest = max(bench.start, now - timedelta(hours=3))
        uses = [
            use(f"{number}-{place}", earliest + (now - earliest) * random.random(), messages=random.randint(1, 50))
            for place in range(20)
        ]
        sent += sum(units for one in uses for _, units in one.quantities)
        await asyncio.gather(bench.send(log, *uses, watermark=earliest, tenants=("code",)), act(number, now))
    end = bench.start + timedelta(days=1 if asked is plan_and_seats else 3, hours=2)
    await bench.set_now(end)
    await changes.follow_due_phases(bench.billing)
    await bench.send(log, watermark=end, tenants=("code",))
    await bench.run()
    documents = await bench.documents("code")
    assert asked is not plan_and_seats or len(documents) == 1
    billed = [line for document in documents for line in document["lines"] if line["meter"] == "messages"]
    assert sent == sum(line["quantity"] for line in billed)
    assert sent == sum(line["amount_minor"] for line in billed)
    assert sum(document["record_count"] for document in documents) == 24 * 20
    ends = [document["period"]["end"] for document in documents]
    assert [document["period"]["start"] for document in documents][1:] == ends[:-1]


WRONG = [
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="a", tenant="bare"),
        "FIELD_REQUIRED",
        "plan",
    ),
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="b", tenant="bare", plan="no"),
        "PLAN_UNKNOWN",
        "",
    ),
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="c", tenant="code", plan="team"),
        "ALREADY_EXISTS",
        "",
    ),
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="d", tenant="bare", plan="team", currency="EUR"),
        "PLAN_UNKNOWN",
        "",
    ),
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="e", tenant="bare", plan="team", anchor="someday"),
        "FIELD_INVALID",
        "anchor",
    ),
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="f", tenant="bare", plan="team", time_zone="Mars"),
        "FIELD_INVALID",
        "time_zone",
    ),
    (
        "CreateSubscription",
        admin_pb2.CreateSubscriptionRequest(request_id="g", tenant="bare", plan="team", quantity=-1),
        "FIELD_OUT_OF_RANGE",
        "quantity",
    ),
    (
        "ChangeSubscription",
        admin_pb2.ChangeSubscriptionRequest(request_id="h", tenant="code"),
        "FIELD_REQUIRED",
        "plan",
    ),
    (
        "ChangeSubscription",
        admin_pb2.ChangeSubscriptionRequest(request_id="i", tenant="bare", plan="team"),
        "SUBSCRIPTION_UNKNOWN",
        "",
    ),
    (
        "ChangeSubscription",
        admin_pb2.ChangeSubscriptionRequest(request_id="j", tenant="code", time_zone="Mars"),
        "FIELD_INVALID",
        "time_zone",
    ),
    (
        "ChangeSubscription",
        admin_pb2.ChangeSubscriptionRequest(request_id="ja", tenant="code", anchor="2031-02-30"),
        "FIELD_INVALID",
        "anchor",
    ),
    (
        "ChangeSubscription",
        admin_pb2.ChangeSubscriptionRequest(request_id="k", tenant="code", plan="team", at="soon"),
        "FIELD_INVALID",
        "at",
    ),
    (
        "ChangeSubscription",
        admin_pb2.ChangeSubscriptionRequest(request_id="ka", tenant="code", plan="team", at_time=PAST),
        "FIELD_OUT_OF_RANGE",
        "at_time",
    ),
    (
        "CancelSubscription",
        admin_pb2.CancelSubscriptionRequest(request_id="kb", tenant="code", at_time=FAR),
        "FIELD_OUT_OF_RANGE",
        "at_time",
    ),
    (
        "PauseSubscription",
        admin_pb2.PauseSubscriptionRequest(request_id="kc", tenant="code", at="now", at_time=FAR),
        "FIELD_INVALID",
        "at",
    ),
    (
        "ActivateSubscription",
        admin_pb2.ActivateSubscriptionRequest(request_id="kf", tenant="code"),
        "FIELD_INVALID",
        "tenant",
    ),
    ("ListSubscriptions", admin_pb2.ListSubscriptionsRequest(state="overdue"), "FIELD_INVALID", "state"),
    (
        "UnscheduleSubscription",
        admin_pb2.UnscheduleSubscriptionRequest(request_id="kd", tenant="code"),
        "FIELD_REQUIRED",
        "at_time",
    ),
    (
        "UnscheduleSubscription",
        admin_pb2.UnscheduleSubscriptionRequest(request_id="ke", tenant="code", at_time=FAR),
        "FIELD_INVALID",
        "at_time",
    ),
    (
        "ResumeSubscription",
        admin_pb2.ResumeSubscriptionRequest(request_id="l", tenant="code"),
        "FIELD_INVALID",
        "tenant",
    ),
    ("CancelSubscription", admin_pb2.CancelSubscriptionRequest(request_id="m", tenant="no"), "TENANT_UNKNOWN", ""),
    ("AddCoupon", admin_pb2.AddCouponRequest(request_id="n", tenant="code", name="c"), "FIELD_INVALID", "percent"),
    (
        "AddCoupon",
        admin_pb2.AddCouponRequest(request_id="o", tenant="code", name="c", percent="101"),
        "FIELD_OUT_OF_RANGE",
        "percent",
    ),
    ("AddCoupon", admin_pb2.AddCouponRequest(request_id="p", tenant="code", percent="10"), "FIELD_INVALID", "name"),
    ("CreateGrant", admin_pb2.CreateGrantRequest(request_id="q", tenant="code", amount=1), "FIELD_INVALID", "meter"),
    (
        "CreateGrant",
        admin_pb2.CreateGrantRequest(request_id="r", tenant="code", currency="USD"),
        "FIELD_OUT_OF_RANGE",
        "amount",
    ),
    (
        "CreateGrant",
        admin_pb2.CreateGrantRequest(request_id="s", tenant="code", meter="no", amount=1),
        "METER_UNKNOWN",
        "",
    ),
]


async def test_wrong_requests_change_nothing(settings: Settings) -> None:
    """Each is answered with its reason and field; subscriptions and grants stay as they are."""
    async with client_of(settings) as client:
        await client.apply(catalogue(client.start, "code").replace("tenants:\n", PLANS))
        listing = admin_pb2.ListSubscriptionsRequest()
        before = await client.admin.ListSubscriptions(listing)
        for method, request, reason, field in WRONG:
            _, info = await refused(getattr(client.admin, method)(request))
            assert (reason, field) == (info.reason, info.metadata["field"]), (method, request)
        assert before == await client.admin.ListSubscriptions(listing)
        assert not (await client.admin.ListGrants(admin_pb2.ListGrantsRequest(tenant="code"))).grants
