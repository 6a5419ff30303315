"""`overage`: what is used beyond what plans include, now and projected to the period's end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from tollkeeper.ledger.v1 import billing_pb2, billing_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, TenantOption, require_tenant, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.output import Cell, Output, money, plain_figures, scaled, show

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINE_BRIEF = ("description", "quantity", "charged", "amount", "projected_quantity", "projected_charged", "projected")
_QUANTITIES = ("quantity", "charged", "projected_quantity", "projected_charged")
_LINE_COLUMNS = (
    "tenant", "plan", "period_start", "period_end", "description", "meter", "unit", "quantity", "charged", "amount",
    "amount_minor", "projected_quantity", "projected_charged", "projected", "projected_minor", "currency",
)  # fmt: skip
_BRIEF = ("tenant", "plan", "period_end", "amount", "projected", "problem")
_COLUMNS = (
    "tenant", "plan", "period_start", "period_end", "amount", "amount_minor", "projected", "projected_minor",
    "currency", "problem",
)  # fmt: skip
_REPORT_TIMEOUT_S = 3_600.0


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What is used beyond what plans include.")
    group.command("calculate")(calculate)
    group.command("report")(report)
    app.add_typer(group, name="overage")


def calculate(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """Rate a tenant's running period as it stands, and as it will at its end at this pace. Stores nothing.

    Quantities are in whole units, as on invoices.
    """
    request = billing_pb2.GetOverageRequest(tenant=require_tenant(tenant))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        found = billing_pb2_grpc.BillingServiceStub(channel).GetOverage(request, timeout=CALL_TIMEOUT_S)
    head = _head(request.tenant, found)
    rows: list[Mapping[str, Cell]] = [
        {
            **head,
            "description": line.description,
            "meter": line.meter,
            "unit": line.unit,
            **{name: scaled(getattr(line, name), line.scale) for name in _QUANTITIES},
            **_sums(line.amount_minor, line.projected_amount_minor, found.currency),
        }
        for line in found.lines
    ]
    if output is Output.JSON:
        rows = [plain_figures(row, _QUANTITIES) for row in rows]
    show(rows, _LINE_COLUMNS, output, title=f"Overage of {request.tenant}", brief=_LINE_BRIEF)


def report(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List every tenant that is over or will be at this pace, and what that costs."""
    rows: list[Mapping[str, Cell]] = []
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = billing_pb2_grpc.BillingServiceStub(channel).ReportOverage
        for one in call(billing_pb2.ReportOverageRequest(), timeout=_REPORT_TIMEOUT_S):
            found = one.overage
            if one.problem:
                rows.append({"tenant": one.tenant, "problem": one.problem})
            else:
                sums = _sums(found.amount_minor, found.projected_amount_minor, found.currency)
                rows.append({**_head(one.tenant, found), **sums, "problem": ""})
    show(rows, _COLUMNS, output, title="Overage", brief=_BRIEF)


def _head(tenant: str, found: billing_pb2.GetOverageResponse) -> dict[str, Cell]:
    return {
        "tenant": tenant,
        "plan": found.plan,
        "period_start": to_text(found.period_start),
        "period_end": to_text(found.period_end),
        "currency": found.currency,
    }


def _sums(amount_minor: int, projected_minor: int, currency: str) -> dict[str, Cell]:
    return {
        "amount": money(amount_minor, currency),
        "amount_minor": amount_minor,
        "projected": money(projected_minor, currency),
        "projected_minor": projected_minor,
    }
