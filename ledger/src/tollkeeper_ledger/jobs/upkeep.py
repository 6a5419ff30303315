"""What is done by the clock: partitions ahead of time, expired ids, outcomes that no home came for."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.metric_series import KEPT_US
from tollkeeper_ledger.domain.settlement import OUTCOME_KEPT_US
from tollkeeper_ledger.store import decisions
from tollkeeper_ledger.store.clock import ledger_now
from tollkeeper_ledger.store.idempotency import expire_answers
from tollkeeper_ledger.store.metric_series import drop_readings
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.settlements import expire_settlements
from tollkeeper_ledger.store.usage_upkeep import expire_ids, make_months
from tollkeeper_ledger.store.webhooks import expire_messages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.pool import Connection, Pool

MONTHS_AHEAD = 2
ROWS_AT_ONCE = 10_000
ANSWERS_KEPT = timedelta(days=35)
"""How long a repeat of a request gets the first answer, in real time."""
MESSAGES_KEPT = timedelta(days=90)
"""How long messages to receivers of webhooks can be looked at and sent again, in real time."""
DECISIONS_KEPT = timedelta(days=35)
"""How long single decisions are kept, and holders' batches told apart, in real time."""
DECISION_COUNTS_KEPT = timedelta(days=400)
"""How long counts of decisions are kept, in ledger time."""
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

    async def expire_answers(self) -> int:
        """Forget first answers of requests of 35 days ago, batch by batch; give how many."""

        async def expire(conn: Connection) -> int:
            return await expire_answers(conn, age=ANSWERS_KEPT, count_max=self._rows_at_once)

        return await self._in_batches(expire, "answers to requests forgotten")

    async def expire_decisions(self) -> int:
        """Forget single decisions of 35 days ago and counts of 400, batch by batch; give how many."""

        async def entries(conn: Connection) -> int:
            return await decisions.expire_entries(conn, age=DECISIONS_KEPT, count_max=self._rows_at_once)

        async def counts(conn: Connection) -> int:
            before = (await ledger_now(conn) - DECISION_COUNTS_KEPT).date()
            return await decisions.expire_counts(conn, before=before, count_max=self._rows_at_once)

        async def batches(conn: Connection) -> int:
            return await decisions.expire_batches(conn, age=DECISIONS_KEPT, count_max=self._rows_at_once)

        kept = await self._in_batches(entries, "decisions of limits forgotten")
        counted = await self._in_batches(counts, "counts of decisions forgotten")
        return kept + counted + await self._in_batches(batches, "holders forgotten that told of decisions")

    async def expire_messages(self) -> int:
        """Forget webhook messages that were queued 90 days ago, sent or given up; give how many.

        The pool is of the billing role. What still waits is kept.
        """

        async def expire(conn: Connection) -> int:
            return await expire_messages(conn, age=MESSAGES_KEPT, count_max=self._rows_at_once)

        return await self._in_batches(expire, "messages to receivers forgotten")

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
