"""What goes into rating and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.paid import PaidPeriod
    from tollkeeper_ledger.domain.rating.parts import Part

PriceJson: TypeAlias = dict[str, Any]
"""One price of a plan version's definition."""

Attributes: TypeAlias = "tuple[tuple[str, str], ...]"
"""Attribute values by name, in name order."""


class Total(NamedTuple):
    """The exact sum of one meter in one period. A tuple: runs read millions of them."""

    meter: str
    unit: str
    scale: int
    units: int
    attributes: Attributes = ()
    """Values that the sum is of, by name; empty where no price of the meter tells values apart."""
    events: tuple[tuple[int, int], ...] = ()
    """(units, how many records in a row) in order of event time and id, below 0 where they are taken back; only where a
    price is per record."""


@dataclass(frozen=True, slots=True)
class LateUsage:
    """Usage of a period that had been closed before it came, with the prices of that period."""

    definition: bytes
    period_start: datetime
    period_end: datetime
    before: tuple[Total, ...]
    """What had been billed for that period already."""
    added: tuple[Total, ...]
    paid: PaidPeriod | None = None
    """What was charged for it; None: nothing is taken back, or nobody asked."""


@dataclass(frozen=True, slots=True)
class Usage:
    """All usage that one invoice is about."""

    totals: tuple[Total, ...]
    late: tuple[LateUsage, ...] = ()
    """In order of their periods."""


class SubscriptionFacts(NamedTuple):
    """What rating needs to know of the subscription: the period, both ends UTC."""

    period_start: datetime
    period_end: datetime


class Rated(NamedTuple):
    """A price model's result, exact and not yet rounded."""

    included: int
    charged: int
    unit_price: str
    price_per: int
    amount: Decimal
    """Major units, exact."""
    steps: tuple[str, ...]
    currency: Currency
    parts: tuple[Part, ...] = ()
    """Tiers, packages and flat fees that the amount is made of, before discounts and bounds."""
    bounds: tuple[Part, ...] = ()
    """What discount, maximum and minimum take off or add."""

    @property
    def is_converted(self) -> bool:
        """Whether the one price is for another unit than the meter's."""
        # One price makes one part.
        return bool(self.unit_price) and self.parts[0].is_count


class TaxPaid(NamedTuple):
    """Tax that was paid with what a line gives back."""

    tax_minor: int
    """Below zero: it is given back as well."""
    mode: str
    """How the line's amounts and its tax belong together: `exclusive`, `inclusive` or `reverse_charge`."""


class Charge(NamedTuple):
    """One line: rounded, with how it came about. A tuple, as its parts are: rating makes millions of them."""

    description: str
    meter: str
    """Empty for flat fees."""
    unit: str
    scale: int
    quantity: int
    included: int
    charged: int
    unit_price: str
    price_per: int
    amount_minor: int
    explanation: tuple[str, ...]
    period_start: datetime
    period_end: datetime
    late: bool
    parts: tuple[Part, ...] = ()
    """What a line is made of, with what discounts and bounds change; empty where one price explains it."""
    discount_minor: int = 0
    """This line's share of coupons: taken off before tax, shown by itself, not in `amount_minor`."""
    tax_name: str = ""
    """Name of a tax of the price's own; empty: the payer's taxes apply."""
    tax_percent: str = ""
    """Its percent, decimal; empty: the payer's taxes apply. Credit pays and is not taxed: 0."""
    kind: str = "usage"
    """`usage`, `fee`, `commitment` or `credit`."""
    dimensions: Attributes = ()
    """Attribute values that the line is for."""
    given_back: TaxPaid | None = None
    """Where the line gives back what an earlier invoice charged: its tax, which is not computed anew. `tax_percent` is
    that invoice's then, `discount_minor` what coupons took off there, below zero."""


class Charges(NamedTuple):
    """All lines of one period."""

    currency: Currency
    lines: tuple[Charge, ...]

    @property
    def subtotal_minor(self) -> int:
        """Give the sum of the lines less their discounts; nothing is rounded after a line."""
        return sum(line.amount_minor - line.discount_minor for line in self.lines)
