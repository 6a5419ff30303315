"""`usage`: what was used."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, reports_pb2, reports_pb2_grpc, usage_pb2, usage_pb2_grpc
from tollkeeper.quota.v1 import usage_pb2 as quota_usage_pb2

from tollkeeper_cli.commands import producers, quarantine
from tollkeeper_cli.commands.common import (
    AttributesOption,
    FileOption,
    NoteOption,
    OutputOption,
    ReportOption,
    TenantOption,
    moment,
    new_request_id,
    pairs,
    parquet_file,
    require_tenant,
    targets_of,
    whole_number,
)
from tollkeeper_cli.commands.verify import prove
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, ReportOutput, csv_text, show
from tollkeeper_cli.parquet import write_figures, write_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import grpc

_RECORD_COLUMNS = ("id", "event_time", "units", "attributes", "producer_id", "seq", "flags")
_PERMILLE_MAX = 1_000
_TINY = 1e-6
_EXPORT_TIMEOUT_S = 3_600.0

FromOption = Annotated[str, typer.Option("--from", help="Event time from here, RFC 3339.")]
ExportFile = Annotated[Path | None, typer.Argument(help="Where to write; without it, standard output.")]
ToOption = Annotated[str, typer.Option("--to", help="Event time to here, exclusive.")]


class Bucket(StrEnum):
    """Length of a report's buckets."""

    TOTAL = "total"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class ExportFormat(StrEnum):
    """Form of an export."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


MeterOption = Annotated[list[str] | None, typer.Option(help="Only this meter; may stand more than once.")]
ZoneOption = Annotated[str, typer.Option(help="IANA time zone of hours, days, weeks and months.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What was used.")
    group.command("report")(report)
    group.command("summary")(summary)
    group.command("trend")(trend)
    group.command("list")(list_records)
    group.command("export")(export)
    group.command("record")(record)
    group.command("void")(void)
    group.command("prove")(prove)
    quarantine.register(group)
    producers.register(group)
    app.add_typer(group, name="usage")


def report(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    meter: MeterOption = None,
    start: FromOption = "",
    end: ToOption = "",
    bucket: Annotated[Bucket, typer.Option(help="Length of the buckets.")] = Bucket.TOTAL,
    group_by: Annotated[list[str] | None, typer.Option(help="Attribute to group by; may stand more than once.")] = None,
    percentile: Annotated[list[float] | None, typer.Option(help="Such as 99.9; may stand more than once.")] = None,
    time_zone: ZoneOption = "UTC",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show what every meter makes of its usage, in buckets and groups."""
    request = reports_pb2.QueryUsageRequest(
        tenant=require_tenant(tenant),
        meters=meter or [],
        time_zone=time_zone,
        group_by=group_by or [],
        percentiles_permille=[_permille(number) for number in percentile or []],
        bucket=_bucket(bucket),
    )
    if start:
        getattr(request, "from").CopyFrom(moment(start, what="--from"))
    if end:
        request.to.CopyFrom(moment(end, what="--to"))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).QueryUsage(request, timeout=CALL_TIMEOUT_S)
    _show(answer.buckets, output, file, title=f"Usage of {request.tenant}")


