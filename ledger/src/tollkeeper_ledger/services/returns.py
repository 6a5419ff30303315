"""Take units back and store what was consumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import notice_due, return_lease, return_pooled
from tollkeeper_ledger.domain.window_state import Generation, Holder
from tollkeeper_ledger.services.notices import announce_units
from tollkeeper_ledger.services.pool_calls import calls_for
from tollkeeper_ledger.store import standing
from tollkeeper_ledger.store.limits import (
    days_of,
    lock_windows,
    read_leases,
    write_generations,
    write_windows,
)
from tollkeeper_ledger.store.pool import transaction
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.restores import Restores
    from tollkeeper_ledger.store.limits import WindowRow
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.pool_functions import Call, PoolFunctions


@dataclass(frozen=True, slots=True)
class Return:
    """All units that a holder gave back of one source so far; generation 0 = leased by the ledger."""

    window_id: bytes
    generation: int
    returned_cum: int


@dataclass(frozen=True, slots=True)
class Consumption:
    """All units that a holder admitted in a window so far."""

    window_id: bytes
    consumed_cum: int
    over_cum: int
    given_back_cum: int = 0
    """Of both, units that callers gave back."""
    lease_epoch: int = 0
    """Units in flight: the lease to renew, 0 = none."""
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Use:
    """What the whole fleet used of a window."""

    consumed: int
    over: int
    allotted: int
    amount: int
    as_of_us: int
    lease_epoch: int = 0
    """Units in flight: the holder's lease now."""


class ReturnService:
    """Serve ReturnUnits and ReportConsumption."""

    def __init__(self, pool: Pool, clock: LedgerClock, functions: PoolFunctions, restores: Restores) -> None:
        self._pool = pool
        self._restores = restores
        self._clock = clock
        self._functions = functions

    async def give_back(self, holder: bytes, entries: Sequence[Return]) -> list[int]:
        """Take units back; gives the returned_cum that the ledger now has for each entry.

        Cumulative: a repeat changes nothing. Unknown windows take nothing: the figure stays. Nor do windows of an
        earlier timeline, of which Postgres may not know all that left them.
        Who was denied for lack of these units hears of them at commit. A Postgres that went back is noticed first.
        """
        known, calls = await self._restores.noticed(lambda: self._give_back(holder, entries))
        # Pools that were final and are no longer.
        await self._functions.call(calls)
        return known

    async def _give_back(self, holder: bytes, entries: Sequence[Return]) -> tuple[list[int], list[Call]]:
        async with transaction(self._pool) as conn:
            _, issuing = await self._restores.issue(conn)
            locked = await lock_windows(conn, {entry.window_id for entry in entries})
            rows = {key: row for key, row in locked.items() if row.state.timeline >= issuing.timeline}
            leases = await read_leases(
                conn, rows, [(entry.window_id, holder) for entry in entries if entry.generation == 0]
            )
            for (window_id, name), lease in leases.items():
                rows[window_id].state.holders[name] = lease
            pools = _Generations(rows, holder)
            await pools.read(conn, [entry for entry in entries if entry.generation != 0])
            known = [
                pools.take(entry) if entry.generation else _take_lease(rows.get(entry.window_id), holder, entry)
                for entry in entries
            ]
            noticed = [row.identity for row in rows.values() if notice_due(row.state)]
            await write_windows(conn, rows.values())
            await pools.write(conn)
            await announce_units(conn, noticed)
        return known, [call for row in rows.values() for call in calls_for(row, expire_at_unix_s=0)]

    async def report(self, holder: bytes, entries: Sequence[Consumption]) -> list[Use | None]:
        """Store what a holder consumed, never lowering it; gives what the fleet consumed, None for unknown windows."""
        if not entries:
            return []
        windows = [entry.window_id for entry in entries]
        latest = {entry.window_id: entry for entry in entries}
        async with transaction(self._pool) as conn:
            moved = sorted(latest.values(), key=lambda entry: entry.window_id)
            await conn.execute(
                sql("limits.write_consumption"),
                [entry.window_id for entry in moved],
                [entry.consumed_cum for entry in moved],
                [entry.over_cum for entry in moved],
                holder,
                days_of(windows),
                [entry.given_back_cum for entry in moved],
            )
            timed = [(entry.window_id, entry.lease_epoch, entry.in_flight) for entry in moved if entry.lease_epoch]
            leases = await standing.renew(conn, holder, timed)
            found = await conn.fetch(sql("limits.read_use"), list(latest), days_of(windows))
            stored = await standing.read_standing_use(conn, latest)
        as_of_us = self._clock.reading().now_us
        uses = {
            row["window_id"]: Use(
                consumed=stored.get(row["window_id"], row["consumed"]),
                over=0 if row["window_id"] in stored else row["over"],
                allotted=row["allotted"],
                amount=row["amount"],
                as_of_us=as_of_us,
                lease_epoch=leases.get(row["window_id"], 0),
            )
            for row in found
        }
        return [uses.get(window_id) for window_id in windows]


