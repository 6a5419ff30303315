"""Ledger time in this replica, and setting it in an embedded setup."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.errors import InvalidFieldError, PreconditionError
from tollkeeper_ledger.domain.issuing import clock_jump_us
from tollkeeper_ledger.store.clock import ClockReading, read_clock, set_clock
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.witnesses import hold_clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Pool

SPEED_MILLI_MAX = 1_000_000


class LedgerClock:
    """Follow Postgres' ledger time: exact in transactions, estimated here for heartbeats.

    The estimate runs on the monotonic clock at the setting's speed between refreshes and never goes back.
    """

    def __init__(
        self, pool: Pool, log: FilteringBoundLogger, *, embedded: bool, monotonic_ns: Callable[[], int]
    ) -> None:
        self._pool = pool
        self._log = log
        self._embedded = embedded
        self._monotonic_ns = monotonic_ns
        self._reading = ClockReading(now_us=0, speed_milli=1000, version=0)
        self._read_at_ns = 0
        self._latest_us = 0
        self._setting = asyncio.Lock()
        self._followers: list[Callable[[ClockReading], Awaitable[None]]] = []

    @property
    def embedded(self) -> bool:
        """Whether the clock may be set."""
        return self._embedded

    def follow(self, told: Callable[[ClockReading], Awaitable[None]]) -> None:
        """Have `told` awaited with every new setting; a setter waits for it."""
        self._followers.append(told)

    def reading(self) -> ClockReading:
        """Estimate ledger time now, with the setting that it rests on. Touches nothing but memory."""
        elapsed_us = (self._monotonic_ns() - self._read_at_ns) // 1000
        now_us = self._reading.now_us + elapsed_us * self._reading.speed_milli // 1000
        self._latest_us = max(self._latest_us, now_us)
        return ClockReading(
            now_us=self._latest_us, speed_milli=self._reading.speed_milli, version=self._reading.version
        )

    async def refresh(self) -> None:
        """Read Postgres' clock again; tell followers where another replica has set it."""
        async with self._setting:
            started_ns = self._monotonic_ns()
            async with connection(self._pool) as conn:
                reading = await read_clock(conn)
                if jump_us := self._jump_us(reading):
                    await hold_clock(conn, now_us=reading.now_us, jump_us=jump_us)
            await self._take(reading, started_ns)
        if jump_us:
            self._log.error(
                "Postgres' clock jumped: no window is opened until `tollkeeper ledger confirm-clock`",
                jump_s=jump_us // 1_000_000,
            )

    def _jump_us(self, reading: ClockReading) -> int:
        """Give how far ledger time is ahead of what elapsed here since the last reading of the same setting."""
        before = self._reading
        if before.version != reading.version or before.version == 0:
            return 0
        elapsed_us = (self._monotonic_ns() - self._read_at_ns) // 1000
        expected_us = before.now_us + elapsed_us * before.speed_milli // 1000
        return clock_jump_us(expected_us=expected_us, read_us=reading.now_us, speed_milli=reading.speed_milli)

    async def tick(self) -> None:
        """Read the clock again, then keep the time seen unless it jumped: a jump is never kept before it is seen."""
        await self.refresh()
        await self.keep_floor()

    async def keep_floor(self) -> None:
        """Keep the ledger time seen so far in Postgres, so that a clock that steps back is held there."""
        async with connection(self._pool) as conn:
            await conn.execute(sql("installation.raise_floor"))

    async def set(self, *, now: datetime | None, speed_milli: int | None) -> ClockReading:
        """Set ledger time or its speed and wait until every connected sidecar has it.

        Raises PreconditionError outside an embedded setup, InvalidFieldError for a speed out of range.
        """
        if not self._embedded:
            raise PreconditionError(
                "the clock can be set in an embedded setup only",
                reason="EMBEDDED_ONLY",
                metadata={"remedy": "start with TOLLKEEPER_EMBEDDED=1 on a database that holds no real data"},
            )
        if speed_milli is not None and not 0 <= speed_milli <= SPEED_MILLI_MAX:
            raise InvalidFieldError(
                "speed_milli",
                "is out of range",
                reason="FIELD_OUT_OF_RANGE",
                value=speed_milli,
                bound=f"0 to {SPEED_MILLI_MAX}",
            )
        async with self._setting:
            started_ns = self._monotonic_ns()
            async with connection(self._pool) as conn:
                reading = await set_clock(conn, now=now, speed_milli=speed_milli)
            await self._take(reading, started_ns)
        return reading

    async def get(self) -> ClockReading:
        """Read ledger time from Postgres."""
        async with connection(self._pool) as conn:
            return await read_clock(conn)

    async def _take(self, reading: ClockReading, read_at_ns: int) -> None:
        news = reading.version > self._reading.version
        self._reading = reading
        self._read_at_ns = read_at_ns
        if news:
            await asyncio.gather(*(told(reading) for told in self._followers))
