"""The credit note as canonical JSON: a pure function of its invoice and of what is credited."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.period_facts import instant_text
from tollkeeper_ledger.domain.shares import cut_steadily

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        "taxes": _taxes(stored, change, amount_minor=amount_minor, tax_minor=tax_minor),
        "tax_minor": tax_minor,
        "total_minor": amount_minor,
    }


def _taxes(stored: Json, change: Change, *, amount_minor: int, tax_minor: int) -> list[Json]:
    """Share base and tax of a credit note out over its invoice's rates, in proportion to what the invoice has of each.

    Shares are differences of those of all that is credited so far: credits of a whole invoice take each rate's whole.
    """
    rates = stored["taxes"]
    net_minor = amount_minor - tax_minor
    if not rates:
        return [{"name": "", "percent": "0", "base_minor": net_minor, "tax_minor": tax_minor}]
    after = change.receivable
    tax = _shares([rate["tax_minor"] for rate in rates], after.credited_tax_minor, tax_minor)
    bases = [rate["base_minor"] for rate in rates]
    # Lines without any tax have their share of what is credited as well.
    untaxed_minor = stored["subtotal_minor"] - sum(bases)
    base = _shares([*bases, untaxed_minor], after.credited_minor - after.credited_tax_minor, net_minor)
    return [
        {"name": rate["name"], "percent": rate["percent"], "base_minor": base[place], "tax_minor": tax[place]}
        for place, rate in enumerate(rates)
    ]


def _shares(weights: Sequence[int], so_far: int, now: int) -> list[int]:
    """Share out what is credited now, of what is credited so far with it. Rates below zero have no share."""
    shown = [max(weight, 0) for weight in weights]
    each = zip(cut_steadily(so_far, shown), cut_steadily(so_far - now, shown), strict=True)
    return [after - before for after, before in each]
