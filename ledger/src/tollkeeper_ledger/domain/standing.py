"""Decide about levels and units in flight. Pure: the rows are locked, read and written by the caller.

Both live in one window without end per identity, leased by the ledger only, never by a pool.

- A level: `allotted` less `owed` = what is stored within the limit + what holders have leased and not yet recorded as
  a rise. A record moves units from the one to the other; a fall takes them out of both, once, because its record is
  stored once. `owed` is above 0 only while a rise that was settled above its reserve is on its way, and its fall came
  first.
- In flight: a lease is renewed, or reclaimed by whoever has seen it unrenewed for 40 s of their own time. Holders fence
  themselves 30 s after their last renewal was sent, so nobody uses what was reclaimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.window_state import Holder
from tollkeeper_ledger.domain.windows import Span, end_day_of

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.window_state import WindowState

STANDING = Span(0, (datetime(9999, 12, 31, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
"""The window of every level and of all units in flight."""

STANDING_DAY = end_day_of(STANDING.end_us)

LEASE_MS = 30_000
"""Units in flight may be used for so long after their renewal was sent."""

RECLAIM_S = 40
"""A lease of units in flight is reclaimed when it stood still for so long."""

AHEAD_SHARE = 16
"""A lease has at most this part of what is left beyond what is needed now: small limits strand nothing ahead."""


@dataclass(frozen=True, slots=True)
class Rise:
    """Units that a record adds to a level; `over` of them were admitted beyond the limit, without a lease."""

    units: int
    over: int


def held(holder: Holder) -> int:
    """Give the units that a holder keeps out of a limit: leased and not returned, or recorded, whichever is more.

    It recorded more where something was settled above its reserve; the leases that it then pays with are no more units.
    """
    return max(holder.granted_cum - holder.returned_cum, holder.recorded)


def give(window: WindowState, holder: Holder, *, need: int, want: int) -> int | None:
    """Lease units to a holder; gives how many, None where there are too few for the need."""
    before = held(holder)
    left = window.left + before - (holder.granted_cum - holder.returned_cum)
    if left < max(1, need):
        return None
    units = min(left, max(need, min(want, window.left // AHEAD_SHARE)))
    holder.granted_cum += units
    window.take(held(holder) - before)
    return units


def begin_lease(holder: Holder) -> None:
    """Count a grant of units in flight as a renewal, and begin the holder's first lease."""
    holder.lease_epoch = max(1, holder.lease_epoch)


def inherit_flights(window: WindowState, *, heir: bytes) -> None:
    """Put what is out of a window that takes another's place under a lease that nobody renews.

    Those who hold it know the other window only: what they have in flight is reclaimed with this lease.
    """
    if window.allotted:
        window.holders[heir] = Holder(granted_cum=window.allotted, lease_epoch=1, changed=True)


def rise(window: WindowState, holder: Holder | None, change: Rise) -> None:
    """Take in a recorded rise. The units leave the holder's lease; those of a lease that came back are taken anew.

    So are those that were settled above their reserve, and those of leases that a Postgres that was set back does not
    know. That may pass the amount: they are stored in the world, so the ceiling follows.
    """
    leased = change.units - change.over
    window.stored += change.units
    window.stored_over += change.over
    window.changed = True
    if holder is None or holder.ended:
        _take_anew(window, leased)
        return
    before = held(holder)
    holder.recorded += leased
    holder.changed = True
    _take_anew(window, held(holder) - before)


def _take_anew(window: WindowState, units: int) -> None:
    paid = min(window.owed, units)
    window.owed -= paid
    window.allotted += units - paid
    window.ceiling = max(window.ceiling, window.allotted)


def put_back(window: WindowState, units: int) -> None:
    """Move units back into the limit; what would leave less than nothing out of it is owed by rises to come."""
    ahead = max(0, units - window.allotted)
    window.owed += ahead
    window.put_back(units - ahead)


def may_fall(window: WindowState, units: int) -> bool:
    """Whether a level may fall by so much.

    Its rise may be on its way in another sidecar's log, so what is leased counts as well as what is stored.
    """
    return units <= window.allotted - window.owed + window.stored_over


def fall(window: WindowState, units: int) -> None:
    """Take in a recorded fall: units beyond the limit go first, the others come back to the limit."""
    over = min(units, window.stored_over)
    window.stored -= units
    window.stored_over -= over
    window.changed = True
    window.put_back(units - over)


def leased(window: WindowState) -> int:
    """Give the units of a level that holders have leased and neither recorded nor returned."""
    return window.allotted - window.owed - (window.stored - window.stored_over)


def set_level(window: WindowState, units: int) -> None:
    """Set what is stored. What is leased stays leased, so the level may rise to `units` plus that."""
    window.allotted = max(0, units + leased(window))
    window.stored, window.stored_over, window.owed = units, 0, 0
    window.ceiling = max(window.amount, window.allotted)
    window.changed = True


def take_back(window: WindowState, holder: Holder) -> int:
    """Take back what an ended process had leased of a level and never recorded, once; gives how many units."""
    if holder.ended:
        return 0
    holder.ended = holder.changed = True
    units = held(holder) - holder.recorded
    if units > 0:
        holder.returned_cum += units
        put_back(window, units)
    return units
