"""`grant`: prepaid credit and units, their balances and their history."""

from __future__ import annotations

from typing import Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import (
    NoteOption,
    OutputOption,
    TenantOption,
    moment,
    new_request_id,
    require_tenant,
    targets_of,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.output import Cell, Output, show

_COLUMNS = ("name", "meter", "currency", "amount", "balance", "priority", "expires_at", "recurs", "rollover_max",
            "revoked_at", "grant_id")  # fmt: skip
_ENTRY_COLUMNS = ("at", "kind", "amount", "balance", "grant_id")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    words = "Prepaid credit and units."
    group = typer.Typer(no_args_is_help=True, help=words)
    for name, command in (("create", create), ("list", grants), ("history", history), ("revoke", revoke)):
        group.command(name)(command)
    app.add_typer(group, name="grant", help=words)


def create(
    context: typer.Context,
    amount: Annotated[int, typer.Argument(min=1, help="Units, or minor units of the currency.")],
    *,
    tenant: TenantOption = "",
    meter: Annotated[str, typer.Option(help="Meter, to grant units.")] = "",
    currency: Annotated[str, typer.Option(help="ISO 4217 code, to grant credit.")] = "",
    name: Annotated[str, typer.Option(help="Its name on invoices.")] = "",
    expires: Annotated[str, typer.Option(help="End of validity; without it, never.")] = "",
    priority: Annotated[int, typer.Option(min=0, help="Lower is used first.")] = 0,
    recurs: Annotated[bool, typer.Option("--recurs", help="Again with every period.")] = False,
    rollover: Annotated[int, typer.Option(min=0, help="At most so much goes over into the next period.")] = 0,
) -> None:
    """Grant prepaid units or credit, and print the grant's id."""
    request = admin_pb2.CreateGrantRequest(
        request_id=new_request_id(),
        tenant=require_tenant(tenant),
        meter=meter,
        amount=amount,
        currency=currency,
        name=name,
        priority=priority,
        recurs=recurs,
        rollover_max=rollover,
    )
    if expires:
        request.expires_at.CopyFrom(moment(expires, what="--expires"))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).CreateGrant(request, timeout=CALL_TIMEOUT_S)
    typer.echo(answer.grant_id)


def _listed(context: typer.Context, tenant: str) -> admin_pb2.ListGrantsResponse:
    request = admin_pb2.ListGrantsRequest(tenant=require_tenant(tenant))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        return admin_pb2_grpc.AdminServiceStub(channel).ListGrants(request, timeout=CALL_TIMEOUT_S)


def grants(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """List a tenant's grants with what is left of them, in the order in which they are used."""
    rows: list[dict[str, Cell]] = [
        {name: _told(grant, name) for name in _COLUMNS} for grant in _listed(context, tenant).grants
    ]
    show(rows, _COLUMNS, output, title="Grants", brief=(*_COLUMNS[:7], "revoked_at", "grant_id"))


def _told(grant: admin_pb2.Grant, name: str) -> Cell:
    if name == "expires_at":
        return to_text(grant.expires_at) if grant.HasField("expires_at") else ""
    if name == "revoked_at":
        return to_text(grant.revoked_at) if grant.HasField("revoked_at") else ""
    cell: Cell = getattr(grant, name)
    return cell


def history(context: typer.Context, tenant: TenantOption = "", output: OutputOption = Output.TABLE) -> None:
    """List every movement of a tenant's grants with the balance after it, oldest first."""
    rows: list[dict[str, Cell]] = [
        {name: to_text(entry.at) if name == "at" else getattr(entry, name) for name in _ENTRY_COLUMNS}
        for entry in _listed(context, tenant).entries
    ]
    show(rows, _ENTRY_COLUMNS, output, title="Movements of grants")


def revoke(
    context: typer.Context,
    grant_id: Annotated[str, typer.Argument(help="Its id; `tollkeeper grant list` has them.")],
    tenant: TenantOption = "",
    note: NoteOption = "",
) -> None:
    """Take back what is left of a grant, which comes no more, and print how much that was.

    What closed periods used stays used.
    """
    request = admin_pb2.RevokeGrantRequest(
        request_id=new_request_id(), tenant=require_tenant(tenant), grant_id=grant_id, note=note
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).RevokeGrant(request, timeout=CALL_TIMEOUT_S)
    typer.echo(str(answer.amount))
