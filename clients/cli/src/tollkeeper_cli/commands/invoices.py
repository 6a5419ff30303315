"""`invoice`: what is to pay."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc

from tollkeeper_cli.commands import credit_notes, invoice_changes
from tollkeeper_cli.commands.common import (
    FileOption,
    OutputOption,
    ReportOption,
    TenantOption,
    new_request_id,
    pages,
    parquet_file,
    require_tenant,
    targets_of,
)
from tollkeeper_cli.commands.invoice_rows import BRIEF, COLUMNS, InvoiceArgument, invoice_row
from tollkeeper_cli.commands.invoice_whole import show_whole
from tollkeeper_cli.commands.money_forms import tell
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Output, ReportOutput, show

_RUN_TIMEOUT_S = 3_600.0


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
    invoice_changes.register(group)
    credit_notes.register(group)
    app.add_typer(group, name="invoice")


def preview(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Rate a tenant's running period as it stands. Stores nothing."""
    request = billing_pb2.PreviewInvoiceRequest(tenant=require_tenant(tenant))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).PreviewInvoice(request, timeout=CALL_TIMEOUT_S)
    show_whole(answer.invoice, output)


def run(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Close every period that is due and finalise its invoice, once each. Safe to repeat."""
    request = billing_pb2.RunInvoicesRequest(
        request_id=new_request_id(), tenant=tenant, without_lines=True, together=True
    )
    notes = Console(stderr=True)
    made: list[billing_pb2.Invoice] = []
    shown = Progress(TextColumn("billing"), BarColumn(), MofNCompleteColumn(), console=notes, transient=True)
    with channel_to(targets_of(context).ledger, server="ledger") as channel, shown as bar:
        task = bar.add_task("billing", total=None)
        steps = billing_pb2_grpc.BillingServiceStub(channel).RunInvoices(request, timeout=_RUN_TIMEOUT_S)
        try:
            for step in steps:
                bar.update(task, total=step.due, completed=step.done)
                # A ledger before this client tells of one at a time.
                made.extend(step.invoices or ([step.invoice] if step.HasField("invoice") else []))
                if step.held_tenant:
                    bar.console.print(f"held: {step.held_tenant}: {step.held_reason}", markup=False, highlight=False)
        except grpc.RpcError:
            # These are made, and no repeat lists them again.
            if made:
                _show_made(made, output)
            raise
    _show_made(made, output)


def _show_made(made: list[billing_pb2.Invoice], output: Output) -> None:
    show([invoice_row(invoice) for invoice in made], COLUMNS, output, title="Finalised", brief=BRIEF)


def list_invoices(
    context: typer.Context,
    tenant: TenantOption = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """List invoices, newest first, of one tenant or of all."""
    parquet_file(output, file)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = billing_pb2_grpc.BillingServiceStub(channel).ListInvoices
        request = billing_pb2.ListInvoicesRequest(tenant=tenant)
        rows = (invoice_row(invoice) for page in pages(call, request) for invoice in page.invoices)
        tell(rows, COLUMNS, output, file, amounts=("total", "due"), title="Invoices", brief=BRIEF)


def show_invoice(context: typer.Context, invoice: InvoiceArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one invoice with its lines."""
    request = billing_pb2.GetInvoiceRequest(invoice=invoice)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).GetInvoice(request, timeout=CALL_TIMEOUT_S)
    show_whole(answer.invoice, output)


def pdf(
    context: typer.Context,
    invoice: InvoiceArgument,
    file: Annotated[Path | None, typer.Argument(help="Where to write; without it, the invoice's own name.")] = None,
    *,
    paper: Annotated[Paper | None, typer.Option(help="Size of the paper; without it, the payer's.")] = None,
) -> None:
    """Write an invoice as a PDF and print where."""
    request = billing_pb2.GetInvoicePdfRequest(invoice=invoice, paper=paper.value if paper else "")
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = billing_pb2_grpc.BillingServiceStub(channel).GetInvoicePdf(request, timeout=CALL_TIMEOUT_S)
    target = file or Path(Path(answer.file_name).name or f"{invoice}.pdf")
    try:
        target.write_bytes(answer.pdf)
    except OSError as error:
        raise UsageError(f"{target}: {error}") from error
    typer.echo(str(target))
