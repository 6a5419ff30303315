"""Rating: worked cases, and laws that hold for any usage."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.domain.money import Currency, exact
from tollkeeper_ledger.domain.rating.charges import LateUsage, Rated, SubscriptionFacts, Total, Usage
from tollkeeper_ledger.domain.rating.engine import is_free, rate
from tollkeeper_ledger.domain.rating.metered import rate_terms
from tollkeeper_ledger.domain.rating.terms import read_price

CASES = {
    case["id"]: case for case in json.loads((Path(__file__).parent / "data" / "pricing.json").read_text())["cases"]
}
START = datetime(2023, 11, 16, 18, 15, tzinfo=UTC)
FACTS = SubscriptionFacts(period_start=START, period_end=START + timedelta(hours=1))
USD = Currency.from_code("USD")


@exact
def rate_price(one: dict[str, Any], quantity: int, currency: Currency) -> Rated:
    """Rate units at one price."""
    return rate_terms(read_price(one), quantity, currency)


def price(unit_price: str, *, meter: str = "tokens", per: int = 1, included: int = 0) -> dict[str, Any]:
    """Give a price as definitions have it."""
    return {
        "meter": meter,
        "model": "per_unit",
        "per": per,
        "unit_price": unit_price,
        "included": included,
        "description": "",
    }


def plan(*prices: dict[str, Any], fee: str = "", currency: str = "USD") -> bytes:
    """Give a plan version's bytes."""
    fees = [{"name": "base", "amount": fee, "timing": "arrears"}] if fee else []
    return canonical_json({"currency": currency, "fees": fees, "prices": list(prices)})


def total(units: int, meter: str = "tokens") -> Total:
    """Give a sum."""
    return Total(meter=meter, unit="tokens", scale=0, units=units)


@pytest.mark.parametrize("name", ["lago-standard-1", "om-unit-usage", "product-wpk"])
def test_worked_cases_of_unit_prices(name: str) -> None:
    """The exact amount before rounding agrees with every worked case."""
    case = CASES[name]
    rated = rate_price(price(case["params"]["unit"]), int(case["input"]["quantity"]), USD)
    assert Decimal(case["expect"]["amount"]) == rated.amount


def test_worked_case_of_a_plan_with_included_units() -> None:
    """A base fee, included units and three meters add up as the worked case says."""
    case = CASES["product-pro-plan"]
    params, used = case["params"], case["input"]
    definition = plan(
        price(params["mau_unit"], meter="mau", included=int(params["mau_included"])),
        price(params["msg_unit"], meter="messages", included=int(params["msg_included"])),
        price(params["gb_unit"], meter="gb"),
        fee=f"{Decimal(params['base_cents']).scaleb(-2):f}",
    )
    usage = Usage(totals=tuple(total(int(used[meter]), meter) for meter in ("mau", "messages", "gb")))
    charges = rate(definition, usage, FACTS, engine_version=1)
    assert int(case["expect"]["total_cents"]) == charges.subtotal_minor
    assert len(charges.lines) == 4


def test_steps_lead_to_the_amount() -> None:
    """The explanation shows what was used, included, charged, multiplied and rounded."""
    definition = plan(price("2.50", per=1_000_000, included=1_000_000))
    (line,) = rate(definition, Usage(totals=(total(18_062_123),)), FACTS, engine_version=1).lines
    assert (line.quantity, line.included, line.charged, line.amount_minor) == (18_062_123, 1_000_000, 17_062_123, 4266)
    assert line.explanation == (
        "used: 18,062,123",
        "less included 1,000,000: 17,062,123 to charge",
        "17,062,123 / 1,000,000 x 2.50 USD = 42.6553075 USD",
        "rounded half up: 42.66 USD",
    )


def test_nothing_used_makes_no_line() -> None:
    """A price without usage and usage without a price make no line; the fee stands anyway."""
    definition = plan(price("1.00"), fee="20.00")
    usage = Usage(totals=(total(0), total(5, "unpriced")))
    charges = rate(definition, usage, FACTS, engine_version=1)
    assert [(line.description, line.amount_minor) for line in charges.lines] == [("base", 2000)]


def test_an_unknown_engine_or_model_is_refused() -> None:
    """Rating never guesses: what it does not know it names."""
    with pytest.raises(ValueError, match="no engine version 99"):
        rate(plan(), Usage(totals=()), FACTS, engine_version=99)
    with pytest.raises(ValueError, match="no price model 'auction'"):
        rate(plan({**price("1"), "model": "auction"}), Usage(totals=(total(1),)), FACTS, engine_version=1)


