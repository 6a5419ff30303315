"""Read and add billing segments."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tollkeeper_ledger.domain.periods import Interval, IntervalUnit, Schedule
from tollkeeper_ledger.domain.phases import Phase, SubscriptionSchedule
from tollkeeper_ledger.store.literals import array_literal
from tollkeeper_ledger.store.queries import sql

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from tollkeeper_ledger.store.pool import Connection

_SCHEDULES_KEPT = 4_096
"""Schedules that are kept: subscriptions that began together have the same."""


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """Name a segment by what makes it one of a kind."""

    tenant_id: UUID
    subscription_id: UUID | None
    plan_version_id: UUID | None
    period_start: datetime
    late_for: UUID | None


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A segment as it is stored."""

    tenant_id: UUID
    segment_id: UUID
    period_start: datetime
    period_end: datetime
    late_for: UUID | None
    closed: bool
    billed: bool
    """Belongs to a subscription."""


@dataclass(frozen=True, slots=True)
class NewSegment:
    """A segment to add."""

    key: SegmentKey
    segment_id: UUID
    period_end: datetime
    closed_at: datetime | None


async def read_schedules(conn: Connection, tenant_ids: Sequence[UUID]) -> list[SubscriptionSchedule]:
    """Read the subscriptions of these tenants, ended ones as well, in order of their start."""
    rows = await conn.fetch(sql("segments.schedules"), list(tenant_ids))
    phases: dict[UUID, list[Phase]] = {}
    for row in rows:
        phase = Phase(
            starts_at=row["starts_at"],
            plan_version_id=row["plan_version_id"],
            state=row["state"],
            quantity=row["quantity"],
        )
        phases.setdefault(row["subscription_id"], []).append(phase)
    firsts = {row["subscription_id"]: row for row in reversed(rows)}
    eras: dict[UUID, list[Schedule]] = {}
    for row in rows:
        if row["anchor"] is not None:
            eras.setdefault(row["subscription_id"], []).append(schedule_from(row, started_at=row["starts_at"]))
    return [
        _schedule(firsts[subscription_id], tuple(eras[subscription_id]), tuple(of_it))
        for subscription_id, of_it in phases.items()
    ]


def schedule_from(row: asyncpg.Record | Mapping[str, Any], *, started_at: datetime) -> Schedule:
    """Give what periods are counted by from a time on."""
    return _schedule_of(row["anchor"], row["time_zone"], row["interval_unit"], row["interval_count"], started_at)


@lru_cache(maxsize=_SCHEDULES_KEPT)
def _schedule_of(anchor: datetime, time_zone: str, unit: str, count: int, started_at: datetime) -> Schedule:
    interval = Interval(unit=IntervalUnit(unit), count=count)
    return Schedule(anchor=anchor, time_zone=time_zone, interval=interval, started_at=started_at)


def _schedule(row: asyncpg.Record, eras: tuple[Schedule, ...], phases: tuple[Phase, ...]) -> SubscriptionSchedule:
    cancelled = next((phase.starts_at for phase in phases if phase.state == "cancelled"), None)
    return SubscriptionSchedule(
        tenant_id=row["tenant_id"],
        subscription_id=row["subscription_id"],
        eras=eras,
        ended_at=row["ended_at"] or cancelled,
        billed_until=row["billed_until"],
        phases=phases,
        has_late=row["has_late"],
    )


async def segments_between(
    conn: Connection, tenant_ids: Sequence[UUID], *, first: datetime, last: datetime
) -> list[StoredSegment]:
    """Read billed segments, no late ones, of periods that overlap `first` to `last`, both inclusive."""
    rows = await conn.fetch(sql("segments.segments_between"), array_literal(tenant_ids), first, last)
    return [
        StoredSegment(
            tenant_id=row["tenant_id"],
            segment_id=row["segment_id"],
            period_start=row["period_start"],
            period_end=row["period_end"],
            late_for=None,
            closed=row["state"] == "closed",
            billed=True,
        )
        for row in rows
    ]


async def segments_of_span(
    conn: Connection, tenant_ids: Sequence[UUID], *, first: datetime, last: datetime
) -> dict[UUID, UUID]:
    """Give the segments of those tenants for which one, billed and open, is all that overlaps a span and holds it."""
    rows = await conn.fetch(sql("segments.segments_of_span"), array_literal(tenant_ids), first, last)
    found = {tenant_id: segment_id for tenant_id, segment_id, _ in rows}
    if len(found) == len(rows) and all(holds for _, _, holds in rows):
        return found
    counts = Counter(tenant_id for tenant_id, _, _ in rows)
    return {tenant_id: segment_id for tenant_id, segment_id, holds in rows if holds and counts[tenant_id] == 1}


async def put_segments(conn: Connection, segments: Sequence[NewSegment]) -> None:
    """Add the segments that are not there."""
    keys = [segment.key for segment in segments]
    await conn.execute(
        sql("segments.add_segments"),
        [key.tenant_id for key in keys],
        [segment.segment_id for segment in segments],
        [key.subscription_id for key in keys],
        [key.plan_version_id for key in keys],
        [key.period_start for key in keys],
        [segment.period_end for segment in segments],
        [key.late_for for key in keys],
        [segment.closed_at for segment in segments],
    )


async def add_segments(conn: Connection, segments: Sequence[NewSegment]) -> list[StoredSegment]:
    """Add the segments that are not there and give all of them as stored, in the order given."""
    await put_segments(conn, segments)
    keys = [segment.key for segment in segments]
    # A second statement, so that a segment which another append has just committed is seen.
    rows = await conn.fetch(
        sql("segments.find_segments"),
        [key.tenant_id for key in keys],
        [key.subscription_id for key in keys],
        [key.plan_version_id for key in keys],
        [key.period_start for key in keys],
        [key.late_for for key in keys],
    )
    return [
        StoredSegment(
            tenant_id=row["tenant_id"],
            segment_id=row["segment_id"],
            period_start=row["period_start"],
            period_end=row["period_end"],
            late_for=row["late_for"],
            closed=row["state"] == "closed",
            billed=row["subscription_id"] is not None,
        )
        for row in rows
    ]


async def cut_segments(conn: Connection, tenant_id: UUID, subscription_id: UUID, *, at: datetime) -> None:
    """End what is open at an instant there: the subscription changes. The transaction has the tenant alone."""
    await conn.execute(sql("segments.cut_segments"), tenant_id, subscription_id, at)


async def join_segments(
    conn: Connection, tenant_id: UUID, subscription_id: UUID, *, at: datetime, end: datetime
) -> None:
    """Let what is open and ends at an instant go on: nothing changes there any more. The tenant is locked."""
    await conn.execute(sql("segments.join_segments"), tenant_id, subscription_id, at, end)


async def has_segments_from(conn: Connection, tenant_id: UUID, subscription_id: UUID, instant: datetime) -> bool:
    """Say whether usage from an instant on is stamped already."""
    has: bool = await conn.fetchval(sql("segments.has_segments_from"), tenant_id, subscription_id, instant)
    return has
