"""Trials that ask for a payment method: who may begin one, what its end follows, and who is told of it."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from billing_bench import use
from stripe_shop import act_on, open_shop
from tollkeeper_ledger.domain.billing_profile import BillingProfile
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.services import trials
from tollkeeper_ledger.services.alert_mail import make_alert_message
from tollkeeper_ledger.services.catalogue import CatalogueInvalidError
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.provider_cards import PROVIDER
from tollkeeper_ledger.services.subscription_changes import (
    ChangeAsked,
    SubscriptionAsked,
    cancel_subscription,
    change_subscription,
    create_subscription,
    follow_due_phases,
)
from tollkeeper_ledger.store import mails
from tollkeeper_ledger.store.alerts import read_alert
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.webhooks import add_webhook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio

DAY = timedelta(days=1)
PLANS = """
version: 1
seller: {id: default, name: Example AI GmbH, email: seller@example.com, currency: USD, time_zone: UTC}
meters: [{name: messages, unit: messages}]
plans:
  - {name: free, billing_interval: month}
  - name: card-first
    billing_interval: month
    trial: {days: 14, payment_method: at_start}
  - name: pro
    billing_interval: month
    trial: {days: 14, payment_method: at_end, otherwise: fallback, fallback_plan: free, notice_days: 5}
"""
TENANTS = "tenants:\n  - {id: acme}\n  - {id: payer}\n"


@pytest_asyncio.fixture(autouse=True)
async def _from_the_whole_second(bench: BillingBench) -> None:
    """Have trials begin at a time that is written down; the clock goes forward only."""
    bench.start += timedelta(hours=1)
    await bench.set_now(bench.start)


async def ids(bench: BillingBench) -> dict[str, UUID]:
    """Give tenants' ids."""
    return {row["wire_id"]: row["tenant_id"] for row in await bench.rows("SELECT wire_id, tenant_id FROM tenant")}


async def subscribe(bench: BillingBench, plan: str, tenant: str = "acme", *, start: datetime | None = None) -> None:
    """Begin a subscription, now unless a start is given."""
    asked = SubscriptionAsked(plan=plan, start=start, anchor="", time_zone="", currency="", quantity=1, trial_days=None)
    async with transaction(bench.billing) as conn:
        await create_subscription(conn, (await ids(bench))[tenant], tenant, asked, await act_on(conn))


async def profile(bench: BillingBench, tenant: str, said: BillingProfile) -> None:
    """Say how a payer is billed."""
    async with transaction(bench.billing) as conn:
        await set_profile(conn, (await ids(bench))[tenant], said, act=await act_on(conn))


async def after_trial(bench: BillingBench, tenant: str = "acme") -> tuple[str, str]:
    """Give plan and state that a subscription is to have after its trial."""
    (row,) = await bench.rows(
        "SELECT p.name, s.state FROM subscription_phase s JOIN plan_version USING (plan_version_id)"
        " JOIN plan p USING (plan_id) JOIN tenant USING (tenant_id)"
        " WHERE wire_id = $1 ORDER BY starts_at DESC LIMIT 1",
        tenant,
    )
    return row["name"], row["state"]


async def test_a_trial_that_needs_a_card_first_begins_only_with_one(bench: BillingBench) -> None:
    """Refused by name for a payer without a payment method, in a call and in a catalogue; with one it begins."""
    await bench.apply(PLANS + TENANTS)
    with pytest.raises(InvalidFieldError, match=r"begins its trial.* only for a payer with a payment method"):
        await subscribe(bench, "card-first")
    asked = PLANS + TENANTS.replace("{id: acme}", "{id: acme, plan: card-first, billing_tenant: payer}")
    with pytest.raises(CatalogueInvalidError, match=r"tenants\[0\].plan: begins its trial.* only for a payer"):
        await bench.apply(asked)
    await profile(bench, "payer", BillingProfile(pays_by="bank transfer"))
    await bench.apply(asked)
    assert await after_trial(bench) == ("card-first", "active")
    # A payer that takes its word back has its tenant's trial end, also where a catalogue began it.
    await profile(bench, "payer", BillingProfile())
    assert await after_trial(bench) == ("card-first", "cancelled")


