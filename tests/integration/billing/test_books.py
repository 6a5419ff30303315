# ruff: noqa: SIM300 - expected first, then actual
"""What moved for invoices, changed behind the ledger's back: `invoice verify` tells of every field and every row."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from billing_bench import catalogue, superuser
from stripe_shop import act_on
from tollkeeper_ledger.domain.billing_profile import BillingProfile, TaxRate
from tollkeeper_ledger.domain.booked import BOOKED
from tollkeeper_ledger.domain.errors import UnknownNameError
from tollkeeper_ledger.services.disputes import dispute_said
from tollkeeper_ledger.services.invoice_verify import verify_invoice
from tollkeeper_ledger.services.invoices import void_invoice
from tollkeeper_ledger.services.profiles import set_profile
from tollkeeper_ledger.services.provider_payments import refund_ended
from tollkeeper_ledger.services.receivables import credit_invoice, pay_by_hand, write_off_invoice
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from billing_bench import BillingBench
    from tollkeeper_ledger.store.pool import Connection

pytestmark = pytest.mark.asyncio
HOUR = timedelta(hours=1)
THOROUGH = int(os.environ.get("TAMPERINGS", "500")) > 500
"""Every word in every column that has some only; else one, in turns."""
TAXED = BillingProfile(taxes=(TaxRate(name="VAT", percent="19"),))
TABLES = ("invoice", "receivable", "journal", "payment", "refund", "dispute", "credit_note", "billing_account")

NOT_HELD = {
    # Names that nothing else has, and times of the last change.
    *("journal.transfer_id", "payment.payment_id", "credit_note.credit_note_id", "receivable.changed_at"),
    # What only the provider can say.
    *("refund.provider", "dispute.provider", "dispute.reason", "dispute.status", "dispute.evidence_by"),
    *("dispute.opened_at", "dispute.changed_at"),
    # Another row of the same name is another tenant's.
    *("billing_account.tenant_id", "billing_account.seller_id", "billing_account.currency"),
    # When an open invoice became past due, and when it was taken back, given up, or disputed.
    *(f"journal.at {kind}" for kind in ("void", "write_off", "dispute", "dispute_won", "dispute_lost", "dispute_fee")),
    "journal.at refund_failed",
    # Nothing is booked of a warning.
    *(f"dispute.{name} warned" for name in ("tenant_id", "dispute_id", "invoice_id", "amount_minor", "currency")),
}
"""Columns with nothing that they could be held against."""
WORDS = {
    "kind": ["invoice", "balance", "payment", "refund", "write_off", "credit_note", "gift"],
    "debit": ["receivable", "revenue", "tax", "cash", "balance", "bad_debt", "disputed", "fees"],
    "credit": ["receivable", "revenue", "tax", "cash", "balance", "bad_debt", "disputed", "fees"],
    "state": ["paid", "past_due", "uncollectible", "void", "failed", "succeeded"],
    "stage": ["warned", "open", "won", "lost"],
}
"""Columns that have some words only."""
SAME: list[set[str]] = [*({word} for words in WORDS.values() for word in words), {"finalised", "past_due"}]
"""Words that are the same, or of which nothing else says which holds: whether an open invoice's day has come."""
CHANGED = {
    "text": "{0} || 'x'",
    "bigint": "{0} + 1",
    "integer": "{0} + 1",
    "timestamp with time zone": "{0} + interval '1 second'",
    "uuid": "gen_random_uuid()",
    "bytea": "set_byte({0}, length({0}) / 2, get_byte({0}, length({0}) / 2) # 1)",
}
REFUSED = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)


