"""Windows in any zone: every instant has exactly one, they touch, and they begin where people expect."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tollkeeper_ledger.domain.windows import (
    Alignment,
    Span,
    WindowRule,
    WindowUnit,
    add_months,
    end_day_of,
    local_start,
    rolling_at,
    window_at,
)

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Asia/Kolkata", "Pacific/Apia",
         "Australia/Lord_Howe", "Asia/Beirut", "Africa/Cairo", "Pacific/Kiritimati")  # fmt: skip
CALENDAR_UNITS = [unit for unit in WindowUnit if unit is not WindowUnit.BILLING_PERIOD]


def us(text: str) -> int:
    """Give microseconds of an ISO instant."""
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


def local(at_us: int, zone: str) -> str:
    """Give the wall clock of an instant."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).astimezone(
        ZoneInfo(zone)
    ).strftime("%Y-%m-%d %H:%M")  # fmt: skip


@given(
    at_us=st.integers(us("1990-01-01T00:00:00+00:00"), us("2060-01-01T00:00:00+00:00")),
    unit=st.sampled_from(CALENDAR_UNITS),
    count=st.sampled_from([1, 2, 3, 5, 7, 15, 100]),
    zone=st.sampled_from(ZONES),
    anchor=st.sampled_from([date(1970, 1, 5), date(2020, 1, 31), date(2024, 2, 29), date(2011, 12, 30)]),
)
@settings(max_examples=400, deadline=None)
def test_every_instant_has_one_window_and_windows_touch(
    at_us: int, unit: WindowUnit, count: int, zone: str, anchor: date
) -> None:
    """The window holds its instant; its first and last instants give the same window; its end begins the next."""
    rule = WindowRule(unit=unit, count=count, time_zone=zone, anchor=anchor)
    span = window_at(rule, at_us)
    assert span.holds(at_us)
    assert window_at(rule, span.start_us) == span
    assert window_at(rule, span.end_us - 1) == span
    assert window_at(rule, span.end_us).start_us == span.end_us
    assert window_at(rule, span.start_us - 1).end_us == span.start_us


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_a_day_is_as_long_as_the_zone_makes_it(day: str, hours: int) -> None:
    """In Berlin the day on which clocks go forward has 23 hours, the other 25."""
    span = window_at(WindowRule(unit=WindowUnit.DAY, time_zone="Europe/Berlin"), us(f"{day}T10:00:00+00:00"))
    assert (span.end_us - span.start_us) // 3_600_000_000 == hours
    assert local(span.start_us, "Europe/Berlin") == f"{day} 00:00"


def test_a_day_whose_midnight_is_skipped_begins_when_the_gap_ends() -> None:
    """In São Paulo 2018-11-04 begins at 01:00; the day before ends at that very instant."""
    rule = WindowRule(unit=WindowUnit.DAY, time_zone="America/Sao_Paulo")
    span = window_at(rule, us("2018-11-04T12:00:00-02:00"))
    assert span.start_us == us("2018-11-04T03:00:00+00:00")
    assert local(span.start_us, "America/Sao_Paulo") == "2018-11-04 01:00"


def test_a_midnight_that_happens_twice_counts_the_first_time() -> None:
    """In Beirut clocks go back from 24:00 to 23:00: the day begins at the first midnight after that."""
    assert local_start(date(2017, 10, 29), ZoneInfo("Asia/Beirut")) == datetime(2017, 10, 28, 22, tzinfo=UTC)
    assert local_start(date(2018, 2, 18), ZoneInfo("America/Sao_Paulo")).hour == 3


def test_a_skipped_day_has_no_window() -> None:
    """Samoa had no 2011-12-30: the 29th is followed by the 31st."""
    rule = WindowRule(unit=WindowUnit.DAY, time_zone="Pacific/Apia")
    before = window_at(rule, us("2011-12-30T09:00:00+00:00"))
    assert local(before.start_us, "Pacific/Apia") == "2011-12-29 00:00"
    assert local(before.end_us, "Pacific/Apia") == "2011-12-31 00:00"


def test_weeks_begin_on_monday() -> None:
    """The default anchor is Monday 1970-01-05."""
    span = window_at(WindowRule(unit=WindowUnit.WEEK), us("2026-11-21T12:00:00+00:00"))
    assert local(span.start_us, "UTC") == "2026-11-16 00:00"
    assert span.end_us - span.start_us == 7 * 86_400_000_000


