# ruff: noqa: SIM300, S106 - expected first, then actual; a secret of a fake
"""The ledger is the truth, the provider follows: exactly once, to the cent, whatever the network does."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import structlog
from billing_bench import catalogue, use
from stripe_shop import SINCE, Shop, act_on, open_shop
from tollkeeper_cli.main import main
from tollkeeper_ledger.app import running
from tollkeeper_ledger.domain.billing_profile import BillingProfile
from tollkeeper_ledger.payments.signature import UntrustedError
from tollkeeper_ledger.payments.stripe_http import StripeHttp
from tollkeeper_ledger.rpc.admin_subscriptions import STATES
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand
from tollkeeper_ledger.services.reconciling import Nightly, reconcile
from tollkeeper_ledger.services.subscription_changes import ChangeAsked, change_subscription
from tollkeeper_ledger.services.subscriptions import FIRST, list_subscriptions
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from billing_bench import BillingBench
    from tollkeeper_ledger.config import Settings

pytestmark = pytest.mark.asyncio

INVOICES = int(os.environ.get("STRIPE_INVOICES", "100"))


@pytest_asyncio.fixture
async def shop(bench: BillingBench) -> AsyncIterator[Shop]:
    """Give a shop whose provider tells the truth."""
    async with open_shop(bench) as opened:
        yield opened


async def test_an_invoice_is_collected_by_card(shop: Shop) -> None:
    """Draft, lines, read-back, finalise; without a card it waits with a page; a card that is entered pays it."""
    (invoice_id,) = await shop.bill(1, "code")
    await shop.work()
    (said,) = shop.fake.all("invoices")
    assert ("open", 2380, "usd", "TK-000001", False) == tuple(
        said[name] for name in ("status", "total", "currency", "number", "auto_advance")
    )
    assert [("Invoice TK-000001", 2000), ("VAT", 380)] == [tuple(line.values()) for line in said["lines"]["data"]]
    assert [("collect", "pay", "waiting")] == await shop.jobs()
    (payer,) = await shop.bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    page = [
        await shop.pages.card_page(
            payer["tenant_id"], name="Code", kind="checkout", return_url="https://example.com/back", request_id="r"
        )
        for _ in range(2)
    ]
    assert page[0] == page[1]
    assert 1 == len(shop.fake.all("customers"))
    shop.fake.complete(page[0].rpartition("/")[2])
    await shop.hear()
    await shop.work()
    assert [("paid", 0)] == await shop.standing()
    assert [("collect", "pay", "done")] == await shop.jobs()
    (payment,) = await shop.bench.rows("SELECT provider, amount_minor, invoice_id FROM payment")
    assert ("stripe", 2380, invoice_id) == tuple(payment)
    await shop.pages.remove_method(payer["tenant_id"], request_id="x")
    (account,) = await shop.bench.rows("SELECT method, method_label FROM provider_account")
    assert ("", "") == tuple(account)
    assert (1, []) == await reconcile(shop.bench.billing, shop.stripe, since=SINCE)


async def test_exactly_once_to_the_cent_at_30_percent_faults(bench: BillingBench) -> None:
    """409, 429, stored 500s, cut connections before and after the effect: every invoice once, cents equal, paid once.

    `make stripe-faults` does it with 10,000 invoices.
    """
    async with open_shop(bench, seed=7, rate=0.3, at_once=8) as shop:
        fake = shop.fake
        per_tenant = 10
        names = [f"t{n}" for n in range(max(1, INVOICES // per_tenant))]
        await shop.bill(per_tenant, *names)
        await shop.work(workers=3)
        for customer in fake.all("customers"):
            fake.give_card(customer["id"])
        fake.rate = 0.0
        await shop.hear()
        fake.rate = 0.3
        await shop.work(workers=3)
        fake.rate = 0.0
        rows = await bench.rows("SELECT invoice_id, total_minor, number FROM invoice")
        ours = {str(row["invoice_id"]): (row["total_minor"], row["number"]) for row in rows}
        assert len(names) * per_tenant == len(ours)
        said = fake.all("invoices")
        assert len(ours) == len(said)
        assert ours == {one["metadata"]["tollkeeper_invoice"]: (one["total"], one["number"]) for one in said}
        assert len(names) == len(fake.all("customers"))
        assert {"paid"} == {one["status"] for one in said}
        assert {("paid", 0)} == set(await shop.standing())
        (paid,) = await bench.rows("SELECT count(*) AS payments, sum(amount_minor)::bigint AS paid FROM payment")
        assert (len(ours), sum(total for total, _ in ours.values())) == tuple(paid)
        assert all(fake.met.get(fault, 0) > 0 for fault in fake.faults)
        assert (len(ours), []) == await reconcile(bench.billing, shop.stripe, since=SINCE)


@pytest.mark.parametrize("fault", ["cut-after", "500-after", "500-before", "cut-before"])
async def test_a_worker_that_was_down_25_hours_makes_nothing_twice(shop: Shop, fault: str) -> None:
    """Every step meets the fault once, then the worker is down until the provider has forgotten the key."""
    await shop.bill(1, "code")
    shop.fake.faults = (fault,)
    for _ in range(40):
        shop.fake.rate = 1.0
        posts = sum(1 for method, *_ in shop.fake.log if method != "GET")
        while sum(1 for method, *_ in shop.fake.log if method != "GET") == posts:
            if not await shop.collector.run_once():
                break
            shop.fake.rate = 1.0 if shop.fake.log and shop.fake.log[-1][0] == "GET" and shop.fake.rate == 0 else 0.0
        shop.fake.rate = 0.0
        shop.clock.pass_(timedelta(hours=25))
        if [("collect", "pay", "waiting")] == await shop.jobs():
            break
    await shop.work()
    assert (1, 1) == (len(shop.fake.all("customers")), len(shop.fake.all("invoices")))
    assert ("open", 2380) == tuple(shop.fake.all("invoices")[0][name] for name in ("status", "total"))


async def test_a_total_that_differs_is_discarded_and_named(shop: Shop) -> None:
    """Read back a cent off: the draft is deleted, the job fails with both totals, reconciliation names the invoice."""
    shop.fake.wrong_total = 1
    await shop.bill(1, "code")
    await shop.work()
    assert [] == shop.fake.all("invoices")
    (job,) = await shop.bench.rows("SELECT state, error FROM provider_job")
    assert ("failed", "the provider's total is 2381 USD, the ledger's 2380 USD") == tuple(job)
    _, found = await reconcile(shop.bench.billing, shop.stripe, since=SINCE)
    assert ["TK-000001"] == [one.invoice for one in found]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("mark", ("past_due", "active")),
        ("suspend", ("past_due", "suspended")),
        ("uncollectible", ("uncollectible", "active")),
        ("fallback", ("past_due", "active")),
    ],
)
async def test_dunning_tries_on_its_days_and_then_does_its_policy(
    shop: Shop, policy: str, expected: tuple[str, str]
) -> None:
    """A declined card is tried on days 1, 3, 5, 7 after the first failure, then the policy; late money undoes all."""
    fallback = "free" if policy == "fallback" else ""
    profile = BillingProfile(provider="stripe", dunning_policy=policy, fallback_plan=fallback)
    await shop.bill(1, "code", profile=profile)
    await shop.work()
    (customer,) = shop.fake.all("customers")
    shop.fake.give_card(customer["id"], declined=True)
    await shop.hear()
    first = shop.clock()
    await shop.collector.run_all()
    tries = [0]
    for day in range(1, 12):
        shop.clock.at = first + timedelta(days=day)
        before = len(shop.fake.log)
        await shop.collector.run_all()
        if any(target.endswith("/pay") for _, target, *_ in shop.fake.log[before:]):
            tries.append(day)
    assert [0, 1, 3, 5, 7] == tries
    (tenant,) = await shop.bench.rows("SELECT state FROM tenant WHERE wire_id = 'code'")
    assert expected == ((await shop.standing())[0][0], tenant["state"])
    overdue = "active" if policy == "uncollectible" else "past_due"
    assert (fallback or "hourly", overdue) == await plan_of(shop)
    shop.fake.pay_on_page(shop.fake.all("invoices")[0]["id"])
    await shop.hear()
    (tenant,) = await shop.bench.rows("SELECT state FROM tenant WHERE wire_id = 'code'")
    assert (("paid", 0), "active") == ((await shop.standing())[0], tenant["state"])
    assert ("hourly", "active") == await plan_of(shop)


async def plan_of(shop: Shop) -> tuple[str, str]:
    """Give plan and state of the one subscription; the filter by its state finds it, the others don't."""
    async with transaction(shop.bench.billing) as conn:
        now = await ledger_now(conn)
        found = {
            state: await list_subscriptions(conn, after=FIRST, count_max=9, only=None, now=now, state=state)
            for state in (None, *STATES)
        }
    (view,) = found[None]
    assert {view.state: [view]} == {state: views for state, views in found.items() if state and views}
    return view.plan, view.state


