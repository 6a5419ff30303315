# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""UsageService: convert messages and call the services."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from tollkeeper.ledger.v1 import usage_pb2, usage_pb2_grpc
from tollkeeper.quota.v1 import quota_pb2
from tollkeeper.quota.v1 import usage_pb2 as quota_usage_pb2

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import (
    CONFLICT,
    Hole,
    LevelChange,
    LevelName,
    UsageAppend,
    UsageColumns,
    Verdict,
    malformed,
)
from tollkeeper_ledger.domain.usage_producer import check_format
from tollkeeper_ledger.rpc.acting import act_of
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.rpc.record_messages import results_message, uses_of
from tollkeeper_ledger.rpc.reservation_messages import actual_of, quantities_of, reservation_of, settled_message
from tollkeeper_ledger.services.notes import check_note
from tollkeeper_ledger.services.reservation_ends import ReservationEnds
from tollkeeper_ledger.services.usage import UsageIngest, own_producer_id
from tollkeeper_ledger.services.usage_voids import void_usage
from tollkeeper_ledger.store.catalogue_writes import AuditEntry, add_audit
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.usage_batches import find_tenants

if TYPE_CHECKING:
    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.services.usage_input import UsageInput

    Context = grpc.aio.ServicerContext[Any, Any]

_ID_BYTES = 16


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """Serve producers."""

    def __init__(self, resources: Resources, limits: Limits, usage: UsageInput) -> None:
        pool = self._pool = resources.pools.ingest
        self._producer_id = own_producer_id(limits.installation.installation_id)
        self._ingest = UsageIngest(
            pool,
            embedded=resources.settings.embedded,
            chain=resources.chain,
            restores=limits.restores,
            log=resources.log,
        )
        self._keys = {key.key_id: key.secret for key in limits.installation.token_keys}
        self._input = usage
        self._ends = ReservationEnds(self._ingest, limits.tenants, installation_id=limits.installation.installation_id)

    async def OpenProducer(
        self, request: usage_pb2.OpenProducerRequest, context: Context
    ) -> usage_pb2.OpenProducerResponse:
        """Announce a producer's process; fence every older incarnation."""
        position = await self._ingest.open_producer(
            _producer_id(request.producer_id),
            incarnation=request.incarnation,
            holder=request.holder,
            version=request.format,
            ended=list(request.ended_holders),
            ended_seq=request.ended_seq,
        )
        return usage_pb2.OpenProducerResponse(
            committed_seq=position.committed_seq, h=position.h, safe_seq=position.safe_seq
        )

    async def AppendUsage(
        self, request: usage_pb2.AppendUsageRequest, context: Context
    ) -> usage_pb2.AppendUsageResponse:
        """Commit a contiguous run of a producer's log, in one transaction."""
        return await self._append(append_from_message(request))

    async def RecordUsage(
        self, request: quota_usage_pb2.RecordUsageRequest, context: Context
    ) -> quota_usage_pb2.RecordUsageResponse:
        """Commit records that come to the ledger itself; each gets its own result."""
        uses = await asyncio.to_thread(uses_of, request)
        return results_message(request, await self._input.record(uses))

    async def SettleReservation(
        self, request: quota_pb2.SettleReservationRequest, context: Context
    ) -> quota_pb2.SettleReservationResponse:
        """End a reservation at the actual quantities."""
        reservation = reservation_of(request.token, self._keys)
        return settled_message(await self._ends.end(reservation, actual_of(request)))

    async def ReleaseReservation(
        self, request: quota_pb2.ReleaseReservationRequest, context: Context
    ) -> quota_pb2.ReleaseReservationResponse:
        """End a reservation at zero."""
        ended = await self._ends.end(reservation_of(request.token, self._keys), None)
        return quota_pb2.ReleaseReservationResponse(
            refunded=quantities_of(ended.refunded), repeated_call=ended.repeated
        )

    async def VoidUsage(self, request: usage_pb2.VoidUsageRequest, context: Context) -> usage_pb2.VoidUsageResponse:
        """Take records back."""
        check_note(request.note)
        async with transaction(self._pool) as conn:

            async def work() -> usage_pb2.VoidUsageResponse:
                act = await act_of(conn, request, context)
                voided, before = await void_usage(
                    conn, self._ingest, self._producer_id, tenant=request.tenant, ids=list(request.ids), now=act.now
                )
                entry = AuditEntry(
                    tenant_id=(await find_tenants(conn, [request.tenant]))[request.tenant],
                    subject=f"usage/{request.tenant}",
                    before=None,
                    after={"ids": list(request.ids), "voided": voided, "note": request.note},
                )
                await add_audit(
                    conn, [entry], now=act.now, actor=act.actor, action="VoidUsage", request_id=act.request_id
                )
                return usage_pb2.VoidUsageResponse(voided=voided, voided_before=before)

            return await answer_once(conn, request, usage_pb2.VoidUsageResponse, work)

    async def append_bytes(self, request: bytes, context: Context) -> usage_pb2.AppendUsageResponse:
        """Serve AppendUsage from its wire bytes, so that what can't be decoded is answered BATCH_MALFORMED."""
        return await self._append(await asyncio.to_thread(append_from_bytes, request))

    async def _append(self, append: UsageAppend) -> usage_pb2.AppendUsageResponse:
        outcome = await self._ingest.append(append)
        return usage_pb2.AppendUsageResponse(
            committed_seq=outcome.position.committed_seq,
            h=outcome.position.h,
            safe_seq=outcome.position.safe_seq,
            stored=outcome.stored,
            duplicates=outcome.duplicates,
            conflicts=outcome.conflicts,
            quarantined=outcome.quarantined,
            trimmed=outcome.trimmed,
            verdicts=map(_verdict, outcome.verdicts),
        )


