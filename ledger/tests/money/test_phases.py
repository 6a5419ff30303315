"""Subscriptions whose periods are counted anew: another interval, anchor or time zone."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.periods import Interval, IntervalUnit, Schedule, same_date_from
from tollkeeper_ledger.domain.phases import Phase, SubscriptionSchedule

FIRST = datetime(2031, 1, 1)  # noqa: DTZ001 - wall clock time on purpose
LAST = datetime(2032, 1, 1)  # noqa: DTZ001 - wall clock time on purpose
ZONES = ["UTC", "America/New_York", "Asia/Tokyo", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/Berlin"]
INSTANTS = st.datetimes(FIRST, LAST, timezones=st.just(UTC))


@st.composite
def subscriptions(draw: st.DrawFn) -> SubscriptionSchedule:
    """Give a subscription whose periods are counted anew up to four times, with or without an end."""
    starts = sorted(draw(st.lists(INSTANTS, min_size=1, max_size=5, unique=True)))
    eras = tuple(
        Schedule(
            anchor=draw(st.datetimes(FIRST, LAST)),
            time_zone=draw(st.sampled_from(ZONES)),
            interval=Interval(
                unit=draw(st.sampled_from([IntervalUnit.DAY, IntervalUnit.WEEK, IntervalUnit.MONTH])),
                count=draw(st.integers(1, 3)),
            ),
            started_at=start,
        )
        for start in starts
    )
    ended_at = draw(st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=400)))
    return SubscriptionSchedule(
        tenant_id=uuid.UUID(int=1),
        subscription_id=uuid.UUID(int=2),
        eras=eras,
        ended_at=None if ended_at is None else starts[0] + ended_at,
        billed_until=starts[0],
        phases=(Phase(starts_at=starts[0], plan_version_id=uuid.UUID(int=3)),),
    )


@given(subscriptions())
def test_periods_follow_each_other_whatever_they_are_counted_by(found: SubscriptionSchedule) -> None:
    """No gap, no overlap, from the start on; each is found at both its ends, in its whole, cut at a new count."""
    periods = list(islice(found.open_periods(), 60))
    assert periods[0].start == found.started_at
    assert all(one.end == following.start for one, following in pairwise(periods))
    for period in periods:
        assert period.start < period.end
        assert period == found.period_at(period.start)
        assert period == found.period_at(period.end - timedelta(microseconds=1))
        whole = found.whole_period(period.start)
        assert whole.start <= period.start
        assert period.end <= whole.end
        assert all(not period.start < era.started_at < period.end for era in found.eras)
    if found.ended_at is not None and len(periods) < 60:
        assert periods[-1].end == found.ended_at


@given(INSTANTS, st.sampled_from(ZONES), st.sampled_from(ZONES))
def test_zones_change_where_their_dates_meet(at: datetime, zone: str, other: str) -> None:
    """The date is the same there, it is the first such moment, within a day; zones a day apart are refused."""
    if {zone, other} == {"Pacific/Kiritimati", "Pacific/Pago_Pago"}:
        with pytest.raises(ValueError, match="never"):
            same_date_from(at, zone, other)
        return
    found = same_date_from(at, zone, other)

    def dates(instant: datetime) -> set[str]:
        return {f"{instant.astimezone(ZoneInfo(name)):%Y-%m-%d}" for name in (zone, other)}

    assert len(dates(found)) == 1
    assert at <= found <= at + timedelta(days=1)
    assert found == at or len(dates(found - timedelta(microseconds=1))) > 1
