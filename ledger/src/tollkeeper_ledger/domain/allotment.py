"""Decide who gets which units of one window. Pure: the rows are locked, read and written by the caller.

Units leave a limit in two ways: as a lease to one holder (source: ledger), or as an allotment to a pool's generation.
`allotted` counts both. What is asserted here, and by the table's check: allotted <= ceiling.

- The first ask of a window gets a lease; every further one is sent to the pool, which is opened for it.
- A pool is extended when somebody asks who has seen all that is in it, or opened; anyone else is told where it is.
- A generation that a holder reports as lost is never used again: the next one starts from what is left.
- A denial is a proof: nothing was left that could cover the need. Where that can't be known, the ask is refused.
- An ask for nothing only tells of a lost pool: it opens no other one, and its denial proves nothing.
"""

from __future__ import annotations

from typing import Final

from tollkeeper_ledger.domain import standing
from tollkeeper_ledger.domain.limits import LimitKind
from tollkeeper_ledger.domain.window_state import (
    GENERATION_BITS,
    Answer,
    Ask,
    Denied,
    Generation,
    Holder,
    Leased,
    Pooled,
    PoolFault,
    Refused,
    WindowState,
)

STANDING_KINDS = (LimitKind.LEVEL, LimitKind.CONCURRENCY)

LEASE_SHARE = 16
"""A first lease is at most this part of the amount; a pool grows by at least this part."""

POOL_GROWTH = 4
"""A pool grows by at least this part of what went into it."""

POOL_UNITS_MIN = 16
"""A pool grows by at least so many units, so that small limits don't ask the ledger for each."""


def new_window(*, amount: int, amount_version: int, timeline: int, generation_n: int) -> WindowState:
    """Give a window that nobody has asked yet."""
    return WindowState(
        amount=amount,
        amount_version=amount_version,
        ceiling=amount,
        timeline=timeline,
        generation_n=generation_n,
        changed=True,
    )


