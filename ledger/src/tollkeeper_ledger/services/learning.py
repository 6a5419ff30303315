"""Hear after a restore what holders have, and take windows up again from it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.allotment import new_window
from tollkeeper_ledger.domain.cursor import Place
from tollkeeper_ledger.domain.issuing import LEARNING
from tollkeeper_ledger.domain.learning import has_open_pool, learned_out
from tollkeeper_ledger.domain.windows import end_day_of
from tollkeeper_ledger.services.spans import name_window
from tollkeeper_ledger.store.learning import add_told, note_closed, open_pools, read_told
from tollkeeper_ledger.store.limits import (
    Proposal,
    WindowRow,
    lock_cursors,
    lock_windows,
    write_cursors,
    write_windows,
)
from tollkeeper_ledger.store.pool import connection, transaction
from tollkeeper_ledger.store.pool_functions import close_pool_call, look_at_pool_call, pool_keys
from tollkeeper_ledger.store.queries import sql
from tollkeeper_ledger.store.witnesses import read_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.cursor import Cursor
    from tollkeeper_ledger.domain.issuing import Issuing, Witness
    from tollkeeper_ledger.domain.learning import Told
    from tollkeeper_ledger.domain.window_state import Refused
    from tollkeeper_ledger.domain.windows import Span
    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.restores import Restores
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.store.learning import NamedPool
    from tollkeeper_ledger.store.limits import Identity
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.pool_functions import Call, PoolFunctions

_POOLS_PER_STEP = 2_000


@dataclass(frozen=True, slots=True)
class Leases:
    """What a holder says that it has of one window of an earlier timeline; `told` names at least one source."""

    tenant: str
    limit: str
    key_hash: bytes
    key_values: tuple[str, ...]
    window_id: bytes
    span: Span
    timeline: int
    """The window's own; 0 = the holder never heard it."""
    told: tuple[Told, ...]

    @property
    def opened_in(self) -> int:
        """The timeline that it was opened in, or the first."""
        return max(1, self.timeline)


@dataclass(frozen=True, slots=True)
class _Heard:
    """What was said, of a limit that learns."""

    identity: Identity
    leases: Leases
    amount: int


def learned_of(row: WindowRow, told: Sequence[Told], *, since: int | None = None) -> list[Told]:
    """Give what was said of a window in timelines after its own, or, with `since`, from that one on."""
    first = row.state.timeline + 1 if since is None else since
    return [one for one in told if one.timeline >= first and one.overlaps(row.span)]


def refuses_learned(row: WindowRow, told: Sequence[Told], issuing: Issuing, *, now_us: int) -> Refused | None:
    """Refuse a window whose limit learns until holders have had their time and every pool that they named is closed."""
    refused = issuing.refuses_window(row.span, timeline=row.state.timeline, learned_at_us=now_us)
    is_frozen = row.span.start_us < issuing.frozen_before_us
    return refused or (LEARNING if is_frozen and has_open_pool(learned_of(row, told)) else None)


def learned_allotted(row: WindowRow, told: Sequence[Told]) -> int:
    """Give what counts as out of a window from now on: what holders said, never less than Postgres knows."""
    return max(row.state.allotted, learned_out(learned_of(row, told)))


