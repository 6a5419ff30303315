"""`invoice`: what is to pay."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc

from tollkeeper_cli.commands.common import (
    OutputOption,
    TenantOption,
    new_request_id,
    pages,
    require_tenant,
    targets_of,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, money, show

_COLUMNS = (
    "number", "tenant", "state", "total", "currency", "total_minor", "period_start", "period_end", "finalised_at",
    "plan",
)  # fmt: skip
_BRIEF = ("number", "tenant", "state", "total", "period_start", "period_end")
_LINE_BRIEF = ("description", "quantity", "included", "charged", "unit_price", "amount")
_LINE_COLUMNS = ("description", "meter", "quantity", "unit", "included", "charged", "unit_price", "price_per", "amount")
_RUN_TIMEOUT_S = 3_600.0

InvoiceArgument = Annotated[str, typer.Argument(help="The invoice's number.")]


class Paper(StrEnum):
    """Paper of a PDF."""

    A4 = "a4"
    LETTER = "letter"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What is to pay.")
    group.command("preview")(preview)
    group.command("run")(run)
    group.command("list")(list_invoices)
    group.command("show")(show_invoice)
    group.command("pdf")(pdf)
    app.add_typer(group, name="invoice")


def preview(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Rate a tenant's running period as it stands. Stores nothing."""
    request = billing_pb2.PreviewInvoiceRequest(tenant=require_tenant(tenant))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).PreviewInvoice(request, timeout=CALL_TIMEOUT_S)
    _show_with_lines(answer.invoice, output)


def run(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Close every period that is due and finalise its invoice, once each. Safe to repeat."""
    request = billing_pb2.RunInvoicesRequest(request_id=new_request_id(), tenant=tenant)
    notes = Console(stderr=True)
    made: list[billing_pb2.Invoice] = []
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        for step in billing_pb2_grpc.BillingServiceStub(channel).RunInvoices(request, timeout=_RUN_TIMEOUT_S):
            if step.HasField("invoice"):
                made.append(step.invoice)
            if step.held_tenant:
                notes.print(f"held: {step.held_tenant}: {step.held_reason}", markup=False, highlight=False)
    show([_row(invoice) for invoice in made], _COLUMNS, output, title="Finalised", brief=_BRIEF)


def list_invoices(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """List invoices, newest first, of one tenant or of all."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = billing_pb2_grpc.BillingServiceStub(channel).ListInvoices
        request = billing_pb2.ListInvoicesRequest(tenant=tenant)
        found = [invoice for page in pages(call, request) for invoice in page.invoices]
    show([_row(invoice) for invoice in found], _COLUMNS, output, title="Invoices", brief=_BRIEF)


def show_invoice(context: typer.Context, invoice: InvoiceArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one invoice with its lines."""
    request = billing_pb2.GetInvoiceRequest(invoice=invoice)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).GetInvoice(request, timeout=CALL_TIMEOUT_S)
    _show_with_lines(answer.invoice, output)


def pdf(
    context: typer.Context,
    invoice: InvoiceArgument,
    file: Annotated[Path | None, typer.Argument(help="Where to write; without it, the invoice's own name.")] = None,
    *,
    paper: Annotated[Paper, typer.Option(help="Size of the paper.")] = Paper.A4,
) -> None:
    """Write an invoice as a PDF and print where."""
    request = billing_pb2.GetInvoicePdfRequest(invoice=invoice, paper=paper.value)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).GetInvoicePdf(request, timeout=CALL_TIMEOUT_S)
    target = file or Path(Path(answer.file_name).name or f"{invoice}.pdf")
    try:
        target.write_bytes(answer.pdf)
    except OSError as error:
        raise UsageError(f"{target}: {error}") from error
    typer.echo(str(target))


def _row(invoice: billing_pb2.Invoice) -> dict[str, Cell]:
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
    }


def _show_with_lines(invoice: billing_pb2.Invoice, output: Output) -> None:
    """Show an invoice's head and its lines; JSON and CSV carry the lines, each with the invoice's number."""
    lines: list[dict[str, Cell]] = [
        {
            "invoice": invoice.number,
            "description": line.description,
            "meter": line.meter,
            "quantity": line.quantity,
            "unit": line.unit,
            "included": line.included,
            "charged": line.charged,
            "unit_price": line.unit_price,
            "price_per": line.price_per,
            "amount": money(line.amount_minor, invoice.currency),
            "amount_minor": line.amount_minor,
            "explanation": list(line.explanation),
        }
        for line in invoice.lines
    ]
    if output is Output.TABLE:
        show([_row(invoice)], _COLUMNS, output, title=f"Invoice {invoice.number or '(preview)'}", brief=_BRIEF)
        show(lines, _LINE_COLUMNS, output, title="Lines", brief=_LINE_BRIEF)
    else:
        show(lines, ("invoice", *_LINE_COLUMNS, "amount_minor", "explanation"), output)
