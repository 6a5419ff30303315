"""Bill what is due: close periods, finalise their invoices once each, and show running ones."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.errors import PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.invoice import (
    Finalised,
    check_billable,
    digests_named,
    document_to_bytes,
    inputs_to_bytes,
    make_document,
)
from tollkeeper_ledger.services.invoices_close import (
    Closed,
    Held,
    UnbillableError,
    close_next,
    count_due,
    running_inputs,
)
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_invoices import (
    NewInvoice,
    StoredInvoice,
    add_invoice,
    has_invoice,
    lock_numbers,
    read_stored_inputs,
)
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from uuid import UUID

    from tollkeeper_ledger.store.billing_closes import CloseKey
    from tollkeeper_ledger.store.pool import Connection, Pool

PERIODS_PER_RUN_MAX = 100_000
"""Bound of one run; a run that meets it ends, and the next goes on."""

_PENDING_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Run:
    """Who runs it, under which request id; for the audit log."""

    actor: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a run."""

    due: int
    done: int
    invoice: StoredInvoice | None = None
    held_tenant: str = ""
    held_reason: str = ""


async def run_invoices(
    pool: Pool, *, run: Run, only: str | None, new_id: Callable[[], UUID] = uuid.uuid4
) -> AsyncIterator[Progress]:
    """Close every due period and finalise its invoice, once each, telling how far it is.

    Begins with what an earlier run closed and did not finalise. Safe to stop at any point, to repeat, and to run twice
    at once: each period is closed by one transaction and finalised by one other.
    """
    done = 0
    async with transaction(pool) as conn:
        subscriptions = await closes.read_subscriptions_to_bill(conn, only=only)
        pending = await closes.read_pending_closes(conn, only=only, count_max=_PENDING_BATCH)
        counts = await count_due(conn, sorted({tenant_id for tenant_id, _, _ in subscriptions}))
    due = len(pending) + sum(counts.values())
    yield Progress(due=due, done=0)
    for key in pending:
        done += 1
        yield Progress(due=due, done=done, invoice=await finalise(pool, key, run=run, new_id=new_id))
    for tenant_id, subscription_id, wire_id in subscriptions:
        while subscription_id in counts and done < PERIODS_PER_RUN_MAX:
            outcome: Closed | Held | None
            try:
                async with transaction(pool) as conn:
                    outcome = await close_next(conn, tenant_id, subscription_id, new_id=new_id)
            except UnbillableError as error:
                outcome = Held(reason=f"can't be billed: {error}")
            if isinstance(outcome, Held):
                yield Progress(due=due, done=done, held_tenant=wire_id, held_reason=outcome.reason)
            if not isinstance(outcome, Closed):
                break
            done += 1
            due = max(due, done)
            invoice = await finalise(pool, outcome.key, run=run, new_id=new_id) if outcome.billable else None
            yield Progress(due=due, done=done, invoice=invoice)


async def finalise(
    pool: Pool, key: CloseKey, *, run: Run, new_id: Callable[[], UUID] = uuid.uuid4
) -> StoredInvoice | None:
    """Make the invoice of a closed period under the seller's next number; None where it was made before."""
    async with transaction(pool) as conn:
        inputs = await closes.read_close(conn, key)
        definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
        # Rated once before the numbers are locked: a fault in a price must not hold up the seller's other invoices.
        preview = make_document(inputs, definitions, Finalised(invoice_id=None, number=None, at=None))
        serial = await lock_numbers(conn, preview["seller"]["id"])
        if await has_invoice(conn, key):
            return None
        at = await ledger_now(conn)
        invoice_id = new_id()
        number = f"{preview['seller']['invoice_prefix']}-{serial:06d}"
        finalised = Finalised(invoice_id=str(invoice_id), number=number, at=at)
        document = make_document(inputs, definitions, finalised)
        new = NewInvoice(
            key=key,
            invoice_id=invoice_id,
            serial=serial,
            finalised_at=at,
            document=document,
            document_bytes=document_to_bytes(document),
        )
        await add_invoice(conn, new)
        entry = AuditEntry(
            subject=f"invoice/{number}",
            tenant_id=key.tenant_id,
            before=None,
            after={"total_minor": document["total_minor"], "currency": document["currency"]},
        )
        await add_audit(conn, [entry], now=at, actor=run.actor, action="RunInvoices", request_id=run.request_id)
        stored = await read_stored_inputs(conn, invoice_id)
    return stored.invoice if stored is not None else None


async def preview_invoice(conn: Connection, tenant_id: UUID, *, wire_id: str) -> dict[str, Any]:
    """Rate the running period as it stands and give the document; changes nothing.

    `conn` is in a REPEATABLE READ transaction. Raises UnknownNameError: the tenant has no subscription;
    PreconditionError: no invoice can carry the figures.
    """
    found = await running_inputs(conn, tenant_id, now=await ledger_now(conn))
    if found is None:
        raise UnknownNameError("subscription", wire_id, remedy="give the tenant a plan in the catalogue")
    inputs = inputs_to_bytes(found)
    definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
    try:
        check_billable(inputs, definitions)
    except ValueError as error:
        raise PreconditionError(
            f"the period can't be billed: {error}", reason="PERIOD_OPEN", metadata={"tenant": wire_id}
        ) from error
    return make_document(inputs, definitions, Finalised(invoice_id=None, number=None, at=None))


async def reproduce(conn: Connection, invoice_id: UUID) -> tuple[bytes, bytes]:
    """Make an invoice's bytes again from its stored inputs; give them with the stored ones.

    Raises UnknownNameError: no such invoice.
    """
    stored = await read_stored_inputs(conn, invoice_id)
    if stored is None:
        raise UnknownNameError("invoice", str(invoice_id))
    definitions = await closes.read_definitions_by_digest(conn, digests_named(stored.inputs))
    finalised = Finalised(invoice_id=str(invoice_id), number=stored.number, at=stored.invoice.finalised_at)
    document = make_document(stored.inputs, definitions, finalised)
    return document_to_bytes(document), stored.invoice.document