def test_months_are_the_calendars_and_years_too() -> None:
    """Without an anchor months begin on the 1st and years on 1 January."""
    month = window_at(WindowRule(unit=WindowUnit.MONTH), us("2024-02-29T23:59:59+00:00"))
    assert (local(month.start_us, "UTC"), local(month.end_us, "UTC")) == ("2024-02-01 00:00", "2024-03-01 00:00")
    year = window_at(WindowRule(unit=WindowUnit.YEAR, time_zone="Asia/Kolkata"), us("2023-12-31T19:00:00+00:00"))
    assert local(year.start_us, "Asia/Kolkata") == "2024-01-01 00:00"


def test_months_from_the_31st_begin_on_the_last_day_of_shorter_ones() -> None:
    """31 January, 29 February, 31 March: the anchor's own day comes back."""
    anchor = date(2024, 1, 31)
    assert [add_months(anchor, n) for n in range(4)] == [
        date(2024, 1, 31), date(2024, 2, 29), date(2024, 3, 31), date(2024, 4, 30)]  # fmt: skip
    rule = WindowRule(unit=WindowUnit.MONTH, anchor=anchor)
    span = window_at(rule, us("2025-03-01T00:00:00+00:00"))
    assert (local(span.start_us, "UTC"), local(span.end_us, "UTC")) == ("2025-02-28 00:00", "2025-03-31 00:00")


def test_five_minutes_are_counted_from_the_anchor() -> None:
    """A multiple of a unit is aligned to the anchor, also in a zone with half hours."""
    span = window_at(
        WindowRule(unit=WindowUnit.MINUTE, count=5, time_zone="Asia/Kolkata"), us("2026-01-01T00:07:00+00:00")
    )
    assert (span.start_us, span.end_us) == (us("2026-01-01T00:05:00+00:00"), us("2026-01-01T00:10:00+00:00"))


def test_rolling_windows_begin_at_first_use() -> None:
    """A rolling day lasts to the same wall clock time of the next, a rolling month to the same day or the last."""
    at_us = us("2026-03-28T12:34:56+01:00")
    day = rolling_at(WindowRule(unit=WindowUnit.DAY, time_zone="Europe/Berlin", alignment=Alignment.ROLLING), at_us)
    assert day == Span(at_us, us("2026-03-29T12:34:56+02:00"))
    month = rolling_at(WindowRule(unit=WindowUnit.MONTH, alignment=Alignment.ROLLING), us("2026-01-31T05:00:00+00:00"))
    assert month.end_us == us("2026-02-28T05:00:00+00:00")


def test_what_has_no_calendar_window_is_refused() -> None:
    """Billing periods, rolling windows and counts out of range are not this function's."""
    for rule in (
        WindowRule(unit=WindowUnit.BILLING_PERIOD),
        WindowRule(unit=WindowUnit.DAY, alignment=Alignment.ROLLING),
        WindowRule(unit=WindowUnit.DAY, count=0),
    ):
        with pytest.raises(ValueError, match=r"window|period|count"):
            window_at(rule, 0)


def test_a_window_belongs_to_the_day_of_its_last_instant() -> None:
    """A window that ends at midnight ends on the day before, for partitions."""
    assert end_day_of(us("1970-01-02T00:00:00+00:00")) == 0
    assert end_day_of(us("1970-01-02T00:00:00.000001+00:00")) == 1


@pytest.mark.parametrize(
    ("zone", "unit", "count", "at", "expected"),
    [
        # Clocks go forward and back by an hour, and on Lord Howe by half an hour.
        ("Europe/Berlin", WindowUnit.DAY, 1, "2026-03-29T12:00:00+00:00", ("2026-03-29 00:00", 23)),
        ("Europe/Berlin", WindowUnit.DAY, 1, "2026-10-25T12:00:00+00:00", ("2026-10-25 00:00", 25)),
        ("Australia/Lord_Howe", WindowUnit.DAY, 1, "2026-10-04T06:00:00+00:00", ("2026-10-04 00:00", 23.5)),
        ("Australia/Lord_Howe", WindowUnit.DAY, 1, "2026-04-05T06:00:00+00:00", ("2026-04-05 00:00", 24.5)),
        # Midnight is skipped: the day begins at one.
        ("Africa/Cairo", WindowUnit.DAY, 1, "2026-04-24T12:00:00+00:00", ("2026-04-24 01:00", 23)),
        ("Asia/Beirut", WindowUnit.DAY, 1, "2026-03-29T12:00:00+00:00", ("2026-03-29 01:00", 23)),
        # Offsets of half and three quarters of an hour.
        ("Asia/Kolkata", WindowUnit.DAY, 1, "2026-06-01T18:29:59+00:00", ("2026-06-01 00:00", 24)),
        ("Asia/Kathmandu", WindowUnit.DAY, 1, "2026-06-01T18:15:00+00:00", ("2026-06-02 00:00", 24)),
        # Hours and minutes are elapsed time, whatever the clocks do.
        ("Europe/Berlin", WindowUnit.HOUR, 1, "2026-10-25T00:30:00+00:00", ("2026-10-25 02:00", 1)),
        ("Europe/Berlin", WindowUnit.HOUR, 1, "2026-10-25T01:30:00+00:00", ("2026-10-25 02:00", 1)),
        # Several units, counted from the anchor, Monday 1970-01-05.
        ("UTC", WindowUnit.DAY, 3, "2026-06-04T00:00:00+00:00", ("2026-06-04 00:00", 72)),
        ("Europe/Berlin", WindowUnit.WEEK, 2, "2026-03-20T12:00:00+00:00", ("2026-03-16 00:00", 335)),
        ("Europe/Berlin", WindowUnit.MONTH, 1, "2026-03-31T12:00:00+00:00", ("2026-03-01 00:00", 743)),
        ("UTC", WindowUnit.MONTH, 3, "2026-05-31T00:00:00+00:00", ("2026-04-01 00:00", 2184)),
        ("UTC", WindowUnit.YEAR, 1, "2028-07-01T00:00:00+00:00", ("2028-01-01 00:00", 8784)),
    ],
)
def test_worked_cases(zone: str, unit: WindowUnit, count: int, at: str, expected: tuple[str, float]) -> None:
    """Windows begin and last as a wall clock of the zone says."""
    span = window_at(WindowRule(unit=unit, count=count, time_zone=zone), us(at))
    assert expected == (local(span.start_us, zone), (span.end_us - span.start_us) / 3_600_000_000)


