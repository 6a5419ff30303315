"""Coupons before taxes, and taxes per rate, each as shares that add up."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tollkeeper_ledger.domain.money import EXACT, exact, round_minor
from tollkeeper_ledger.domain.shares import cut, rounded_to

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_PERCENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Taxable:
    """One line's amount and the tax rate that applies to it."""

    amount_minor: int
    tax_percent: Decimal


@exact
def tax_of(amount_minor: int, tax_percent: Decimal) -> int:
    """Give the rounded tax on an amount, exclusive."""
    return round_minor(_outside(amount_minor, tax_percent))


def coupon_shares(coupon_minor: int, lines: Sequence[Taxable]) -> tuple[int, ...]:
    """Spread a coupon over lines in proportion to their amounts; never more than they are worth together."""
    amounts = [max(line.amount_minor, 0) for line in lines]
    return cut(min(coupon_minor, sum(amounts)), amounts)


def taxes_of_lines(lines: Sequence[Taxable], *, is_contained: bool) -> tuple[int, ...]:
    """Give each line's tax: all lines of one rate are taxed together, rounded once; each has its own to the unit.

    So a line below zero has a tax below zero, whatever the others are. `is_contained`: amounts contain the tax.
    """
    whole_of, of_line = (tax_within, _within) if is_contained else (tax_of, _outside)
    taxes = [0] * len(lines)
    for rate in sorted({line.tax_percent for line in lines if line.tax_percent}):
        places = [place for place, line in enumerate(lines) if line.tax_percent == rate]
        amounts = [lines[place].amount_minor for place in places]
        shares = rounded_to(whole_of(sum(amounts), rate), [of_line(amount, rate) for amount in amounts])
        for place, share in zip(places, shares, strict=True):
            taxes[place] = share
    return tuple(taxes)


def tax_shares_by_size(lines: Sequence[Taxable], *, is_contained: bool) -> tuple[int, ...]:
    """Give each line's tax as the first engine did, by the size of amounts: wrong beside lines below zero."""
    return tax_shares_within(lines) if is_contained else tax_shares(lines)


@exact
def _outside(amount_minor: int, tax_percent: Decimal) -> Decimal:
    return Decimal(amount_minor) * tax_percent * _PERCENT


@exact
def _within(amount_minor: int, tax_percent: Decimal) -> Decimal:
    return amount_minor - EXACT.divide(Decimal(amount_minor), 1 + tax_percent * _PERCENT)


def tax_shares(lines: Sequence[Taxable]) -> tuple[int, ...]:
    """Give each line's tax: all lines of one rate are taxed together, rounded once, and the tax is cut to the lines.

    For amounts of one sign.
    """
    return _shares(lines, tax_of)


def _shares(lines: Sequence[Taxable], tax: Callable[[int, Decimal], int]) -> tuple[int, ...]:
    taxes = [0] * len(lines)
    # A rate of zero has no share to cut.
    for rate in sorted({line.tax_percent for line in lines if line.tax_percent}):
        places = [place for place, line in enumerate(lines) if line.tax_percent == rate]
        amounts = [lines[place].amount_minor for place in places]
        whole = tax(sum(amounts), rate)
        weights = [abs(amount) for amount in amounts]
        for place, share in zip(places, cut(abs(whole), weights), strict=True):
            taxes[place] = share if whole >= 0 else -share
    return tuple(taxes)


@exact
def tax_within(amount_minor: int, tax_percent: Decimal) -> int:
    """Give the rounded tax that an amount contains, inclusive."""
    return amount_minor - round_minor(EXACT.divide(Decimal(amount_minor), 1 + tax_percent * _PERCENT))


def tax_shares_within(lines: Sequence[Taxable]) -> tuple[int, ...]:
    """Give the tax that each line's amount contains, cut as `tax_shares` does."""
    return _shares(lines, tax_within)
