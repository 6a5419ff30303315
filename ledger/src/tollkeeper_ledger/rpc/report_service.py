# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService: convert messages and call the services."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from google.protobuf import timestamp_pb2
from tollkeeper.ledger.v1 import reports_pb2, reports_pb2_grpc

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import from_us, to_us
from tollkeeper_ledger.domain.usage_buckets import BucketSize
from tollkeeper_ledger.rpc.not_built import not_built
from tollkeeper_ledger.rpc.paging import from_token, page_size, to_token
from tollkeeper_ledger.services import reports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    import grpc.aio
    from google.protobuf.message import Message

    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.usage_reports import AuditRow

    Context = grpc.aio.ServicerContext[Any, Any]

_AUDIT_DIGITS_MAX = 18
_SIZES = {
    reports_pb2.BUCKET_SIZE_UNSPECIFIED: BucketSize.WHOLE,
    reports_pb2.BUCKET_SIZE_MINUTE: BucketSize.MINUTE,
    reports_pb2.BUCKET_SIZE_HOUR: BucketSize.HOUR,
    reports_pb2.BUCKET_SIZE_DAY: BucketSize.DAY,
    reports_pb2.BUCKET_SIZE_MONTH: BucketSize.MONTH,
}


class ReportService(reports_pb2_grpc.ReportServiceServicer):
    """Serve readers."""

    GetUsageSummary = not_built("GetUsageSummary")
    GetUsageTrend = not_built("GetUsageTrend")
    GetRevenue = not_built("GetRevenue")
    ListAlerts = not_built("ListAlerts")
    ListViolations = not_built("ListViolations")

    def __init__(self, resources: Resources) -> None:
        self._pools = resources.pools

    async def QueryUsage(
        self, request: reports_pb2.QueryUsageRequest, context: Context
    ) -> reports_pb2.QueryUsageResponse:
        """Sum usage per meter over a span, in buckets if asked."""
        size = _SIZES.get(request.bucket)
        if size is None:
            raise InvalidFieldError(
                "bucket",
                "is no bucket size known here",
                reason="ENUM_UNKNOWN",
                value=request.bucket,
                bound=f"0 to {max(_SIZES)}",
            )
        sums = await reports.query_usage(
            self._pools,
            tenant=request.tenant,
            meters=list(request.meters),
            start=_instant(request, "from"),
            end=_instant(request, "to"),
            size=size,
            time_zone=request.time_zone,
        )
        whole = size is BucketSize.WHOLE
        return reports_pb2.QueryUsageResponse(
            buckets=[
                reports_pb2.UsageBucket(
                    meter=one.meter,
                    unit=one.unit,
                    start=None if whole else _timestamp(one.start),
                    sum=one.total,
                    records=one.records,
                )
                for one in sums
            ]
        )

    async def ListUsageRecords(
        self, request: reports_pb2.ListUsageRecordsRequest, context: Context
    ) -> AsyncIterator[reports_pb2.ListUsageRecordsResponse]:
        """Stream the stored records of a tenant in (event time, id) order."""
        pages = reports.list_records(
            self._pools, tenant=request.tenant, start=_instant(request, "from"), end=_instant(request, "to")
        )
        async for page in pages:
            yield reports_pb2.ListUsageRecordsResponse(
                records=[
                    reports_pb2.StoredRecord(
                        id=use.id,
                        event_time=_timestamp(use.event_time),
                        units=use.units,
                        attributes=use.attributes,
                        producer_id=use.producer_id.bytes,
                        seq=use.seq,
                    )
                    for use in page
                ]
            )

    async def GetIngestStatus(
        self, request: reports_pb2.GetIngestStatusRequest, context: Context
    ) -> reports_pb2.GetIngestStatusResponse:
        """Say how far ingest is: producers, totals."""
        status = await reports.ingest_status(self._pools)
        return reports_pb2.GetIngestStatusResponse(
            producers=[
                reports_pb2.ProducerStatus(
                    producer_id=view.row.producer_id.bytes,
                    state=view.state,
                    incarnation=view.row.incarnation,
                    committed_seq=view.row.committed_seq,
                    watermark=None if view.row.watermark is None else _timestamp(view.row.watermark),
                    seen_at=_timestamp(view.row.seen_at),
                )
                for view in status.producers
            ],
            records=status.records,
            quarantined=status.quarantined,
        )

    async def ListAuditLog(
        self, request: reports_pb2.ListAuditLogRequest, context: Context
    ) -> reports_pb2.ListAuditLogResponse:
        """List administrative acts, newest first."""
        size = page_size(request.page_size)
        before = _audit_place(request.page_token)
        rows = await reports.list_audit_log(self._pools, before=before, count_max=size + 1)
        token = to_token(str(rows[size - 1].audit_id)) if len(rows) > size else ""
        return reports_pb2.ListAuditLogResponse(entries=map(_entry, rows[:size]), next_page_token=token)


def _entry(row: AuditRow) -> reports_pb2.AuditEntry:
    return reports_pb2.AuditEntry(
        at=_timestamp(row.at),
        actor=row.actor,
        action=row.action,
        tenant=row.tenant,
        request_id=row.request_id,
        before=_canonical(row.before),
        after=_canonical(row.after),
    )


def _canonical(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _audit_place(token: str) -> int | None:
    (text,) = from_token(token, start=("",))
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _AUDIT_DIGITS_MAX):
        raise InvalidFieldError(
            "page_token", "is not one that this listing gave", remedy="use next_page_token of the page before"
        )
    return int(text)


def _timestamp(instant: datetime) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromMicroseconds(to_us(instant))
    return message


def _instant(request: Message, field: str) -> datetime | None:
    """Give the instant of a field, whose name may be a word of Python's; None where it is absent."""
    if not request.HasField(field):
        return None
    message: timestamp_pb2.Timestamp = getattr(request, field)
    if not (
        to_us(reports.BEGINNING) <= message.seconds * 1_000_000 <= to_us(reports.END)
        and 0 <= message.nanos < 1_000_000_000  # noqa: PLR2004 - nanoseconds of a second
    ):
        raise InvalidFieldError(
            field,
            "is out of range",
            reason="FIELD_OUT_OF_RANGE",
            value=message.seconds,
            bound=f"{reports.BEGINNING.isoformat()} to {reports.END.isoformat()}",
        )
    if message.nanos % 1000:
        raise InvalidFieldError(field, "has parts of a microsecond", value=message.nanos, bound="whole microseconds")
    return from_us(message.seconds * 1_000_000 + message.nanos // 1000)
