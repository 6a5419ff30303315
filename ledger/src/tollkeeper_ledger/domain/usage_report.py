"""Figures of a report: what rollups or records of one meter add up to in a bucket. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage_aggregate import Aggregation, merge_states, percentile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from tollkeeper_ledger.domain.usage_aggregate import State

Group: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values of attributes, by name; those that records lack are left out."""

Where: TypeAlias = "Mapping[str, AbstractSet[str]]"
"""Values that attributes must have one of, by name; empty = any record."""

WHERE_MAX = 32
"""Values that one question names."""
PERCENTILES_DEFAULT = (500, 950, 990)
_SHOWN_CHARS = 64
_MILLION = 1_000_000
_US_PER_S = 1_000_000


@dataclass(slots=True)
class Figure:
    """What is known of a meter in one bucket and group."""

    units: int = 0
    records: int = 0
    distinct: int = 0
    state: State | None = None
    area: int | None = None
    """Unit-microseconds; None = no value was known at any time."""

    def add_state(self, aggregation: Aggregation, state: State) -> None:
        """Take in the state of more records. Raises ValueError where states can't be merged."""
        merged = state if self.state is None else merge_states(aggregation, self.state, state)
        if merged is None:
            raise ValueError(f"states of {aggregation} overlap")
        self.state = merged

    def value(self, aggregation: Aggregation, permille: int) -> str:
        """Give what the aggregation makes of it, a decimal; empty where there is nothing to say."""
        told: int | str = ""
        match aggregation:
            case Aggregation.SUM:
                told = self.units
            case Aggregation.COUNT:
                told = self.records
            case Aggregation.UNIQUE:
                told = self.distinct
            case Aggregation.AVG if self.records:
                told = _ratio(self.units, self.records)
            case Aggregation.TIME_WEIGHTED if self.area is not None:
                told = _ratio(self.area, _US_PER_S)
            case Aggregation.PERCENTILE if isinstance(self.state, dict):
                told = percentile(self.state, permille)
            case Aggregation.MIN | Aggregation.MAX | Aggregation.LATEST if isinstance(self.state, list):
                told = self.state[-1]
        return str(told)

    def percentiles(self, permilles: Sequence[int]) -> list[tuple[int, int]]:
        """Give (thousandths, units) of a percentile meter; nothing for others."""
        if not isinstance(self.state, dict):
            return []
        return [(permille, percentile(self.state, permille)) for permille in permilles]


def _ratio(number: int, by: int) -> str:
    """Give a quotient with up to 6 decimals, rounded half up; `by` is above 0."""
    millionths, sign = divmod(abs(number) * _MILLION * 2 + by, by * 2)[0], "-" if number < 0 else ""
    whole, rest = divmod(millionths, _MILLION)
    return f"{sign}{whole}.{rest:06}".rstrip("0").rstrip(".")


def group_of(attributes: Mapping[str, str], group_by: Iterable[str]) -> Group:
    """Give the values of the attributes grouped by."""
    return tuple((name, attributes[name]) for name in sorted(group_by) if name in attributes)


def read_where(words: Sequence[str]) -> dict[str, set[str]]:
    """Read `NAME=VALUE` words; several of one name are alternatives. Raises InvalidFieldError."""
    if len(words) > WHERE_MAX:
        raise InvalidFieldError(
            "where", "has too many entries", reason="FIELD_TOO_LONG", value=len(words), bound=str(WHERE_MAX)
        )
    found: dict[str, set[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals or "\0" in word:
            raise InvalidFieldError(
                "where", "is not of the form NAME=VALUE", value=ascii(word[:_SHOWN_CHARS]), remedy="say model=large"
            )
        found.setdefault(name, set()).add(value)
    return found


def matches(attributes: Mapping[str, str], where: Where) -> bool:
    """Tell whether every name asked for has one of its values."""
    return all(attributes.get(name) in values for name, values in where.items())


@dataclass(frozen=True, slots=True)
class Steps:
    """A time-weighted series: a value from before the span, then states in order of time that never overlap."""

    before: int | None
    """Units that held when the span began; None = not known yet."""
    states: Sequence[Any] = field(default_factory=list)


def last_units(state: Any) -> int:
    """Give the units of the last record of a time-weighted state."""
    units: int = state[-1]
    return units


def areas(series: Steps, edges: Sequence[int], *, end_us: int) -> dict[int, int]:
    """Give unit-microseconds per bucket number; buckets in which no value was known are left out.

    `edges` are the starts of the buckets, ascending; the last one ends at `end_us`. A state lies within one bucket.
    """
    found: dict[int, int] = {}
    held, since = series.before, edges[0]
    for state in series.states:
        first_us, _, area, last_us, _, units = state
        if held is not None:
            _spread(found, edges, held, since, min(first_us, end_us))
        place = bisect_right(edges, first_us) - 1
        found[place] = found.get(place, 0) + area
        held, since = units, last_us
    if held is not None:
        _spread(found, edges, held, since, end_us)
    return found


def _spread(found: dict[int, int], edges: Sequence[int], units: int, start_us: int, end_us: int) -> None:
    """Add a value that holds from start to end to every bucket that it crosses."""
    place = bisect_right(edges, start_us) - 1
    while start_us < end_us:
        until = min(end_us, edges[place + 1]) if place + 1 < len(edges) else end_us
        found[place] = found.get(place, 0) + units * (until - start_us)
        start_us, place = until, place + 1
