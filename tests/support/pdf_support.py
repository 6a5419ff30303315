"""Invoice documents for tests of what is printed."""

from __future__ import annotations

from typing import Any

from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, digest_of
from tollkeeper_ledger.services.pdf.render import render_pdf

PERIOD = {"start": "2023-11-16T18:15:00.000000Z", "end": "2023-11-16T19:15:00.000000Z"}


def line(**changes: Any) -> dict[str, Any]:
    """Give a usage line."""
    return {
        "description": "context_tokens",
        "meter": "context_tokens",
        "unit": "tokens",
        "scale": 0,
        "quantity": 18_062_123,
        "included": 1_000_000,
        "charged": 17_062_123,
        "unit_price": "2.50",
        "price_per": 1_000_000,
        "amount_minor": 4266,
        "explanation": [],
        "period": PERIOD,
        "late": False,
        "parts": [],
        **changes,
    }


def document(*lines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Give an invoice."""
    subtotal = sum(one["amount_minor"] for one in lines)
    party = {"id": "code", "tenant_id": "x", "name": "Code assistant", "address": ["Street 1"], "tax_id": "T1"}
    return {
        "invoice_id": "11111111-1111-4111-8111-111111111111",
        "number": "TK-000001",
        "state": "finalised",
        "finalised_at": "2023-11-16T19:20:01.000000Z",
        "currency": "USD",
        "seller": {**party, "email": "", "website": "", "tax_note": "", "payment_note": "Pay."},
        "tenant": party,
        "billing_tenant": party,
        "time_zone": "UTC",
        "period": PERIOD,
        "plan": {"name": "scale", "version": 1, "digest": ""},
        "record_count": 8819,
        "lines": list(lines),
        "billing": {"locale": "en", "paper": "a4", "due_days": 14, "tax_mode": "exclusive", "taxes": []},
        "lines_minor": subtotal,
        "discount_minor": 0,
        "taxes": [],
        "subtotal_minor": subtotal,
        "tax_minor": 0,
        "total_minor": subtotal,
        **changes,
    }


def pdf_of(document: dict[str, Any], paper: str = "", *, is_void: bool = False) -> bytes:
    """Render a document."""
    canonical = canonical_json(document)
    return render_pdf(canonical, digest=digest_of(canonical), paper=paper, is_void=is_void)
