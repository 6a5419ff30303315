"""Rows for cost tools: unit price times quantity is list cost, and billed costs are the document's total."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, plan_to_json
from tollkeeper_ledger.domain.focus import focus_rows
from tollkeeper_ledger.domain.invoice_lines import summed
from tollkeeper_ledger.domain.money import EXACT
from tollkeeper_ledger.domain.rating.charges import SubscriptionFacts, Total, Usage
from tollkeeper_ledger.domain.rating.engine import rate
from tollkeeper_ledger.services.catalogue import read_catalogue

START = datetime(2026, 10, 1, tzinfo=UTC)
FACTS = SubscriptionFacts(period_start=START, period_end=START + timedelta(days=31))
PRICES = {
    "per unit": "unit_price: '0.0125'",
    "per million": "unit_price: '2.50', per: 1000000",
    "per three": "unit_price: 1, per: 3",
    "converted": "unit_price: '0.10', convert: {divide_by: 1000000000}",
    "discounted": "unit_price: '0.10', discount_percent: 20",
    "bounded": "unit_price: '0.10', minimum: 5, maximum: 50",
    "graduated": "model: graduated, tiers: [{up_to: 10, unit_price: 1, flat: 2}, {unit_price: '0.5'}]",
    "volume": "model: volume, tiers: [{up_to: 10, unit_price: 1}, {unit_price: '0.5'}]",
    "package": "model: package, size: 7, price: '0.3'",
    "blocks": "model: graduated_blocks, tiers: [{block_size: 100, block_price: 1}]",
    "stairs": "model: stair_step, tiers: [{up_to: 500, price: 5}, {price: 15}]",
    "percentage": "model: percentage, rate_percent: '2.9'",
    "shares": "model: graduated_percentage, tiers: [{up_to: 1000, rate_percent: 1}, {rate_percent: '0.5'}]",
    "dynamic": "model: dynamic",
    "flat": "model: flat, amount: 5",
}
ONE_PRICE = {"per unit", "per million", "bounded"}
"""Where one price per unit of the meter explains the amount: always, or while no bound is reached."""


def rows_of(
    price: str, units: int, *, scale: int = 0, mode: str = "exclusive", currency: str = "USD"
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Rate one month at a price with 19 % tax; give the document's sums and its rows."""
    plan = read_catalogue(
        f"""
version: 1
seller: {{id: s, name: Seller, currency: {currency}, time_zone: UTC}}
meters: [{{name: messages, unit: messages}}]
plans: [{{name: p, billing_interval: month, prices: [{{meter: messages, {price}}}]}}]
""",
        source_name="test",
    ).plans[0]
    totals = (Total(meter="messages", unit="messages", scale=scale, units=units),)
    charges = rate(canonical_json(plan_to_json(plan)), Usage(totals=totals), FACTS, engine_version=1)
    billing = {"taxes": [{"name": "VAT", "percent": "19", "meters": []}], "tax_mode": mode}
    sums = summed(charges, {"billing": billing, "items": []}, engine_version=1)
    party = {"id": "a", "name": "A"}
    period = {"start": START.isoformat(), "end": FACTS.period_end.isoformat()}
    names = {"number": "S-1", "seller": party, "tenant": party, "billing_tenant": party, "plan": {"name": "p"}}
    return sums, focus_rows({**sums, **names, "currency": currency, "period": period, "billing": billing})


def product(row: dict[str, str]) -> Decimal:
    """Multiply exactly."""
    return EXACT.multiply(Decimal(row["ListUnitPrice"]), Decimal(row["PricingQuantity"]))


