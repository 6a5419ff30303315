"""Billing periods against tables worked out by hand, and their laws against chance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.periods import (
    Interval,
    IntervalUnit,
    Period,
    Schedule,
    calendar_anchor,
    from_us,
    period_at,
    periods_from,
    to_us,
)


def at(text: str) -> datetime:
    """Read a UTC instant."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def wall(text: str) -> datetime:
    """Read a wall clock time."""
    return datetime.fromisoformat(text)


def schedule(unit: str, anchor: str, *, zone: str = "UTC", count: int = 1, started: str | None = None) -> Schedule:
    """Give a schedule that starts at its anchor unless told otherwise."""
    local = wall(anchor)
    begin = at(started) if started else period_start(local, zone)
    return Schedule(
        anchor=local, time_zone=zone, interval=Interval(unit=IntervalUnit(unit), count=count), started_at=begin
    )


def period_start(local: datetime, zone: str) -> datetime:
    """Give the instant of a wall clock time."""
    from zoneinfo import ZoneInfo  # noqa: PLC0415 - only the oracle needs it

    return local.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


@pytest.mark.parametrize(
    ("given_schedule", "starts"),
    [
        pytest.param(
            schedule("month", "2023-01-31"),
            ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31"],
            id="the 31st falls on the last day of shorter months and comes back",
        ),
        pytest.param(
            schedule("month", "2024-01-30"), ["2024-01-30", "2024-02-29", "2024-03-30"], id="leap year keeps the 29th"
        ),
        pytest.param(
            schedule("year", "2024-02-29"),
            ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"],
            id="29 February of years",
        ),
        pytest.param(
            schedule("month", "2023-10-01", zone="Europe/Berlin"),
            ["2023-09-30T22:00", "2023-10-31T23:00", "2023-11-30T23:00"],
            id="local months across the end of summer time",
        ),
        pytest.param(
            schedule("day", "2024-03-30T02:30", zone="Europe/Berlin"),
            ["2024-03-30T01:30", "2024-03-31T01:30", "2024-04-01T00:30"],
            id="a day that begins in the gap begins as long after it",
        ),
        pytest.param(
            schedule("day", "2023-10-28T02:30", zone="Europe/Berlin"),
            ["2023-10-28T00:30", "2023-10-29T00:30", "2023-10-30T01:30"],
            id="a day that begins twice begins the first time",
        ),
        pytest.param(
            schedule("hour", "2023-11-16T18:15"),
            ["2023-11-16T18:15", "2023-11-16T19:15", "2023-11-16T20:15"],
            id="hours from the anchor's minute",
        ),
        pytest.param(
            schedule("week", "2024-01-01", count=2), ["2024-01-01", "2024-01-15", "2024-01-29"], id="every second week"
        ),
        pytest.param(
            schedule("day", "2011-12-28", zone="Pacific/Apia"),
            ["2011-12-28T10:00", "2011-12-29T10:00", "2011-12-30T10:00", "2011-12-31T10:00"],
            id="a day that the zone skips makes no period",
        ),
        pytest.param(
            schedule("month", "2023-11-01", started="2023-11-16T18:15"),
            ["2023-11-16T18:15", "2023-12-01", "2024-01-01"],
            id="a start between two boundaries cuts the first period",
        ),
    ],
)
def test_periods_start_where_the_table_says(given_schedule: Schedule, starts: list[str]) -> None:
    """Consecutive periods begin at the instants worked out by hand."""
    found = [one.start for one in islice(periods_from(given_schedule, given_schedule.started_at), len(starts))]
    assert [at(start) for start in starts] == found


def test_nothing_before_the_start() -> None:
    """An instant before the subscription has no period."""
    assert period_at(schedule("month", "2023-01-31"), at("2023-01-30T23:59:59")) is None


@pytest.mark.parametrize(
    ("unit", "zone", "expected"),
    [
        ("hour", "Asia/Kolkata", "2023-11-16T23:00"),
        ("day", "America/New_York", "2023-11-16"),
        ("week", "UTC", "2023-11-13"),
        ("month", "UTC", "2023-11-01"),
        ("year", "Pacific/Auckland", "2023-01-01"),
    ],
)
def test_a_calendar_anchor_is_the_boundary_before(unit: str, zone: str, expected: str) -> None:
    """`anchor: calendar` counts from the local boundary at or before the start."""
    found = calendar_anchor(at("2023-11-16T18:15:00"), unit=IntervalUnit(unit), time_zone=zone)
    assert wall(expected) == found


zones = st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Australia/Lord_Howe"])
schedules = st.builds(
    lambda anchor, zone, unit, count, delay: Schedule(
        anchor=anchor,
        time_zone=zone,
        interval=Interval(unit=unit, count=count),
        started_at=period_start(anchor, zone) + timedelta(minutes=delay),
    ),
    st.datetimes(min_value=datetime(2005, 1, 1), max_value=datetime(2030, 1, 1)),  # noqa: DTZ001 - wall clock
    zones,
    st.sampled_from(list(IntervalUnit)),
    st.integers(1, 5),
    st.integers(0, 100_000),
)


@given(schedules, st.integers(0, 20 * 366 * 86_400))
def test_periods_tile_time(given_schedule: Schedule, offset_s: int) -> None:
    """Every instant from the start on lies in exactly one period, and periods meet without gap or overlap."""
    instant = given_schedule.started_at + timedelta(seconds=offset_s)
    found = period_at(given_schedule, instant)
    assert found is not None
    assert found.start <= instant < found.end
    following = list(islice(periods_from(given_schedule, instant), 4))
    assert found == following[0]
    assert all(one.end == other.start and one.start < one.end for one, other in pairwise(following))
    assert found == period_at(given_schedule, found.start)
    assert following[1] == period_at(given_schedule, found.end)


@given(st.integers(-(2**55), 2**57))
def test_microseconds_survive(us: int) -> None:
    """Instants and microseconds convert into each other exactly."""
    assert us == to_us(from_us(us))


def test_a_period_is_half_open() -> None:
    """The end belongs to the next period."""
    monthly = schedule("month", "2023-01-31")
    first = Period(start=at("2023-01-31"), end=at("2023-02-28"))
    assert first == period_at(monthly, first.end - timedelta(microseconds=1))
    assert first != period_at(monthly, first.end)
