# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""BillingService: convert messages and call the services."""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc

from tollkeeper_ledger.domain.catalogue.canonical import digest_of, rate_card_of
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.telling import telling
from tollkeeper_ledger.rpc.acting import act_of, actor_of, timestamp
from tollkeeper_ledger.rpc.credit_notes import CreditNotes
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.rpc.invoice_messages import invoice_to_message, shown_invoice, stored_to_message
from tollkeeper_ledger.rpc.overage_reports import OverageReports
from tollkeeper_ledger.rpc.paging import before_of, from_token, next_token, page_size, to_token
from tollkeeper_ledger.services.billing_processes import billing_processes_of
from tollkeeper_ledger.services.invoice_issue import Run
from tollkeeper_ledger.services.invoice_run import run_invoices, together
from tollkeeper_ledger.services.invoice_verify import reproduce_invoice, verify_invoice
from tollkeeper_ledger.services.invoices import (
    finalise_draft,
    list_drafts,
    need_invoice,
    preview_invoice,
    void_invoice,
)
from tollkeeper_ledger.services.pdf.render import PAPERS, render_pdf
from tollkeeper_ledger.services.receivables import credit_invoice
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.services.what_if import what_if
from tollkeeper_ledger.store.billing_invoices import list_invoices
from tollkeeper_ledger.store.catalogue import read_plans
from tollkeeper_ledger.store.idempotency import REQUEST_ID_BYTES_MAX
from tollkeeper_ledger.store.logos import logo_of
from tollkeeper_ledger.store.money import find_credit_note, read_payments
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.usage_archive import hold_months

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.billing_invoices import StoredInvoice

    Context = grpc.aio.ServicerContext[Any, Any]

_STEPS_TOGETHER = 100


