"""`tenant`, `plan` and `audit`: list what the ledger has, and what else is done with it."""

from __future__ import annotations

from typing import Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, limits_pb2, reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import LIMIT_DEFAULT, AllOption, LimitOption, OutputOption, pages, targets_of, up_to
from tollkeeper_cli.commands.pseudonyms import forget_pseudonyms
from tollkeeper_cli.commands.verify import verify
from tollkeeper_cli.connection import channel_to, to_text
from tollkeeper_cli.output import Cell, Output, show


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, words, command in (
        ("tenant", "Who is limited and billed.", tenants),
        ("plan", "What a tenant may and pays.", plans),
        ("audit", "Who did what.", audit),
    ):
        group = typer.Typer(no_args_is_help=True, help=words)
        group.callback()(_group)
        group.command("list")(command)
        if command is tenants:
            group.command("forget-pseudonyms")(forget_pseudonyms)
        if command is audit:
            group.command("verify")(verify)
        app.add_typer(group, name=name, help=words)


def _group() -> None:
    """Keep `list` a subcommand of its own although it is the only one."""


def tenants(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List tenants with their plans."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListTenants
        found = [tenant for page in pages(call, admin_pb2.ListTenantsRequest()) for tenant in page.tenants]
    rows: list[dict[str, Cell]] = [
        {
            "tenant": tenant.tenant,
            "display_name": tenant.display_name,
            "state": limits_pb2.TenantState.Name(tenant.state).removeprefix("TENANT_STATE_").lower(),
            "plan": tenant.plan,
            "parent": tenant.parent,
            "billing_tenant": tenant.billing_tenant,
        }
        for tenant in found
    ]
    show(rows, ("tenant", "display_name", "state", "plan", "parent", "billing_tenant"), output, title="Tenants")


def plans(
    context: typer.Context,
    *,
    output: OutputOption = Output.TABLE,
    full: Annotated[bool, typer.Option("--full", help="With the definition as canonical JSON.")] = False,
) -> None:
    """List plans with their current versions."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListPlans
        found = [plan for page in pages(call, admin_pb2.ListPlansRequest()) for plan in page.plans]
    columns = ("name", "version", "digest", *(("definition",) if full else ()))
    rows = [{column: getattr(plan, column) for column in columns} for plan in found]
    show(rows, columns, output, title="Plans")


def audit(
    context: typer.Context,
    *,
    output: OutputOption = Output.TABLE,
    limit: LimitOption = LIMIT_DEFAULT,
    everything: AllOption = False,
    full: Annotated[bool, typer.Option("--full", help="With before and after as JSON.")] = False,
) -> None:
    """List administrative acts, newest first."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).ListAuditLog
        every = (one for page in pages(call, reports_pb2.ListAuditLogRequest()) for one in page.entries)
        found = up_to(every, limit, everything=everything)
    columns = ("at", "actor", "action", "tenant", "request_id", *(("before", "after") if full else ()))
    rows: list[dict[str, Cell]] = [
        {name: to_text(entry.at) if name == "at" else getattr(entry, name) for name in columns} for entry in found
    ]
    show(rows, columns, output, title="Audit log", brief=(*columns[:4], *columns[5:]))
