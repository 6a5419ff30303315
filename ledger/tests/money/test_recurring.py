# ruff: noqa: SIM300 - expected first, then actual
"""Recurring revenue: what plans are worth a month, and how that moves from month's end to month's end."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.recurring import Movements, PaidStretch, RecurringBook, Worth, monthly_minor


def edge(month: int) -> datetime:
    """Give the beginning of a month of 2031; 13 is January 2032."""
    return datetime(2031 + (month - 1) // 12, (month - 1) % 12 + 1, 1, tzinfo=UTC)


def plan(unit: str, count: int, *amounts: str, **more: Any) -> dict[str, Any]:
    """Give a plan with a fee of each amount."""
    seats = more.pop("per_seat", False)
    fees = [
        {"name": f"f{n}", "amount": amount, "timing": ("advance", "arrears")[n % 2], "per_seat": seats}
        for n, amount in enumerate(amounts)
    ]
    return {"currency": "USD", "billing_interval": {"unit": unit, "count": count}, "fees": fees, **more}


@pytest.mark.parametrize(
    ("found", "quantity", "minor"),
    [
        (plan("month", 1, "30.00"), 1, 3000),
        (plan("month", 1, "30.00", "5.00"), 7, 3500),
        (plan("month", 1, "12.00", per_seat=True), 7, 8400),
        (plan("month", 1, "12.00", per_seat=True), 0, 0),
        (plan("month", 3, "100.00"), 1, 3333),
        (plan("year", 1, "365.00"), 1, 3042),
        (plan("year", 2, "365.00"), 1, 1521),
        (plan("week", 1, "7.00"), 1, 3042),
        (plan("day", 1, "1.00"), 1, 3042),
        (plan("hour", 1, "0.10"), 1, 7300),
        (plan("month", 1, "10.00", commitment="100.00"), 1, 10000),
        (plan("month", 1, "110.00", commitment="100.00"), 1, 11000),
        (plan("month", 1), 1, 0),
        (plan("month", 6, "0.03"), 1, 1),
        ({**plan("year", 1, "1000"), "currency": "JPY"}, 1, 83),
    ],
)
def test_a_plan_is_worth_its_fees_or_its_minimum_a_month(found: dict[str, Any], quantity: int, minor: int) -> None:
    """Seats multiply, the larger of fees and minimum counts, 12 months and 365 days are a year, rounded half up."""
    assert minor == monthly_minor(found, quantity=quantity)


def stretch(
    first: datetime, last: datetime | None, minor: int, plan: str = "pro", currency: str = "USD"
) -> PaidStretch:
    """Give a time in which a tenant is worth something."""
    return PaidStretch(first, last, Worth(plan=plan, currency=currency, minor=minor))


def booked(*tenants: list[PaidStretch], first: int = 1, months: int = 3) -> RecurringBook:
    """Give the book of some months of 2031."""
    book = RecurringBook([edge(first + month) for month in range(months + 1)])
    for tenant in tenants:
        book.add(tenant)
    return book


def test_every_movement_is_told_by_its_name() -> None:
    """A worked year's beginning: new, more, less, moved, lost and returned; revenue per tenant and churn."""
    middle = datetime(2031, 2, 15, tzinfo=UTC)
    grows = [stretch(edge(1), middle, 3000, "basic"), stretch(middle, None, 9000, "pro")]
    shrinks = [stretch(edge(1), middle, 9000), stretch(middle, None, 6000)]
    pauses = [stretch(edge(1), middle, 1000), stretch(edge(3), None, 1000)]
    other = [stretch(edge(1), edge(2), 500, currency="EUR"), stretch(edge(2), None, 700)]
    book = booked(grows, shrinks, pauses, other)
    by_plan = {(month, currency, plan): found for month, currency, plan, found in book.rows(by_plan=True)}
    january = Movements(new_minor=10000, closing_minor=10000, new_tenants=2, closing_tenants=2)
    assert january == by_plan[0, "USD", "pro"]
    assert 5000 == january.per_tenant_minor
    assert january.churned_tenants_share is None
    assert Movements(
        opening_minor=3000, moved_minor=-3000, opening_tenants=1, closing_minor=0
    ) == by_plan[1, "USD", "basic"]  # fmt: skip
    february = Movements(
        opening_minor=10000, new_minor=700, expansion_minor=6000, moved_minor=3000, contraction_minor=3000,
        churned_minor=1000, closing_minor=15700, opening_tenants=2, new_tenants=1, churned_tenants=1, closing_tenants=3,
    )  # fmt: skip
    assert february == by_plan[1, "USD", "pro"]
    assert (5233, 5000, 4000) == (
        february.per_tenant_minor, february.churned_tenants_share, february.lost_share
    )  # fmt: skip
    assert (
        Movements(opening_minor=500, churned_minor=500, opening_tenants=1, churned_tenants=1)
        == by_plan[1, "EUR", "pro"]
    )
    assert (1000, 1) == (by_plan[2, "USD", "pro"].returned_minor, by_plan[2, "USD", "pro"].returned_tenants)
    together = {(month, currency): found for month, currency, _, found in book.rows(by_plan=False)}
    assert (0, 13000, 15700) == (
        together[1, "USD"].moved_minor, together[1, "USD"].opening_minor, together[1, "USD"].closing_minor
    )  # fmt: skip