class BillingService(OverageReports, CreditNotes, billing_pb2_grpc.BillingServiceServicer):
    """Serve finance."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._pool = resources.pools.billing

    async def ListRateCards(
        self, request: billing_pb2.ListRateCardsRequest, context: Context
    ) -> billing_pb2.ListRateCardsResponse:
        """List what every plan costs in its newest version, tenants' own prices as well."""
        size = page_size(request.page_size)
        (after,) = from_token(request.page_token, start=("",))
        async with connection(self._pool) as conn:
            rows = await read_plans(conn, after=after, count_max=size + 1)
        cards = [rate_card_of(row["definition"], version=row["version"]).decode() for row in rows[:size]]
        token = to_token(rows[size - 1]["name"]) if len(rows) > size else ""
        return billing_pb2.ListRateCardsResponse(rate_cards=cards, next_page_token=token)

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
        steps = run_invoices(
            self._pool,
            run=run,
            only=request.tenant or None,
            processes=billing_processes_of(self._resources.settings),
            with_lines=not request.without_lines,
        )
        async for told in together(steps, count_max=_STEPS_TOGETHER if request.together else 1):
            message = billing_pb2.RunInvoicesResponse(
                due=told[-1].due, done=told[-1].done, held_tenant=told[-1].held_tenant, held_reason=told[-1].held_reason
            )
            made = (step.invoice for step in told if step.invoice is not None)
            shown = [stored_to_message(one, with_lines=not request.without_lines) for one in made]
            if request.together:
                message.invoices.extend(shown)
            elif shown:
                message.invoice.CopyFrom(shown[0])
            yield message

    async def ListInvoices(
        self, request: billing_pb2.ListInvoicesRequest, context: Context
    ) -> billing_pb2.ListInvoicesResponse:
        """List invoices, newest first."""
        size = page_size(request.page_size)
        before = before_of(request.page_token)
        if request.tenant:
            await need_tenant(self._pool, request.tenant)
        async with transaction(self._pool) as conn:
            found = await list_invoices(conn, before=before, count_max=size + 1, only=request.tenant or None)
        token = next_token(found, size, lambda one: (one.finalised_at, one.invoice_id))
        invoices = [stored_to_message(one, with_lines=False) for one in found[:size]]
        return billing_pb2.ListInvoicesResponse(invoices=invoices, next_page_token=token)

    async def GetInvoice(
        self, request: billing_pb2.GetInvoiceRequest, context: Context
    ) -> billing_pb2.GetInvoiceResponse:
        """Give one invoice with its lines."""
        stored = await self._find(request.invoice)
        return billing_pb2.GetInvoiceResponse(invoice=stored_to_message(stored, with_lines=True))

    async def GetInvoicePdf(
        self, request: billing_pb2.GetInvoicePdfRequest, context: Context
    ) -> billing_pb2.GetInvoicePdfResponse:
        """Give the invoice as a PDF."""
        if request.paper and request.paper not in PAPERS:
            raise InvalidFieldError("paper", "is not known", value=request.paper, bound=", ".join(PAPERS))
        async with transaction(self._pool) as conn:
            credit_note = await find_credit_note(conn, request.invoice)
        if credit_note is not None:
            (document, digest), number, is_void = credit_note, request.invoice, False
        else:
            stored = await self._find(request.invoice)
            document, digest, number = stored.document, stored.digest, stored.read()["number"]
            is_void = stored.standing.state == "void"
        async with transaction(self._pool) as conn:
            logo = await logo_of(conn, document)
        pdf = await asyncio.to_thread(
            render_pdf,
            document,
            digest=digest,
            paper=request.paper,
            logo=logo,
            is_void=is_void,
            fonts=self._resources.settings.font_dir,
        )
        return billing_pb2.GetInvoicePdfResponse(pdf=pdf, file_name=f"{number}.pdf")

    async def VoidInvoice(
        self, request: billing_pb2.VoidInvoiceRequest, context: Context
    ) -> billing_pb2.VoidInvoiceResponse:
        """Void an invoice, and issue it again where asked."""
        invoice_id = (await self._find(request.invoice)).invoice_id
        async with transaction(self._pool) as conn:

            async def work() -> billing_pb2.VoidInvoiceResponse:
                act = await act_of(conn, request, context)
                reissued = await void_invoice(conn, invoice_id, note=request.note, reissue=request.reissue, act=act)
                answer = billing_pb2.VoidInvoiceResponse(invoice=await shown_invoice(conn, invoice_id))
                if reissued is not None:
                    answer.reissued.CopyFrom(stored_to_message(reissued, with_lines=True))
                return answer

            return await answer_once(conn, request, billing_pb2.VoidInvoiceResponse, work)

    async def CreateCreditNote(
        self, request: billing_pb2.CreateCreditNoteRequest, context: Context
    ) -> billing_pb2.CreateCreditNoteResponse:
        """Issue a credit note; send back what was paid where asked."""
        if request.amount_minor <= 0:
            raise InvalidFieldError(
                "amount_minor",
                "must be above zero",
                reason="FIELD_OUT_OF_RANGE",
                value=request.amount_minor,
                bound="1 to what the invoice has left",
            )
        invoice_id = (await self._find(request.invoice)).invoice_id
        async with transaction(self._pool) as conn:

            async def work() -> billing_pb2.CreateCreditNoteResponse:
                credited = await credit_invoice(
                    conn,
                    invoice_id,
                    amount_minor=request.amount_minor,
                    note=request.note,
                    refund=request.refund,
                    act=await act_of(conn, request, context),
                )
                return billing_pb2.CreateCreditNoteResponse(
                    number=credited.number,
                    refunded_minor=credited.refunded_minor,
                    invoice=await shown_invoice(conn, invoice_id),
                )

            return await answer_once(conn, request, billing_pb2.CreateCreditNoteResponse, work)

    async def FinalizeInvoice(
        self, request: billing_pb2.FinalizeInvoiceRequest, context: Context
    ) -> billing_pb2.FinalizeInvoiceResponse:
        """Finalise a draft."""
        await need_tenant(self._pool, request.tenant)
        start = request.period_start.ToDatetime(tzinfo=UTC) if request.HasField("period_start") else None
        async with transaction(self._pool) as conn:

            async def work() -> billing_pb2.FinalizeInvoiceResponse:
                run = Run(actor=actor_of(context), request_id=request.request_id)
                made = await finalise_draft(conn, request.tenant, period_start=start, run=run)
                return billing_pb2.FinalizeInvoiceResponse(invoice=stored_to_message(made, with_lines=True))

            return await answer_once(conn, request, billing_pb2.FinalizeInvoiceResponse, work)

    async def ListDrafts(
        self, request: billing_pb2.ListDraftsRequest, context: Context
    ) -> billing_pb2.ListDraftsResponse:
        """List what waits to be finalised."""
        if request.tenant:
            await need_tenant(self._pool, request.tenant)
        size = page_size(request.page_size)
        async with transaction(self._pool) as conn:
            found = await list_drafts(conn, only=request.tenant or None, count_max=size + 1)
        return billing_pb2.ListDraftsResponse(
            invoices=[invoice_to_message(document, digest=b"", with_lines=True) for document in found[:size]],
            more=len(found) > size,
        )

    async def ReproduceInvoice(
        self, request: billing_pb2.ReproduceInvoiceRequest, context: Context
    ) -> billing_pb2.ReproduceInvoiceResponse:
        """Make an invoice's bytes again and compare them."""
        invoice_id = (await self._find(request.invoice)).invoice_id
        async with connection(self._pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            await hold_months(conn)
            made = await reproduce_invoice(conn, invoice_id, from_records=request.from_records)
        return billing_pb2.ReproduceInvoiceResponse(
            digest=digest_of(made.document).hex(),
            stored_digest=digest_of(made.stored).hex(),
            identical=made.document == made.stored,
            document=made.document,
        )

    async def VerifyInvoice(
        self, request: billing_pb2.VerifyInvoiceRequest, context: Context
    ) -> billing_pb2.VerifyInvoiceResponse:
        """Check an invoice against everything that it rests on."""
        invoice_id = (await self._find(request.invoice)).invoice_id
        async with connection(self._pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            await hold_months(conn)
            checks = await verify_invoice(conn, invoice_id)
        return billing_pb2.VerifyInvoiceResponse(
            checks=[billing_pb2.InvoiceCheck(name=one.name, ok=one.ok, detail=telling(one.detail)) for one in checks]
        )

    async def ListPayments(
        self, request: billing_pb2.ListPaymentsRequest, context: Context
    ) -> billing_pb2.ListPaymentsResponse:
        """List payments, newest first."""
        size = page_size(request.page_size)
        only = await need_tenant(self._pool, request.tenant) if request.tenant else None
        async with transaction(self._pool) as conn:
            rows = await read_payments(conn, before=before_of(request.page_token), count_max=size + 1, only=only)
        token = next_token(rows, size, lambda row: (row["received_at"], row["payment_id"]))
        payments = [
            billing_pb2.Payment(
                payment_id=str(row["payment_id"]),
                invoice=row["number"],
                amount_minor=row["amount_minor"],
                currency=row["currency"],
                state="received",
                tenant=row["wire_id"],
                provider=row["provider"],
                reference=row["reference"],
                received_at=timestamp(row["received_at"]),
            )
            for row in rows[:size]
        ]
        return billing_pb2.ListPaymentsResponse(payments=payments, next_page_token=token)

    async def SimulatePlans(
        self, request: billing_pb2.SimulatePlansRequest, context: Context
    ) -> AsyncIterator[billing_pb2.SimulatePlansResponse]:
        """Price a closed month's real usage under other plans."""
        async with connection(self._pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            await hold_months(conn)
            differences = what_if(conn, yaml_text=request.yaml, source_name=request.source_name, period=request.period)
            async for one in differences:
                yield billing_pb2.SimulatePlansResponse(
                    tenant=one.tenant,
                    plan=one.plan,
                    currency=one.currency,
                    period_start=timestamp(one.period.start),
                    period_end=timestamp(one.period.end),
                    before_minor=one.before_minor,
                    after_minor=one.after_minor,
                )

    async def _find(self, name: str) -> StoredInvoice:
        return await need_invoice(self._pool, name)
