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
from hypothesis import given, settings
from hypothesis import strategies as st
from tollkeeper_ledger.domain.catalogue.canonical import canonical_json
from tollkeeper_ledger.domain.invoice import paid_ahead, rate_and_sum
from tollkeeper_ledger.domain.money import Currency
from tollkeeper_ledger.domain.period_facts import facts_from_json, facts_to_json, period_to_json
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.fees import Share, fee_line
from tollkeeper_ledger.domain.rating.paid import PaidFee, give_back
from tollkeeper_ledger.domain.rating.period import (
    Ahead,
    PeriodFacts,
    PeriodUsage,
    RatedPeriod,
    Stretch,
    paid_instead,
    rate_period,
)
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
RECORDED = {case["name"]: case for case in json.loads((DATA / "golden_engine_1.json").read_text())}
CHANGED = RECORDED["upgrade, fees in advance, on top"]
DEFINITIONS = {digest: text.encode() for digest, text in CHANGED["definitions"].items()}
FEES_MINOR = {
    digest: sum(round(Decimal(fee["amount"]) * 100) for fee in json.loads(text)["fees"])
    for digest, text in DEFINITIONS.items()
}
COUPONS = st.lists(
    st.one_of(
        st.integers(1, 100).map(lambda percent: Coupon(f"p{percent}", "Percent", Decimal(percent), None)),
        st.integers(1, 12_000).map(lambda minor: Coupon(f"a{minor}", "Amount", None, minor)),
    ),
    max_size=2,
    unique_by=lambda coupon: coupon.coupon_id,
).map(tuple)
TAXED = st.tuples(
    st.sampled_from(["exclusive", "inclusive", "reverse_charge"]), st.sampled_from(["0", "7", "19", "25.5"])
)


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


def test_another_plan_would_have_been_paid_ahead_at_its_price() -> None:
    """Half of Basic's 30.00 was off: half of Pro's 90.00 would have been, so half of 45.00 comes back of it."""
    before = Ahead(plan="basic", quantity=1, span=APRIL, whole=APRIL, paid=(PAID,))
    paid = paid_instead(before, PLANS["pro"], "UTC")
    assert [(9_000, 4_500)] == [(fee.amount_minor, fee.discount_minor) for fee in paid]
    stretch = Stretch(Period(start=START, end=day(16)), "pro", "active", 1)
    half = PeriodFacts("UTC", stretch.span, APRIL, (stretch,), replace(before, plan="pro", paid=paid), None)
    assert [("pro, unused 15 of 30 days", -4_500, -2_250)] == shown(
        rate_period(half, PeriodUsage(by_plan={}), PLANS, engine_version=2)
    )


@pytest.mark.parametrize(("version", "expected"), [(1, ("all", "half")), (2, ("all",))])
def test_a_coupon_is_used_where_it_takes_something_off(version: int, expected: tuple[str, ...]) -> None:
    """Behind a coupon of everything another one is not used; the first engine's closes used all, and give all back."""
    assert expected == april(ALL, HALF, version=version, paid=(PAID,)).coupons_used
    assert () == april(version=version, paid=(PAID,)).coupons_used


@settings(deadline=None)
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
    paid = paid_ahead(CHANGED["inputs"].encode(), DEFINITIONS)
    expected = (PaidFee(9_000, 0, 1_710, "VAT", "19", "exclusive"), PaidFee(2_331, 0, 443, "VAT", "19", "exclusive"))
    assert expected == paid
    inputs = json.loads(CHANGED["inputs"])
    facts = facts_from_json(inputs)
    assert facts.ahead is not None
    for ahead in (replace(facts.ahead, paid=paid), replace(facts.ahead, is_void=True)):
        stored = {**inputs, "facts": json.loads(json.dumps(facts_to_json(replace(facts, ahead=ahead))))}
        assert ahead == facts_from_json(stored).ahead


def inputs(facts: PeriodFacts, taxed: tuple[str, str]) -> bytes:
    """Give inputs of today's engine with these facts, for a payer that is taxed like this."""
    mode, percent = taxed
    taxes = [{"name": "VAT", "percent": percent, "meters": []}]
    opening = json.loads(RECORDED["opening with a coupon"]["inputs"])
    return canonical_json(
        {
            **opening,
            "engine_version": 2,
            "period": period_to_json(facts.period),
            "facts": facts_to_json(facts),
            "billing": {**opening["billing"], "tax_mode": mode, "taxes": taxes},
        }
    )


def with_tax(amount_minor: Decimal, taxed: tuple[str, str]) -> Decimal:
    """Give what is to be paid for a price."""
    mode, percent = taxed
    return amount_minor * (1 + Decimal(percent) / 100) if mode == "exclusive" else amount_minor


def left_of(amount_minor: Decimal, coupons: tuple[Coupon, ...]) -> Decimal:
    """Give what coupons leave of an amount, one after the other."""
    for coupon in coupons:
        off = amount_minor * coupon.percent / 100 if coupon.percent is not None else Decimal(coupon.amount_minor or 0)
        amount_minor -= min(off, amount_minor)
    return amount_minor


@settings(deadline=None)
@given(
    plans=st.permutations(sorted(FEES_MINOR)),
    on=st.integers(1, 30),
    is_end=st.booleans(),
    coupons=st.tuples(COUPONS, COUPONS),
    taxed=st.tuples(TAXED, TAXED),
)
def test_whoever_changes_pays_for_the_days_of_each_plan(
    plans: list[str],
    on: int,
    is_end: bool,  # noqa: FBT001 - drawn
    coupons: tuple[tuple[Coupon, ...], tuple[Coupon, ...]],
    taxed: tuple[tuple[str, str], tuple[str, str]],
) -> None:
    """Opening and close together cost the old plan's days as they were paid, and the new one's at today's terms.

    Whatever coupons and taxes were then and are now; but for the rounding of fees, coupons and taxes. Who leaves on the
    first day has everything back, to the minor unit.
    """
    old, new = plans
    advance = Ahead(plan=old, quantity=1, span=APRIL, whole=APRIL)
    first = rate_and_sum(inputs(PeriodFacts("UTC", APRIL, APRIL, (), None, advance, coupons[0]), taxed[0]), DEFINITIONS)
    ahead = replace(advance, paid=paid_ahead(first.inputs, DEFINITIONS))
    spans = ((START, day(on), old), (day(on), END, new))
    stretches = [Stretch(Period(start=a, end=b), plan, "active", 1) for a, b, plan in spans if a < b]
    if is_end:
        stretches = stretches[:-1] or [Stretch(Period(start=START, end=START), old, "active", 1)]
    period = Period(start=START, end=stretches[-1].span.end)
    close = PeriodFacts("UTC", period, APRIL, tuple(stretches), ahead, None, coupons[1])
    second = rate_and_sum(inputs(close, taxed[1]), DEFINITIONS)
    paid_minor = Decimal(first.sums["total_minor"])
    rest = 0 if is_end else left_of(Decimal(FEES_MINOR[new]) * (31 - on) / 30, coupons[1])
    expected = paid_minor * (on - 1) / 30 + with_tax(Decimal(rest), taxed[1])
    found = first.sums["total_minor"] + second.sums["total_minor"]
    assert abs(found - expected) <= 6
    if is_end and on == 1:
        assert 0 == found
