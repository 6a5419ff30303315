"""`revenue`: what was earned, what is owed, rows for cost tools."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, TenantOption, moment, pages, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.output import Cell, Output, money, show

_AGES = ("current", "days_30", "days_60", "days_90", "older", "total")


class Group(StrEnum):
    """What revenue is summed by."""

    MONTH = "month"
    PLAN = "plan"
    METER = "meter"
    TENANT = "tenant"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What was earned, and what is owed.")
    group.command("show")(revenue)
    group.command("receivables")(receivables)
    group.command("focus")(focus)
    app.add_typer(group, name="revenue")


def revenue(
    context: typer.Context,
    *,
    by: Annotated[Group, typer.Option(help="Month alone, or by plan, meter or tenant as well.")] = Group.MONTH,
    start: Annotated[str, typer.Option("--from", help="Periods that end after then.")] = "",
    end: Annotated[str, typer.Option("--to", help="Periods that end at or before then.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Sum what was invoiced without tax, by month and group."""
    request = reports_pb2.GetRevenueRequest(by=by.value)
    for name, text in (("from", start), ("to", end)):
        if text:
            getattr(request, name).CopyFrom(moment(text, what=f"--{name}"))
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
    show(rows, columns, output, title="Revenue", brief=(*names, "revenue"))


def receivables(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
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
    show(rows, ("tenant", "currency", *_AGES, *minors), output, title="Owed", brief=("tenant", *_AGES))


def focus(context: typer.Context, output: OutputOption = Output.CSV) -> None:
    """Print lines and taxes of invoices as rows shaped like FOCUS, newest invoices first."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).ExportFocus
        found = [dict(row.columns) for page in pages(call, reports_pb2.ExportFocusRequest()) for row in page.rows]
    show(found, tuple(sorted(found[0])) if found else (), output, title="FOCUS")