def _take_lease(row: WindowRow | None, holder: bytes, entry: Return) -> int:
    if row is None:
        return 0
    lease = row.state.holders.get(holder, Holder())
    return_lease(row.state, lease, returned_cum=entry.returned_cum)
    return lease.returned_cum


class _Generations:
    """Generations of pools, with what one holder gave back of each to the ledger."""

    def __init__(self, rows: dict[bytes, WindowRow], holder: bytes) -> None:
        self._rows = rows
        self._holder = holder
        self._generations: dict[tuple[bytes, int], Generation] = {}
        self._returned: dict[tuple[bytes, int], int] = {}

    async def read(self, conn: Connection, entries: Sequence[Return]) -> None:
        """Read the generations named, of windows that are locked."""
        keys = {(entry.window_id, entry.generation) for entry in entries if entry.window_id in self._rows}
        if not keys:
            return
        windows = [window_id for window_id, _ in keys]
        generations = [number for _, number in keys]
        rows = await conn.fetch(sql("limits.read_generations"), windows, generations, self._holder, days_of(windows))
        for row in rows:
            key = (row["window_id"], row["generation"])
            current = self._rows[row["window_id"]].state.generation
            if current is not None and current.number == row["generation"]:
                generation = current
            else:
                # Not the newest: whatever its row says, nothing goes into it any more.
                generation = Generation(
                    number=row["generation"],
                    allotted_cum=row["allotted_cum"],
                    credited=row["credited"],
                    lost=True,
                    closing=row["closing"],
                    closed=row["closed"],
                )
            self._generations[key] = generation
            self._returned[key] = row["returned_cum"]

    def take(self, entry: Return) -> int:
        """Credit one entry; gives the returned_cum known afterwards."""
        key = (entry.window_id, entry.generation)
        generation = self._generations.get(key)
        if generation is None:
            return 0
        before = self._returned[key]
        return_pooled(self._rows[entry.window_id].state, generation, before_cum=before, returned_cum=entry.returned_cum)
        self._returned[key] = max(before, entry.returned_cum)
        return self._returned[key]

    async def write(self, conn: Connection) -> None:
        """Write what changed."""
        older = [
            (self._rows[window_id], generation)
            for (window_id, _), generation in self._generations.items()
            if generation.changed and generation is not self._rows[window_id].state.generation
        ]
        await write_generations(conn, older)
        told = [(key, cum) for key, cum in self._returned.items() if cum > 0]
        if told:
            await conn.execute(
                sql("limits.write_lost_returns"),
                [self._rows[window_id].identity[0] for (window_id, _), _ in told],
                [window_id for (window_id, _), _ in told],
                [self._rows[window_id].end_day for (window_id, _), _ in told],
                [number for (_, number), _ in told],
                [cum for _, cum in told],
                self._holder,
            )