def lease_share(amount: int) -> int:
    """Give the most that a first lease has beyond its need."""
    return max(1, amount // LEASE_SHARE)


def pool_share(amount: int, allotted_cum: int) -> int:
    """Give the least that a pool grows by while there is so much.

    A quarter of what went in, too: a pool leases nothing ahead while less than a tenth of that is free, so a fixed step
    would send every check of a large pool to Redis.
    """
    return max(POOL_UNITS_MIN, amount // LEASE_SHARE, allotted_cum // POOL_GROWTH)


def follow_amount(window: WindowState, *, amount: int, amount_version: int) -> bool:
    """Put a newer amount in force; an older version changes nothing. Gives whether anything changed.

    A raise holds at once. A lower amount stops allotments while more than it is out, and ends the pool, so that its
    rest can come back.
    """
    if amount_version <= window.amount_version:
        return False
    window.amount = amount
    window.amount_version = amount_version
    window.ceiling = max(amount, window.allotted)
    window.changed = True
    generation = window.generation
    if generation is not None and generation.live:
        generation.changed = generation.publish = True
        generation.closing = window.allotted > amount
    return True


def decide(window: WindowState, ask: Ask, *, kind: LimitKind = LimitKind.WINDOW, counts_values: bool = False) -> Answer:
    """Answer one ask and bring the window to the state after it.

    Idempotent by (holder, request_seq): units that were given are not given again; any other answer rests on nothing
    that could be lost, so its repeat is decided anew. Not so of levels and units in flight: a repeat that comes late,
    when its holder has heard a denial and asks no more, would lease units for good of which nobody knows. It is given
    none. Where distinct values are counted every unit goes through a pool: only beside one stands which values have a
    unit already.
    """
    holder = window.holders.setdefault(ask.holder, Holder())
    if ask.request_seq == holder.request_seq and isinstance(holder.last, Leased):
        # Whoever hears only now of a lease of units in flight counts its time from this ask: that renews it.
        holder.changed = holder.changed or holder.last.lease_epoch > 0
        return holder.last
    if ask.request_seq not in (holder.request_seq, holder.request_seq + 1) or ask.request_seq < 1:
        return Refused(
            reason="REQUEST_SEQ",
            message=f"request_seq {ask.request_seq} is neither the last one known, {holder.request_seq}, nor the next",
            last_request_seq=holder.request_seq,
        )
    if kind in STANDING_KINDS:
        answer = _decide_standing(window, holder, ask, kind)
    else:
        answer = _decide_new(window, holder, ask, counts_values=counts_values)
    if isinstance(answer, Denied):
        need = max(1, ask.need)
        window.wanted = need if window.wanted == 0 else min(window.wanted, need)
        window.changed = True
    holder.request_seq = ask.request_seq
    holder.last = answer
    if isinstance(answer, Denied) and kind in STANDING_KINDS:
        holder.last = Leased(give=0, granted_cum=holder.granted_cum, lease_epoch=holder.lease_epoch)
    holder.changed = True
    return answer


_NO_VALUES: Final = Refused(
    reason="AUTHORITY_UNREACHABLE", message="which values have a unit stands in Redis, which can't be reached now"
)


def _decide_new(window: WindowState, holder: Holder, ask: Ask, *, counts_values: bool) -> Answer:
    _take_note_of_fault(window, ask)
    if ask.ledger_only or ask.fault is PoolFault.UNREACHABLE:
        return _NO_VALUES if counts_values else _from_ledger(window, holder, ask)
    generation = window.generation
    first = generation is None and window.allotted == 0 and max(ask.need, ask.want) > 0
    if first and not counts_values:
        return _lease(window, holder, ask) or Denied(left=window.left)
    if generation is not None and generation.live:
        if ask.generation_seen == generation.number:
            # Who knows the pool and is short although more went into it: Redis may never have heard of that.
            generation.publish = True
            if ask.allotted_cum_seen >= generation.allotted_cum:
                _extend(window, generation, ask)
        return _pooled(window, generation)
    only_tells = max(ask.need, ask.want) == 0
    if only_tells or (window.left < max(1, ask.need) and not counts_values):
        return Denied(left=window.left)
    return _open_pool(window, ask)


def _decide_standing(window: WindowState, holder: Holder, ask: Ask, kind: LimitKind) -> Answer:
    units = standing.give(window, holder, need=ask.need, want=ask.want)
    if units is None:
        return Denied(left=window.left)
    if kind is LimitKind.CONCURRENCY:
        standing.begin_lease(holder)
    return Leased(give=units, granted_cum=holder.granted_cum, lease_epoch=holder.lease_epoch)


def _take_note_of_fault(window: WindowState, ask: Ask) -> None:
    generation = window.generation
    if generation is None or ask.fault in (None, PoolFault.UNREACHABLE):
        return
    if ask.generation_seen == generation.number and generation.live:
        generation.lost = True
        generation.changed = True
        # What it had wanted is lost with it.
        window.wanted = 1
        window.pool_lost = True
        window.changed = True


def _lease(window: WindowState, holder: Holder, ask: Ask) -> Leased | None:
    left = window.left
    if left < max(1, ask.need):
        return None
    give = min(left, max(ask.need, min(ask.want, lease_share(window.amount))))
    window.take(give)
    holder.granted_cum += give
    return Leased(give=give, granted_cum=holder.granted_cum)


def _from_ledger(window: WindowState, holder: Holder, ask: Ask) -> Answer:
    leased = _lease(window, holder, ask)
    if leased is not None:
        return leased
    generation = window.generation
    pool_has_units = generation is not None and generation.live and generation.allotted_cum > generation.credited
    if pool_has_units:
        return Refused(
            reason="AUTHORITY_UNREACHABLE",
            message=f"{window.left} units are left beside a pool whose rest nobody can see now",
        )
    return Denied(left=window.left)


def _open_pool(window: WindowState, ask: Ask) -> Pooled:
    window.generation_n += 1
    generation = Generation(number=(window.timeline << GENERATION_BITS) + window.generation_n, opened_now=True)
    if window.generation is not None:
        window.ended.append(window.generation)
    window.generation = generation
    window.changed = True
    _extend(window, generation, ask)
    return _pooled(window, generation)


def _extend(window: WindowState, generation: Generation, ask: Ask) -> None:
    units = min(window.left, max(pool_share(window.amount, generation.allotted_cum), ask.need))
    window.take(units)
    generation.allotted_cum += units
    generation.changed = generation.publish = True


def _pooled(window: WindowState, generation: Generation) -> Pooled:
    return Pooled(generation=generation.number, allotted_cum=generation.allotted_cum, final=window.final)


def return_lease(window: WindowState, holder: Holder, *, returned_cum: int) -> int:
    """Take back units that the ledger leased to this holder; gives how many came back by this report.

    Cumulative: a repeat or an older report changes nothing. Never more than was granted, nor what stands for records.
    Of a level they may come before the rise of those that are out: the rise owes them.
    """
    returned = min(returned_cum, holder.granted_cum) - holder.returned_cum
    if returned <= 0:
        return 0
    before = standing.held(holder)
    holder.returned_cum += returned
    holder.changed = True
    units = before - standing.held(holder)
    standing.put_back(window, units)
    return units


def return_pooled(window: WindowState, generation: Generation, *, before_cum: int, returned_cum: int) -> int:
    """Take back units of a generation, of which this holder had reported `before_cum` here; gives how many came back.

    Capped by what went into the generation less what already came back. A pool that lives on goes on counting them as
    granted, so its rest, once it is closed, is what else it had: no unit comes back twice.
    """
    returned = min(returned_cum - before_cum, generation.allotted_cum - generation.credited)
    if returned <= 0:
        return 0
    generation.credited += returned
    generation.changed = True
    window.put_back(returned)
    return returned


def notice_due(window: WindowState) -> bool:
    """Give whether whoever was denied is to ask again, and forget it.

    Units are there now, or the pool whose refusals they go by is lost.
    """
    is_there = 0 < window.wanted <= window.left
    is_due = is_there or window.pool_lost
    window.pool_lost = False
    if is_there:
        window.wanted = 0
        window.changed = True
    return is_due
