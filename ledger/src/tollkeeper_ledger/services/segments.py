"""Stamp usage with its billing segment: (subscription, plan version, period of the event time).

Usage of a period that is closed goes to a segment of the earliest open period, whose `late_for` names the closed
segment; the next invoice shows it as an adjustment. Usage outside every subscription goes to a segment that nobody
bills, so nothing is dropped.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right, insort
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

from tollkeeper_ledger.domain.periods import (
    Interval,
    IntervalUnit,
    Period,
    Schedule,
    from_us,
    period_at,
    to_us,
)
from tollkeeper_ledger.store.billing_segments import (
    NewSegment,
    SegmentKey,
    StoredSegment,
    add_segments,
    read_schedules,
    segments_between,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from tollkeeper_ledger.domain.phases import SubscriptionSchedule
    from tollkeeper_ledger.store.pool import Connection

_MONTH = Interval(unit=IntervalUnit.MONTH, count=1)


@dataclass(frozen=True, slots=True)
class Segment:
    """Name the segment that a record belongs to."""

    segment_id: UUID
    period_start_us: int
    """Period of the segment, by which it is billed: later than the event where `late_for` is set."""
    period_end_us: int
    late_for: UUID | None
    """The closed segment of the event's own period."""


async def ensure_segments(
    conn: Connection, used: Sequence[tuple[UUID, int]], *, new_id: Callable[[], UUID] = uuid.uuid4
) -> list[Segment]:
    """Give the segment of each (tenant id, event time in microseconds), in the order given; add what is missing.

    The transaction must hold the tenants' locks shared (`store.tenant_locks.share_tenants`), so that no period closes
    under it. One query where every period is known and open, at most five whatever the number of records.
    """
    if not used:
        return []
    tenants = sorted({tenant_id for tenant_id, _ in used})
    times = [at for _, at in used]
    known = _Known(await segments_between(conn, tenants, first=from_us(min(times)), last=from_us(max(times))))
    bases = [known.find(*pair) for pair in used]
    if any(base is None or base.closed for base in bases):
        await _add_missing(conn, known, used, bases, new_id)
        bases = [known.find(*pair) for pair in used]
    shown: dict[UUID, Segment] = {}
    found = []
    for base, pair in zip(bases, used, strict=True):
        if base is None:
            raise RuntimeError(f"no segment of tenant {pair[0]} holds {pair[1]}")
        if base.segment_id not in shown:
            shown[base.segment_id] = known.segment(base)
        found.append(shown[base.segment_id])
    return found


async def _add_missing(
    conn: Connection,
    known: _Known,
    used: Sequence[tuple[UUID, int]],
    bases: Sequence[StoredSegment | None],
    new_id: Callable[[], UUID],
) -> None:
    """Add the segments of periods that have none yet, and late segments for those that are closed."""
    missing = sorted({pair for pair, base in zip(used, bases, strict=True) if base is None})
    late = {base.tenant_id for base in bases if base is not None and base.closed}
    schedules: dict[UUID, list[SubscriptionSchedule]] = {}
    for schedule in await read_schedules(conn, sorted({tenant_id for tenant_id, _ in missing} | late)):
        schedules.setdefault(schedule.tenant_id, []).append(schedule)
    if missing:
        known.add(await add_segments(conn, _new_bases(missing, schedules, new_id)))
    found = (known.find(*pair) for pair in used)
    closed = {base.segment_id: base for base in found if base is not None and base.closed}
    if closed:
        await _add_late(conn, known, list(closed.values()), schedules, new_id)


async def ensure_segment(conn: Connection, tenant_id: UUID, event_time_us: int) -> Segment:
    """Give the segment of one record; see `ensure_segments`."""
    return (await ensure_segments(conn, [(tenant_id, event_time_us)]))[0]


_Span: TypeAlias = tuple[int, int, StoredSegment]


