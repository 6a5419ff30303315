"""Bill what is due: close periods, finalise their invoices once each, and show running ones."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.invoice import (
    Finalised,
    check_billable,
    digests_named,
    document_to_bytes,
    finalise_document,
    inputs_to_bytes,
    make_document,
    rate_inputs,
    with_parties,
)
from tollkeeper_ledger.domain.period_facts import facts_from_json
from tollkeeper_ledger.services.billing_facts import return_reductions
from tollkeeper_ledger.services.invoices_close import (
    Closed,
    Held,
    UnbillableError,
    close_next,
    count_due,
    running_inputs,
)
from tollkeeper_ledger.services.mail_queue import queue
from tollkeeper_ledger.services.progressive import cut_passed
from tollkeeper_ledger.services.receivables import book_invoice, need_billed, void_receivable
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_closes import CloseKey
from tollkeeper_ledger.store.billing_cuts import is_counted
from tollkeeper_ledger.store.billing_invoices import (
    NewInvoice,
    StoredInvoice,
    add_invoice,
    find_invoice,
    has_invoice,
    lock_numbers,
    read_stored_inputs,
)
from tollkeeper_ledger.store.billing_profiles import read_profile
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.money import Billed
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

    Begins with what an earlier run closed and did not finalise, ends with running periods whose threshold is passed.
    Safe to stop at any point, to repeat, and to run twice at once: each period is closed by one transaction and
    finalised by one other.
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
            is_ready = outcome.billable and not outcome.is_draft
            invoice = await finalise(pool, outcome.key, run=run, new_id=new_id) if is_ready else None
            yield Progress(due=due, done=done, invoice=invoice)
    async for invoice in bill_passed(pool, run=run, only=only, new_id=new_id):
        done += 1
        due = max(due, done)
        yield Progress(due=due, done=done, invoice=invoice)


async def bill_passed(
    pool: Pool, *, run: Run, only: str | None, new_id: Callable[[], UUID] = uuid.uuid4
) -> AsyncIterator[StoredInvoice | None]:
    """Invoice running periods whose plan's threshold is passed, once each; None for a draft that waits for review."""
    async for cut in cut_passed(pool, only=only):
        is_ready = cut.billable and not cut.is_draft
        yield await finalise(pool, cut.key, run=run, new_id=new_id) if is_ready else None


async def bill_thresholds(pool: Pool, *, actor: str) -> int:
    """Invoice running periods whose plan's threshold is passed; give how many were cut."""
    run = Run(actor=actor, request_id=uuid.uuid4().hex)
    return len([invoice async for invoice in bill_passed(pool, run=run, only=None)])


async def finalise(
    pool: Pool, key: CloseKey, *, run: Run, new_id: Callable[[], UUID] = uuid.uuid4
) -> StoredInvoice | None:
    """Make the invoice of a closed period under the seller's next number; None where it was made before."""
    async with transaction(pool) as conn:
        inputs = await closes.read_close(conn, key)
        return await finalise_close(conn, key, inputs, run=run, new_id=new_id)


async def finalise_close(
    conn: Connection, key: CloseKey, inputs: bytes, *, run: Run, new_id: Callable[[], UUID] = uuid.uuid4
) -> StoredInvoice | None:
    """Make the invoice of a closed period in this transaction; None where it was made before."""
    definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
    # Rated once before the numbers are locked: a fault in a price must not hold up the seller's other invoices.
    preview = make_document(inputs, definitions, Finalised(invoice_id=None, number=None, at=None))
    serial = await lock_numbers(conn, preview["seller"]["id"])
    if await has_invoice(conn, key):
        return None
    issuing = Issuing(key=key, inputs=inputs, preview=preview, serial=serial)
    return await _issue(conn, issuing, preview["seller"], action="RunInvoices", run=run, invoice_id=new_id())


@dataclass(frozen=True, slots=True)
class Issuing:
    """An invoice that is being made; the seller's numbers are locked."""

    key: CloseKey
    inputs: bytes
    preview: dict[str, Any]
    """The document without id, number and time."""
    serial: int
    replaces: Billed | None = None
    """The void invoice that it replaces."""