async def fall_back_twice(shop: Shop) -> None:
    """Bill two hours to a card that is declined until all tries are over, which moves the tenant to `free`."""
    profile = BillingProfile(provider="stripe", dunning_policy="fallback", fallback_plan="free")
    await shop.bill(2, "code", profile=profile)
    await shop.work()
    (customer,) = shop.fake.all("customers")
    shop.fake.give_card(customer["id"], declined=True)
    await shop.hear()
    first = shop.clock()
    for day in range(12):
        shop.clock.at = first + timedelta(days=day)
        await shop.collector.run_all()
    for extra in (", plan_version: latest", ""):
        # Applied as before, the catalogue neither moves it back nor is it refused.
        applied = await shop.bench.apply(catalogue(shop.bench.start, "code", extra=extra))
        assert {"unchanged"} == {one.action for one in applied}
    assert ("free", "past_due") == await plan_of(shop)
    assert [("past_due", 2000), ("past_due", 2000)] == await shop.standing()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_the_last_late_payment_moves_a_tenant_back(shop: Shop, order: tuple[int, int]) -> None:
    """Two invoices are unpaid after their last tries: the plan comes back when both are paid, in any order, once."""
    await fall_back_twice(shop)
    invoices = shop.fake.all("invoices")
    shop.fake.pay_on_page(invoices[order[0]]["id"])
    await shop.hear()
    assert ("free", "past_due") == await plan_of(shop)
    shop.fake.pay_on_page(invoices[order[1]]["id"])
    for event in shop.fake.events:
        # Repeated as another event: the second one must find nothing left to do.
        for name in (event["id"], f"{event['id']}-again"):
            header, body = shop.fake.signed({**event, "id": name})
            await shop.events.receive(header=header, body=body)
    assert ("hourly", "active") == await plan_of(shop)
    back = await shop.bench.rows("SELECT 1 FROM audit_log WHERE actor = 'dunning' AND request_id LIKE '%/paid'")
    assert 1 == len(back)


