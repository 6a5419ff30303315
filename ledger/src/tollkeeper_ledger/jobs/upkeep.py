"""What is done by the clock: partitions ahead of time, expired ids, outcomes that no home came for."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.metric_series import KEPT_US
from tollkeeper_ledger.domain.settlement import OUTCOME_KEPT_US
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.metric_series import drop_readings
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.settlements import expire_settlements
from tollkeeper_ledger.store.usage_upkeep import expire_ids, make_months

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Connection, Pool

MONTHS_AHEAD = 2
ROWS_AT_ONCE = 10_000
_PAUSE_S = 0.05


class Upkeep:
    """Keep usage in bounds. Every duty may be done at any time, by several at once, and stopped in the middle."""

    def __init__(self, pool: Pool, log: FilteringBoundLogger, *, rows_at_once: int = ROWS_AT_ONCE) -> None:
        self._pool = pool
        self._log = log
        self._rows_at_once = rows_at_once

    async def make_months(self) -> int:
        """Make this month's partitions and those of the next two; give how many months there are now."""
        async with connection(self._pool) as conn:
            return len(await make_months(conn, await ledger_now(conn), ahead=MONTHS_AHEAD))

    async def expire_ids(self) -> int:
        """Delete ids that have expired, batch by batch, until none is left; give how many."""

        async def expire(conn: Connection) -> int:
            return await expire_ids(conn, count_max=self._rows_at_once)

        return await self._in_batches(expire, "ids expired")

    async def expire_settlements(self) -> int:
        """Forget how reservations ended whose home has not come for 42 days, batch by batch; give how many."""

        async def expire(conn: Connection) -> int:
            before = await ledger_now(conn) - timedelta(microseconds=OUTCOME_KEPT_US)
            return await expire_settlements(conn, before=before, count_max=self._rows_at_once)

        return await self._in_batches(expire, "outcomes forgotten that no home came for")

    async def expire_readings(self) -> int:
        """Forget last readings of counters that nobody has sent for 70 days, batch by batch; give how many."""

        async def expire(conn: Connection) -> int:
            before = await ledger_now(conn) - timedelta(microseconds=KEPT_US)
            return await drop_readings(conn, before=before, count_max=self._rows_at_once)

        return await self._in_batches(expire, "readings of counters forgotten")

    async def _in_batches(self, expire: Callable[[Connection], Awaitable[int]], done: str) -> int:
        total = 0
        while True:
            async with connection(self._pool) as conn:
                gone = await expire(conn)
            total += gone
            if gone < self._rows_at_once:
                break
            # Appends come first.
            await asyncio.sleep(_PAUSE_S)
        if total:
            self._log.info(done, count=total)
        return total
