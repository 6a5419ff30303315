# ruff: noqa: SIM300 - expected first, then actual
"""Void invoices give coupons' and grants' use back, once; what replaces one uses the same."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from billing_bench import catalogue, use
from stripe_shop import GRACE, HOUR, act_on
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.prepaid import CouponAsked, GrantAsked, add_coupon_to, create_grant
from tollkeeper_ledger.services.profiles import add_invoice_item, set_profile
from tollkeeper_ledger.services.subscription_changes import cancel_subscription
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from uuid import UUID

    from billing_bench import BillingBench
    from usage_support import Log

pytestmark = pytest.mark.asyncio

MILLION = 1_000_000


async def prepare(bench: BillingBench) -> tuple[UUID, Log]:
    """Give a tenant two coupons of 10 %, one for two invoices, 10.00 of credit and 2 million tokens, and bill an hour.

    5 million tokens, 1 of them included and 2 granted: 2 x 2.50 and 20.00 of fee, less a tenth and a tenth of the rest,
    are 20.25; 10.00 of it are paid with credit.
    """
    await bench.apply(catalogue(bench.start, "code"))
    async with transaction(bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
        act = await act_on(conn)
        for name, periods in (("once", 2), ("always", None)):
            coupon = CouponAsked(name=name, percent=Decimal(10), amount_minor=None, periods=periods)
            await add_coupon_to(conn, tenant_id, coupon, act, new_id=uuid.uuid4)
        for meter, currency, amount in (("context_tokens", "", 2 * MILLION), ("", "USD", 1_000)):
            grant = GrantAsked(
                name=meter or "credit", meter=meter, currency=currency, amount=amount, priority=0, expires_at=None,
                recurs=False, rollover_max=0,
            )  # fmt: skip
            await create_grant(conn, tenant_id, grant, act, new_id=uuid.uuid4)
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=5 * MILLION), watermark=bench.start + HOUR)
    await bench.run()
    (row,) = await bench.rows("SELECT invoice_id FROM invoice")
    invoice_id: UUID = row["invoice_id"]
    return invoice_id, log


async def standing(bench: BillingBench) -> dict[str, Any]:
    """Give what is left of every coupon and grant; each grant's movements must add up to its balances."""
    coupons = await bench.rows("SELECT name, periods_left FROM subscription_coupon")
    entries = await bench.rows(
        "SELECT name, e.amount, e.balance FROM prepaid_entry e JOIN prepaid_grant USING (grant_id) ORDER BY entry_id"
    )
    left: dict[str, Any] = {}
    for entry in entries:
        assert entry["balance"] == left.get(entry["name"], 0) + entry["amount"]
        left[entry["name"]] = entry["balance"]
    return {**left, **{coupon["name"]: coupon["periods_left"] for coupon in coupons}}


async def void(bench: BillingBench, invoice_id: UUID, *, reissue: bool) -> UUID | None:
    """Void an invoice; give what replaces it."""
    async with transaction(bench.billing) as conn:
        made = await void_invoice(conn, invoice_id, note="", reissue=reissue, act=await act_on(conn))
    return None if made is None else made.invoice_id


async def test_void_invoices_give_back_coupons_and_grants(bench: BillingBench) -> None:
    """Used; issued again: used as before; that one void for good: all is back, once; the books are empty.

    The next hour uses them anew. Every invoice verifies and is made again from raw records.
    """
    first, log = await prepare(bench)
    (sums,) = await bench.rows("SELECT total_minor FROM invoice")
    assert 1_025 == sums["total_minor"]
    used = {"context_tokens": 0, "credit": 0, "once": 1, "always": None}
    assert used == await standing(bench)
    second = await void(bench, first, reissue=True)
    assert second is not None
    assert used == await standing(bench)
    assert await void(bench, second, reissue=False) is None
    back = {"context_tokens": 2 * MILLION, "credit": 1_000, "once": 2, "always": None}
    assert back == await standing(bench)
    with pytest.raises(PreconditionError, match="void already"):
        await void(bench, second, reissue=False)
    assert back == await standing(bench)
    (books,) = await bench.rows(
        "SELECT sum(CASE WHEN debit = 'revenue' THEN amount_minor WHEN credit = 'revenue' THEN -amount_minor END) "
        "AS left FROM journal"
    )
    assert 0 == books["left"]
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    await bench.send(log, watermark=bench.start + 2 * HOUR)
    await bench.run()
    assert {**back, "credit": 0, "once": 1} == await standing(bench)
    for row in await bench.rows("SELECT invoice_id FROM invoice"):
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
            made = await reproduce_invoice(conn, row["invoice_id"], from_records=True)
            assert made.stored == made.document


async def test_what_was_given_back_is_not_void_before(bench: BillingBench) -> None:
    """A fee in advance whose unused share a later invoice gives back stays: void for good, or taxed otherwise since.

    Once the later one is void, it may be. So what nobody paid is given back to nobody.
    """
    ahead = "name: base, timing: advance, amount"
    await bench.apply(catalogue(bench.start, "code").replace("name: base, amount", ahead))
    await bench.run()
    async with transaction(bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
    await bench.set_now(bench.start + HOUR / 2)
    async with transaction(bench.billing) as conn:
        await cancel_subscription(conn, tenant_id, at="now", act=await act_on(conn))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("code",))
    await bench.run()
    assert [2_000, -1_000] == [document["total_minor"] for document in await bench.documents("code")]
    opening, closing = [row["invoice_id"] for row in await bench.rows("SELECT invoice_id FROM invoice ORDER BY serial")]
    with pytest.raises(PreconditionError, match="gives back some of its fees in advance"):
        await void(bench, opening, reissue=False)
    async with transaction(bench.billing) as conn:
        profile = BillingProfile(taxes=(TaxRate("VAT", "19"),))
        await set_profile(conn, tenant_id, profile, act=await act_on(conn))
    with pytest.raises(PreconditionError, match="gives back some of its fees in advance"):
        await void(bench, opening, reissue=True)
    await void(bench, closing, reissue=False)
    await void(bench, opening, reissue=True)
    assert [2_000, -1_000, 2_380] == [document["total_minor"] for document in await bench.documents("code")]


