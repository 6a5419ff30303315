"""LimitService: convert messages and call the services."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tollkeeper.ledger.v1 import decisions_pb2, limits_pb2, limits_pb2_grpc

from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.rpc.allot_messages import entry_from_message, result_to_message
from tollkeeper_ledger.rpc.decision_messages import batch_from_message
from tollkeeper_ledger.rpc.lease_messages import leases_from_message
from tollkeeper_ledger.rpc.watch_messages import event_to_message, welcome_message
from tollkeeper_ledger.services.allot import REQUEST_ENTRIES_MAX
from tollkeeper_ledger.services.decisions import store_decisions
from tollkeeper_ledger.services.fairness import in_turns
from tollkeeper_ledger.services.returns import Consumption, Return
from tollkeeper_ledger.services.watch import TENANTS_MAX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import grpc.aio

    from tollkeeper_ledger.services.limits import Limits
    from tollkeeper_ledger.services.resources import Resources
    from tollkeeper_ledger.services.watch import Stream

    Context = grpc.aio.ServicerContext[Any, Any]

PROTOCOL_VERSION = 1
_HOLDER_BYTES = 16
_ID_BYTES = 16
_INT64_MAX = 2**63 - 1


def _require_holder(holder: bytes, field: str) -> None:
    if len(holder) != _HOLDER_BYTES:
        raise InvalidFieldError(
            field,
            "is not a holder's name",
            reason="FIELD_INVALID" if holder else "FIELD_REQUIRED",
            value=f"{len(holder)} bytes",
            bound="16 bytes",
        )


def _require_count(entries: Sequence[object], field: str) -> None:
    if len(entries) > REQUEST_ENTRIES_MAX:
        raise InvalidFieldError(
            field,
            "has too many entries",
            reason="FIELD_TOO_LONG",
            value=len(entries),
            bound=f"up to {REQUEST_ENTRIES_MAX}",
            remedy="send several requests",
        )


def _require_cumulative(value: int, field: str) -> None:
    if value < 0:
        raise InvalidFieldError(field, "is negative", reason="FIELD_OUT_OF_RANGE", value=value, bound="0 and above")


def _require_window(window_id: bytes, field: str) -> None:
    if len(window_id) != _ID_BYTES:
        raise InvalidFieldError(field, "is not a window's name", value=f"{len(window_id)} bytes", bound="16 bytes")


class LimitService(limits_pb2_grpc.LimitServiceServicer):
    """Serve sidecars."""

    def __init__(self, resources: Resources, limits: Limits) -> None:
        self._resources = resources
        self._limits = limits

    async def Allot(  # noqa: N802 - the contract's name
        self, request: limits_pb2.AllotRequest, _: Context
    ) -> limits_pb2.AllotResponse:
        """Give units, or say where the pool is, or prove that there are none."""
        _require_holder(request.holder, "holder")
        _require_count(request.entries, "entries")
        entries = [entry_from_message(request.holder, entry) async for entry in in_turns(request.entries)]
        results = await self._limits.allot.allot(entries)
        timeline, value = self._limits.restores.shown
        return limits_pb2.AllotResponse(
            answers=[result_to_message(result) async for result in in_turns(results)],
            witness=limits_pb2.Witness(timeline=timeline, value=value),
        )

    async def ReturnUnits(  # noqa: N802 - the contract's name
        self, request: limits_pb2.ReturnUnitsRequest, _: Context
    ) -> limits_pb2.ReturnUnitsResponse:
        """Take units back."""
        _require_holder(request.holder, "holder")
        _require_count(request.entries, "entries")
        for index, entry in enumerate(request.entries):
            _require_window(entry.window_id, f"entries[{index}].window_id")
            _require_cumulative(entry.returned_cum, f"entries[{index}].returned_cum")
            if entry.generation > _INT64_MAX:
                raise InvalidFieldError(f"entries[{index}].generation", "is no generation", reason="FIELD_OUT_OF_RANGE")
        known = await self._limits.returns.give_back(
            request.holder,
            [
                Return(window_id=entry.window_id, generation=entry.generation, returned_cum=entry.returned_cum)
                for entry in request.entries
            ],
        )
        return limits_pb2.ReturnUnitsResponse(returned_cum=known)

    async def ReportConsumption(  # noqa: N802 - the contract's name
        self, request: limits_pb2.ReportConsumptionRequest, _: Context
    ) -> limits_pb2.ReportConsumptionResponse:
        """Store what a holder consumed and answer what the fleet consumed."""
        _require_holder(request.holder, "holder")
        _require_count(request.entries, "entries")
        for index, entry in enumerate(request.entries):
            _require_window(entry.window_id, f"entries[{index}].window_id")
            _require_cumulative(entry.consumed_cum, f"entries[{index}].consumed_cum")
            _require_cumulative(entry.over_cum, f"entries[{index}].over_cum")
            _require_cumulative(entry.given_back_cum, f"entries[{index}].given_back_cum")
            _require_cumulative(entry.in_flight, f"entries[{index}].in_flight")
            if entry.lease_epoch > _INT64_MAX:
                raise InvalidFieldError(f"entries[{index}].lease_epoch", "is no lease", reason="FIELD_OUT_OF_RANGE")
        _require_count(request.leases, "leases")
        said = [leases_from_message(request.holder, one, f"leases[{i}]") for i, one in enumerate(request.leases)]
        await self._limits.learning.hear(said)
        uses = await self._limits.returns.report(
            request.holder,
            [
                Consumption(
                    window_id=entry.window_id,
                    consumed_cum=entry.consumed_cum,
                    over_cum=entry.over_cum,
                    given_back_cum=entry.given_back_cum,
                    lease_epoch=entry.lease_epoch,
                    in_flight=entry.in_flight,
                )
                for entry in request.entries
            ],
        )
        return limits_pb2.ReportConsumptionResponse(
            uses=[
                limits_pb2.WindowUse()
                if use is None
                else limits_pb2.WindowUse(
                    consumed=use.consumed,
                    over=use.over,
                    allotted=use.allotted,
                    amount=use.amount,
                    as_of_us=use.as_of_us,
                    lease_epoch=use.lease_epoch,
                )
                for use in uses
            ]
        )

    async def ReportDecisions(  # noqa: N802 - the contract's name
        self, request: decisions_pb2.ReportDecisionsRequest, _: Context
    ) -> decisions_pb2.ReportDecisionsResponse:
        """Store what limits denied, or admitted beyond themselves."""
        _require_holder(request.holder, "holder")
        _require_count(request.counts, "counts")
        _require_count(request.entries, "entries")
        stored = await store_decisions(self._resources.pools.ingest, batch_from_message(request))
        return decisions_pb2.ReportDecisionsResponse(repeated=stored.repeated, unknown=stored.unknown)

    async def WatchLimits(  # noqa: N802 - the contract's name
        self, request_iterator: AsyncIterator[limits_pb2.WatchLimitsRequest], _: Context
    ) -> AsyncIterator[limits_pb2.WatchLimitsResponse]:
        """Follow limits until the sidecar leaves, or the stream can't keep up."""
        hello = await self._hello(request_iterator)
        await self._limits.restores.heard(hello.timeline_seen, hello.witness_seen)
        # Opened before the welcome is made: a clock setting from now on is either in it or sent after it.
        stream = self._limits.hub.open(hello.holder)
        home = UUID(bytes=hello.producer_id) if hello.producer_id else None
        reader = asyncio.create_task(self._read(stream, request_iterator, hello, home))
        if home is not None:
            self._limits.settlements.follow(stream, home)
        try:
            yield welcome_message(
                self._limits.installation, self._limits.restores.shown, self._resources.clock.reading()
            )
            while events := await stream.next():
                for event in events:
                    yield event_to_message(event, self._resources.clock)
        finally:
            self._limits.hub.close(stream)
            self._limits.settlements.leave(stream)
            reader.cancel()
        if reader.done() and not reader.cancelled() and (error := reader.exception()) is not None:
            raise error
        raise PreconditionError(
            "the watch stream was ended: the sidecar left or did not keep up", reason="LEDGER_UNREACHABLE"
        )

    async def _hello(self, requests: AsyncIterator[limits_pb2.WatchLimitsRequest]) -> limits_pb2.WatchHello:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidFieldError("hello", "must be the first message", reason="FIELD_REQUIRED")
        hello = first.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            raise PreconditionError(
                f"protocol version {hello.protocol_version} is not known here; known: {PROTOCOL_VERSION}",
                reason="VERSION_UNSUPPORTED",
                metadata={"field": "hello.protocol_version", "value": str(hello.protocol_version)},
            )
        _require_holder(hello.holder, "hello.holder")
        if len(hello.producer_id) not in {0, _ID_BYTES}:
            raise InvalidFieldError(
                "hello.producer_id",
                "is no producer",
                value=f"{len(hello.producer_id)} bytes",
                bound="16 bytes, or none",
            )
        return hello

    async def _read(
        self,
        stream: Stream,
        requests: AsyncIterator[limits_pb2.WatchLimitsRequest],
        hello: limits_pb2.WatchHello,
        home: UUID | None,
    ) -> None:
        """Take in what the sidecar says; ends the stream when it has nothing more to say."""
        try:
            await self._follow(stream, hello.tenants, resume_change=hello.resume_change)
            async for request in requests:
                match request.WhichOneof("message"):
                    case "clock_applied":
                        stream.applied(request.clock_applied)
                    case "cache_done":
                        stream.order_done(request.cache_done.order_id, request.cache_done.keys)
                    case "add":
                        await self._follow(stream, request.add.tenants, resume_change=0)
                    case "remove":
                        stream.forget(request.remove.tenants)
                    case "hello":
                        raise InvalidFieldError("hello", "stands twice", reason="FIELD_REPEATED")
                    case "acknowledge" if home is not None:
                        await self._acknowledge(home, request.acknowledge.reservation_ids)
                    case _:
                        # From a version that knows more.
                        pass
        finally:
            stream.end()

    async def _acknowledge(self, home: UUID, reservation_ids: Sequence[bytes]) -> None:
        _require_count(reservation_ids, "acknowledge.reservation_ids")
        await self._limits.settlements.acknowledge(home, list(reservation_ids))

    async def _follow(self, stream: Stream, tenants: Sequence[str], *, resume_change: int) -> None:
        if len(stream.follows) + len(tenants) > TENANTS_MAX:
            raise InvalidFieldError(
                "tenants", "are too many", reason="FIELD_TOO_LONG", value=len(tenants), bound=f"up to {TENANTS_MAX}"
            )
        await self._limits.hub.add(stream, list(tenants), resume_change=resume_change)