@pytest.mark.parametrize(
    ("zone", "unit", "count", "anchor", "at", "expected"),
    [
        # Weeks that begin on Sundays; the one in which clocks go forward is an hour short.
        ("Europe/Berlin", WindowUnit.WEEK, 1, "2026-01-04", "2026-03-29T12:00:00+00:00", ("2026-03-29 00:00", 167)),
        # Sprints of two weeks and decades of days, from their own Thursday, whatever lies between.
        ("America/New_York", WindowUnit.WEEK, 2, "2026-01-08", "2026-03-10T12:00:00+00:00", ("2026-03-05 00:00", 335)),
        ("Europe/Berlin", WindowUnit.DAY, 10, "2026-03-25", "2026-04-03T21:59:59+00:00", ("2026-03-25 00:00", 239)),
        ("Europe/Berlin", WindowUnit.DAY, 10, "2026-03-25", "2026-04-03T22:00:00+00:00", ("2026-04-04 00:00", 240)),
        # Before the anchor windows are counted back from it.
        ("UTC", WindowUnit.DAY, 2, "2030-01-02", "2029-12-31T23:00:00+00:00", ("2029-12-31 00:00", 48)),
        # Months from the 5th, also of the day that weeks are counted from otherwise; from the 31st, back to it.
        ("UTC", WindowUnit.MONTH, 1, "2026-01-05", "2026-03-04T23:59:59+00:00", ("2026-02-05 00:00", 672)),
        ("UTC", WindowUnit.MONTH, 1, "1970-01-05", "2026-03-04T23:59:59+00:00", ("2026-02-05 00:00", 672)),
        ("America/New_York", WindowUnit.MONTH, 1, "2024-01-31", "2026-03-10T12:00:00+00:00", ("2026-02-28 00:00", 743)),
        # Tax years.
        ("Europe/London", WindowUnit.YEAR, 1, "2025-04-06", "2026-04-05T22:59:59+00:00", ("2025-04-06 00:00", 8760)),
        ("Europe/London", WindowUnit.YEAR, 1, "2025-04-06", "2026-04-05T23:00:00+00:00", ("2026-04-06 00:00", 8760)),
        # Hours are elapsed time from the anchor's midnight, over the change of clocks.
        ("Europe/Berlin", WindowUnit.HOUR, 5, "2026-03-28", "2026-03-29T04:59:59+00:00", ("2026-03-29 01:00", 5)),
        ("Europe/Berlin", WindowUnit.HOUR, 5, "2026-03-28", "2026-03-29T05:00:00+00:00", ("2026-03-29 07:00", 5)),
    ],
)
def test_worked_cases_of_anchors(
    *, zone: str, unit: WindowUnit, count: int, anchor: str, at: str, expected: tuple[str, float]
) -> None:
    """Windows are counted from the anchor's local midnight, by the zone's calendar and clocks."""
    span = window_at(WindowRule(unit=unit, count=count, time_zone=zone, anchor=date.fromisoformat(anchor)), us(at))
    assert expected == (local(span.start_us, zone), (span.end_us - span.start_us) / 3_600_000_000)
