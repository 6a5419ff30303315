"""A ledger that is killed comes back fast and knows everything that it had answered."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING

import grpc.aio
from ledger_process import process
from limits_support import Sidecar, apply_catalogue, kind, new_key
from ports import free_port
from tollkeeper.ledger.v1 import limits_pb2

if TYPE_CHECKING:
    from tollkeeper_ledger.config import Settings


async def ask(channel: grpc.aio.Channel, entry: limits_pb2.AllotEntry, holder: bytes) -> limits_pb2.AllotAnswer:
    """Ask, waiting until somebody serves."""
    sidecar = Sidecar(channel=channel, ledger=None, holder=holder)  # type: ignore[arg-type]
    request = limits_pb2.AllotRequest(holder=holder, entries=[entry])
    response = await sidecar.stub.Allot(request, wait_for_ready=True, timeout=60)
    answer: limits_pb2.AllotAnswer = response.answers[0]
    return answer


async def test_a_killed_ledger_repeats_its_answers_after_the_restart(ledger_settings: Settings) -> None:
    """Kill -9, start again: the lease is repeated, not given again; the pool goes on; a clean stop ends with 0."""
    port, key, holder = free_port(), new_key(), os.urandom(16)
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]

    def entry(seq: int) -> limits_pb2.AllotEntry:
        return limits_pb2.AllotEntry(
            tenant="acme", limit="large", key_hash=key, at_us=time.time_ns() // 1000, request_seq=seq, need=5, want=5
        )

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        async with process(ledger_settings, port):
            await asyncio.wait_for(channel.channel_ready(), 60)
            await apply_catalogue(channel)
            first = await ask(channel, entry(1), holder)
        began = time.monotonic()
        async with process(ledger_settings, port) as restarted:
            again = await ask(channel, entry(1), holder)
            print(f"answered {time.monotonic() - began:.2f} s after the restart began")  # noqa: T201 - a figure, not a bound
            pool = await ask(channel, entry(2), holder)
            restarted.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(restarted.wait(), 60) == 0
    assert (first.lease.give, again.lease.give, again.lease.granted_cum) == (5, 5, 5)
    assert first.window.window_id == again.window.window_id
    assert kind(pool) == "pool"
