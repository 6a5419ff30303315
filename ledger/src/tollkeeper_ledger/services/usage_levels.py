"""Put rises and falls of levels in force, inside the transaction that stores their records, so exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import notice_due
from tollkeeper_ledger.domain.standing import Rise, fall, may_fall, rise
from tollkeeper_ledger.domain.usage import FLAG_DECREASE, Problem
from tollkeeper_ledger.services.notices import announce_units
from tollkeeper_ledger.store.limits import lock_windows, read_leases, write_windows
from tollkeeper_ledger.store.standing import find_standing
from tollkeeper_ledger.store.usage_batches import find_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tollkeeper_ledger.domain.usage import LevelChange, LevelName
    from tollkeeper_ledger.domain.usage_batch import UsageBatch
    from tollkeeper_ledger.store.limits import WindowRow
    from tollkeeper_ledger.store.pool import Connection

BELOW_ZERO = Problem("LEVEL_BELOW_ZERO", "quantities.units")


async def change_levels(
    conn: Connection, parts: Sequence[tuple[UsageBatch, Sequence[int]]]
) -> list[dict[int, Problem]]:
    """Apply what records change of levels, in their order; gives, per batch, those that would take a level below 0.

    `parts`: batches, and the places of those of their records that are to be stored.

    The records' ids are claimed by this transaction and nobody else's, so each is applied once, however often it comes.
    Locks windows in id order. Who was denied for lack of units hears of what fell at commit.
    """
    problems: list[dict[int, Problem]] = [{} for _ in parts]
    changed = [
        (part, at, batch.levels[at])
        for part, (batch, places) in enumerate(parts)
        for at in places
        if at in batch.levels
    ]
    if not changed:
        return problems
    windows = await _find_windows(conn, {change.level for _, _, changes in changed for change in changes})
    rows = await lock_windows(conn, set(windows.values()))
    holders = {(windows[one.level], one.holder) for _, _, all_ in changed for one in all_ if one.level in windows}
    for (window_id, name), lease in (await read_leases(conn, rows, holders)).items():
        rows[window_id].state.holders[name] = lease
    found = {level: rows[window_id] for level, window_id in windows.items() if window_id in rows}
    for part, at, changes in changed:
        if parts[part][0].records.flags[at] & FLAG_DECREASE:
            if not _fall(found, changes):
                problems[part][at] = BELOW_ZERO
        else:
            _rise(found, changes)
    noticed = [row.identity for row in rows.values() if notice_due(row.state)]
    await write_windows(conn, rows.values())
    await announce_units(conn, noticed)
    return problems


async def _find_windows(conn: Connection, levels: set[LevelName]) -> dict[LevelName, bytes]:
    tenants = await find_tenants(conn, {level.tenant for level in levels})
    identities = {
        (tenants[level.tenant], level.limit, level.key_hash): level for level in levels if level.tenant in tenants
    }
    found = await find_standing(conn, identities.keys())
    return {identities[identity]: window_id for identity, window_id in found.items()}


def _rise(rows: Mapping[LevelName, WindowRow], changes: Sequence[LevelChange]) -> None:
    for change in changes:
        # A level that nobody ever leased from holds nothing to count: all of the rise was beyond an unknown limit.
        row = rows.get(change.level)
        if row is not None:
            rise(row.state, row.state.holders.get(change.holder), Rise(units=change.units, over=change.over))


def _fall(rows: Mapping[LevelName, WindowRow], changes: Sequence[LevelChange]) -> bool:
    """Lower every level, or none where one would fall below 0."""
    for change in changes:
        row = rows.get(change.level)
        if row is None or not may_fall(row.state, change.units):
            return False
    for change in changes:
        fall(rows[change.level].state, change.units)
    return True
