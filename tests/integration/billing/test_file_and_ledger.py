"""What a catalogue says of a subscription beside what was said to the ledger since: neither undoes the other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from billing_bench import use
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.services import subscription_changes as changes
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio

CATALOGUE = """
version: 1
seller: {{id: default, name: Example AI GmbH, invoice_prefix: TK, currency: USD, time_zone: UTC}}
meters: [{{name: messages, unit: messages}}]
plans:
  - {{name: free, billing_interval: hour}}
  - {{name: pro, billing_interval: hour, fees: [{{name: Pro, amount: "{fee}"}}]}}
  - {{name: team, billing_interval: hour, fees: [{{name: Team, amount: "9.00"}}]}}
  - {{name: daily, billing_interval: day, fees: [{{name: Daily, amount: "50.00"}}]}}
tenants:
  - id: code
    plan: {plan}{version}
    subscription: {{start: "{start}", anchor: calendar, time_zone: Europe/Berlin}}
    {own}
"""
LATEST = "\n    plan_version: latest"


OWN = "fees: [{name: Pro, amount: '2.00'}]\n    prices: [{meter: messages, unit_price: '0.03'}]"


@dataclass(frozen=True, slots=True)
class Site:
    """A bench whose one tenant is declared by a file."""

    bench: BillingBench

    def file(self, *, plan: str = "pro", version: str = LATEST, fee: str = "5.00", own: str = "") -> str:
        """Give the file."""
        return CATALOGUE.format(plan=plan, version=version, fee=fee, own=own, start=self.bench.start.isoformat())

    async def change(self, asked: changes.ChangeAsked) -> None:
        """Say a change to the ledger."""
        async with transaction(self.bench.billing) as conn:
            tenant_id, act = await acting(conn)
            await changes.change_subscription(conn, tenant_id, asked, act=act)

    async def running(self) -> tuple[str, int]:
        """Give plan and version of the running subscription."""
        (row,) = await self.bench.rows(
            "SELECT p.name, v.version FROM subscription s JOIN plan_version v USING (plan_version_id) "
            "JOIN plan p USING (plan_id) JOIN tenant USING (tenant_id) "
            "WHERE s.ended_at IS NULL AND wire_id = 'code'"
        )
        return row["name"], row["version"]

    async def all_phases(self) -> list[Any]:
        """Give everything that is stored of subscriptions."""
        return [
            await self.bench.rows("SELECT * FROM subscription ORDER BY subscription_id"),
            await self.bench.rows("SELECT * FROM subscription_phase ORDER BY subscription_id, starts_at"),
            await self.bench.rows("SELECT count(*) FROM audit_log"),
        ]

    async def applied(self, file: str) -> str:
        """Apply a file; give what it did to the subscription."""
        (found,) = [one for one in await self.bench.apply(file) if one.kind == "subscription"]
        return found.action


async def acting(conn: Connection) -> tuple[UUID, Act]:
    """Give the tenant, and an act of now."""
    now = await ledger_now(conn)
    return (await find_tenant_ids(conn, ["code"]))["code"], Act(actor="test", request_id=f"r{now}", now=now)


@pytest.fixture
def site(bench: BillingBench) -> Site:
    """Give a site."""
    return Site(bench)


SAID = [
    changes.ChangeAsked(plan="free"),
    changes.ChangeAsked(plan="free", at="period_end"),
    changes.ChangeAsked(plan="daily"),
    changes.ChangeAsked(quantity=4),
    changes.ChangeAsked(anchor="start"),
    changes.ChangeAsked(time_zone="Africa/Abidjan"),
]


@pytest.mark.parametrize("version", ["", LATEST])
@pytest.mark.parametrize("asked", SAID)
async def test_an_unchanged_file_changes_nothing_and_refuses_nothing(
    site: Site, asked: changes.ChangeAsked, version: str
) -> None:
    """Plan, seats, anchor and zone were changed through the ledger: the file that began it all is applied as before."""
    file = site.file(version=version)
    await site.bench.apply(file)
    await site.bench.set_now(site.bench.start + timedelta(minutes=10))
    await site.change(asked)
    for later in (timedelta(minutes=10), timedelta(days=2)):
        await site.bench.set_now(site.bench.start + later)
        await changes.follow_due_phases(site.bench.billing)
        before = await site.all_phases()
        assert {"unchanged"} == {one.action for one in await site.bench.apply(file)}
        assert before == await site.all_phases()


async def test_a_new_version_does_not_undo_what_the_ledger_was_told(site: Site) -> None:
    """`latest` follows versions of the plan that the file names, not a move to another one, done or still to come."""
    await site.bench.apply(site.file())
    assert await site.applied(site.file(fee="6.00")) == "update"
    assert await site.running() == ("pro", 2)
    await site.change(changes.ChangeAsked(plan="free"))
    assert await site.applied(site.file(fee="7.00")) == "unchanged"
    assert await site.running() == ("free", 1)
    await site.change(changes.ChangeAsked(plan="pro"))
    assert await site.running() == ("pro", 3)
    await site.change(changes.ChangeAsked(plan="team", at="period_end"))
    assert await site.applied(site.file(fee="8.00")) == "update"
    assert await site.running() == ("pro", 4)
    await site.bench.set_now(site.bench.start + timedelta(hours=1))
    await changes.follow_due_phases(site.bench.billing)
    assert await site.running() == ("team", 1)


async def test_a_new_version_leaves_another_interval_that_is_to_come(site: Site) -> None:
    """A move to a daily plan with the next period is kept where the present plan gets a new version before."""
    await site.bench.apply(site.file())
    await site.change(changes.ChangeAsked(plan="daily", at="period_end"))
    assert await site.applied(site.file(fee="8.00")) == "update"
    await site.bench.set_now(site.bench.start + timedelta(hours=1))
    await changes.follow_due_phases(site.bench.billing)
    assert await site.running() == ("daily", 1)
    (row,) = await site.bench.rows("SELECT interval_unit FROM subscription")
    assert row["interval_unit"] == "day"


async def test_another_plan_in_the_file_is_a_new_word(site: Site) -> None:
    """Refused without `latest`; done with it; naming the plan that the ledger was told of is in order at any time."""
    await site.bench.apply(site.file(version=""))
    await site.change(changes.ChangeAsked(plan="free"))
    before = await site.all_phases()
    with pytest.raises(CatalogueInvalidError, match="differs from the running subscription's plan 'free'"):
        await site.bench.apply(site.file(plan="team", version=""))
    assert before == await site.all_phases()
    await site.bench.apply(site.file(plan="free", version=""))
    assert await site.applied(site.file(plan="free", version="")) == "unchanged"
    assert await site.applied(site.file(plan="team")) == "update"
    assert await site.running() == ("team", 1)


async def test_a_subscription_that_the_ledger_began_is_taken_over_as_it_is(site: Site) -> None:
    """Cancelled and begun anew through the ledger, on another plan and anchor: the old file leaves it."""
    file = site.file()
    await site.bench.apply(file)
    async with transaction(site.bench.billing) as conn:
        tenant_id, act = await acting(conn)
        await changes.cancel_subscription(conn, tenant_id, at="now", act=act)
    assert await site.applied(file) == "unchanged"
    await site.bench.set_now(site.bench.start + timedelta(minutes=10))
    async with transaction(site.bench.billing) as conn:
        tenant_id, act = await acting(conn)
        asked = changes.SubscriptionAsked(
            plan="team", start=None, anchor="start", time_zone="UTC", currency="", quantity=2, trial_days=None
        )
        await changes.create_subscription(conn, tenant_id, "code", asked, act)
    before = await site.all_phases()
    assert await site.applied(file) == "unchanged"
    assert before == await site.all_phases()


async def test_own_prices_go_on_through_every_change_and_are_invoiced(site: Site) -> None:
    """Own fee and price are charged; `--plan pro` means the tenant's own, newest; another plan has the list's."""
    await site.bench.apply(site.file(own=OWN).replace("anchor: calendar", "anchor: start"))
    log = await site.bench.new_log()
    start = site.bench.start
    await site.bench.send(log, use("1", start, messages=10), watermark=start)
    await site.change(changes.ChangeAsked(plan="team", at="period_end"))
    await site.bench.set_now(start + timedelta(hours=1))
    await changes.follow_due_phases(site.bench.billing)
    assert await site.running() == ("team", 1)
    await site.change(changes.ChangeAsked(plan="pro", at="period_end"))
    await site.bench.set_now(start + timedelta(hours=2))
    await changes.follow_due_phases(site.bench.billing)
    assert await site.running() == ("pro@code", 1)
    await site.bench.send(log, use("2", start + timedelta(hours=2), messages=20), watermark=start + timedelta(hours=2))
    await site.bench.set_now(start + timedelta(hours=5))
    await site.bench.send(log, watermark=start + timedelta(hours=5))
    await site.bench.run()
    invoiced = [
        [(line["kind"], line["amount_minor"]) for line in one["lines"]] for one in await site.bench.documents("code")
    ]
    assert invoiced == [
        [("fee", 200), ("usage", 30)],
        [("fee", 900)],
        [("fee", 200), ("usage", 60)],
        [("fee", 200)],
    ]


async def test_own_prices_come_with_a_subscription_that_begins_anew(site: Site) -> None:
    """Cancelled and created again by the list's name, it has its own prices; taken out of the file, the list's."""
    await site.bench.apply(site.file(own=OWN))
    async with transaction(site.bench.billing) as conn:
        tenant_id, act = await acting(conn)
        await changes.cancel_subscription(conn, tenant_id, at="now", act=act)
    await site.bench.set_now(site.bench.start + timedelta(minutes=1))
    async with transaction(site.bench.billing) as conn:
        tenant_id, act = await acting(conn)
        asked = changes.SubscriptionAsked(
            plan="pro", start=None, anchor="", time_zone="", currency="", quantity=1, trial_days=None
        )
        await changes.create_subscription(conn, tenant_id, "code", asked, act)
    assert await site.running() == ("pro@code", 1)
    assert await site.applied(site.file()) == "update"
    assert await site.running() == ("pro", 1)
    await site.change(changes.ChangeAsked(plan="pro"))
    assert await site.running() == ("pro", 1)


async def test_nobody_moves_to_another_tenants_own_prices(site: Site) -> None:
    """Naming them is refused and says what to name; one's own may be named in full."""
    others = "  - {id: other, plan: pro, fees: [{name: Pro, amount: '1.00'}]}\n"
    await site.bench.apply(site.file(own=OWN) + others)
    with pytest.raises(InvalidFieldError, match="has another tenant's own prices") as refusal:
        await site.change(changes.ChangeAsked(plan="pro@other"))
    assert refusal.value.metadata["remedy"] == "name 'pro'"
    await site.change(changes.ChangeAsked(plan="pro@code"))
    assert await site.running() == ("pro@code", 1)