async def fill(bench: BillingBench) -> list[UUID]:
    """Bill five hours and have every kind of transfer; give the invoices."""
    await bench.apply(catalogue(bench.start, "code"))
    (row,) = await bench.rows("SELECT tenant_id FROM tenant WHERE wire_id = 'code'")
    async with transaction(bench.billing) as conn:
        await set_profile(conn, row["tenant_id"], TAXED, act=await act_on(conn))
    await bench.set_now(bench.start + 5 * HOUR + timedelta(minutes=5))
    await bench.run()
    ids: list[UUID] = [row["invoice_id"] for row in await bench.rows("SELECT invoice_id FROM invoice ORDER BY serial")]
    async with transaction(bench.billing) as conn:
        act = await act_on(conn)
        await pay_by_hand(conn, ids[0], amount_minor=3_000, reference="more", act=act)
        await credit_invoice(conn, ids[0], amount_minor=500, note="sorry", refund=True, act=act)
        await credit_invoice(conn, ids[0], amount_minor=700, note="again", refund=False, act=act)
        failed = await credit_invoice(conn, ids[0], amount_minor=100, note="back", refund=True, act=act)
        assert failed.refund_id is not None
        await conn.execute("UPDATE refund SET state = 'pending' WHERE refund_id = $1", failed.refund_id)
        await refund_ended(conn, failed.refund_id, state="failed")
        await pay_by_hand(conn, ids[1], amount_minor=1_000, reference="half", act=act)
        await write_off_invoice(conn, ids[1], note="gone", act=act)
        for number, status in enumerate(("lost", "needs_response", "won", "warning_needs_response")):
            fees = [{"fee": 15, "currency": "usd"}] * (number < 2)
            said = {"id": f"dp_{number}", "amount": 300, "currency": "usd", "status": status}
            said |= {"reason": "fraudulent", "balance_transactions": fees}
            await dispute_said(conn, ids[1], said, provider="stripe", now=act.now, log=None)
        await pay_by_hand(conn, ids[1], amount_minor=200, reference="late", act=act)
        await void_invoice(conn, ids[2], note="wrong", reissue=True, act=act)
        await void_invoice(conn, ids[3], note="wrong", reissue=False, act=act)
        await pay_by_hand(conn, ids[4], amount_minor=5_000, reference="much", act=act)
        said = {"id": "dp_all", "amount": 3_000, "currency": "usd", "status": "lost"}
        await dispute_said(conn, ids[4], said, provider="stripe", now=act.now, log=None)
    return [row["invoice_id"] for row in await bench.rows("SELECT invoice_id FROM invoice ORDER BY serial")]


async def told(conn: Connection, invoices: list[UUID]) -> list[str]:
    """Give what is wrong with invoices."""
    found = []
    for invoice in invoices:
        try:
            found += [f"{check.name}: {check.detail}" for check in await verify_invoice(conn, invoice) if not check.ok]
        except UnknownNameError as error:
            found.append(str(error))
    return found


async def changes(conn: Connection) -> AsyncIterator[tuple[str, str, UUID | None]]:
    """Give statements that each change one field or take or double one row: with what they change, of which invoice."""
    for table in TABLES:
        columns = await conn.fetch(
            "SELECT attname AS name, format_type(atttypid, NULL) AS kind FROM pg_attribute"
            " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
            table,
        )
        for turn, row in enumerate(await conn.fetch(f"SELECT ctid::text AS place, * FROM {table} ORDER BY ctid")):  # noqa: S608
            here, of = f"WHERE ctid = '{row['place']}'", row.get("invoice_id")
            for column in columns:
                name = column["name"]
                of_kind = row["kind"] if table == "journal" else row["stage"] if table == "dispute" else ""
                if {f"{table}.{name}", f"{table}.{name} {of_kind}"} & NOT_HELD or row[name] is None:
                    continue
                values = [f"'{word}'" for word in WORDS.get(name, []) if {word, row[name]} not in SAME]
                if values and not THOROUGH:
                    values = [values[turn % len(values)]]
                for value in values or [CHANGED[column["kind"]].format(name)]:
                    also = ", digest = sha256(" + value + ")" if name == "document" else ""
                    yield f"UPDATE {table} SET {name} = {value}{also} {here}", f"{table}.{name}", of  # noqa: S608
            if table in ("receivable", "journal", "payment", "refund", "credit_note"):
                yield f"DELETE FROM {table} {here}", table, of  # noqa: S608
            if table == "journal":
                others = ", ".join(column["name"] for column in columns if column["name"] != "transfer_id")
                doubled = f"SELECT gen_random_uuid(), {others} FROM journal {here}"  # noqa: S608
                yield f"INSERT INTO journal (transfer_id, {others}) {doubled}", table, of


async def test_every_field_of_the_books_is_held_against_another(bench: BillingBench) -> None:
    """Any field of invoices, transfers, payments, refunds, disputes, credit notes, any such row less or twice: told.

    But for names and times that stand in one place only.
    """
    invoices = await fill(bench)
    kinds = {row["kind"] for row in await bench.rows("SELECT DISTINCT kind FROM journal")}
    assert kinds == {kind for kind, _, _ in BOOKED} - {"dispute_fee_back"}
    unseen: list[str] = []
    tried: set[str] = set()
    async with superuser(bench.url) as conn:
        async with conn.transaction():
            assert [] == await told(conn, invoices)
        async for statement, what, of in changes(conn):
            undone = conn.transaction()
            await undone.start()
            await conn.execute("SET LOCAL session_replication_role = replica")
            try:
                async with conn.transaction():
                    await conn.execute(statement)
            except REFUSED:
                pass
            else:
                tried.add(what)
                if not await told(conn, invoices if of is None else [of]):
                    unseen.append(statement)
            await undone.rollback()
    assert [] == unseen
    assert len(tried) > 70
