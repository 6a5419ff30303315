"""Two kinds of connections to one Redis server: one that calls functions, one that hears notices.

Both keep themselves connected while `run` runs. Nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog
from redis.exceptions import RedisError, ResponseError

from tollkeeper_sidecar.backoff import Backoff
from tollkeeper_sidecar.errors import NotSent, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from redis.asyncio.connection import AbstractConnection

CONNECT_TIMEOUT_S: Final = 1.0
SILENCE_S: Final = 1.0
"""A server that lets an answer wait this long is taken for gone; its connection is made anew."""

_log = structlog.get_logger(__name__)


class Link(ABC):
    """Keeps one connection up. Children say what is done with it."""

    def __init__(self, make: Callable[[], AbstractConnection], *, name: str, backoff: Backoff | None = None) -> None:
        self._make, self.name = make, name
        self._backoff = backoff or Backoff()
        self._connection: AbstractConnection | None = None
        self._tried = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether commands can be sent now."""
        return self._connection is not None

    async def run(self) -> None:
        """Connect, serve, and connect again with growing pauses, until cancelled."""
        while True:
            connection = self._make()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
                self._connection = connection
                self._tried.set()
                self._backoff.reset()
                _log.info("redis connection is up", server=self.name, link=type(self).__name__)
                await self._serve(connection)
            except (RedisError, OSError, TimeoutError) as error:
                _log.warning("redis connection is down", server=self.name, link=type(self).__name__, error=str(error))
            finally:
                self._connection = None
                self._tried.set()
                self._lost()
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect()
            await asyncio.sleep(self._backoff.next_s())

    async def ready(self) -> AbstractConnection:
        """Return the connection; waits only for the first attempt. Raises NotSent while there is none."""
        await self._tried.wait()
        if self._connection is None:
            raise NotSent(f"no connection to Redis at {self.name}")
        return self._connection

    @abstractmethod
    async def _serve(self, connection: AbstractConnection) -> None:
        """Use the connection until it breaks."""

    @abstractmethod
    def _lost(self) -> None:
        """Settle what was under way on a connection that is gone."""


@dataclass(slots=True)
class _Pipeline:
    """Calls that were sent together, and the replies that have come."""

    expected: int
    sent_s: float
    done: asyncio.Future[list[Any]]
    replies: list[Any] = field(default_factory=list)


