"""`usage producers`: who sends usage, how far each has come, and who is gone."""

from __future__ import annotations

from typing import Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2_grpc, producers_pb2, reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import NoteOption, OutputOption, new_request_id, span_text, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, show

_COLUMNS = ("producer", "state", "lag_ms", "watermark", "seen_at", "committed", "behind")
_BRIEF = ("producer", "state", "lag", "seen_at", "committed", "behind")
_GONE = ("silent", "lost")


def register(group: typer.Typer) -> None:
    """Add the commands to the group `usage`."""
    own = typer.Typer(no_args_is_help=True, help="Who sends usage, how far each has come, and who is gone.")
    own.command("list")(list_producers)
    own.command("lost")(lost)
    group.add_typer(own, name="producers")


def list_producers(
    context: typer.Context,
    *,
    closed: Annotated[bool, typer.Option("--closed", help="Also those that ended in order.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List sidecars' logs, ways in and partitions of topics. Exits 1 if one is silent or lost: usage may be missing."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        status = reports_pb2_grpc.ReportServiceStub(channel).GetIngestStatus(
            reports_pb2.GetIngestStatusRequest(), timeout=CALL_TIMEOUT_S
        )
    rows = [
        *(_row(one, one.producer_id.hex(), one.committed_seq, None) for one in status.producers),
        *(_row(one, one.name, one.next_offset, one.end_offset - one.next_offset) for one in status.topics),
    ]
    rows = [row for row in rows if closed or row["state"] != "closed"]
    show(rows, _COLUMNS, output, title="Producers", brief=_BRIEF)
    if status.producers_cut:
        typer.echo("there are more producers; those heard of last are shown", err=True)
    if any(row["state"] in _GONE for row in rows):
        raise typer.Exit(1)


def lost(
    context: typer.Context,
    producer: Annotated[str, typer.Argument(help="Its name as `list` gives it.")],
    *,
    note: NoteOption = "",
) -> None:
    """Say that a producer or a topic is gone for good: no billing period waits for it until its watermark moves on."""
    if not note:
        raise UsageError("why? Give --note TEXT for the audit log")
    request = producers_pb2.MarkProducerLostRequest(request_id=new_request_id(), producer=producer, note=note)
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger", actor=targets.actor) as channel:
        answer = admin_pb2_grpc.AdminServiceStub(channel).MarkProducerLost(request, timeout=CALL_TIMEOUT_S)
    typer.echo(f"lost {producer}, before {answer.before}")


def _row(
    one: reports_pb2.ProducerStatus | producers_pb2.TopicStatus, name: str, committed: int, behind: int | None
) -> dict[str, Cell]:
    lag_ms = one.lag_ms if one.HasField("lag_ms") else None
    return {
        "producer": name,
        "state": one.state,
        "lag_ms": lag_ms,
        "lag": None if lag_ms is None else span_text(lag_ms),
        "watermark": to_text(one.watermark) if one.HasField("watermark") else None,
        "seen_at": to_text(one.seen_at),
        "committed": committed,
        "behind": behind,
    }
