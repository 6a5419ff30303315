"""From what was metered to what is priced: free units first, then another unit.

Both are cumulative over the period: they are applied to the period's sum, never to one run's share of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, exact
from tollkeeper_ledger.domain.rating.parts import ZERO

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROUNDINGS: Mapping[str, str] = MappingProxyType(
    {"ceil": ROUND_CEILING, "ceiling": ROUND_CEILING, "floor": ROUND_FLOOR, "half_up": ROUND_HALF_UP}
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """From a meter's unit to the priced one, for example bytes to GB."""

    divide: bool
    """Divide by the factor; else multiply."""
    factor: Decimal
    round: str
    """`none`, `ceil`, `floor` or `half_up`."""
    digits: int = 0
    """Digits after the point that rounding keeps."""

    def __post_init__(self) -> None:
        """Raise ValueError for a factor or a rounding that there isn't."""
        if self.factor <= 0:
            raise ValueError(f"a conversion's factor must be above zero, not {self.factor}")
        if self.round != "none" and self.round not in _ROUNDINGS:
            raise ValueError(f"no rounding {self.round!r}; there are none, {', '.join(_ROUNDINGS)}")


def converted(quantity: Decimal, conversion: Conversion | None) -> Decimal:
    """Convert, then round."""
    return quantity if conversion is None else _converted(quantity, conversion)


@exact
def _converted(quantity: Decimal, conversion: Conversion) -> Decimal:
    exact_quantity = EXACT.divide(quantity, conversion.factor) if conversion.divide else quantity * conversion.factor
    if conversion.round == "none":
        return exact_quantity
    return exact_quantity.quantize(Decimal(1).scaleb(-conversion.digits), rounding=_ROUNDINGS[conversion.round])


@exact
def beyond(quantity: Decimal, included: Decimal) -> Decimal:
    """Take included units off; never below zero."""
    return max(quantity - included, ZERO)
