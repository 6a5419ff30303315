# ruff: noqa: SIM300 - expected first, then actual
"""Overage: what is over, and what will be at this pace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.invoice import SegmentInput
from tollkeeper_ledger.domain.overage import Pace, paces, projected
from tollkeeper_ledger.domain.periods import Period
from tollkeeper_ledger.domain.rating.charges import Total
from tollkeeper_ledger.domain.rating.period import Stretch


def day(number: int) -> datetime:
    """Give the start of a day of November 2031."""
    return datetime(2031, 11, 1, tzinfo=UTC) + timedelta(days=number - 1)


def stretch(first: int, last: int, plan: str, state: str = "active") -> Stretch:
    """Give the days from one up to, not including, another."""
    return Stretch(span=Period(start=day(first), end=day(last)), plan=plan, state=state, quantity=1)


def segment(plan: str, units: int, events: tuple[tuple[int, int], ...] = ()) -> SegmentInput:
    """Give usage under a plan."""
    total = Total(meter="messages", unit="messages", scale=0, units=units, events=events)
    return SegmentInput(segment_id=plan, record_count=1, totals=(total,), plan=plan)


def test_each_plan_goes_on_at_its_pace_for_as_long_as_it_is_in_force() -> None:
    """On day 16: plan a is over and stays; b had 5 of its 20 days; a trial is free; c has not begun and has no pace."""
    stretches = [
        stretch(1, 6, "trial", "trialing"), stretch(6, 11, "a"), stretch(11, 21, "b"), stretch(21, 26, "c"),
        stretch(26, 31, "b"),
    ]  # fmt: skip
    found = paces(stretches, now=day(16))
    us = 86_400_000_000
    assert {"a": Pace(5 * us, 5 * us), "b": Pace(5 * us, 15 * us)} == found
    grown = projected([segment("a", 70), segment("b", 101), segment("", 9)], found)
    assert [70, 303, 9] == [one.totals[0].units for one in grown]


@given(st.lists(st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 50)), min_size=1, max_size=20))
def test_records_of_a_price_each_come_as_often_again(events: list[tuple[int, int]]) -> None:
    """Twice the time has every record twice at the same price, and the sum is theirs."""
    units = sum(amount * count for amount, count in events)
    (grown,) = projected([segment("a", units, tuple(events))], {"a": Pace(5, 10)})
    assert tuple((amount, 2 * count) for amount, count in events) == grown.totals[0].events
    assert 2 * units == grown.totals[0].units


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**13), st.integers(0, 10**13))
def test_a_projection_is_never_less_than_what_is_there(units: int, passed_us: int, left_us: int) -> None:
    """It grows with the time that is left, and not at all without any."""
    grown = Pace(passed_us, passed_us + left_us).grown(units)
    assert abs(grown) >= abs(units)
    assert units == Pace(passed_us, passed_us).grown(units)
