"""Rows of identities, windows, generations and leases, read and written many at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from tollkeeper_ledger.domain.allotment import new_window
from tollkeeper_ledger.domain.cursor import Cursor, Place
from tollkeeper_ledger.domain.window_state import Generation, Holder, Leased, WindowState
from tollkeeper_ledger.domain.windows import Span
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import asyncpg

    from tollkeeper_ledger.store.pool import Connection

Identity: TypeAlias = tuple[UUID, str, bytes]
"""Tenant, limit name, key hash."""

DAY_BYTES = 4


@dataclass(slots=True)
class WindowRow:
    """A window that this transaction has locked or opens."""

    identity: Identity
    window_id: bytes
    span: Span
    state: WindowState
    round: int = 0
    is_new: bool = False

    @property
    def end_day(self) -> int:
        """Day number of its partition."""
        return day_of(self.window_id)


@dataclass(frozen=True, slots=True)
class Proposal:
    """An identity with the window that it gets where it has none yet."""

    identity: Identity
    key_values: tuple[str, ...]
    place: Place


def successor(before: WindowRow, window_id: bytes, *, timeline: int, allotted: int, rounds: int = 0) -> WindowRow:
    """Give the window that takes the place of `before`, of which `allotted` units count as out already."""
    state = new_window(
        amount=before.state.amount,
        amount_version=before.state.amount_version,
        timeline=timeline,
        generation_n=before.state.generation_n,
    )
    state.allotted = allotted
    state.ceiling = max(state.amount, allotted)
    state.stored, state.stored_over, state.owed = before.state.stored, before.state.stored_over, before.state.owed
    return WindowRow(
        identity=before.identity,
        window_id=window_id,
        span=before.span,
        state=state,
        round=before.round + rounds,
        is_new=True,
    )


def day_of(window_id: bytes) -> int:
    """Give the day number that a window id begins with."""
    return int.from_bytes(window_id[:DAY_BYTES], "big")


@dataclass(frozen=True, slots=True)
class Amounts:
    """A limit's amount and its version; until `held_until_us` the amount is `held_amount`."""

    amount: int
    version: int
    shape: int
    held_amount: int = 0
    held_until_us: int = 0

    def at(self, start_us: int) -> tuple[int, int]:
        """Give amount and version of a window that begins there."""
        return (self.held_amount if start_us < self.held_until_us else self.amount), self.version


async def amounts_in_force(conn: Connection, limits: Collection[tuple[UUID, str]]) -> dict[tuple[UUID, str], Amounts]:
    """Read the amounts of limits by (tenant, name)."""
    rows = await conn.fetch(sql("limits.amounts"), [tenant for tenant, _ in limits], [name for _, name in limits])
    return {
        (row["tenant_id"], row["name"]): Amounts(
            amount=row["amount"],
            version=row["amount_version"],
            shape=row["shape"],
            held_amount=row["held_amount"] or 0,
            held_until_us=row["held_until_us"] or 0,
        )
        for row in rows
    }


async def lock_cursors(conn: Connection, proposals: Iterable[Proposal]) -> dict[Identity, Cursor]:
    """Lock identities in key order; those that are new get the proposed window."""
    asked = list(proposals)
    rows = await conn.fetch(
        sql("limits.lock_cursors"),
        [proposal.identity[0] for proposal in asked],
        [proposal.identity[1] for proposal in asked],
        [proposal.identity[2] for proposal in asked],
        [json.dumps(proposal.key_values) for proposal in asked],
        [proposal.place.window_id for proposal in asked],
        [proposal.place.span.start_us for proposal in asked],
        [proposal.place.span.end_us for proposal in asked],
    )
    return {(row["tenant_id"], row["limit_name"], row["key_hash"]): cursor_from(row) for row in rows}


def cursor_from(row: asyncpg.Record) -> Cursor:
    """Give an identity's windows as its row has them."""
    older = None
    if row["older_id"] is not None:
        older = Place(window_id=row["older_id"], span=Span(row["older_start_us"], row["older_end_us"]))
    return Cursor(
        newer=Place(window_id=row["newer_id"], span=Span(row["newer_start_us"], row["newer_end_us"])),
        older=older,
        floor_us=row["floor_us"],
        generation_n=row["generation_n"],
    )