class FunctionLink(Link):
    """Calls functions, many pipelines at a time over one connection, each sent once."""

    def __init__(self, make: Callable[[], AbstractConnection], *, name: str, backoff: Backoff | None = None) -> None:
        super().__init__(make, name=name, backoff=backoff)
        self._waiting: deque[_Pipeline] = deque()

    async def call(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """Send commands in one pipeline and return their replies in order, a ResponseError where one was refused.

        Raises NotSent without a connection, OutcomeUnknown where it breaks before every reply was there.
        Cancelling leaves the commands sent.
        """
        connection = await self.ready()
        loop = asyncio.get_running_loop()
        pipeline = _Pipeline(len(commands), loop.time(), loop.create_future())
        self._waiting.append(pipeline)
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        except (RedisError, OSError) as error:
            raise OutcomeUnknown(f"Redis at {self.name}: {error}") from error
        return await pipeline.done

    async def _serve(self, connection: AbstractConnection) -> None:
        await _until_one_ends(self._read(connection), self._watch_silence())

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                reply = await connection.read_response(disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            pipeline = self._waiting[0]
            pipeline.replies.append(reply)
            if len(pipeline.replies) == pipeline.expected:
                self._waiting.popleft()
                if not pipeline.done.done():
                    pipeline.done.set_result(pipeline.replies)

    async def _watch_silence(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SILENCE_S / 4)
            if self._waiting and loop.time() - self._waiting[0].sent_s > SILENCE_S:
                raise TimeoutError(f"no reply for {SILENCE_S} s")

    def _lost(self) -> None:
        while self._waiting:
            pipeline = self._waiting.popleft()
            if not pipeline.done.done():
                pipeline.done.set_exception(OutcomeUnknown(f"the connection to Redis at {self.name} broke"))
                pipeline.done.exception()


def boot_s() -> float:
    """Tell the time of the data plane's monotonic clock, which also runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NoticeLink(Link):
    """Hears the sharded channels of one server, and pings it over the same connection."""

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        *,
        name: str,
        ping_interval_s: float,
        on_notice: Callable[[str, str], None],
        on_pong: Callable[[NoticeLink], None],
        on_lost: Callable[[NoticeLink], None],
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(make, name=name, backoff=backoff)
        self._ping_interval_s = ping_interval_s
        self._on_notice, self._on_pong, self._on_lost = on_notice, on_pong, on_lost
        self._joining: dict[str, list[asyncio.Future[None]]] = {}
        self._leaving: set[str] = set()
        self._moved = asyncio.Event()
        self.channels: set[str] = set()
        """Channels whose subscription is confirmed."""
        self._ping_sent_s: float | None = None
        self.alive_at_s: float | None = None
        """`boot_s` at which the last answered ping was sent: notices older than that have been heard."""

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe and return when the server has confirmed every channel. A repeat is confirmed as well.

        Raises NotSent without a connection, OutcomeUnknown where it breaks or the server refuses.
        """
        connection = await self.ready()
        loop = asyncio.get_running_loop()
        confirmed: list[asyncio.Future[None]] = []
        for channel in channels:
            confirmed.append(loop.create_future())
            self._leaving.discard(channel)
            self._joining.setdefault(channel, []).append(confirmed[-1])
        await self._send(connection, "SSUBSCRIBE", channels)
        await asyncio.gather(*confirmed)

    async def unsubscribe(self, channels: Sequence[str]) -> None:
        """Leave channels; returns when it is sent. Raises NotSent without a connection."""
        connection = await self.ready()
        self._leaving.update(channels)
        await self._send(connection, "SUNSUBSCRIBE", channels)

    def break_off(self) -> None:
        """Give up the connection, with every subscription, and connect anew: a channel has another owner now."""
        self._moved.set()

    async def _send(self, connection: AbstractConnection, command: str, channels: Sequence[str]) -> None:
        # One command for each: channels of one command would have to share a slot.
        packed = connection.pack_commands([(command, channel) for channel in channels])
        try:
            await connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            raise OutcomeUnknown(f"Redis at {self.name}: {error}") from error

    async def _serve(self, connection: AbstractConnection) -> None:
        await _until_one_ends(self._read(connection), self._ping(connection), self._until_moved())

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            self._hear(await connection.read_response(disconnect_on_error=False))

    async def _ping(self, connection: AbstractConnection) -> None:
        while True:
            if self._ping_sent_s is None:
                self._ping_sent_s = boot_s()
                await connection.send_packed_command(connection.pack_commands([("PING",)]), check_health=False)
            elif boot_s() - self._ping_sent_s > SILENCE_S:
                raise TimeoutError(f"no answer to a ping for {SILENCE_S} s")
            await asyncio.sleep(self._ping_interval_s)

    def _hear(self, message: Any) -> None:
        parts = [_text(part) for part in message] if isinstance(message, list) else [_text(message)]
        kind = parts[0].lower()
        if kind == "pong":
            self.alive_at_s, self._ping_sent_s = self._ping_sent_s, None
            self._on_pong(self)
        elif kind == "smessage":
            self._on_notice(parts[1], parts[2])
        elif kind == "ssubscribe":
            self.channels.add(parts[1])
            for confirmed in self._joining.pop(parts[1], ()):
                if not confirmed.done():
                    confirmed.set_result(None)
        elif kind == "sunsubscribe" and parts[1] not in self._leaving:
            raise ConnectionResetError(f"the server took channel {parts[1]} away (its slot moved)")
        elif kind == "sunsubscribe":
            self._leaving.discard(parts[1])
            self.channels.discard(parts[1])

    async def _until_moved(self) -> None:
        await self._moved.wait()
        raise ConnectionResetError("a channel's slot has another owner")

    def _lost(self) -> None:
        was_heard = self.alive_at_s is not None or self._joining
        self.alive_at_s = self._ping_sent_s = None
        self._leaving.clear()
        self._moved.clear()
        self.channels.clear()
        joining, self._joining = self._joining, {}
        for confirmed in (future for futures in joining.values() for future in futures):
            if not confirmed.done():
                confirmed.set_exception(OutcomeUnknown(f"the connection to Redis at {self.name} broke"))
                confirmed.exception()
        if was_heard:
            self._on_lost(self)


async def _until_one_ends(*loops: Coroutine[Any, Any, None]) -> None:
    """Run endless loops side by side; when one fails, end the others and raise what it raised."""
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


def _text(part: object) -> str:
    return part.decode(errors="replace") if isinstance(part, bytes) else str(part)
