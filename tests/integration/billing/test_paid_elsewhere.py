# ruff: noqa: SIM300 - expected first, then actual
"""Money that comes or goes beside the provider that collects an invoice: it never takes or sends it a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from billing_bench import catalogue
from stripe_shop import GRACE, HOUR, SINCE, Shop, act_on, open_shop
from tollkeeper_ledger.domain.billing_profile import BillingProfile
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand
from tollkeeper_ledger.services.reconciling import reconcile
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from billing_bench import BillingBench

pytestmark = pytest.mark.asyncio

SUSPENDED = BillingProfile(provider="stripe", dunning_policy="suspend", dunning_days=(1,))


@pytest_asyncio.fixture
async def shop(bench: BillingBench) -> AsyncIterator[Shop]:
    """Give a shop whose provider tells the truth."""
    async with open_shop(bench) as opened:
        yield opened


async def by_hand(shop: Shop, invoice_id: UUID, amount_minor: int = 0) -> None:
    """Record a bank transfer; 0 = what is due."""
    async with transaction(shop.bench.billing) as conn:
        act = await act_on(conn)
        await pay_by_hand(conn, invoice_id, amount_minor=amount_minor, reference=f"bank {amount_minor}", act=act)


async def credit(shop: Shop, invoice_id: UUID, amount_minor: int, *, refund: bool) -> None:
    """Credit a part of an invoice."""
    async with transaction(shop.bench.billing) as conn:
        act = await act_on(conn)
        await credit_invoice(conn, invoice_id, amount_minor=amount_minor, note="", refund=refund, act=act)


async def enter_card(shop: Shop, *, declined: bool = False) -> None:
    """Have the one payer enter a card, and let everybody hear of it."""
    shop.fake.give_card(shop.fake.all("customers")[0]["id"], declined=declined)
    await shop.hear()
    await shop.work()


async def told(shop: Shop, statement: str) -> list[tuple[object, ...]]:
    """Give what Postgres has."""
    return [tuple(row) for row in await shop.bench.rows(statement)]


async def test_what_was_paid_in_part_by_hand_is_not_charged_again(shop: Shop) -> None:
    """10.00 of 23.80 come by bank: the card is charged 13.80, and no balance is left over."""
    (invoice_id,) = await shop.bill(1, "code")
    await shop.work()
    await by_hand(shop, invoice_id, 1000)
    await enter_card(shop)
    assert [("paid", 0)] == await shop.standing()
    payments = await told(shop, "SELECT provider, amount_minor FROM payment ORDER BY provider")
    assert [("manual", 1000), ("stripe", 1380)] == payments
    assert [(0,)] == await told(shop, "SELECT balance_minor FROM billing_account")
    assert {"done"} == {state for *_, state in await shop.jobs()}
    assert (1, []) == await reconcile(shop.bench.billing, shop.stripe, since=SINCE)


async def test_what_was_credited_before_it_was_collected_is_not_charged(shop: Shop) -> None:
    """A credit note comes before the provider has heard of the invoice: a card that is there pays what is left."""
    await shop.bill(1, "code")
    await shop.work()
    await enter_card(shop)
    _, second = await shop.bill(2, "code")
    await credit(shop, second, 380, refund=False)
    await shop.work()
    assert [("paid", 0), ("paid", 0)] == await shop.standing()
    assert [(2380,), (2000,)] == await told(shop, "SELECT amount_minor FROM payment ORDER BY received_at")
    assert {"done"} == {state for *_, state in await shop.jobs()}
    assert (2, []) == await reconcile(shop.bench.billing, shop.stripe, since=SINCE)


async def test_a_transfer_after_the_last_try_closes_the_page_and_lifts_the_suspension(shop: Shop) -> None:
    """Nobody is to pay again on the provider's page what came by bank, nor to stay suspended for it."""
    (invoice_id,) = await shop.bill(1, "code", profile=SUSPENDED)
    await shop.work()
    await enter_card(shop, declined=True)
    assert [("suspended",)] == await told(shop, "SELECT state FROM tenant WHERE wire_id = 'code'")
    await by_hand(shop, invoice_id)
    await shop.work()
    assert [("active",)] == await told(shop, "SELECT state FROM tenant WHERE wire_id = 'code'")
    assert [("paid", True)] == [(one["status"], one["paid_out_of_band"]) for one in shop.fake.all("invoices")]
    assert [("collect", "pay", "done")] == await shop.jobs()


