"""Buckets of a usage query: how long, and where they begin in a time zone. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit, Schedule, boundary, calendar_anchor, from_us

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKETS_MAX = 50_000
"""Buckets of one answer."""

_ZONE_CHARS_MAX = 64


class BucketSize(StrEnum):
    """Say how long a bucket is."""

    WHOLE = "whole"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_QUARTER = timedelta(minutes=15)


def check_time_zone(name: str) -> str:
    """Give the zone's name. Raises InvalidFieldError for what is no IANA zone."""
    try:
        plain = len(name) <= _ZONE_CHARS_MAX and name.isascii() and name.isprintable()
        return ZoneInfo(name if plain else "").key
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise InvalidFieldError(
            "time_zone",
            "is not an IANA time zone",
            value=ascii(name[:_ZONE_CHARS_MAX]),
            remedy="name one such as Europe/Berlin; empty means the tenant's own",
        ) from error


def edges(first: datetime, last: datetime, *, size: BucketSize, time_zone: str) -> list[datetime]:
    """Give the starts of the buckets that hold `first` to `last`, both included, as UTC instants.

    A day is 23 or 25 hours long where the zone changes its clock. `first` is a whole minute. Raises InvalidFieldError
    beyond BUCKETS_MAX.
    """
    if size is BucketSize.WHOLE:
        return [first]
    if size is BucketSize.MINUTE:
        if last - first >= timedelta(minutes=BUCKETS_MAX):
            raise too_many()
        return [first + timedelta(minutes=at) for at in range((last - first) // timedelta(minutes=1) + 1)]
    if size is BucketSize.HOUR:
        return _hours(first, last, time_zone)
    found: list[datetime] = []
    for edge in _edges_from(first, size=size, time_zone=time_zone):
        if edge > last:
            return found
        if len(found) == BUCKETS_MAX:
            raise too_many()
        found.append(edge)
    return found


def too_many() -> InvalidFieldError:
    """Give the error for a question whose answer has too many buckets."""
    return InvalidFieldError(
        "bucket",
        "gives too many buckets",
        reason="FIELD_OUT_OF_RANGE",
        bound=f"{BUCKETS_MAX} buckets",
        remedy="ask for a shorter span, fewer meters or longer buckets",
    )


def _hours(first: datetime, last: datetime, time_zone: str) -> list[datetime]:
    """Give the starts of the zone's hours: not those of UTC where its offset is no whole number of them."""
    if last - first >= timedelta(hours=BUCKETS_MAX):
        raise too_many()
    zone = ZoneInfo(time_zone)
    found: list[datetime] = []
    at = first.replace(minute=first.minute - first.minute % 15)
    while at <= last:
        past = timedelta(seconds=int((at.astimezone(zone).utcoffset() or timedelta()).total_seconds()) % 3600)
        start = at - timedelta(seconds=int((at.timestamp() + past.total_seconds()) % 3600))
        if not found or start > found[-1]:
            found.append(start)
        at += _QUARTER
    return found


_UNITS = {
    BucketSize.DAY: IntervalUnit.DAY,
    BucketSize.WEEK: IntervalUnit.WEEK,
    BucketSize.MONTH: IntervalUnit.MONTH,
}


def _edges_from(first: datetime, *, size: BucketSize, time_zone: str) -> Iterator[datetime]:
    unit = _UNITS[size]
    schedule = Schedule(
        anchor=calendar_anchor(first, unit=unit, time_zone=time_zone),
        time_zone=time_zone,
        interval=Interval(unit=unit, count=1),
        started_at=from_us(0),
    )
    for number in range(BUCKETS_MAX + 1):
        yield boundary(schedule, number)
