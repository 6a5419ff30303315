"""Buckets of a usage query: how long, and where days and months begin in a time zone. Pure."""

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
    MONTH = "month"


WIDTHS = {BucketSize.MINUTE: timedelta(minutes=1), BucketSize.HOUR: timedelta(hours=1)}
"""Buckets that are as long everywhere. Days and months depend on the zone."""


def check_time_zone(name: str) -> str:
    """Give the zone's name, UTC for an empty one. Raises InvalidFieldError for what is no IANA zone."""
    try:
        plain = len(name) <= _ZONE_CHARS_MAX and name.isascii() and name.isprintable()
        return ZoneInfo((name or "UTC") if plain else "").key
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise InvalidFieldError(
            "time_zone",
            "is not an IANA time zone",
            value=ascii(name[:_ZONE_CHARS_MAX]),
            remedy="name one such as Europe/Berlin; empty means UTC",
        ) from error


def edges(first: datetime, last: datetime, *, size: BucketSize, time_zone: str) -> list[datetime]:
    """Give the starts of the days or months that hold `first` to `last`, both included, as UTC instants.

    A day is 23 or 25 hours long where the zone changes its clock. Raises InvalidFieldError beyond BUCKETS_MAX.
    """
    if size is BucketSize.WHOLE:
        return [first]
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


def _edges_from(first: datetime, *, size: BucketSize, time_zone: str) -> Iterator[datetime]:
    unit = IntervalUnit.DAY if size is BucketSize.DAY else IntervalUnit.MONTH
    schedule = Schedule(
        anchor=calendar_anchor(first, unit=unit, time_zone=time_zone),
        time_zone=time_zone,
        interval=Interval(unit=unit, count=1),
        started_at=from_us(0),
    )
    for number in range(BUCKETS_MAX + 1):
        yield boundary(schedule, number)