class Learning:
    """Keep what holders say, and close the pools that they name once all have had their time to speak."""

    def __init__(
        self,
        pool: Pool,
        clock: LedgerClock,
        functions: PoolFunctions,
        restores: Restores,
        tenants: TenantDirectory,
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._functions = functions
        self._restores = restores
        self._tenants = tenants

    async def hear(self, said: Sequence[Leases]) -> None:
        """Keep what a holder has of windows of an earlier timeline; a repeat changes nothing.

        A window that Postgres lacks is known from now on, as one of that timeline. What comes after issuing has begun
        again still counts as out from then. Limits that don't learn, and windows of this timeline, are left out.
        """
        if not said:
            return
        views = await self._tenants.get({one.tenant for one in said})
        heard: list[_Heard] = []
        for one in said:
            view = views.get(one.tenant)
            limit = None if view is None else view.limit(one.limit, one.span.start_us)
            if view is not None and limit is not None and limit.rule.learns:
                identity = (view.tenant_id, one.limit, one.key_hash)
                heard.append(_Heard(identity=identity, leases=one, amount=max(0, limit.rule.amount)))
        for day in {end_day_of(one.leases.span.end_us) for one in heard}:
            async with connection(self._pool) as conn:
                await conn.execute(sql("limits.ensure_day"), day)
        if heard:
            self._restores.committed(await self._restores.noticed(lambda: self._hear(heard)))

    async def _hear(self, heard: Sequence[_Heard]) -> Witness:
        async with transaction(self._pool) as conn:
            witness, issuing = await self._restores.issue(conn)
            older = [one for one in heard if one.leases.opened_in < issuing.timeline]
            if older:
                await self._keep(conn, older, issuing)
        return witness

    async def _keep(self, conn: Connection, heard: Sequence[_Heard], issuing: Issuing) -> None:
        proposals = {
            one.identity: Proposal(one.identity, one.leases.key_values, Place(one.leases.window_id, one.leases.span))
            for one in heard
        }
        cursors = await lock_cursors(conn, proposals.values())
        found = [(one, _place(cursors[one.identity], one.leases)) for one in heard]
        places = {place.window_id: (one, place) for one, place in found if place is not None}
        rows = await lock_windows(conn, {*places, *(one.leases.window_id for one in heard)})
        # Whoever took units over and never heard of their window may have them of this timeline: they are counted.
        older = [
            one
            for one in heard
            if (row := rows.get(one.leases.window_id)) is None or row.state.timeline < issuing.timeline
        ]
        lost = [_lost_window(one, place) for name, (one, place) in places.items() if name not in rows]
        for day in {row.end_day for row in lost}:
            await conn.execute(sql("limits.ensure_day"), day)
        before = await read_told(conn, proposals)
        await add_told(conn, _sources(older), timeline=issuing.timeline)
        after = await read_told(conn, proposals)
        for name in places.keys() & rows.keys():
            if rows[name].state.timeline == issuing.timeline:
                identity = rows[name].identity
                _raise_by_late(rows[name], before.get(identity, []), after.get(identity, []))
        await write_windows(conn, [*rows.values(), *lost])
        changed = [(identity, cursor) for identity, cursor in cursors.items() if cursor.changed]
        await write_cursors(conn, sorted(changed, key=lambda pair: pair[0]))

    async def tick(self) -> None:
        """Close the pools that were named, once holders have had their time. To be called each second."""
        if self._restores.timeline == 1:
            return
        async with connection(self._pool) as conn:
            state = await read_state(conn)
            is_time = state.held_at_us is None and self._clock.reading().now_us >= state.learning_until_us
            pools = await open_pools(conn, count_max=_POOLS_PER_STEP) if is_time else []
        if not pools:
            return
        replies = await self._functions.call([call for pool in pools for call in _closing(pool)])
        closed = [
            (pool, total, unspent)
            for pool, look, close in zip(pools, replies[::2], replies[1::2], strict=True)
            if (unspent := self._unspent(pool, close)) is not None
            for total in [int(look[6]) if look is not None and look[0] == "OK" else 0]
        ]
        async with transaction(self._pool) as conn:
            await note_closed(conn, closed)

    def _unspent(self, pool: NamedPool, reply: list[str] | None) -> int | None:
        """Give what a pool never gave; 0 where Redis has lost it or is down, None where it is to be asked again."""
        if reply is not None:
            return int(reply[1]) if reply[0] == "OK" else 0
        return None if self._functions.serves(pool_keys(pool.identity, pool.window_id)) else 0


def _closing(pool: NamedPool) -> tuple[Call, Call]:
    """Give the calls that look at how much went into a pool and end it."""
    keys = pool_keys(pool.identity, pool.window_id)
    looker = secrets.token_bytes(16)
    return look_at_pool_call(keys, generation=pool.generation, holder=looker), close_pool_call(
        keys, generation=pool.generation
    )


def _place(cursor: Cursor, leases: Leases) -> Place | None:
    """Find the window that holds the start of a holder's, or open it; None where that time is over for good.

    It is named as its holder names it, unless it is cut: the name says on which day it ends.
    """

    def name(span: Span) -> bytes:
        return leases.window_id if span == leases.span else name_window(span, secrets.token_bytes)

    return cursor.find(leases.span.start_us) or cursor.open(leases.span.start_us, leases.span, name)


def _lost_window(one: _Heard, place: Place) -> WindowRow:
    """Give a window that Postgres lacks, as one of the timeline that it was opened in, from which nothing is issued."""
    state = new_window(amount=one.amount, amount_version=0, timeline=one.leases.opened_in, generation_n=0)
    return WindowRow(identity=one.identity, window_id=place.window_id, span=place.span, state=state, is_new=True)


def _sources(heard: Sequence[_Heard]) -> list[tuple[Identity, Told]]:
    """Give each source once, with the greatest figures."""
    found: dict[tuple[Identity, bytes, bytes, int], Told] = {}
    for one in heard:
        for told in one.leases.told:
            name = (one.identity, told.window_id, told.holder, told.generation)
            other = found.get(name, told)
            found[name] = replace(
                told,
                units=max(told.units, other.units),
                total=max(told.total, other.total),
                allotted=max(told.allotted, other.allotted),
            )
    return [(name[0], told) for name, told in sorted(found.items(), key=lambda pair: pair[0])]


def _raise_by_late(row: WindowRow, before: Sequence[Told], after: Sequence[Told]) -> None:
    """Count as out what was said only now, of a window that issuing has begun from again."""
    first = row.state.timeline
    late = learned_out(learned_of(row, after, since=first)) - learned_out(learned_of(row, before, since=first))
    if late > 0:
        row.state.ceiling = max(row.state.ceiling, row.state.allotted + late)
        row.state.take(late)
        if row.state.generation is not None and row.state.generation.live:
            row.state.generation.changed = row.state.generation.publish = True
