"""Change what an invoice owes: each change, its transfers and the payer's balance in one transaction.

Locks in this order: the seller's numbers, the payer's account, the receivable.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain import receivable as owed
from tollkeeper_ledger.domain.credit_note import credit_note_document
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.invoice import document_to_bytes
from tollkeeper_ledger.domain.receivable import Account, RefusedError
from tollkeeper_ledger.services.mail_queue import queue
from tollkeeper_ledger.services.provider_hooks import collect, follow, follow_payment, through_provider
from tollkeeper_ledger.store import money
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.domain.billing_profile import BillingProfile
    from tollkeeper_ledger.domain.receivable import Change, Receivable
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection, Pool

REFERENCE_BYTES_MAX = 256
BY_HAND = "manual"
"""Provider of what an operator records."""
_PAST_DUE_BATCH = 500


async def need_billed(conn: Connection, invoice_id: UUID) -> Billed:
    """Give an invoice and whose it is. Raises UnknownNameError."""
    billed = await money.read_billed(conn, invoice_id)
    if billed is None:
        raise UnknownNameError("invoice", str(invoice_id))
    return billed


@dataclass(frozen=True, slots=True)
class Booking:
    """A new invoice to book, in minor units."""

    billed: Billed
    subtotal_minor: int
    tax_minor: int
    due_days: int
    """Days from its booking to the day that it says."""


async def book_invoices(
    conn: Connection, booked: Sequence[Booking], profiles: Mapping[UUID, BillingProfile], *, now: datetime
) -> list[money.NewReceivable]:
    """Book new invoices in the transaction that makes them, and settle what payers' balances cover, in this order.

    `profiles` are the payers'.
    """
    balances = await money.lock_accounts(conn, [one.billed.account for one in booked])
    moved = dict.fromkeys(balances, 0)
    added: list[money.NewReceivable] = []
    transfers: list[money.NewTransfer] = []
    for one in booked:
        account = one.billed.account
        balance_minor = balances[account] + moved[account]
        change = owed.issue(subtotal_minor=one.subtotal_minor, tax_minor=one.tax_minor, balance_minor=balance_minor)
        moved[account] += owed.balance_change(change)
        due_at = now + timedelta(days=one.due_days)
        added.append(money.NewReceivable(one.billed, change.receivable, due_at))
        transfers.extend(_transfers(one.billed, change, subject=one.billed.number))
    await money.add_receivables(conn, added, now=now)
    await money.add_transfers(conn, transfers, now=now)
    await money.add_to_balances(conn, moved)
    await collect(conn, [(one.billed, one.receivable) for one in added], profiles)
    return added


async def _book(conn: Connection, billed: Billed, change: Change, *, subject: str, now: datetime) -> None:
    await money.add_transfers(conn, _transfers(billed, change, subject=subject), now=now)
    await money.add_to_balances(conn, {billed.account: owed.balance_change(change)})


def _transfers(billed: Billed, change: Change, *, subject: str) -> list[money.NewTransfer]:
    return [money.NewTransfer(uuid.uuid4(), billed, transfer, subject) for transfer in change.transfers]


async def change_receivable(
    conn: Connection, billed: Billed, step: Callable[[Receivable], Change], *, subject: str, now: datetime
) -> Change:
    """Lock an invoice's receivable, change it and book what moved. Raises PreconditionError where it is refused."""
    balance = await money.lock_account(conn, billed.account)
    before = await money.lock_receivable(conn, billed)
    try:
        change = step(before)
    except RefusedError as error:
        raise refused(billed.number, str(error)) from error
    if balance + owed.balance_change(change) < 0:
        raise refused(billed.number, f"the payer's balance is only {balance}")
    await money.save_receivable(conn, billed, change.receivable, now=now)
    await _book(conn, billed, change, subject=subject, now=now)
    return change


def refused(number: str, why: str) -> PreconditionError:
    """Give the error of what an invoice's state does not allow."""
    return PreconditionError(f"{number}: {why}", reason="INVOICE_STATE", metadata={"invoice": number})


async def _audit(conn: Connection, billed: Billed, act: Act, action: str, after: dict[str, object]) -> None:
    entry = AuditEntry(subject=f"invoice/{billed.number}", tenant_id=billed.tenant_id, before=None, after=after)
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action=action, request_id=act.request_id)


async def record_payment(
    conn: Connection, billed: Billed, *, provider: str, reference: str, amount_minor: int, now: datetime
) -> bool:
    """Record money that came in, once per provider and reference; False where it was recorded before.

    More than is due goes into the payer's balance.
    """
    await money.lock_account(conn, billed.account)
    payment_id = uuid.uuid4()
    added = await money.add_payment(
        conn,
        billed,
        payment_id=payment_id,
        provider=provider,
        reference=reference,
        amount_minor=amount_minor,
        now=now,
    )
    if added:
        change = await change_receivable(
            conn, billed, lambda before: owed.pay(before, amount_minor), subject=f"{provider}/{reference}", now=now
        )
        if provider == BY_HAND:
            await follow_payment(conn, billed, change.receivable, amount_minor, payment_id)
    return added