async def unpaid_with_usage_ahead(shop: Shop) -> datetime:
    """Have all tries fail while a plan that follows has usage of a producer whose clock is ahead; give when it follows.

    The tenant can't be moved to `free` before that.
    """
    profile = BillingProfile(provider="stripe", dunning_policy="fallback", dunning_days=(1,), fallback_plan="free")
    await shop.bill(1, "code", profile=profile)
    await shop.work()
    follows = shop.bench.start + timedelta(hours=2)
    other = catalogue(shop.bench.start, "code").replace(
        "tenants:\n", "  - {name: other, billing_interval: hour}\ntenants:\n"
    )
    await shop.bench.apply(other)
    async with transaction(shop.bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
        await change_subscription(conn, tenant_id, ChangeAsked(plan="other", at="period_end"), act=await act_on(conn))
    await shop.bench.set_now(follows - timedelta(minutes=1))
    ahead = use("ahead", follows + timedelta(seconds=30), tenant="code", received=follows, context_tokens=1)
    await shop.bench.send(await shop.bench.new_log(), ahead, watermark=follows, tenants=("code",))
    shop.fake.give_card(shop.fake.all("customers")[0]["id"], declined=True)
    await shop.hear()
    await shop.collector.run_all()
    shop.clock.pass_(timedelta(days=1))
    await shop.collector.run_all()
    assert ("hourly", "past_due") == await plan_of(shop)
    (job,) = await shop.bench.rows("SELECT failures, error FROM provider_job")
    assert (2, 1) == (job["failures"], job["error"].count("not moved to free: plan: has usage"))
    return follows


def tries_of(shop: Shop) -> int:
    """Count the tries to charge a card."""
    return sum(target.endswith("/pay") for _, target, *_ in shop.fake.log)


async def test_who_can_not_be_moved_yet_is_moved_later(shop: Shop) -> None:
    """Each hour it is tried again, without another charge; then the tenant is moved, once, and late money undoes it."""
    follows = await unpaid_with_usage_ahead(shop)
    for _ in range(3):
        shop.clock.pass_(timedelta(hours=1))
        await shop.collector.run_all()
    assert ("hourly", "past_due") == await plan_of(shop)
    await shop.bench.set_now(follows + timedelta(minutes=1))
    shop.clock.pass_(timedelta(minutes=59))
    await shop.collector.run_all()
    assert ("hourly", "past_due") == await plan_of(shop)
    shop.clock.pass_(timedelta(minutes=1))
    await shop.work()
    assert (("free", "past_due"), 2) == (await plan_of(shop), tries_of(shop))
    (job,) = await shop.bench.rows("SELECT state, error FROM provider_job")
    assert ("waiting", False) == (job["state"], "not moved" in job["error"])
    moves = await shop.bench.rows("SELECT FROM audit_log WHERE actor = 'dunning' AND subject = 'subscription'")
    assert 1 == len(moves)
    shop.fake.pay_on_page(shop.fake.all("invoices")[0]["id"])
    await shop.hear()
    assert ("other", "active") == await plan_of(shop)


async def test_a_card_that_comes_before_the_move_is_charged(shop: Shop) -> None:
    """It is tried at once, not in an hour, and nobody is moved any more."""
    follows = await unpaid_with_usage_ahead(shop)
    shop.fake.give_card(shop.fake.all("customers")[0]["id"])
    await shop.hear()
    await shop.collector.run_all()
    assert [("paid", 0)] == await shop.standing()
    await shop.bench.set_now(follows + timedelta(minutes=1))
    await shop.work()
    assert [("collect", "pay", "done")] == await shop.jobs()
    assert [] == await shop.bench.rows("SELECT FROM audit_log WHERE actor = 'dunning' AND subject = 'subscription'")


async def test_who_was_moved_on_by_an_operator_is_not_moved_back(shop: Shop) -> None:
    """The tenant was moved from the fallback plan to another one meanwhile: late payments leave it there."""
    await fall_back_twice(shop)
    moved = catalogue(shop.bench.start, "code", plan="other", extra=", plan_version: latest")
    await shop.bench.apply(moved.replace("tenants:\n", "  - {name: other, billing_interval: hour}\ntenants:\n"))
    async with transaction(shop.bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
        await change_subscription(conn, tenant_id, ChangeAsked(plan="other"), act=await act_on(conn))
    for invoice in shop.fake.all("invoices"):
        shop.fake.pay_on_page(invoice["id"])
    await shop.hear()
    assert ("other", "active") == await plan_of(shop)
    assert {("paid", 0)} == set(await shop.standing())


async def test_events_repeated_reordered_late_and_forged(shop: Shop) -> None:
    """Every order and repeat leaves the same books; a wrong secret, time, mode, account or body changes nothing."""
    await shop.bill(1, "code")
    await shop.work()
    shop.fake.pay_on_page(shop.fake.all("invoices")[0]["id"])
    for event in [*reversed(shop.fake.events), *shop.fake.events, *shop.fake.events]:
        shop.clock.pass_(timedelta(hours=1))
        header, body = shop.fake.signed(event)
        await shop.events.receive(header=header, body=body)
    assert [("paid", 0)] == await shop.standing()
    (count,) = await shop.bench.rows("SELECT (SELECT count(*) FROM payment), (SELECT count(*) FROM provider_event)")
    assert (1, len(shop.fake.events)) == tuple(count)
    event = {**shop.fake.events[-1], "id": "evt_forged"}
    header, body = shop.fake.signed(event)
    wrong = [
        (shop.fake.signed(event, secret="other")[0], body),
        (shop.fake.signed(event, at=shop.clock() - timedelta(seconds=301))[0], body),
        (shop.fake.signed(event, at=shop.clock() + timedelta(seconds=301))[0], body),
        (header, body + b" "),
        (header.replace("v1", "v0"), body),
        ("", body),
        shop.fake.signed({**event, "livemode": True}),
        shop.fake.signed({**event, "account": "acct_other"}),
        shop.fake.signed({"id": "evt"}),
    ]
    for bad_header, bad_body in wrong:
        with pytest.raises(UntrustedError):
            await shop.events.receive(header=bad_header, body=bad_body)
    assert [] == await shop.bench.rows("SELECT FROM provider_event WHERE event_id = 'evt_forged'")


async def test_the_provider_follows_voids_credits_and_refunds(shop: Shop) -> None:
    """A void, a credit and a transfer before payment, and a refund after it, are at the provider what they are here."""
    voided, credited, by_hand, paid = await shop.bill(4, "code")
    await shop.work()
    async with transaction(shop.bench.billing) as conn:
        act = await act_on(conn)
        await void_invoice(conn, voided, note="", reissue=False, act=act)
        await credit_invoice(conn, credited, amount_minor=380, note="", refund=False, act=act)
        await pay_by_hand(conn, by_hand, amount_minor=0, reference="bank", act=act)
    await shop.work()
    (customer,) = shop.fake.all("customers")
    shop.fake.give_card(customer["id"])
    await shop.hear()
    await shop.work()
    async with transaction(shop.bench.billing) as conn:
        await credit_invoice(conn, paid, amount_minor=1000, note="", refund=True, act=await act_on(conn))
    await shop.work()
    said = {one["number"]: one for one in shop.fake.all("invoices")}
    assert [("void", 0), ("paid", 2000), ("paid", 2380), ("paid", 2380)] == [
        (said[number]["status"], said[number]["amount_paid"]) for number in sorted(said)
    ]
    assert [False, False, True, False] == [said[number]["paid_out_of_band"] for number in sorted(said)]
    assert [1000] == [one["amount"] for one in shop.fake.all("refunds")]
    assert [("void", 2380), ("paid", 0), ("paid", 0), ("paid", 0)] == await shop.standing()
    assert {"done"} == {state for *_, state in await shop.jobs()}
    (refund,) = await shop.bench.rows("SELECT state, provider FROM refund")
    assert ("succeeded", "stripe") == tuple(refund)
    assert (4, []) == await reconcile(shop.bench.billing, shop.stripe, since=SINCE)


async def test_reconciliation_names_every_difference(shop: Shop) -> None:
    """Lost, doubled, strange, otherwise priced, paid unheard of: each is named, nothing else is."""
    await shop.bill(5, "code")
    await shop.work()
    objects = shop.fake.objects["invoices"]
    by_number = {one["number"]: name for name, one in objects.items()}
    del objects[by_number["TK-000001"]]
    objects["in_double"] = {**objects[by_number["TK-000002"]], "id": "in_double"}
    objects[by_number["TK-000003"]]["total"] += 1
    shop.fake.pay_on_page(by_number["TK-000004"])
    objects["in_stranger"] = {
        **objects[by_number["TK-000005"]], "id": "in_stranger", "metadata": {"tollkeeper_invoice": str(uuid.uuid4())},
    }  # fmt: skip
    compared, found = await reconcile(shop.bench.billing, shop.stripe, since=SINCE)
    assert (5, Counter(["TK-000001", "TK-000002", "TK-000003", "TK-000004", "in_stranger"])) == (
        compared,
        Counter(one.invoice for one in found),
    )


async def test_what_is_paid_there_without_money_is_named(shop: Shop) -> None:
    """Less than the provider charges is `paid` there and due here: the night says so; so is what it has given up."""
    shop.fake.charged_min = 10_000
    await shop.bill(1, "code")
    await shop.work()
    assert ("paid", 0) == tuple(shop.fake.all("invoices")[0][name] for name in ("status", "amount_paid"))
    assert [("finalised", 2380)] == await shop.standing()
    _, found = await reconcile(shop.bench.billing, shop.stripe, since=SINCE)
    assert [("TK-000001", "paid at the provider without a payment, 2380 due here")] == [
        (one.invoice, one.problem) for one in found
    ]
    (name,) = shop.fake.objects["invoices"]
    shop.fake.objects["invoices"][name]["status"] = "uncollectible"
    _, found = await reconcile(shop.bench.billing, shop.stripe, since=SINCE)
    assert ["finalised here, uncollectible at the provider"] == [one.problem for one in found]


async def test_every_night_is_compared_once_and_kept(
    shop: Shop, ledger_settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two runners compare once; a night that failed is kept and tried again; the command names what differs, exit 1."""
    shop.clock.at = shop.bench.start
    await shop.bill(2, "code")
    await shop.work()
    now = [shop.bench.start + timedelta(hours=8)]
    nightly = Nightly(shop.bench.billing, shop.stripe, lambda: now[0], structlog.wrap_logger(structlog.ReturnLogger()))
    assert [False, True] == sorted(await asyncio.gather(nightly.reconcile(), nightly.reconcile()))
    lost = next(name for name, one in shop.fake.objects["invoices"].items() if one["number"] == "TK-000001")
    del shop.fake.objects["invoices"][lost]
    now[0] += timedelta(hours=1)
    assert not await nightly.reconcile()
    now[0] += timedelta(hours=23)
    assert await nightly.reconcile()
    now[0] += timedelta(hours=24)
    nowhere = StripeHttp.connect("http://127.0.0.1:1", api_key="none")
    away = Nightly(shop.bench.billing, nowhere, lambda: now[0], structlog.wrap_logger(structlog.ReturnLogger()))
    assert [True, True] == [await away.reconcile(), await away.reconcile()]
    await nowhere.aclose()
    async with running(ledger_settings.model_copy(update={"database_url": shop.bench.url})) as ledger:
        code = await asyncio.to_thread(
            main, ["--ledger", f"127.0.0.1:{ledger.port}", "payment", "reconciliations", "-o", "json"]
        )
    rows = json.loads(capfd.readouterr().out)
    assert 1 == code
    assert [("", 0), ("", 0), ("TK-000001", 2), ("", 2)] == [(row["invoice"], row["compared"]) for row in rows]
    assert [True, True, True, False] == [bool(row["problem"]) for row in rows]
    assert rows[2]["problem"].startswith("not at the provider")
