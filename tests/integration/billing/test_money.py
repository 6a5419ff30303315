# ruff: noqa: SIM300 - expected first, then actual
"""Invoices after they were made, on a real Postgres: paid, credited, voided, issued again; the journal balances."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from billing_bench import RUN, catalogue, superuser, use
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.errors import PreconditionError
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import finalise_draft, list_drafts, void_invoice
from tollkeeper_ledger.services.overrides import Act
from tollkeeper_ledger.services.profiles import add_invoice_item, set_profile
from tollkeeper_ledger.services.receivables import (
    credit_invoice,
    mark_past_due,
    pay_by_hand,
    write_off_invoice,
)
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio

HOUR = timedelta(hours=1)
GRACE = timedelta(minutes=5)
MILLION = 1_000_000
TAXED = BillingProfile(taxes=(TaxRate(name="VAT", percent="19"),), due_days=14)


async def act_on(conn: Connection) -> Act:
    """Give who does it now."""
    return Act(actor="test", request_id=uuid.uuid4().hex, now=await ledger_now(conn))


async def profile(bench: BillingBench, tenant: str, wanted: BillingProfile) -> None:
    """Set how a payer is billed."""
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = $1", tenant)
    async with transaction(bench.billing) as conn:
        await set_profile(conn, row["tenant_id"], wanted, act=await act_on(conn))


async def billed_hours(bench: BillingBench, hours: int, wanted: BillingProfile = TAXED) -> list[UUID]:
    """Bill tenant `code` for so many hours of a base fee and give the invoices in order."""
    await bench.apply(catalogue(bench.start, "code"))
    await profile(bench, "code", wanted)
    await bench.set_now(bench.start + hours * HOUR + GRACE)
    await bench.run()
    rows = await bench.rows("SELECT invoice_id FROM invoice ORDER BY period_start")
    return [row["invoice_id"] for row in rows]


async def state_and_due(bench: BillingBench, invoice_id: UUID) -> tuple[str, int]:
    """Give an invoice's state and what is due on it."""
    row = await receivable(bench, invoice_id)
    return row["state"], row["due_minor"]


async def receivable(bench: BillingBench, invoice_id: UUID) -> dict[str, Any]:
    """Give what became of an invoice."""
    (row,) = await bench.rows("SELECT * FROM receivable WHERE invoice_id = $1", invoice_id)
    return dict(row)


async def balances(bench: BillingBench) -> dict[str, int]:
    """Sum the journal by account, straight from its rows."""
    sums: dict[str, int] = {}
    for row in await bench.rows("SELECT debit, credit, amount_minor FROM journal"):
        sums[row["debit"]] = sums.get(row["debit"], 0) + row["amount_minor"]
        sums[row["credit"]] = sums.get(row["credit"], 0) - row["amount_minor"]
    return sums


async def check_books(bench: BillingBench) -> None:
    """Hold the journal against every table that says the same in its own way."""
    sums = await balances(bench)
    assert sum(sums.values()) == 0
    (due,) = await bench.rows("SELECT coalesce(sum(due_minor), 0)::bigint AS due FROM receivable WHERE state <> 'void'")
    (kept,) = await bench.rows("SELECT coalesce(sum(balance_minor), 0)::bigint AS kept FROM billing_account")
    (cash,) = await bench.rows(
        "SELECT ((SELECT coalesce(sum(amount_minor), 0) FROM payment)"
        " - (SELECT coalesce(sum(amount_minor), 0) FROM refund WHERE state <> 'failed'))::bigint AS cash"
    )
    assert (due["due"], -kept["kept"], cash["cash"]) == tuple(
        sums.get(account, 0) for account in ("receivable", "balance", "cash")
    )


