"""`usage`: what was used."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc, reports_pb2, reports_pb2_grpc, usage_pb2, usage_pb2_grpc
from tollkeeper.quota.v1 import usage_pb2 as quota_usage_pb2

from tollkeeper_cli.commands import producers, quarantine, usage_records
from tollkeeper_cli.commands.common import (
    AttributesOption,
    FileOption,
    NoteOption,
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
from tollkeeper_cli.commands.usage_span import FromMinuteOption, ToMinuteOption, ZoneOption, local_text, set_span
from tollkeeper_cli.commands.verify import prove
from tollkeeper_cli.connection import CALL_TIMEOUT_S, channel_to, to_text
from tollkeeper_cli.errors import UsageError
from tollkeeper_cli.output import Cell, Output, ReportOutput, show
from tollkeeper_cli.parquet import write_figures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PERMILLE_MAX = 1_000
_TINY = 1e-6


class Bucket(StrEnum):
    """Length of a report's buckets."""

    TOTAL = "total"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


MeterOption = Annotated[list[str] | None, typer.Option(help="Only this meter; may stand more than once.")]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Only records with this value of an attribute; may stand more than once: one name's values are "
        "alternatives, several names must all hold.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="What was used.")
    group.command("report")(report)
    group.command("summary")(summary)
    group.command("trend")(trend)
    usage_records.register(group)
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
    where: WhereOption = None,
    start: FromMinuteOption = "",
    end: ToMinuteOption = "",
    bucket: Annotated[Bucket, typer.Option(help="Length of the buckets.")] = Bucket.TOTAL,
    group_by: Annotated[list[str] | None, typer.Option(help="Attribute to group by; may stand up to 4 times.")] = None,
    percentile: Annotated[
        list[float] | None,
        typer.Option(
            help="Such as 99.9, of meters of that aggregation, at most 0.8 % off; may stand up to 10 times. "
            "Default: 50, 95, 99."
        ),
    ] = None,
    time_zone: ZoneOption = "",
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
        where=where or [],
    )
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        set_span(channel, request, start=start, end=end, time_zone=time_zone)
        answer = reports_pb2_grpc.ReportServiceStub(channel).QueryUsage(request, timeout=CALL_TIMEOUT_S)
    title = f"Usage of {request.tenant}, {answer.time_zone}"
    _show(answer.buckets, output, file, title=title, zone=answer.time_zone)


def summary(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    where: WhereOption = None,
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show the usage of the running billing period; of this month of UTC where there is no subscription."""
    request = reports_pb2.GetUsageSummaryRequest(tenant=require_tenant(tenant), where=where or [])
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetUsageSummary(request, timeout=CALL_TIMEOUT_S)
    zone = answer.time_zone
    span = f"{local_text(to_text(answer.period_start), zone)} to {local_text(to_text(answer.period_end), zone)}, {zone}"
    _show(answer.buckets, output, file, title=f"{request.tenant}, plan {answer.plan or 'none'}, {span}", zone=zone)


def trend(
    context: typer.Context,
    *,
    tenant: TenantOption = "",
    meter: MeterOption = None,
    where: WhereOption = None,
    bucket: Annotated[Bucket, typer.Option(help="Length of the spans.")] = Bucket.DAY,
    spans: Annotated[int, typer.Option(min=1, max=1000, help="How many, the running one included.")] = 14,
    time_zone: ZoneOption = "",
    output: ReportOption = ReportOutput.TABLE,
    file: FileOption = None,
) -> None:
    """Show usage span by span up to now, each with its change to the one before."""
    if bucket is Bucket.TOTAL:
        raise UsageError("a trend has spans: give --bucket minute, hour, day, week or month")
    request = reports_pb2.GetUsageTrendRequest(
        tenant=require_tenant(tenant), bucket=_bucket(bucket), spans=spans, meters=meter or [], time_zone=time_zone,
        where=where or [],
    )  # fmt: skip
    with channel_to(targets_of(context).ledger, server="ledger") as channel:
        answer = reports_pb2_grpc.ReportServiceStub(channel).GetUsageTrend(request, timeout=CALL_TIMEOUT_S)
    title = f"Trend of {request.tenant}, {answer.time_zone}"
    _show(answer.buckets, output, file, title=title, zone=answer.time_zone)


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


def _show(
    buckets: Sequence[reports_pb2.UsageBucket], output: ReportOutput, file: Path | None, *, title: str, zone: str
) -> None:
    """Print figures, or write them as Parquet: one column per group and percentile, and the time zone of the buckets.

    Times are UTC but in a table, which has those of the zone.
    """
    groups = sorted({name for found in buckets for name in found.group})
    ranks = sorted({one.permille for found in buckets for one in found.percentiles})
    rows: list[dict[str, Cell]] = [
        {
            "meter": found.meter,
            "start": local_text(to_text(found.start), zone) if output is ReportOutput.TABLE else to_text(found.start),
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
            "time_zone": zone,
        }
        for found in buckets
    ]
    columns = ["meter", "start", *groups, "aggregation", "value", "unit", "sum", "records"]
    columns += [f"p{rank / 10:g}" for rank in ranks]
    if any(row["change_permille"] is not None for row in rows):
        columns.append("change_permille")
    brief, columns = columns, [*columns, "time_zone"]
    target = parquet_file(output, file)
    if target is not None:
        write_figures(target, rows, columns, texts=groups)
    else:
        show(rows, columns, Output(output), title=title, brief=brief)
