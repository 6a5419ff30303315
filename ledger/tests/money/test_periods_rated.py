"""Periods that change within themselves: fees shared out, usage by the plan in force, fees in advance, reductions."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.charges import Charge, Total
from tollkeeper_ledger.domain.rating.period import Ahead, PeriodFacts, PeriodUsage, RatedPeriod, Stretch, rate_period
from tollkeeper_ledger.domain.rating.reductions import Coupon, Grant, GrantUse


def day(number: int) -> datetime:
    """Give the start of a day of November 2026 (30 days); 31 is 1 December."""
    return datetime(2026, 11, number, tzinfo=UTC) if number <= 30 else datetime(2026, 12, number - 30, tzinfo=UTC)


WHOLE = Period(start=day(1), end=day(31))
NEXT = Period(start=day(31), end=datetime(2027, 1, 1, tzinfo=UTC))


def plan(amount: str, *, timing: str = "arrears", **more: Any) -> dict[str, Any]:
    """Give a plan with one fee and a price of one cent for each message."""
    fee = {"name": "base", "amount": amount, "timing": timing, **({"per_seat": True} if more.pop("seats", 0) else {})}
    prices = [{"meter": "messages", "model": "per_unit", "per": 1, "unit_price": "0.01", "included": 0,
               "description": ""}]  # fmt: skip
    return {"currency": "USD", "fees": [fee], "prices": prices, **more}


def stretch(first: int, last: int, digest: str = "a", state: str = "active", quantity: int = 1) -> Stretch:
    """Give the days from one up to, not including, another."""
    return Stretch(span=Period(start=day(first), end=day(last)), plan=digest, state=state, quantity=quantity)


def ahead(digest: str = "a", quantity: int = 1, span: Period = WHOLE, whole: Period = WHOLE) -> Ahead:
    """Give what was billed ahead."""
    return Ahead(plan=digest, quantity=quantity, span=span, whole=whole)


def rated(plans: dict[str, Any], *stretches: Stretch, **facts: Any) -> RatedPeriod:
    """Rate November."""
    usage = facts.pop("usage", {})
    found = PeriodFacts(
        **{
            "time_zone": "UTC", "period": WHOLE, "whole": WHOLE, "stretches": stretches, "ahead": None, "advance": None,
            **facts,
        }
    )  # fmt: skip
    by_plan = {
        digest: (Total(meter="messages", unit="messages", scale=0, units=units),) for digest, units in usage.items()
    }
    return rate_period(found, PeriodUsage(by_plan=by_plan), plans, engine_version=1)


def shown(result: RatedPeriod) -> list[tuple[str, int]]:
    """Give description and amount of each line."""
    return [(line.description, line.amount_minor) for line in result.charges.lines]


def test_a_change_shares_fees_and_splits_usage() -> None:
    """From the 16th of 30 days on another plan: 15 days of each fee, each plan's own usage, each rounded by itself."""
    result = rated(
        {"a": plan("29.00"), "b": plan("99.99")},
        stretch(1, 16),
        stretch(16, 31, "b"),
        usage={"a": 300, "b": 200},
    )
    assert shown(result) == [
        ("base, 15 of 30 days", 1450),
        ("base, 15 of 30 days", 5000),
        ("messages", 300),
        ("messages", 200),
    ]


def test_fees_in_advance_are_billed_ahead_and_put_right() -> None:
    """The plan that was paid ahead is credited from the change on, the new one charged, and the next period billed."""
    result = rated(
        {"a": plan("30.00", timing="advance"), "b": plan("90.00", timing="advance")},
        stretch(1, 11),
        stretch(11, 31, "b"),
        ahead=ahead(),
        advance=ahead("b", span=NEXT, whole=NEXT),
    )
    assert shown(result) == [
        ("base, unused 20 of 30 days", -2000),
        ("base, 20 of 30 days", 6000),
        ("base, in advance", 9000),
    ]


def test_nothing_is_put_right_where_nothing_changed() -> None:
    """What was billed ahead and stayed so makes no line."""
    assert shown(rated({"a": plan("30.00", timing="advance")}, stretch(1, 31), ahead=ahead())) == []


def test_a_trial_costs_nothing() -> None:
    """Fees begin with the day after the trial."""
    result = rated({"a": plan("30.00")}, stretch(1, 15, state="trialing"), stretch(15, 31))
    assert shown(result) == [("base, 16 of 30 days", 1600)]
    assert shown(rated({"a": plan("30.00")}, stretch(1, 31, state="trialing"))) == []


def test_a_pause_costs_no_fee_but_what_is_used_all_the_same() -> None:
    """Two runs of fees around the pause, and usage in it."""
    result = rated({"a": plan("30.00")}, stretch(1, 6), stretch(6, 16, state="paused"), stretch(16, 31), usage={"a": 7})
    assert shown(result) == [("base, 5 of 30 days", 500), ("base, 15 of 30 days", 1500), ("messages", 7)]


