"""Show, void and finalise single invoices, and show what running periods come to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.invoice import (
    Finalised,
    check_billable,
    digests_named,
    digests_of,
    document_of,
    inputs_to_json,
    make_document,
    rate_and_sum,
    rate_inputs,
    with_parties,
)
from tollkeeper_ledger.domain.period_facts import facts_from_json
from tollkeeper_ledger.domain.seller_taxes import frozen_terms
from tollkeeper_ledger.services.billing_facts import return_reductions
from tollkeeper_ledger.services.close_inputs import running_inputs, unbillable, warm
from tollkeeper_ledger.services.invoice_issue import Issuing, Run, finalise_closes, issue, lock_sellers, prepare
from tollkeeper_ledger.services.receivables import need_billed, void_receivable
from tollkeeper_ledger.store import billing_closes as closes
from tollkeeper_ledger.store.billing_closes import CloseKey
from tollkeeper_ledger.store.billing_cuts import is_counted
from tollkeeper_ledger.store.billing_invoices import StoredInvoice, find_invoice, read_stored_inputs
from tollkeeper_ledger.store.billing_profiles import read_profile
from tollkeeper_ledger.store.catalogue import find_tenant_ids
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.money import return_items
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.domain.rating.charges import Charge
    from tollkeeper_ledger.domain.rating.period import PeriodFacts
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.money import Billed
    from tollkeeper_ledger.store.pool import Connection, Pool

_DRAFTS_MAX = 1_000


async def void_invoice(
    conn: Connection, invoice_id: UUID, *, note: str, reissue: bool, act: Act
) -> StoredInvoice | None:
    """Void an invoice; give the one that replaces it where asked, of the same usage and prices.

    The new one has seller's and payer's data and terms as they are now, and uses the coupons and grants that the void
    one used; where nothing replaces it, these get back what it used, and items wait for the next invoice. Raises
    UnknownNameError; PreconditionError: something was paid or credited on it, or given back by the next one.
    """
    billed = await need_billed(conn, invoice_id)
    # Grants move only while the tenant is locked; tenants are locked before numbers.
    await lock_tenant(conn, billed.tenant_id)
    serials = await lock_sellers(conn, {billed.account.seller_id})
    await void_receivable(conn, billed, note=note, act=act)
    stored = await read_stored_inputs(conn, invoice_id)
    if stored is None:
        raise UnknownNameError("invoice", str(invoice_id))
    if not reissue:
        definitions = await closes.read_definitions_by_digest(conn, digests_named(stored.inputs))
        facts, rated = facts_from_json(json.loads(stored.inputs)), rate_inputs(stored.inputs, definitions)
        if not facts.is_cut:
            await _need_kept(conn, billed, facts)
            await return_reductions(conn, facts, rated, billed.tenant_id, at=act.now)
            await return_items(conn, billed)
        elif await is_counted(conn, CloseKey(billed.tenant_id, billed.subscription_id, billed.period_start)):
            raise PreconditionError(
                "the invoice of its period counts on it: issue it again, or give a credit note",
                reason="INVOICE_STATE",
                metadata={"invoice": billed.number},
            )
        return None
    parties = (await closes.read_parties(conn, [billed.tenant_id]))[billed.tenant_id]
    profile = await read_profile(conn, UUID(parties.billing_tenant["tenant_id"]))
    terms = frozen_terms(profile, parties.taxes, parties.place)
    before = json.loads(stored.inputs)
    if any(terms[name] != before["billing"][name] for name in ("taxes", "tax_mode")):
        await _need_kept(conn, billed, facts_from_json(before))
    inputs = with_parties(stored.inputs, parties, terms, replaces=billed.number)
    key = CloseKey(billed.tenant_id, billed.subscription_id, billed.period_start)
    definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
    issuing = Issuing(key=key, rated=rate_and_sum(inputs, definitions), replaces=billed)
    run = Run(actor=act.actor, request_id=act.request_id)
    prepared = await prepare(conn, [issuing])
    return (await issue(conn, prepared, serials, action="ReissueInvoice", run=run))[key]


async def _need_kept(conn: Connection, billed: Billed, facts: PeriodFacts) -> None:
    """Refuse where a later invoice gives back some of what stands on this one: fees in advance, or usage.

    It gives them back as they were charged: without the charge, or with another tax, it would give what nobody paid.
    """
    key = CloseKey(billed.tenant_id, billed.subscription_id, billed.period_start)
    following = None
    if facts.advance is not None:
        following = await closes.read_inputs_from(conn, replace(key, period_start=facts.advance.span.start))
    if following is not None:
        lines = await _lines_of(conn, following)
        _refuse_given_back(billed, "fees in advance", is_given_back=any(line.given_back is not None for line in lines))
    for late in await closes.read_inputs_late_for(conn, key):
        lines = await _lines_of(conn, late)
        taken = (line.period_start for line in lines if line.late and line.amount_minor < 0)
        _refuse_given_back(
            billed, "usage", is_given_back=any(facts.period.start <= at < facts.period.end for at in taken)
        )


async def _lines_of(conn: Connection, inputs: bytes) -> tuple[Charge, ...]:
    return rate_inputs(inputs, await closes.read_definitions_by_digest(conn, digests_named(inputs))).charges.lines


def _refuse_given_back(billed: Billed, what: str, *, is_given_back: bool) -> None:
    if is_given_back:
        raise PreconditionError(
            f"the invoice of a later period gives back some of its {what}: void that one first, or give a credit note",
            reason="INVOICE_STATE",
            metadata={"invoice": billed.number},
        )


async def finalise_draft(conn: Connection, wire_id: str, *, period_start: datetime | None, run: Run) -> StoredInvoice:
    """Make a draft's invoice; the tenant's oldest where no period is named. Raises UnknownNameError: there is none."""
    for key, inputs in await closes.read_drafts(conn, only=wire_id, count_max=_DRAFTS_MAX):
        if period_start is None or key.period_start == period_start:
            definitions = await closes.read_definitions_by_digest(conn, digests_named(inputs))
            made = await finalise_closes(conn, [Issuing(key, rate_and_sum(inputs, definitions))], run=run)
            if key in made:
                return made[key]
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
    found = await running_inputs(conn, tenant_id, wire_id=wire_id, now=await ledger_now(conn))
    if found is None:
        raise UnknownNameError("subscription", wire_id, remedy="give the tenant a plan in the catalogue")
    definitions = await closes.read_definitions_by_digest(conn, digests_of(found))
    try:
        rated = check_billable(inputs_to_json(found), definitions)
    except ValueError as error:
        raise unbillable(wire_id, error) from error
    return document_of(rated, Finalised(invoice_id=None, number=None, at=None))


async def warm_preview(conn: Connection) -> None:
    """Have a connection prepare all that a preview asks of Postgres, so that its first one takes no longer than others.

    Changes nothing.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        await find_tenant_ids(conn, [])
        await warm(conn, at=await ledger_now(conn))


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
