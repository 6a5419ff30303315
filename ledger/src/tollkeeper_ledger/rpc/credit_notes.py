# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""BillingService's part about credit notes."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import billing_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.paging import before_of, next_token, page_size
from tollkeeper_ledger.services.invoices import need_invoice
from tollkeeper_ledger.services.tenants import need_tenant
from tollkeeper_ledger.store.money import find_credit_note, read_credit_notes
from tollkeeper_ledger.store.pool import transaction

if TYPE_CHECKING:
    import grpc.aio

    from tollkeeper_ledger.store.pool import Pool

    Context = grpc.aio.ServicerContext[Any, Any]


def _credit_note(document: bytes, digest: bytes) -> billing_pb2.CreditNote:
    stored = json.loads(document)
    return billing_pb2.CreditNote(
        number=stored["number"],
        invoice=stored["invoice"],
        tenant=stored["billing_tenant"]["id"],
        amount_minor=stored["total_minor"],
        tax_minor=stored["tax_minor"],
        currency=stored["currency"],
        issued_at=timestamp(datetime.fromisoformat(stored["finalised_at"])),
        note=stored["note"],
        taxes=[billing_pb2.InvoiceTax(**tax) for tax in stored["taxes"]],
        digest=digest.hex(),
    )


class CreditNotes:
    """Serve what concerns credit notes."""

    _pool: Pool

    async def ListCreditNotes(
        self, request: billing_pb2.ListCreditNotesRequest, context: Context
    ) -> billing_pb2.ListCreditNotesResponse:
        """List credit notes, newest first."""
        size = page_size(request.page_size)
        only = await need_tenant(self._pool, request.tenant) if request.tenant else None
        invoice_id = (await need_invoice(self._pool, request.invoice)).invoice_id if request.invoice else None
        async with transaction(self._pool) as conn:
            rows = await read_credit_notes(
                conn, before=before_of(request.page_token), count_max=size + 1, only=only, invoice_id=invoice_id
            )
        return billing_pb2.ListCreditNotesResponse(
            credit_notes=[_credit_note(row["document"], row["digest"]) for row in rows[:size]],
            next_page_token=next_token(rows, size, lambda row: (row["issued_at"], row["credit_note_id"])),
        )

    async def GetCreditNote(
        self, request: billing_pb2.GetCreditNoteRequest, context: Context
    ) -> billing_pb2.GetCreditNoteResponse:
        """Give a credit note by its number, or an invoice's only one."""
        async with transaction(self._pool) as conn:
            found = await find_credit_note(conn, request.credit_note)
        if found is None:
            found = await self._only_one(request.credit_note)
        return billing_pb2.GetCreditNoteResponse(credit_note=_credit_note(*found))

    async def _only_one(self, invoice: str) -> tuple[bytes, bytes]:
        invoice_id = (await need_invoice(self._pool, invoice)).invoice_id
        async with transaction(self._pool) as conn:
            rows = await read_credit_notes(conn, before=None, count_max=2, only=None, invoice_id=invoice_id)
        if len(rows) != 1:
            problem = "is an invoice with several credit notes" if rows else "is an invoice without a credit note"
            raise InvalidFieldError(
                "credit_note", problem, value=invoice, remedy="ListCreditNotes gives the numbers of an invoice's"
            )
        return rows[0]["document"], rows[0]["digest"]
