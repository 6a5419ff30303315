"""`subscription migrate`: move everybody who is on a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import grpc
import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, in_force, new_request_id, pages, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to
from tollkeeper_cli.errors import FoundProblemsError, UnreachableError, UsageError, from_rpc_error
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = ("tenant", "plan", "plan_version", "to_plan", "to_version", "outcome")


def migrate(
    context: typer.Context,
    plan: Annotated[str, typer.Argument(help="Whose subscribers move.")],
    *,
    to: Annotated[str, typer.Option("--to", help="Where to; without it, the plan's newest version.")] = "",
    from_version: Annotated[int, typer.Option(min=0, help="Only those on this version; 0 = on any.")] = 0,
    at: Annotated[str, typer.Option("--at", help="When it is in force: now, period_end, or a time to come.")] = "now",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say who would be moved.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move all subscribers of a plan to another one, or to its newest version; exit 1 where one could not be.

    Stopped in the middle and run again it goes on: who is there, or is to be, is left. So are tenants with own prices.
    """
    rows: list[dict[str, Cell]] = []
    refused = 0
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        target = _newest(stub, to or plan)
        for one in _subscribers(stub, plan, from_version, target):
            outcome = "would move" if dry_run else _moved(stub, one, target, at)
            refused += outcome not in {"would move", "moved"}
            cells: tuple[Cell, ...] = (one.tenant, one.plan, one.plan_version, target.name, target.version, outcome)
            rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    show(rows, _COLUMNS, output, title="Migration")
    if refused:
        raise FoundProblemsError(f"{refused} of {len(rows)} subscriptions were not moved")


def _newest(stub: admin_pb2_grpc.AdminServiceStub, name: str) -> admin_pb2.Plan:
    for page in pages(stub.ListPlans, admin_pb2.ListPlansRequest()):
        for plan in page.plans:
            if plan.name == name:
                found: admin_pb2.Plan = plan
                return found
    raise UsageError(f"there is no plan {name!r}; `tollkeeper plan list` has them all")


def _subscribers(
    stub: admin_pb2_grpc.AdminServiceStub, plan: str, from_version: int, target: admin_pb2.Plan
) -> Iterator[admin_pb2.Subscription]:
    """Give who is on the plan and is neither where they are to go nor on their way."""
    there = (target.name, target.version)
    for page in pages(stub.ListSubscriptions, admin_pb2.ListSubscriptionsRequest()):
        for one in page.subscriptions:
            ways = {(one.plan, one.plan_version), *((change.plan, change.plan_version) for change in one.scheduled)}
            is_asked = one.plan == plan and from_version in {0, one.plan_version}
            if is_asked and one.state != "cancelled" and there not in ways:
                yield one


def _moved(stub: admin_pb2_grpc.AdminServiceStub, one: admin_pb2.Subscription, target: admin_pb2.Plan, at: str) -> str:
    request = admin_pb2.ChangeSubscriptionRequest(
        request_id=new_request_id(), tenant=one.tenant, plan=target.name, from_plan=one.plan, **in_force(at)
    )
    try:
        stub.ChangeSubscription(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        problem = from_rpc_error(error, server="ledger")
        if isinstance(problem, UnreachableError):
            raise problem from error
        return str(problem)
    return "moved"
