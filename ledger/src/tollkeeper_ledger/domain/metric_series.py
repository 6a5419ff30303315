"""Count what a counter that only grows says between two of its readings. Pure.

A reading is (start, time, total): all that was counted from `start` to `time`. Each amount is counted once, with the
first reading that tells of it. Source: the OpenTelemetry metrics data model, "Resets and gaps".
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from enum import Enum
from fractions import Fraction

from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.usage import LATENESS_MAX_US, UNITS_MAX

KEPT_US = 2 * LATENESS_MAX_US
"""How long the last reading of a series is kept. A series that is older than the longest lateness is no new one."""

_NOTHING = Decimal(0)
_EXACT = Context(prec=200)
"""Totals have 19 digits before the point and 30 behind it at most."""


@dataclass(frozen=True, slots=True)
class Last:
    """The newest reading of a series that was counted."""

    start_ns: int
    time_ns: int
    total: Decimal


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a series, in the metric's own unit."""

    series: bytes
    """Digest of all that tells the series from others."""
    start_ns: int
    time_ns: int
    total: Decimal
    scale: Decimal
    """The meter's units in 1 of the metric."""

    @property
    def last(self) -> Last:
        """What is kept of it."""
        return Last(self.start_ns, self.time_ns, self.total)


class Standing(Enum):
    """How a reading stands to the last one of its series."""

    NEW = "new"
    AGAIN = "again"
    """The last one itself."""
    OTHER = "other"
    """Another total at the time of the last one."""
    BEHIND = "behind"
    """Earlier than the last one, which has counted what it tells."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What a reading adds."""

    standing: Standing
    amount: Decimal = _NOTHING
    """In the metric's own unit; of new ones."""


def count(last: Last | None, reading: Reading, *, now_us: int) -> Counted:
    """Say what a reading adds to what is counted.

    A later start, or a total that fell, is a counter that began anew: all of its total is new. A first reading counts
    from its start; where that is unknown (the reading's own time) or longer ago than usage may be late, nobody knows
    what of it was recorded in another way, so it is only where counting begins.
    """
    if last is not None and reading.start_ns <= last.start_ns:
        if reading.start_ns < last.start_ns or reading.time_ns < last.time_ns:
            return Counted(Standing.BEHIND)
        if reading.time_ns == last.time_ns:
            return Counted(Standing.AGAIN if reading.total == last.total else Standing.OTHER)
        since = last.total if reading.total >= last.total else _NOTHING
        return Counted(Standing.NEW, _EXACT.subtract(reading.total, since))
    is_known = reading.start_ns < reading.time_ns and reading.start_ns // 1_000 >= now_us - LATENESS_MAX_US
    return Counted(Standing.NEW, reading.total if is_known else _NOTHING)


def units_of(amount: Decimal, scale: Decimal) -> int:
    """Give an amount of a metric in the meter's units. Raises InvalidFieldError where that is no number of them."""
    units = Fraction(amount) * Fraction(scale) if amount.is_finite() else Fraction(-1)
    if units.denominator != 1 or not 0 <= units <= UNITS_MAX:
        raise InvalidFieldError(
            "value",
            "is no number of the meter's units",
            reason="FIELD_OUT_OF_RANGE",
            value=amount,
            bound=f"0 to {UNITS_MAX}, whole when multiplied by {scale}",
            remedy="send whole numbers, or set the rule's scale",
        )
    return int(units)
