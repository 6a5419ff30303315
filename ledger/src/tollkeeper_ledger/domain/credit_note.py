"""The credit note as canonical JSON: a pure function of its invoice and of what is credited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.period_facts import instant_text

if TYPE_CHECKING:
    from datetime import datetime

    from tollkeeper_ledger.domain.receivable import Change

Json: TypeAlias = dict[str, Any]

FORMAT = 1
_KEPT = (
    "seller", "tenant", "billing_tenant", "billing", "subscription_id", "time_zone", "period", "plan", "currency",
    "currency_digits", "record_count",
)  # fmt: skip


def credit_note_number(prefix: str, serial: int) -> str:
    """Give a credit note's number."""
    return f"{prefix}-CN-{serial:06d}"


def credit_note_document(
    invoice: bytes, *, serial: int, amount_minor: int, change: Change, note: str, at: datetime
) -> Json:
    """Give a credit note over `amount_minor`, tax contained; `change` is what it did to its invoice."""
    stored = json.loads(invoice)
    tax_minor = sum(one.amount_minor * ((one.debit == "tax") - (one.credit == "tax")) for one in change.transfers)
    rate = stored["taxes"][0] if len(stored["taxes"]) == 1 else {"name": "", "percent": "0"}
    net_minor = amount_minor - tax_minor
    return {
        "format": FORMAT,
        "kind": "credit_note",
        "invoice_id": stored["invoice_id"],
        "invoice": stored["number"],
        "number": credit_note_number(stored["seller"]["invoice_prefix"], serial),
        "state": "finalised",
        "finalised_at": instant_text(at),
        "note": note,
        **{name: stored[name] for name in _KEPT},
        "lines": [],
        "lines_minor": net_minor,
        "discount_minor": 0,
        "subtotal_minor": net_minor,
        "taxes": [{"name": rate["name"], "percent": rate["percent"], "base_minor": net_minor, "tax_minor": tax_minor}],
        "tax_minor": tax_minor,
        "total_minor": amount_minor,
    }