def test_the_end_of_a_month_is_its_last_moment() -> None:
    """What begins with the next month is not this one's; what ends with this month still is; a day leaves none."""
    first, last = edge(2), edge(2).replace(day=2)
    begins, ends, short = [stretch(edge(2), None, 100)], [stretch(edge(1), edge(2), 10)], [stretch(first, last, 1)]
    rows = {month: found for month, _, _, found in booked(begins, ends, short, months=2).rows(by_plan=False)}
    assert {0: 10, 1: 100} == {month: found.closing_minor for month, found in rows.items()}
    assert 10 == rows[1].churned_minor


@st.composite
def histories(draw: st.DrawFn) -> list[PaidStretch]:
    """Give stretches in order, some with gaps, under several plans and currencies."""
    days = st.datetimes(datetime(2030, 12, 1), datetime(2031, 5, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
    cuts = sorted(draw(st.lists(days, unique=True, max_size=8)))
    found = []
    for start, end in pairwise([*cuts, None]):
        if start is not None and draw(st.booleans()):
            found.append(
                stretch(
                    start,
                    end,
                    draw(st.integers(1, 10**9)),
                    draw(st.sampled_from(["a", "b", "c"])),
                    draw(st.sampled_from(["USD", "EUR"])),
                )
            )
    return found


@given(st.lists(histories(), max_size=6))
def test_movements_lead_from_opening_to_closing(tenants: list[list[PaidStretch]]) -> None:
    """In each month, currency and plan; a month opens as the one before closed; moves between plans sum to zero."""
    for by_plan in (True, False):
        closed: dict[tuple[int, str, str], tuple[int, int]] = {}
        opened: dict[tuple[int, str, str], tuple[int, int]] = {}
        for month, currency, name, found in booked(*tenants, months=4).rows(by_plan=by_plan):
            won = found.new_minor + found.returned_minor + found.expansion_minor + found.moved_minor
            assert found.closing_minor == found.opening_minor + won - found.contraction_minor - found.churned_minor
            if not by_plan:
                assert 0 == found.moved_minor
                won_tenants = found.new_tenants + found.returned_tenants
                assert found.closing_tenants == found.opening_tenants + won_tenants - found.churned_tenants
            closed[month + 1, currency, name] = found.closing_minor, found.closing_tenants
            opened[month, currency, name] = found.opening_minor, found.opening_tenants
        for key in closed.keys() | opened.keys():
            if 0 < key[0] < 4:
                assert closed.get(key, (0, 0)) == opened.get(key, (0, 0))