@pytest.mark.parametrize("name", PRICES)
@given(
    units=st.one_of(st.integers(0, 50), st.integers(0, 10**15)),
    scale=st.sampled_from([0, 3]),
    mode=st.sampled_from(["exclusive", "inclusive", "reverse_charge"]),
    currency=st.sampled_from(["USD", "JPY", "KWD"]),
)
def test_price_times_quantity_is_the_list_cost(name: str, units: int, scale: int, mode: str, currency: str) -> None:
    """For every model: to the last digit where a price stands, which is only where one explains the line."""
    sums, rows = rows_of(PRICES[name], units, scale=scale, mode=mode, currency=currency)
    digits = {"USD": 2, "JPY": 0, "KWD": 3}[currency]
    billed = sum((Decimal(row["BilledCost"]) for row in rows), Decimal(0))
    assert Decimal(sums["total_minor"]).scaleb(-digits) == billed
    for row in rows:
        if row["ListUnitPrice"]:
            assert name in (ONE_PRICE | {"per three"})
            assert Decimal(row["ListCost"]) == product(row)
            assert abs(product(row) - Decimal(row["BilledCost"])) <= Decimal("0.5").scaleb(-digits)


@pytest.mark.parametrize(
    ("price", "units", "expected"),
    [
        ("unit_price: '2.50', per: 1000000", 2_000_000, ("2000000", "0.0000025", "5.00", "5.00")),
        ("unit_price: '2.50', per: 1000000", 1, ("1", "0.0000025", "0.0000025", "0.00")),
        ("unit_price: '0.0125', included: 100", 103, ("3", "0.0125", "0.0375", "0.04")),
        ("unit_price: '0.10', convert: {divide_by: 1000000000}", 25_500_000_000, ("25500000000", "", "2.55", "2.55")),
        ("unit_price: '0.10', discount_percent: 20", 100, ("100", "", "8.00", "8.00")),
        ("unit_price: '0.10', maximum: 50", 1_000, ("1000", "", "50.00", "50.00")),
        ("unit_price: 1, per: 3", 3, ("3", "", "1.00", "1.00")),
        ("model: package, size: 7, price: '0.3'", 8, ("8", "", "0.60", "0.60")),
    ],
)
def test_prices_stand_in_rows_as_worked_out_by_hand(price: str, units: int, expected: tuple[str, ...]) -> None:
    """Quantity, unit price, list and billed cost: blocks of units are broken down, what one price can't say is left."""
    row = rows_of(price, units)[1][0]
    columns = ("PricingQuantity", "ListUnitPrice", "ListCost", "BilledCost")
    assert expected == tuple(row[column] for column in columns)


def test_scaled_units_are_priced_whole() -> None:
    """720.000 GB-hours at 0.02 per 1,000 thousandths: 720 x 0.02."""
    row = rows_of("unit_price: '0.02', per: 1000", 720_000, scale=3)[1][0]
    assert (row["PricingQuantity"], row["ListUnitPrice"], row["ListCost"]) == ("720", "0.02", "14.40")


@pytest.mark.parametrize(
    ("price", "units", "expected"),
    [
        (
            "unit_price: '0.000000000001', per: 1000000",
            5_000_000_000_000_000,
            ("0.000000000000000001", "0.005", "0.01"),
        ),
        ("unit_price: '0.0000000000001', per: 1000000", 50_000_000_000_000_000, ("", "0.01", "0.01")),
        ("unit_price: '0.0000000000001', per: 1000000", 7, ("", "0.00", "0.00")),
        ("unit_price: '1', per: 524288", 3, ("", "0.00", "0.00")),
    ],
)
def test_no_amount_has_more_digits_than_a_table_holds(price: str, units: int, expected: tuple[str, ...]) -> None:
    """18 digits behind the point stand; of one more the unit price is left out and the rounded amount is the cost."""
    row = rows_of(price, units)[1][0]
    assert expected == (row["ListUnitPrice"], row["ListCost"], row["BilledCost"])


def test_taxes_that_take_nothing_have_no_row() -> None:
    """Under reverse charge the invoice names a rate that its payer accounts for: no row of 0.00 says otherwise."""
    sums, rows = rows_of("unit_price: 1", 5, mode="reverse_charge")
    assert [tax["tax_minor"] for tax in sums["taxes"]] == [0]
    assert [row["ChargeCategory"] for row in rows] == ["Usage"]
    assert [row["ChargeCategory"] for row in rows_of("unit_price: 1", 5)[1]] == ["Usage", "Tax"]
