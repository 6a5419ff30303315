"""`payment`: how payers are billed, what came in, what moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc, payments_pb2, payments_pb2_grpc

from tollkeeper_cli.commands.common import (
    LIMIT_DEFAULT,
    PAGE_SIZE,
    OutputOption,
    PageOption,
    TenantOption,
    moment,
    new_request_id,
    pages,
    require_tenant,
    say_if_cut,
    targets_of,
    whole_number,
)
from tollkeeper_cli.commands.invoice_rows import BRIEF, COLUMNS, InvoiceArgument, invoice_row
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, money, show

if TYPE_CHECKING:
    from collections.abc import Callable

_PAYMENT_COLUMNS = ("received_at", "tenant", "invoice", "amount", "amount_minor", "currency", "provider", "reference")
_JOURNAL_COLUMNS = ("at", "tenant", "kind", "debit", "credit", "amount", "amount_minor", "currency", "subject")
_TAX_HELP = "NAME=PERCENT, or NAME=PERCENT@METER,METER for these meters alone; again for more. Replaces all taxes."
_DAYS_MAX = 365
_ACCOUNT_COLUMNS = ("currency", "account", "sum", "sum_minor")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="How payers are billed, what came in, what moved.")
    group.command("profile")(profile)
    group.command("set-profile")(set_profile)
    group.command("record")(record)
    group.command("list")(list_payments)
    group.command("journal")(journal)
    group.command("accounts")(accounts)
    group.command("card-page")(card_page)
    group.command("remove-method")(remove_method)
    group.command("jobs")(jobs)
    group.command("mails")(mails)
    group.command("reconcile")(reconcile)
    group.command("reconciliations")(reconciliations)
    group.command("disputes")(disputes)
    app.add_typer(group, name="payment")


def call_payments(context: typer.Context, name: str, request: Any) -> Any:
    """Call a method of PaymentService."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call: Callable[..., Any] = getattr(payments_pb2_grpc.PaymentServiceStub(channel), name)
        return call(request, timeout=CALL_TIMEOUT_S)


