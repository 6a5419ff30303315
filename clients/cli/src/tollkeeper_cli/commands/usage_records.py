"""`usage list` and `usage export`: stored records one by one."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads it when it runs
from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import (
    LIMIT_DEFAULT,
    AllOption,
    OutputOption,
    TenantOption,
    require_tenant,
    targets_of,
    up_to,
)
from tollkeeper_cli.commands.usage_span import FromOption, TimesZoneOption, ToOption, set_span
from tollkeeper_cli.connection import channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.files import whole_file
from tollkeeper_cli.output import Cell, Output, show, write_csv
from tollkeeper_cli.parquet import write_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    import grpc

_COLUMNS = ("id", "event_time", "units", "attributes", "producer_id", "seq", "flags")
_TIMEOUT_S = 86_400.0


class ExportFormat(StrEnum):
    """Form of an export."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"


def register(group: typer.Typer) -> None:
    """Add the commands to the group `usage`."""
    group.command("list")(list_records)
    group.command("export")(export)


def list_records(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    start: FromOption = "",
    end: ToOption = "",
    time_zone: TimesZoneOption = "",
    limit: Annotated[int, typer.Option("--limit", "--records", min=1, help="At most so many.")] = LIMIT_DEFAULT,
    everything: AllOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List stored usage records in order of their event times; `export` writes any number of them."""
    request = reports_pb2.ListUsageRecordsRequest(tenant=require_tenant(tenant))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        set_span(channel, request, start=start, end=end, time_zone=time_zone)
        rows = up_to(_records(channel, request), limit, everything=everything)
    show(rows, _COLUMNS, output, title=f"Usage records of {tenant}", brief=_COLUMNS[:4])


def export(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Where to write; without it, standard output.")] = None,
    *,
    tenant: TenantOption = "",
    start: FromOption = "",
    end: ToOption = "",
    time_zone: TimesZoneOption = "",
    form: Annotated[
        ExportFormat, typer.Option("--format", help="Form of the export; jsonl is one object per line.")
    ] = ExportFormat.CSV,
) -> None:
    """Write every stored usage record of a tenant, one per line or row, however many there are; times are UTC.

    A file appears when it is whole: an export that is broken off leaves what was there before.
    """
    request = reports_pb2.ListUsageRecordsRequest(tenant=require_tenant(tenant))
    if form is ExportFormat.PARQUET and file is None:
        raise UsageError("where to? Parquet needs the name of a file")
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        set_span(channel, request, start=start, end=end, time_zone=time_zone)
        rows = _Counted(_records(channel, request))
        if file is None:
            _write_text(sys.stdout, rows, form)
        elif form is ExportFormat.PARQUET:
            write_records(file, rows)
        else:
            with whole_file(file) as part, part.open("w", encoding="utf-8", newline="") as stream:
                _write_text(stream, rows, form)
    typer.echo(f"{rows.count} records", err=True)


class _Counted:
    """Count rows as they go by."""

    def __init__(self, rows: Iterator[dict[str, Cell]]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, Cell]]:
        for row in self._rows:
            self.count += 1
            yield row


def _write_text(stream: TextIO, rows: _Counted, form: ExportFormat) -> None:
    if form is ExportFormat.CSV:
        write_csv(stream, rows, _COLUMNS)
        return
    lines = (json.dumps(row, ensure_ascii=False) for row in rows)
    if form is ExportFormat.JSONL:
        stream.writelines(f"{line}\n" for line in lines)
        return
    before = "[\n"
    for line in lines:
        stream.write(f"{before}{line}")
        before = ",\n"
    stream.write("\n]\n" if rows.count else "[]\n")


def _records(channel: grpc.Channel, request: reports_pb2.ListUsageRecordsRequest) -> Iterator[dict[str, Cell]]:
    """Yield the stored records as rows, page by page."""
    for page in reports_pb2_grpc.ReportServiceStub(channel).ListUsageRecords(request, timeout=_TIMEOUT_S):
        for record in page.records:
            yield {
                "id": record.id,
                "event_time": to_text(record.event_time),
                "units": dict(sorted(record.units.items())),
                "attributes": dict(sorted(record.attributes.items())),
                "producer_id": record.producer_id.hex(),
                "seq": record.seq,
                "flags": record.flags,
            }
