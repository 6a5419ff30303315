# ruff: noqa: ARG002, N802 - names and parameters of methods are the contract's
"""TopicService, and AdminService's part about producers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tollkeeper.ledger.v1 import producers_pb2, producers_pb2_grpc

from tollkeeper_ledger.domain.periods import to_us
from tollkeeper_ledger.rpc.acting import act_of, timestamp
from tollkeeper_ledger.rpc.fields import instant_of, instant_of_us
from tollkeeper_ledger.rpc.idempotent import answer_once
from tollkeeper_ledger.services.producers import mark_lost, mark_safe, report_topics
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.usage_topics import TopicPosition

if TYPE_CHECKING:
    import grpc.aio

    from tollkeeper_ledger.services.resources import Resources

    Context = grpc.aio.ServicerContext[Any, Any]


class TopicService(producers_pb2_grpc.TopicServiceServicer):
    """Serve readers of topics."""

    def __init__(self, resources: Resources) -> None:
        self._pool = resources.pools.ingest

    async def ReportTopics(
        self, request: producers_pb2.ReportTopicsRequest, context: Context
    ) -> producers_pb2.ReportTopicsResponse:
        """Say how far topics are read."""
        positions = [_position(one, field=f"positions[{at}]") for at, one in enumerate(request.positions)]
        async with transaction(self._pool) as conn:
            now = await report_topics(conn, request.group, positions)
        return producers_pb2.ReportTopicsResponse(now_us=to_us(now))


class AdminProducers:
    """Serve operators what concerns producers."""

    def __init__(self, resources: Resources) -> None:
        self._producers_pool = resources.pools.ingest

    async def MarkProducerLost(
        self, request: producers_pb2.MarkProducerLostRequest, context: Context
    ) -> producers_pb2.MarkProducerLostResponse:
        """Say that nobody need wait for a producer."""
        async with transaction(self._producers_pool) as conn:

            async def work() -> producers_pb2.MarkProducerLostResponse:
                act = await act_of(conn, request, context)
                before = await mark_lost(conn, request.producer, request.note, act)
                return producers_pb2.MarkProducerLostResponse(before=before)

            return await answer_once(conn, request, producers_pb2.MarkProducerLostResponse, work)

    async def MarkSafe(
        self, request: producers_pb2.MarkSafeRequest, context: Context
    ) -> producers_pb2.MarkSafeResponse:
        """Say that a backup is made."""
        begun = instant_of("at", request.at) if request.HasField("at") else None
        async with transaction(self._producers_pool) as conn:

            async def work() -> producers_pb2.MarkSafeResponse:
                safe = await mark_safe(conn, begun, request.note, await act_of(conn, request, context))
                return producers_pb2.MarkSafeResponse(safe_before=timestamp(safe))

            return await answer_once(conn, request, producers_pb2.MarkSafeResponse, work)


def _position(message: producers_pb2.TopicPosition, *, field: str) -> TopicPosition:
    watermark_us = message.watermark_us
    return TopicPosition(
        topic=message.topic,
        partition=message.partition,
        next_offset=message.next_offset,
        end_offset=message.end_offset,
        watermark=instant_of_us(f"{field}.watermark_us", watermark_us) if watermark_us > 0 else None,
    )
