"""Tell token buckets in Redis how ledger time runs, when the scaled clock is set."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tollkeeper_ledger.services.allot_buckets import BucketShards
    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.store.clock import ClockReading
    from tollkeeper_ledger.store.pool_functions import PoolFunctions


class BucketClock:
    """Send the newest setting; settings that follow while one is on its way are sent as one."""

    def __init__(self, buckets: BucketShards, clock: LedgerClock, functions: PoolFunctions) -> None:
        self._buckets = buckets
        self._clock = clock
        self._functions = functions
        self._news = asyncio.Event()

    async def clock_set(self, _: ClockReading) -> None:
        """Note that there is a new setting. Does not wait for Redis."""
        self._news.set()

    async def run(self) -> None:
        """Send settings until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self._functions.call(self._buckets.speed_calls(self._clock.reading()))
