"""Levels and units in flight: what is reclaimed, and what ended processes held."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import notice_due
from tollkeeper_ledger.domain.standing import RECLAIM_S, take_back
from tollkeeper_ledger.services.notices import announce_units
from tollkeeper_ledger.store import standing as store
from tollkeeper_ledger.store.limits import lock_windows, read_leases, write_windows
from tollkeeper_ledger.store.pool import connection, transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from tollkeeper_ledger.store.limits import WindowRow
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.standing import TimedLease

LOOK_S = 1.0
"""Leases are looked at this often."""

STEP_S_MAX = 2.0
"""A look counts for at most so long: after a pause of this process holders can renew before they lose anything."""

_ENDED_PER_TURN = 100


@dataclass(slots=True)
class _Seen:
    renewals: int
    at_s: float
    still_s: float = 0.0


class LeaseReclaimer:
    """Reclaim leases of units in flight that this process has seen unrenewed for 40 s of its own time.

    Own time is CLOCK_BOOTTIME: no clock of another machine, and no jump of any, takes a lease away early. Any number of
    replicas may do it: the row says once whether the lease still is the one that stood still.
    """

    def __init__(self, pool: Pool, log: FilteringBoundLogger, *, own_time_s: Callable[[], float] | None = None) -> None:
        self._pool = pool
        self._log = log
        self._own_time_s = own_time_s or (lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
        self._seen: dict[TimedLease, _Seen] = {}

    async def run(self) -> None:
        """Look at leases, and at processes that have ended, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
                await self.take_back_ended()
            except Exception as error:  # noqa: BLE001 - a loop's top: the next look may succeed
                self._log.warning("leases can't be looked at", error=str(error), kind=type(error).__name__)

    async def look(self) -> int:
        """Look once; gives how many units came back."""
        async with connection(self._pool) as conn:
            leases = await store.read_timed_leases(conn)
        now_s = self._own_time_s()
        seen: dict[TimedLease, _Seen] = {}
        for lease, renewals in leases.items():
            before = self._seen.get(lease)
            if before is None or before.renewals != renewals:
                seen[lease] = _Seen(renewals, now_s)
            else:
                before.still_s += min(now_s - before.at_s, STEP_S_MAX)
                before.at_s = now_s
                seen[lease] = before
        self._seen = seen
        return sum([await self._reclaim(lease, one) for lease, one in seen.items() if one.still_s >= RECLAIM_S])

    async def _reclaim(self, lease: TimedLease, seen: _Seen) -> int:
        async with transaction(self._pool) as conn:
            rows = await lock_windows(conn, [lease.window_id])
            units = await store.reclaim(conn, lease, renewals=seen.renewals)
            for row in rows.values():
                row.state.put_back(units)
                await _write_with_notice(conn, [row])
        if units:
            self._log.info("units in flight reclaimed", holder=lease.holder.hex(), units=units)
        return units

    async def take_back_ended(self) -> int:
        """Take back what ended processes held of levels, once each; gives how many units."""
        async with connection(self._pool) as conn:
            holders = await store.read_ended(conn, count_max=_ENDED_PER_TURN)
        return sum([await self._take_back(holder) for holder in holders])

    async def _take_back(self, holder: bytes) -> int:
        async with transaction(self._pool) as conn:
            rows = await lock_windows(conn, await store.levels_of(conn, holder))
            leases = await read_leases(conn, rows, [(window_id, holder) for window_id in rows])
            units = 0
            for (window_id, name), lease in leases.items():
                rows[window_id].state.holders[name] = lease
                units += take_back(rows[window_id].state, lease)
            await _write_with_notice(conn, list(rows.values()))
            await store.end_holder(conn, holder)
        return units


async def _write_with_notice(conn: Connection, rows: Sequence[WindowRow]) -> None:
    noticed = [row.identity for row in rows if notice_due(row.state)]
    await write_windows(conn, rows)
    await announce_units(conn, noticed)