async def test_an_invoice_is_taxed_paid_and_booked(bench: BillingBench) -> None:
    """20.00 and 19 % are booked as 23.80 due in 14 days; two transfers pay it; what was too much is kept."""
    (invoice_id,) = await billed_hours(bench, 1)
    row = await receivable(bench, invoice_id)
    assert ("finalised", 2000, 380, 2380) == tuple(
        row[name] for name in ("state", "subtotal_minor", "tax_minor", "due_minor")
    )
    assert row["due_at"] == bench.start + HOUR + GRACE + timedelta(days=14)
    assert await balances(bench) == {"receivable": 2380, "revenue": -2000, "tax": -380}
    async with transaction(bench.billing) as conn:
        await pay_by_hand(conn, invoice_id, amount_minor=1000, reference="bank 1", act=await act_on(conn))
    assert ("finalised", 1380) == await state_and_due(bench, invoice_id)
    async with transaction(bench.billing) as conn:
        await pay_by_hand(conn, invoice_id, amount_minor=1500, reference="bank 2", act=await act_on(conn))
    assert ("paid", 0) == await state_and_due(bench, invoice_id)
    assert await balances(bench) == {"receivable": 0, "revenue": -2000, "tax": -380, "cash": 2500, "balance": -120}
    with pytest.raises(PreconditionError, match="recorded before"):
        async with transaction(bench.billing) as conn:
            await pay_by_hand(conn, invoice_id, amount_minor=5, reference="bank 1", act=await act_on(conn))
    await check_books(bench)
    # The next invoice begins with what was kept.
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    await bench.run()
    (second,) = await bench.rows("SELECT r.* FROM receivable r WHERE invoice_id <> $1", invoice_id)
    assert (120, 2260) == (second["balance_minor"], second["due_minor"])
    await check_books(bench)


async def test_credit_notes_are_numbered_and_refunded(bench: BillingBench) -> None:
    """A credit of what was paid goes into the balance or back; credit notes have gapless numbers of their own."""
    first, second = await billed_hours(bench, 2)
    async with transaction(bench.billing) as conn:
        await pay_by_hand(conn, first, amount_minor=0, reference="a", act=await act_on(conn))
    made = []
    for invoice_id, amount, refund in ((first, 1190, True), (first, 190, False), (second, 2380, False)):
        async with transaction(bench.billing) as conn:
            made.append(
                await credit_invoice(
                    conn, invoice_id, amount_minor=amount, note="sorry", refund=refund, act=await act_on(conn)
                )
            )
    assert [("TK-CN-000001", 1190), ("TK-CN-000002", 0), ("TK-CN-000003", 0)] == [
        (one.number, one.refunded_minor) for one in made
    ]
    assert await balances(bench) == {
        "receivable": 0,
        "revenue": -(4000 - 1000 - 160 - 2000),
        "tax": -(760 - 190 - 30 - 380),
        "cash": 1190,
        "balance": -190,
    }
    for invoice_id, amount in ((first, 1001), (second, 1)):
        with pytest.raises(PreconditionError, match="not credited yet"):
            async with transaction(bench.billing) as conn:
                await credit_invoice(
                    conn, invoice_id, amount_minor=amount, note="", refund=False, act=await act_on(conn)
                )
    rows = await bench.rows("SELECT document, digest FROM credit_note ORDER BY serial")
    assert [1190, 190, 2380] == [json.loads(row["document"])["total_minor"] for row in rows]
    assert ["TK-000001", "TK-000001", "TK-000002"] == [json.loads(row["document"])["invoice"] for row in rows]
    await check_books(bench)