def profile(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Show how a payer is billed."""
    request = payments_pb2.GetBillingProfileRequest(tenant=require_tenant(tenant))
    _show_profile(call_payments(context, "GetBillingProfile", request).profile, output)


def set_profile(
    context: typer.Context,
    tenant: TenantOption = "",
    *,
    email: Annotated[str | None, typer.Option(help="Where invoices are sent to.")] = None,
    locale: Annotated[str | None, typer.Option(help="en, de or fr.")] = None,
    paper: Annotated[str | None, typer.Option(help="a4 or letter.")] = None,
    provider: Annotated[str | None, typer.Option(help="manual or stripe.")] = None,
    due_days: Annotated[int | None, typer.Option(help="Days until an invoice is to be paid.", min=0)] = None,
    tax: Annotated[list[str] | None, typer.Option(help=_TAX_HELP)] = None,
    tax_mode: Annotated[str | None, typer.Option(help="exclusive, inclusive, reverse_charge or exempt.")] = None,
    review: Annotated[bool | None, typer.Option(help="Invoices wait as drafts.")] = None,
    dunning_days: Annotated[str | None, typer.Option(help="When a failed payment is tried again: 1,3,5,7.")] = None,
    dunning_policy: Annotated[str | None, typer.Option(help="mark, suspend, uncollectible or fallback.")] = None,
    fallback_plan: Annotated[str | None, typer.Option(help="The plan that fallback moves to.")] = None,
    pays_by: Annotated[str | None, typer.Option(help="What was agreed, of manual payers: bank transfer.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change how a payer is billed, from the next invoice on. What is not named stays."""
    name = require_tenant(tenant)
    changed = call_payments(context, "GetBillingProfile", payments_pb2.GetBillingProfileRequest(tenant=name)).profile
    given = {
        "email": email,
        "locale": locale,
        "paper": paper,
        "provider": provider,
        "due_days": due_days,
        "tax_mode": tax_mode,
        "review": review,
        "dunning_policy": dunning_policy,
        "fallback_plan": fallback_plan,
        "pays_by": pays_by,
    }
    for field, value in given.items():
        if value is not None:
            setattr(changed, field, value)
    if tax is not None:
        del changed.taxes[:]
        changed.taxes.extend(_tax_rate(one) for one in tax if one)
    if dunning_days is not None:
        changed.dunning_days[:] = [_day(one) for one in dunning_days.split(",") if one.strip()]
    request = payments_pb2.SetBillingProfileRequest(request_id=new_request_id(), profile=changed)
    _show_profile(call_payments(context, "SetBillingProfile", request).profile, output)


def _tax_rate(word: str) -> payments_pb2.TaxRate:
    rate, at, meters = word.partition("@")
    name, equals, percent = rate.partition("=")
    named = [meter.strip() for meter in meters.split(",") if meter.strip()]
    if not equals or not name or (at and not named):
        raise UsageError(f"--tax {word!r} is not of the form NAME=PERCENT or NAME=PERCENT@METER,METER")
    return payments_pb2.TaxRate(name=name, percent=percent, meters=named)


def _day(text: str) -> int:
    day = whole_number(text.strip(), what="--dunning-days")
    if not 0 < day <= _DAYS_MAX:
        raise UsageError(f"--dunning-days has {day}, expected days from 1 to {_DAYS_MAX}")
    return day


def record(
    context: typer.Context,
    invoice: InvoiceArgument,
    reference: Annotated[str, typer.Option(help="The bank's name of the payment.")],
    amount_minor: Annotated[int, typer.Option("--amount-minor", help="Minor units; 0 = what is due.", min=0)] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Record money that came in for an invoice. One reference is one payment."""
    request = payments_pb2.RecordPaymentRequest(
        request_id=new_request_id(), invoice=invoice, amount_minor=amount_minor, reference=reference
    )
    paid = call_payments(context, "RecordPayment", request).invoice
    show([invoice_row(paid)], COLUMNS, output, title="Paid", brief=BRIEF)


def list_payments(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """List payments, newest first, of one payer or of all."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = billing_pb2_grpc.BillingServiceStub(channel).ListPayments
        request = billing_pb2.ListPaymentsRequest(tenant=tenant)
        found = [payment for page in pages(call, request) for payment in page.payments]
    rows: list[dict[str, Cell]] = [
        {
            "received_at": to_text(one.received_at),
            "tenant": one.tenant,
            "invoice": one.invoice,
            "amount": money(one.amount_minor, one.currency),
            "amount_minor": one.amount_minor,
            "currency": one.currency,
            "provider": one.provider,
            "reference": one.reference,
        }
        for one in found
    ]
    show(rows, _PAYMENT_COLUMNS, output, title="Payments", brief=(*_PAYMENT_COLUMNS[:4], "provider", "reference"))


def journal(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """List every movement of money, newest first."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = payments_pb2_grpc.PaymentServiceStub(channel).ListJournal
        request = payments_pb2.ListJournalRequest(tenant=tenant)
        found = [transfer for page in pages(call, request) for transfer in page.transfers]
    rows: list[dict[str, Cell]] = [
        {
            "at": to_text(one.at),
            "tenant": one.tenant,
            "kind": one.kind,
            "debit": one.debit,
            "credit": one.credit,
            "amount": money(one.amount_minor, one.currency),
            "amount_minor": one.amount_minor,
            "currency": one.currency,
            "subject": one.subject,
        }
        for one in found
    ]
    show(rows, _JOURNAL_COLUMNS, output, title="Journal", brief=(*_JOURNAL_COLUMNS[:6], "subject"))


def accounts(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Sum the journal by account; the accounts of one currency sum to zero. Exit code 1 where they don't."""
    answer = call_payments(context, "GetAccounts", payments_pb2.GetAccountsRequest(tenant=tenant))
    sums: dict[str, int] = {}
    for one in answer.accounts:
        sums[one.currency] = sums.get(one.currency, 0) + one.sum_minor
    rows: list[dict[str, Cell]] = [
        {
            "currency": one.currency,
            "account": one.account,
            "sum": money(one.sum_minor, one.currency),
            "sum_minor": one.sum_minor,
        }
        for one in answer.accounts
    ]
    show(rows, _ACCOUNT_COLUMNS, output, title="Accounts", brief=_ACCOUNT_COLUMNS[:3])
    if any(sums.values()):
        raise typer.Exit(1)


def card_page(
    context: typer.Context,
    return_url: Annotated[str, typer.Option(help="Where the payer goes afterwards, https.")],
    tenant: TenantOption = "",
    *,
    portal: Annotated[bool, typer.Option("--portal", help="See and change cards instead of entering one.")] = False,
) -> None:
    """Print the address of a page at the provider on which the payer enters a card."""
    request = payments_pb2.CreateCardPageRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        kind="portal" if portal else "checkout",
        return_url=return_url,
    )
    typer.echo(call_payments(context, "CreateCardPage", request).url)


def remove_method(context: typer.Context, tenant: TenantOption = "") -> None:
    """Remove all cards of a payer at the provider. What is owed stays due, and waits for another one."""
    request = payments_pb2.RemovePaymentMethodRequest(request_id=new_request_id(), tenant=require_tenant(tenant))
    call_payments(context, "RemovePaymentMethod", request)


def jobs(context: typer.Context, *, limit: PageOption = PAGE_SIZE, output: OutputOption = Output.TABLE) -> None:
    """List what is being done at the providers, failures first. Exit code 1 where something failed."""
    answer = call_payments(context, "ListProviderJobs", payments_pb2.ListProviderJobsRequest(page_size=limit))
    rows: list[dict[str, Cell]] = [
        {
            "invoice": one.invoice,
            "tenant": one.tenant,
            "kind": one.kind,
            "step": one.step,
            "state": one.state,
            "next_at": to_text(one.next_at),
            "error": one.error,
        }
        for one in answer.jobs
    ]
    show(rows, ("invoice", "tenant", "kind", "step", "state", "next_at", "error"), output, title="Provider jobs")
    say_if_cut(answer, limit)
    if any(one.state == "failed" for one in answer.jobs):
        raise typer.Exit(1)


def mails(context: typer.Context, *, limit: PageOption = PAGE_SIZE, output: OutputOption = Output.TABLE) -> None:
    """List mails, newest first. Exit code 1 where one failed or may not have arrived."""
    answer = call_payments(context, "ListMails", payments_pb2.ListMailsRequest(page_size=limit))
    rows: list[dict[str, Cell]] = [
        {
            "invoice": one.invoice,
            "tenant": one.tenant,
            "kind": one.kind,
            "recipient": one.recipient,
            "state": one.state,
            "attempts": one.attempts,
            "reply": one.reply,
        }
        for one in answer.mails
    ]
    show(rows, ("invoice", "tenant", "kind", "recipient", "state", "attempts", "reply"), output, title="Mails")
    say_if_cut(answer, limit)
    if any(one.state in ("failed", "unknown") for one in answer.mails):
        raise typer.Exit(1)


def reconcile(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="Only invoices finalised since then.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare with the provider in both directions and name every difference; exit code 1 where there is one."""
    request = payments_pb2.ReconcileRequest()
    if since:
        request.since.CopyFrom(moment(since, what="--since"))
    answer = call_payments(context, "Reconcile", request)
    rows: list[dict[str, Cell]] = [{"invoice": one.invoice, "problem": one.problem} for one in answer.differences]
    show(rows, ("invoice", "problem"), output, title=f"Compared {answer.compared} invoices")
    if answer.differences:
        raise typer.Exit(1)


def disputes(context: typer.Context, *, limit: PageOption = PAGE_SIZE, output: OutputOption = Output.TABLE) -> None:
    """List payments that payers had their banks take back, open ones first; exit code 1 where one is open."""
    answer = call_payments(context, "ListDisputes", payments_pb2.ListDisputesRequest(page_size=limit))
    names = ("invoice", "tenant", "stage", "status", "reason", "amount_minor", "currency", "dispute_id")
    rows: list[dict[str, Cell]] = [
        {
            **{name: getattr(one, name) for name in names},
            "amount": money(one.amount_minor, one.currency),
            "evidence_by": to_text(one.evidence_by),
            "opened_at": to_text(one.opened_at),
        }
        for one in answer.disputes
    ]
    brief = ("invoice", "tenant", "stage", "amount", "reason", "evidence_by")
    show(rows, (*names, "amount", "evidence_by", "opened_at"), output, title="Disputes", brief=brief)
    say_if_cut(answer, limit)
    if any(one.stage == "open" for one in answer.disputes):
        raise typer.Exit(1)


def reconciliations(
    context: typer.Context, *, limit: PageOption = LIMIT_DEFAULT, output: OutputOption = Output.TABLE
) -> None:
    """List what the nightly comparisons found, newest first; exit code 1 where the newest found a difference."""
    answer = call_payments(context, "ListReconciliations", payments_pb2.ListReconciliationsRequest(page_size=limit))
    rows: list[dict[str, Cell]] = [
        {
            "at": to_text(one.at),
            "provider": one.provider,
            "since": to_text(one.since),
            "compared": one.compared,
            "invoice": difference.invoice,
            "problem": difference.problem,
        }
        for one in answer.reconciliations
        for difference in one.differences or [payments_pb2.ProviderDifference(problem=one.problem)]
    ]
    show(rows, ("at", "provider", "since", "compared", "invoice", "problem"), output, title="Nightly comparisons")
    say_if_cut(answer, limit)
    newest = answer.reconciliations[:1]
    if any(one.differences or one.problem for one in newest):
        raise typer.Exit(1)


def _tax_text(tax: payments_pb2.TaxRate) -> str:
    return f"{tax.name}={tax.percent}{'@' if tax.meters else ''}{','.join(tax.meters)}"


def _show_profile(shown: payments_pb2.BillingProfile, output: Output) -> None:
    row: dict[str, Cell] = {
        "tenant": shown.tenant,
        "email": shown.email,
        "locale": shown.locale,
        "paper": shown.paper,
        "provider": shown.provider,
        "due_days": shown.due_days,
        "taxes": [_tax_text(tax) for tax in shown.taxes],
        "tax_mode": shown.tax_mode,
        "review": shown.review,
        "dunning_days": [str(day) for day in shown.dunning_days],
        "dunning_policy": shown.dunning_policy,
        "fallback_plan": shown.fallback_plan,
        "pays_by": shown.pays_by,
        "method": shown.method,
    }
    show([row], tuple(row), output, title="Billing profile")
