"""Hold an invoice's transfers against everything that says the same: what it owes, payments, refunds, credit notes."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain import receivable as owed
from tollkeeper_ledger.domain.booked import what_differs
from tollkeeper_ledger.domain.credit_note import credit_note_document
from tollkeeper_ledger.domain.invoice import document_to_bytes
from tollkeeper_ledger.domain.receivable import Account, Receivable, RefusedError, Transfer
from tollkeeper_ledger.store import verifying
from tollkeeper_ledger.store.money import receivable_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection, Row
    from tollkeeper_ledger.store.verifying import Books

_PAID = frozenset({"payment", "overpayment"})
_DISPUTED = frozenset({"dispute", "dispute_won", "dispute_lost"})
_FEES = frozenset({"dispute_fee", "dispute_fee_back"})


async def wrong_in_books(
    conn: Connection, invoice_id: UUID, *, invoice: Row, document: bytes, due_after: timedelta
) -> tuple[str, Receivable]:
    """Say what is wrong first about what moved for an invoice; empty where all agrees. Give what it owes, too.

    `document` is the invoice's own, `due_after` how long after it was finalised it is due. Raises `UNREADABLE`.
    """
    books = await verifying.read_books(conn, invoice_id, payer_id=invoice["billing_tenant_id"])
    receivable = receivable_of(books.receivable)
    owner = (invoice["billing_tenant_id"], invoice["currency"])
    row = books.receivable
    if (row["tenant_id"], row["payer_tenant_id"]) != (invoice["tenant_id"], owner[0]):
        return "what it owes is another tenant's", receivable
    if row["due_at"] != invoice["finalised_at"] + due_after:
        return f"it is due at {row['due_at']}, not as it says", receivable
    moved_by = (*owner, invoice["seller_id"])
    strange = [one for one in books.transfers if (one["tenant_id"], one["currency"], one["seller_id"]) != moved_by]
    if strange:
        return f"{len(strange)} transfers are of another payer, currency or seller", receivable
    wrong = (
        what_differs(receivable, map(_transfer, books.transfers))
        or _wrong_payments(books, owner)
        or _wrong_refunds(books, owner)
        or _wrong_disputes(books, owner)
        or _wrong_credit_notes(books, invoice, document)
        or _wrong_subjects(books, invoice)
    )
    if not wrong:
        balances = await verifying.read_balances(conn, *owner, seller_id=invoice["seller_id"])
        if balances["kept_minor"] != balances["moved_minor"]:
            return f"its payer's balance is {balances['kept_minor']}, moved were {balances['moved_minor']}", receivable
    return wrong, receivable


def _transfer(row: Row) -> Transfer:
    return Transfer(row["kind"], Account(row["debit"]), Account(row["credit"]), row["amount_minor"])


def _moved(books: Books, kinds: frozenset[str]) -> dict[tuple[Any, ...], int]:
    """Sum transfers of some kinds by subject and time."""
    sums: dict[tuple[Any, ...], int] = defaultdict(int)
    for one in books.transfers:
        if one["kind"] in kinds:
            sums[one["subject"], one["at"]] += one["amount_minor"]
    return dict(sums)


def _amounts(rows: Sequence[Row], owner: tuple[Any, ...]) -> dict[tuple[Any, ...], int]:
    """Give amounts by subject and time; of rows of another payer or currency by that as well, as nothing moves."""
    amounts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        own = (row["tenant_id"], row["currency"])
        amounts[(row["subject"], row["at"], *(() if own == owner else own))] = row["amount_minor"]
    return amounts


def _wrong_payments(books: Books, owner: tuple[Any, ...]) -> str:
    paid, moved = _amounts(books.payments, owner), _moved(books, _PAID)
    return "" if paid == moved else f"its payments are not what was booked of them: {_first(paid, moved)}"


def _wrong_refunds(books: Books, owner: tuple[Any, ...]) -> str:
    sent, moved = _amounts(books.refunds, owner), _moved(books, frozenset({"refund"}))
    if sent != moved:
        return f"its refunds are not what was booked of them: {_first(sent, moved)}"
    failed = {one["subject"]: one["amount_minor"] for one in books.refunds if one["failed"]}
    back = {subject: minor for (subject, _), minor in _moved(books, frozenset({"refund_failed"})).items()}
    return "" if failed == back else f"refunds that failed are not what came back: {_first(failed, back)}"


def _first(said: dict[Any, int], moved: dict[Any, int]) -> str:
    """Name the first subject of which two sides say different amounts."""
    wrong = [subject for subject in [*said, *moved] if said.get(subject) != moved.get(subject)]
    name = wrong[0][0] if isinstance(wrong[0], tuple) else wrong[0]
    return f"{name} is {said.get(wrong[0], 'none')}, booked is {moved.get(wrong[0], 'none')}"


def _wrong_disputes(books: Books, owner: tuple[Any, ...]) -> str:
    """Hold disputes against what the payer's bank holds back and gave back, and what the provider kept."""
    moved: dict[str, dict[tuple[Account, Account], int]] = defaultdict(lambda: defaultdict(int))
    for one in books.transfers:
        if one["kind"] in _DISPUTED | _FEES:
            moved[one["subject"]][Account(one["debit"]), Account(one["credit"])] += one["amount_minor"]
    for one in books.disputes:
        of_it = moved.pop(one["subject"], {})
        held = of_it.get((Account.DISPUTED, Account.CASH), 0)
        won = of_it.get((Account.CASH, Account.DISPUTED), 0)
        lost = sum(minor for (_, credit), minor in of_it.items() if credit is Account.DISPUTED) - won
        fees = of_it.get((Account.FEES, Account.CASH), 0) - of_it.get((Account.CASH, Account.FEES), 0)
        amount = one["amount_minor"]
        ends = {"warned": (0, 0, 0), "open": (amount, 0, 0), "won": (amount, amount, 0), "lost": (amount, 0, amount)}
        # What is in another currency than the invoice is told and not booked.
        is_foreign = (one["tenant_id"], one["currency"]) != owner and one["stage"] != "warned"
        if is_foreign or (held, won, lost) != ends[one["stage"]] or fees != one["fee_minor"]:
            return f"dispute {one['subject']} is not what was booked of it"
    return f"no dispute is called {next(iter(moved))}" if moved else ""


