"""An invoice with its lines: as tables, as one JSON object, or as rows of a spreadsheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper_cli.commands.invoice_rows import BRIEF, COLUMNS, invoice_row
from tollkeeper_cli.connection import to_text
from tollkeeper_cli.output import Cell, Output, money, plain_figures, scaled, show, show_json

if TYPE_CHECKING:
    from tollkeeper.ledger.v1 import billing_pb2

_LINE_BRIEF = ("description", "quantity", "included", "charged", "unit_price", "amount", "tax")
_LINE_COLUMNS = (
    "invoice", "description", "kind", "meter", "dimensions", "quantity", "unit", "included", "charged", "unit_price",
    "price_per", "amount", "currency", "tax", "amount_minor", "discount_minor", "tax_minor", "period_start",
    "period_end", "late", "invoiced", "explanation",
)  # fmt: skip
_HEAD = (
    "invoice_id", "digest", "billing_tenant", "billing_name", "seller_name", "time_zone", "record_count", "tax_mode",
    "discount_minor", "subtotal_minor", "tax_minor", "paid_minor", "balance_minor", "credited_minor", "refunded_minor",
    "pay_url",
)  # fmt: skip
_QUANTITIES = ("quantity", "included", "charged", "price_per")
_TAX = ("name", "percent", "base_minor", "tax_minor")
_PART = ("name", "quantity", "unit_price", "per", "scale", "amount")


def show_whole(invoice: billing_pb2.Invoice, output: Output) -> None:
    """Show an invoice's head and its lines: JSON has all of it in one object, CSV a row per line.

    Quantities are in whole units; CSV has amounts as plain numbers beside their currency.
    """
    lines = [_line(line, invoice) for line in invoice.lines]
    if output is Output.JSON:
        show_json(_whole(invoice, lines))
    elif output is Output.CSV:
        show(lines, _LINE_COLUMNS, output)
    else:
        show([invoice_row(invoice)], COLUMNS, output, title=f"Invoice {invoice.number or '(preview)'}", brief=BRIEF)
        show(lines, _LINE_COLUMNS, output, title="Lines", brief=_LINE_BRIEF)


def _line(line: billing_pb2.InvoiceLine, invoice: billing_pb2.Invoice) -> dict[str, Cell]:
    return {
        "invoice": invoice.number,
        "description": line.description,
        "kind": line.kind,
        "meter": line.meter,
        "dimensions": dict(line.dimensions),
        "quantity": scaled(line.quantity, line.scale),
        "unit": line.unit,
        "included": scaled(line.included, line.scale),
        "charged": scaled(line.charged, line.scale),
        "unit_price": line.unit_price,
        "price_per": scaled(line.price_per, line.scale),
        "amount": money(line.amount_minor, invoice.currency),
        "currency": invoice.currency,
        "tax": line.tax,
        "amount_minor": line.amount_minor,
        "discount_minor": line.discount_minor,
        "tax_minor": line.tax_minor,
        "period_start": to_text(line.period_start),
        "period_end": to_text(line.period_end),
        "late": line.late,
        "invoiced": list(line.invoiced),
        "explanation": list(line.explanation),
    }


def _whole(invoice: billing_pb2.Invoice, lines: list[dict[str, Cell]]) -> dict[str, Any]:
    """Give an invoice as one JSON object."""
    parts = [[{name: getattr(part, name) for name in _PART} for part in line.parts] for line in invoice.lines]
    return {
        **invoice_row(invoice),
        **{name: getattr(invoice, name) for name in _HEAD},
        "taxes": [{name: getattr(tax, name) for name in _TAX} for tax in invoice.taxes],
        "lines": [
            {**plain_figures(line, _QUANTITIES), "parts": of_it} for line, of_it in zip(lines, parts, strict=True)
        ],
    }
