"""What a price model's result is made of: parts that add up, and what changed between two states of one period."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import exact

if TYPE_CHECKING:
    from collections.abc import Iterable

ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Part:
    """One step of a price: so much of something at so much each. Exact, in major units."""

    name: str
    """Names it within its price, for example `tier 2` or `tier 2 flat`."""
    quantity: Decimal
    """In the priced unit."""
    unit_price: Decimal
    amount: Decimal


@exact
def part(name: str, quantity: Decimal, unit_price: Decimal) -> Part:
    """Make a part whose amount is quantity times unit price."""
    return Part(name=name, quantity=quantity, unit_price=unit_price, amount=quantity * unit_price)


@exact
def total(parts: Iterable[Part]) -> Decimal:
    """Add the amounts up."""
    return sum((each.amount for each in parts), ZERO)


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
        elif (old.quantity, old.unit_price) != (each.quantity, each.unit_price):
            changed.append(
                Part(
                    name=each.name,
                    quantity=each.quantity - old.quantity,
                    unit_price=each.unit_price,
                    amount=each.amount - old.amount,
                )
            )
    gone = (
        Part(name=old.name, quantity=-old.quantity, unit_price=old.unit_price, amount=-old.amount)
        for old in known.values()
    )
    return (*changed, *gone)
