# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService's part about usage: figures in buckets, summaries, trends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import reports_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.domain.usage_buckets import BucketSize
from tollkeeper_ledger.domain.usage_report import PERCENTILES_DEFAULT, read_where
from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.spans import instant_of
from tollkeeper_ledger.services.usage_query import Question, query_usage, time_zone_of
from tollkeeper_ledger.services.usage_summaries import summarise, trend, value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.services.usage_query import Bucketed

    Context = grpc.aio.ServicerContext[Any, Any]

_SIZES = {
    reports_pb2.BUCKET_SIZE_UNSPECIFIED: BucketSize.WHOLE,
    reports_pb2.BUCKET_SIZE_MINUTE: BucketSize.MINUTE,
    reports_pb2.BUCKET_SIZE_HOUR: BucketSize.HOUR,
    reports_pb2.BUCKET_SIZE_DAY: BucketSize.DAY,
    reports_pb2.BUCKET_SIZE_WEEK: BucketSize.WEEK,
    reports_pb2.BUCKET_SIZE_MONTH: BucketSize.MONTH,
}


class UsageReports:
    """Serve readers what concerns usage."""

    def __init__(self, resources: Resources) -> None:
        self._pools = resources.pools

    async def QueryUsage(
        self, request: reports_pb2.QueryUsageRequest, context: Context
    ) -> reports_pb2.QueryUsageResponse:
        """Give usage per meter over a span, in buckets and groups if asked."""
        size = _size(request.bucket)
        permilles = tuple(dict.fromkeys(request.percentiles_permille)) or PERCENTILES_DEFAULT
        asked = Question(
            tenant=request.tenant,
            size=size,
            meters=list(request.meters),
            start=instant_of(request, "from"),
            end=instant_of(request, "to"),
            time_zone=await time_zone_of(self._pools, request.tenant, request.time_zone),
            group_by=list(dict.fromkeys(request.group_by)),
            permilles=permilles,
            where=read_where(request.where),
        )
        found = await query_usage(self._pools, asked)
        answer = reports_pb2.QueryUsageResponse(time_zone=asked.time_zone)
        for one in found:
            _fill(answer.buckets.add(), one, permilles, whole=size is BucketSize.WHOLE)
        return answer

    async def GetUsageSummary(
        self, request: reports_pb2.GetUsageSummaryRequest, context: Context
    ) -> reports_pb2.GetUsageSummaryResponse:
        """Sum a tenant's usage in its running period."""
        found = await summarise(self._pools, request.tenant, where=read_where(request.where))
        answer = reports_pb2.GetUsageSummaryResponse(
            period_start=timestamp(found.start),
            period_end=timestamp(found.end),
            plan=found.plan,
            time_zone=found.time_zone,
        )
        for one in found.used:
            _fill(answer.buckets.add(), one, PERCENTILES_DEFAULT, whole=True)
        return answer

    async def GetUsageTrend(
        self, request: reports_pb2.GetUsageTrendRequest, context: Context
    ) -> reports_pb2.GetUsageTrendResponse:
        """Give usage per span up to now, each with its change."""
        zone = await time_zone_of(self._pools, request.tenant, request.time_zone)
        points = await trend(
            self._pools,
            tenant=request.tenant,
            size=_size(request.bucket),
            spans=request.spans,
            meters=list(request.meters),
            time_zone=zone,
            where=read_where(request.where),
        )
        answer = reports_pb2.GetUsageTrendResponse(time_zone=zone)
        for point in points:
            bucket = answer.buckets.add()
            _fill(bucket, point.used, PERCENTILES_DEFAULT, whole=False)
            if point.change_permille is not None:
                bucket.change_permille = point.change_permille
        return answer


def _size(number: int) -> BucketSize:
    size = _SIZES.get(number)  # type: ignore[call-overload]  # a number from the wire may be none of the enum's
    if size is None:
        raise InvalidFieldError(
            "bucket", "is no bucket size known here", reason="ENUM_UNKNOWN", value=number, bound=f"0 to {max(_SIZES)}"
        )
    found: BucketSize = size
    return found


def _fill(bucket: reports_pb2.UsageBucket, one: Bucketed, permilles: Sequence[int], *, whole: bool) -> None:
    """Say a figure in a bucket of an answer: made in its place, and field by field, it takes a third of the time."""
    bucket.meter = one.meter.name
    bucket.unit = one.meter.unit
    bucket.sum = str(one.figure.units)
    bucket.records = one.figure.records
    bucket.aggregation = one.meter.facts.aggregation.value
    bucket.value = value_of(one, permilles[0])
    if not whole:
        bucket.start.FromMicroseconds(to_us(one.start))
    for name, value in one.group:
        bucket.group[name] = value
    for permille, units in one.figure.percentiles(permilles):
        bucket.percentiles.add(permille=permille, units=units)
