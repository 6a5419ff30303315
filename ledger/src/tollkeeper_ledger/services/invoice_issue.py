"""Issue invoices: number, add, book, tell and audit them, in the transaction that makes them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.catalogue.canonical import digest_of
from tollkeeper_ledger.domain.invoice import Finalised, document_of, document_to_bytes
from tollkeeper_ledger.services.mail_queue import queue_all
from tollkeeper_ledger.services.receivables import Booking, book_invoices
from tollkeeper_ledger.store.billing_closes import read_with_invoice
from tollkeeper_ledger.store.billing_invoices import (
    NewInvoice,
    Standing,
    StoredInvoice,
    add_invoices,
    lock_numbers,
)
from tollkeeper_ledger.store.billing_profiles import read_profiles
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.money import AccountKey, Billed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.invoice import RatedInputs
    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.money import NewReceivable
    from tollkeeper_ledger.store.pool import Connection


@dataclass(frozen=True, slots=True)
class Run:
    """Who runs it, under which request id; for the audit log."""

    actor: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Issuing:
    """An invoice to make of a close."""

    key: CloseKey
    rated: RatedInputs
    replaces: Billed | None = None
    """The void invoice that it replaces."""


async def finalise_closes(
    conn: Connection, closed: Sequence[Issuing], *, run: Run, new_id: Callable[[], UUID] = uuid.uuid4
) -> dict[CloseKey, StoredInvoice]:
    """Make the invoices of closed periods, in this order; those that were made before are left out.

    All was rated before the numbers are locked: a fault in a price must not hold up the seller's other invoices.
    """
    serials = await lock_sellers(conn, {_seller(one) for one in closed})
    made = await read_with_invoice(conn, [one.key for one in closed])
    missing = [one for one in closed if one.key not in made]
    if not missing:
        return {}
    return await issue(conn, missing, serials, action="RunInvoices", run=run, new_id=new_id)


async def lock_sellers(conn: Connection, sellers: set[str]) -> dict[str, int]:
    """Lock sellers' numbers until the transaction ends, in one order whoever locks them, and give the next ones."""
    return {seller_id: await lock_numbers(conn, seller_id) for seller_id in sorted(sellers)}


def _seller(issuing: Issuing) -> str:
    seller_id: str = issuing.rated.stored["seller"]["id"]
    return seller_id


async def issue(
    conn: Connection,
    issuing: Sequence[Issuing],
    serials: Mapping[str, int],
    *,
    action: str,
    run: Run,
    new_id: Callable[[], UUID] = uuid.uuid4,
) -> dict[CloseKey, StoredInvoice]:
    """Add invoices under the sellers' next numbers, book them, and note them in the audit log.

    `serials` are the numbers that `lock_sellers` gave.
    """
    at = await ledger_now(conn)
    following = dict(serials)
    added: list[NewInvoice] = []
    # Invoices of one moment are listed in order of their ids, so ids follow the numbers.
    ids = sorted(new_id() for _ in issuing)
    for one, invoice_id in zip(issuing, ids, strict=True):
        serial = following[_seller(one)]
        following[_seller(one)] = serial + 1
        added.append(_invoice(one, serial, invoice_id=invoice_id, at=at))
    await add_invoices(conn, added, at=at)
    billed = [_billed(one) for one in added]
    profiles = await read_profiles(conn, {one.account.payer_id for one in billed})
    await queue_all(conn, billed, profiles, "invoice")
    bookings = [
        Booking(of_it, one.document["subtotal_minor"], one.document["tax_minor"], one.document["billing"]["due_days"])
        for of_it, one in zip(billed, added, strict=True)
    ]
    owed = await book_invoices(conn, bookings, profiles, now=at)
    entries = [
        AuditEntry(
            subject=f"invoice/{one.document['number']}",
            tenant_id=one.key.tenant_id,
            before=None if of_it.replaces is None else {"invoice": of_it.replaces.number},
            after={"total_minor": one.document["total_minor"], "currency": one.document["currency"]},
        )
        for of_it, one in zip(issuing, added, strict=True)
    ]
    await add_audit(conn, entries, now=at, actor=run.actor, action=action, request_id=run.request_id)
    return {
        of_it.key: _stored(one, receivable, of_it.replaces, at=at)
        for of_it, one, receivable in zip(issuing, added, owed, strict=True)
    }


def _invoice(issuing: Issuing, serial: int, *, invoice_id: UUID, at: datetime) -> NewInvoice:
    number = f"{issuing.rated.stored['seller']['invoice_prefix']}-{serial:06d}"
    document = document_of(issuing.rated, Finalised(invoice_id=str(invoice_id), number=number, at=at))
    document_bytes = document_to_bytes(document)
    void = issuing.replaces
    return NewInvoice(
        key=issuing.key,
        invoice_id=invoice_id,
        serial=serial,
        document=document,
        document_bytes=document_bytes,
        digest=digest_of(document_bytes),
        issue=1 if void is None else void.issue + 1,
        replaces=None if void is None else void.invoice_id,
        inputs=None if void is None else issuing.rated.inputs,
    )


def _billed(new: NewInvoice) -> Billed:
    document = new.document
    payer_id = UUID(document["billing_tenant"]["tenant_id"])
    return Billed(
        tenant_id=new.key.tenant_id,
        invoice_id=new.invoice_id,
        account=AccountKey(payer_id, document["seller"]["id"], document["currency"]),
        number=document["number"],
        subscription_id=new.key.subscription_id,
        period_start=new.key.period_start,
        issue=new.issue,
        document=new.document_bytes,
        digest=new.digest,
    )


def _stored(new: NewInvoice, owed: NewReceivable, replaces: Billed | None, *, at: datetime) -> StoredInvoice:
    """Give the invoice as `find_invoice` reads it."""
    receivable = owed.receivable
    return StoredInvoice(
        invoice_id=new.invoice_id,
        finalised_at=at,
        document=new.document_bytes,
        digest=owed.billed.digest,
        standing=Standing(
            state=receivable.state.value,
            due_at=owed.due_at,
            due_minor=receivable.due_minor,
            balance_minor=receivable.balance_minor,
            paid_minor=receivable.paid_minor,
            credited_minor=receivable.credited_minor,
            refunded_minor=receivable.refunded_minor,
            replaces="" if replaces is None else replaces.number,
        ),
        made=new.document,
    )