async def test_a_trial_that_is_over_when_it_is_entered_asks_at_once(bench: BillingBench) -> None:
    """Backdated to its last moment it ends as its plan says; beyond that it is refused without a payment method."""
    await bench.apply(PLANS + TENANTS)
    over = bench.start - 14 * DAY
    with pytest.raises(InvalidFieldError, match="goes on after one that is over, only for a payer with"):
        await subscribe(bench, "pro", start=over)
    dated = PLANS + TENANTS.replace("{id: acme}", f'{{id: acme, plan: pro, subscription: {{start: "{over}"}}}}')
    with pytest.raises(CatalogueInvalidError, match=r"tenants\[0\].plan: begins its trial, or goes on"):
        await bench.apply(dated)
    await subscribe(bench, "pro", "payer", start=over + timedelta(microseconds=1))
    assert await after_trial(bench, "payer") == ("free", "active")
    await profile(bench, "acme", BillingProfile(pays_by="bank transfer"))
    await bench.apply(dated)
    assert await after_trial(bench) == ("pro", "active")


async def test_a_catalogues_trials_ask_as_well(bench: BillingBench) -> None:
    """A subscription that a catalogue begins ends by its plan's word; applied again, nothing changes."""
    yaml = PLANS + TENANTS.replace("{id: acme}", "{id: acme, plan: pro}")
    await bench.apply(yaml)
    assert await after_trial(bench) == ("free", "active")
    assert {"unchanged"} == {change.action for change in await bench.apply(yaml)}
    newer = yaml.replace("days: 14, payment_method: at_end", "days: 7, payment_method: at_end")
    await bench.apply(newer.replace("plan: pro}", "plan: pro, plan_version: latest}"))
    assert await after_trial(bench) == ("free", "active")
    await profile(bench, "acme", BillingProfile(pays_by="bank transfer"))
    assert await after_trial(bench) == ("pro", "active")


async def test_limits_fall_back_when_the_trial_ends(bench: BillingBench) -> None:
    """Without a payment method the plan that was named is in force from the trial's end on, not a moment before."""
    await bench.apply(PLANS + TENANTS)
    await subscribe(bench, "pro")

    async def running() -> str:
        (row,) = await bench.rows(
            "SELECT p.name FROM subscription JOIN plan_version USING (plan_version_id) JOIN plan p USING (plan_id)"
        )
        return str(row["name"])

    await bench.set_now(bench.start + 14 * DAY - timedelta(microseconds=1))
    assert (await follow_due_phases(bench.billing), await running()) == (0, "pro")
    await bench.set_now(bench.start + 14 * DAY)
    assert (await follow_due_phases(bench.billing), await running()) == (1, "free")
    # Too late: what was decided by the end stays.
    await profile(bench, "acme", BillingProfile(pays_by="bank transfer"))
    assert (await trials.follow_astray(bench.billing), await trials.follow_astray(bench.billing)) == (0, 0)
    assert (await follow_due_phases(bench.billing), await running()) == (0, "free")


async def test_a_card_at_the_providers_page_counts_at_once(bench: BillingBench) -> None:
    """Its webhook, heard twice, keeps the plan in the transaction that keeps the card; removed, it falls back."""
    await bench.apply(PLANS + TENANTS)
    await subscribe(bench, "pro")
    await profile(bench, "acme", BillingProfile(provider=PROVIDER))
    payer_id = (await ids(bench))["acme"]
    async with open_shop(bench) as shop:
        await shop.pages.card_page(
            payer_id, name="Acme", kind="checkout", return_url="https://example.com/", request_id="1"
        )
        (customer,) = shop.fake.all("customers")
        assert await after_trial(bench) == ("free", "active")
        shop.fake.give_card(customer["id"])
        await shop.hear()
        await shop.hear()
        assert await after_trial(bench) == ("pro", "active")
        await shop.pages.remove_method(payer_id, request_id="2")
        assert await after_trial(bench) == ("free", "active")


