"""Amounts that are held over time: a level's average over a period, in unit periods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, exact
from tollkeeper_ledger.domain.rating.parts import ZERO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal


@exact
def held_units(levels: Sequence[tuple[Decimal, ...]], period: Decimal) -> Decimal:
    """Give the sum of level x time over the period, both times in the same unit.

    `levels` are (level, how long it was held), in any order. Raises ValueError where they last longer than the period.
    """
    if period <= 0:
        raise ValueError(f"a period must last longer than {period}")
    held = sum((duration for _, duration in levels), ZERO)
    if held > period:
        raise ValueError(f"levels last {held}, longer than their period of {period}")
    return EXACT.divide(sum((level * duration for level, duration in levels), ZERO), period)
