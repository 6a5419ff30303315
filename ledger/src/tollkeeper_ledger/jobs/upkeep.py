"""What is done by the clock: partitions ahead of time, expired ids."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.usage_upkeep import expire_ids, make_months

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Pool

MONTHS_AHEAD = 2
IDS_AT_ONCE = 10_000
_PAUSE_S = 0.05


class Upkeep:
    """Keep usage in bounds. Every duty may be done at any time, by several at once, and stopped in the middle."""

    def __init__(self, pool: Pool, log: FilteringBoundLogger, *, ids_at_once: int = IDS_AT_ONCE) -> None:
        self._pool = pool
        self._log = log
        self._ids_at_once = ids_at_once

    async def make_months(self) -> int:
        """Make this month's partitions and those of the next two; give how many months there are now."""
        async with connection(self._pool) as conn:
            return len(await make_months(conn, await ledger_now(conn), ahead=MONTHS_AHEAD))

    async def expire_ids(self) -> int:
        """Delete ids that have expired, batch by batch, until none is left; give how many."""
        total = 0
        while True:
            async with connection(self._pool) as conn:
                gone = await expire_ids(conn, count_max=self._ids_at_once)
            total += gone
            if gone < self._ids_at_once:
                break
            # Appends come first.
            await asyncio.sleep(_PAUSE_S)
        if total:
            self._log.info("ids expired", count=total)
        return total
