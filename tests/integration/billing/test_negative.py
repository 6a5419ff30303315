# ruff: noqa: SIM300 - expected first, then actual
"""Invoices below zero: more comes back than is charged; what the payer has then pays its next invoices."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from stripe_shop import BY_CARD, GRACE, HOUR, act_on, open_shop
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.services.invoice_verify import verify_invoice
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.pdf.render import render_pdf
from tollkeeper_ledger.services.profiles import add_invoice_item
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from uuid import UUID

    from billing_bench import BillingBench
    from stripe_shop import Shop

pytestmark = pytest.mark.asyncio


async def balance(bench: BillingBench) -> int:
    """Give what the ledger keeps for the payer, from the account; the journal must say the same, and sum to zero."""
    rows = await bench.rows("SELECT debit, credit, amount_minor FROM journal")
    accounts: dict[str, int] = {}
    for row in rows:
        accounts[row["debit"]] = accounts.get(row["debit"], 0) + row["amount_minor"]
        accounts[row["credit"]] = accounts.get(row["credit"], 0) - row["amount_minor"]
    assert 0 == sum(accounts.values())
    (account,) = await bench.rows("SELECT balance_minor FROM billing_account")
    assert -accounts.get("balance", 0) == account["balance_minor"]
    kept: int = account["balance_minor"]
    return kept


async def bill_below_zero(shop: Shop, provider: str) -> UUID:
    """Bill an hour's 23.80, then an hour with 50.00 of credit, both with 19 % tax: -35.70; give the second invoice."""
    await shop.bill(1, "code", profile=replace(BY_CARD, provider=provider))
    (tenant,) = await shop.bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    async with transaction(shop.bench.billing) as conn:
        await add_invoice_item(
            conn, tenant["tenant_id"], description="Outage", amount_minor=-5000, currency="USD", act=await act_on(conn)
        )
    await shop.bench.set_now(shop.bench.start + 2 * HOUR + GRACE)
    await shop.bench.run()
    (row,) = await shop.bench.rows("SELECT invoice_id FROM invoice WHERE total_minor = -3570")
    invoice_id: UUID = row["invoice_id"]
    return invoice_id


@pytest.mark.parametrize("provider", ["manual", "stripe"])
async def test_an_invoice_below_zero_becomes_a_balance_that_pays_the_next_ones(
    bench: BillingBench, provider: str
) -> None:
    """It is settled at once and goes to no provider; the next invoice is paid from it, the one after that in part.

    The provider is asked for exactly what is left; nobody can pay or credit an invoice below zero; it verifies, and has
    a PDF.
    """
    async with open_shop(bench) as shop:
        below = await bill_below_zero(shop, provider)
        assert [("finalised", 2380), ("paid", 0)] == await shop.standing()
        assert 3570 == await balance(bench)
        async with transaction(bench.billing) as conn:
            with pytest.raises(PreconditionError, match="nothing is due"):
                await pay_by_hand(conn, below, amount_minor=0, reference="x", act=await act_on(conn))
            with pytest.raises(PreconditionError, match="not credited yet"):
                await credit_invoice(conn, below, amount_minor=1, note="", refund=False, act=await act_on(conn))
        await bench.set_now(bench.start + 4 * HOUR + GRACE)
        await bench.run()
        assert [("finalised", 2380), ("paid", 0), ("paid", 0), ("finalised", 1190)] == await shop.standing()
        assert 0 == await balance(bench)
        await shop.work()
        asked = sorted(one["total"] for one in shop.fake.all("invoices"))
        assert ([1190, 2380] if provider == "stripe" else []) == asked
        async with connection(bench.billing) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            assert all(check.ok for check in await verify_invoice(conn, below))
        (row,) = await bench.rows("SELECT document, digest FROM invoice WHERE invoice_id = $1", below)
        pdf = await asyncio.to_thread(render_pdf, row["document"], digest=row["digest"], paper="a4")
        assert pdf.startswith(b"%PDF")


async def test_an_invoice_below_zero_is_void_only_while_its_balance_is_there(bench: BillingBench) -> None:
    """Void, the balance is gone again; once the balance has paid something, it can't be taken back."""
    async with open_shop(bench) as shop:
        below = await bill_below_zero(shop, "manual")
        await bench.set_now(bench.start + 3 * HOUR + GRACE)
        await bench.run()
        assert 3570 - 2380 == await balance(bench)
        async with transaction(bench.billing) as conn:
            with pytest.raises(PreconditionError, match="balance is only 1190"):
                await void_invoice(conn, below, note="", reissue=False, act=await act_on(conn))
        (paid,) = await bench.rows("SELECT invoice_id FROM receivable WHERE balance_minor = 2380")
        for invoice_id in (paid["invoice_id"], below):
            async with transaction(bench.billing) as conn:
                await void_invoice(conn, invoice_id, note="", reissue=False, act=await act_on(conn))
        assert 0 == await balance(bench)