async def find_cursors(conn: Connection, identities: Collection[Identity]) -> dict[Identity, Cursor]:
    """Read identities that are there, without a lock."""
    asked = list(identities)
    rows = await conn.fetch(
        sql("limits.find_cursors"),
        [identity[0] for identity in asked],
        [identity[1] for identity in asked],
        [identity[2] for identity in asked],
    )
    return {(row["tenant_id"], row["limit_name"], row["key_hash"]): cursor_from(row) for row in rows}


async def write_cursors(conn: Connection, cursors: Sequence[tuple[Identity, Cursor]]) -> None:
    """Write identities that this transaction has locked."""
    if not cursors:
        return
    olders = [cursor.older for _, cursor in cursors]
    await conn.execute(
        sql("limits.update_cursors"),
        [identity[0] for identity, _ in cursors],
        [identity[1] for identity, _ in cursors],
        [identity[2] for identity, _ in cursors],
        [cursor.generation_n for _, cursor in cursors],
        [None if older is None else older.window_id for older in olders],
        [None if older is None else older.span.start_us for older in olders],
        [None if older is None else older.span.end_us for older in olders],
        [cursor.newer.window_id for _, cursor in cursors],
        [cursor.newer.span.start_us for _, cursor in cursors],
        [cursor.newer.span.end_us for _, cursor in cursors],
        [cursor.floor_us for _, cursor in cursors],
    )


async def lock_windows(conn: Connection, window_ids: Collection[bytes]) -> dict[bytes, WindowRow]:
    """Lock windows in id order and read them with their newest generation; unknown ids are left out."""
    if not window_ids:
        return {}
    rows = await conn.fetch(sql("limits.lock_windows"), list(window_ids), days_of(window_ids))
    return {row["window_id"]: _window(row) for row in rows}


def days_of(window_ids: Collection[bytes]) -> list[int]:
    """Give the distinct day numbers of window ids, for partition pruning."""
    return sorted({day_of(window_id) for window_id in window_ids})


def _window(row: asyncpg.Record) -> WindowRow:
    generation = None
    if row["generation"]:
        generation = Generation(
            number=row["generation"],
            allotted_cum=row["allotted_cum"],
            credited=row["credited"],
            lost=row["lost"],
            closing=row["closing"],
            closed=row["closed"],
        )
    state = WindowState(
        amount=row["amount"],
        amount_version=row["amount_version"],
        allotted=row["allotted"],
        ceiling=row["ceiling"],
        wanted=row["wanted"],
        timeline=row["timeline"],
        generation=generation,
        stored=row["stored"],
        stored_over=row["stored_over"],
        owed=row["owed"],
    )
    return WindowRow(
        identity=(row["tenant_id"], row["limit_name"], row["key_hash"]),
        window_id=row["window_id"],
        span=Span(row["start_us"], row["end_us"]),
        state=state,
        round=row["round"],
    )


async def read_leases(
    conn: Connection, rows: Mapping[bytes, WindowRow], pairs: Iterable[tuple[bytes, bytes]]
) -> dict[tuple[bytes, bytes], Holder]:
    """Read what holders got, by (window id, holder), of windows among `rows`, which this transaction has locked."""
    asked = [(rows[window_id], holder) for window_id, holder in pairs if window_id in rows]
    if not asked:
        return {}
    found = await conn.fetch(
        sql("limits.read_leases"),
        [row.identity[0] for row, _ in asked],
        [row.window_id for row, _ in asked],
        [holder for _, holder in asked],
        [row.end_day for row, _ in asked],
        days_of([row.window_id for row, _ in asked]),
    )
    return {(row["window_id"], row["holder"]): _holder(row) for row in found}


def _holder(row: asyncpg.Record) -> Holder:
    give = row["last_give"]
    return Holder(
        request_seq=row["request_seq"],
        granted_cum=row["granted_cum"],
        returned_cum=row["returned_cum"],
        last=None if give is None else Leased(give, row["granted_cum"], lease_epoch=row["lease_epoch"]),
        recorded=row["recorded"],
        ended=row["ended"],
        lease_epoch=row["lease_epoch"],
    )


async def write_windows(conn: Connection, rows: Iterable[WindowRow]) -> None:
    """Write everything that changed in windows that this transaction has locked or opens."""
    all_rows = list(rows)
    await _insert_windows(conn, [row for row in all_rows if row.is_new])
    await _update_windows(conn, [row for row in all_rows if not row.is_new and row.state.changed])
    generations = [
        (row, generation) for row in all_rows for generation in (*row.state.ended, row.state.generation) if generation
    ]
    await write_generations(conn, [(row, generation) for row, generation in generations if generation.changed])
    await _write_leases(
        conn,
        [(row, name, holder) for row in all_rows for name, holder in row.state.holders.items() if holder.changed],
    )


