# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""ReportService: convert messages and call the services."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import producers_pb2, reports_pb2, reports_pb2_grpc

from tollkeeper_ledger.rpc.acting import timestamp
from tollkeeper_ledger.rpc.alert_reports import AlertReports
from tollkeeper_ledger.rpc.decision_reports import DecisionReports
from tollkeeper_ledger.rpc.money_reports import MoneyReports
from tollkeeper_ledger.rpc.paging import number_of, page_size, to_token
from tollkeeper_ledger.rpc.spans import instant_of
from tollkeeper_ledger.rpc.usage_audit import UsageAudits
from tollkeeper_ledger.rpc.usage_reports import UsageReports
from tollkeeper_ledger.services import reports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.store.usage_reports import AuditRow

    Context = grpc.aio.ServicerContext[Any, Any]


class ReportService(
    AlertReports, DecisionReports, MoneyReports, UsageReports, UsageAudits, reports_pb2_grpc.ReportServiceServicer
):
    """Serve readers."""

    def __init__(self, resources: Resources) -> None:
        AlertReports.__init__(self, resources)
        DecisionReports.__init__(self, resources)
        MoneyReports.__init__(self, resources)
        UsageReports.__init__(self, resources)
        UsageAudits.__init__(self, resources)

    async def ListUsageRecords(
        self, request: reports_pb2.ListUsageRecordsRequest, context: Context
    ) -> AsyncIterator[reports_pb2.ListUsageRecordsResponse]:
        """Stream the stored records of a tenant in (event time, id) order."""
        pages = reports.list_records(
            self._pools, tenant=request.tenant, start=instant_of(request, "from"), end=instant_of(request, "to")
        )
        async for page in pages:
            yield reports_pb2.ListUsageRecordsResponse(
                records=[
                    reports_pb2.StoredRecord(
                        id=use.id,
                        event_time=timestamp(use.event_time),
                        units=use.units,
                        attributes=use.attributes,
                        producer_id=use.producer_id.bytes,
                        seq=use.seq,
                        flags=use.flags,
                    )
                    for use in page
                ]
            )

    async def GetIngestStatus(
        self, request: reports_pb2.GetIngestStatusRequest, context: Context
    ) -> reports_pb2.GetIngestStatusResponse:
        """Say how far ingest is: producers, topics, lag, totals."""
        status = await reports.ingest_status(self._pools)
        return reports_pb2.GetIngestStatusResponse(
            producers=[
                reports_pb2.ProducerStatus(
                    producer_id=view.row.producer_id.bytes,
                    state=view.state,
                    incarnation=view.row.incarnation,
                    committed_seq=view.row.committed_seq,
                    watermark=None if view.row.watermark is None else timestamp(view.row.watermark),
                    seen_at=timestamp(view.row.seen_at),
                    lag_ms=None if view.state == "closed" else _lag_ms(view.row.watermark, status.now),
                )
                for view in status.producers
            ],
            producers_cut=status.producers_cut,
            topics=[
                producers_pb2.TopicStatus(
                    name=view.row.name,
                    state=view.state,
                    next_offset=view.row.next_offset,
                    end_offset=view.row.end_offset,
                    watermark=None if view.row.watermark is None else timestamp(view.row.watermark),
                    seen_at=timestamp(view.row.seen_at),
                    lag_ms=_lag_ms(view.row.watermark, status.now),
                )
                for view in status.topics
            ],
            records=status.records,
            quarantined=status.quarantined,
        )

    async def ListAuditLog(
        self, request: reports_pb2.ListAuditLogRequest, context: Context
    ) -> reports_pb2.ListAuditLogResponse:
        """List administrative acts, newest first."""
        size = page_size(request.page_size)
        before = number_of(request.page_token)
        rows = await reports.list_audit_log(self._pools, before=before, count_max=size + 1)
        token = to_token(str(rows[size - 1].audit_id)) if len(rows) > size else ""
        return reports_pb2.ListAuditLogResponse(entries=map(_entry, rows[:size]), next_page_token=token)


def _lag_ms(watermark: datetime | None, now: datetime) -> int | None:
    return None if watermark is None else max(0, (now - watermark) // timedelta(milliseconds=1))


def _entry(row: AuditRow) -> reports_pb2.AuditEntry:
    return reports_pb2.AuditEntry(
        at=timestamp(row.at),
        actor=row.actor,
        action=row.action,
        tenant=row.tenant,
        request_id=row.request_id,
        before=_canonical(row.before),
        after=_canonical(row.after),
    )


def _canonical(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
