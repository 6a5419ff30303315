"""`invoice`: what happens to an invoice after it was made, and whether it is what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc, payments_pb2, payments_pb2_grpc

from tollkeeper_cli.commands.common import (
    PAGE_SIZE,
    NoteOption,
    OutputOption,
    PageOption,
    TenantOption,
    moment,
    new_request_id,
    require_tenant,
    say_if_cut,
    targets_of,
)
from tollkeeper_cli.commands.invoice_rows import BRIEF, COLUMNS, InvoiceArgument, invoice_row
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CHECK_COLUMNS = ("check", "ok", "detail")
_REPRODUCE_TIMEOUT_S = 600.0


def register(group: typer.Typer) -> None:
    """Add the commands to the group `invoice`."""
    group.command("finalize")(finalize)
    group.command("drafts")(drafts)
    group.command("void")(void)
    group.command("credit")(credit)
    group.command("write-off")(write_off)
    group.command("add-item")(add_item)
    group.command("reproduce")(reproduce)
    group.command("verify")(verify)
    group.command("send")(send)


def _billing(context: typer.Context, name: str, request: Any, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call: Callable[..., Any] = getattr(billing_pb2_grpc.BillingServiceStub(channel), name)
        return call(request, timeout=timeout_s)


def _payments(context: typer.Context, name: str, request: Any) -> Any:
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call: Callable[..., Any] = getattr(payments_pb2_grpc.PaymentServiceStub(channel), name)
        return call(request, timeout=CALL_TIMEOUT_S)


def _show(invoices: Sequence[billing_pb2.Invoice], output: Output, title: str) -> None:
    show([invoice_row(invoice) for invoice in invoices], COLUMNS, output, title=title, brief=BRIEF)


def finalize(
    context: typer.Context,
    tenant: TenantOption = "",
    period: Annotated[str, typer.Option(help="Start of the draft's period; without it, the oldest.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Finalise a draft of a tenant whose invoices wait for review."""
    request = billing_pb2.FinalizeInvoiceRequest(request_id=new_request_id(), tenant=require_tenant(tenant))
    if period:
        request.period_start.CopyFrom(moment(period, what="--period"))
    _show([_billing(context, "FinalizeInvoice", request).invoice], output, "Finalised")


def drafts(
    context: typer.Context,
    tenant: TenantOption = "",
    *,
    limit: PageOption = PAGE_SIZE,
    output: OutputOption = Output.TABLE,
) -> None:
    """List drafts, oldest first."""
    answer = _billing(context, "ListDrafts", billing_pb2.ListDraftsRequest(tenant=tenant, page_size=limit))
    _show(answer.invoices, output, "Drafts")
    say_if_cut(answer, limit)


def void(
    context: typer.Context,
    invoice: InvoiceArgument,
    note: NoteOption = "",
    *,
    reissue: Annotated[bool, typer.Option("--reissue", help="Issue it again with today's data.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Void an invoice on which nothing was paid or credited, and issue it again where asked."""
    request = billing_pb2.VoidInvoiceRequest(request_id=new_request_id(), invoice=invoice, note=note, reissue=reissue)
    answer = _billing(context, "VoidInvoice", request)
    _show([answer.invoice, *([answer.reissued] if answer.HasField("reissued") else [])], output, "Void")


def credit(
    context: typer.Context,
    invoice: InvoiceArgument,
    amount_minor: Annotated[int, typer.Argument(help="Minor units, tax contained.", min=1)],
    note: NoteOption = "",
    *,
    refund: Annotated[bool, typer.Option("--refund", help="Send back what was paid.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Issue a credit note; what was paid goes into the payer's balance, or back."""
    request = billing_pb2.CreateCreditNoteRequest(
        request_id=new_request_id(), invoice=invoice, amount_minor=amount_minor, note=note, refund=refund
    )
    answer = _billing(context, "CreateCreditNote", request)
    row: dict[str, Cell] = {
        "credit_note": answer.number,
        "invoice": answer.invoice.number,
        "state": answer.invoice.state,
        "due_minor": answer.invoice.due_minor,
        "refunded_minor": answer.refunded_minor,
    }
    show([row], tuple(row), output, title="Credit note")


def write_off(
    context: typer.Context, invoice: InvoiceArgument, note: NoteOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Give up what is due on an invoice."""
    request = payments_pb2.WriteOffInvoiceRequest(request_id=new_request_id(), invoice=invoice, note=note)
    _show([_payments(context, "WriteOffInvoice", request).invoice], output, "Written off")


def add_item(
    context: typer.Context,
    description: Annotated[str, typer.Argument(help="What it is, for people.")],
    amount_minor: Annotated[int, typer.Option("--amount-minor", help="Minor units; below zero for a credit.")],
    currency: Annotated[str, typer.Option(help="The plan's currency.")],
    tenant: TenantOption = "",
) -> None:
    """Add a charge, or a credit below zero, to a tenant's next invoice."""
    request = payments_pb2.AddInvoiceItemRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        description=description,
        amount_minor=amount_minor,
        currency=currency,
    )
    typer.echo(_payments(context, "AddInvoiceItem", request).item_id)


def reproduce(
    context: typer.Context,
    invoice: InvoiceArgument,
    *,
    from_records: Annotated[bool, typer.Option("--from-records", help="Sum the raw records again as well.")] = False,
    file: Annotated[str, typer.Option(help="Write the bytes made again there.")] = "",
) -> None:
    """Make an invoice's bytes again from its stored inputs. Exit code 1 where they differ."""
    request = billing_pb2.ReproduceInvoiceRequest(invoice=invoice, from_records=from_records)
    answer = _billing(context, "ReproduceInvoice", request, timeout_s=_REPRODUCE_TIMEOUT_S)
    if file:
        try:
            Path(file).write_bytes(answer.document)
        except OSError as error:
            raise UsageError(f"{file}: {error}") from error
    sys.stdout.write(f"made again  {answer.digest}\nstored      {answer.stored_digest}\n")
    sys.stdout.write("identical\n" if answer.identical else "DIFFERENT\n")
    if not answer.identical:
        raise typer.Exit(1)


def verify(context: typer.Context, invoice: InvoiceArgument, output: OutputOption = Output.TABLE) -> None:
    """Check an invoice down to the records. Names the first wrong row of each check; exit code 1 where one is."""
    request = billing_pb2.VerifyInvoiceRequest(invoice=invoice)
    answer = _billing(context, "VerifyInvoice", request, timeout_s=_REPRODUCE_TIMEOUT_S)
    rows: list[dict[str, Cell]] = [
        {"check": check.name, "ok": check.ok, "detail": check.detail} for check in answer.checks
    ]
    show(rows, _CHECK_COLUMNS, output, title=f"Invoice {invoice}")
    if not all(check.ok for check in answer.checks):
        raise typer.Exit(1)


def send(context: typer.Context, invoice: InvoiceArgument) -> None:
    """Send an invoice by mail again, to the payer's address as it is now."""
    request = payments_pb2.SendInvoiceRequest(request_id=new_request_id(), invoice=invoice)
    mail = _payments(context, "SendInvoice", request).mail
    typer.echo(f"{mail.state} for {mail.recipient}")
