"""Tell homes how their reservations ended elsewhere, until they say that they know."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from tollkeeper_ledger.services.watch import Settlements
from tollkeeper_ledger.store.settlements import SETTLEMENTS_CHANNEL, forget_settlements, settlements_of
from tollkeeper_ledger.store.usage_attempts import attempted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.watch import Stream
    from tollkeeper_ledger.store.listener import Listener
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.settlements import Settled

_PAGE = 1_000
_RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class _Follower:
    stream: Stream
    home: UUID


class SettlementHub:
    """Send each watch stream the outcomes of its home: at first, when one is committed, and after Postgres was away.

    An outcome is told again on every new stream until it is acknowledged; a home takes each in once.
    """

    def __init__(self, pool: Pool, listener: Listener, log: FilteringBoundLogger) -> None:
        self._pool = pool
        self._log = log
        self._followers: set[_Follower] = set()
        self._due: set[UUID] = set()
        self._waiting = asyncio.Event()
        listener.on(SETTLEMENTS_CHANNEL, self._announced)
        listener.on_connected(self._reconnected)

    def follow(self, stream: Stream, home: UUID) -> None:
        """Send a stream what its home has not taken in, and what comes."""
        self._followers.add(_Follower(stream, home))
        self._ask([home])

    def leave(self, stream: Stream) -> None:
        """Send a stream nothing more."""
        self._followers = {one for one in self._followers if one.stream is not stream}

    async def acknowledge(self, home: UUID, reservation_ids: Sequence[bytes]) -> None:
        """Forget outcomes that a home has taken in. Idempotent."""

        async def forget(conn: Connection) -> None:
            await forget_settlements(conn, home, reservation_ids)

        await attempted(self._pool, forget)

    async def run(self) -> None:
        """Send until cancelled. What can't be read now is read again in a moment."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            due, self._due = self._due, set()
            for home in due:
                try:
                    await self._send(home)
                except Exception as error:  # noqa: BLE001 - a loop's top: a later turn may succeed
                    kind = type(error).__name__
                    self._log.warning("outcomes of reservations can't be read", error=str(error), kind=kind)
                    self._ask([home])
                    await asyncio.sleep(_RETRY_S)

    async def _send(self, home: UUID) -> None:
        after = b""
        while streams := [one.stream for one in self._followers if one.home == home]:

            async def read(conn: Connection, after: bytes = after) -> list[Settled]:
                return await settlements_of(conn, home, after=after, count=_PAGE)

            page = await attempted(self._pool, read)
            if not page:
                return
            for stream in streams:
                stream.put(Settlements(tuple(page)))
            after = page[-1].reservation_id

    def _ask(self, homes: Sequence[UUID]) -> None:
        self._due.update(homes)
        self._waiting.set()

    def _announced(self, text: str) -> None:
        followed = {one.home for one in self._followers}
        self._ask([home for home in map(UUID, text.split(",")) if home in followed])

    def _reconnected(self) -> None:
        # Announcements may have been lost with the connection.
        self._ask([one.home for one in self._followers])
