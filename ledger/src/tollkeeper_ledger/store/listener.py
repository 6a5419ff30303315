"""Hear Postgres notifications on one connection, and come back when it breaks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Connection

_RETRY_S = 0.25


class Listener:
    """Call back with each notification of the channels registered before `run`.

    Notifications may be lost with the connection: who relies on one also polls. `reconnected` callbacks run after each
    new connection, so that they can catch up at once.
    """

    def __init__(self, url: str, *, role: str, log: FilteringBoundLogger) -> None:
        self._url = url
        self._role = role
        self._log = log
        self._channels: dict[str, list[Callable[[str], None]]] = {}
        self._reconnected: list[Callable[[], None]] = []
        self._begun: list[Callable[[Connection], Awaitable[None]]] = []

    def on(self, channel: str, heard: Callable[[str], None]) -> None:
        """Call `heard` with the text of each notification on `channel`. Must return at once."""
        self._channels.setdefault(channel, []).append(heard)

    def on_session(self, begun: Callable[[Connection], Awaitable[None]]) -> None:
        """Await `begun` with each new connection before it listens: what is taken there is kept while it lives."""
        self._begun.append(begun)

    def on_connected(self, connected: Callable[[], None]) -> None:
        """Call `connected` after each connection, the first included."""
        self._reconnected.append(connected)

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - a loop's top: whatever the driver calls it, the next turn may succeed
                self._log.warning("listener lost its connection", error=str(error), kind=type(error).__name__)
            await asyncio.sleep(_RETRY_S)

    async def _listen(self) -> None:
        conn: Any = await asyncpg.connect(
            self._url, server_settings={"role": self._role, "application_name": "tollkeeper_listener"}, timeout=5
        )
        closed = asyncio.Event()
        try:
            conn.add_termination_listener(lambda _: closed.set())
            for begun in self._begun:
                await begun(conn)
            for channel in self._channels:
                await conn.add_listener(channel, self._heard)
            for connected in self._reconnected:
                connected()
            await closed.wait()
        finally:
            conn.terminate()

    def _heard(self, _conn: object, _pid: int, channel: str, payload: object) -> None:
        for heard in self._channels[channel]:
            heard(str(payload))