class _Known:
    """Find segments by tenant and time."""

    def __init__(self, stored: Sequence[StoredSegment]) -> None:
        self._billed: dict[UUID, list[_Span]] = {}
        self._unbilled: dict[UUID, list[_Span]] = {}
        self._late: dict[UUID, StoredSegment] = {}
        self.add(stored)

    def add(self, stored: Sequence[StoredSegment]) -> None:
        for segment in stored:
            if segment.late_for is not None:
                self._late[segment.late_for] = segment
            else:
                spans = (self._billed if segment.billed else self._unbilled).setdefault(segment.tenant_id, [])
                insort(spans, (to_us(segment.period_start), to_us(segment.period_end), segment), key=itemgetter(0))

    def find(self, tenant_id: UUID, at_us: int) -> StoredSegment | None:
        # Billed first: an unbilled month may have been opened before its tenant subscribed in the middle of it.
        for spans in (self._billed.get(tenant_id, ()), self._unbilled.get(tenant_id, ())):
            place = bisect_right(spans, at_us, key=itemgetter(0)) - 1
            if place >= 0 and at_us < spans[place][1]:
                return spans[place][2]
        return None

    def segment(self, base: StoredSegment) -> Segment:
        stored = self._late[base.segment_id] if base.closed else base
        return Segment(
            segment_id=stored.segment_id,
            period_start_us=to_us(stored.period_start),
            period_end_us=to_us(stored.period_end),
            late_for=stored.late_for,
        )


def _new_bases(
    missing: Sequence[tuple[UUID, int]],
    schedules: dict[UUID, list[SubscriptionSchedule]],
    new_id: Callable[[], UUID],
) -> list[NewSegment]:
    wanted: dict[SegmentKey, NewSegment] = {}
    last: tuple[UUID, int, int] | None = None  # (tenant, start, end) of the period found last: `missing` is sorted
    for tenant_id, at_us in missing:
        if last is not None and last[0] == tenant_id and last[1] <= at_us < last[2]:
            continue
        segment = _base(tenant_id, at_us, schedules.get(tenant_id, []), new_id)
        wanted.setdefault(segment.key, segment)
        last = (tenant_id, to_us(segment.key.period_start), to_us(segment.period_end))
    return list(wanted.values())


def _base(
    tenant_id: UUID, at_us: int, schedules: Sequence[SubscriptionSchedule], new_id: Callable[[], UUID]
) -> NewSegment:
    at = from_us(at_us)
    for subscription in reversed(schedules):
        period = subscription.stretch_at(at)
        if period is None:
            continue
        key = SegmentKey(
            tenant_id=tenant_id,
            subscription_id=subscription.subscription_id,
            plan_version_id=subscription.plan_version_at(period.start),
            period_start=period.start,
            late_for=None,
        )
        # A period that was closed before anything was used in it: what comes now is late.
        closed_at = subscription.billed_until if period.end <= subscription.billed_until else None
        return NewSegment(key=key, segment_id=new_id(), period_end=period.end, closed_at=closed_at)
    month = _unbilled_month(at_us, schedules)
    key = SegmentKey(
        tenant_id=tenant_id, subscription_id=None, plan_version_id=None, period_start=month.start, late_for=None
    )
    return NewSegment(key=key, segment_id=new_id(), period_end=month.end, closed_at=None)


def _unbilled_month(at_us: int, schedules: Sequence[SubscriptionSchedule]) -> Period:
    """Give the month of UTC around a time outside every subscription, cut where subscriptions begin and end."""
    at = from_us(at_us)
    first = from_us(0).replace(tzinfo=None)
    month = period_at(Schedule(anchor=first, time_zone="UTC", interval=_MONTH, started_at=from_us(0)), at) or Period(
        start=from_us(at_us), end=from_us(0)
    )
    edges = [edge for s in schedules for edge in (s.started_at, s.ended_at) if edge is not None]
    return Period(
        start=max([month.start, *(edge for edge in edges if edge <= at)]),
        end=min([month.end, *(edge for edge in edges if edge > at)]),
    )


async def _add_late(
    conn: Connection,
    known: _Known,
    bases: Sequence[StoredSegment],
    schedules: dict[UUID, list[SubscriptionSchedule]],
    new_id: Callable[[], UUID],
) -> None:
    """Add the late segments of closed ones, in the earliest open period of their subscription."""
    wanted = []
    for base in bases:
        subscription = _subscription_of(base, schedules[base.tenant_id])
        period = subscription.late_period()
        key = SegmentKey(
            tenant_id=base.tenant_id,
            subscription_id=subscription.subscription_id,
            plan_version_id=subscription.plan_version_at(period.start),
            period_start=period.start,
            late_for=base.segment_id,
        )
        wanted.append(NewSegment(key=key, segment_id=new_id(), period_end=period.end, closed_at=None))
    wanted.sort(key=lambda segment: (segment.key.tenant_id, segment.key.period_start))
    known.add(await add_segments(conn, wanted))


def _subscription_of(base: StoredSegment, schedules: Sequence[SubscriptionSchedule]) -> SubscriptionSchedule:
    for subscription in reversed(schedules):
        if subscription.started_at <= base.period_start:
            return subscription
    raise RuntimeError(f"closed segment {base.segment_id} lies before every subscription of its tenant")
