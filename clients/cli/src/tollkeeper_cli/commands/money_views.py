"""`revenue`: what was earned, what is owed, rows for cost tools."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import (
    FileOption,
    ReportOption,
    TenantOption,
    moment,
    pages,
    parquet_file,
    targets_of,
)
from tollkeeper_cli.commands.money_forms import tell
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.output import Cell, ReportOutput, money

_MOVED = ("opening", "new", "returned", "expansion", "moved", "contraction", "churned", "closing", "per_tenant")
_TENANTS = ("opening_tenants", "new_tenants", "returned_tenants", "churned_tenants", "closing_tenants")
_SHARES = {"tenant_churn": "tenant_churn_bp", "revenue_churn": "revenue_churn_bp"}
_FOCUS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart",
    "ConsumedQuantity", "ConsumedUnit", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice",
    "PricingQuantity", "PricingUnit", "ProviderName", "ServiceName", "SkuId", "SubAccountId",
)  # fmt: skip
_FOCUS_NUMBERS = ("BilledCost", "ConsumedQuantity", "ListCost", "ListUnitPrice", "PricingQuantity")
_AGES = ("current", "days_30", "days_60", "days_90", "older", "total")


class Group(StrEnum):
    """What revenue is summed by."""

    MONTH = "month"
    PLAN = "plan"
    METER = "meter"
    TENANT = "tenant"


class MarginGroup(StrEnum):
    """What margins are summed by."""

    TENANT = "tenant"
    METER = "meter"
    MONTH = "month"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What was earned, and what is owed.")
    group.command("show")(revenue)
    group.command("margin")(margin)
    group.command("recurring")(recurring)
    group.command("receivables")(receivables)
    group.command("focus")(focus)
    app.add_typer(group, name="revenue")


def revenue(
    context: typer.Context,
    *,
    by: Annotated[Group, typer.Option(help="Month alone, or by plan, meter or tenant as well.")] = Group.MONTH,
    start: Annotated[str, typer.Option("--from", help="Periods that end after then.")] = "",
    end: Annotated[str, typer.Option("--to", help="Periods that end at or before then.")] = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Sum what was invoiced, after coupons and without tax, less credit notes, by month and group.

    Void invoices are left out. An invoice counts in the month (of UTC) in which its period ends, and so do its credit
    notes, whenever they are written. Every cut has the same sum: fees, items and prepaid credit that pays stand in the
    group without a meter, and a credit note comes off its invoice's lines in proportion.
    """
    request = reports_pb2.GetRevenueRequest(by=by.value)
    _set_span(request, start, end)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetRevenue(request, timeout=CALL_TIMEOUT_S)
    rows: list[dict[str, Cell]] = [
        {
            "month": one.month,
            by.value: one.group or one.month,
            "revenue": money(one.revenue_minor, one.currency),
            "currency": one.currency,
            "revenue_minor": one.revenue_minor,
        }
        for one in answer.rows
    ]
    names = ("month",) if by is Group.MONTH else ("month", by.value)
    columns = (*names, "revenue", "currency", "revenue_minor")
    tell(rows, columns, output, file, amounts=("revenue",), title="Revenue", brief=(*names, "revenue"))


def _set_span(request: reports_pb2.GetRevenueRequest | reports_pb2.GetMarginsRequest, start: str, end: str) -> None:
    for name, text in (("from", start), ("to", end)):
        if text:
            getattr(request, name).CopyFrom(moment(text, what=f"--{name}"))


