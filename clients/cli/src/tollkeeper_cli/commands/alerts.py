"""`alerts`: thresholds on use and spend, what reached them, how far everything is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import (
    LIMIT_DEFAULT,
    AllOption,
    LimitOption,
    OutputOption,
    TenantOption,
    pages,
    require_tenant,
    targets_of,
    up_to,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_COLUMNS = (
    "fired_at", "tenant", "kind", "subject", "key", "threshold", "value", "base", "starts_at", "ends_at", "id",
)  # fmt: skip
_BRIEF = ("fired_at", "tenant", "kind", "subject", "key", "threshold", "value", "base")
_VIOLATION_COLUMNS = (
    "first_at", "tenant", "limit", "key", "enforcement", "amount", "consumed", "over", "last_at", "starts_at",
    "ends_at",
)  # fmt: skip
_STATE_COLUMNS = ("tenant", "kind", "subject", "key", "value", "base", "at", "reached", "told", "start", "end")
_STATE_BRIEF = _STATE_COLUMNS[:-2]

NotifyOption = Annotated[bool, typer.Option("--notify", help="Tell now of what is reached and was not told of.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Thresholds on use and spend.")
    group.command("list")(listing)
    group.command("check")(check)
    group.command("monitor-all")(monitor_all)
    group.command("violations")(violations)
    app.add_typer(group, name="alerts")


def listing(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    limit: LimitOption = LIMIT_DEFAULT,
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List thresholds that were reached, newest first."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).ListAlerts
        told = pages(call, reports_pb2.ListAlertsRequest(tenant=tenant))
        every = (one for page in told for one in page.alerts)
        rows = [_read(one) for one in up_to(every, limit, everything=everything)]
    show(rows, _COLUMNS, output, title="Alerts", brief=_BRIEF)


def violations(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    limit: LimitOption = LIMIT_DEFAULT,
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List windows that were used beyond their limits, those that began last first."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).ListViolations
        told = pages(call, reports_pb2.ListViolationsRequest(tenant=tenant))
        every = (one for page in told for one in page.violations)
        rows = [_read(one) for one in up_to(every, limit, everything=everything)]
    show(rows, _VIOLATION_COLUMNS, output, title="Violations", brief=_VIOLATION_COLUMNS[:-3])


def _read(told: str) -> Mapping[str, Cell]:
    """Read a JSON object as a row."""
    read = json.loads(told)
    return {**read, "key": ", ".join(read.pop("key_values"))}


def check(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    notify: NotifyOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say how far a tenant's limits, use and spend are; exit code 1 where a threshold is reached."""
    _check(context, [require_tenant(tenant)], notify=notify, output=output, is_whole=True)


def monitor_all(context: typer.Context, *, notify: NotifyOption = False, output: OutputOption = Output.TABLE) -> None:
    """Name whatever has reached a threshold, of every tenant; exit code 1 where there is any."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListTenants
        tenants = [one.tenant for page in pages(call, admin_pb2.ListTenantsRequest()) for one in page.tenants]
    _check(context, tenants, notify=notify, output=output, is_whole=False)


def _check(context: typer.Context, tenants: Iterable[str], *, notify: bool, output: Output, is_whole: bool) -> None:
    rows: list[Mapping[str, Cell]] = []
    any_reached = False
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        stub = reports_pb2_grpc.ReportServiceStub(channel)
        for tenant in tenants:
            request = reports_pb2.CheckAlertsRequest(tenant=tenant, notify=notify)
            for state in stub.CheckAlerts(request, timeout=CALL_TIMEOUT_S).states:
                any_reached = any_reached or bool(state.reached)
                if is_whole or state.reached:
                    rows.append(_row(tenant, state))
    show(rows, _STATE_COLUMNS, output, title="Thresholds", brief=_STATE_BRIEF)
    if any_reached:
        raise typer.Exit(1)


def _row(tenant: str, state: reports_pb2.AlertState) -> Mapping[str, Cell]:
    return {
        "tenant": tenant,
        "kind": state.kind,
        "subject": state.subject,
        "key": ", ".join(state.key_values),
        "value": state.value,
        "base": state.base,
        "at": " ".join(state.at),
        "reached": " ".join(state.reached),
        "told": " ".join(state.fired),
        "start": to_text(state.start),
        "end": to_text(state.end),
    }
