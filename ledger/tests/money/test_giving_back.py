# ruff: noqa: SIM300 - expected first, then actual
"""What is given back of a fee in advance is what was paid for it: never more, to the minor unit."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.invoice import paid_ahead
from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.domain.period_facts import facts_from_json, facts_to_json
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.fees import Share, fee_line
from tollkeeper_ledger.domain.rating.paid import PaidFee, give_back
from tollkeeper_ledger.domain.rating.period import Ahead, PeriodFacts, PeriodUsage, RatedPeriod, Stretch, rate_period
from tollkeeper_ledger.domain.rating.reductions import Coupon

DATA = Path(__file__).parent / "data"
EUR = Currency.from_code("EUR")
START, END = datetime(2031, 4, 1, tzinfo=UTC), datetime(2031, 5, 1, tzinfo=UTC)
APRIL = Period(start=START, end=END)
PLANS: dict[str, Any] = {
    name: {"currency": "EUR", "fees": [{"name": name, "amount": amount, "timing": "advance"}], "prices": []}
    for name, amount in (("basic", "30.00"), ("pro", "90.00"))
}
HALF, ALL = Coupon("half", "Half", Decimal(50), None), Coupon("all", "All", Decimal(100), None)
PAID = PaidFee(3_000, 1_500, 285, "VAT", "19", "exclusive")


def day(number: int) -> datetime:
    """Give the start of a day of April."""
    return datetime(2031, 4, number, tzinfo=UTC)


def april(*coupons: Coupon, version: int = 2, **ahead: Any) -> RatedPeriod:
    """Rate an April of Basic, paid ahead, and Pro from the 16th on."""
    stretches = (
        Stretch(Period(start=START, end=day(16)), "basic", "active", 1),
        Stretch(Period(start=day(16), end=END), "pro", "active", 1),
    )
    before = Ahead(plan="basic", quantity=1, span=APRIL, whole=APRIL, **ahead)
    facts = PeriodFacts("UTC", APRIL, APRIL, stretches, before, None, coupons)
    return rate_period(facts, PeriodUsage(by_plan={}), PLANS, engine_version=version)


def shown(result: RatedPeriod) -> list[tuple[str, int, int]]:
    """Give description, amount and discount of each line."""
    return [(line.description, line.amount_minor, line.discount_minor) for line in result.charges.lines]


def test_a_coupons_share_is_taken_back_and_nothing_more_comes_off_it() -> None:
    """15.00 of 30.00 are unused, and 15.00 were off: 7.50 come back; today's coupon takes half of Pro's 45.00 alone."""
    result = april(HALF, paid=(PAID,))
    assert [("basic, unused 15 of 30 days", -1_500, -750), ("pro, 15 of 30 days", 4_500, 2_250)] == shown(result)
    assert result.charges.lines[0].given_back is not None
    assert (-143, "exclusive") == result.charges.lines[0].given_back
    assert "coupons had taken off 7.50 EUR of it" in result.charges.lines[0].explanation


def test_nothing_of_a_void_invoice_is_given_back_or_charged_anew() -> None:
    """Of what nobody paid nothing comes back; what it was for is not charged; another plan is, from its day on."""
    assert [("pro, 15 of 30 days", 4_500, 0)] == shown(april(is_void=True))


@pytest.mark.parametrize(("version", "expected"), [(1, ("all", "half")), (2, ("all",))])
def test_a_coupon_is_used_where_it_takes_something_off(version: int, expected: tuple[str, ...]) -> None:
    """Behind a coupon of everything another one is not used; the first engine's closes used all, and give all back."""
    assert expected == april(ALL, HALF, version=version, paid=(PAID,)).coupons_used
    assert () == april(version=version, paid=(PAID,)).coupons_used


@given(
    cuts=st.lists(st.integers(0, 100_000), max_size=6),
    amount=st.integers(1, 100_000),
    off=st.integers(0, 100),
    tax=st.integers(0, 30_000),
)
def test_all_that_is_given_back_of_a_fee_is_what_was_paid(cuts: list[int], amount: int, off: int, tax: int) -> None:
    """However a fee is given back, share by share: its coupons and its tax together to the minor unit, none twice."""
    paid = PaidFee(amount, amount * off // 100, tax, "VAT", "19", "exclusive")
    ends = [*sorted(min(cut, amount) for cut in cuts), amount]
    before, backs = 0, []
    for end in ends:
        fee = {"name": "Fee", "amount": str(Decimal(end - before).scaleb(-2)), "timing": "advance"}
        line = fee_line(fee, Share(START, END), EUR, is_credit=True)
        backs.append(give_back(line, paid, EUR, before_minor=before))
        before = end
    taxes = [line.given_back.tax_minor for line in backs if line.given_back is not None]
    assert (-amount, -paid.discount_minor, -tax) == (
        sum(line.amount_minor for line in backs),
        sum(line.discount_minor for line in backs),
        sum(taxes),
    )
    assert all(line.amount_minor <= line.discount_minor <= 0 for line in backs)
    assert max(taxes) <= 0


def test_what_was_paid_is_read_from_the_invoice_before() -> None:
    """Of an invoice of the first engine too, whose lines' taxes were cut by size: 19 % of 90.00 and of 23.31.

    It goes into the inputs of the next and out again.
    """
    recorded = json.loads((DATA / "golden_engine_1.json").read_text())
    (case,) = [one for one in recorded if one["name"] == "upgrade, fees in advance, on top"]
    paid = paid_ahead(case["inputs"].encode(), {name: text.encode() for name, text in case["definitions"].items()})
    expected = (PaidFee(9_000, 0, 1_710, "VAT", "19", "exclusive"), PaidFee(2_331, 0, 443, "VAT", "19", "exclusive"))
    assert expected == paid
    inputs = json.loads(case["inputs"])
    facts = facts_from_json(inputs)
    assert facts.ahead is not None
    for ahead in (replace(facts.ahead, paid=paid), replace(facts.ahead, is_void=True)):
        stored = {**inputs, "facts": json.loads(json.dumps(facts_to_json(replace(facts, ahead=ahead))))}
        assert ahead == facts_from_json(stored).ahead