def margin(
    context: typer.Context,
    *,
    by: Annotated[MarginGroup, typer.Option(help="Tenant, meter, or month alone.")] = MarginGroup.TENANT,
    start: Annotated[str, typer.Option("--from", help="Periods that end after then.")] = "",
    end: Annotated[str, typer.Option("--to", help="Periods that end at or before then.")] = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show what is left of revenue once usage is paid at its meters' cost prices, by month and tenant.

    Revenue is what `revenue show` gives. The usage of closed periods counts, invoiced or not, in trials too, at the
    cost price that was in force when the period ended. Different currencies are rows of their own.
    """
    request = reports_pb2.GetMarginsRequest(by=by.value)
    _set_span(request, start, end)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetMargins(request, timeout=CALL_TIMEOUT_S)
    sums = ("revenue", "own_cost", "margin")
    rows: list[dict[str, Cell]] = [
        {
            "month": one.month,
            by.value: one.group or one.month,
            "currency": one.currency,
            **{name: money(getattr(one, f"{name}_minor"), one.currency) for name in sums},
            **{f"{name}_minor": getattr(one, f"{name}_minor") for name in sums},
            "margin_share": _percent(one.margin_bp) if one.HasField("margin_bp") else "",
            "margin_bp": one.margin_bp if one.HasField("margin_bp") else None,
        }
        for one in answer.rows
    ]
    names = ("month",) if by is MarginGroup.MONTH else ("month", by.value)
    columns = (*names, *sums, "margin_share", "currency", *(f"{name}_minor" for name in sums), "margin_bp")
    brief = (*names, *sums, "margin_share")
    tell(rows, columns, output, file, amounts=sums, counts=("margin_bp",), title="Margin", brief=brief)


def recurring(
    context: typer.Context,
    *,
    by_plan: Annotated[bool, typer.Option("--by-plan", help="By plan as well.")] = False,
    start: Annotated[str, typer.Option("--from", help="First month, 2026-01; without it, a year's.")] = "",
    end: Annotated[str, typer.Option("--to", help="Last month; without it, the running one.")] = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show recurring revenue a month (MRR), what moved it, revenue per tenant (ARPU) and churn, by month and currency.

    A subscription is worth its flat fees or its minimum commitment, whichever is more, normalised to a month, before
    coupons, credit and tax; in trials and pauses nothing.
    """
    request = reports_pb2.GetRecurringRevenueRequest(**{"from": start}, to=end, by_plan=by_plan)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetRecurringRevenue(request, timeout=CALL_TIMEOUT_S)
    keys = ("month", "plan", "currency") if by_plan else ("month", "currency")
    minors = tuple(f"{name}_minor" for name in _MOVED)
    brief = (*keys[:-1], "closing", "per_tenant", "new", "expansion", "contraction", "churned")
    columns = (*keys, *_MOVED, *minors, *_TENANTS, *_SHARES, *_SHARES.values())
    rows = [_recurring_row(one) for one in answer.rows]
    counts = (*_TENANTS, *_SHARES.values())
    tell(rows, columns, output, file, amounts=_MOVED, counts=counts, title="Recurring", brief=brief)


def _recurring_row(one: reports_pb2.RecurringRow) -> dict[str, Cell]:
    row: dict[str, Cell] = {"month": one.month, "plan": one.plan, "currency": one.currency}
    for name in _MOVED:
        amount_minor: int = getattr(one, f"{name}_minor")
        is_there = name != "per_tenant" or one.closing_tenants > 0
        row[name] = money(amount_minor, one.currency) if is_there else ""
        row[f"{name}_minor"] = amount_minor if is_there else None
    for name, share in _SHARES.items():
        hundredths: int = getattr(one, share)
        row[name] = _percent(hundredths) if one.opening_tenants else ""
        row[share] = hundredths if one.opening_tenants else None
    return row | {name: getattr(one, name) for name in _TENANTS}


def _percent(hundredths: int) -> str:
    whole, rest = divmod(abs(hundredths), 100)
    return f"{'-' if hundredths < 0 else ''}{whole}.{rest:02d} %"


def receivables(
    context: typer.Context,
    tenant: TenantOption = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Sum what payers owe by age; who owes most first."""
    request = reports_pb2.GetReceivablesRequest(tenant=tenant)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetReceivables(request, timeout=CALL_TIMEOUT_S)
    rows: list[dict[str, Cell]] = [
        {
            "tenant": one.tenant,
            "currency": one.currency,
            **{age: money(getattr(one, f"{age}_minor"), one.currency) for age in _AGES},
            **{f"{age}_minor": getattr(one, f"{age}_minor") for age in _AGES},
        }
        for one in answer.ages
    ]
    minors = tuple(f"{age}_minor" for age in _AGES)
    columns = ("tenant", "currency", *_AGES, *minors)
    tell(rows, columns, output, file, amounts=_AGES, title="Owed", brief=("tenant", *_AGES))


def focus(context: typer.Context, output: ReportOption = ReportOutput.CSV, file: FileOption = None) -> None:
    """Print lines and taxes of invoices and their credit notes as rows shaped like FOCUS, newest invoices first.

    BilledCost adds up to each document's total (minus it for credit notes). ListUnitPrice x PricingQuantity is
    ListCost, before rounding; where no single price explains a line, ListUnitPrice is empty.
    """
    parquet_file(output, file)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).ExportFocus
        found = pages(call, reports_pb2.ExportFocusRequest())
        rows = (dict(row.columns) for page in found for row in page.rows)
        tell(rows, _FOCUS, output, file, amounts=_FOCUS_NUMBERS, title="FOCUS")
