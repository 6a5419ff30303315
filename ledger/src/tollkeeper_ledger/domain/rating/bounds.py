"""Bounds of what one price may cost in a period: percent discount, then maximum, then minimum.

A minimum is owed at the period's end only; a maximum holds at any time. Both count what earlier runs of the period
have billed.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from tollkeeper_ledger.domain.money import EXACT, exact
from tollkeeper_ledger.domain.rating.parts import ZERO, Part

_PERCENT = Decimal("0.01")
_ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Amounts in major units for a whole period. None = does not apply."""

    minimum: Decimal | None = None
    maximum: Decimal | None = None
    discount_percent: Decimal = ZERO


UNBOUNDED = Bounds()


@dataclass(frozen=True, slots=True)
class Bounded:
    """What bounds make of one run's gross amount, in major units."""

    gross: Decimal
    discount: Decimal
    """Taken off: percent discount and what is above the maximum."""
    true_up: Decimal
    """Added to reach the minimum."""

    @property
    def amount(self) -> Decimal:
        """Give what is billed now."""
        return EXACT.add(EXACT.subtract(self.gross, self.discount), self.true_up)


DISCOUNT, MAXIMUM, MINIMUM = "discount", "maximum", "minimum"
"""Names of what bounds add to a price's parts."""


def bound_parts(result: Bounded, bounds: Bounds) -> tuple[Part, ...]:
    """Give what bounds change as parts: the percent or the bound as unit price, and what it takes off or adds."""
    found = []
    if result.discount:
        is_capped = bounds.maximum is not None and EXACT.subtract(result.gross, result.discount) == bounds.maximum
        name, bound = (MAXIMUM, bounds.maximum) if is_capped else (DISCOUNT, bounds.discount_percent)
        found.append(Part(name=name, quantity=_ONE, unit_price=bound or ZERO, amount=-result.discount, is_count=True))
    if result.true_up:
        minimum = bounds.minimum or ZERO
        found.append(Part(name=MINIMUM, quantity=_ONE, unit_price=minimum, amount=result.true_up, is_count=True))
    return tuple(found)


def bounded(gross: Decimal, bounds: Bounds, *, billed_before: Decimal, is_period_end: bool) -> Bounded:
    """Apply the bounds to what one run adds, given what earlier runs of the period billed after bounds."""
    if bounds is UNBOUNDED:
        return Bounded(gross=gross, discount=ZERO, true_up=ZERO)
    return _bounded(gross, bounds, billed_before=billed_before, is_period_end=is_period_end)


@exact
def _bounded(gross: Decimal, bounds: Bounds, *, billed_before: Decimal, is_period_end: bool) -> Bounded:
    discount = gross * bounds.discount_percent * _PERCENT
    if bounds.maximum is not None:
        room = max(bounds.maximum - billed_before, ZERO)
        discount = max(discount, gross - room)
    true_up = ZERO
    if bounds.minimum is not None and is_period_end:
        true_up = max(bounds.minimum - billed_before - (gross - discount), ZERO)
    return Bounded(gross=gross, discount=discount, true_up=true_up)
