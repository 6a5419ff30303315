"""`violations`: what limits denied, or admitted beyond themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import decisions_pb2, reports_pb2_grpc
from tollkeeper.quota.v1 import decision_pb2

from tollkeeper_cli.commands.common import (
    LIMIT_DEFAULT,
    AllOption,
    LimitOption,
    OutputOption,
    TenantOption,
    name_of,
    pages,
    targets_of,
    up_to,
)
from tollkeeper_cli.connection import channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "DECISION_REASON_"
_COLUMNS = ("at", "tenant", "limit", "reason", "units", "used", "amount", "caller", "attributes")
_COUNTS = ("tenant", "limit", "reason", "count", "left_out")

NameOption = Annotated[str, typer.Option("--name", help="Only limits of this name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What limits denied, or admitted beyond themselves.")
    group.command("list")(listing)
    group.command("counts")(counts)
    app.add_typer(group, name="violations")


def listing(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    name: NameOption = "",
    reason: Annotated[str, typer.Option(help="Only this reason, as quota_exhausted.")] = "",
    limit: LimitOption = LIMIT_DEFAULT,
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List single calls, as far as limits' `decision_log` says, those that came last first."""
    request = decisions_pb2.ListDecisionsRequest(tenant=tenant, limit=name, reason=_reason(reason))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).ListDecisions
        every = (one for page in pages(call, request) for one in page.decisions)
        rows = [_row(one) for one in up_to(every, limit, everything=everything)]
    show(rows, _COLUMNS, output, title="Decisions")


def counts(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    name: NameOption = "",
    from_day: Annotated[str, typer.Option("--from", metavar="YYYY-MM-DD", help="First day, of UTC.")] = "",
    to_day: Annotated[str, typer.Option("--to", metavar="YYYY-MM-DD", help="Last day.")] = "",
    limit: LimitOption = LIMIT_DEFAULT,
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Count them by limit and reason; `left_out` are those of them that a sidecar had no room to keep one by one."""
    request = decisions_pb2.CountDecisionsRequest(tenant=tenant, limit=name, from_day=from_day, to_day=to_day)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = reports_pb2_grpc.ReportServiceStub(channel).CountDecisions
        every = (one for page in pages(call, request) for one in page.sums)
        rows: list[Mapping[str, Cell]] = [
            {
                "tenant": one.tenant,
                "limit": one.limit,
                "reason": name_of(decision_pb2.DecisionReason, one.reason, _PREFIX),
                "count": one.count,
                "left_out": one.left_out,
            }
            for one in up_to(every, limit, everything=everything)
        ]
    show(rows, _COUNTS, output, title="Decisions by reason")


def _row(one: decisions_pb2.KeptDecision) -> Mapping[str, Cell]:
    return {
        "at": to_text(one.at),
        "tenant": one.tenant,
        "limit": one.limit,
        "reason": name_of(decision_pb2.DecisionReason, one.reason, _PREFIX),
        "units": one.units,
        "used": one.used,
        "amount": one.amount,
        "caller": one.caller,
        "attributes": dict(sorted(one.attributes.items())),
    }


def _reason(text: str) -> decision_pb2.DecisionReason.ValueType:
    known = {name.removeprefix(_PREFIX).lower(): number for name, number in decision_pb2.DecisionReason.items()}
    if not text:
        return decision_pb2.DECISION_REASON_UNSPECIFIED
    if text.lower() not in known:
        raise UsageError(f"the reason is {text!r}, expected one of {', '.join(list(known)[1:])}")
    return known[text.lower()]
