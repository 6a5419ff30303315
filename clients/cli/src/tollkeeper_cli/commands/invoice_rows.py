"""Invoices as rows of listings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tollkeeper_cli.connection import to_text
from tollkeeper_cli.output import Cell, money

if TYPE_CHECKING:
    from tollkeeper.ledger.v1 import billing_pb2

InvoiceArgument = Annotated[str, typer.Argument(help="The invoice's number.")]

COLUMNS = (
    "number", "tenant", "state", "total", "currency", "total_minor", "period_start", "period_end", "finalised_at",
    "plan", "due", "due_minor", "due_at", "replaces",
)  # fmt: skip
BRIEF = ("number", "tenant", "state", "total", "due", "period_start", "period_end")


def invoice_row(invoice: billing_pb2.Invoice) -> dict[str, Cell]:
    """Turn an invoice into a row."""
    return {
        "number": invoice.number,
        "tenant": invoice.tenant,
        "state": invoice.state,
        "total": money(invoice.total_minor, invoice.currency),
        "currency": invoice.currency,
        "total_minor": invoice.total_minor,
        "period_start": to_text(invoice.period_start),
        "period_end": to_text(invoice.period_end),
        "finalised_at": to_text(invoice.finalised_at),
        "plan": invoice.plan,
        "due": money(invoice.due_minor, invoice.currency) if invoice.HasField("due_at") else "",
        "due_minor": invoice.due_minor,
        "due_at": to_text(invoice.due_at) if invoice.HasField("due_at") else "",
        "replaces": invoice.replaces,
    }
