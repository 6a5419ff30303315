"""Put changed amounts in force in windows that are open, without waiting for anybody to ask."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import follow_amount, notice_due
from tollkeeper_ledger.domain.limits import UNLIMITED
from tollkeeper_ledger.domain.windows import end_day_of
from tollkeeper_ledger.services.notices import announce_units
from tollkeeper_ledger.services.pool_calls import calls_for
from tollkeeper_ledger.store.limits import (
    amounts_in_force,
    close_generation,
    closing_pools,
    lock_windows,
    write_windows,
)
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.pool_functions import close_pool_call, pool_keys
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.restores import Restores
    from tollkeeper_ledger.store.limits import ClosingPool, WindowRow
    from tollkeeper_ledger.store.pool import Pool
    from tollkeeper_ledger.store.pool_functions import Call, PoolFunctions
    from tollkeeper_ledger.store.tenants import TenantView

_WINDOWS_PER_STEP = 2_000
_WINDOWS_AT_START_MAX = 100_000
_KEEP_KEYS_S = 3600


class AmountFollower:
    """Follow changes of amounts: raises reach pools at once, lower amounts close pools and call leases back.

    Every replica does it; the window's row lock and version make it happen once. A pool whose closing Redis did not
    confirm is closed again at the next turn: closing is final, so repeating it is harmless.
    """

    def __init__(
        self,
        pool: Pool,
        clock: LedgerClock,
        functions: PoolFunctions,
        restores: Restores,
        log: FilteringBoundLogger,
    ) -> None:
        self._pool = pool
        self._restores = restores
        self._clock = clock
        self._functions = functions
        self._log = log
        self._tenants: set[UUID] = set()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Have every pool told where it stands that a predecessor may have been killed before telling."""
        now_us = self._clock.reading().now_us
        async with connection(self._pool) as conn:
            rows = await conn.fetch(
                sql("limits.unfinal_windows"), now_us, end_day_of(now_us + 1), _WINDOWS_AT_START_MAX
            )
        self._functions.tell_again(row["window_id"] for row in rows)

    def changed(self, views: Collection[TenantView]) -> None:
        """Note tenants whose windows have to be looked at."""
        self._tenants.update(view.tenant_id for view in views)
        if views:
            self._news.set()

    def nudge(self) -> None:
        """Close pools now rather than within a second."""
        self._news.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            tenants, self._tenants = self._tenants, set()
            try:
                await self.follow(tenants)
                await self._close_pools()
                await self._tell_again()
                await self._tell_of_gone()
            except Exception as error:  # noqa: BLE001 - a loop's top: the same tenants are tried again
                self._tenants |= tenants
                self._log.warning("amounts can't be put in force", error=str(error), kind=type(error).__name__)

    async def follow(self, tenants: Collection[UUID]) -> None:
        """Bring every open window of these tenants to the amount in force."""
        after = b""
        while tenants:
            async with connection(self._pool) as conn:
                found = await conn.fetch(
                    sql("limits.outdated_windows"),
                    list(tenants),
                    self._clock.reading().now_us,
                    _WINDOWS_PER_STEP,
                    after,
                )
            ids = [row["window_id"] for row in found]
            if not ids:
                return
            await self._follow_windows(ids)
            after = ids[-1]

    async def _follow_windows(self, window_ids: Collection[bytes]) -> None:
        async with transaction(self._pool) as conn:
            rows = await lock_windows(conn, window_ids)
            amounts = await amounts_in_force(conn, {row.identity[:2] for row in rows.values()})
            changed: list[WindowRow] = []
            for row in rows.values():
                known = amounts.get(row.identity[:2])
                amount, version = (UNLIMITED, 0) if known is None else known.at(row.span.start_us)
                if amount >= 0 and follow_amount(row.state, amount=amount, amount_version=version):
                    changed.append(row)
            noticed = [row.identity for row in changed if notice_due(row.state)]
            lowered = [row.identity for row in changed if row.state.allotted > row.state.amount]
            await write_windows(conn, changed)
            await announce_units(conn, noticed)
            await announce_units(conn, lowered, recall=True)
        keep_until = int(time.time()) + _KEEP_KEYS_S
        calls = [call for row in changed for call in calls_for(row, expire_at_unix_s=keep_until)]
        # Closing needs its answer: `_close_pools` does it.
        await self._functions.call([call for call in calls if call.function != "pool_close"])

    async def _close_pools(self) -> None:
        """Close pools whose amount went below what is out; what was never granted goes back to the limit.

        An error from Redis (no such pool, another history) ends the generation as well: its rest stays counted as
        spent, but for what living holders return.
        """
        today = end_day_of(self._clock.reading().now_us + 1)
        async with connection(self._pool) as conn:
            pools = await closing_pools(conn, from_day=today, count_max=_WINDOWS_PER_STEP)
        replies = await self._functions.call(
            [close_pool_call(pool_keys(pool.identity, pool.window_id), generation=pool.generation) for pool in pools]
        )
        for pool, reply in zip(pools, replies, strict=True):
            if reply is not None:
                await self._credit(pool, int(reply[1]) if reply[0] == "OK" else 0)

    async def _tell_again(self) -> None:
        """Tell pools where they stand after a call whose outcome is unknown, until Redis has answered."""
        window_ids = self._functions.take_untold(_WINDOWS_PER_STEP)
        if not window_ids:
            return
        try:
            async with transaction(self._pool) as conn:
                rows = await lock_windows(conn, window_ids)
            now_us = self._clock.reading().now_us
            calls: list[Call] = []
            for row in rows.values():
                if row.state.generation is not None and row.span.end_us > now_us:
                    row.state.generation.publish = True
                    calls += calls_for(row, expire_at_unix_s=0)
            await self._functions.call([call for call in calls if call.function == "pool_extend"])
        except BaseException:
            self._functions.tell_again(window_ids)
            raise

    async def _tell_of_gone(self) -> None:
        """Tell whoever a pool had refused that is gone now: units came back, and the pool can't say so."""
        window_ids = self._functions.take_gone(_WINDOWS_PER_STEP)
        if not window_ids:
            return
        now_us = self._clock.reading().now_us
        try:
            async with transaction(self._pool) as conn:
                rows = await lock_windows(conn, window_ids)
                await announce_units(conn, [row.identity for row in rows.values() if row.span.end_us > now_us])
        except BaseException:
            self._functions.note_gone(window_ids)
            raise

    async def _credit(self, pool: ClosingPool, unspent: int) -> None:
        """Give the closed generation's rest back to the limit, once; not to a window of an earlier timeline.

        Postgres may not know all that left that one.
        """
        await self._functions.call(await self._restores.noticed(lambda: self._credit_once(pool, unspent)))

    async def _credit_once(self, pool: ClosingPool, unspent: int) -> list[Call]:
        async with transaction(self._pool) as conn:
            _, issuing = await self._restores.issue(conn)
            rows = await lock_windows(conn, [pool.window_id])
            for row in rows.values():
                credited = await close_generation(conn, pool, unspent=unspent)
                if row.state.timeline >= issuing.timeline:
                    row.state.put_back(credited)
                noticed = [row.identity] if notice_due(row.state) else []
                await write_windows(conn, [row])
                await announce_units(conn, noticed)
        return [call for row in rows.values() for call in calls_for(row, expire_at_unix_s=0)]
