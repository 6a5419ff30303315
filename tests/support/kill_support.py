"""Records that flow through a sidecar while processes are killed, each sent until it is acknowledged."""

from __future__ import annotations

import asyncio
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from tollkeeper.quota.v1 import quota_pb2_grpc, usage_pb2
from tollkeeper_cli.stack import CHANNEL_OPTIONS

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator

    from platform_support import Platform

CALL_TIMEOUT_S = 5.0
"""A call that takes longer is given up on and repeated: the process that has it may be dead."""
PAUSE_S = 0.02
AGAIN_S = 0.1
RECORDS_MAX = 8
_DONE = (usage_pb2.RECORD_OUTCOME_RECORDED, usage_pb2.RECORD_OUTCOME_DUPLICATE)
_RECONNECTING = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))


@dataclass(slots=True)
class Flow:
    """One caller of a sidecar: sends batch after batch, each under its ids until every record is acknowledged."""

    platform: Platform
    target: str
    tenant: str
    acknowledgement: usage_pb2.Acknowledgement
    chance: random.Random
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Units by id."""
    retries: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a batch is acknowledged."""

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop; then end the batch that is on its way."""
        async with grpc.aio.insecure_channel(self.target, options=[*CHANNEL_OPTIONS, *_RECONNECTING]) as channel:
            stub = quota_pb2_grpc.QuotaServiceStub(channel)
            async for batch in self._batches(stop):
                await self._send(stub, batch)
                self.moved.set()

    async def _batches(self, stop: asyncio.Event) -> AsyncIterator[dict[str, int]]:
        number = 0
        while not stop.is_set():
            count = self.chance.randint(1, RECORDS_MAX)
            name = f"{self.tenant}-{self.acknowledgement}"
            yield {f"{name}-{number + at}": self.chance.randint(1, 1_000) for at in range(count)}
            number += count
            await asyncio.sleep(PAUSE_S)

    async def _send(self, stub: quota_pb2_grpc.QuotaServiceStub, batch: dict[str, int]) -> None:
        at = self.platform.now()
        request = usage_pb2.RecordUsageRequest(
            records=[
                usage_pb2.UsageRecord(
                    id=name,
                    tenant=self.tenant,
                    event_time=at,
                    quantities=[usage_pb2.Quantity(meter="tokens", units=units)],
                )
                for name, units in batch.items()
            ],
            acknowledgement=self.acknowledgement,
        )
        while True:
            try:
                answer = await stub.RecordUsage(request, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                self.retries += 1
                await asyncio.sleep(AGAIN_S)
                continue
            assert all(result.outcome in _DONE for result in answer.results), answer.results
            self.acknowledged.update(batch)
            return


async def answers_lost(http_port: int) -> int:
    """Ask a sidecar how many of its batches had been committed by one whose answer was lost; 0 while it is away."""

    def ask() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    for line in (await asyncio.to_thread(ask)).splitlines():
        if line.startswith("tollkeeper_sidecar_ship_answers_lost_total "):
            return int(line.split()[1])
    return 0
