"""Prices as a catalogue declares them: from YAML over the plan's bytes to the lines of an invoice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json, plan_to_json
from tollkeeper_ledger.domain.rating.charges import Charge, SubscriptionFacts, Total, Usage
from tollkeeper_ledger.domain.rating.engine import is_free, rate
from tollkeeper_ledger.services.catalogue import read_catalogue

START = datetime(2026, 10, 1, tzinfo=UTC)
FACTS = SubscriptionFacts(period_start=START, period_end=START + timedelta(days=31))


def definition(price: str) -> bytes:
    """Give the bytes of a plan with one price of messages."""
    catalogue = read_catalogue(
        f"""
version: 1
seller: {{id: s, name: Seller, currency: USD, time_zone: UTC}}
meters: [{{name: messages, unit: messages}}]
plans:
  - name: p
    billing_interval: month
    prices: [{{meter: messages, {price}}}]
""",
        source_name="test",
    )
    return canonical_json(plan_to_json(catalogue.plans[0]))


def lines_of(price: str, units: int) -> tuple[Charge, ...]:
    """Rate one month of messages."""
    totals = (Total(meter="messages", unit="messages", scale=0, units=units),) if units else ()
    return rate(definition(price), Usage(totals=totals), FACTS, engine_version=1).lines


TIERS = "tiers: [{up_to: 1000, unit_price: '0.01', flat: 2}, {up_to: 5000, unit_price: '0.008'}, {unit_price: '0.005'}]"

BLOCKS = "tiers: [{block_size: 100, max_blocks: 10, block_price: 1}, {block_size: 1000, block_price: 1}]"


@pytest.mark.parametrize(
    ("price", "units", "expected_minor"),
    [
        ("unit_price: '0.01'", 12_345, 12_345),
        ("unit_price: '0.01', included: 10000", 12_345, 2_345),
        ("unit_price: '0.50', per: 1000, included: 100000", 100_001, 0),
        (f"model: graduated, {TIERS}", 6_000, 200 + 1_000 + 3_200 + 500),
        (f"model: graduated, {TIERS}", 1_000, 1_200),
        (f"model: volume, {TIERS}", 6_000, 3_000),
        (f"model: volume, {TIERS}", 1_000, 1_200),
        (f"model: graduated, {TIERS}, included: 1000", 2_000, 1_200),
        (f"model: graduated, {TIERS}, maximum: '30.00'", 6_000, 3_000),
        (f"model: graduated, {TIERS}, discount_percent: 10", 6_000, 4_410),
        ("model: package, size: 1000, price: '0.50', included: 100000", 100_001, 50),
        ("model: package, size: 1000, price: '0.50', included: 100000", 150_000, 2_500),
        ("unit_price: '0.50', convert: {divide_by: 1000, round: ceil}", 1_001, 100),
        ("unit_price: '0.50', convert: {divide_by: 1000}", 1_001, 50),
        (f"model: graduated_blocks, {BLOCKS}", 5_325, 1_500),
        ("model: graduated, per: 3, tiers: [{up_to: 1, unit_price: '0.01'}, {unit_price: '0.005'}]", 2, 1),
    ],
)  # fmt: skip
def test_a_declared_price_costs_what_its_model_says(price: str, units: int, expected_minor: int) -> None:
    """Each served model, with included units, conversion, discount and maximum, is rated to the cent."""
    assert expected_minor == sum(line.amount_minor for line in lines_of(price, units))


def test_a_line_of_tiers_carries_them() -> None:
    """The line's parts add up to its amount and its explanation names each."""
    (line,) = lines_of(f"model: graduated, {TIERS}", 6_000)
    assert [
        ("tier 1", Decimal(1000)),
        ("tier 1 flat", Decimal(1)),
        ("tier 2", Decimal(4000)),
        ("tier 3", Decimal(1000)),
    ] == [(part.name, part.quantity) for part in line.parts]
    assert Decimal(line.amount_minor) == sum((part.amount for part in line.parts), Decimal(0)) * 100
    assert "tier 2: 4,000 x 0.008 USD = 32 USD" in line.explanation
    assert (line.unit_price, line.explanation[-1]) == ("", "rounded half up: 49.00 USD")


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (f"model: graduated, {TIERS}", [200]),
        (f"model: volume, {TIERS}", [200]),
        ("unit_price: 1, minimum: 5", [500]),
        ("unit_price: 1", []),
        ("model: package, size: 10, price: 1", []),
    ],
)
def test_without_usage_only_flat_fees_and_minimums_make_a_line(price: str, expected: list[int]) -> None:
    """A first tier's flat fee and a minimum are owed at zero use; units and packages make no line."""
    assert expected == [line.amount_minor for line in lines_of(price, 0)]


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        ("unit_price: 0", True),
        ("unit_price: '0.000001'", False),
        ("unit_price: 0, minimum: 1", False),
        ("model: graduated, tiers: [{up_to: 5}, {}]", True),
        ("model: graduated, tiers: [{up_to: 5}, {flat: 1}]", False),
        ("model: package, size: 1, price: 1", False),
    ],
)
def test_a_plan_is_free_where_nothing_can_be_charged(price: str, expected: bool) -> None:  # noqa: FBT001
    """A plan is free only if no amount in it is above zero."""
    assert expected is is_free(definition(price))


def test_equal_meaning_gives_equal_bytes() -> None:
    """How an amount is written does not make another plan version."""
    assert definition("unit_price: 2.5") == definition("unit_price: '2.50', per: 1, included: 0, model: per_unit")
    assert definition(f"model: graduated, {TIERS}") == definition(f"{TIERS}, model: graduated, per: 1")