async def _insert_windows(conn: Connection, rows: Sequence[WindowRow]) -> None:
    if not rows:
        return
    await conn.execute(
        sql("limits.insert_windows"),
        [row.identity[0] for row in rows],
        [row.window_id for row in rows],
        [row.end_day for row in rows],
        [row.identity[1] for row in rows],
        [row.identity[2] for row in rows],
        [row.state.timeline for row in rows],
        [row.span.start_us for row in rows],
        [row.span.end_us for row in rows],
        [row.state.amount for row in rows],
        [row.state.amount_version for row in rows],
        [row.state.allotted for row in rows],
        [row.state.ceiling for row in rows],
        [row.state.wanted for row in rows],
        [_number(row) for row in rows],
        [row.round for row in rows],
        [row.state.stored for row in rows],
        [row.state.stored_over for row in rows],
        [row.state.owed for row in rows],
    )


def _number(row: WindowRow) -> int:
    return 0 if row.state.generation is None else row.state.generation.number


async def _update_windows(conn: Connection, rows: Sequence[WindowRow]) -> None:
    if not rows:
        return
    await conn.execute(
        sql("limits.update_windows"),
        [row.identity[0] for row in rows],
        [row.window_id for row in rows],
        [row.end_day for row in rows],
        [row.state.amount for row in rows],
        [row.state.amount_version for row in rows],
        [row.state.allotted for row in rows],
        [row.state.ceiling for row in rows],
        [row.state.wanted for row in rows],
        [_number(row) for row in rows],
        [row.state.stored for row in rows],
        [row.state.stored_over for row in rows],
        [row.state.owed for row in rows],
        days_of([row.window_id for row in rows]),
    )


async def write_generations(conn: Connection, rows: Sequence[tuple[WindowRow, Generation]]) -> None:
    """Write generations of windows that this transaction has locked."""
    if not rows:
        return
    await conn.execute(
        sql("limits.write_generations"),
        [row.identity[0] for row, _ in rows],
        [row.window_id for row, _ in rows],
        [row.end_day for row, _ in rows],
        [generation.number for _, generation in rows],
        [generation.allotted_cum for _, generation in rows],
        [generation.credited for _, generation in rows],
        [generation.lost for _, generation in rows],
        [generation.closing for _, generation in rows],
        [generation.closed for _, generation in rows],
    )


async def _write_leases(conn: Connection, rows: Sequence[tuple[WindowRow, bytes, Holder]]) -> None:
    if not rows:
        return
    await conn.execute(
        sql("limits.write_leases"),
        [row.identity[0] for row, _, _ in rows],
        [row.window_id for row, _, _ in rows],
        [row.end_day for row, _, _ in rows],
        [name for _, name, _ in rows],
        [holder.request_seq for _, _, holder in rows],
        [holder.granted_cum for _, _, holder in rows],
        [holder.returned_cum for _, _, holder in rows],
        [holder.last.give if isinstance(holder.last, Leased) else None for _, _, holder in rows],
        [holder.recorded for _, _, holder in rows],
        [holder.ended for _, _, holder in rows],
        [holder.lease_epoch for _, _, holder in rows],
    )


@dataclass(frozen=True, slots=True)
class ClosingPool:
    """A generation that Redis has to close."""

    identity: Identity
    window_id: bytes
    generation: int


async def closing_pools(conn: Connection, *, from_day: int, count_max: int) -> list[ClosingPool]:
    """Read generations that wait to be closed, of windows that end on `from_day` or later."""
    rows = await conn.fetch(sql("limits.closing_generations"), from_day, count_max)
    return [
        ClosingPool(
            identity=(row["tenant_id"], row["limit_name"], row["key_hash"]),
            window_id=row["window_id"],
            generation=row["generation"],
        )
        for row in rows
    ]


async def close_generation(conn: Connection, pool: ClosingPool, *, unspent: int) -> int:
    """Mark a generation as closed and credit its rest, once; gives the units credited now. The window is locked."""
    credited: int | None = await conn.fetchval(
        sql("limits.close_generation"),
        pool.identity[0],
        pool.window_id,
        day_of(pool.window_id),
        pool.generation,
        unspent,
    )
    return credited or 0
