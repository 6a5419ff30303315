"""Ask the ledger what a replay and the demo need, asynchronously."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.ledger.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    billing_pb2,
    billing_pb2_grpc,
    reports_pb2,
    reports_pb2_grpc,
)

from tollkeeper_cli.connection import to_micros
from tollkeeper_cli.errors import from_rpc_error
from tollkeeper_cli.replay.model import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

_CALL_TIMEOUT_S = 60.0
_STREAM_TIMEOUT_S = 600.0
_SPEED_MILLI = 1_000
_SET_CLOCK_ATTEMPTS = 300
_SET_CLOCK_PAUSE_S = 0.2


# A restarted ledger should be found at once, not after grpc's usual minute.
_RECONNECT_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 250),
)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """Ledger time."""

    now_us: int
    speed_milli: int
    embedded: bool


class LedgerCalls:
    """Calls the ledger through one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._admin = admin_pb2_grpc.AdminServiceStub(channel)
        self._billing = billing_pb2_grpc.BillingServiceStub(channel)
        self._reports = reports_pb2_grpc.ReportServiceStub(channel)

    async def clock(self) -> ClockReading:
        """Read ledger time."""
        answer = await self._admin.GetClock(admin_pb2.GetClockRequest(), timeout=_CALL_TIMEOUT_S)
        return ClockReading(to_micros(answer.now), answer.speed_milli, answer.embedded)

    async def set_clock(self, *, now_us: int | None = None, speed: int | None = None) -> None:
        """Set ledger time, its speed, or both; return when every sidecar has it.

        Repeats the call under one id while the ledger can't be reached: it may be killed in the middle of a replay.
        """
        request = admin_pb2.SetClockRequest(request_id=_new_id())
        if now_us is not None:
            request.now.CopyFrom(timestamp(now_us))
        if speed is not None:
            request.speed_milli = speed * _SPEED_MILLI
        for _ in range(_SET_CLOCK_ATTEMPTS):
            try:
                await self._admin.SetClock(request, timeout=_CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(_SET_CLOCK_PAUSE_S)
            else:
                return
        await self._admin.SetClock(request, timeout=_CALL_TIMEOUT_S)

    async def apply(self, yaml: str, *, source_name: str) -> int:
        """Declare a catalogue; return how many things changed."""
        request = admin_pb2.ApplyCatalogueRequest(request_id=_new_id(), yaml=yaml, source_name=source_name)
        answer = await self._admin.ApplyCatalogue(request, timeout=_CALL_TIMEOUT_S)
        return sum(change.action != "unchanged" for change in answer.changes)

    async def lift_limits(self, tenant: str) -> None:
        """Make every limit of a tenant unlimited."""
        limits = await self._admin.ListLimits(admin_pb2.ListLimitsRequest(tenant=tenant), timeout=_CALL_TIMEOUT_S)
        for limit in limits.limits:
            request = admin_pb2.SetOverrideRequest(
                request_id=_new_id(), tenant=tenant, limit=limit.name, amount=-1, note="replay without limits"
            )
            await self._admin.SetOverride(request, timeout=_CALL_TIMEOUT_S)

    async def period_end_us(self, tenant: str) -> int:
        """Return the end of a tenant's running period; the last one where there are several subscriptions."""
        request = admin_pb2.ListSubscriptionsRequest(tenant=tenant)
        answer = await self._admin.ListSubscriptions(request, timeout=_CALL_TIMEOUT_S)
        return max(to_micros(subscription.period_end) for subscription in answer.subscriptions)

    async def records_stored(self) -> tuple[int, int]:
        """Return how many records are stored and how many quarantined."""
        answer = await self._reports.GetIngestStatus(reports_pb2.GetIngestStatusRequest(), timeout=_CALL_TIMEOUT_S)
        return answer.records, answer.quarantined

    async def usage(self, tenant: str, *, from_us: int) -> dict[str, tuple[int, int]]:
        """Return (sum, records) per meter from an event time on, as the ledger's rollups have it."""
        request = reports_pb2.QueryUsageRequest(tenant=tenant)
        getattr(request, "from").CopyFrom(timestamp(from_us))
        answer = await self._reports.QueryUsage(request, timeout=_CALL_TIMEOUT_S)
        return {bucket.meter: (int(bucket.sum), bucket.records) for bucket in answer.buckets}

    async def records(self, tenant: str, *, from_us: int) -> AsyncIterator[reports_pb2.StoredRecord]:
        """Yield a tenant's stored records from an event time on."""
        request = reports_pb2.ListUsageRecordsRequest(tenant=tenant)
        getattr(request, "from").CopyFrom(timestamp(from_us))
        async for page in self._reports.ListUsageRecords(request, timeout=_STREAM_TIMEOUT_S):
            for record in page.records:
                yield record

    async def run_invoices(self) -> dict[str, str]:
        """Close what is due; return what is held, and why, by tenant."""
        request = billing_pb2.RunInvoicesRequest(request_id=_new_id(), without_lines=True, together=True)
        return {
            step.held_tenant: step.held_reason
            async for step in self._billing.RunInvoices(request, timeout=_STREAM_TIMEOUT_S)
            if step.held_tenant
        }

    async def invoices(self, tenants: Sequence[str], *, ended_by_us: int) -> list[billing_pb2.Invoice]:
        """Return the tenants' invoices, with lines, of the period that ends at the time given."""
        found: list[billing_pb2.Invoice] = []
        for tenant in tenants:
            listing = await self._billing.ListInvoices(
                billing_pb2.ListInvoicesRequest(tenant=tenant), timeout=_CALL_TIMEOUT_S
            )
            for invoice in listing.invoices:
                if to_micros(invoice.period_end) == ended_by_us:
                    request = billing_pb2.GetInvoiceRequest(invoice=invoice.invoice_id)
                    found.append((await self._billing.GetInvoice(request, timeout=_CALL_TIMEOUT_S)).invoice)
        return found

    async def pdf(self, invoice_id: str) -> bytes:
        """Return an invoice as a PDF."""
        request = billing_pb2.GetInvoicePdfRequest(invoice=invoice_id)
        answer = await self._billing.GetInvoicePdf(request, timeout=_CALL_TIMEOUT_S)
        return bytes(answer.pdf)


@asynccontextmanager
async def ledger_at(target: str) -> AsyncIterator[LedgerCalls]:
    """Give calls to the ledger; one that fails inside the block ends the command with what went wrong."""
    options = (*_RECONNECT_OPTIONS, ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    try:
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            yield LedgerCalls(channel)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error, server=f"the ledger at {target}") from error


def timestamp(micros: int) -> Timestamp:
    """Return a protobuf time."""
    return Timestamp(seconds=micros // MICROSECONDS, nanos=micros % MICROSECONDS * 1_000)


def _new_id() -> str:
    return f"cli/{uuid.uuid4()}"