def test_seats_multiply_and_are_shared_out() -> None:
    """Three seats for 10 days, then five."""
    result = rated({"a": plan("12.00", seats=1)}, stretch(1, 11, quantity=3), stretch(11, 31, quantity=5))
    assert shown(result) == [("base, 10 of 30 days", 1200), ("base, 20 of 30 days", 4000)]
    assert [line.quantity for line in result.charges.lines] == [3, 5]


def test_a_cancelled_subscription_gets_back_what_it_paid_ahead() -> None:
    """The period ends on the 21st: ten days of what was billed for thirty come back."""
    period = Period(start=day(1), end=day(21))
    result = rated({"a": plan("30.00", timing="advance")}, stretch(1, 21), period=period, ahead=ahead())
    assert shown(result) == [("base, unused 10 of 30 days", -1000)]


def test_a_plan_without_proration_is_due_whole() -> None:
    """The last plan in force pays its whole fee, whatever was before it, and nothing paid ahead comes back."""
    plans = {"a": plan("30.00", proration="none"), "b": plan("50.00", proration="none")}
    assert shown(rated(plans, stretch(1, 16), stretch(16, 31, "b"))) == [("base", 5000)]
    advance = {"a": plan("30.00", timing="advance", proration="none")}
    assert shown(rated(advance, stretch(1, 16), stretch(16, 31, state="paused"), ahead=ahead())) == []


def test_a_commitment_is_filled_up_for_the_time_it_was_agreed() -> None:
    """Half a month of a minimum of 100.00 is 50.00; fee and usage count, coupons come after it."""
    plans = {"a": plan("10.00"), "b": plan("10.00", commitment="100.00")}
    result = rated(plans, stretch(1, 16), stretch(16, 31, "b"), usage={"a": 9_000, "b": 1_000})
    assert shown(result)[-1] == ("Minimum commitment", 5000 - 500 - 1000)
    assert shown(rated(plans, stretch(1, 31, "b"), usage={"b": 9_000}))[-1] == ("messages", 9000)


def test_coupons_come_off_lines_and_credit_pays_the_rest() -> None:
    """A tenth off 40.00 and then 5.00 more leave 31.00; credit of 20.00 and 30.00 pays it in its order."""
    coupons = (Coupon("c1", "tenth", Decimal(10), None), Coupon("c2", "five", None, 500))
    grants = (Grant("g1", "Welcome", "", 2000), Grant("g2", "Paid", "", 3000))
    result = rated({"a": plan("30.00")}, stretch(1, 31), usage={"a": 1_000}, coupons=coupons, grants=grants)
    assert shown(result) == [("base", 3000), ("messages", 1000), ("Welcome", -2000), ("Paid", -1100)]
    assert [line.discount_minor for line in result.charges.lines] == [675, 225, 0, 0]
    assert result.charges.subtotal_minor == 0
    assert (GrantUse("g1", 2000), GrantUse("g2", 1100)) == result.grants_used


def test_granted_units_are_used_before_anything_is_charged() -> None:
    """Of 1,500 messages 1,200 are granted, the first grant first; 300 are charged."""
    grants = (Grant("g1", "Trial pack", "messages", 200), Grant("g2", "Bonus", "messages", 1_000))
    result = rated({"a": plan("0.00")}, stretch(1, 31), usage={"a": 1_500}, grants=grants)
    assert shown(result)[-1] == ("messages", 300)
    assert (GrantUse("g1", 200), GrantUse("g2", 1_000)) == result.grants_used


@pytest.mark.parametrize(("time_zone", "expected"), [("UTC", "15 of 30 days"), ("Asia/Tokyo", "15 of 30 days")])
def test_days_are_those_of_the_zone(time_zone: str, expected: str) -> None:
    """A day belongs to what it begins with, whatever the hour of the change."""
    middle = datetime(2026, 11, 16, 11, tzinfo=UTC)
    first = Stretch(span=Period(start=day(1), end=middle), plan="a", state="active", quantity=1)
    second = Stretch(span=Period(start=middle, end=day(31)), plan="b", state="active", quantity=1)
    lines = rated({"a": plan("30.00"), "b": plan("30.00")}, first, second, time_zone=time_zone).charges.lines
    assert [f"base, {expected}"] * 2 == [line.description for line in lines]


cuts = st.lists(st.integers(2, 30), max_size=5, unique=True).map(sorted)


@given(cuts, st.integers(0, 10**6))
def test_shares_of_one_fee_add_up_to_it_within_a_cent_each(days: list[int], cents: int) -> None:
    """However often seats of one price change to the same number of another plan, nobody pays for a day twice."""
    edges = [1, *days, 31]
    stretches = [stretch(first, last, "ab"[place % 2]) for place, (first, last) in enumerate(itertools.pairwise(edges))]
    fee = f"{Decimal(cents).scaleb(-2):f}"
    lines: tuple[Charge, ...] = rated({"a": plan(fee), "b": plan(fee)}, *stretches).charges.lines
    assert len(stretches) == len(lines)
    assert abs(sum(line.amount_minor for line in lines) - cents) * 2 <= len(lines)
