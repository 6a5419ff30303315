"""The processes that are measured: a Postgres, a Valkey, a ledger and a sidecar, pinned, and their CPU time."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import grpc
import psutil
from tollkeeper.ledger.v1 import admin_pb2, admin_pb2_grpc
from tollkeeper_cli.embedded import places
from tollkeeper_cli.stack import CHANNEL_OPTIONS, Addresses, Stack

from bench.frame import Sample
from bench.load import in_flight

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

_PORTS = Addresses(
    ledger_listen="127.0.0.1:0", ledger_http="127.0.0.1:0", sidecar_listen="127.0.0.1:0", sidecar_http="127.0.0.1:0"
)
_CALL_TIMEOUT_S = 300.0
_MESSAGE_BYTES_MAX = 64 << 20
_LONG_MESSAGES = (("grpc.max_send_message_length", _MESSAGE_BYTES_MAX), ("grpc.max_receive_message_length", -1))
SELLER = (
    'version: 1\nseller: {id: default, name: "Example GmbH", address: ["Hauptstraße 1", "10115 Berlin"],'
    " tax_id: DE123456789, invoice_prefix: TK, currency: USD, time_zone: UTC}\n"
)
"""Every bench's catalogue begins with it."""
START = "2026-01-01T00:00:00Z"
"""Begin of every subscription."""


@dataclass(slots=True)
class Spent:
    """What a block took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Running processes and the ways to them."""

    stack: Stack
    database_url: str
    redis_url: str
    cores: tuple[int, ...]
    parts: dict[str, psutil.Process]
    """`postgres`, `valkey`, `ledger` and `sidecar`."""

    @contextmanager
    def spending(self, *parts: str) -> Iterator[Spent]:
        """Measure the block: its time, and the CPU time of these parts; `driver` is this process."""
        spent = Spent()
        cpu_before, before = self._cpu_s(parts), time.perf_counter()
        yield spent
        spent.wall_s = time.perf_counter() - before
        spent.cpu_s = self._cpu_s(parts) - cpu_before

    @contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """Stop a part's processes for the block, as if it ran on another machine that is slow to answer."""
        root = self.parts[part]
        family = [root, *root.children(recursive=True)]
        for process in family:
            process.suspend()
        try:
            yield
        finally:
            for process in family:
                process.resume()

    async def one_by_one(self, parts: Sequence[str], call: Callable[[int], Awaitable[object]], count: int) -> Sample:
        """Make `count` calls, one after the other, each given its number, and measure them and these parts."""
        with self.spending(*parts) as spent:
            taken = await in_flight(call, count=count, at_once=1)
        return Sample(count=count, wall_s=spent.wall_s, cpu_s=spent.cpu_s, latencies_ms=taken)

    def _cpu_s(self, names: Iterable[str]) -> float:
        total = 0.0
        for name in names:
            root = psutil.Process() if name == "driver" else self.parts[name]
            family = [root] if name == "driver" else [root, *root.children(recursive=True)]
            # With what children had used that ended meanwhile: runs have processes beside them.
            total += sum(sum(process.cpu_times()[: 2 if name == "driver" else 4]) for process in family)
        return total

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel to the ledger."""
        async with grpc.aio.insecure_channel(self.stack.addresses.ledger_listen, options=_LONG_MESSAGES) as channel:
            yield channel

    @asynccontextmanager
    async def sidecar(self) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel to the sidecar's Unix socket."""
        target = self.stack.addresses.sidecar_target
        async with grpc.aio.insecure_channel(target, options=(*CHANNEL_OPTIONS, *_LONG_MESSAGES)) as channel:
            yield channel

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """Connect to Postgres as its owner: for floors, and to fill tables."""
        conn = await asyncpg.connect(
            self.database_url, server_settings={"search_path": "tollkeeper, pg_temp", "timezone": "UTC", "jit": "off"}
        )
        try:
            yield conn
        finally:
            await conn.close()

    async def apply(self, yaml: str) -> None:
        """Declare a catalogue beside what is there."""
        async with self.ledger() as channel:
            request = admin_pb2.ApplyCatalogueRequest(request_id=secrets.token_hex(8), yaml=yaml, source_name="bench")
            await admin_pb2_grpc.AdminServiceStub(channel).ApplyCatalogue(request, timeout=_CALL_TIMEOUT_S)


@asynccontextmanager
async def running_stage(directory: Path) -> AsyncIterator[Stage]:
    """Start everything in a directory; end all of it and remove its data.

    The sidecar has the first core, the driver the second, others any. With fewer than two cores nothing is pinned.
    """
    cores = tuple(sorted(os.sched_getaffinity(0)))
    stack = Stack(directory, addresses=_PORTS)
    try:
        stack.start()
        settings = stack.environment()
        stage = Stage(
            stack=stack,
            database_url=settings["TOLLKEEPER_DATABASE_URL"],
            redis_url=settings["TOLLKEEPER_REDIS_URL"],
            cores=cores,
            parts=_parts(),
        )
        if len(cores) > 1:
            _pin(stage)
        yield stage
    finally:
        os.sched_setaffinity(0, cores)
        stack.kill_sidecar()
        stack.kill_ledger()
        await asyncio.to_thread(stack.stop)
        # The servers' data may lie elsewhere: where an account of their own can get, and where paths are short.
        for name in ("postgres", "valkey"):
            places.remove_home(directory / name)
        places.remove_stand_in(directory)


def _parts() -> dict[str, psutil.Process]:
    """Name this process' children."""
    signs = {"ledger": "tollkeeper_ledger", "sidecar": "tollkeeper_sidecar", "valkey": "valkey", "postgres": "postgres"}
    found: dict[str, psutil.Process] = {}
    for child in psutil.Process().children():
        words = " ".join(child.cmdline()[:3])
        found |= {part: child for part, sign in signs.items() if sign in words}
    return found


def _pin(stage: Stage) -> None:
    """Give the sidecar and the driver a core each, their threads too."""
    for thread in stage.parts["sidecar"].threads():
        os.sched_setaffinity(thread.id, stage.cores[:1])
    os.sched_setaffinity(0, stage.cores[1:2])
