# ruff: noqa: SIM300 - expected first, then actual
"""What is taken back after its period was billed: the invoice stands, the next one gives the money back."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from billing_bench import amounts, catalogue, use
from stripe_shop import act_on
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.prepaid import CouponAsked, add_coupon_to
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from billing_bench import BillingBench

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
MILLION = 1_000_000


@pytest.mark.asyncio
async def test_a_void_after_the_close_is_given_back_on_the_next_invoice(bench: BillingBench) -> None:
    """A record voided in its own period is not billed; one voided later is a negative line that names its period."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    middle = bench.start + HOUR / 2

    async def void(name: str) -> None:
        async with transaction(bench.ingest_pool) as conn:
            now = await ledger_now(conn)
            done = await void_usage(conn, bench.ingest, uuid.UUID(int=5), tenant="code", ids=[name], now=now)
            assert done == (1, 0)

    uses = [
        use("kept", middle, context_tokens=2 * MILLION),
        use("later", middle, context_tokens=3 * MILLION),
        use("at-once", middle, context_tokens=50 * MILLION),
    ]
    await bench.set_now(middle + timedelta(minutes=1))
    await bench.send(log, *uses, watermark=bench.start)
    await void("at-once")
    for hour in (1, 2):
        await bench.set_now(bench.start + hour * HOUR + GRACE)
        await bench.send(
            log, use(f"mark-{hour}", bench.start + hour * HOUR, context_tokens=0), watermark=bench.start + hour * HOUR
        )
        await bench.run()
        if hour == 1:
            first = await bench.documents("code")
            await void("later")
    documents = await bench.documents("code")
    assert documents[0] == first[0]
    assert amounts(documents[0])["context_tokens"] == 4 * 250
    (late,) = [line for line in documents[1]["lines"] if line["late"]]
    assert (late["amount_minor"], late["quantity"]) == (-3 * 250, -3 * MILLION)


@pytest.mark.asyncio
async def test_usage_taken_back_is_given_back_as_it_was_paid(bench: BillingBench) -> None:
    """4 million tokens are 10.00 beside 20.00; half was off once, at 19 %: 5.00 and 0.95 were paid for them.

    3 million taken back give 7.50 back, less 3.75, with 0.71 of tax, though today's tax is 25 % and no coupon is left.
    Of an invoice that is void nothing comes back. The invoices verify and are made again from raw records.
    """
    await bench.apply(catalogue(bench.start, "code", "conv"))
    async with transaction(bench.billing) as conn:
        ids = await find_tenant_ids(conn, ["code", "conv"])
        act = await act_on(conn)
        half = CouponAsked(name="Half", percent=Decimal(50), amount_minor=None, periods=1)
        await add_coupon_to(conn, ids["code"], half, act, new_id=uuid.uuid4)
        await set_profile(conn, ids["code"], BillingProfile(taxes=(TaxRate("VAT", "19"),)), act=act)
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    uses = [
        use(f"{name}-{tenant}", bench.start, tenant=tenant, context_tokens=millions * MILLION)
        for tenant in ids
        for name, millions in (("kept", 2), ("later", 3))
    ]
    await bench.send(log, *uses, watermark=bench.start + HOUR)
    await bench.run()
    (void,) = await bench.rows("SELECT invoice_id FROM invoice JOIN tenant USING (tenant_id) WHERE wire_id = 'conv'")
    async with transaction(bench.billing) as conn:
        act = await act_on(conn)
        await void_invoice(conn, void["invoice_id"], note="", reissue=False, act=act)
        await set_profile(conn, ids["code"], BillingProfile(taxes=(TaxRate("VAT", "25"),)), act=act)
    for number, tenant in enumerate(ids):
        async with transaction(bench.ingest_pool) as conn:
            now, request = await ledger_now(conn), uuid.UUID(int=5 + number)
            assert (1, 0) == await void_usage(
                conn, bench.ingest, request, tenant=tenant, ids=[f"later-{tenant}"], now=now
            )
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    await bench.send(log, watermark=bench.start + 2 * HOUR)
    await bench.run()
    first, second = await bench.documents("code")
    assert (1_500, 285) == (first["subtotal_minor"], first["tax_minor"])
    (late,) = [line for line in second["lines"] if line["late"]]
    assert (-750, -375, "19", -71) == (
        late["amount_minor"], late["discount_minor"], late["tax"]["percent"], late["tax"]["tax_minor"],
    )  # fmt: skip
    assert 2_000 + 500 - 375 - 71 == second["total_minor"]
    assert [3_000, 2_000] == [document["total_minor"] for document in await bench.documents("conv")]
    for row in await bench.rows("SELECT invoice_id FROM invoice"):
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
            made = await reproduce_invoice(conn, row["invoice_id"], from_records=True)
            assert made.stored == made.document


@pytest.mark.asyncio
async def test_usage_taken_back_bit_by_bit_gives_back_all_once(bench: BillingBench) -> None:
    """2 million tokens, 5.00, cost half with a coupon; 2 million late ones the whole. All go back, on three invoices.

    The first two take the coupon's 2.50 and the tax with them, the third gives back the late ones at their price.
    """
    await bench.apply(catalogue(bench.start, "code"))
    async with transaction(bench.billing) as conn:
        tenant_id = (await find_tenant_ids(conn, ["code"]))["code"]
        act = await act_on(conn)
        half = CouponAsked(name="Half", percent=Decimal(50), amount_minor=None, periods=1)
        await add_coupon_to(conn, tenant_id, half, act, new_id=uuid.uuid4)
        await set_profile(conn, tenant_id, BillingProfile(taxes=(TaxRate("VAT", "19"),)), act=act)
    log = await bench.new_log()
    sent = {
        1: [use(name, bench.start, context_tokens=MILLION) for name in ("kept", "one", "two")],
        2: [use("late", bench.start, context_tokens=2 * MILLION)],
    }
    for hour, name in enumerate(("", "", "one", "two", "late"), start=1):
        await bench.set_now(bench.start + hour * HOUR + GRACE)
        if name:
            async with transaction(bench.ingest_pool) as conn:
                now, request = await ledger_now(conn), uuid.UUID(int=hour)
                assert (1, 0) == await void_usage(conn, bench.ingest, request, tenant="code", ids=[name], now=now)
        await bench.send(log, *sent.get(hour, ()), watermark=bench.start + hour * HOUR)
        await bench.run()
    lines = [
        (line["amount_minor"], line["discount_minor"], line["tax"]["tax_minor"])
        for document in await bench.documents("code")
        for line in document["lines"]
        if line["meter"]
    ]
    assert [(500, 250), (500, 0), (-250, -125), (-250, -125), (-500, 0)] == [line[:2] for line in lines]
    assert (0, 0) == (lines[0][2] + lines[2][2] + lines[3][2], lines[1][2] + lines[4][2])
    for row in await bench.rows("SELECT invoice_id FROM invoice"):
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]
            made = await reproduce_invoice(conn, row["invoice_id"], from_records=True)
            assert made.stored == made.document
