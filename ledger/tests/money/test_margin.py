# ruff: noqa: SIM300 - expected first, then actual
"""What is left of revenue once usage is paid at its cost price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from tollkeeper_ledger.domain.margin import Earned, Margin, UsedAtCost, margins


def used(units: int, amount: str, **changed: Any) -> UsedAtCost:
    """Give usage of a month at a cost price."""
    facts: dict[str, Any] = {"month": "2031-04", "name": "acme", "currency": "USD", "scale": 0, "per": 1_000, **changed}
    return UsedAtCost(units=Decimal(units), amount=Decimal(amount), **facts)


def test_costs_are_added_up_exactly_and_rounded_once() -> None:
    """Three times 0.004 are 0.012, one cent; a third of 0.01 three times is one cent, not none."""
    thousandths = [used(4, "1"), used(4, "1"), used(4_000, "1", scale=3)]
    assert [Margin("2031-04", "acme", "USD", 0, 1)] == margins([], thousandths)
    assert [Margin("2031-04", "acme", "USD", 0, 1)] == margins([], [used(1, "0.01", per=3)] * 3)


def test_a_margin_is_revenue_less_cost_in_its_currency() -> None:
    """25.00 earned, 1.20 and 0.30 paid: 23.50, 94 %. In another currency, or another month, nothing comes off."""
    earned = [Earned("2031-04", "acme", "USD", 2_500), Earned("2031-05", "acme", "USD", 700)]
    rows = margins(earned, [used(1_200, "1"), used(300, "1"), used(5_000, "1", currency="JPY")])
    expected = [("2031-04", "JPY", 0, 5, -5), ("2031-04", "USD", 2_500, 150, 2_350), ("2031-05", "USD", 700, 0, 700)]
    assert expected == [
        (row.month, row.currency, row.revenue_minor, row.own_cost_minor, row.margin_minor) for row in rows
    ]
    assert [None, 9_400, 10_000] == [row.margin_bp for row in rows]


@pytest.mark.parametrize(("revenue", "cost", "expected"), [
    (0, 5, None), (-100, 5, None), (100, 250, -15_000), (3, 1, 6_667),
])  # fmt: skip
def test_shares_are_of_what_was_earned(revenue: int, cost: int, expected: int | None) -> None:
    """In ten-thousandths, rounded half away from zero, below zero as well; without revenue there is none."""
    assert expected == Margin("2031-04", "acme", "USD", revenue, cost).margin_bp
