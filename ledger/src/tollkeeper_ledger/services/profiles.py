"""Set and read how payers are billed; add items to their next invoices."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.billing_profile import check_profile
from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError, UnknownNameError
from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.services.invoices_to_come import need_invoice_to_come
from tollkeeper_ledger.services.notes import check_note
from tollkeeper_ledger.services.trials import follow_methods, lock_trials_of
from tollkeeper_ledger.store import money
from tollkeeper_ledger.store.billing_profiles import put_profile
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.subscriptions import read_newest_plan
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.domain.billing_profile import BillingProfile
    from tollkeeper_ledger.services.overrides import Act
    from tollkeeper_ledger.store.pool import Connection

DESCRIPTION_CHARS_MAX = 200
AMOUNT_MINOR_MAX = 10**15


async def set_profile(conn: Connection, payer_id: UUID, profile: BillingProfile, *, act: Act) -> None:
    """Set a payer's profile as a whole. Raises InvalidFieldError; UnknownNameError: no such fallback plan."""
    check_profile(profile)
    if profile.fallback_plan and await read_newest_plan(conn, profile.fallback_plan) is None:
        raise UnknownNameError("plan", profile.fallback_plan, remedy="declare it in the catalogue")
    trying = await lock_trials_of(conn, payer_id)
    await put_profile(conn, payer_id, profile, now=act.now)
    await follow_methods(conn, trying)
    entry = AuditEntry(subject="billing_profile", tenant_id=payer_id, before=None, after=profile.frozen())
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="SetBillingProfile", request_id=act.request_id)


async def add_invoice_item(
    conn: Connection, tenant_id: UUID, *, description: str, amount_minor: int, currency: str, act: Act
) -> UUID:
    """Add a charge, or a credit below zero, to a tenant's next invoice, in the currency that it pays in.

    Raises UnknownNameError: no invoice is to come; InvalidFieldError.
    """
    if not description or not description.isprintable() or len(description) > DESCRIPTION_CHARS_MAX:
        raise InvalidFieldError(
            "description",
            "is no description",
            value=ascii(description[:64]),
            bound=f"1 to {DESCRIPTION_CHARS_MAX} printable characters",
        )
    if amount_minor == 0 or abs(amount_minor) > AMOUNT_MINOR_MAX:
        raise InvalidFieldError(
            "amount_minor",
            "is no amount",
            reason="FIELD_OUT_OF_RANGE",
            value=amount_minor,
            bound=f"not 0, at most {AMOUNT_MINOR_MAX} either way",
        )
    try:
        Currency.from_code(currency)
    except ValueError as error:
        raise InvalidFieldError("currency", str(error), value=ascii(currency[:16]), bound="ISO 4217") from error
    await need_invoice_to_come(conn, tenant_id, currency=currency)
    item_id = uuid.uuid4()
    await money.add_item(
        conn,
        tenant_id,
        item_id=item_id,
        description=description,
        amount_minor=amount_minor,
        currency=currency,
        now=act.now,
    )
    after = {"item": str(item_id), "description": description, "amount_minor": amount_minor, "currency": currency}
    entry = AuditEntry(subject="invoice_item", tenant_id=tenant_id, before=None, after=after)
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="AddInvoiceItem", request_id=act.request_id)
    return item_id


async def remove_invoice_item(conn: Connection, tenant_id: UUID, item_id: UUID, *, note: str, act: Act) -> None:
    """Remove an item that waits for its invoice. Raises PreconditionError: none such waits."""
    check_note(note)
    await lock_tenant(conn, tenant_id)
    removed = await money.remove_item(conn, tenant_id, item_id)
    if removed is None:
        raise PreconditionError(
            f"no item {item_id} of the tenant waits for an invoice",
            reason="INVOICE_STATE",
            metadata={"remedy": "ListInvoiceItems gives what waits; what is billed is taken back by a credit note"},
        )
    entry = AuditEntry(
        subject="invoice_item",
        tenant_id=tenant_id,
        before={"item": str(item_id), **dict(removed)},
        after={"note": note},
    )
    await add_audit(conn, [entry], now=act.now, actor=act.actor, action="RemoveInvoiceItem", request_id=act.request_id)
