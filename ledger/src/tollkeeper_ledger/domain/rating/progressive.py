"""Progressive billing: usage is invoiced within the period whenever what is not yet invoiced reaches a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import exact, round_minor
from tollkeeper_ledger.domain.rating.parts import ZERO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal


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
