"""One transaction of Allot: lock, read, decide, write; and what Redis has to be told afterwards."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain import standing
from tollkeeper_ledger.domain.allotment import STANDING_KINDS, decide, follow_amount, new_window, notice_due
from tollkeeper_ledger.domain.cursor import Place
from tollkeeper_ledger.domain.issuing import AHEAD_US_MAX, NO_WITNESS, Issuing, slack_us
from tollkeeper_ledger.domain.limits import UNITS_MAX, UNLIMITED, LimitKind
from tollkeeper_ledger.domain.standing import STANDING, STANDING_DAY
from tollkeeper_ledger.domain.window_state import Denied, Pooled, PoolFault, Refused
from tollkeeper_ledger.domain.windows import Alignment, Span, end_day_of
from tollkeeper_ledger.services.entries import FromBucket, FromWindow, facts_of
from tollkeeper_ledger.services.fairness import in_turns
from tollkeeper_ledger.services.learning import learned_allotted, refuses_learned
from tollkeeper_ledger.services.notices import announce_lacking, announce_units
from tollkeeper_ledger.services.pool_calls import calls_for
from tollkeeper_ledger.services.spans import name_window, span_of
from tollkeeper_ledger.store.learning import read_told
from tollkeeper_ledger.store.limits import (
    Proposal,
    WindowRow,
    amounts_in_force,
    find_cursors,
    lock_cursors,
    lock_windows,
    read_leases,
    successor,
    write_cursors,
    write_windows,
)
from tollkeeper_ledger.store.pool import connection
from tollkeeper_ledger.store.pool_functions import pool_keys
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.cursor import Cursor
    from tollkeeper_ledger.domain.learning import Told
    from tollkeeper_ledger.domain.limits import EffectiveLimit
    from tollkeeper_ledger.domain.window_state import Ask
    from tollkeeper_ledger.services.allot_buckets import BucketShards
    from tollkeeper_ledger.services.clock import LedgerClock
    from tollkeeper_ledger.services.entries import Entry, Result
    from tollkeeper_ledger.services.openings import Openings
    from tollkeeper_ledger.services.restores import Restores
    from tollkeeper_ledger.services.tenant_directory import TenantDirectory
    from tollkeeper_ledger.store.limits import Amounts, Identity
    from tollkeeper_ledger.store.pool import Connection, Pool
    from tollkeeper_ledger.store.pool_functions import Call, PoolFunctions
    from tollkeeper_ledger.store.tenants import TenantView

BEHIND_US_MAX = 3_600_000_000
KEY_HASH_BYTES = 16
HOLDER_BYTES = 16


@dataclass(slots=True)
class BatchContext:
    """What every batch of a replica shares."""

    tenants: TenantDirectory
    pool: Pool
    clock: LedgerClock
    random_bytes: Callable[[int], bytes]
    restores: Restores
    functions: PoolFunctions
    openings: Openings
    days: set[int] = field(default_factory=set)
    """Days whose partitions are known to be there."""


@dataclass(frozen=True, slots=True)
class _Target:
    """An ask whose tenant and limit are known."""

    index: int
    entry: Entry
    tenant: TenantView
    limit: EffectiveLimit
    identity: Identity


class AllotBatch:
    """Answer many asks. `prepare`, then `run` in a transaction; made anew for each attempt."""

    def __init__(self, context: BatchContext, buckets: BucketShards, entries: Sequence[Entry]) -> None:
        self._context = context
        self._buckets = buckets
        self._entries = entries
        self._results: list[Result | None] = [None] * len(entries)
        self._targets: list[_Target] = []
        self._bucket_targets: list[_Target] = []
        self._proposals: dict[Identity, Proposal] = {}
        self._spans: dict[tuple[UUID, str], Span] = {}
        self._cursors: dict[Identity, Cursor] = {}
        self._rows: dict[bytes, WindowRow] = {}
        self._lacking: dict[Identity, dict[bytes, int]] = {}
        self._clock = context.clock.reading()
        self._redis_is_up = context.functions.is_up()
        self._issuing = Issuing(timeline=0)
        self.witness = NO_WITNESS

    async def prepare(self) -> None:
        """Find tenants and limits, propose a window for each identity, and make partitions that are missing."""
        views = await self._context.tenants.get({entry.tenant for entry in self._entries})
        self._clock = self._context.clock.reading()
        async for index, entry in in_turns(enumerate(self._entries)):
            target = self._resolve(index, entry, views.get(entry.tenant))
            if isinstance(target, Refused):
                self._results[index] = target
            elif target.limit.rule.kind is LimitKind.TOKEN_BUCKET:
                self._bucket_targets.append(target)
            else:
                self._propose(target)
        for day in {end_day_of(proposal.place.span.end_us) for proposal in self._proposals.values()}:
            if day not in self._context.days:
                async with connection(self._context.pool) as conn:
                    await conn.execute(sql("limits.ensure_day"), day)
                self._context.days.add(day)

    def _resolve(self, index: int, entry: Entry, tenant: TenantView | None) -> _Target | Refused:
        if tenant is None:
            return Refused("TENANT_UNKNOWN", f"no such tenant: {entry.tenant[:128]!r}")
        limit = tenant.limit(entry.limit, entry.at_us)
        if limit is None:
            return Refused("LIMIT_UNKNOWN", f"tenant {tenant.wire_id} has no limit {entry.limit[:128]!r}")
        problem = self._problem(entry, limit)
        if problem is not None:
            return problem
        return _Target(index, entry, tenant, limit, (tenant.tenant_id, entry.limit, entry.key_hash))

    def _problem(self, entry: Entry, limit: EffectiveLimit) -> Refused | None:
        """Find what is wrong with an ask of a limit that exists."""
        ask = entry.ask
        if len(entry.key_hash) not in (0, KEY_HASH_BYTES):
            return Refused("FIELD_INVALID", "key_hash must be empty or 16 bytes")
        if limit.shape > 0 and len(entry.key_values) != len(limit.rule.key):
            # Who asks has not heard of the limit's key of that time: the units would be beside those of the right keys.
            return Refused("FIELD_INVALID", f"limit {entry.limit!r} is split by {list(limit.rule.key)} then")
        if not (0 <= ask.need <= UNITS_MAX and 0 <= ask.want <= UNITS_MAX and 0 <= ask.allotted_cum_seen <= UNITS_MAX):
            return Refused("FIELD_OUT_OF_RANGE", f"need, want and allotted_cum_seen must be 0 to {UNITS_MAX}")
        slack = slack_us(self._clock.speed_milli)
        ahead_us = entry.at_us - self._clock.now_us
        is_near = -BEHIND_US_MAX - slack <= ahead_us <= AHEAD_US_MAX + slack
        if limit.rule.kind is LimitKind.WINDOW and not is_near:
            return Refused(
                "FIELD_OUT_OF_RANGE", f"at_us {entry.at_us} is {ahead_us} us ahead of ledger time; bound: -1 h to 5 s"
            )
        return None

    def _propose(self, target: _Target) -> None:
        """Note the window that the rule gives at the ask's time, for an identity that may have none."""
        try:
            span = self._span(target)
        except (ValueError, OverflowError) as error:
            self._results[target.index] = Refused("FIELD_INVALID", f"no window holds at_us: {error}")
            return
        self._targets.append(target)
        if target.identity not in self._proposals:
            place = Place(window_id=self._name(span), span=span)
            self._proposals[target.identity] = Proposal(target.identity, target.entry.key_values, place)

    def _name(self, span: Span) -> bytes:
        return name_window(span, self._context.random_bytes)

    def _span(self, target: _Target) -> Span:
        """Compute the window that holds the ask's time; keys of one limit share most of them."""
        at_us = target.entry.at_us
        if target.limit.rule.kind in STANDING_KINDS:
            return STANDING
        if _is_rolling(target):
            return span_of(target.tenant, target.limit, at_us)
        known = self._spans.get((target.tenant.tenant_id, target.entry.limit))
        if known is not None and known.holds(at_us):
            return known
        span = span_of(target.tenant, target.limit, at_us)
        self._spans[target.tenant.tenant_id, target.entry.limit] = span
        return span

    async def run(self, conn: Connection) -> tuple[list[Result], list[Call]]:
        """Decide every ask in its order and write the outcome; gives the answers and what to tell Redis at commit."""
        self.witness, self._issuing = await self._context.restores.issue(conn)
        calls = await self._buckets.open(
            conn,
            [(target.tenant.tenant_id, target.entry) for target in self._bucket_targets],
            clock=self._clock,
            timeline=self._issuing.timeline,
        )
        if self._bucket_targets:
            await self._place_buckets(conn)
        if self._issuing.is_restricted:
            await self._refuse_openings(conn)
        if self._targets:
            calls += await self._run_windows(conn)
        return [result for result in self._results if result is not None], calls

    async def _place_buckets(self, conn: Connection) -> None:
        """Answer asks of token buckets, whose shards are open and locked."""
        amounts = await amounts_in_force(conn, {target.identity[:2] for target in self._bucket_targets})
        for target in self._bucket_targets:
            if _is_stale(target, amounts.get(target.identity[:2])):
                self._results[target.index] = _changing(target)
                continue
            generation, keys = self._buckets.place(target.tenant.tenant_id, target.entry)
            self._results[target.index] = FromBucket(generation=generation, keys=keys)

    async def _refuse_openings(self, conn: Connection) -> None:
        """Refuse asks that would open a window which may not be opened now; their identities stay unknown."""
        known = await find_cursors(conn, {target.identity for target in self._targets})
        allowed: list[_Target] = []
        for target in self._targets:
            refused = None
            cursor = known.get(target.identity)
            if cursor is None or cursor.find(target.entry.at_us) is None:
                learned_at_us = self._clock.now_us if target.limit.rule.learns else None
                refused = self._issuing.refuses_opening(
                    self._span(target), is_rolling=_is_rolling(target), learned_at_us=learned_at_us
                )
            if refused is None:
                allowed.append(target)
            else:
                self._results[target.index] = refused
        self._targets = allowed

    async def _run_windows(self, conn: Connection) -> list[Call]:
        asked = {target.identity for target in self._targets}
        self._cursors = await lock_cursors(conn, (self._proposals[identity] for identity in asked))
        amounts = await amounts_in_force(conn, {(identity[0], identity[1]) for identity in asked})
        places = [(target, await self._place(conn, target)) async for target in in_turns(self._targets)]
        new = {self._proposals[identity].place.window_id for identity in asked}
        known = {place.window_id for _, place in places if place is not None} - new - self._rows.keys()
        self._rows.update(await lock_windows(conn, known))
        if any(row.state.timeline < self._issuing.timeline for row in self._rows.values()):
            learning = {target.identity for target, _ in places if target.limit.rule.learns}
            told = await read_told(conn, learning)
            places = [(target, self._renew(target, place, told.get(target.identity, []))) for target, place in places]
        leases = await read_leases(
            conn,
            self._rows,
            {
                (place.window_id, target.entry.ask.holder)
                for target, place in places
                if place and place.window_id in known
            },
        )
        for (window_id, holder), lease in leases.items():
            self._rows[window_id].state.holders[holder] = lease
        async for target, place in in_turns(places):
            if self._results[target.index] is None:
                self._results[target.index] = self._decide(target, place, amounts.get(target.identity[:2]))
        rows = list(self._rows.values())
        noticed = [row.identity for row in rows if not row.is_new and notice_due(row.state)]
        await write_windows(conn, rows)
        changed = [(identity, cursor) for identity, cursor in self._cursors.items() if cursor.changed]
        await write_cursors(conn, sorted(changed, key=lambda pair: pair[0]))
        await announce_units(conn, noticed)
        await announce_lacking(conn, self._lacking)
        self._add_pool_names()
        return list(self._pool_calls())

    async def _place(self, conn: Connection, target: _Target) -> Place | None:
        """Find the ask's window, or open the one that its rule gives."""
        cursor = self._cursors[target.identity]
        place = cursor.find(target.entry.at_us)
        if place is None:
            place = cursor.open(target.entry.at_us, self._span(target), self._name)
            if place is not None:
                await self._ensure_day(conn, end_day_of(place.span.end_us))
                self._rows[place.window_id] = self._open(target, place)
        elif place.window_id == self._proposals[target.identity].place.window_id and place.window_id not in self._rows:
            self._rows[place.window_id] = self._open(target, place)
        return place

    def _renew(self, target: _Target, place: Place | None, told: Sequence[Told]) -> Place | None:
        """Give the window of this timeline in place of one of an earlier timeline, or refuse while that is frozen.

        It begins with what Postgres knows to be out of the earlier one, from which nothing is issued any more; where
        the limit learns, also with what holders `told`.
        """
        if place is None:
            return None
        cursor = self._cursors[target.identity]
        place = cursor.find(target.entry.at_us) or place
        row = self._rows[place.window_id]
        if row.state.timeline >= self._issuing.timeline:
            return place
        if target.limit.rule.learns:
            refused = refuses_learned(row, told, self._issuing, now_us=self._clock.now_us)
            allotted = learned_allotted(row, told)
        else:
            refused = self._issuing.refuses_window(row.span, timeline=row.state.timeline)
            allotted = row.state.allotted
        if refused is not None:
            self._results[target.index] = refused
            return place
        renewed = cursor.replace(place.window_id, self._name(place.span))
        after = successor(row, renewed.window_id, timeline=self._issuing.timeline, allotted=allotted)
        if target.limit.rule.kind is LimitKind.CONCURRENCY:
            standing.inherit_flights(after.state, heir=self._context.random_bytes(HOLDER_BYTES))
        self._rows[renewed.window_id] = after
        return renewed

    async def _ensure_day(self, conn: Connection, day: int) -> None:
        if day not in self._context.days:
            await conn.execute(sql("limits.ensure_day"), day)

    def _open(self, target: _Target, place: Place) -> WindowRow:
        rule = target.limit.rule
        state = new_window(
            amount=max(0, rule.amount), amount_version=0, timeline=self._issuing.timeline, generation_n=0
        )
        return WindowRow(identity=target.identity, window_id=place.window_id, span=place.span, state=state, is_new=True)

    def _decide(self, target: _Target, place: Place | None, amounts: Amounts | None) -> Result:
        if place is None:
            return Refused("FIELD_OUT_OF_RANGE", f"the window at {target.entry.at_us} is over")
        if amounts is None or _is_stale(target, amounts):
            return _changing(target)
        row = self._rows[place.window_id]
        amount, amount_version = amounts.at(row.span.start_us)
        if amount == UNLIMITED:
            return Refused("FIELD_INVALID", f"limit {target.entry.limit!r} is unlimited: nothing to allot")
        kind = target.limit.rule.kind
        if (kind in STANDING_KINDS) != (row.end_day == STANDING_DAY):
            return Refused(
                "FIELD_INVALID",
                f"limit {target.entry.limit!r} was of another kind, whose units are out: name the new limit otherwise",
            )
        cursor = self._cursors[target.identity]
        follow_amount(row.state, amount=amount, amount_version=amount_version)
        row.state.generation_n = cursor.generation_n
        counts_values = self._context.tenants.counts_values(target.limit.rule.meter)
        ask = self._as_seen_from_here(target.entry.ask, row, counts_values=counts_values)
        answer = decide(row.state, ask, kind=kind, counts_values=counts_values)
        if kind in STANDING_KINDS and isinstance(answer, Denied):
            self._lacking.setdefault(target.identity, {})[target.entry.ask.holder] = max(1, target.entry.ask.need)
        if row.state.generation_n != cursor.generation_n:
            cursor.generation_n = row.state.generation_n
            cursor.changed = True
            if row.state.ended and row.state.ended[-1].lost:
                self._context.openings.note(row.window_id)
        if isinstance(answer, Refused):
            return answer
        return FromWindow(window=facts_of(row), answer=answer)

    def _as_seen_from_here(self, ask: Ask, row: WindowRow, *, counts_values: bool) -> Ask:
        """Say that the pool can't be reached where this is known here: the answer is then a lease, at once.

        So it is where the pool was opened just now for a lost one, and is lost as well. Distinct values need a pool all
        the same.
        """
        if not counts_values and self._context.openings.are_paused(row.window_id, row.state.generation, ask):
            return replace(ask, ledger_only=True)
        if self._redis_is_up or self._context.functions.serves(pool_keys(row.identity, row.window_id)):
            return ask
        return replace(ask, fault=PoolFault.UNREACHABLE)

    def _add_pool_names(self) -> None:
        for index, result in enumerate(self._results):
            if isinstance(result, FromWindow) and isinstance(result.answer, Pooled):
                row = self._rows[result.window.window_id]
                self._results[index] = FromWindow(
                    window=result.window, answer=result.answer, pool=pool_keys(row.identity, row.window_id)
                )

    def _pool_calls(self) -> Iterator[Call]:
        now_us, speed_milli = self._clock.now_us, self._clock.speed_milli
        for row in self._rows.values():
            # Hygiene only: Redis keeps the keys an hour beyond the window's end, in real time.
            ends_in_s = max(0, row.span.end_us - now_us) // (1000 * max(1000, speed_milli))
            yield from calls_for(row, expire_at_unix_s=int(time.time()) + ends_in_s + 3600)


def _is_stale(target: _Target, amounts: Amounts | None) -> bool:
    """Whether the limit went, or got another kind or key, since it was read for this ask."""
    return amounts is None or amounts.shape != target.limit.shape


def _changing(target: _Target) -> Refused:
    return Refused("LIMIT_UNKNOWN", f"limit {target.entry.limit!r} is no longer there, or changes just now")


def _is_rolling(target: _Target) -> bool:
    window = target.limit.rule.window
    return window is not None and window.alignment is Alignment.ROLLING
