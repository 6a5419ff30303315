# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""BillingService: convert messages and call the services."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from google.protobuf import timestamp_pb2
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc

from tollkeeper_ledger.domain.errors import InvalidFieldError, UnknownNameError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.rpc.acting import actor_of
from tollkeeper_ledger.rpc.not_built import not_built
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.services.invoices import Run, preview_invoice, run_invoices
from tollkeeper_ledger.services.pdf.render import PAPERS, render_pdf
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.billing_invoices import find_invoice, list_invoices
from tollkeeper_ledger.store.idempotency import REQUEST_ID_BYTES_MAX
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.billing_invoices import StoredInvoice

    Context = grpc.aio.ServicerContext[Any, Any]


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
    )


class BillingService(billing_pb2_grpc.BillingServiceServicer):
    """Serve finance."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._pool = resources.pools.billing

    ListRateCards = not_built("BillingService/ListRateCards")

    async def PreviewInvoice(
        self, request: billing_pb2.PreviewInvoiceRequest, context: Context
    ) -> billing_pb2.PreviewInvoiceResponse:
        """Rate the running period of a tenant as it stands."""
        tenant_id = await need_tenant(self._pool, request.tenant)
        async with connection(self._pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            document = await preview_invoice(conn, tenant_id, wire_id=request.tenant)
        invoice = invoice_to_message(document, digest=b"", with_lines=True)
        return billing_pb2.PreviewInvoiceResponse(invoice=invoice)

    async def RunInvoices(
        self, request: billing_pb2.RunInvoicesRequest, context: Context
    ) -> AsyncIterator[billing_pb2.RunInvoicesResponse]:
        """Close every due period and finalise its invoice, once each. A repeat finds what is left to do."""
        if not request.request_id or len(request.request_id.encode()) > REQUEST_ID_BYTES_MAX:
            raise InvalidFieldError(
                "request_id",
                "is missing or too long",
                reason="FIELD_TOO_LONG" if request.request_id else "FIELD_REQUIRED",
                bound=f"1 to {REQUEST_ID_BYTES_MAX} bytes",
            )
        if request.tenant:
            await need_tenant(self._pool, request.tenant)
        run = Run(actor=actor_of(context), request_id=request.request_id)
        async for step in run_invoices(self._pool, run=run, only=request.tenant or None):
            message = billing_pb2.RunInvoicesResponse(
                due=step.due, done=step.done, held_tenant=step.held_tenant, held_reason=step.held_reason
            )
            if step.invoice is not None:
                message.invoice.CopyFrom(self._stored(step.invoice, with_lines=True))
            yield message

    async def ListInvoices(
        self, request: billing_pb2.ListInvoicesRequest, context: Context
    ) -> billing_pb2.ListInvoicesResponse:
        """List invoices, newest first."""
        size = page_size(request.page_size)
        before = _before(request.page_token)
        if request.tenant:
            await need_tenant(self._pool, request.tenant)
        async with transaction(self._pool) as conn:
            found = await list_invoices(conn, before=before, count_max=size + 1, only=request.tenant or None)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            token = to_token(str(to_us(last.finalised_at)), str(last.invoice_id))
        invoices = [self._stored(one, with_lines=False) for one in found[:size]]
        return billing_pb2.ListInvoicesResponse(invoices=invoices, next_page_token=token)

    async def GetInvoice(
        self, request: billing_pb2.GetInvoiceRequest, context: Context
    ) -> billing_pb2.GetInvoiceResponse:
        """Give one invoice with its lines."""
        stored = await self._find(request.invoice)
        return billing_pb2.GetInvoiceResponse(invoice=self._stored(stored, with_lines=True))

    async def GetInvoicePdf(
        self, request: billing_pb2.GetInvoicePdfRequest, context: Context
    ) -> billing_pb2.GetInvoicePdfResponse:
        """Give the invoice as a PDF."""
        paper = request.paper or "a4"
        if paper not in PAPERS:
            raise InvalidFieldError("paper", "is not known", value=paper, bound=", ".join(PAPERS))
        stored = await self._find(request.invoice)
        pdf = await asyncio.to_thread(render_pdf, stored.document, digest=stored.digest, paper=paper)
        return billing_pb2.GetInvoicePdfResponse(pdf=pdf, file_name=f"{stored.read()['number']}.pdf")

    VoidInvoice = not_built("BillingService/VoidInvoice")
    CreateCreditNote = not_built("BillingService/CreateCreditNote")
    ListPayments = not_built("BillingService/ListPayments")
    GetOverage = not_built("BillingService/GetOverage")

    async def _find(self, name: str) -> StoredInvoice:
        if not name or "\0" in name:
            raise InvalidFieldError(
                "invoice", "is missing", reason="FIELD_REQUIRED", remedy="give an invoice's number or id"
            )
        async with transaction(self._pool) as conn:
            stored = await find_invoice(conn, name)
        if stored is None:
            raise UnknownNameError("invoice", name, remedy="ListInvoices gives the numbers")
        return stored

    def _stored(self, stored: StoredInvoice, *, with_lines: bool) -> billing_pb2.Invoice:
        return invoice_to_message(stored.read(), digest=stored.digest, with_lines=with_lines)


def _before(token: str) -> tuple[datetime, UUID] | None:
    if not token:
        return None
    at_us, invoice_id = from_token(token, start=("", ""))
    try:
        return from_us(int(at_us)), UUID(invoice_id)
    except (ValueError, OverflowError):
        raise InvalidFieldError("page_token", "is not one that this listing gave") from None
