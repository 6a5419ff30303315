"""What is left of revenue once usage is paid at its cost price. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, Currency, exact, round_line, round_minor

if TYPE_CHECKING:
    from collections.abc import Iterable

_TEN_THOUSAND = 10_000


@dataclass(frozen=True, slots=True)
class Earned:
    """Revenue of a group in a month."""

    month: str
    name: str
    currency: str
    revenue_minor: int


@dataclass(frozen=True, slots=True)
class UsedAtCost:
    """Usage of a group in a month at one cost price."""

    month: str
    name: str
    currency: str
    units: Decimal
    """In the meter's smallest units: 10^scale of them are a whole one."""
    scale: int
    amount: Decimal
    """Major units of the currency for `per` whole units."""
    per: int

    @exact
    def cost(self) -> Decimal:
        """Give what the usage costs, exactly, in major units."""
        return EXACT.divide((self.units * self.amount).scaleb(-self.scale), Decimal(self.per))


@dataclass(frozen=True, slots=True)
class Margin:
    """What a group earned and what its usage costs in a month, in one currency."""

    month: str
    name: str
    currency: str
    revenue_minor: int
    own_cost_minor: int

    @property
    def margin_minor(self) -> int:
        """Give what is left; below zero where usage costs more than it earned."""
        return self.revenue_minor - self.own_cost_minor

    @property
    def margin_bp(self) -> int | None:
        """Give the margin in ten-thousandths of the revenue; None without revenue."""
        if self.revenue_minor <= 0:
            return None
        return round_minor(EXACT.divide(Decimal(self.margin_minor * _TEN_THOUSAND), Decimal(self.revenue_minor)))


@exact
def margins(earned: Iterable[Earned], used: Iterable[UsedAtCost]) -> list[Margin]:
    """Give revenue and cost of each month, group and currency, in this order; what costs is rounded once per row.

    Amounts of different currencies never meet: usage whose cost price is in another currency is a row of its own.
    """
    revenue: dict[tuple[str, str, str], int] = {}
    for one in earned:
        key = one.month, one.name, one.currency
        revenue[key] = revenue.get(key, 0) + one.revenue_minor
    costs: dict[tuple[str, str, str], Decimal] = {}
    for use in used:
        key = use.month, use.name, use.currency
        costs[key] = costs.get(key, Decimal(0)) + use.cost()
    return [
        Margin(*key, revenue_minor=revenue.get(key, 0), own_cost_minor=_rounded(costs.get(key, Decimal(0)), key[2]))
        for key in sorted(revenue.keys() | costs.keys())
    ]


def _rounded(cost: Decimal, currency: str) -> int:
    return round_line(cost, Currency.from_code(currency))
