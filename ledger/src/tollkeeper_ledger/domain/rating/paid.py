"""What was charged for what is given back, and giving a share of it back: less coupons, with its own tax."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import major
from tollkeeper_ledger.domain.proration import prorate
from tollkeeper_ledger.domain.rating.charges import TaxPaid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import Attributes, Charge


@dataclass(frozen=True, slots=True)
class PaidFee:
    """What an invoice says of one fee in advance, or of a meter's usage."""

    amount_minor: int
    discount_minor: int
    tax_minor: int
    tax_name: str
    tax_percent: str
    tax_mode: str
    """`exclusive`, `inclusive` (amount and discount contain the tax), or `reverse_charge`."""


@dataclass(frozen=True, slots=True)
class PaidUsage:
    """What an invoice says of the usage of one meter and of these attribute values."""

    meter: str
    attributes: Attributes
    paid: PaidFee


@dataclass(frozen=True, slots=True)
class GivenBack:
    """What an invoice has given back of a meter's usage that an earlier one charged; all below zero or zero."""

    meter: str
    attributes: Attributes
    amount_minor: int
    discount_minor: int
    tax_minor: int


def less_given_back(usage: Sequence[PaidUsage], back: Sequence[GivenBack]) -> tuple[PaidUsage, ...]:
    """Give what is left of what was paid; what was given back as a whole is left out.

    Shares of what is left add up: usage that is taken back bit by bit gives back the whole of its coupons and its tax.
    """
    left = []
    for one in usage:
        of_it = [each for each in back if (each.meter, each.attributes) == (one.meter, one.attributes)]
        amount_minor = one.paid.amount_minor + sum(each.amount_minor for each in of_it)
        if amount_minor > 0:
            paid = replace(
                one.paid,
                amount_minor=amount_minor,
                discount_minor=one.paid.discount_minor + sum(each.discount_minor for each in of_it),
                tax_minor=one.paid.tax_minor + sum(each.tax_minor for each in of_it),
            )
            left.append(replace(one, paid=paid))
    return tuple(left)


@dataclass(frozen=True, slots=True)
class PaidPeriod:
    """What was charged for a period some of whose usage is taken back by a late segment."""

    segment_id: str
    """The late one."""
    is_void: bool
    """Whether that invoice is void and nothing replaces it: nothing is given back of it."""
    usage: tuple[PaidUsage, ...]
    """Under the plan version that rates the late segment."""


def usage_given_back(line: Charge, period: PaidPeriod, currency: Currency) -> Charge:
    """Have a line below zero of late usage give back what was paid for it; unchanged where nothing was charged."""
    for one in period.usage:
        if (one.meter, one.attributes) == (line.meter, line.dimensions):
            return give_back(line, one.paid, currency, before_minor=0)
    return line


def give_back(line: Charge, paid: PaidFee, currency: Currency, *, before_minor: int) -> Charge:
    """Have a line that takes back a share of a fee take back that share of its coupons and of its tax, at its rate.

    `before_minor`: what lines before it take back of the fee. Shares are differences of those of all that is taken back
    so far: lines that take a whole fee back take back the whole of both.
    """
    after_minor = before_minor - line.amount_minor

    def share(whole_minor: int) -> int:
        return _share(whole_minor, after_minor, paid) - _share(whole_minor, before_minor, paid)

    off_minor = share(paid.discount_minor)
    steps = (f"coupons had taken off {major(off_minor, currency)} {currency.code} of it",) if off_minor else ()
    return line._replace(
        discount_minor=-off_minor,
        explanation=(*line.explanation, *steps),
        tax_name=paid.tax_name,
        tax_percent=paid.tax_percent,
        given_back=TaxPaid(tax_minor=-share(paid.tax_minor), mode=paid.tax_mode),
    )


def _share(whole_minor: int, part_minor: int, paid: PaidFee) -> int:
    if part_minor >= paid.amount_minor:
        return whole_minor
    return prorate(whole_minor, part=part_minor, whole=paid.amount_minor)
