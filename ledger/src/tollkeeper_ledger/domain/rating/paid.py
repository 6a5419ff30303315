"""What was charged for fees in advance, and giving a share of it back: less what coupons took off, with its own tax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import major
from tollkeeper_ledger.domain.proration import prorate
from tollkeeper_ledger.domain.rating.charges import TaxPaid

if TYPE_CHECKING:
    from tollkeeper_ledger.domain.money import Currency
    from tollkeeper_ledger.domain.rating.charges import Charge


@dataclass(frozen=True, slots=True)
class PaidFee:
    """What an invoice says of one fee in advance."""

    amount_minor: int
    discount_minor: int
    tax_minor: int
    tax_name: str
    tax_percent: str
    tax_mode: str
    """`exclusive`, `inclusive` (amount and discount contain the tax), or `reverse_charge`."""


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
