"""Progressive billing: usage is invoiced within the period whenever what is not yet invoiced reaches a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import exact, round_minor
from tollkeeper_ledger.domain.rating.parts import ZERO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from tollkeeper_ledger.domain.rating.charges import PriceJson

_AT_THE_END = "is_at_the_end"
"""Marks a price that is charged at the period's end alone."""


def without_end(plan: PriceJson) -> PriceJson:
    """Give a plan without what only a whole period owes: fees, commitment, minimums, and prices by volume."""
    prices = [{name: term for name, term in price.items() if name != "minimum"} for price in plan["prices"]]
    kept = {name: term for name, term in plan.items() if name != "commitment"}
    marked = [{**price, _AT_THE_END: True} if price["model"] == "volume" else price for price in prices]
    return {**kept, "fees": [], "prices": marked}


def is_at_the_end(price: PriceJson) -> bool:
    """Whether a price of such a plan waits for the period's end; its usage goes to no other price meanwhile."""
    return _AT_THE_END in price


@dataclass(frozen=True, slots=True)
class ProgressiveBill:
    """What a period's usage costs and what of it was invoiced before its end, in minor units."""

    usage_minor: int
    invoices_minor: tuple[int, ...]

    @property
    def invoiced_minor(self) -> int:
        """Give the sum of the invoices within the period: the final invoice credits it."""
        return sum(self.invoices_minor)


@exact
def progressive_invoices(*, unit_minor: Decimal, threshold_minor: int, steps: Sequence[Decimal]) -> ProgressiveBill:
    """Invoice usage, step after step, whenever at least the threshold is uninvoiced. A threshold of 0 never is."""
    used, usage_minor, invoiced = ZERO, 0, 0
    invoices = []
    for step in steps:
        used += step
        usage_minor = round_minor(used * unit_minor)
        if 0 < threshold_minor <= usage_minor - invoiced:
            invoices.append(usage_minor - invoiced)
            invoiced = usage_minor
    return ProgressiveBill(usage_minor=usage_minor, invoices_minor=tuple(invoices))