async def test_a_void_invoice_is_issued_again_once(bench: BillingBench) -> None:
    """The new one has the next number, the same usage and today's address and taxes; the old one's books are empty."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=3 * MILLION), watermark=bench.start + HOUR)
    await bench.run()
    (old,) = await bench.rows("SELECT invoice_id FROM invoice")
    await profile(bench, "code", TAXED)
    await bench.apply(catalogue(bench.start, "code").replace("{id: code,", "{id: code, address: [New street 2],"))
    async with transaction(bench.billing) as conn:
        made = await void_invoice(conn, old["invoice_id"], note="address", reissue=True, act=await act_on(conn))
    assert made is not None
    document = made.read()
    assert ("TK-000002", ["New street 2"], 2500, 475) == (
        document["number"], document["billing_tenant"]["address"], document["subtotal_minor"], document["tax_minor"],
    )  # fmt: skip
    assert ("finalised", "TK-000001") == (made.standing.state, made.standing.replaces)
    assert "TK-000001" == document["replaces"]
    assert ("void", {"receivable": 2975, "revenue": -2500, "tax": -475}) == (
        (await receivable(bench, old["invoice_id"]))["state"],
        await balances(bench),
    )
    with pytest.raises(PreconditionError, match="void already"):
        async with transaction(bench.billing) as conn:
            await void_invoice(conn, old["invoice_id"], note="", reissue=True, act=await act_on(conn))
    for invoice_id in (old["invoice_id"], made.invoice_id):
        async with transaction(bench.billing) as conn:
            made_again = await reproduce_invoice(conn, invoice_id, from_records=True)
            assert made_again.document == made_again.stored
            assert [] == [check for check in await verify_invoice(conn, invoice_id) if not check.ok]
    assert (await bench.run())[-1].due == 0
    await check_books(bench)


async def test_drafts_wait_and_items_are_on_the_next_invoice(bench: BillingBench) -> None:
    """With review nothing is numbered until it is finalised, by two at once only once; an item is billed once."""
    await bench.apply(catalogue(bench.start, "code"))
    await profile(bench, "code", BillingProfile(review=True))
    (tenant,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    async with transaction(bench.billing) as conn:
        await add_invoice_item(
            conn, tenant["tenant_id"], description="Setup", amount_minor=-500, currency="USD", act=await act_on(conn)
        )
    await bench.set_now(bench.start + 2 * HOUR + GRACE)
    await bench.run()
    async with transaction(bench.billing) as conn:
        drafts = await list_drafts(conn, only=None, count_max=10)
    assert [("draft", None, 1500), ("draft", None, 2000)] == [
        (draft["state"], draft["number"], draft["total_minor"]) for draft in drafts
    ]
    assert await bench.documents("code") == []

    async def finalise() -> str:
        async with transaction(bench.billing) as conn:
            made = await finalise_draft(conn, "code", period_start=None, run=RUN)
        number: str = made.read()["number"]
        return number

    assert ["TK-000001", "TK-000002"] == sorted(await asyncio.gather(finalise(), finalise()))
    assert [1500, 2000] == [document["total_minor"] for document in await bench.documents("code")]
    await check_books(bench)


async def test_an_invoice_is_due_when_it_says(bench: BillingBench) -> None:
    """The day is the document's, which is frozen when the period closes, whatever the payer's profile says by then."""
    await bench.apply(catalogue(bench.start, "code"))
    await profile(bench, "code", BillingProfile(review=True, due_days=10))
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.run()
    await profile(bench, "code", BillingProfile(review=True, due_days=40))
    async with transaction(bench.billing) as conn:
        made = await finalise_draft(conn, "code", period_start=None, run=RUN)
    assert 10 == made.read()["billing"]["due_days"]
    assert made.finalised_at + timedelta(days=10) == (await receivable(bench, made.invoice_id))["due_at"]


async def test_an_invoice_falls_past_due_and_is_given_up(bench: BillingBench) -> None:
    """On its day an open invoice is past due, a paid one not; written off it is a loss, and late money undoes that."""
    first, second = await billed_hours(bench, 2, BillingProfile(due_days=0))
    async with transaction(bench.billing) as conn:
        await pay_by_hand(conn, first, amount_minor=0, reference="a", act=await act_on(conn))
        assert await mark_past_due(conn, now=await ledger_now(conn)) == 1
        assert await mark_past_due(conn, now=await ledger_now(conn)) == 0
    assert ["paid", "past_due"] == [(await receivable(bench, one))["state"] for one in (first, second)]
    async with transaction(bench.billing) as conn:
        await write_off_invoice(conn, second, note="gone", act=await act_on(conn))
    assert (await balances(bench))["bad_debt"] == 2000
    await check_books(bench)
    async with transaction(bench.billing) as conn:
        await pay_by_hand(conn, second, amount_minor=0, reference="late", act=await act_on(conn))
    assert ("paid", 0) == ((await receivable(bench, second))["state"], (await balances(bench))["bad_debt"])
    await check_books(bench)


async def random_step(bench: BillingBench, chance: random.Random, invoices: list[UUID]) -> None:
    """Do one thing to one invoice; refusals are fine."""
    invoice_id, amount = chance.choice(invoices), chance.randrange(1, 1500)
    with contextlib.suppress(PreconditionError):
        async with transaction(bench.billing) as conn:
            act = await act_on(conn)
            step = chance.randrange(5)
            if step == 0:
                await pay_by_hand(conn, invoice_id, amount_minor=amount, reference=act.request_id, act=act)
            elif step == 1:
                await credit_invoice(
                    conn, invoice_id, amount_minor=amount, note="n", refund=chance.random() < 0.5, act=act
                )
            elif step == 2:
                await void_invoice(conn, invoice_id, note="v", reissue=chance.random() < 0.5, act=act)
            elif step == 3:
                await write_off_invoice(conn, invoice_id, note="w", act=act)
            else:
                await mark_past_due(conn, now=act.now)


KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'tollkeeper_billing' AND xact_start IS NOT NULL AND datname = current_database()"
)


@pytest.mark.parametrize("seed", range(3))
async def test_random_histories_keep_the_books(bench: BillingBench, seed: int) -> None:
    """Three at a time do random things to the same invoices while connections are killed: the books always agree."""
    invoices = await billed_hours(bench, 4)

    async def work(number: int) -> None:
        own = random.Random(seed * 100 + number)
        for _ in range(15):
            with contextlib.suppress(
                asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError
            ):
                await random_step(bench, own, invoices)
            if own.random() < 0.2:
                async with superuser(bench.url) as conn:
                    await conn.execute(KILL)

    await asyncio.gather(*(work(number) for number in range(3)))
    await check_books(bench)
    for table, prefix in (("invoice", "TK-"), ("credit_note", "TK-CN-")):
        rows = await bench.rows(f"SELECT serial, number FROM {table} ORDER BY serial")  # noqa: S608 - from above
        assert [(n, f"{prefix}{n:06d}") for n in range(1, len(rows) + 1)] == [tuple(row) for row in rows]
    for row in await bench.rows("SELECT invoice_id FROM invoice"):
        async with transaction(bench.billing) as conn:
            assert [] == [check for check in await verify_invoice(conn, row["invoice_id"]) if not check.ok]


TAMPERED = {
    "chain": "UPDATE usage_chain SET stored = stored + 1 WHERE position = 1",
    "usage": "UPDATE billing_close SET inputs = convert_to(replace(convert_from(inputs, 'UTF8'), '\"units\":3000000',"
    " '\"units\":2900000'), 'UTF8')",
    "charges": "UPDATE invoice_line SET amount_minor = amount_minor + 1 WHERE line = 2",
    "total": "UPDATE invoice SET total_minor = total_minor + 1, tax_minor = tax_minor + 1",
    "journal": "DELETE FROM journal WHERE kind = 'invoice'",
}


@pytest.mark.parametrize("check", TAMPERED)
async def test_a_change_behind_the_ledgers_back_is_named(bench: BillingBench, check: str) -> None:
    """Each of chain, usage, charges, total, journal shows the change that was made to it and holds before it."""
    await bench.apply(catalogue(bench.start, "code"))
    log = await bench.new_log()
    await bench.set_now(bench.start + HOUR + GRACE)
    await bench.send(log, use("a", bench.start, context_tokens=3 * MILLION), watermark=bench.start + HOUR)
    await bench.run()
    (row,) = await bench.rows("SELECT invoice_id FROM invoice")

    async def failed() -> dict[str, str]:
        async with transaction(bench.billing) as conn:
            return {one.name: one.detail for one in await verify_invoice(conn, row["invoice_id"]) if not one.ok}

    assert await failed() == {}
    table = TAMPERED[check].replace("DELETE FROM", "UPDATE").split()[1]
    async with superuser(bench.url) as conn:
        await conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER; {TAMPERED[check]}")
    found = await failed()
    assert next(iter(found)) == check, found
