"""A small TCP proxy that breaks what passes through it: delay, hold, cut, cut mid-frame, half-open, narrow, redirect.

Runs on a thread of its own, so that a test's event loop and its proxies don't slow each other. Every method may be
called from any thread and has taken effect when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import weakref
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Self

_T = TypeVar("_T")

_CHUNK_BYTES = 65_536
_CALL_TIMEOUT_S = 10.0
_TURNS = 10
"""More than asyncio takes from an accepted socket to whoever is told of it, and from closing to a closed socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How bytes travel; everything at its default is a perfect line."""

    delay_s: float = 0.0
    """One way, each way."""
    jitter_s: float = 0.0
    """Up to so much more, at random; bytes stay in order."""
    bytes_per_s: float = 0.0
    """Each way of each connection; 0 = no bound."""
    holds_requests: bool = False
    """Bytes to the server are kept until this ends, as a partition keeps what TCP sends again."""
    holds_replies: bool = False
    """Bytes from the server are kept until this ends."""
    refuses: bool = False
    """New connections are closed at once."""


PERFECT = Line()
PARTITION = Line(holds_requests=True, holds_replies=True)
REPLIES_LOST = Line(holds_replies=True)


@dataclass(slots=True)
class _Way:
    """One direction of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_request: bool
    queue: asyncio.Queue[tuple[float, bytes]] = field(default_factory=lambda: asyncio.Queue(256))


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class Proxy:
    """One listening port in front of one server. Use it with `with`."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", seed: int = 1) -> None:
        self._to = (host, port)
        self._line = PERFECT
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._cut_reply_after: int | None = None
        self._accepted: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        self.port = 0
        self.reply_bytes = 0
        """Bytes that clients were given."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()

    def use(self, line: Line) -> None:
        """Let bytes travel so from now on, on open connections as well. What was held travels when nothing holds it."""
        self._call(self._use(line))

    def heal(self) -> None:
        """Let bytes travel as on a perfect line."""
        self.use(PERFECT)

    def cut(self, *, refuse: bool = False) -> None:
        """Close every connection, and with `refuse` every new one until `heal`. What was held is lost."""
        if refuse:
            self.use(replace(self._line, refuses=True))
        self._call(self._cut())

    def cut_reply_after(self, count: int) -> None:
        """Close the connection that carries the reply byte after the next `count`, in the middle of a frame."""
        self._cut_reply_after = count

    def redirect(self, port: int, *, host: str = "127.0.0.1") -> None:
        """Close every connection and lead new ones to another server."""
        self._to = (host, port)
        self.cut()

    def _call(self, action: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(_CALL_TIMEOUT_S)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        if self._server is not None:
            # What was accepted just before gets here some turns later; a server that is closed by then drops it open.
            self._loop.remove_reader(self._server.sockets[0])
            await _turns()
            self._server.close()
        await self._cut()

    async def _use(self, line: Line) -> None:
        self._line = line
        self._changed.set()
        self._changed = asyncio.Event()

    async def _cut(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        # One that was cancelled before it began has closed nothing.
        for writer in list(self._accepted):
            writer.transport.abort()
        await _turns()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No coroutine, so that whoever closes knows of it from its first moment.
        self._accepted.add(writer)
        connection = asyncio.ensure_future(self._carry(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end, or the line, gives up."""
        writers = [writer]
        try:
            if self._line.refuses:
                return
            back_reader, back_writer = await asyncio.open_connection(*self._to)
            writers.append(back_writer)
            ways = (_Way(reader, back_writer, is_request=True), _Way(back_reader, writer, is_request=False))
            tasks = [asyncio.ensure_future(part) for way in ways for part in (self._take(way), self._give(way))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.transport.abort()

    async def _take(self, way: _Way) -> None:
        """Take bytes from one end; each piece gets the time at which it may arrive."""
        free_s = 0.0
        while data := await way.reader.read(_CHUNK_BYTES):
            line, now_s = self._line, self._loop.time()
            if line.bytes_per_s:
                free_s = max(free_s, now_s) + len(data) / line.bytes_per_s
            late_s = line.delay_s + line.jitter_s * self._chance.random()
            await way.queue.put((max(now_s, free_s) + late_s, data))

    async def _give(self, way: _Way) -> None:
        """Give bytes to the other end in their order, when they are due and nothing holds them."""
        while True:
            due_s, data = await way.queue.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            while self._line.holds_requests if way.is_request else self._line.holds_replies:
                await self._changed.wait()
            if not way.is_request and self._must_cut(way, data):
                return
            way.writer.write(data)
            await way.writer.drain()
            self.reply_bytes += 0 if way.is_request else len(data)

    def _must_cut(self, way: _Way, data: bytes) -> bool:
        """Give what still may pass before a cut in the middle of a frame, and say whether it is due."""
        if self._cut_reply_after is None:
            return False
        if len(data) <= self._cut_reply_after:
            self._cut_reply_after -= len(data)
            return False
        with contextlib.suppress(OSError):
            way.writer.write(data[: self._cut_reply_after])
        self._cut_reply_after = None
        return True
