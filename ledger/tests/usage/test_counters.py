# ruff: noqa: SIM300 - expected first, then actual
"""What readings of counters that only grow add: each amount once."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tollkeeper_ledger.domain.errors import InvalidFieldError
from tollkeeper_ledger.domain.metric_series import Last, Reading, Standing, count, units_of
from tollkeeper_ledger.domain.usage import LATENESS_MAX_US, UNITS_MAX
from tollkeeper_ledger.domain.usage_columns import Use
from tollkeeper_ledger.services.usage_counters import rounds_of

NOW_US = 1_800_000_000_000_000
NOW_NS = NOW_US * 1_000
ONE = Decimal(1)


def reading(start: int, at: int, total: Decimal | int, series: bytes = b"s" * 32) -> Reading:
    """Give a reading; start and time in nanoseconds before now."""
    return Reading(series, NOW_NS - start, NOW_NS - at, Decimal(total), ONE)


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.booleans()), max_size=6), st.data())
def test_totals_add_up_whatever_is_sent_again(lives: list[tuple[list[int], bool]], data: st.DataObject) -> None:
    """Lives of a counter, readings lost and sent again: what is counted is the last total heard of each life."""
    sent: list[Reading] = []
    at = 100_000
    last: Last | None = None
    counted = expected = Decimal(0)
    for steps, _ in lives:
        start = at
        total = Decimal(0)
        heard = Decimal(0)
        for step in steps:
            at -= 10
            total += step
            now = reading(start, at, total)
            again = data.draw(st.sampled_from([*sent, None]), label="again")
            told = [one for one in (again, now) if one is not None]
            if not data.draw(st.booleans(), label="is lost"):
                heard = total
            else:
                told = told[:-1]
            for one in told:
                found = count(last, one, now_us=NOW_US)
                if found.standing is Standing.NEW:
                    counted += found.amount
                    last = one.last
                    sent.append(one)
        expected += heard
    assert expected == counted


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [
        (None, reading(50, 10, 7), (Standing.NEW, 7)),
        (None, reading(10, 10, 7), (Standing.NEW, 0)),
        (None, reading(LATENESS_MAX_US * 1_000 + 1_000, 10, 7), (Standing.NEW, 0)),
        (reading(50, 20, 5), reading(50, 10, 7), (Standing.NEW, 2)),
        (reading(50, 20, 5), reading(50, 20, 5), (Standing.AGAIN, 0)),
        (reading(50, 20, 5), reading(50, 20, 6), (Standing.OTHER, 0)),
        (reading(50, 20, 5), reading(50, 30, 4), (Standing.BEHIND, 0)),
        (reading(50, 20, 5), reading(60, 10, 9), (Standing.BEHIND, 0)),
        (reading(50, 20, 5), reading(50, 10, 3), (Standing.NEW, 3)),
        (reading(50, 20, 5), reading(15, 10, 9), (Standing.NEW, 9)),
        (reading(50, 20, 5), reading(10, 10, 9), (Standing.NEW, 0)),
    ],
)
def test_a_reading_stands_to_the_last_one(last: Reading | None, now: Reading, expected: tuple[Standing, int]) -> None:
    """First, later, the same, another, earlier; fell, began anew; from a start that nobody knows."""
    found = count(last.last if last is not None else None, now, now_us=NOW_US)
    assert expected == (found.standing, found.amount)


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**30 - 1))
def test_amounts_are_exact(whole: int, behind: int) -> None:
    """Nineteen digits before the point and thirty behind it are subtracted without rounding."""
    total = Decimal(f"{whole}.{behind:030}")
    found = count(reading(50, 20, 0).last, replace(reading(50, 10, 0), total=total), now_us=NOW_US)
    assert total == found.amount
    grown = count(
        Last(NOW_NS - 50, NOW_NS - 20, Decimal(1).scaleb(-30)),
        replace(reading(50, 10, 0), total=Decimal(whole + 1)),
        now_us=NOW_US,
    )
    assert f"{whole}." + "9" * 30 == str(grown.amount)


def test_an_amount_that_is_no_number_of_units_is_refused() -> None:
    """Not whole, below 0, too many: told with the bound."""
    assert 512 == units_of(Decimal("0.5"), Decimal(1_024))
    for amount in ("0.3", "-1", "NaN", str(UNITS_MAX + 1)):
        with pytest.raises(InvalidFieldError):
            units_of(Decimal(amount), ONE)


def test_a_round_holds_one_reading_of_a_series() -> None:
    """Readings of a series go into rounds by their time, others into the first."""

    def use(one: Reading | None) -> Use:
        return Use(tenant="t", id="i", event_us=1, quantities=(("m", 0),), attributes=(), reading=one)

    other = b"o" * 32
    uses = [
        use(reading(50, 10, 3)),
        use(None),
        use(reading(50, 30, 1)),
        use(reading(9, 1, 2, other)),
        use(reading(50, 20, 2)),
    ]
    assert [[1, 2, 3], [4], [0]] == rounds_of(uses)
