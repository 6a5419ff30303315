"""Issue invoices: number, add, book, tell and audit them, in the transaction that makes them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.domain.catalogue.canonical import digest_of
from tollkeeper_ledger.domain.invoice import invoice_number, unnumbered
from tollkeeper_ledger.services.mail_queue import queue_all
from tollkeeper_ledger.services.receivables import Booking, book_invoices
from tollkeeper_ledger.store.billing_closes import read_with_invoice
from tollkeeper_ledger.store.billing_invoices import (
    NewInvoice,
    Standing,
    StoredInvoice,
    add_invoices,
    add_lines,
    lock_numbers,
)
from tollkeeper_ledger.store.billing_profiles import read_profiles
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.money import AccountKey, Billed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from tollkeeper_ledger.domain.invoice import RatedInputs, Unnumbered
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """An invoice that has everything but its number."""

    issuing: Issuing
    invoice_id: UUID
    unnumbered: Unnumbered


async def finalise_closes(
    conn: Connection,
    closed: Sequence[Issuing],
    *,
    run: Run,
    new_id: Callable[[], UUID] = uuid.uuid4,
    are_new: bool = False,
) -> dict[CloseKey, StoredInvoice]:
    """Make the invoices of closed periods, in this order; those that were made before are left out.

    `are_new`: this transaction closed the periods, so nobody can have made them. Numbers are locked until it commits,
    and every other invoice of the seller waits meanwhile: what needs no number is done before.
    """
    sellers = {_seller(one) for one in closed}
    if are_new:
        prepared = await prepare(conn, closed, new_id=new_id)
        serials = await lock_sellers(conn, sellers)
    else:
        serials = await lock_sellers(conn, sellers)
        made = await read_with_invoice(conn, [one.key for one in closed])
        prepared = await prepare(conn, [one for one in closed if one.key not in made], new_id=new_id)
    return await issue(conn, prepared, serials, action="RunInvoices", run=run) if prepared else {}


async def lock_sellers(conn: Connection, sellers: set[str]) -> dict[str, int]:
    """Lock sellers' numbers until the transaction ends, in one order whoever locks them, and give the next ones."""
    return {seller_id: await lock_numbers(conn, seller_id) for seller_id in sorted(sellers)}


async def prepare(
    conn: Connection, issuing: Sequence[Issuing], *, new_id: Callable[[], UUID] = uuid.uuid4
) -> list[Prepared]:
    """Write invoices and add their lines; `issue` gives them numbers, in the same transaction and order."""
    # Invoices of one moment are listed in order of their ids, so ids follow the numbers.
    ids = sorted(new_id() for _ in issuing)
    prepared = [
        Prepared(one, invoice_id, unnumbered(one.rated, str(invoice_id)))
        for one, invoice_id in zip(issuing, ids, strict=True)
    ]
    await add_lines(conn, [(one.issuing.key, one.invoice_id, one.unnumbered.document["lines"]) for one in prepared])
    return prepared


def _seller(issuing: Issuing) -> str:
    seller_id: str = issuing.rated.stored["seller"]["id"]
    return seller_id


async def issue(
    conn: Connection, prepared: Sequence[Prepared], serials: Mapping[str, int], *, action: str, run: Run
) -> dict[CloseKey, StoredInvoice]:
    """Add invoices under the sellers' next numbers, book them, and note them in the audit log.

    `serials` are the numbers that `lock_sellers` gave.
    """
    at = await ledger_now(conn)
    following = dict(serials)
    added: list[NewInvoice] = []
    for one in prepared:
        seller_id = _seller(one.issuing)
        serial = following[seller_id]
        following[seller_id] = serial + 1
        added.append(_invoice(one, serial, at=at))
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
            before=None if (void := of_it.issuing.replaces) is None else {"invoice": void.number},
            after={"total_minor": one.document["total_minor"], "currency": one.document["currency"]},
        )
        for of_it, one in zip(prepared, added, strict=True)
    ]
    await add_audit(conn, entries, now=at, actor=run.actor, action=action, request_id=run.request_id)
    return {
        of_it.issuing.key: _stored(one, receivable, of_it.issuing.replaces, at=at)
        for of_it, one, receivable in zip(prepared, added, owed, strict=True)
    }


def _invoice(prepared: Prepared, serial: int, *, at: datetime) -> NewInvoice:
    issuing, void = prepared.issuing, prepared.issuing.replaces
    number = invoice_number(issuing.rated.stored["seller"]["invoice_prefix"], serial)
    document, document_bytes = prepared.unnumbered.finalise(number, at)
    return NewInvoice(
        key=issuing.key,
        invoice_id=prepared.invoice_id,
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