def summary(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show the usage of the running billing period."""
    request = reports_pb2.GetUsageSummaryRequest(tenant=require_tenant(tenant))
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetUsageSummary(request, timeout=CALL_TIMEOUT_S)
    span = f"{to_text(answer.period_start)} to {to_text(answer.period_end)}"
    _show(answer.buckets, output, file, title=f"{request.tenant}, plan {answer.plan or 'none'}, {span}")


def trend(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    meter: MeterOption = None,
    bucket: Annotated[Bucket, typer.Option(help="Length of the spans.")] = Bucket.DAY,
    spans: Annotated[int, typer.Option(min=1, max=1000, help="How many, the running one included.")] = 14,
    time_zone: ZoneOption = "UTC",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show usage span by span up to now, each with its change to the one before."""
    if bucket is Bucket.TOTAL:
        raise UsageError("a trend has spans: give --bucket minute, hour, day, week or month")
    request = reports_pb2.GetUsageTrendRequest(
        tenant=require_tenant(tenant), bucket=_bucket(bucket), spans=spans, meters=meter or [], time_zone=time_zone
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetUsageTrend(request, timeout=CALL_TIMEOUT_S)
    _show(answer.buckets, output, file, title=f"Trend of {request.tenant}")


def record(
    context: typer.Context,
    quantities: Annotated[list[str], typer.Argument(help="What was used, as METER=UNITS.")],
    *,
    tenant: TenantOption = "",
    record_id: Annotated[str, typer.Option("--id", help="Idempotency id; a repeat is the same record.")] = "",
    at: Annotated[str, typer.Option(help="When it was used, RFC 3339; now where --id is not given.")] = "",
    attribute: AttributesOption = None,
) -> None:
    """Record usage at the ledger itself, once per id. Exits 1 on a conflict, 2 on a record that breaks a rule."""
    if bool(record_id) != bool(at):
        raise UsageError("--id and --at go together, so that a repeat is the same record")
    use = quota_usage_pb2.UsageRecord(
        id=record_id or f"cli-{new_request_id()}",
        tenant=require_tenant(tenant),
        quantities=[
            quota_usage_pb2.Quantity(meter=meter, units=whole_number(units, what=f"the units of {meter}"))
            for meter, units in pairs(quantities, what="quantity").items()
        ],
        attributes=pairs(attribute or [], what="attribute"),
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        if at:
            use.event_time.CopyFrom(moment(at, what="--at"))
        else:
            clock = admin_pb2_grpc.AdminServiceStub(channel).GetClock(
                admin_pb2.GetClockRequest(), timeout=CALL_TIMEOUT_S
            )
            use.event_time.CopyFrom(clock.now)
        request = quota_usage_pb2.RecordUsageRequest(records=[use])
        answer = usage_pb2_grpc.UsageServiceStub(channel).RecordUsage(request, timeout=CALL_TIMEOUT_S)
    result = answer.results[0]
    if result.outcome == quota_usage_pb2.RECORD_OUTCOME_INVALID:
        raise UsageError(result.message)
    outcome = quota_usage_pb2.RecordOutcome.Name(result.outcome).removeprefix("RECORD_OUTCOME_").lower()
    typer.echo(f"{outcome} {result.id}")
    if result.outcome == quota_usage_pb2.RECORD_OUTCOME_CONFLICT:
        raise typer.Exit(1)


def void(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(help="Ids of stored records.")],
    *,
    tenant: TenantOption = "",
    note: NoteOption = "",
) -> None:
    """Take usage records back: figures are as if they had never been; what was billed is given back next."""
    request = usage_pb2.VoidUsageRequest(request_id=new_request_id(), tenant=require_tenant(tenant), ids=ids, note=note)
    targets = targets_of(context)
    with channel_to(targets.ledger, server="ledger") as channel:
        answer = usage_pb2_grpc.UsageServiceStub(channel).VoidUsage(request, timeout=CALL_TIMEOUT_S)
    typer.echo(f"voided {answer.voided}, before already {answer.voided_before}")


def _permille(number: float) -> int:
    permille = round(number * 10)
    if not 1 <= permille <= _PERMILLE_MAX or abs(permille - number * 10) > _TINY:
        raise UsageError(f"--percentile is {number}, expected 0.1 to 100 with one decimal")
    return permille


def _bucket(bucket: Bucket) -> reports_pb2.BucketSize.ValueType:
    name = "UNSPECIFIED" if bucket is Bucket.TOTAL else bucket.upper()
    return reports_pb2.BucketSize.Value(f"BUCKET_SIZE_{name}")


def _show(buckets: Sequence[reports_pb2.UsageBucket], output: ReportOutput, file: Path | None, *, title: str) -> None:
    """Print figures, or write them as Parquet: one column per group and percentile."""
    groups = sorted({name for found in buckets for name in found.group})
    ranks = sorted({one.permille for found in buckets for one in found.percentiles})
    rows: list[dict[str, Cell]] = [
        {
            "meter": found.meter,
            "start": to_text(found.start),
            **{name: found.group.get(name) for name in groups},
            "aggregation": found.aggregation,
            "value": found.value,
            "unit": found.unit,
            "sum": int(found.sum),
            "records": found.records,
            **{
                f"p{rank / 10:g}": next((one.units for one in found.percentiles if one.permille == rank), None)
                for rank in ranks
            },
            "change_permille": found.change_permille if found.HasField("change_permille") else None,
        }
        for found in buckets
    ]
    columns = ["meter", "start", *groups, "aggregation", "value", "unit", "sum", "records"]
    columns += [f"p{rank / 10:g}" for rank in ranks]
    if any(row["change_permille"] is not None for row in rows):
        columns.append("change_permille")
    target = parquet_file(output, file)
    if target is not None:
        write_figures(target, rows, columns, texts=groups)
    else:
        show(rows, columns, Output(output), title=title)


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
    show(rows, _RECORD_COLUMNS, output, title=f"Usage records of {tenant}", brief=_RECORD_COLUMNS[:4])


def export(
    context: typer.Context,
    file: ExportFile = None,
    *,
    tenant: TenantOption = "",
    start: FromOption = "",
    end: ToOption = "",
    form: Annotated[ExportFormat, typer.Option("--format", help="Form of the export.")] = ExportFormat.CSV,
) -> None:
    """Write every stored usage record of a tenant, one per line or row."""
    if form is ExportFormat.PARQUET:
        if file is None:
            raise UsageError("where to? Parquet needs the name of a file")
        with channel_to(targets_of(context).ledger, server="ledger") as channel:
            write_records(file, _records(channel, require_tenant(tenant), start, end))
        return
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
                "flags": record.flags,
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