async def test_a_suspension_for_two_invoices_ends_when_both_are_paid(shop: Shop) -> None:
    """Each was tried to the last: the first that is paid leaves the tenant suspended for the other."""
    await shop.bill(2, "code", profile=SUSPENDED)
    await shop.work()
    await enter_card(shop, declined=True)
    for invoice, state in zip(shop.fake.all("invoices"), ("suspended", "active"), strict=True):
        shop.fake.pay_on_page(invoice["id"])
        await shop.hear()
        assert [(state,)] == await told(shop, "SELECT state FROM tenant WHERE wire_id = 'code'")


async def test_a_currency_that_the_provider_counts_otherwise_is_not_collected(shop: Shop) -> None:
    """An Icelandic crown is 1 minor unit here and 100 there: nothing is asked for, and the job says why."""
    crowns = catalogue(shop.bench.start, "code").replace("currency: USD", "currency: ISK")
    await shop.bench.apply(crowns)
    async with transaction(shop.bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
        await set_profile(conn, tenant_id, BillingProfile(provider="stripe"), act=await act_on(conn))
    await shop.bench.set_now(shop.bench.start + HOUR + GRACE)
    await shop.bench.run()
    await shop.work()
    assert [("ISK", 20)] == await told(shop, "SELECT currency, total_minor FROM invoice")
    ((state, error),) = await told(shop, "SELECT state, error FROM provider_job")
    assert ("failed", True) == (state, str(error).startswith("the provider counts ISK in other units"))
    assert [] == shop.fake.log


@pytest.mark.parametrize(
    ("by_bank", "credited", "expected"),
    [
        (2380, 1000, [("manual", 1000)]),
        (1000, 2380, [("manual", 1000), ("stripe", 1380)]),
        (1000, 1380, [("stripe", 1380)]),
    ],
)
async def test_money_goes_back_the_way_it_came(
    shop: Shop, by_bank: int, credited: int, expected: list[tuple[str, int]]
) -> None:
    """The provider sends back no more than it took; what came by bank is the operator's to send."""
    (invoice_id,) = await shop.bill(1, "code")
    await shop.work()
    await by_hand(shop, invoice_id, by_bank)
    await enter_card(shop)
    await credit(shop, invoice_id, credited, refund=True)
    await shop.work()
    assert expected == await told(shop, "SELECT provider, amount_minor FROM refund ORDER BY provider")
    assert [("succeeded",)] == await told(shop, "SELECT DISTINCT state FROM refund")
    sent = [amount for provider, amount in expected if provider == "stripe"]
    assert sent == [one["amount"] for one in shop.fake.all("refunds")]
    books = "SELECT r.refunded_minor, a.balance_minor FROM receivable r, billing_account a"
    assert [(credited, 0)] == await told(shop, books)


async def test_a_refund_that_can_not_be_sent_is_the_payers_again(shop: Shop) -> None:
    """The payment is unknown at the provider by then: the refund has failed, and its money is in the balance."""
    (invoice_id,) = await shop.bill(1, "code")
    await shop.work()
    await enter_card(shop)
    await credit(shop, invoice_id, 1000, refund=True)
    await shop.bench.rows("UPDATE provider_job SET facts = facts - 'payment' WHERE kind = 'collect'")
    await shop.work()
    assert [("failed", 1000)] == await told(shop, "SELECT state, amount_minor FROM refund")
    books = "SELECT r.refunded_minor, a.balance_minor FROM receivable r, billing_account a"
    assert [(0, 1000)] == await told(shop, books)