async def _issue(
    conn: Connection, issuing: Issuing, seller: dict[str, Any], *, action: str, run: Run, invoice_id: UUID
) -> StoredInvoice:
    """Add the invoice, book it, and note it in the audit log."""
    at = await ledger_now(conn)
    number = f"{seller['invoice_prefix']}-{issuing.serial:06d}"
    finalised = Finalised(invoice_id=str(invoice_id), number=number, at=at)
    document = finalise_document(issuing.preview, finalised)
    void = issuing.replaces
    new = NewInvoice(
        key=issuing.key,
        invoice_id=invoice_id,
        serial=issuing.serial,
        finalised_at=at,
        document=document,
        document_bytes=document_to_bytes(document),
        issue=1 if void is None else void.issue + 1,
        replaces=None if void is None else void.invoice_id,
        inputs=None if void is None else issuing.inputs,
    )
    await add_invoice(conn, new)
    billed = await need_billed(conn, invoice_id)
    await queue(conn, billed, "invoice")
    await book_invoice(conn, billed, subtotal_minor=document["subtotal_minor"], tax_minor=document["tax_minor"], now=at)
    entry = AuditEntry(
        subject=f"invoice/{number}",
        tenant_id=issuing.key.tenant_id,
        before=None if void is None else {"invoice": void.number},
        after={"total_minor": document["total_minor"], "currency": document["currency"]},
    )
    await add_audit(conn, [entry], now=at, actor=run.actor, action=action, request_id=run.request_id)
    stored = await find_invoice(conn, str(invoice_id))
    if stored is None:
        raise RuntimeError(f"invoice {number} was added and is not there")
    return stored


async def void_invoice(
    conn: Connection, invoice_id: UUID, *, note: str, reissue: bool, act: Act
) -> StoredInvoice | None:
    """Void an invoice; give the one that replaces it where asked, of the same usage and prices.

    The new one has seller's and payer's data and terms as they are now, and uses the coupons and grants that the void
    one used; where nothing replaces it, these get back what it used. Raises UnknownNameError; PreconditionError:
    something was paid or credited on it.
    """
    billed = await need_billed(conn, invoice_id)
    # Grants move only while the tenant is locked; tenants are locked before numbers.
    await lock_tenant(conn, billed.tenant_id)
    serial = await lock_numbers(conn, billed.account.seller_id)
    await void_receivable(conn, billed, note=note, act=act)
    stored = await read_stored_inputs(conn, invoice_id)
    if stored is None:
        raise UnknownNameError("invoice", str(invoice_id))
    if not reissue:
        definitions = await closes.read_definitions_by_digest(conn, digests_named(stored.inputs))
        facts, rated = facts_from_json(json.loads(stored.inputs)), rate_inputs(stored.inputs, definitions)
        if not facts.is_cut:
            await return_reductions(conn, facts, rated, billed.tenant_id, at=act.now)
        elif await is_counted(conn, CloseKey(billed.tenant_id, billed.subscription_id, billed.period_start)):
            raise PreconditionError(
                "the invoice of its period counts on it: issue it again, or give a credit note",
                reason="INVOICE_STATE",
                metadata={"invoice": billed.number},
            )
        return None
    parties = await closes.read_parties(conn, billed.tenant_id)
    profile = await read_profile(conn, UUID(parties.billing_tenant["tenant_id"]))
    inputs = with_parties(stored.inputs, parties, profile.frozen())
    key = CloseKey(billed.tenant_id, billed.subscription_id, billed.period_start)
    definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
    preview = make_document(inputs, definitions, Finalised(invoice_id=None, number=None, at=None))
    issuing = Issuing(key=key, inputs=inputs, preview=preview, serial=serial, replaces=billed)
    run = Run(actor=act.actor, request_id=act.request_id)
    return await _issue(conn, issuing, parties.seller, action="ReissueInvoice", run=run, invoice_id=uuid.uuid4())


async def finalise_draft(conn: Connection, wire_id: str, *, period_start: datetime | None, run: Run) -> StoredInvoice:
    """Make a draft's invoice; the tenant's oldest where no period is named. Raises UnknownNameError: there is none."""
    for key, inputs in await closes.read_drafts(conn, only=wire_id, count_max=_PENDING_BATCH):
        if period_start is None or key.period_start == period_start:
            made = await finalise_close(conn, key, inputs, run=run)
            if made is not None:
                return made
    raise UnknownNameError("invoice", f"draft of {wire_id}", remedy="ListDrafts gives what waits")


async def list_drafts(conn: Connection, *, only: str | None, count_max: int) -> list[dict[str, Any]]:
    """Give drafts as documents in state `draft`, oldest first."""
    documents = []
    for _, inputs in await closes.read_drafts(conn, only=only, count_max=count_max):
        definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
        document = make_document(inputs, definitions, Finalised(invoice_id=None, number=None, at=None))
        documents.append({**document, "state": "draft"})
    return documents


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


async def need_invoice(pool: Pool, name: str) -> StoredInvoice:
    """Find an invoice by number or id. Raises InvalidFieldError: no name; UnknownNameError."""
    if not name or "\0" in name:
        raise InvalidFieldError(
            "invoice", "is missing", reason="FIELD_REQUIRED", remedy="give an invoice's number or id"
        )
    async with transaction(pool) as conn:
        stored = await find_invoice(conn, name)
    if stored is None:
        raise UnknownNameError("invoice", name, remedy="ListInvoices gives the numbers")
    return stored
