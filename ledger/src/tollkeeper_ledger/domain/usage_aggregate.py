"""What a meter makes of its records: aggregations, their states over a stretch of time, and how states merge. Pure.

A state is plain JSON, exact, and says of its records no more than the aggregation needs. Sums and counts are kept apart
for every meter; distinct values are rows of their own.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

State: TypeAlias = list[Any] | dict[str, int]
"""min, max: [units]. latest: [at, id, units]. time_weighted: [first at, first id, area, last at, last id, last units],
the area in unit-microseconds from the first to the last. percentile: records by bucket number. Times are microseconds.
"""

PERCENTILE_ERROR_PERMILLE = 8
"""Largest relative error of a percentile, in thousandths: half a bucket, 1/128."""

_EXACT_BELOW = 64
_MANTISSA_BITS = 6


class Aggregation(StrEnum):
    """Say what a meter makes of its records."""

    SUM = "sum"
    COUNT = "count"
    MIN = "min"
    MAX = "max"
    AVG = "avg"
    UNIQUE = "unique"
    LATEST = "latest"
    TIME_WEIGHTED = "time_weighted"
    PERCENTILE = "percentile"


STATEFUL = frozenset(
    {Aggregation.MIN, Aggregation.MAX, Aggregation.LATEST, Aggregation.TIME_WEIGHTED, Aggregation.PERCENTILE}
)
"""Aggregations that need a state beside sum and count."""


class Point(NamedTuple):
    """What one record says of a meter. Points are ordered by event time, then id, as UTF-8 bytes order it."""

    at_us: int
    id: str
    units: int
    """Below 0 where a level fell."""


def state_of(aggregation: Aggregation, points: Sequence[Point]) -> State:
    """Give the state of these records; at least one, in any order."""
    match aggregation:
        case Aggregation.MIN:
            return [min(point.units for point in points)]
        case Aggregation.MAX:
            return [max(point.units for point in points)]
        case Aggregation.LATEST:
            newest = max(points, key=_order)
            return [newest.at_us, newest.id, newest.units]
        case Aggregation.TIME_WEIGHTED:
            ordered = sorted(points, key=_order)
            area = sum((later.at_us - now.at_us) * now.units for now, later in pairwise(ordered))
            return [*ordered[0][:2], area, *ordered[-1]]
        case Aggregation.PERCENTILE:
            counts: dict[str, int] = {}
            for point in points:
                bucket = str(bucket_of(point.units))
                counts[bucket] = counts.get(bucket, 0) + 1
            return counts
        case _:
            raise ValueError(f"aggregation {aggregation} has no state")


def merge_states(aggregation: Aggregation, one: Any, other: Any) -> State | None:
    """Give the state of both sets of records; None where only the records themselves can tell.

    That is so for time-weighted states whose times overlap.
    """
    match aggregation:
        case Aggregation.MIN:
            return [min(one[0], other[0])]
        case Aggregation.MAX:
            return [max(one[0], other[0])]
        case Aggregation.LATEST:
            newest: list[Any] = max(one, other, key=lambda state: (state[0], state[1].encode()))
            return newest
        case Aggregation.TIME_WEIGHTED:
            first, second = sorted((one, other), key=lambda state: (state[0], state[1].encode()))
            if (first[3], first[4].encode()) > (second[0], second[1].encode()):
                return None
            return [*first[:2], first[2] + (second[0] - first[3]) * first[5] + second[2], *second[3:]]
        case Aggregation.PERCENTILE:
            merged = dict(one)
            for bucket, count in other.items():
                merged[bucket] = merged.get(bucket, 0) + count
            return merged
        case _:
            raise ValueError(f"aggregation {aggregation} has no state")


def bucket_of(units: int) -> int:
    """Give the number of the bucket that holds these units: exact below 64, then 64 buckets per power of two.

    What is below 0 counts as 0. Source: the layout of HdrHistogram, in whole numbers, so that it is the same anywhere.
    """
    if units < _EXACT_BELOW:
        return max(0, units)
    shift = units.bit_length() - _MANTISSA_BITS - 1
    return (shift + 1) * _EXACT_BELOW + (units >> shift) - _EXACT_BELOW


def middle_of(bucket: int) -> int:
    """Give the units in the middle of a bucket: off by 1/128 of the true figure at most."""
    if bucket < _EXACT_BELOW:
        return bucket
    shift = bucket // _EXACT_BELOW - 1
    low = (bucket % _EXACT_BELOW + _EXACT_BELOW) << shift
    return low + ((1 << shift) - 1) // 2


def percentile(state: dict[str, int], permille: int) -> int:
    """Give the units that so many thousandths of the records do not exceed (nearest rank). At least one record."""
    total = sum(state.values())
    rank = max(1, -(-total * permille // 1000))
    seen = 0
    for bucket in sorted(map(int, state)):
        seen += state[str(bucket)]
        if seen >= rank:
            return middle_of(bucket)
    raise ValueError("a percentile of no records")


def _order(point: Point) -> tuple[int, bytes]:
    return (point.at_us, point.id.encode())
