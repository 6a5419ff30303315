"""`invoice`: items that wait for an invoice, and credit notes that were given on one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc, payments_pb2, payments_pb2_grpc

from tollkeeper_cli.commands.common import (
    NoteOption,
    OutputOption,
    TenantOption,
    new_request_id,
    pages,
    require_tenant,
    targets_of,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.output import Cell, Output, money, show, show_json

if TYPE_CHECKING:
    from tollkeeper.ledger.v1.billing_pb2 import CreditNote

_ITEM_COLUMNS = ("tenant", "description", "amount", "amount_minor", "currency", "state", "invoice", "added_at",
                 "item_id")  # fmt: skip
_ITEM_BRIEF = ("tenant", "description", "amount", "state", "invoice", "added_at", "item_id")
_NOTE_COLUMNS = ("number", "invoice", "tenant", "amount", "tax", "amount_minor", "tax_minor", "currency", "issued_at",
                 "note", "digest")  # fmt: skip
_NOTE_BRIEF = ("number", "invoice", "tenant", "amount", "tax", "issued_at", "note")
_TAX_COLUMNS = ("name", "percent", "base", "tax", "base_minor", "tax_minor")


def register(group: typer.Typer) -> None:
    """Add the commands to the group `invoice`."""
    group.command("items")(items)
    group.command("remove-item")(remove_item)
    group.command("credit-notes")(credit_notes)
    group.command("credit-note")(credit_note)


def items(
    context: typer.Context,
    tenant: TenantOption = "",
    *,
    billed: Annotated[bool, typer.Option("--billed", help="Also those that are on an invoice or a draft.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List charges and credits that wait for an invoice, newest first, of one tenant or of all."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = payments_pb2_grpc.PaymentServiceStub(channel).ListInvoiceItems
        request = payments_pb2.ListInvoiceItemsRequest(tenant=tenant, with_billed=billed)
        found = [one for page in pages(call, request) for one in page.items]
    rows: list[dict[str, Cell]] = [
        {
            "tenant": one.tenant,
            "description": one.description,
            "amount": money(one.amount_minor, one.currency),
            "amount_minor": one.amount_minor,
            "currency": one.currency,
            "state": one.state,
            "invoice": one.invoice,
            "added_at": to_text(one.added_at),
            "item_id": one.item_id,
        }
        for one in found
    ]
    show(rows, _ITEM_COLUMNS, output, title="Items", brief=_ITEM_BRIEF)


def remove_item(
    context: typer.Context,
    item_id: Annotated[str, typer.Argument(help="Its id; `tollkeeper invoice items` has them.")],
    tenant: TenantOption = "",
    note: NoteOption = "",
) -> None:
    """Remove a charge or a credit that waits; one that is on an invoice or a draft stays."""
    request = payments_pb2.RemoveInvoiceItemRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), item_id=item_id, note=note
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        payments_pb2_grpc.PaymentServiceStub(channel).RemoveInvoiceItem(request, timeout=CALL_TIMEOUT_S)


def credit_notes(
    context: typer.Context,
    tenant: TenantOption = "",
    invoice: Annotated[str, typer.Option(help="Only those of this invoice.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List credit notes, newest first, of one payer, of one invoice, or all."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = billing_pb2_grpc.BillingServiceStub(channel).ListCreditNotes
        request = billing_pb2.ListCreditNotesRequest(tenant=tenant, invoice=invoice)
        found = [_note_row(one) for page in pages(call, request) for one in page.credit_notes]
    show(found, _NOTE_COLUMNS, output, title="Credit notes", brief=_NOTE_BRIEF)


def credit_note(
    context: typer.Context,
    number: Annotated[str, typer.Argument(help="Its number, or an invoice's that has exactly one.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a credit note with its taxes. `tollkeeper invoice pdf` writes it as a PDF."""
    request = billing_pb2.GetCreditNoteRequest(credit_note=number)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).GetCreditNote(request, timeout=CALL_TIMEOUT_S)
    note = answer.credit_note
    row = _note_row(note)
    taxes: list[dict[str, Cell]] = [
        {
            "name": tax.name,
            "percent": tax.percent,
            "base": money(tax.base_minor, note.currency),
            "tax": money(tax.tax_minor, note.currency),
            "base_minor": tax.base_minor,
            "tax_minor": tax.tax_minor,
        }
        for tax in note.taxes
    ]
    if output is Output.JSON:
        show_json({**row, "taxes": taxes})
        return
    show([row], _NOTE_COLUMNS, output, title="Credit note", brief=_NOTE_BRIEF)
    if output is Output.TABLE:
        show(taxes, _TAX_COLUMNS, output, title="Taxes", brief=_TAX_COLUMNS[:4])


def _note_row(note: CreditNote) -> dict[str, Cell]:
    return {
        "number": note.number,
        "invoice": note.invoice,
        "tenant": note.tenant,
        "amount": money(note.amount_minor, note.currency),
        "tax": money(note.tax_minor, note.currency),
        "amount_minor": note.amount_minor,
        "tax_minor": note.tax_minor,
        "currency": note.currency,
        "issued_at": to_text(note.issued_at),
        "note": note.note,
        "digest": note.digest,
    }