def _wrong_credit_notes(books: Books, invoice: Row, document: bytes) -> str:
    """Credit the invoice again, note by note, and compare each with its row."""
    now = Receivable(subtotal_minor=invoice["subtotal_minor"], tax_minor=invoice["tax_minor"])
    moved: dict[Any, int] = defaultdict(int)
    for note in books.credit_notes:
        stored = json.loads(note["document"])
        try:
            change = owed.credit(now, note["amount_minor"])
        except RefusedError as error:
            return f"credit note {note['number']}: {error}"
        now = change.receivable
        again = credit_note_document(
            document, serial=note["serial"], amount_minor=note["amount_minor"], change=change,
            note=stored["note"], at=note["at"],
        )  # fmt: skip
        if document_to_bytes(again) != note["document"] or again["number"] != note["number"]:
            return f"credit note {note['number']}: made again it has other bytes"
        own = (note["tenant_id"], note["seller_id"], note["currency"])
        if own != (invoice["billing_tenant_id"], invoice["seller_id"], invoice["currency"]):
            return f"credit note {note['number']} is another payer's, seller's or currency's"
        moved[note["at"]] += note["amount_minor"]
    credited: dict[Any, int] = defaultdict(int)
    for one in books.transfers:
        if one["kind"] == "credit_note" and "receivable" not in (one["debit"], one["credit"]):
            credited[one["at"]] += one["amount_minor"] * (1 if one["credit"] == "balance" else -1)
    return "" if moved == credited else "its credit notes are not what was booked of them"


def _wrong_subjects(books: Books, invoice: Row) -> str:
    """Hold what transfers say that they are about against what there is, and their times as far as that has one."""
    number = invoice["number"]
    told = {(number, kind): {invoice["finalised_at"]} for kind in ("invoice", "balance")}
    told[number, "credit_note"] = {note["at"] for note in books.credit_notes}
    told |= {(one["subject"], kind): {one["at"]} for one in books.payments for kind in (*_PAID, "recovery")}
    subjects = {one["subject"] for one in (*books.payments, *books.refunds, *books.disputes)} | {number}
    for one in books.transfers:
        if one["subject"] not in subjects:
            return f"a transfer is about {one['subject']!r}, which is nothing of this invoice"
        times = told.get((one["subject"], one["kind"]))
        if times is not None and one["at"] not in times:
            return f"{one['kind']} about {one['subject']} is booked at another time, {one['at']}"
    return ""