async def test_usage_that_was_given_back_is_not_void_before(bench: BillingBench) -> None:
    """3 million tokens, 5.00 of them billed, are taken back on the hour after next: the first invoice stays till then.

    Once the later one is void, it may be void: what nobody paid is given back to nobody.
    """
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("later", bench.start, context_tokens=3 * MILLION), watermark=bench.start + HOUR)
    await bench.run()
    for hour in (2, 3):
        if hour == 3:
            async with transaction(bench.ingest_pool) as conn:
                now, request = await ledger_now(conn), uuid.UUID(int=5)
                done = await void_usage(conn, bench.ingest, request, tenant="code", ids=["later"], now=now)
                assert (1, 0) == done
        await bench.set_now(bench.start + hour * HOUR + GRACE)
        await bench.send(log, watermark=bench.start + hour * HOUR)
        await bench.run()
    assert [2_500, 2_000, 1_500] == [document["total_minor"] for document in await bench.documents("code")]
    first, second, third = [
        row["invoice_id"] for row in await bench.rows("SELECT invoice_id FROM invoice ORDER BY serial")
    ]
    with pytest.raises(PreconditionError, match="gives back some of its usage"):
        await void(bench, first, reissue=False)
    await void(bench, second, reissue=False)
    await void(bench, third, reissue=False)
    await void(bench, first, reissue=False)
    assert ["void"] * 3 == [row["state"] for row in await bench.rows("SELECT state FROM receivable")]


async def test_what_no_invoice_would_take_is_refused(bench: BillingBench) -> None:
    """In another currency than a tenant pays in, without a subscription, or after its last invoice it would wait.

    Until then an item is taken, after the end as well, and the last invoice has it.
    """
    await bench.apply(catalogue(bench.start, "code") + "  - {id: bare}\n")
    async with transaction(bench.billing) as conn:
        ids = await find_tenant_ids(conn, ["code", "bare"])

    async def give(kind: str, tenant: str, currency: str = "USD") -> None:
        async with transaction(bench.billing) as conn:
            act = await act_on(conn)
            if kind == "item":
                await add_invoice_item(
                    conn, ids[tenant], description="Setup", amount_minor=700, currency=currency, act=act
                )
                return
            grant = GrantAsked(
                name="g", meter="context_tokens" if kind == "units" else "",
                currency="" if kind == "units" else currency, amount=500, priority=0, expires_at=None, recurs=False,
                rollover_max=0,
            )  # fmt: skip
            await create_grant(conn, ids[tenant], grant, act, new_id=uuid.uuid4)

    for kind in ("item", "credit"):
        with pytest.raises(InvalidFieldError, match="currency: is not what the tenant's invoices are in") as refused:
            await give(kind, "code", "EUR")
        assert ("EUR", "USD") == (refused.value.metadata["value"], refused.value.metadata["bound"])
    for kind in ("item", "credit", "units"):
        with pytest.raises(UnknownNameError, match="no such subscription: 'bare'"):
            await give(kind, "bare")
    await bench.set_now(bench.start + HOUR / 2)
    async with transaction(bench.billing) as conn:
        await cancel_subscription(conn, ids["code"], at="now", act=await act_on(conn))
    await give("item", "code")
    # A grant pays for what is used after it was given.
    for kind in ("credit", "units"):
        with pytest.raises(UnknownNameError, match="no such subscription: 'code'"):
            await give(kind, "code")
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("code",))
    await bench.run()
    # Half of 20.00 and the item.
    assert [1_700] == [document["total_minor"] for document in await bench.documents("code")]
    for kind in ("item", "credit", "units"):
        with pytest.raises(UnknownNameError, match="no such subscription: 'code'"):
            await give(kind, "code")
    (left,) = await bench.rows("SELECT (SELECT count(*) FROM invoice_item) + (SELECT count(*) FROM prepaid_grant) AS n")
    assert 1 == left["n"]


async def test_items_of_a_void_invoice_are_billed_by_the_next(bench: BillingBench) -> None:
    """Issued again: the new one has them. Void for good: they wait, once, and the next hour's invoice has them."""
    await bench.apply(catalogue(bench.start, "code"))
    async with transaction(bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
        await add_invoice_item(
            conn, tenant_id, description="Setup", amount_minor=700, currency="USD", act=await act_on(conn)
        )
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, watermark=bench.start + HOUR, tenants=("code",))
    await bench.run()
    (row,) = await bench.rows("SELECT invoice_id FROM invoice")
    second = await void(bench, row["invoice_id"], reissue=True)
    assert second is not None
    await void(bench, second, reissue=False)
    await bench.set_now(bench.start + 3 * HOUR + GRACE)
    await bench.send(log, watermark=bench.start + 3 * HOUR, tenants=("code",))
    await bench.run()
    found = [document["total_minor"] for document in await bench.documents("code")]
    assert [2_700, 2_700, 2_700, 2_000] == found
    for row in await bench.rows("SELECT invoice_id FROM invoice"):
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
