"""Billing periods: spans of local calendar time, computed once and kept as UTC instants.

Boundary k of a subscription is its anchor plus k intervals, counted on the wall clock of its time zone. Months and
years are always counted from the anchor's own day, so 31 January gives 28 February and then 31 March. Hours are elapsed
time. A wall clock time that a zone skips becomes the same distance after the gap; one that it has twice is the first.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# 1970-01-01 was a Thursday; the Monday of its week is where calendar weeks are counted from.
_FIRST_MONDAY = datetime(1970, 1, 5)  # noqa: DTZ001 - wall clock time on purpose

_INSTANTS_KEPT = 4_096
"""Boundaries that are kept: most subscriptions of a run have the same."""
PERIODS_MAX = 200_000
"""Bound of every walk over periods: more than two decades of hours."""


class IntervalUnit(StrEnum):
    """Name the unit of a billing interval."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


@dataclass(frozen=True, slots=True)
class Interval:
    """Say how long a period is: so many units."""

    unit: IntervalUnit
    count: int


@dataclass(frozen=True, slots=True)
class Period:
    """Span billing time from `start` up to, not including, `end`; both UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Schedule:
    """Fix a subscription's periods: they depend on nothing else."""

    anchor: datetime
    """Wall clock time in the zone, without tzinfo."""
    time_zone: str
    interval: Interval
    started_at: datetime
    """UTC. The first period begins here, even between two boundaries."""


def to_us(instant: datetime) -> int:
    """Give microseconds since the Unix epoch of an aware instant, exactly."""
    return (instant - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """Give the UTC instant of microseconds since the Unix epoch. Raises OverflowError beyond the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=us)


def calendar_anchor(instant: datetime, *, unit: IntervalUnit, time_zone: str) -> datetime:
    """Give the latest calendar boundary of `unit` at or before `instant`, as wall clock time of the zone."""
    local = instant.astimezone(ZoneInfo(time_zone)).replace(tzinfo=None)
    hour = local.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    match unit:
        case IntervalUnit.HOUR:
            return hour
        case IntervalUnit.DAY:
            return day
        case IntervalUnit.WEEK:
            return day - timedelta(days=(day - _FIRST_MONDAY).days % 7)
        case IntervalUnit.MONTH:
            return day.replace(day=1)
        case IntervalUnit.YEAR:
            return day.replace(month=1, day=1)


def boundary(schedule: Schedule, k: int) -> datetime:
    """Give boundary `k` in UTC; boundary 0 is the anchor. Raises OverflowError or ValueError beyond years 1 to 9999."""
    step = k * schedule.interval.count
    match schedule.interval.unit:
        case IntervalUnit.HOUR:
            return _to_utc(schedule.anchor, schedule.time_zone) + timedelta(hours=step)
        case IntervalUnit.DAY:
            return _to_utc(schedule.anchor + timedelta(days=step), schedule.time_zone)
        case IntervalUnit.WEEK:
            return _to_utc(schedule.anchor + timedelta(weeks=step), schedule.time_zone)
        case IntervalUnit.MONTH:
            return _to_utc(_add_months(schedule.anchor, step), schedule.time_zone)
        case IntervalUnit.YEAR:
            return _to_utc(_add_months(schedule.anchor, 12 * step), schedule.time_zone)


def period_at(schedule: Schedule, instant: datetime) -> Period | None:
    """Give the period that holds `instant`, or None where that is before the subscription's start."""
    if instant < schedule.started_at:
        return None
    return _begun(schedule, boundary_period(schedule, instant))


def _begun(schedule: Schedule, whole: Period) -> Period:
    """Give what of a whole period the subscription has."""
    return whole if whole.start >= schedule.started_at else Period(start=schedule.started_at, end=whole.end)


@lru_cache(maxsize=_INSTANTS_KEPT)
def boundary_period(schedule: Schedule, instant: datetime) -> Period:
    """Give the whole period, boundary to boundary, that holds `instant`, whenever the subscription began."""
    k = _index_at(schedule, instant)
    return Period(start=boundary(schedule, k), end=boundary(schedule, k + 1))


def periods_from(schedule: Schedule, instant: datetime) -> Iterator[Period]:
    """Give the period that holds `instant` (at the earliest the first) and all that follow, at most PERIODS_MAX."""
    whole = boundary_period(schedule, max(instant, schedule.started_at))
    yield _begun(schedule, whole)
    # Most who ask for a second one look no further; it is kept as the first one is.
    following = boundary_period(schedule, whole.end)
    yield following
    start, k = following.end, _index_at(schedule, following.end)
    for step in range(PERIODS_MAX - 2):
        end = boundary(schedule, k + step + 1)
        # A zone that skips a whole day (Samoa, 30 December 2011) makes two boundaries equal; nothing lies between.
        if end > start:
            yield Period(start=start, end=end)
        start = end


def same_date_from(instant: datetime, zone: str, other: str) -> datetime:
    """Give the first instant from then on at which two zones have the same date: a midnight of the one behind.

    Raises ValueError where they never have: they lie a day or more apart.
    """
    zones = ZoneInfo(zone), ZoneInfo(other)
    dates = [instant.astimezone(one).date() for one in zones]
    if dates[0] == dates[1]:
        return instant
    behind = zones[dates.index(min(dates))]
    midnight = datetime.combine(min(dates) + timedelta(days=1), time(), tzinfo=behind).astimezone(UTC)
    if midnight.astimezone(zones[0]).date() != midnight.astimezone(zones[1]).date():
        raise ValueError(f"{zone} and {other} never have the same date")
    return midnight


def _index_at(schedule: Schedule, instant: datetime) -> int:
    """Find k with boundary(k) <= instant < boundary(k + 1)."""
    k = _estimate(schedule, instant)
    # The estimate is off by at most one interval where a clock change or a short month lies between.
    while boundary(schedule, k) > instant:
        k -= 1
    while boundary(schedule, k + 1) <= instant:
        k += 1
    return k


def _estimate(schedule: Schedule, instant: datetime) -> int:
    local = instant.astimezone(ZoneInfo(schedule.time_zone)).replace(tzinfo=None)
    count = schedule.interval.count
    match schedule.interval.unit:
        case IntervalUnit.HOUR:
            return (instant - _to_utc(schedule.anchor, schedule.time_zone)) // timedelta(hours=count)
        case IntervalUnit.DAY:
            return (local - schedule.anchor) // timedelta(days=count)
        case IntervalUnit.WEEK:
            return (local - schedule.anchor) // timedelta(weeks=count)
        case IntervalUnit.MONTH:
            return _months_between(schedule.anchor, local) // count
        case IntervalUnit.YEAR:
            return _months_between(schedule.anchor, local) // (12 * count)


@lru_cache(maxsize=_INSTANTS_KEPT)
def _to_utc(local: datetime, time_zone: str) -> datetime:
    return local.replace(tzinfo=ZoneInfo(time_zone), fold=0).astimezone(UTC)


def _months_between(first: datetime, second: datetime) -> int:
    return (second.year - first.year) * 12 + second.month - first.month


def _add_months(local: datetime, months: int) -> datetime:
    year, month0 = divmod(local.year * 12 + local.month - 1 + months, 12)
    day = min(local.day, monthrange(year, month0 + 1)[1])
    return local.replace(year=year, month=month0 + 1, day=day)
