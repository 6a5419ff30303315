"""Refuse what would wait for an invoice that never comes: a subscription billed to its end, or another currency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.services.billing_facts import read_plans_of
from tollkeeper_ledger.store.billing_closes import read_parties
from tollkeeper_ledger.store.billing_segments import read_schedules
from tollkeeper_ledger.store.tenant_locks import lock_tenant

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from tollkeeper_ledger.store.pool import Connection


async def need_invoice_to_come(
    conn: Connection, tenant_id: UUID, *, currency: str, running_at: datetime | None = None
) -> None:
    """Take the tenant alone and see that an invoice of it is still to come, in a currency; in any where that is empty.

    The last one comes after the subscription's end; `running_at`: only one that ends later than then counts. Raises
    UnknownNameError: none is to come; InvalidFieldError: in other currencies alone.
    """
    await lock_tenant(conn, tenant_id)
    schedules = [
        one
        for one in await read_schedules(conn, [tenant_id])
        if one.is_open and (running_at is None or one.ended_at is None or running_at < one.ended_at)
    ]
    if not schedules:
        tenant = (await read_parties(conn, [tenant_id]))[tenant_id].tenant["id"]
        remedy = "the tenant has none, or it has ended: subscribe it first"
        raise UnknownNameError("subscription", tenant, remedy=remedy)
    plans = await read_plans_of(conn, schedules)
    # A subscription keeps its currency, whatever plan it is moved to.
    known = {plans[one.subscription_id].terms_at(one.billed_until)["currency"] for one in schedules}
    if currency and currency not in known:
        raise InvalidFieldError(
            "currency",
            "is not what the tenant's invoices are in",
            value=currency,
            bound=", ".join(sorted(known)),
            remedy="give it in that currency; in this one it would never be billed",
        )