@pytest.mark.parametrize(
    ("definition", "free"),
    [
        (plan(), True),
        (plan(price("0.00")), True),
        (plan(price("0.000001")), False),
        (plan(fee="0.00"), True),
        (plan(fee="10.00"), False),
    ],
)
def test_free_plans_are_told_apart(definition: bytes, free: bool) -> None:  # noqa: FBT001
    """A plan is free where no fee and no price is above zero."""
    assert free == is_free(definition)


unit_prices = st.decimals(min_value=0, max_value=1000, places=6).map(lambda value: f"{value:f}")
prices = st.builds(
    lambda unit_price, per, included: price(unit_price, per=per, included=included),
    unit_prices,
    st.integers(1, 10**7),
    st.integers(0, 10**7),
)
units = st.integers(0, 2**40)


def floor_half_up(exact: Fraction) -> int:
    """Round what is not below 0 half up, with integers alone."""
    return (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)


@given(st.lists(st.tuples(prices, units), max_size=6), unit_prices)
def test_the_total_is_the_sum_of_the_lines(used: list[tuple[dict[str, Any], int]], fee: str) -> None:
    """Each line is its exact price rounded half up, by plain fractions, and nothing is rounded or added after that."""
    named = [({**one, "meter": f"m{place}"}, quantity) for place, (one, quantity) in enumerate(used)]
    definition = plan(*(one for one, _ in named), fee=fee)
    usage = Usage(totals=tuple(total(quantity, one["meter"]) for one, quantity in named))
    charges = rate(definition, usage, FACTS, engine_version=1)

    def minor(price: str, charged: int, per: int) -> int:
        return floor_half_up(Fraction(price) * charged * 100 / per)

    expected = [minor(fee, 1, 1)] + [
        minor(one["unit_price"], max(quantity - int(one["included"]), 0), int(one["per"]))
        for one, quantity in named
        if quantity
    ]
    assert expected == [line.amount_minor for line in charges.lines]
    assert sum(expected) == charges.subtotal_minor
    assert 1 + sum(1 for _, quantity in named if quantity) == len(charges.lines)
    assert all(line.amount_minor >= 0 and line.charged <= line.quantity for line in charges.lines)


@given(prices, st.lists(units, min_size=1, max_size=6))
def test_splitting_usage_over_late_parts_never_changes_the_sum(one: dict[str, Any], parts: list[int]) -> None:
    """However usage arrives, on time or late in any pieces, all invoices together come to the same."""
    definition = plan(one)
    at_once = rate(definition, Usage(totals=(total(sum(parts)),)), FACTS, engine_version=1).subtotal_minor
    billed = rate(definition, Usage(totals=(total(parts[0]),)), FACTS, engine_version=1).subtotal_minor
    before = parts[0]
    for part in parts[1:]:
        late = LateUsage(
            definition=definition,
            period_start=START,
            period_end=FACTS.period_end,
            before=(total(before),),
            added=(total(part),),
        )
        billed += rate(plan(one), Usage(totals=(), late=(late,)), FACTS, engine_version=1).subtotal_minor
        before += part
    assert at_once == billed


@given(prices, units, units)
def test_more_usage_never_costs_less(one: dict[str, Any], fewer: int, more: int) -> None:
    """A unit price is monotone in the quantity."""
    low, high = sorted((fewer, more))
    assert rate_price(one, low, USD).amount <= rate_price(one, high, USD).amount


def test_late_usage_names_its_period() -> None:
    """An adjustment line says what it is for and shows both sides of the difference."""
    definition = plan(price("2.50", per=1_000_000, included=1_000_000))
    late = LateUsage(
        definition=definition,
        period_start=START,
        period_end=FACTS.period_end,
        before=(total(700_000),),
        added=(total(900_000),),
    )
    later = SubscriptionFacts(period_start=FACTS.period_end, period_end=FACTS.period_end + timedelta(hours=1))
    (line,) = rate(definition, Usage(totals=(), late=(late,)), later, engine_version=1).lines
    assert line.description == "tokens, late usage of 2023-11-16 18:15 to 2023-11-16 19:15 UTC"
    assert (line.quantity, line.charged, line.amount_minor, line.period_start) == (900_000, 600_000, 150, START)
    assert line.late
    assert len(line.explanation) == 3
