"""`usage quarantine`: records that the ledger could not store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2_grpc, quarantine_pb2

from tollkeeper_cli.commands.common import (
    NoteOption,
    OutputOption,
    TenantOption,
    name_of,
    new_request_id,
    pages,
    targets_of,
)
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_COLUMNS = ("record", "tenant", "id", "reason", "field", "state", "event_time", "quarantined_at", "quantities")
_BRIEF = ("record", "tenant", "id", "reason", "field", "state", "event_time")
_RESULT_COLUMNS = ("record", "state", "reason", "field", "before")
_RECORDS_MAX = 500
_STATE = "QUARANTINE_STATE_"

NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="RECORD...", help="Records as `list` names them.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Only those that are refused for this reason.")]
AllOption = Annotated[bool, typer.Option("--all", help="All that wait, of --tenant and --reason where given.")]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `usage`."""
    own = typer.Typer(no_args_is_help=True, help="Records that the ledger could not store, and why.")
    own.command("list")(list_records)
    own.command("show")(show_record)
    own.command("release")(release)
    own.command("discard")(discard)
    group.add_typer(own, name="quarantine")


def list_records(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    reason: ReasonOption = "",
    ended: Annotated[bool, typer.Option("--ended", help="Also those that were released or discarded.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List records that wait in quarantine, of all tenants or one."""
    request = quarantine_pb2.ListQuarantineRequest(tenant=tenant, reason=reason, ended=ended)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        call = admin_pb2_grpc.AdminServiceStub(channel).ListQuarantine
        rows = [_row(one) for answer in pages(call, request) for one in answer.records]
    show(rows, _COLUMNS, output, title="Quarantine", brief=_BRIEF)


def show_record(
    context: typer.Context,
    record: Annotated[str, typer.Argument(metavar="RECORD", help="The record as `list` names it.")],
    *,
    tenant: TenantOption = "",
) -> None:
    """Show a record whole, as JSON, with everything that was done about it."""
    request = quarantine_pb2.GetQuarantinedRequest(record=record, tenant=tenant)
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).GetQuarantined(request, timeout=CALL_TIMEOUT_S)
    acts = [
        {
            "at": to_text(act.at),
            "actor": act.actor,
            "state": _state(act.state),
            "reason": act.reason,
            "field": act.field,
            "note": act.note,
        }
        for act in answer.acts
    ]
    shown = {**_row(answer.record), "content": json.loads(answer.json), "acts": acts}
    typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))


def release(
    context: typer.Context,
    records: NamesArgument = None,
    *,
    every: AllOption = False,
    tenant: TenantOption = "",
    reason: ReasonOption = "",
    note: NoteOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Have records stored after what was wrong is mended: each counts once, at its own time. Exits 1 if one stays."""
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        names = _chosen(admin, records or [], every=every, tenant=tenant, reason=reason)
        results = _in_parts(admin.ReleaseQuarantined, quarantine_pb2.ReleaseQuarantinedRequest, names, tenant, note)
    _tell(results, output)
    if any(one.state == quarantine_pb2.QUARANTINE_STATE_WAITING for one in results):
        raise typer.Exit(1)


def discard(
    context: typer.Context,
    records: NamesArgument = None,
    *,
    every: AllOption = False,
    tenant: TenantOption = "",
    reason: ReasonOption = "",
    note: NoteOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Say that records never count; --note says why. They stay in the books. Exits 1 if one counts already."""
    if not note:
        raise UsageError("why? Give --note TEXT for the audit log")
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        names = _chosen(admin, records or [], every=every, tenant=tenant, reason=reason)
        results = _in_parts(admin.DiscardQuarantined, quarantine_pb2.DiscardQuarantinedRequest, names, tenant, note)
    _tell(results, output)
    if any(one.state != quarantine_pb2.QUARANTINE_STATE_DISCARDED for one in results):
        raise typer.Exit(1)


def _chosen(
    admin: admin_pb2_grpc.AdminServiceStub, records: Sequence[str], *, every: bool, tenant: str, reason: str
) -> list[str]:
    """Give the records that are meant: those named, or with --all those that wait."""
    if every == bool(records) or (reason and not every):
        raise UsageError("which records? Name them, or give --all with or without --tenant and --reason")
    if records:
        return list(records)
    request = quarantine_pb2.ListQuarantineRequest(tenant=tenant, reason=reason)
    return [one.record for answer in pages(admin.ListQuarantine, request) for one in answer.records]


def _in_parts(
    call: Callable[..., Any], kind: Any, names: Sequence[str], tenant: str, note: str
) -> list[quarantine_pb2.QuarantineResult]:
    """Do it for all records, in calls of at most so many as one takes."""
    results: list[quarantine_pb2.QuarantineResult] = []
    for first in range(0, len(names), _RECORDS_MAX):
        part = names[first : first + _RECORDS_MAX]
        request = kind(request_id=new_request_id(), records=part, tenant=tenant, note=note)
        results += call(request, timeout=CALL_TIMEOUT_S).results
    return results


def _state(number: int) -> str:
    return name_of(quarantine_pb2.QuarantineState, number, _STATE)


def _row(one: quarantine_pb2.QuarantinedRecord) -> dict[str, Cell]:
    return {
        "record": one.record,
        "tenant": one.tenant,
        "id": one.id,
        "reason": one.reason,
        "field": one.field,
        "state": _state(one.state),
        "event_time": to_text(one.event_time) if one.HasField("event_time") else None,
        "quarantined_at": to_text(one.quarantined_at),
        "quantities": {quantity.meter: quantity.units for quantity in one.quantities},
    }


def _tell(results: Sequence[quarantine_pb2.QuarantineResult], output: Output) -> None:
    rows: list[dict[str, Cell]] = [
        {
            "record": one.record,
            "state": _state(one.state),
            "reason": one.reason,
            "field": one.field,
            "before": one.before,
        }
        for one in results
    ]
    show(rows, _RESULT_COLUMNS, output, title="Quarantine")
