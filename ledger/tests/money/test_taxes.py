# ruff: noqa: SIM300 - expected first, then actual
"""Taxes and coupons on the lines of an invoice: everything adds up, to the minor unit."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.invoice_lines import summed
from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.domain.rating.charges import Charge, Charges
from tollkeeper_ledger.domain.taxes import Taxable, tax_shares, tax_shares_within

NOW = datetime(2026, 10, 1, tzinfo=UTC)
VAT = {"name": "VAT", "percent": "19", "meters": []}
BOOKS = {"name": "VAT", "percent": "7", "meters": ["books"]}


def charge(meter: str, amount: int, **changes: Any) -> Charge:
    """Give a line of `amount`."""
    return Charge(
        description=meter,
        meter=meter,
        unit="",
        scale=0,
        quantity=1,
        included=0,
        charged=1,
        unit_price="",
        price_per=1,
        amount_minor=amount,
        explanation=(),
        period_start=NOW,
        period_end=NOW,
        late=False,
        **changes,
    )


def document(*charges: Charge, mode: str = "exclusive", items: tuple[int, ...] = ()) -> dict[str, Any]:
    """Give lines and sums of an invoice."""
    stored = {
        "billing": {"taxes": [BOOKS, VAT], "tax_mode": mode},
        "items": [{"item_id": "i", "description": "Setup", "amount_minor": amount} for amount in items],
        "period": {},
    }
    return summed(Charges(currency=Currency.from_code("EUR"), lines=charges), stored)


def test_lines_are_taxed_at_their_rates() -> None:
    """Books at 7 %, the rest and items at 19 %; a price's own tax goes first; bases and taxes add up."""
    own = charge("calls", 1000, tax_name="Levy", tax_percent="2.5")
    found = document(charge("books", 10_000), charge("calls", 5_003), own, items=(2_000,))
    assert [700, 951, 25, 380] == [line["tax"]["tax_minor"] for line in found["lines"]]
    assert [("VAT", "7", 10_000, 700), ("VAT", "19", 7_003, 1_331), ("Levy", "2.5", 1000, 25)] == [
        tuple(tax.values()) for tax in found["taxes"]
    ]
    assert (18_003, 2_056, 20_059) == (found["subtotal_minor"], found["tax_minor"], found["total_minor"])


def test_coupons_come_off_before_tax() -> None:
    """A line's share of a coupon lowers what is taxed, and stands by itself."""
    found = document(charge("calls", 10_000, discount_minor=2_500))
    assert (10_000, 2_500, 7_500, 1_425, 8_925) == tuple(
        found[name] for name in ("lines_minor", "discount_minor", "subtotal_minor", "tax_minor", "total_minor")
    )


@pytest.mark.parametrize(("mode", "expected"), [
    ("exclusive", (11_900, 2_261, 14_161)), ("inclusive", (10_000, 1_900, 11_900)),
    ("reverse_charge", (11_900, 0, 11_900)),
])  # fmt: skip
def test_modes(mode: str, expected: tuple[int, int, int]) -> None:
    """119.00 without tax, with it inside, and with the customer paying it: subtotal, tax, total."""
    found = document(charge("calls", 11_900), mode=mode)
    assert expected == (found["subtotal_minor"], found["tax_minor"], found["total_minor"])


RATES = st.sampled_from(["0", "7", "7.7", "19", "20", "33.333"])
LINES = st.lists(
    st.builds(Taxable, amount_minor=st.integers(-100_000, 10_000_000), tax_percent=RATES.map(Decimal)),
    min_size=1,
    max_size=12,
)


@given(lines=LINES)
def test_shares_are_the_tax_of_all_lines_of_a_rate(lines: list[Taxable]) -> None:
    """Per rate the shares sum to the tax on the sum, within half a minor unit of exact, inside and outside."""
    outside, inside = tax_shares(lines), tax_shares_within(lines)
    for rate in {line.tax_percent for line in lines}:
        places = [place for place, line in enumerate(lines) if line.tax_percent == rate]
        whole = sum(lines[place].amount_minor for place in places)
        exact = Decimal(whole) * rate / 100
        assert abs(sum(outside[place] for place in places) - exact) <= Decimal("0.5")
        net = whole - sum(inside[place] for place in places)
        assert abs(net - Decimal(whole) / (1 + rate / 100)) <= Decimal("0.5")
