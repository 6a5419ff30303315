"""`cache warm` and `cache invalidate`: what sidecars have leased, ahead or given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import NoteOption, OutputOption, new_request_id, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.errors import FoundProblemsError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Callable

    Request = admin_pb2.WarmCachesRequest | admin_pb2.InvalidateCachesRequest

_COLUMNS = ("tenant", "sidecars", "sidecars_silent", "pools")

TenantOnlyOption = Annotated[
    str, typer.Option("--tenant", envvar="TOLLKEEPER_TENANT", help="Only this tenant's limits, and its parents'.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What sidecars have leased: ahead of use, or given back.")
    group.command("warm")(warm)
    group.command("invalidate")(invalidate)
    app.add_typer(group, name="cache")


def warm(
    context: typer.Context, *, tenant: TenantOnlyOption = "", note: NoteOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Make every live sidecar lease one second of demand ahead. Exits 1 when one did not answer.

    With a tenant, limits that nothing splits are opened although nobody has used them yet, and a sidecar that has not
    heard of the tenant reads its limits; run it again to lease there as well.
    """
    request = admin_pb2.WarmCachesRequest(request_id=new_request_id(), tenant=tenant, note=note)
    _order(context, lambda stub: stub.WarmCaches(request, timeout=CALL_TIMEOUT_S), tenant, output)


def invalidate(
    context: typer.Context, *, tenant: TenantOnlyOption = "", note: NoteOption = "", output: OutputOption = Output.TABLE
) -> None:
    """Make every live sidecar return its leases and read its limits again. Exits 1 when one did not answer.

    What was used stays counted and reservations stay open: the next call leases anew.
    """
    request = admin_pb2.InvalidateCachesRequest(request_id=new_request_id(), tenant=tenant, note=note)
    _order(context, lambda stub: stub.InvalidateCaches(request, timeout=CALL_TIMEOUT_S), tenant, output)


def _order(
    context: typer.Context,
    call: Callable[
        [admin_pb2_grpc.AdminServiceStub], admin_pb2.WarmCachesResponse | admin_pb2.InvalidateCachesResponse
    ],
    tenant: str,
    output: Output,
) -> None:
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = call(admin_pb2_grpc.AdminServiceStub(channel))
    row: dict[str, Cell] = {
        "tenant": tenant or "all",
        "sidecars": answer.sidecars,
        "sidecars_silent": answer.sidecars_silent,
        "pools": answer.pools,
    }
    show([row], _COLUMNS, output, title="Touched")
    if answer.sidecars_silent:
        raise FoundProblemsError(f"{answer.sidecars_silent} sidecars are connected and did not answer within 2 s")
