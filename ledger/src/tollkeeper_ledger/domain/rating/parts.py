"""What a price model's result is made of: parts that add up, and what changed between two states of one period."""

from __future__ import annotations

from decimal import Context, Decimal, Inexact
from typing import TYPE_CHECKING, NamedTuple

from tollkeeper_ledger.domain.money import EXACT, exact

if TYPE_CHECKING:
    from collections.abc import Sequence

ZERO = Decimal(0)


class Part(NamedTuple):
    """One step of a price: so much of something at so much each. Exact, in major units."""

    name: str
    """Names it within its price, for example `tier 2` or `tier 2 flat`."""
    quantity: Decimal
    """In the priced unit."""
    unit_price: Decimal
    """For each `per` units."""
    amount: Decimal
    per: int = 1
    is_count: bool = False
    """The quantity counts fees, packages or converted units; else it is in the meter's unit."""


_multiply, _add = EXACT.multiply, EXACT.add
_SHARE_DIGITS_MAX = 40
"""Leaves room for a quantity's digits in an exact product."""


def part(name: str, quantity: Decimal, unit_price: Decimal, *, per: int = 1, is_count: bool = False) -> Part:
    """Make a part whose amount is quantity times unit price, for each `per` units."""
    amount = _multiply(quantity, unit_price)
    if per != 1:
        amount = EXACT.divide(amount, Decimal(per))
    return Part(name, quantity, unit_price, amount, per, is_count)


def share_of(unit_price: Decimal, per: int) -> Decimal | None:
    """Give exactly what one unit costs where a price is for each `per`; None where that has many digits or no end.

    Times a quantity of units it is the same amount as `part` gives, without a division for each.
    """
    context = Context(prec=_SHARE_DIGITS_MAX, traps=[Inexact])
    try:
        return context.divide(unit_price, Decimal(per))
    except Inexact:
        return None


def total(parts: Sequence[Part]) -> Decimal:
    """Add the amounts up."""
    if len(parts) == 1:
        return parts[0].amount
    amount = ZERO
    for each in parts:
        amount = _add(amount, each.amount)
    return amount


@exact
def since(now: tuple[Part, ...], before: tuple[Part, ...]) -> tuple[Part, ...]:
    """Give what `now` has beyond `before`: new and grown parts first, then reversals of parts that are gone.

    Both are whole periods' parts, so the sum over any cutting of a period is the same.
    """
    known = {each.name: each for each in before}
    changed = []
    for each in now:
        old = known.pop(each.name, None)
        if old is None:
            changed.append(each)
        elif old != each:
            changed.append(each._replace(quantity=each.quantity - old.quantity, amount=each.amount - old.amount))
    gone = (old._replace(quantity=-old.quantity, amount=-old.amount) for old in known.values())
    return (*changed, *gone)
