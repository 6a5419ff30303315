"""Processes that bill batches beside their parent: Python rates on one core, so a run on several needs several.

Parent and child share a socket and nothing else. A child has its own connections, and a batch is one transaction there
as here; whichever of the two dies, Postgres keeps whole batches. A child ends when its socket does.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.store.billing_invoices import StoredInvoice, ToldInvoice

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Sequence

    from tollkeeper_ledger.config import Settings
    from tollkeeper_ledger.services.invoice_batches import Head, Step
    from tollkeeper_ledger.services.invoice_issue import Run

MODULE = "tollkeeper_ledger.biller"
BATCHES_PER_PROCESS = 2
"""While Postgres adds one, the other is read and rated."""
_END_S = 5.0
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Opening:
    """What a process must know before its first batch."""

    database_url: str
    run: Run
    with_lines: bool
    """Whether invoices are told of with their lines."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a process is asked to bill; `number` names the answer."""

    number: int
    heads: Sequence[Head]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a batch, in its order, as far as it came."""

    number: int
    steps: list[Step]


@dataclass(frozen=True, slots=True)
class BillingProcesses:
    """Say how many processes a large run may have beside its own, and whose database they bill in."""

    database_url: str
    count_max: int
    periods_min: int = 2_000
    """A run of fewer is over before a process has begun."""
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def count_for(self, due: int) -> int:
        """Give how many are worth having for so many periods: one for each core but this process' own."""
        return min(self.count_max, self.cores - 1) if due >= self.periods_min else 0


def billing_processes_of(settings: Settings) -> BillingProcesses:
    """Give what a ledger's runs may have beside them."""
    return BillingProcesses(settings.database_url, count_max=settings.billing_processes)


@dataclass(slots=True)
class BillingProcess:
    """The parent's end of one process."""

    process: Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_lost: bool = False
    _asked: dict[int, asyncio.Future[list[Step]]] = field(default_factory=dict)
    _number: int = 0

    async def close(self, heads: Sequence[Head]) -> list[Step]:
        """Bill a batch there, as `BatchBiller.close` does here, and give what it told of, in order.

        Fewer than asked where it broke off; nothing where the process is gone: what it committed is then unknown.
        """
        if self.is_lost:
            return []
        self._number += 1
        number = self._number
        answered: asyncio.Future[list[Step]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answered
        try:
            with suppress(ConnectionError):
                await send(self.writer, Batch(number, list(heads)))
            return await answered
        finally:
            del self._asked[number]

    async def listen(self) -> None:
        """Hand answers to who waits for them, until the process ends."""
        try:
            while (answer := await receive(self.reader)) is not None:
                waiting = self._asked.get(answer.number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer.steps)
        finally:
            self.is_lost = True
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_result([])

    async def end(self) -> None:
        """Close the socket, which ends the process; kill it where it does not see that."""
        self.writer.close()
        try:
            await asyncio.wait_for(self.process.wait(), _END_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def billing_processes(opening: Opening, count: int) -> AsyncIterator[list[BillingProcess]]:
    """Start processes, and end them with the block: what they have not committed by then is rolled back."""
    processes: list[BillingProcess] = []
    listening: list[asyncio.Task[None]] = []
    try:
        for _ in range(count):
            one = await _start(opening)
            processes.append(one)
            listening.append(asyncio.create_task(one.listen()))
        yield processes
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*(one.end() for one in processes), *listening, return_exceptions=True)


async def _start(opening: Opening) -> BillingProcess:
    ours, theirs = socket.socketpair()
    with theirs:
        # A session of its own: a signal to the group of the ledger ends the ledger, and that ends its sockets.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", MODULE, str(theirs.fileno()),
            pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    reader, writer = await asyncio.open_connection(sock=ours)
    with suppress(ConnectionError):
        await send(writer, opening)
    return BillingProcess(process, reader, writer)


async def send(writer: asyncio.StreamWriter, what: Opening | Batch | Answer) -> None:
    """Send one message whole. Raises ConnectionError: nobody is there."""
    written = pickle.dumps(what, pickle.HIGHEST_PROTOCOL)
    writer.write(_LENGTH.pack(len(written)) + written)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    """Read one message; None where the other end is gone, in the middle of one as well."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return pickle.loads(await reader.readexactly(length))  # noqa: S301 - from our own child or parent alone
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def told(step: Step, *, with_lines: bool) -> Step:
    """Give a step as it goes between processes: without the document's bytes, and its lines where nobody asked."""
    invoice = step.invoice
    if not isinstance(invoice, StoredInvoice):
        return step
    shown = invoice.read()
    if not with_lines:
        shown = {name: value for name, value in shown.items() if name not in ("lines", "manifest")}
    return replace(step, invoice=ToldInvoice(digest=invoice.digest, standing=invoice.standing, shown=shown))
