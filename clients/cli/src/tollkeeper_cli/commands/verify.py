"""`audit verify` and `usage prove`: what is stored is what was committed."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, TenantOption, moment, require_tenant, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_micros, to_text
from tollkeeper_cli.output import Cell, Output, show
from tollkeeper_cli.proof import ProofError, check_proof, whole_proof

_TIMEOUT_S = 24 * 3_600.0
_COLUMNS = ("table", "row", "problem")


def verify(context: typer.Context, *, output: OutputOption = Output.TABLE) -> None:
    """Recompute the chain, every record and every rollup; name wrong rows, the first one first. Exit code 1 on one."""
    rows: list[dict[str, Cell]] = []
    console = Console(stderr=True, highlight=False)
    last = reports_pb2.VerifyUsageResponse()
    with channel_to(targets_of(context).ledger, server="ledger") as channel, console.status("checking") as status:
        stub = reports_pb2_grpc.ReportServiceStub(channel)
        for last in stub.VerifyUsage(reports_pb2.VerifyUsageRequest(), timeout=_TIMEOUT_S):
            status.update(f"{last.links:,} links, {last.records:,} records, {last.hours:,} hours of rollups")
            if last.HasField("finding"):
                rows.append({name: getattr(last.finding, name) for name in _COLUMNS})
    if rows or output is not Output.TABLE:
        show(rows, _COLUMNS, output, title="Rows that are not what was committed")
    verdict = f"{len(rows):,} wrong rows" if rows else "all as committed"
    archived = f" and {last.archived:,} archived ones" if last.archived else ""
    console.print(
        f"{last.links:,} links, {last.records:,} records{archived}, {last.hours:,} hours of rollups,"
        f" {last.periods:,} closed periods, {last.roots:,} signed roots: {verdict}",
        soft_wrap=True,
    )
    if rows or not last.done:
        raise typer.Exit(1)


def prove(
    context: typer.Context,
    record: Annotated[str, typer.Argument(help="Id of a stored record.")],
    *,
    tenant: TenantOption = "",
    key: Annotated[str, typer.Option(help="Public key that must have signed the root, hex.")] = "",
    at: Annotated[
        str,
        typer.Option(help="Event time to the microsecond, RFC 3339: needed once the id has expired, after 49 days."),
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Check by oneself that a record is in the chain, and under which signed root. Exit code 1 where it is not."""
    event_time = moment(at, what="--at") if at else None
    request = reports_pb2.ProveUsageRequest(tenant=require_tenant(tenant), id=record, event_time=event_time)
    try:
        with channel_to(targets_of(context).ledger, server="ledger") as channel:
            stub = reports_pb2_grpc.ReportServiceStub(channel)
            answer = whole_proof(request, lambda asked: stub.ProveUsage(asked, timeout=CALL_TIMEOUT_S))
        event_us = None if event_time is None else to_micros(event_time)
        proved = check_proof(request.tenant, record, answer, event_us=event_us, public_key=key)
    except ProofError as error:
        typer.echo(f"not proved: {error}", err=True)
        raise typer.Exit(1) from error
    row: dict[str, Cell] = {
        "record": record,
        "event_time": to_text(answer.record.event_time),
        "units": dict(sorted(answer.record.units.items())),
        "stream": answer.link.stream,
        "position": answer.link.position,
        "link": answer.link.hash.hex(),
        "signed_at": proved.signed_at,
        "public_key": proved.public_key,
    }
    show([row], tuple(row), output, title=f"Record of {request.tenant}, proved", brief=tuple(row)[:5])
    if not proved.public_key:
        typer.echo("no signed root covers it yet", err=True)
