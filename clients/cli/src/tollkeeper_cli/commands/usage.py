"""`usage`: what was used."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_cli.commands.common import OutputOption, TenantOption, moment, require_tenant, targets_of
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, csv_text, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

_RECORD_COLUMNS = ("id", "event_time", "units", "attributes", "producer_id", "seq")
_EXPORT_TIMEOUT_S = 3_600.0

FromOption = Annotated[str, typer.Option("--from", help="Event time from here, RFC 3339.")]
ToOption = Annotated[str, typer.Option("--to", help="Event time to here, exclusive.")]


class Bucket(StrEnum):
    """Length of a report's buckets."""

    TOTAL = "total"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class ExportFormat(StrEnum):
    """Form of an export."""

    CSV = "csv"
    JSONL = "jsonl"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What was used.")
    group.command("report")(report)
    group.command("list")(list_records)
    group.command("export")(export)
    app.add_typer(group, name="usage")


def report(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    meter: Annotated[list[str] | None, typer.Option(help="Only this meter; may stand more than once.")] = None,
    start: FromOption = "",
    end: ToOption = "",
    bucket: Annotated[Bucket, typer.Option(help="Length of the buckets.")] = Bucket.TOTAL,
    time_zone: Annotated[str, typer.Option(help="IANA time zone of days and months.")] = "UTC",
    output: OutputOption = Output.TABLE,
) -> None:
    """Sum usage per meter."""
    request = reports_pb2.QueryUsageRequest(tenant=require_tenant(tenant), meters=meter or [], time_zone=time_zone)
    if bucket is not Bucket.TOTAL:
        request.bucket = reports_pb2.BucketSize.Value(f"BUCKET_SIZE_{bucket.upper()}")
    if start:
        getattr(request, "from").CopyFrom(moment(start, what="--from"))
    if end:
        request.to.CopyFrom(moment(end, what="--to"))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).QueryUsage(request, timeout=CALL_TIMEOUT_S)
    rows: list[dict[str, Cell]] = [
        {
            "meter": found.meter,
            "start": to_text(found.start),
            "sum": int(found.sum),
            "unit": found.unit,
            "records": found.records,
        }
        for found in answer.buckets
    ]
    show(rows, ("meter", "start", "sum", "unit", "records"), output, title=f"Usage of {request.tenant}")


def list_records(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    start: FromOption = "",
    end: ToOption = "",
    records: Annotated[int, typer.Option("--records", min=1, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List stored usage records in order of their event times."""
    rows: list[dict[str, Cell]] = []
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        for row in _records(channel, require_tenant(tenant), start, end):
            rows.append(row)
            if len(rows) >= records:
                break
    show(rows, _RECORD_COLUMNS, output, title=f"Usage records of {tenant}", brief=_RECORD_COLUMNS[1:4])


def export(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Where to write; without it, standard output.")] = None,
    *,
    tenant: TenantOption = "",
    start: FromOption = "",
    end: ToOption = "",
    form: Annotated[ExportFormat, typer.Option("--format", help="Form of the export.")] = ExportFormat.CSV,
) -> None:
    """Write every stored usage record of a tenant, one per line."""
    with channel_to(targets_of(context).ledger, server="ledger") as channel, _writer(file) as stream:
        header = form is ExportFormat.CSV
        for row in _records(channel, require_tenant(tenant), start, end):
            if form is ExportFormat.JSONL:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                continue
            text = csv_text([row], _RECORD_COLUMNS)
            stream.write(text if header else text.partition("\n")[2])
            header = False
        if header:
            stream.write(csv_text([], _RECORD_COLUMNS))


def _records(channel: grpc.Channel, tenant: str, start: str, end: str) -> Iterator[dict[str, Cell]]:
    """Yield the stored records as rows."""
    request = reports_pb2.ListUsageRecordsRequest(tenant=tenant)
    if start:
        getattr(request, "from").CopyFrom(moment(start, what="--from"))
    if end:
        request.to.CopyFrom(moment(end, what="--to"))
    for page in reports_pb2_grpc.ReportServiceStub(channel).ListUsageRecords(request, timeout=_EXPORT_TIMEOUT_S):
        for record in page.records:
            yield {
                "id": record.id,
                "event_time": to_text(record.event_time),
                "units": dict(sorted(record.units.items())),
                "attributes": dict(sorted(record.attributes.items())),
                "producer_id": record.producer_id.hex(),
                "seq": record.seq,
            }


@contextmanager
def _writer(file: Path | None) -> Iterator[TextIO]:
    """Open the file, or standard output."""
    if file is None:
        yield sys.stdout
        return
    try:
        with file.open("w", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"{file}: {error}") from error
