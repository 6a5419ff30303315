"""Invoices as the contract has them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from google.protobuf import timestamp_pb2
from tollkeeper.ledger.v1 import billing_pb2

from tollkeeper_ledger.domain.errors import UnknownNameError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.store.billing_invoices import find_invoice

if TYPE_CHECKING:
    from uuid import UUID

    from tollkeeper_ledger.store.billing_invoices import StoredInvoice, ToldInvoice
    from tollkeeper_ledger.store.pool import Connection


def _timestamp(text: str) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(to_us(datetime.fromisoformat(text)))
    return message


def invoice_to_message(document: dict[str, Any], *, digest: bytes, with_lines: bool) -> billing_pb2.Invoice:
    """Give an invoice's document as the contract has it."""
    plan = document["plan"]
    message = billing_pb2.Invoice(
        invoice_id=document["invoice_id"] or "",
        number=document["number"] or "",
        tenant=document["tenant"]["id"],
        billing_tenant=document["billing_tenant"]["id"],
        currency=document["currency"],
        subtotal_minor=document["subtotal_minor"],
        tax_minor=document["tax_minor"],
        total_minor=document["total_minor"],
        state=document["state"],
        period_start=_timestamp(document["period"]["start"]),
        period_end=_timestamp(document["period"]["end"]),
        digest=digest.hex(),
        plan=f"{plan['name']} v{plan['version']}",
        record_count=document["record_count"],
        discount_minor=document["discount_minor"],
        replaces=document.get("replaces", ""),
        taxes=[billing_pb2.InvoiceTax(**tax) for tax in document["taxes"]],
        tax_mode=document["billing"]["tax_mode"],
        seller_name=document["seller"]["name"],
        billing_name=document["billing_tenant"]["name"],
        time_zone=document["time_zone"],
    )
    if document["finalised_at"]:
        message.finalised_at.CopyFrom(_timestamp(document["finalised_at"]))
    if with_lines:
        message.lines.extend(_line(line) for line in document["lines"])
    return message


def _line(line: dict[str, Any]) -> billing_pb2.InvoiceLine:
    return billing_pb2.InvoiceLine(
        description=line["description"],
        meter=line["meter"],
        quantity=line["quantity"],
        unit=line["unit"],
        included=line["included"],
        charged=line["charged"],
        unit_price=line["unit_price"],
        price_per=line["price_per"],
        amount_minor=line["amount_minor"],
        explanation=line["explanation"],
        discount_minor=line["discount_minor"],
        tax=f"{line['tax']['name']} {line['tax']['percent']} %" if line["tax"]["name"] else "",
        tax_minor=line["tax"]["tax_minor"],
        kind=line.get("kind", "usage"),
        scale=line["scale"],
        period_start=_timestamp(line["period"]["start"]),
        period_end=_timestamp(line["period"]["end"]),
        late=line["late"],
        dimensions=line["dimensions"],
        parts=[billing_pb2.InvoiceLinePart(**part) for part in line["parts"]],
        invoiced=line.get("invoiced", ()),
    )


def stored_to_message(stored: StoredInvoice | ToldInvoice, *, with_lines: bool) -> billing_pb2.Invoice:
    """Give a finalised invoice with what became of it."""
    message = invoice_to_message(stored.read(), digest=stored.digest, with_lines=with_lines)
    standing = stored.standing
    message.state = standing.state
    message.due_at.CopyFrom(timestamp(standing.due_at))
    message.due_minor = standing.due_minor
    message.balance_minor = standing.balance_minor
    message.paid_minor = standing.paid_minor
    message.credited_minor = standing.credited_minor
    message.refunded_minor = standing.refunded_minor
    message.replaces = standing.replaces
    return message


async def shown_invoice(conn: Connection, invoice_id: UUID) -> billing_pb2.Invoice:
    """Read an invoice as it is now, without its lines."""
    stored = await find_invoice(conn, str(invoice_id))
    if stored is None:
        raise UnknownNameError("invoice", str(invoice_id))
    return stored_to_message(stored, with_lines=False)
