"""Money for a part of a period. Each side rounds by itself, before anything is subtracted from it."""

from __future__ import annotations

from decimal import Decimal

from tollkeeper_ledger.domain.money import EXACT, exact, round_minor


@exact
def prorate(amount_minor: int, *, part: int, whole: int) -> int:
    """Give the rounded share `part / whole` of an amount in minor units; both in the same unit, days or seconds.

    The start day counts, and the divisor is the whole period. A part longer than the whole costs more than the whole:
    callers cut it first. Raises ValueError unless 0 <= part and 0 < whole.
    """
    if whole <= 0 or part < 0:
        raise ValueError(f"not a part of a period: {part} of {whole}")
    return round_minor(EXACT.divide(Decimal(amount_minor) * part, Decimal(whole)))


def true_up(minimum_minor: int, *, charged_minor: int, part: int, whole: int) -> int:
    """Give what is missing to a prorated minimum, never below zero."""
    return max(prorate(minimum_minor, part=part, whole=whole) - charged_minor, 0)


def upgrade_net(new_minor: int, old_paid_minor: int, *, part: int, whole: int) -> int:
    """Give what an upgrade costs for the rest of a period: the new fee's share less the unused share of the old one.

    Below zero where the old fee was the larger: a credit.
    """
    return prorate(new_minor, part=part, whole=whole) - prorate(old_paid_minor, part=part, whole=whole)