async def test_a_card_and_its_removal_at_once_leave_what_is_true(bench: BillingBench) -> None:
    """However such changes and changes of the subscription interleave, the end says what the payer has at last."""
    await bench.apply(PLANS + TENANTS)
    await subscribe(bench, "pro")
    for words in ("bank transfer", ""):
        await asyncio.gather(
            *(profile(bench, "acme", BillingProfile(pays_by=said)) for said in ("x", "", "y", "", "z")),
            trials.follow_astray(bench.billing),
        )
        await profile(bench, "acme", BillingProfile(pays_by=words))
        assert await after_trial(bench) == ("pro" if words else "free", "active")
        rows = await bench.rows("SELECT count(*) AS phases FROM subscription_phase")
        assert [row["phases"] for row in rows] == [2]


async def test_another_payer_counts_within_a_look(bench: BillingBench) -> None:
    """Where a catalogue lets somebody else pay, the next look of the ledger finds that one's payment method."""
    await bench.apply(PLANS + TENANTS)
    await subscribe(bench, "pro")
    await profile(bench, "payer", BillingProfile(pays_by="bank transfer"))
    assert await after_trial(bench) == ("free", "active")
    await bench.apply(PLANS + TENANTS.replace("{id: acme}", "{id: acme, billing_tenant: payer}"))
    assert (await trials.follow_astray(bench.billing), await after_trial(bench)) == (1, ("pro", "active"))
    assert await trials.follow_astray(bench.billing) == 0


async def test_an_ended_subscriptions_trial_is_looked_at_no_more(bench: BillingBench) -> None:
    """Converted with a card, cancelled, the card removed: no look finds it again, and it hides no other trial."""
    await bench.apply(PLANS + TENANTS)
    await profile(bench, "acme", BillingProfile(pays_by="bank transfer"))
    await subscribe(bench, "pro")
    await bench.set_now(bench.start + 15 * DAY)
    await follow_due_phases(bench.billing)
    async with transaction(bench.billing) as conn:
        await cancel_subscription(conn, (await ids(bench))["acme"], at="now", act=await act_on(conn))
    await profile(bench, "acme", BillingProfile())
    assert (await trials.follow_astray(bench.billing), await trials.follow_astray(bench.billing)) == (0, 0)