async def pay_by_hand(conn: Connection, invoice_id: UUID, *, amount_minor: int, reference: str, act: Act) -> None:
    """Record a bank transfer; 0 = what is due. Raises PreconditionError: nothing is due, or the reference is known."""
    billed = await need_billed(conn, invoice_id)
    if not reference or not reference.isprintable() or len(reference.encode()) > REFERENCE_BYTES_MAX:
        raise InvalidFieldError(
            "reference",
            "is no reference",
            value=ascii(reference[:64]),
            bound=f"1 to {REFERENCE_BYTES_MAX} printable bytes",
        )
    await money.lock_account(conn, billed.account)
    before = await money.lock_receivable(conn, billed)
    amount = amount_minor or before.open_minor
    if amount <= 0:
        raise refused(billed.number, "nothing is due on it")
    if not await record_payment(conn, billed, provider=BY_HAND, reference=reference, amount_minor=amount, now=act.now):
        raise refused(billed.number, f"the payment {reference[:64]!r} was recorded before")
    await _audit(conn, billed, act, "RecordPayment", {"amount_minor": amount, "reference": reference})


@dataclass(frozen=True, slots=True)
class Credited:
    """A credit note that was issued."""

    number: str
    refund_id: UUID | None
    """The provider's, where some of it came in there; the rest is the operator's to send."""
    refunded_minor: int


async def credit_invoice(
    conn: Connection, invoice_id: UUID, *, amount_minor: int, note: str, refund: bool, act: Act
) -> Credited:
    """Issue a credit note under the seller's next number; send back what was paid where asked.

    Raises PreconditionError: more than the invoice has left, or it is void.
    """
    billed = await need_billed(conn, invoice_id)
    serial = await money.lock_credit_notes(conn, billed.account.seller_id)
    change = await change_receivable(
        conn, billed, lambda before: owed.credit(before, amount_minor), subject=billed.number, now=act.now
    )
    document = credit_note_document(
        billed.document, serial=serial, amount_minor=amount_minor, change=change, note=note, at=act.now
    )
    new = money.NewCreditNote(
        credit_note_id=uuid.uuid4(),
        number=document["number"],
        serial=serial,
        amount_minor=amount_minor,
        document=document_to_bytes(document),
    )
    await money.add_credit_note(conn, billed, new, now=act.now)
    await queue(conn, billed, "credit_note", stage=new.number)
    after: dict[str, object] = {"credit_note": new.number, "amount_minor": amount_minor, "note": note}
    await _audit(conn, billed, act, "CreateCreditNote", after)
    await follow(conn, billed, "credit", _off_due(change), subject_id=new.credit_note_id)
    into_balance = max(0, owed.balance_change(change))
    sent = min(into_balance, change.receivable.paid_minor - change.receivable.refunded_minor) if refund else 0
    if sent <= 0:
        return Credited(number=new.number, refund_id=None, refunded_minor=0)
    back = await through_provider(conn, billed, sent)
    refunds = [
        await _refund(conn, billed, amount, is_by_hand=is_by_hand, act=act)
        for is_by_hand, amount in ((False, back), (True, sent - back))
        if amount
    ]
    return Credited(number=new.number, refund_id=refunds[0], refunded_minor=sent)


def _off_due(change: Change) -> int:
    """Give how much less is due after a credit."""
    return sum(
        one.amount_minor
        for one in change.transfers
        if one.kind == "credit_note" and one.debit is Account.BALANCE and one.credit is Account.RECEIVABLE
    )


async def _refund(conn: Connection, billed: Billed, amount_minor: int, *, is_by_hand: bool, act: Act) -> UUID:
    refund_id = uuid.uuid4()
    await change_receivable(
        conn, billed, lambda before: owed.refund(before, amount_minor), subject=f"refund/{refund_id}", now=act.now
    )
    sent_by_provider = not is_by_hand and await follow(conn, billed, "refund", amount_minor, subject_id=refund_id)
    await money.add_refund(
        conn,
        billed,
        refund_id=refund_id,
        provider="stripe" if sent_by_provider else BY_HAND,
        amount_minor=amount_minor,
        state="pending" if sent_by_provider else "succeeded",
        now=act.now,
    )
    after: dict[str, object] = {
        "amount_minor": amount_minor,
        "refund": str(refund_id),
        "is_by_hand": not sent_by_provider,
    }
    await _audit(conn, billed, act, "Refund", after)
    return refund_id


async def void_receivable(conn: Connection, billed: Billed, *, note: str, act: Act) -> None:
    """Take an invoice back. Raises PreconditionError: something was paid or credited on it."""
    await change_receivable(conn, billed, owed.void, subject=billed.number, now=act.now)
    await follow(conn, billed, "void", 1)
    await _audit(conn, billed, act, "VoidInvoice", {"note": note})


async def write_off_invoice(conn: Connection, invoice_id: UUID, *, note: str, act: Act) -> None:
    """Give up what is due on an invoice. Raises PreconditionError: it is not open."""
    billed = await need_billed(conn, invoice_id)
    await change_receivable(conn, billed, owed.write_off, subject=billed.number, now=act.now)
    await _audit(conn, billed, act, "WriteOffInvoice", {"note": note})


async def mark_past_due(conn: Connection, *, now: datetime) -> int:
    """Mark open invoices whose day has come; give how many."""
    found = await money.read_past_due(conn, now=now, count_max=_PAST_DUE_BATCH)
    overdue = [await need_billed(conn, invoice_id) for invoice_id in found]
    await money.lock_accounts(conn, [billed.account for billed in overdue])
    for billed in overdue:
        await change_receivable(conn, billed, owed.past_due, subject=billed.number, now=now)
    return len(found)


async def mark_all_past_due(pool: Pool) -> None:
    """Mark every open invoice whose day has come."""
    while True:
        async with transaction(pool) as conn:
            if await mark_past_due(conn, now=await ledger_now(conn)) < _PAST_DUE_BATCH:
                return
