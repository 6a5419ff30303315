"""The ledger starts on real servers and says so."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tollkeeper_ledger.app import running

if TYPE_CHECKING:
    from tollkeeper_ledger.config import Settings


async def test_a_started_ledger_answers_health_on_both_protocols(ledger_settings: Settings) -> None:
    """A started ledger is SERVING over gRPC and 200 over HTTP."""
    async with running(ledger_settings) as ledger:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ledger.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reader, writer = await asyncio.open_connection("127.0.0.1", ledger.http_port)
        writer.write(b"GET /health HTTP/1.1\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