async def test_a_trial_that_can_not_follow_holds_up_no_other(
    bench: BillingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look goes through all that are astray, whatever fails on the way, and says at last what failed."""
    names = [f"t{n}" for n in range(3)]
    tenants = "".join(f"  - {{id: {name}}}\n" for name in names)
    await bench.apply(PLANS + TENANTS + tenants)
    for name in names:
        await subscribe(bench, "pro", name)
    await profile(bench, "payer", BillingProfile(pays_by="bank transfer"))
    await bench.apply(PLANS + TENANTS + tenants.replace("}", ", billing_tenant: payer}"))
    known = await ids(bench)
    bad = min(known[name] for name in names)
    follow = trials.follow_methods

    async def fails(conn: Connection, tenant_ids: Sequence[UUID]) -> None:
        if bad in tenant_ids:
            raise LookupError("broken")
        await follow(conn, tenant_ids)

    monkeypatch.setattr(trials, "follow_methods", fails)
    monkeypatch.setattr(trials, "_AT_ONCE", 1)
    with pytest.raises(LookupError, match="broken"):
        await trials.follow_astray(bench.billing)
    plans = {name: (await after_trial(bench, name))[0] for name in names}
    assert plans == {name: "free" if known[name] == bad else "pro" for name in names}


@pytest.mark.parametrize(
    ("locale", "has_method", "words"),
    [
        ("en", False, "There is no payment method for it: it becomes free then."),
        ("en", True, "It goes on from then on and is charged."),
        ("de", False, "Die Probezeit von pro endet am"),
        ("fr", True, "Il continue ensuite et est facturé."),
    ],
)
async def test_who_is_on_trial_hears_of_its_end_once(
    bench: BillingBench, locale: str, words: str, *, has_method: bool
) -> None:
    """So many days before, by mail in the payer's language and by webhook, however often it is looked and changed."""
    await bench.apply(PLANS + TENANTS)
    said = BillingProfile(email="a@example.com", locale=locale, pays_by="bank transfer" if has_method else "")
    await profile(bench, "acme", said)
    await subscribe(bench, "pro")
    async with transaction(bench.billing) as conn:
        await add_webhook(conn, uuid.uuid4(), url="https://example.com/", only=None, secret="whsec_1")  # noqa: S106
    await bench.set_now(bench.start + 9 * DAY - timedelta(microseconds=1))
    assert await trials.tell_of_ends(bench.billing) == []
    await bench.set_now(bench.start + 9 * DAY)
    told = await asyncio.gather(*(trials.tell_of_ends(bench.billing) for _ in range(4)))
    assert [len(one) for one in told if one] == [1]
    await profile(bench, "acme", BillingProfile(email="a@example.com", pays_by="" if has_method else "cheque"))
    await profile(bench, "acme", said)
    assert await trials.tell_of_ends(bench.billing) == []
    (message,) = await bench.rows("SELECT body FROM webhook_message")
    heard = json.loads(message["body"])
    assert (
        heard["type"], heard["data"]["tenant"], heard["data"]["subject"], heard["data"]["base"], heard["data"]["value"],
    ) == ("trial.ending", "acme", "pro", "14", "9")  # fmt: skip
    assert heard["data"]["key_values"] == (["bill"] if has_method else ["fallback", "free"])
    assert heard["data"]["ends_at"] == (bench.start + 14 * DAY).isoformat()
    (queued,) = await bench.rows("SELECT recipient, stage FROM mail")
    assert queued["recipient"] == "a@example.com"
    async with transaction(bench.billing) as conn:
        mail = await mails.claim_mail(conn, now=bench.start + 1000 * DAY)
        assert mail is not None
        text = make_alert_message(mail, await read_alert(conn, mail.stage), sender="").get_content()
    assert words in text.replace("\r\n", "\n")


async def test_a_trial_that_ended_early_is_told_of_no_more(bench: BillingBench) -> None:
    """Nobody hears of the end of a trial that an operator ended, or that an apply began without days of notice."""
    quiet = PLANS.replace("notice_days: 5", "notice_days: 0")
    await bench.apply(quiet + TENANTS.replace("{id: acme}", "{id: acme, plan: pro}"))
    await bench.set_now(bench.start + 13 * DAY)
    assert await trials.tell_of_ends(bench.billing) == []
    await bench.rows("UPDATE subscription SET trial_notice_at = started_at")
    await bench.set_now(bench.start + 14 * DAY)
    await follow_due_phases(bench.billing)
    assert await trials.tell_of_ends(bench.billing) == []


async def test_another_plan_waits_where_the_next_phase_has_usage(bench: BillingBench) -> None:
    """Use of after the trial, recorded before its end by a clock that is ahead, is stamped: the plan moves after it."""
    await bench.apply(PLANS + TENANTS)
    await profile(bench, "acme", BillingProfile(pays_by="bank transfer"))
    await subscribe(bench, "pro")
    trial_end = bench.start + 14 * DAY
    await bench.set_now(trial_end - timedelta(minutes=1))
    ahead = use("ahead", trial_end + timedelta(seconds=30), tenant="acme", received=trial_end, messages=1)
    await bench.send(await bench.new_log(), ahead, watermark=trial_end, tenants=("acme",))

    async def change() -> None:
        async with transaction(bench.billing) as conn:
            await change_subscription(
                conn, (await ids(bench))["acme"], ChangeAsked(plan="free"), act=await act_on(conn)
            )

    with pytest.raises(InvalidFieldError, match="on recorded already"):
        await change()
    await bench.set_now(trial_end + timedelta(minutes=1))
    await change()
    assert await after_trial(bench) == ("free", "active")