def add_usage_service(server: grpc.aio.Server, service: UsageService) -> None:
    """Add the service to a server, with AppendUsage decoded by the service itself."""
    append: grpc.RpcMethodHandler[bytes, usage_pb2.AppendUsageResponse] = grpc.unary_unary_rpc_method_handler(
        service.append_bytes, response_serializer=usage_pb2.AppendUsageResponse.SerializeToString
    )
    name = usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name
    usage_pb2_grpc.add_UsageServiceServicer_to_server(service, server)
    # The handler registered last under a name serves; the generated one decodes before anybody could catch it.
    server.add_registered_method_handlers(name, {"AppendUsage": append})


def append_from_bytes(request: bytes) -> UsageAppend:
    """Give the batch of a message's wire bytes. Raises InvalidFieldError or PreconditionError VERSION_UNSUPPORTED."""
    try:
        message = usage_pb2.AppendUsageRequest.FromString(request)
    except DecodeError as error:
        raise malformed("request", "can't be decoded") from error
    return append_from_message(message)


def append_from_message(request: usage_pb2.AppendUsageRequest) -> UsageAppend:
    """Give the batch of a message. Raises InvalidFieldError or PreconditionError VERSION_UNSUPPORTED."""
    check_format(request.format)
    records = request.records
    return UsageAppend(
        producer_id=_producer_id(request.producer_id),
        incarnation=request.incarnation,
        first_seq=request.first_seq,
        h_before=request.h_before,
        columns=UsageColumns(
            tenants=list(records.tenants),
            meters=list(records.meters),
            attribute_names=list(records.attribute_names),
            attribute_values=list(records.attribute_values),
            ids=list(records.ids),
            tenant=list(records.tenant),
            event_time_us=list(records.event_time_us),
            received_us=list(records.received_us),
            flags=list(records.flags),
            quantity_count=list(records.quantity_count),
            attribute_count=list(records.attribute_count),
            meter=list(records.meter),
            units=list(records.units),
            attribute_name=list(records.attribute_name),
            attribute_value=list(records.attribute_value),
            homes=list(records.homes),
            home=list(records.home),
            level_changes=_level_changes(records),
        ),
        holes=[Hole(hole.first_seq, hole.last_seq, hole.reason, hole.content_hash) for hole in request.holes],
        watermark_us=request.watermark_us,
        tenants_served=list(request.tenants_served),
        closing=request.closing,
    )


def _level_changes(records: usage_pb2.UsageColumns) -> list[LevelChange]:
    if not records.level_changes:
        return []
    names = [LevelName(name.tenant, name.limit, name.key_hash) for name in records.level_names]
    holders = list(records.level_holders)
    try:
        return [
            LevelChange(change.record, names[change.level], holders[change.holder], change.units, change.over)
            for change in records.level_changes
        ]
    except IndexError:
        raise malformed("records.level_changes", "points outside its dictionary") from None


def _verdict(verdict: Verdict) -> usage_pb2.RecordVerdict:
    problem = verdict.problem
    if problem is None:
        return usage_pb2.RecordVerdict(seq=verdict.seq, outcome=quota_usage_pb2.RECORD_OUTCOME_DUPLICATE)
    if problem == CONFLICT:
        return usage_pb2.RecordVerdict(seq=verdict.seq, outcome=quota_usage_pb2.RECORD_OUTCOME_CONFLICT)
    return usage_pb2.RecordVerdict(
        seq=verdict.seq,
        outcome=quota_usage_pb2.RECORD_OUTCOME_INVALID,
        reason=problem.reason,
        field=problem.field,
    )


def _producer_id(raw: bytes) -> UUID:
    if len(raw) != _ID_BYTES:
        raise InvalidFieldError(
            "producer_id", "must be 16 bytes", reason="FIELD_INVALID", value=len(raw), bound="16 bytes"
        )
    return UUID(bytes=raw)
