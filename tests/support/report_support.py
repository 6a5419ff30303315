"""What a report should say, from a plain list of records in the obvious way."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from rollup_support import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from usage_support import Use

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in microseconds."""

    start_us: int
    end_us: int
    size: str
    zone: str
    group_by: tuple[str, ...]
    now_us: int


def bucket_start(at_us: int, asked: Asked) -> int:
    """Give the start of the bucket that holds an instant, by the wall clock of the zone."""
    if asked.size == "whole":
        return asked.start_us
    local = (EPOCH + timedelta(microseconds=at_us)).astimezone(ZoneInfo(asked.zone))
    into_hour = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    if asked.size in ("minute", "hour"):
        past = into_hour if asked.size == "hour" else timedelta(seconds=local.second, microseconds=local.microsecond)
        return at_us - past // timedelta(microseconds=1)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if asked.size == "week":
        midnight -= timedelta(days=midnight.weekday())
    if asked.size == "month":
        midnight = midnight.replace(day=1)
    return (midnight.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)


def _group(use: Use, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    attributes = dict(use.attributes)
    return tuple((name, attributes[name]) for name in sorted(names) if name in attributes)


def answer(uses: Iterable[Use], tenant: str, asked: Asked) -> dict[Any, tuple[int, int, Any]]:
    """Give (sum, records, value) by (meter, bucket start, group) of records that were stored and not voided."""
    own = sorted(
        (use for use in uses if use.tenant == tenant and use.event_us < asked.end_us),
        key=lambda use: (use.event_us, use.id.encode()),
    )
    gathered: dict[Any, list[tuple[Use, int]]] = {}
    for use in own:
        if use.event_us < asked.start_us:
            continue
        for meter, units in use.quantities:
            groups = asked.group_by if meter in KINDS else ()
            key = (meter, bucket_start(use.event_us, asked), _group(use, groups))
            gathered.setdefault(key, []).append((use, -units if use.flags & 16 else units))
    areas = _areas(own, asked)
    found = {}
    for key in gathered.keys() | areas.keys():
        rows = gathered.get(key, [])
        total = sum(units for _, units in rows)
        found[key] = (total, len(rows), _value(key[0], rows, areas.get(key)))
    return found


def _value(meter: str, rows: list[tuple[Use, int]], area: int | None) -> Any:
    kind, _, value = KINDS.get(meter, ("sum", [], ""))
    units = [amount for _, amount in rows]
    makers: dict[str, Callable[[], Any]] = {
        "sum": lambda: sum(units),
        "count": lambda: len(units),
        "min": lambda: min(units),
        "max": lambda: max(units),
        "avg": lambda: Fraction(sum(units), len(units)),
        "unique": lambda: len({dict(use.attributes)[value] for use, _ in rows if value in dict(use.attributes)}),
        "latest": lambda: units[-1],
        "time_weighted": lambda: None if area is None else Fraction(area, 1_000_000),
        "percentile": lambda: sorted(units)[-(-len(units) // 2) - 1],
    }
    return makers[kind]()


def _areas(own: list[Use], asked: Asked) -> dict[Any, int]:
    """Walk every gauge's steps, cut at the span's and the buckets' edges."""
    series: dict[Any, list[tuple[int, int, tuple[tuple[str, str], ...]]]] = {}
    for use in own:
        for meter, units in use.quantities:
            if KINDS.get(meter, ("",))[0] == "time_weighted":
                dims = _group(use, KINDS[meter][1])
                step = (use.event_us, -units if use.flags & 16 else units, _group(use, asked.group_by))
                series.setdefault((meter, dims), []).append(step)
    end_us = min(asked.end_us, asked.now_us)
    areas: dict[Any, int] = {}
    for (meter, _), steps in series.items():
        for (at_us, units, group), (until_us, *_) in pairwise([*steps, (end_us, 0, ())]):
            here, until = max(at_us, asked.start_us), min(until_us, end_us)
            if at_us >= asked.start_us:
                areas.setdefault((meter, bucket_start(at_us, asked), group), 0)
            while here < until:
                start = bucket_start(here, asked)
                # The next bucket's start is found by trying, a minute at a time near it.
                following = _next_start(here, start, asked)
                stop = min(until, following)
                areas[meter, start, group] = areas.get((meter, start, group), 0) + units * (stop - here)
                here = stop
    return areas


def _next_start(here: int, start: int, asked: Asked) -> int:
    steps = {"minute": 60, "hour": 900, "day": 900, "week": 3600 * 6, "month": 3600 * 6}
    if asked.size == "whole":
        return asked.end_us
    step = steps[asked.size] * 1_000_000
    at = here - here % step
    while bucket_start(at, asked) <= start:
        at += step
    return bucket_start(at, asked)
