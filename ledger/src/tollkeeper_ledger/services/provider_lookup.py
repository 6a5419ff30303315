"""Look whether a step's effect is there already, by what we wrote on the object. Listings are never stale."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.payments.wire import object_path

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.domain.provider_work import Work
    from tollkeeper_ledger.payments.stripe_http import StripeHttp

_SLACK = timedelta(minutes=10)


async def look_up(stripe: StripeHttp, work: Work, step: str, *, frozen_at: datetime) -> dict[str, Any] | None:
    """Give the object that a step has made or brought about; None where it has not. Raises UnreadableError."""
    facts = work.facts
    if step == "customer":
        since = int((frozen_at - _SLACK).timestamp())
        listing, mark = stripe.each("/v1/customers", created_gte=since), ("tollkeeper_tenant", work.payer_id)
    elif step == "draft":
        listing = stripe.each("/v1/invoices", customer=facts["customer"])
        mark = ("tollkeeper_invoice", work.invoice_id)
    elif step == "credit":
        listing = stripe.each("/v1/credit_notes", invoice=facts["invoice"])
        mark = ("tollkeeper_credit_note", work.subject_id)
    elif step == "refund":
        listing = stripe.each("/v1/refunds", payment_intent=facts["payment"])
        mark = ("tollkeeper_refund", work.subject_id)
    else:
        return await _by_state(stripe, work, step)
    async for one in listing:
        if (one.get("metadata") or {}).get(mark[0]) == mark[1]:
            return one
    return None


async def _by_state(stripe: StripeHttp, work: Work, step: str) -> dict[str, Any] | None:
    path = object_path("invoices", work.facts["invoice"])
    if step == "discard":
        async for one in stripe.each("/v1/invoices", customer=work.facts["customer"]):
            if one["id"] == work.facts["invoice"]:
                return None
        return {"id": work.facts["invoice"], "deleted": True}
    invoice = await stripe.read(path)
    status = invoice.get("status")
    is_there = {
        "lines": bool((invoice.get("lines") or {}).get("data")),
        "finalise": status not in ("draft", None),
        "void": status == "void",
    }.get(step, status == "paid")
    return invoice if is_there else None
