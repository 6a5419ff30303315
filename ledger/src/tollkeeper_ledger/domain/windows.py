"""Compute calendar windows in any time zone, daylight saving included.

A window is [start, end) in UTC. Minutes and hours are spans of elapsed time counted from the anchor's instant; days,
weeks, months and years are spans of local calendar time counted from the anchor's date, so that a day has 23 or 25
hours where the zone changes its offset. Without an anchor they are counted from Monday 1970-01-05, 00:00 local, months
and years from 1970-01-01.

A local time that does not exist (clocks go forward) means the instant at which the gap ends; one that exists twice
means the first. Months begin on the anchor's day of month or, in shorter months, on their last day.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from zoneinfo import ZoneInfo

ANCHOR_DEFAULT = date(1970, 1, 5)
_MONTH_ANCHOR_DEFAULT = date(1970, 1, 1)
COUNT_MAX = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DAY_US = 86_400_000_000


class WindowUnit(Enum):
    """Unit of a window's length."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    BILLING_PERIOD = "billing_period"


class Alignment(Enum):
    """Where windows begin."""

    CALENDAR = "calendar"
    ROLLING = "rolling"


_ELAPSED_US = {WindowUnit.MINUTE: 60_000_000, WindowUnit.HOUR: 3_600_000_000}


@dataclass(frozen=True, slots=True)
class WindowRule:
    """A window's length and place: `count` units in `time_zone` (IANA name) from `anchor`."""

    unit: WindowUnit
    count: int = 1
    time_zone: str = "UTC"
    alignment: Alignment = Alignment.CALENDAR
    anchor: date | None = None
    """The local day that windows are counted from; None = the calendar's own."""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open span of ledger time in microseconds."""

    start_us: int
    end_us: int

    def holds(self, at_us: int) -> bool:
        """Whether `at_us` lies in it."""
        return self.start_us <= at_us < self.end_us


def end_day_of(end_us: int) -> int:
    """Give the day number (days since 1970-01-01, UTC) in which a window that ends at `end_us` has its last instant."""
    return (end_us - 1) // _DAY_US


def local_start(day: date, zone: ZoneInfo) -> datetime:
    """Give the UTC instant at which a local calendar day begins, also where midnight is skipped or happens twice."""
    naive = datetime.combine(day, time())
    first = naive.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == naive:
        return first
    # Midnight falls into a gap: fold 0 reads it with the offset before the gap, which lands after it.
    before, after = naive.replace(tzinfo=zone, fold=0).utcoffset(), naive.replace(tzinfo=zone, fold=1).utcoffset()
    if before is None or after is None:
        raise ValueError(f"{zone.key} has no offset on {day}")
    # The gap ends where the new offset begins to hold.
    return _gap_end(naive, zone, after - before)


def _gap_end(naive: datetime, zone: ZoneInfo, width: timedelta) -> datetime:
    low = (naive - abs(width)).replace(tzinfo=zone).astimezone(UTC)
    high = (naive + abs(width)).replace(tzinfo=zone).astimezone(UTC)
    offset_low = low.astimezone(zone).utcoffset()
    while high - low > _MICROSECOND:
        middle = low + (high - low) // 2
        if middle.astimezone(zone).utcoffset() == offset_low:
            low = middle
        else:
            high = middle
    return high


def add_months(anchor: date, months: int) -> date:
    """Give the day `months` after the anchor: its day of month, or the last one of a shorter month."""
    index = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(index, 12)
    return date(year, month + 1, min(anchor.day, monthrange(year, month + 1)[1]))


def window_at(rule: WindowRule, at_us: int) -> Span:
    """Give the calendar window that holds `at_us`.

    Raises ValueError for billing periods (the subscription knows them), for rolling windows (use `rolling_at`), and for
    a count out of 1 to 10,000.
    """
    if not 1 <= rule.count <= COUNT_MAX:
        raise ValueError(f"window count {rule.count} is not in 1..{COUNT_MAX}")
    if rule.alignment is Alignment.ROLLING:
        raise ValueError("a rolling window begins at first use")
    if rule.unit is WindowUnit.BILLING_PERIOD:
        raise ValueError("a billing period is the subscription's")
    zone = ZoneInfo(rule.time_zone)
    if rule.unit in _ELAPSED_US:
        return _elapsed_window(rule, zone, at_us)
    return _calendar_window(rule, zone, at_us)


def _elapsed_window(rule: WindowRule, zone: ZoneInfo, at_us: int) -> Span:
    length_us = rule.count * _ELAPSED_US[rule.unit]
    anchor_us = (local_start(_anchor(rule), zone) - _EPOCH) // _MICROSECOND
    start_us = anchor_us + (at_us - anchor_us) // length_us * length_us
    return Span(start_us, start_us + length_us)


def _calendar_window(rule: WindowRule, zone: ZoneInfo, at_us: int) -> Span:
    at = _EPOCH + timedelta(microseconds=at_us)
    index = _index_guess(rule, at.astimezone(zone).date())
    # The guess goes by local dates: an anchor late in the month, a skipped midnight or a short month move it by one.
    while _start_us(rule, zone, index) > at_us:
        index -= 1
    while _start_us(rule, zone, index + 1) <= at_us:
        index += 1
    return Span(_start_us(rule, zone, index), _start_us(rule, zone, index + 1))


def _index_guess(rule: WindowRule, day: date) -> int:
    anchor = _anchor(rule)
    if rule.unit in (WindowUnit.DAY, WindowUnit.WEEK):
        return (day - anchor).days // _days(rule)
    return ((day.year - anchor.year) * 12 + day.month - anchor.month) // _months(rule)


def _start_us(rule: WindowRule, zone: ZoneInfo, index: int) -> int:
    if rule.unit in (WindowUnit.DAY, WindowUnit.WEEK):
        day = _anchor(rule) + timedelta(days=index * _days(rule))
    else:
        day = add_months(_anchor(rule), index * _months(rule))
    return (local_start(day, zone) - _EPOCH) // _MICROSECOND


def _anchor(rule: WindowRule) -> date:
    if rule.anchor is not None:
        return rule.anchor
    return _MONTH_ANCHOR_DEFAULT if rule.unit in (WindowUnit.MONTH, WindowUnit.YEAR) else ANCHOR_DEFAULT


def _days(rule: WindowRule) -> int:
    return rule.count * (7 if rule.unit is WindowUnit.WEEK else 1)


def _months(rule: WindowRule) -> int:
    return rule.count * (12 if rule.unit is WindowUnit.YEAR else 1)


def rolling_at(rule: WindowRule, at_us: int) -> Span:
    """Give the rolling window that begins with its first use at `at_us`: as long as a calendar one from there."""
    if rule.unit in _ELAPSED_US:
        return Span(at_us, at_us + rule.count * _ELAPSED_US[rule.unit])
    zone = ZoneInfo(rule.time_zone)
    local = (_EPOCH + timedelta(microseconds=at_us)).astimezone(zone).replace(tzinfo=None)
    if rule.unit in (WindowUnit.DAY, WindowUnit.WEEK):
        day = local.date() + timedelta(days=_days(rule))
    elif rule.unit in (WindowUnit.MONTH, WindowUnit.YEAR):
        day = add_months(local.date(), _months(rule))
    else:
        raise ValueError("a billing period is the subscription's")
    end = datetime.combine(day, local.time()).replace(tzinfo=zone).astimezone(UTC)
    return Span(at_us, (end - _EPOCH) // _MICROSECOND)
